"""The drawing of docs/growth.svg and the tables beside it in docs/numbers.md, out of results/benchmark-growth.json; and
the tables of the peers, out of results/benchmark-peers.json."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from copyscope.report.charts import DASHED, DOTTED, SOLID, Chart, Key, logarithmic

Results = dict[str, Any]
LARGE = 100_000
"""A slope is that of the sizes from here on, where three or more of them were measured: small ones are overhead."""
DISTURBED = 10
"""Per cent of the processors that others may have before times are called disturbed."""
BY_CELLS, EXACT, FAISS = SOLID, DOTTED, DASHED
# stage: what it does, the work that it is compared with others on, and how its line is drawn.
STAGES: dict[str, tuple[str, str, str]] = {
    "cells": ("rows sorted into cells", "sort", BY_CELLS),
    "faiss": ("rows sorted into cells, faiss IVF", "sort", FAISS),
    "search": ("10,000 queries, by cells", "search", BY_CELLS),
    "exact": ("10,000 queries, every row compared", "search", EXACT),
    "faiss_search": ("10,000 queries, faiss IVF", "search", FAISS),
    "recall": ("recall measured", "recall", BY_CELLS),
    "groups": ("near-duplicate groups, by cells", "groups", BY_CELLS),
    "all_pairs": ("near-duplicate groups, all pairs", "groups", EXACT),
    "faiss_range": ("near-duplicate pairs, faiss IVF", "groups", FAISS),
}
WORK = {
    "sort": ("sort into cells", "generated"),
    "search": ("10,000 queries", "copy"),
    "recall": ("measure recall", "heldout"),
    "groups": ("near-duplicates", "baseline"),
}


def table(head: list[str], rows: Iterable[list[str]]) -> list[str]:
    return [f"| {' | '.join(head)} |", "|---" * len(head) + "|", *(f"| {' | '.join(row)} |" for row in rows)]


def count(n: int) -> str:
    """`30 k`, `1 M`."""
    return f"{n / 1e6:g} M" if n >= 1e6 else f"{n / 1e3:g} k" if n >= 1e3 else str(n)


def taken(value: float) -> str:
    """Two digits, and no fewer than there are before the point."""
    return f"{value:,.0f}" if value >= 10 else f"{value:.2g}"


def points(results: Results, stage: str, what: str) -> tuple[list[int], list[float]]:
    """Sizes at which a stage was measured, and its `what` there."""
    rows = sorted((int(n), found[stage][what]) for n, found in results["sizes"].items() if stage in found)
    return [n for n, _ in rows], [value for _, value in rows]


def slope(sizes: Sequence[int], values: Sequence[float]) -> float | None:
    """The exponent p of values as sizes^p, by least squares of the logarithms; None of fewer than two."""
    if sum(n >= LARGE for n in sizes) >= 3:
        values = [value for n, value in zip(sizes, values, strict=True) if n >= LARGE]
        sizes = [n for n in sizes if n >= LARGE]
    if len(sizes) < 2:
        return None
    return float(np.polyfit(np.log(sizes), np.log(np.maximum(values, 1e-3)), 1)[0])


def growth(results: Results, what: str, of: float = 1.0) -> list[str]:
    """Seconds or memory of each stage by the number of rows, and the slope."""
    sizes = sorted(int(n) for n in results["sizes"])
    rows = []
    for stage, (name, _, _) in STAGES.items():
        there, values = points(results, stage, what)
        if not there:
            continue
        by = dict(zip(there, values, strict=True))
        exponent = slope(there, values)
        rows.append(
            [name, *(taken(by[n] / of) if n in by else "–" for n in sizes),
             "–" if exponent is None else f"{exponent:.2f}"]
        )  # fmt: skip
    return table(["", *(count(n) for n in sizes), "slope"], rows)


def seconds(results: Results) -> list[str]:
    return growth(results, "seconds")


def memory(results: Results) -> list[str]:
    return growth(results, "peak_mb")


def found(results: Results) -> list[str]:
    """What by cells is found, and within how much memory."""
    rows = []
    for n in sorted(int(n) for n in results["sizes"]):
        each = results["sizes"][str(n)]
        if "groups" not in each:
            continue
        peak = max(each[stage]["peak_mb"] for stage in ("cells", "search", "recall", "groups"))
        rows.append(
            [count(n), f"{each['cells']['cells']:,}", percent(each["search"]["copies_found"]),
             percent(each["exact"]["copies_found"]) if "exact" in each else "–",
             percent(each["faiss_search"]["copies_found"]) if "faiss_search" in each else "–",
             percent(each["recall"]), percent(each["groups"]["planted_pairs_found"]),
             percent(each["faiss_range"]["planted_pairs_found"]) if "faiss_range" in each else "–",
             f"{each['cells']['memory_mb']:,}", f"{peak:,}"]
        )  # fmt: skip
    return table(
        ["rows", "cells", "copies found", "by exact search", "by faiss IVF", "recall as told", "planted pairs",
         "by faiss IVF", "MB allowed", "MB taken"],
        rows,
    )  # fmt: skip


def percent(estimate: dict[str, Any]) -> str:
    return f"{100 * estimate['value']:.1f} %"


def peers(results: Results, what: str) -> list[str]:
    """Rivals on the same vectors or files: time and memory by size; what was found at the largest."""
    sizes = sorted(int(n) for n in results[what])
    spent = "seconds" if what == "vectors" else "whole_seconds"
    names = list(dict.fromkeys(name for n in sizes for name in results[what][str(n)]))
    rows = []
    for name in names:
        by = {n: results[what][str(n)].get(name, {}) for n in sizes}
        ran = [each for each in by.values() if "pairs" in each]
        version = f" ({ran[-1]['version']})" if ran and not name.startswith("Copyscope") else ""
        rows.append([
            name + version,
            *(f"{taken(each[spent])} ({taken(each['whole_cpu_seconds'])})" if "pairs" in each
              else each.get("not_run", "–") for each in by.values()),
            f"{max(each['peak_mb'] for each in ran):,}" if ran else "–",
            percent(ran[-1]["found"]) if ran else "–",
            f"{ran[-1]['false_pairs']:,}" if ran else "–",
            f"{ran[-1]['told']['false_pairs']:,}" if ran and "told" in ran[-1] else "–",
        ])  # fmt: skip
    unit = "rows" if what == "vectors" else "files"
    return table(["", *(f"{count(n)} {unit}" for n in sizes), "most MB", "found", "false pairs", "as told"], rows)


def kinds(results: Results) -> list[str]:
    """Planted copies that were found, by how they were altered, at the largest size that a rival did."""
    names = results["kinds"]
    rows = []
    for name in dict.fromkeys(name for each in results["files"].values() for name in each):
        did = [int(n) for n, each in results["files"].items() if "found_by_kind" in each.get(name, {})]
        if did:
            by = results["files"][str(max(did))][name]["found_by_kind"]
            rows.append([name, count(max(did)), *(percent(by[kind]) for kind in names)])
    return table(["", "files", *(kind.replace("_", " ") for kind in names)], rows)


def growth_machine(results: Results) -> list[str]:
    return machine(
        results, [row for each in results["sizes"].values() for name, row in each.items() if name.startswith("process")]
    )


def peers_machine(results: Results) -> list[str]:
    rows = [row for what in ("vectors", "files") for each in results[what].values() for row in each.values()]
    return machine(results, rows)


def machine(results: Results, processes: list[dict[str, Any]]) -> list[str]:
    """How quiet the machine was."""
    processes = [row for row in processes if "others_cpu_seconds" in row]
    if not processes:
        return ["Whether the machine was quiet meanwhile is not known."]
    had = sum(row["whole_seconds"] for row in processes) * results["cores"]
    others = 100 * sum(row["others_cpu_seconds"] for row in processes) / had
    said = "" if others < DISTURBED else ": **seconds are too many, and not to be compared**"
    return [f"Other processes took {others:.0f} % of the machine's processor time meanwhile{said}."]


def drawing(results: Results) -> str:
    """Seconds and own memory against the number of rows, a line a stage, as an inline `<svg>`."""
    keys = [Key(label, role) for label, role in WORK.values()]
    keys += [
        Key(label, "muted", pattern)
        for pattern, label in ((BY_CELLS, "Copyscope, by cells"), (EXACT, "Copyscope, all"), (FAISS, "faiss IVF"))
    ]
    chart = Chart("growth", 547, 302, keys, panels=2)
    for what, unit in (("seconds", "seconds"), ("peak_mb", "MB of its own, at most")):
        lines = {stage: points(results, stage, what) for stage in STAGES}
        found = [list(zip(sizes, values, strict=True)) for sizes, values in lines.values()]
        allowed = {each["cells"]["memory_mb"] for each in results["sizes"].values() if "cells" in each}
        levels = sorted(allowed) if what == "peak_mb" else []
        shown = [value for line in found for _, value in line if value > 0] + levels
        sizes = [n for line in found for n, _ in line]
        panel = chart.panel(
            logarithmic(min(sizes) / 1.2, max(sizes) * 1.2, lambda value: count(int(value))),
            logarithmic(min(shown) / 1.3, max(shown) * 1.3, "{:,g}".format),
            "rows",
            unit,
            grid="xy",
        )
        for (_, work, pattern), line in zip(STAGES.values(), found, strict=True):
            panel.line(line, WORK[work][1], pattern, width=1.4)
            panel.marks(line, "circle", WORK[work][1], 1.5)
        for level in levels:
            panel.level(level, "ink", "allowed", at_left=True)
    slopes = ((name, slope(*points(results, stage, "seconds"))) for stage, (name, _, _) in STAGES.items())
    said = "; ".join(f"{name}: rows to the power of {value:.2f}" for name, value in slopes if value is not None)
    return chart.svg("Seconds and memory against the number of rows", f"Seconds grow as: {said}.")


TABLES = {
    "growth machine": growth_machine,
    "growth in seconds": seconds,
    "growth in memory": memory,
    "growth and what is found": found,
}
OF_PEERS = {
    "peers machine": peers_machine,
    "peers by vectors": lambda results: peers(results, "vectors"),
    "peers by files": lambda results: peers(results, "files"),
    "peers by kind": kinds,
}
