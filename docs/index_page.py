"""The tables of docs/indexes.md, out of results/benchmark-index-cost.json."""

from __future__ import annotations

from typing import Any

Results = dict[str, Any]
MIB, GIB = 2**20, 2**30


def cost(found: Results) -> list[str]:
    """Rows x precision: bytes, seconds, memory."""
    head = [
        "rows", "precision", "GiB", "of them vectors", "build, s", "GiB of memory", "open, ms", "first look-up, ms",
        "look-up, ms", "exact, ms",
    ]  # fmt: skip
    lines = [f"| {' | '.join(head)} |", "|---" * len(head) + "|"]
    for each in found["cost"]:
        seconds = each["write_seconds"] + each["calibrate_seconds"]
        cells = [
            f"{each['rows']:,}",
            f"`{each['precision']}`",
            f"{each['bytes'] / GIB:.2f}",
            f"{each['vectors_bytes'] / GIB:.2f}",
            f"{seconds:.0f}",
            f"{each['build_memory']['anonymous_mb'] / 1024:.1f} ({each['build_memory']['resident_mb'] / 1024:.1f})",
            *(f"{each[name]:.0f}" for name in ("open_ms", "first_ms", "lookup_ms", "exact_ms")),
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return lines


def error(found: Results) -> list[str]:
    """How far similarities are moved, and how often another row comes first."""
    head = [
        "vectors",
        "precision",
        "99.9 % of pairs within",
        "all within",
        "another row comes first",
        "less alike by at most",
    ]
    lines = [f"| {' | '.join(head)} |", "|---" * len(head) + "|"]
    for kind, of in found["error"].items():
        for precision in ("float16", "int8"):
            each = of[precision]
            changed = each["first_row_is_another"]
            asked = (
                {f"{kind}, asked at {name}": one for name, one in changed.items()}
                if kind == "drawn"
                else {kind: changed}
            )
            for name, one in asked.items():
                lines.append(
                    f"| {name} | `{precision}` | {each['p99.9']:.1e} | {each['largest']:.1e} "
                    f"| {one['changed']} of {one['of']:,} | {one['less_alike_at_most']:.1e} |"
                )
    return lines


TABLES = {"index cost": cost, "index error": error}
