"""Results in a terminal and in a notebook."""

from __future__ import annotations

import html
from collections.abc import Mapping, Sequence
from typing import Any

from copyscope.console import printable

from .wording import out_of_reach

SHOWN = 8
STYLES = {"copies": "red", "suspicious": "bold yellow", "no copies found": "green", "cannot tell": "yellow"}


def audit_panel(summary: Mapping[str, Any]) -> Any:
    """Panel of an audit for rich: the verdict, the key figures and the worst copies."""
    from rich.console import Group
    from rich.panel import Panel
    from rich.text import Text

    verdict = summary["verdict"]
    lines: list[Any] = [Text(verdict["sentence"], style="bold")]
    # The sentence gives the first reason.
    lines += [Text(f"- {reason}") for reason in verdict["reasons"] if reason not in verdict["sentence"]]
    lines += [Text(said) for said in (verdict["needed"], *audit_warnings(summary)) if said]
    lines.append(Text(summary["calibration"]["sentence"]))
    lines.append(_figures(audit_figures(summary)))
    if summary["copies"]:
        lines.append(_copies(summary["copies"]))
    return Panel(Group(*lines), title="Copyscope audit", border_style=STYLES[verdict["answer"]])


def audit_warnings(summary: Mapping[str, Any]) -> list[str]:
    """Warnings of an audit, a sentence each: held-out images of another kind, look-alikes among them."""
    found = []
    calibration = summary["calibration"]
    if calibration["differs"] and calibration["differs"] not in summary["verdict"]["sentence"]:
        found.append(calibration["differs"])
    if n := calibration["n_look_alikes"]:
        kind = "control" if calibration["method"] == "controls" else "held-out"
        found.append(
            f"{n} of {calibration['n']} {kind} images are as near to a training image as a light copy is. Look at them "
            "in the report (-o DIR); leave out those that show the same picture with --held-out-exclude FILE."
        )
    if why := _blind(summary):
        found.append(f"{why} So none of the planted copies is seen.")
    repeated = summary.get("repeated_outputs")
    if repeated and repeated["sentence"]:
        found.append(repeated["sentence"])
    return found


def audit_figures(summary: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Key figures of an audit: (name, value)."""
    similarity, baseline = summary["similarity"], summary["similarity"]["baseline"]
    duplicates = summary["duplicates"]
    grouped = f"{duplicates['n_groups']} groups ({duplicates['full']} with the caption repeated)"
    rows = [
        ("replication rate", f"{estimate(summary['replication_rate'], percent=True)}: the share flagged"),
        ("corrected rate", corrected(summary)),
        ("planted, seen %", "none can be seen, as said above" if _blind(summary) else seen(summary["sensitivity"])),
        ("similarity p95", f"{number(similarity['p95'])} (baseline {number(baseline['p95'])})"),
        (
            f"share above {summary['protocol']['threshold']:g}",
            f"{number(similarity['above_threshold'])} (baseline {number(baseline['above_threshold'])})",
        ),
        ("images", f"{summary['n_generated']} generated, {summary['n_train']} training"),
        ("near-duplicates", f"{duplicates['n_images_in_groups']} training images in {grouped}"),
    ]
    if summary["excess"] > 0:
        nearer = f"at least {summary['excess']:.1%} of the generated images, than calibration images are"
        rows.append(("nearer to train", nearer))
    if summary["n_likeness"]:
        rows.append(("likenesses", f"{summary['n_likeness']} of the same subject, not of the same picture"))
    if blank := {name: n for name, n in summary["n_blank"].items() if n}:
        said = ", ".join(f"{n} {name}" for name, n in blank.items())
        rows.append(("blank", f"{said} images of one colour, set apart"))
    rows += _searched(summary)
    rows += _outside(summary)
    rows += _accounts(summary)
    unreadable = {name: n for name, n in summary["failures"].items() if n}
    if unreadable:
        rows.append(("unreadable", ", ".join(f"{n} {name}" for name, n in unreadable.items())))
    return rows


def corrected(summary: Mapping[str, Any]) -> str:
    """Corrected rate as text, or what is known of it where nothing calibrates the verdict."""
    found = summary["estimated_rate"]
    if summary["calibration"]["method"] != "baseline" or found["value"] is None:
        return estimate(found, percent=True)
    low = f"at least {found['low']:.1%}, " if found["low"] > 0 else ""
    return (
        f"{low}at most {found['high']:.1%}, false alarms included: without --held-out or --control none is told apart"
    )


def _blind(summary: Mapping[str, Any]) -> str:
    """Why no planted copy can be seen; empty where some can be, or none was planted."""
    return out_of_reach(summary["calibration"]) if summary["sensitivity"] else ""


def seen(sensitivity: Mapping[str, Any] | None) -> str:
    """Sensitivity in one line: per cent seen of each kind of planted copy."""
    if not sensitivity:
        return "not measured"
    return ", ".join(f"{kind} {100 * one['value']:.0f}" for kind, one in sensitivity.items())


def _accounts(summary: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Files that were not used, of each set."""
    unused = [each for each in summary.get("accounts", []) if each["n_unused"]]  # results of before have none
    said = ", ".join(f"{each['n_unused']} of {each['set'].replace('_', '-')}" for each in unused)
    return [("not used", f"{said}: files that look like images or captions")] if unused else []


def _outside(summary: Mapping[str, Any]) -> list[tuple[str, str]]:
    n = summary.get("n_outside")  # results of before have none
    return [("outside", f"{n} images lie outside the folder that lists them or links to them")] if n else []


def _searched(summary: Mapping[str, Any]) -> list[tuple[str, str]]:
    search = summary["search"]
    if search["method"] == "exact":
        return []
    return [("search", f"by cells; nearest image found for {estimate(search['recall'], percent=True)}")]


def lint_panel(summary: Mapping[str, Any]) -> Any:
    """Panel of a lint for rich."""
    from rich.console import Group
    from rich.panel import Panel
    from rich.text import Text

    sentence = Text(summary["sentence"], style="bold")
    return Panel(Group(sentence, _figures(lint_figures(summary))), title="Copyscope lint")


def lint_figures(summary: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Key figures of a lint: (name, value)."""
    duplicates, captions, actions = summary["duplicates"], summary["captions"], summary["actions"]
    kinds = {"full": "with the caption repeated", "partial": "with other captions", "uncaptioned": "without captions"}
    groups = ", ".join(f"{duplicates[kind]} {said}" for kind, said in kinds.items())
    about = "about " if (summary.get("search") or {}).get("method") == "cells" else ""
    shared = f"{about}{captions['shared']} share one, {about}{captions['near_shared']} nearly"
    return [
        ("images", f"{summary['n_train']}, {summary['n_missing']} of them unreadable"),
        ("repeats", estimate(summary["duplicated_share"], percent=True)),
        ("near-duplicates", f"{duplicates['n_groups']} groups: {groups}; the largest has {duplicates['largest']}"),
        *_searched(summary),
        *_outside(summary),
        *_accounts(summary),
        ("captions", f"{captions['with']} images have some; {shared}"),
        ("to do", f"deduplicate {actions['deduplicate']} groups, recaption {actions['recaption']} images"),
    ]


def audit_snippet(summary: Mapping[str, Any]) -> str:
    """HTML fragment of an audit for notebooks: verdict and key figures; everything is escaped."""
    verdict = summary["verdict"]
    sentences = [verdict["sentence"], *filter(None, [verdict["needed"]]), *audit_warnings(summary)]
    sentences.append(summary["calibration"]["sentence"])
    return _snippet(sentences, audit_figures(summary))


def lint_snippet(summary: Mapping[str, Any]) -> str:
    """HTML fragment of a lint for notebooks."""
    return _snippet([summary["sentence"]], lint_figures(summary))


def number(value: float | None) -> str:
    """Number with three decimals, or a dash where it is not known."""
    return "-" if value is None else f"{value:.3f}"


def estimate(found: Mapping[str, Any], percent: bool = False) -> str:
    """Estimate as text, with its interval."""
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


def _copies(copies: Sequence[Mapping[str, Any]]) -> Any:
    from rich.table import Table
    from rich.text import Text

    more = len(copies) - SHOWN
    table = Table(
        title="the worst copies", title_justify="left", box=None, caption=f"and {more} more" if more > 0 else None
    )
    for name in ("generated", "training image", "similarity", "pixels", "p-value", "group size"):
        table.add_column(name, overflow="fold")
    for row in copies[:SHOWN]:
        table.add_row(
            Text(printable(row["id"])),
            Text(printable(row["match"])),
            number(row["score"]),
            number(row["verified"]),
            f"{row['p_value']:.2g}",
            str(row["group_size"]),
        )
    return table


def _snippet(sentences: list[str], figures: list[tuple[str, str]]) -> str:
    first, *others = (html.escape(sentence) for sentence in sentences)
    said = f"<p><strong>{first}</strong></p>" + "".join(f"<p>{sentence}</p>" for sentence in others)
    rows = "".join(
        f"<tr><th style='text-align:left'>{html.escape(name)}</th><td>{html.escape(value)}</td></tr>"
        for name, value in figures
    )
    return f"<div>{said}<table>{rows}</table></div>"
