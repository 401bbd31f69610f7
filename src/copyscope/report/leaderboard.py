"""Leaderboard page: copying against cost, as a chart and a table."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from . import wording
from .charts import Chart, Key, around, steps

DEAREST = 0.05
"""Rows whose distance is more than this share above the plain model's come after all others."""
Row = Mapping[str, Any]

#: Number of a row's estimates -> (heading, how it is written); a column that no row has is left out.
COLUMNS = {
    "replication_rate_fixed": ("copies", "percent"),
    "replication_rate_fixed_duplicated": ("of duplicated", "percent"),
    "replication_rate": ("copies by its own line", "percent"),
    "similarity_p95": ("p95", "score"),
    "similarity_mean": ("mean similarity", "score"),
    "agreement": ("agreement", "score"),
    "diversity_generated": ("diversity", "score"),
    "general_replication_rate_fixed": ("copies, held-out captions", "percent"),
    "general_frechet_distance": ("distance, held-out captions", "number"),
    "general_recall": ("recall, held-out captions", "percent"),
    "general_agreement": ("agreement, held-out captions", "score"),
    "general_diversity_generated": ("diversity, held-out captions", "score"),
    "seconds_per_image": ("seconds an image", "number"),
    "copies_regained": ("copies regained", "percent"),
}
STAGES = {
    "plain": ("plain model", "ink", "star"),
    "training": ("in training", "baseline", "circle"),
    "sampling": ("in sampling", "generated", "diamond"),
    "both": ("both", "heldout", "square"),
}
TERMS = {
    "copies": "share of the images made from training captions whose score at most 1 % of real images reach: so 1 % "
    "of a model that copies nothing.",
    "copies by its own line": "the replication rate, at a false discovery rate of 5 % among the arm's own images. Its "
    "line is the higher the fewer copies there are.",
    "fewer copies": "share of the plain model's copies that is gone.",
    "dearer": "share by which the Fréchet distance is above the plain model's, for images made from held-out captions, "
    "which a mitigation should leave alone.",
    "excess": "the same, once the distance of as many real images is taken off both: what few images cost by "
    "themselves.",
    "distance, held-out captions": "Fréchet distance of the images made from held-out captions to the held-out images; "
    "lower is better.",
    "recall, held-out captions": "share of the held-out images within reach of those made from held-out captions.",
    "agreement": "text-image agreement: how near an image's vector is to what a linear map, fitted on other held-out "
    "images, makes of its prompt. It is no CLIP score.",
    "copies regained": "of the prompts whose copies are gone, the share for which a small search over seeds, "
    "paraphrases and noise on the prompt's embedding finds a copy again. More tries find more by themselves.",
    "■": "on the frontier: no other row has both fewer copies and less excess.",
}


def columns(rows: Sequence[Mapping[str, Any]]) -> list[tuple[str, str, str]]:
    """(number, heading, style) of the columns that some row has."""
    there = [name for name in COLUMNS if any(_number(row, name) is not None for row in rows)]
    return [(name, *COLUMNS[name]) for name in there]


def frontier(rows: Sequence[Mapping[str, Any]]) -> str:
    """Chart of copies against cost, a mark a row; those on the frontier are joined and named. "" without rows."""
    if not rows:
        return ""
    there = [(stage, look) for stage, look in STAGES.items() if any(row["stage"] == stage for row in rows)]
    places = [_place(row) for row in rows]
    chart = Chart("frontier", 475, 346, [Key(label, role, width=0, mark=mark) for _, (label, role, mark) in there])
    panel = chart.panel(
        around((x for x, _ in places), "{:g} %".format),
        around((*(y for _, y in places), 100 * DEAREST), "{:g} %".format),
        "copies left, of the plain model's",
        "excess Fréchet distance, held-out captions",
        grid="xy",
    )
    panel.level(100 * DEAREST, "muted", f"{100 * DEAREST:g} % above plain")
    best = sorted((row for row in rows if row["frontier"]), key=place)
    panel.line(steps([_place(row) for row in best], before=False), "copy", width=1.2)
    # The plain model last: no other mark hides it.
    for stage, (_, role, mark) in reversed(there):
        own = [_place(row) for row in rows if row["stage"] == stage]
        panel.marks(own, mark, role, 6.5 if stage == "plain" else 3, opacity=0.9)
    for number, row in enumerate(best, 1):
        panel.label(_place(row), str(number))
    said = "; ".join(
        f"{row['label']}: copies {wording.percent(place(row)[0])}, distance {wording.percent(place(row)[1])}"
        for row in rows
        if row["frontier"]
    )
    return chart.svg("Copies against Fréchet distance", f"On the frontier, of plain's: {said}.")


def numbered(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """Labels of the rows on the frontier, in the order of their numbers in the drawing."""
    return [row["label"] for row in sorted((row for row in rows if row["frontier"]), key=place)]


def scales(rows: Sequence[Mapping[str, Any]]) -> str:
    """Sentence on the range of the plain model's numbers; "" where nobody measured it."""
    plain = next((row for row in rows if row["stage"] == "plain"), None)
    if plain is None or _number(plain, "real_frechet_distance") is None:
        return ""
    real, distance, matched, agreement, shuffled = (
        wording.number(_number(plain, name))
        for name in ("real_frechet_distance", "general_frechet_distance", "real_agreement", "general_agreement",
                     "shuffled_agreement")
    )  # fmt: skip
    said = f"For held-out captions the plain model's distance is {distance}; as many real images have {real}."
    if _number(plain, "real_agreement") is None:
        return said
    return f"{said} Its agreement is {agreement}; the real images have {matched}, and {shuffled} with captions swapped."


def _place(row: Mapping[str, Any]) -> tuple[float, float]:
    copies, excess = place(row)
    return 100 * copies, 100 * (excess - 1)


def _number(row: Mapping[str, Any], name: str) -> float | None:
    value: float | None = (row["estimates"].get(name) or {}).get("value")
    return value


def place(row: Row) -> tuple[float, float]:
    """(copies, excess) of a row of the leaderboard as shares of the plain model's; infinite where there is none."""
    copies, cost = row["fewer_copies"]["value"], row["excess"]["value"]
    return (math.inf if copies is None else 1 - copies, math.inf if cost is None else 1 + cost)
