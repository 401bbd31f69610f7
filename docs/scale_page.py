"""The tables and the drawing of docs/scale.md, out of results/benchmark-scale.json and benchmark-scale-rates.json."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from copyscope.report.charts import DASHED, DOTTED, SOLID, Chart, Key, logarithmic

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


def stages(results: Results, job: str) -> list[str]:
    """A job stage by stage, and in all."""
    found = results["jobs"][job]
    rows = []
    for name, each in found["stages"].items():
        share = 100 * (1 - each["ideal_hours"] / each["hours"])
        rows.append(
            [name, f"{each['tasks']:,}", digits(each["core_hours"]), digits(each["read"] / TERA),
             digits(each["written"] / TERA), digits(each["hours"]), f"{max(share, 0):.0f} %",
             digits(each["memory"] / 1e9), each["bottleneck"]]
        )  # fmt: skip
    total = found["total"]
    share = 100 * (1 - total["ideal_hours"] / total["hours"])
    rows.append(
        ["**all**", "", digits(total["core_hours"], 3), digits(total["read"] / TERA, 3),
         digits(total["written"] / TERA), digits(total["hours"], 3), f"{share:.0f} %",
         digits(total["memory"] / 1e9), ""]
    )  # fmt: skip
    return table(
        ["stage", "tasks", "core hours", "TB read", "TB written", "wall hours", "lost", "GB a task", "bound by"], rows
    )


def short(results: Results) -> list[str]:
    """The two jobs in one table."""
    names = {"lint": "lint", "audit": "audit, in cells", "audit_exact": "audit, exact search"}
    rows = []
    for job, name in names.items():
        total = results["jobs"][job]["total"]
        dollars = total["dollars"]
        rows.append(
            [name, digits(total["hours"], 3), digits(total["core_hours"], 3),
             digits((total["read"] + total["written"]) / TERA, 3),
             f"{100 * max(total['straggler_hours'], 0) / total['hours']:.1f} %",
             f"{100 * max(total['failure_hours'], 0) / total['hours']:.1f} %",
             digits(dollars["machines"]), digits(dollars["requests"]), digits(dollars["a month of what is kept"])]
        )  # fmt: skip
    return table(
        ["", "wall hours", "core hours", "TB moved", "lost to stragglers", "to failures", "$ machines", "$ requests",
         "$ a month kept"],
        rows,
    )  # fmt: skip


def rates(results: Results) -> list[str]:
    """What was measured here, of one core."""
    measured = results["measured"]
    rows = [
        ["describe an image (read, decode, SSCD at 288 px)", f"{1000 * measured['describe']:.1f} ms", "embed"],
        ["of that, all but the model", f"{1000 * measured['decode']:.1f} ms", "embed"],
        ["exact search", f"{measured['search_flops'] / 1e9:.0f} GFLOP/s", "search"],
        ["all pairs and their components", f"{measured['pairs_flops'] / 1e9:.0f} GFLOP/s", "scale-rates"],
        [
            f"second look at {measured['candidates']} candidates",
            f"{1000 / measured['second_looks']:.1f} ms",
            "scale-rates",
        ],
        ["edges made components", f"{measured['edges'] / 1e6:.1f} M/s", "scale-rates"],
        ["equal digests found", f"{measured['digests'] / 1e6:.1f} M/s", "scale-rates"],
        ["memory of a process", f"{measured['process'] / 2**20:.0f} MB", "audit"],
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


def growth(results: Results) -> list[str]:
    """Hours, bytes and dollars of machines against the number of training images."""
    rows = []
    for each in results["growth"]:
        row = [images(each["images"])]
        for job in ("lint", "audit", "audit_exact"):
            row += [digits(each[job]["hours"]), digits(each[job]["moved"] / TERA), digits(each[job]["machine_dollars"])]
        rows.append(row)
    head = [f"{job}: {what}" for job in ("lint", "audit", "exact") for what in ("hours", "TB", "$")]
    return table(["training images", *head], rows)


def machines(results: Results) -> list[str]:
    rows = [
        [
            f"{each['machines']}",
            *(digits(each[job][what], 3) for job in ("lint", "audit") for what in ("hours", "machine_dollars")),
        ]
        for each in results["machines"]
    ]
    return table(["machines", "lint: hours", "$", "audit: hours", "$"], rows)


def hot(results: Results) -> list[str]:
    """The stage of comparing, by what is done about a much duplicated image."""
    ways = ["neither", "equal files first", "split", "equal files first and split"]
    rows = [
        [
            images(each["times"]),
            *(f"{digits(each[way]['hours'])} ({digits(each[way]['longest_task_hours'])})" for way in ways),
        ]
        for each in results["hot"]
    ]
    return table(["the image stands in the set", *ways], rows)


def stragglers(results: Results) -> list[str]:
    ways = [name for name in results["stragglers"][0] if name != "task_sigma"]
    rows = [
        [
            f"{each['task_sigma']:g}",
            *(f"{each[way]['hours']:.1f} ({100 * each[way]['wasted_share']:.1f} %)" for way in ways),
        ]
        for each in results["stragglers"]
    ]
    return table(["sigma of a task", *ways], rows)


def shuffle(results: Results) -> list[str]:
    """Hours, and dollars of requests, by the tasks on either side of a shuffle."""
    rows = [
        [f"{each['waves']:g}"]
        + [digits(each[job][what], 3) for job in ("lint", "audit") for what in ("hours", "request_dollars")]
        for each in results["shuffle"]
    ]
    return table(["tasks a core", "lint: hours", "$ of requests", "audit: hours", "$ of requests"], rows)


def losses(results: Results) -> list[str]:
    rows = [
        [f"{each['hours_between_losses']:g}", f"{each['machines_lost']:.1f}", f"{each['hours']:.1f}",
         f"{100 * each['wasted_share']:.1f} %"]
        for each in results["losses"]
    ]  # fmt: skip
    return table(["hours until a machine is lost", "lost", "wall hours", "work done for nothing"], rows)


def limits(results: Results) -> list[str]:
    """What breaks, where, the first first."""
    found = sorted(results["limits"], key=lambda each: each["breaks_at"] or float("inf"))
    rows = []
    for each in found:
        there = f"{each['there']:g} h" if each["unit"] == "h" else f"{images(each['there'])} {each['unit']}"
        rows.append(
            [
                images(each["breaks_at"]) if each["breaks_at"] else "never",
                each["where"],
                each["what"],
                there,
                each["answer"],
            ]
        )
    return table(["breaks at", "where", "what", "there is", "instead"], rows)


def drawing(results: Results) -> str:
    """Wall hours and bytes moved against the number of training images, as an inline `<svg>`."""
    jobs = {"lint": ("lint", "copy", SOLID), "audit": ("audit, in cells", "generated", DASHED),
            "audit_exact": ("audit, exact search", "baseline", DOTTED)}  # fmt: skip
    rows = results["growth"]
    chart = Chart("scale", 547, 259, [Key(*look) for look in jobs.values()], panels=2)
    for what, unit, of in (("hours", "wall hours", 1.0), ("moved", "TB read and written", TERA)):
        lines = {job: [(row["images"], row[job][what] / of) for row in rows] for job in jobs}
        values, sizes = [y for line in lines.values() for _, y in line], [row["images"] for row in rows]
        panel = chart.panel(
            logarithmic(min(sizes) / 1.2, max(sizes) * 1.2, write),
            logarithmic(min(values) / 1.3, max(values) * 1.3, write),
            "training images",
            unit,
            grid="xy",
        )
        for job, (_, role, pattern) in jobs.items():
            panel.line(lines[job], role, pattern)
            panel.marks(lines[job], "circle", role, 2)
    said = "; ".join(
        f"{images(row['images'])} images: lint {digits(row['lint']['hours'])} h, "
        f"audit {digits(row['audit']['hours'])} h"
        for row in rows
    )
    return chart.svg("Hours and bytes against the number of training images", f"{said}.")


def write(value: float) -> str:
    return images(value) if value >= 1000 else f"{value:g}"


TABLES = {
    "scale in short": short,
    "scale rates": rates,
    "stages of a lint": lambda found: stages(found, "lint"),
    "stages of an audit": lambda found: stages(found, "audit"),
    "scale growth": growth,
    "scale machines": machines,
    "scale hot": hot,
    "scale stragglers": stragglers,
    "scale losses": losses,
    "scale shuffle": shuffle,
    "scale limits": limits,
}
OF_RATES = {"scale precision": precision, "scale cells": cells}
