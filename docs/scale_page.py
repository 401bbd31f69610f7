"""The tables of docs/scale.md, out of results/benchmark-scale.json and benchmark-scale-rates.json."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

Results = dict[str, Any]
TERA = 1e12


def digits(value: float, n: int = 2) -> str:
    """A number in n digits; thousands apart, no powers of ten."""
    rounded = float(f"{value:.{n}g}")
    if rounded and abs(rounded) < 0.001:
        return "< 0.001"
    return f"{rounded:,.0f}" if abs(rounded) >= 10 ** (n - 1) else f"{rounded:.{n}g}"


def images(value: float) -> str:
    """A number of images: `2.3 G`."""
    for unit, of in (("T", 1e12), ("G", 1e9), ("M", 1e6), ("k", 1e3)):
        if value >= of:
            return f"{value / of:.2g} {unit}" if value < 100 * of else f"{value / of:.0f} {unit}"
    return f"{value:.0f}"


def table(head: list[str], rows: Iterable[list[str]]) -> list[str]:
    return [f"| {' | '.join(head)} |", "|---" * len(head) + "|", *(f"| {' | '.join(row)} |" for row in rows)]


def jobs(results: Results) -> list[str]:
    """The jobs stage by stage, each with its sums."""
    rows = []
    for job, name in (("lint", "lint"), ("audit", "audit, in cells"), ("audit_exact", "audit, exact search")):
        found = results["jobs"][job]
        for stage, each in found.items():
            rows.append([name, stage, *row(each), each["bound_by"]])
        total = {key: sum(each[key] for each in found.values()) for key in ("core_hours", "read", "written", "hours")}
        price = results["assumed"]["core_price"]["value"]
        rows.append([f"**{name}**", "**all**", *row(total), f"${digits(total['core_hours'] * price)}"])
    return table(["job", "stage", "core hours", "TB read", "TB written", "wall hours", "bound by, or price"], rows)


def row(each: Results) -> list[str]:
    """Core hours, terabytes and wall hours of a stage."""
    return [digits(each["core_hours"], 3), *(digits(each[key] / TERA) for key in ("read", "written")),
            digits(each["hours"], 3)]  # fmt: skip


def rates(results: Results) -> list[str]:
    """What was measured here, of one core."""
    measured = results["measured"]
    rows = [
        ["describe an image (read, decode, SSCD at 288 px)", f"{1000 * measured['describe']:.1f} ms", "embed"],
        ["exact search", f"{measured['search_flops'] / 1e9:.0f} GFLOP/s", "search"],
        ["all pairs and their components", f"{measured['pairs_flops'] / 1e9:.0f} GFLOP/s", "scale-rates"],
        [
            f"second look at {measured['candidates']} candidates",
            f"{1000 / measured['second_looks']:.1f} ms",
            "scale-rates",
        ],
        ["edges made components", f"{measured['edges'] / 1e6:.1f} M/s", "scale-rates"],
    ]
    return table(
        ["of one core", "", "from"],
        [[said, value, f"[{name}](../results/benchmark-{name}.json)"] for said, value, name in rows],
    )


def precision(found: Results) -> list[str]:
    """What shorter vectors do to a similarity."""
    error = found["error_of_similarity"]
    rows = [[name, f"{error[name]['mean']:.5f}", f"{error[name]['largest']:.5f}"] for name in ("fp16", "int8")]
    return table(["numbers of a vector in", "moves a similarity by, on average", "at most"], rows)


def cells(found: Results) -> list[str]:
    """What searching in cells finds."""
    met, copies = found["share_of_pairs_that_meet"], found["share_of_copies_found"]
    more = list(met["0.75"])
    rows = [
        [f"pairs at {name}", *(f"{100 * met[name][each]:.1f} %" for each in more)] for name in ("0.75", "0.85", "0.95")
    ]
    lines = table(["further cells", *more], rows)
    probes = list(copies["0.5"])
    rows = [
        [f"copies at {name}", *(f"{100 * copies[name][each]:.1f} %" for each in probes)]
        for name in ("0.5", "0.65", "0.8")
    ]
    return [*lines, "", *table([f"cells looked into, of {copies['cells']}", *probes], rows)]


def limits(results: Results) -> list[str]:
    """What breaks, where, the first first."""
    found = sorted(results["limits"], key=lambda each: each["breaks_at"])
    return table(
        ["images", "where", "what"], [[images(each["breaks_at"]), each["where"], each["what"]] for each in found]
    )


TABLES = {"scale jobs": jobs, "scale rates": rates, "scale limits": limits}
OF_RATES = {"scale precision": precision, "scale cells": cells}
