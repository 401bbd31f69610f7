"""The tables of docs/numbers.md on how often the verdict is right, out of results/benchmark-validity*.json."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

Results = dict[str, Any]
Rows = list[dict[str, Any]]
KINDS = ("light", "crop", "mirror", "recolour", "overlay", "rotate", "part", "mixed")


def table(head: Iterable[str], rows: Iterable[Iterable[str]]) -> list[str]:
    """A Markdown table."""
    head = list(head)
    return [f"| {' | '.join(head)} |", "|---" * len(head) + "|", *(f"| {' | '.join(row)} |" for row in rows)]


def percent(share: float) -> str:
    """`4`, of 0.04; `0.4` below one."""
    return f"{100 * share:.0f}" if share == 0 or share >= 0.0095 else f"{100 * share:.1f}"


def shares(answers: dict[str, float], *found: str) -> str:
    """`62 / 0 / 38`: copies or suspicious (or both), no copies found, cannot tell."""
    return " / ".join(percent(answers.get(each, 0.0)) for each in (*found, "no copies found", "cannot tell"))


def fdr(estimate: dict[str, Any]) -> str:
    """`3 [1, 5]`."""
    return f"{percent(estimate['value'])} [{percent(estimate['low'])}, {percent(estimate['high'])}]"


def answers(results: Results, methods: tuple[str, ...], found: str = "copies") -> list[str]:
    """How often each answer comes, wrong calls, and the interval of the corrected rate."""
    head = [
        "corpus", "descriptor", "split", "m", "answers without copies", "answers at 5 %", "answers at 30 %",
        "FDR at 5 %", "FDR at 30 %", "interval holds (lowest cell)", "its upper end", "no copies found, worst cell",
    ]  # fmt: skip
    rows = [
        [
            row["corpus"],
            row["protocol"],
            row["split"] + (", not cleaned" if "uncleaned" in row["method"] else ""),
            str(row["m"]),
            shares(row["answers"]["0"], found),
            shares(row["answers"]["0.05"], found),
            shares(row["answers"]["0.3"], found),
            fdr(row["fdr"]["0.05"]),
            fdr(row["fdr"]["0.3"]),
            f"{percent(row['coverage']['value'])} ({percent(row['lowest_coverage'])})",
            " / ".join(percent(row["median_upper_end"][each]) for each in ("0", "0.05", "0.3")),
            percent(row["highest_share_of_no_copies_found"]),
        ]
        for row in results["rows"]
        if row["method"] in methods
    ]
    return table(head, rows)


def seen(results: Results) -> list[str]:
    """Share of the copies that is called, by kind, at the larger m."""
    largest = max(row["m"] for row in results["rows"])
    rows = [
        [row["corpus"], row["protocol"], row["split"], *(percent(row["tpr"]["0.3"][kind]) for kind in KINDS)]
        for row in results["rows"]
        if row["method"] == "held-out" and row["m"] == largest
    ]
    return table(["corpus", "descriptor", "split", *KINDS], rows)


def scores(results: Results) -> list[str]:
    """How many copies are called by one score alone, and by several."""
    names = list(dict.fromkeys(row["rule"] for row in results["rows"]))
    groups: dict[tuple[str, str, str], dict[str, Any]] = {}
    for row in results["rows"]:
        groups.setdefault((row["corpus"], row["protocol"], row["split"]), {})[row["rule"]] = row
    rows = []
    for group, of in groups.items():
        less = {kind: each for kind, each in of["verdict"]["more_than_similarity"].items() if each["high"] < 0}
        rows.append(
            [
                *group,
                *(f"{of[name]['called']['value']:.0f}" for name in names),
                fdr(of["verdict"]["fdr"]),
                ", ".join(f"{kind} {each['value']:.1f}" for kind, each in less.items()),
            ]
        )
    return table(["corpus", "descriptor", "split", *names, "FDR of the verdict", "less than similarity"], rows)


def said(results: Results) -> list[str]:
    """What holds over all cells, in a sentence."""
    loud = results["cells_with_copies_where_more_than_5_percent_say_no_copies_found"]
    most = max(results["draws"].values())
    fewer = ", ".join(f"{n} of {spec.replace(':', ' with ')}" for spec, n in results["draws"].items() if n < most)
    text = (
        f"{most} draws a cell{f' ({fewer})' if fewer else ''}, {results['n_generated']} generated images an audit. Of "
        f'{results["cells_with_copies"]} cells with copies, {loud} say "no copies found" in more than 5 % of draws. '
        f"In the worst cell, {percent(results['lowest_coverage'])} % of the intervals of the corrected rate hold it."
    )
    return [text, *([f"Note: {results['note']}."] if "note" in results else [])]


def subjects(results: Results) -> list[str]:
    """What is called with controls: copies, new views of the subject, unrelated images."""
    head = [
        "subject", "generated", "audits", "answers", "copies called", "new views called", "unrelated called",
        "interval holds",
    ]  # fmt: skip
    rows = []
    for row in results["rows"]:
        shares_of = {answer: n / row["audits"] for answer, n in row["answers"].items()}
        called = [row[f"{each}_called"] for each in ("copies", "new_views", "unrelated")]
        rows.append(
            [
                row["subject"],
                f"copies: {row['kind']}" if row["kind"] else row["set"],
                str(row["audits"]),
                shares(shares_of, "copies", "suspicious"),
                *(fdr(each) if each["n"] else "" for each in called),
                percent(row["coverage"]),
            ]
        )
    return table(head, rows)


TABLES: dict[str, Callable[[Results], list[str]]] = {
    "validity in a sentence": said,
    "validity with held-out images": lambda results: answers(results, ("held-out", "held-out uncleaned")),
    "validity by kind": seen,
    "validity of the baseline": lambda results: answers(results, ("baseline",), "suspicious"),
}
OF_SCORES: dict[str, Callable[[Results], list[str]]] = {"validity of scores": scores}
OF_CONTROLS: dict[str, Callable[[Results], list[str]]] = {"validity of controls": subjects}
