"""Results as people see them in a terminal and in a notebook."""

from __future__ import annotations

import html
from typing import Any

SHOWN = 8
STYLES = {"copies": "red", "no copies found": "green", "cannot tell": "yellow"}


def audit_panel(summary: dict[str, Any]) -> Any:
    """The verdict, the key figures and the worst copies of an audit's summary, for rich."""
    from rich.console import Group
    from rich.panel import Panel
    from rich.text import Text

    verdict = summary["verdict"]
    lines: list[Any] = [Text(verdict["sentence"], style="bold")]
    if verdict["needed"]:
        lines.append(Text(verdict["needed"]))
    lines.append(Text(summary["calibration"]["sentence"]))
    lines.append(_figures(audit_figures(summary)))
    if summary["copies"]:
        lines.append(_copies(summary["copies"]))
    return Panel(Group(*lines), title="Copyscope audit", border_style=STYLES[verdict["answer"]])


def audit_figures(summary: dict[str, Any]) -> list[tuple[str, str]]:
    """(name, value) of the key figures."""
    similarity, baseline = summary["similarity"], summary["similarity"]["baseline"]
    duplicates = summary["duplicates"]
    rows = [
        ("replication rate", estimate(summary["replication_rate"], percent=True)),
        ("similarity p95", f"{number(similarity['p95'])} (baseline {number(baseline['p95'])})"),
        (
            f"share above {summary['protocol']['threshold']:g}",
            f"{number(similarity['above_threshold'])} (baseline {number(baseline['above_threshold'])})",
        ),
        ("images", f"{summary['n_generated']} generated, {summary['n_train']} training"),
        (
            "near-duplicates",
            f"{duplicates['n_images_in_groups']} training images in {duplicates['n_groups']} groups "
            f"({duplicates['full']} with the caption repeated)",
        ),
    ]
    unreadable = {name: n for name, n in summary["failures"].items() if n}
    if unreadable:
        rows.append(("unreadable", ", ".join(f"{n} {name}" for name, n in unreadable.items())))
    return rows


def lint_panel(summary: dict[str, Any]) -> Any:
    """What `lint` found, for rich."""
    from rich.console import Group
    from rich.panel import Panel
    from rich.text import Text

    duplicates, captions = summary["duplicates"], summary["captions"]
    rows = [
        ("images", f"{summary['n_train']}, {summary['n_missing']} of them unreadable"),
        ("repeats", estimate(summary["duplicated_share"], percent=True)),
        (
            "near-duplicates",
            f"{duplicates['n_groups']} groups: {duplicates['full']} with the caption repeated, {duplicates['partial']} with "
            f"other captions, {duplicates['uncaptioned']} without; the largest has {duplicates['largest']}",
        ),
        ("captions", f"{captions['with']} images have some; {captions['shared']} share one, {captions['near_shared']} nearly"),
        ("to do", f"deduplicate {summary['actions']['deduplicate']} groups, recaption {summary['actions']['recaption']} images"),
    ]  # fmt: skip
    return Panel(Group(Text(summary["sentence"], style="bold"), _figures(rows)), title="Copyscope lint")


def audit_snippet(summary: dict[str, Any]) -> str:
    """The verdict and key figures as a fragment of HTML, for notebooks; everything is escaped."""
    rows = "".join(
        f"<tr><th style='text-align:left'>{html.escape(name)}</th><td>{html.escape(value)}</td></tr>"
        for name, value in audit_figures(summary)
    )
    sentence, calibration = summary["verdict"]["sentence"], summary["calibration"]["sentence"]
    return (
        f"<div><p><strong>{html.escape(sentence)}</strong></p><p>{html.escape(calibration)}</p><table>{rows}</table></div>"
    )


def number(value: float | None) -> str:
    """Three decimals, or a dash for what is not known."""
    return "-" if value is None else f"{value:.3f}"


def estimate(found: dict[str, Any], percent: bool = False) -> str:
    """An Estimate as text, with its interval."""
    if found["value"] is None:
        return "unknown"
    if percent:
        return f"{found['value']:.1%} [{found['low']:.1%}, {found['high']:.1%}] n={found['n']}"
    return f"{number(found['value'])} [{number(found['low'])}, {number(found['high'])}] n={found['n']}"


def _figures(rows: list[tuple[str, str]]) -> Any:
    from rich.table import Table
    from rich.text import Text

    table = Table.grid(padding=(0, 2))
    for name, value in rows:
        table.add_row(Text(name, style="dim"), Text(value))
    return table


def _copies(copies: list[dict[str, Any]]) -> Any:
    from rich.table import Table
    from rich.text import Text

    more = len(copies) - SHOWN
    table = Table(
        title="the worst copies", title_justify="left", box=None, caption=f"and {more} more" if more > 0 else None
    )
    for name in ("generated", "training image", "similarity", "pixels", "p-value", "group"):
        table.add_column(name, overflow="fold")
    for row in copies[:SHOWN]:
        table.add_row(
            Text(row["id"]),
            Text(row["match"]),
            number(row["score"]),
            number(row["verified"]),
            f"{row['p_value']:.2g}",
            str(row["group_size"]),
        )
    return table
