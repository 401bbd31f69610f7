"""The table of docs/numbers.md about near-duplicate groups, from results/benchmark-groups.json."""

from __future__ import annotations

from typing import Any

SETS = {
    "look_alikes": "look-alikes",
    "fresh_look_alikes": "fresh look-alikes",
    "later_look_alikes": "later look-alikes",
    "photographs": "photographs, ten alterations",
    "emoji": "emoji, ten alterations",
    "clip-art": "clip-art, ten alterations",
    "families": "families",
}


def groups(results: dict[str, Any]) -> list[str]:
    """A row a set: how many pairs are one group, and how many pictures are wrongly in one, before and after."""
    rows = [
        "| set | pairs grouped, by the descriptor | with the pixels | wrongly grouped | with the pixels |",
        f"|{'---|' * 5}",
    ]
    for name, title in SETS.items():
        every = results[name]["all"]
        cells = [
            _counted(every[f"{what}_{when}"]) for what in ("recall", "wrongly_grouped") for when in ("before", "after")
        ]
        rows.append(f"| {title} | {' | '.join(cells)} |")
    return rows


def kinds(results: dict[str, Any]) -> list[str]:
    """The kinds of which anything goes wrong with the pixels too, in sentences."""
    wrong, lost = [], []
    for name in SETS:
        for kind, row in results[name].items():
            if kind == "all":
                continue
            if row["wrongly_grouped_after"]["value"]:
                wrong.append(f"{kind.replace('_', ' ')} {_counted(row['wrongly_grouped_after'])}")
            if "recall_after" in row and row["recall_after"]["value"] < 0.8:
                of = f"{SETS[name].partition(',')[0]}, " if "alterations" in SETS[name] else ""
                lost.append(f"{of}{kind.replace('_', ' ')} {_counted(row['recall_after'])}")
    few = f"Kinds of which less than 80 % of the pairs are grouped: {'; '.join(lost)}."
    return [f"Wrongly grouped: {'; '.join(wrong)}. {few}"]


def _counted(share: dict[str, Any]) -> str:
    return f"{round(share['value'] * share['n'])} of {share['n']}"


TABLES = {"groups": groups, "groups by kind": kinds}
