"""HTML page of an experiment: arms, rates, paired differences, samples."""

from __future__ import annotations

import base64
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from . import Result, _page, leaderboard, page_data, wording
from .charts import DASH_DOT, DASHED, DOTTED, SOLID, Chart, Key, linear, rows, short

#: Number of an arm -> (heading, how it is written); a column that no arm has is left out.
COLUMNS = {
    "replication_rate": ("replication rate", "percent"),
    "replication_rate_duplicated": ("of duplicated", "percent"),
    "replication_rate_others": ("of others", "percent"),
    "replication_rate_fixed": ("by one line", "percent"),
    "copies_of_duplicated": ("copies of duplicated", "percent"),
    "own_rate": ("own match", "percent"),
    "own_copy_rate": ("own copy", "percent"),
    "similarity_mean": ("mean similarity", "score"),
    "similarity_p95": ("p95", "score"),
    "above_threshold": ("above threshold", "percent"),
    "held_out_p95": ("held-out p95", "score"),
    "frechet_distance": ("Fréchet distance", "number"),
    "precision": ("precision", "percent"),
    "recall": ("recall", "percent"),
    "diversity_generated": ("diversity", "score"),
    "text_image_alignment": ("text alignment", "score"),
}
#: Series of the forest: number -> (what it is called, role, mark).
FOREST = {
    "replication_rate": ("all images", "generated", "circle"),
    "replication_rate_duplicated": ("prompted by a duplicated training image", "copy", "diamond"),
    "replication_rate_others": ("prompted by any other", "baseline", "square"),
}
TERMS = {
    "arm": "one combination of the grid's values, trained, sampled and audited on its own.",
    "own match": "the training image nearest to a generated one is the image whose caption was the prompt, or in its "
    "near-duplicate group. With a caption that all images share, a match is own by chance only.",
    "own copy": "a copy, and its match is own.",
    "of duplicated, of others": "replication rate of the images whose prompt came from a duplicated training image, "
    "and of all others.",
    "copies of duplicated": "of the copies, those of a duplicated training image, whatever the prompt. Without an "
    "effect of duplication it is the share of duplicated images in the training set.",
    "by one line": "share of images whose score at most 1 % of the calibration images reach: about 1 % of a model that "
    "copies nothing, and the same line in all arms. The verdict's line is the higher the fewer copies there are.",
    "above threshold": "share of images whose similarity is above the protocol's fixed line, as in the literature.",
    "verdict": "what the audit of the arm says: a rate of 0 % with “cannot tell” is no proof of none.",
    "difference": "an arm minus the arm it is compared with, over images of the same prompt row and the same noise.",
}
TERMS |= {name: wording.TERMS[name] for name in ("replication rate", "95 % interval", "p-value", "p75, p90, p95")}
TERMS |= {name: wording.TERMS[name] for name in ("held-out → train", "Fréchet distance", "precision and recall")}
SECTION_TERMS = {
    "arms": [
        "arm", "replication rate", "95 % interval", "of duplicated, of others", "copies of duplicated", "own match",
        "own copy", "by one line", "p75, p90, p95", "above threshold", "held-out → train", "Fréchet distance",
        "precision and recall", "verdict",
    ],
    "contrasts": ["difference", "95 % interval", "p-value", "by one line", "own match"],
    "leaderboard": list(leaderboard.TERMS),
}  # fmt: skip
# A report of many arms stays a file that a browser opens at once.
SHEET_BUDGET = 12_000_000
PATTERNS = (SOLID, DASHED, DOTTED, DASH_DOT)


def render(experiment: Result) -> str:
    """Render an experiment as an HTML page: text that holds everything the page needs, the same each time."""
    from markupsafe import Markup

    arms = experiment.summary["arms"]
    several = len({row["seed"] for row in arms}) > 1
    named = [row | {"name": _name(row["label"], row["seed"], several)} for row in arms]
    curves = experiment.tables["curves"].to_pylist()
    names = {row["arm"]: row["name"] for row in named}
    previews = page_data.Previews(None)
    ranked = experiment.summary.get("leaderboard", [])
    return _page(
        "experiment.html.j2",
        experiment,
        page_data.collect({}, previews),
        previews,
        kind="experiment",
        actions=[],
        arms=named,
        columns=[(name, *COLUMNS[name]) for name in COLUMNS if any(_known(row, name) for row in arms)],
        contrasts=_contrasts(experiment.summary["contrasts"]),
        forest=Markup(_forest(named)),
        curves=Markup(_curves(curves, names)),
        ranked=ranked,
        ranked_columns=leaderboard.columns(ranked),
        frontier=Markup(leaderboard.frontier(ranked)),
        numbered=leaderboard.numbered(ranked),
        scales=leaderboard.scales(ranked),
        sheets=_sheets(experiment.tables["sheets"].to_pylist(), names),
        terms=TERMS | leaderboard.TERMS,
        section_terms=SECTION_TERMS,
    )


def _name(label: str, seed: int | None, several: bool) -> str:
    return f"{label} · seed {seed}" if several else label


def _known(row: Mapping[str, Any], name: str) -> bool:
    return wording.is_number((row["estimates"].get(name) or {}).get("value"))


def _contrasts(found: Iterable[Mapping[str, Any]]) -> dict[str, list[dict[str, Any]]]:
    """One row a comparison with an estimate a measure, by grid key."""
    by_key: dict[str, dict[tuple[Any, ...], dict[str, Any]]] = {}
    for row in found:
        place = (row["from"], row["to"], row["at"], row["seed"])
        one = by_key.setdefault(row["key"], {}).setdefault(
            place, dict(zip(("first", "to", "at", "seed"), place, strict=True))
        )
        one[row["measure"]] = {"value": row["difference"]} | {
            name: row[name] for name in ("low", "high", "n", "p_value")
        }
    return {key: list(each.values()) for key, each in by_key.items()}


def _forest(arms: Sequence[Mapping[str, Any]]) -> str:
    """Rates of every arm with their intervals, one line an arm."""
    shown = [row for row in arms if _known(row, "replication_rate")]
    if not shown:
        return ""
    series = {name: look for name, look in FOREST.items() if any(_known(row, name) for row in shown)}
    keys = [Key(label, role, mark=mark) for label, role, mark in series.values()]
    chart = Chart("rates", 432, 84 + 15 * len(keys) + 33 * len(shown), keys)
    panel = chart.panel(
        linear(-2, 102, "{:g} %".format),
        rows([short(row["name"]) for row in shown]),
        "share of generated images that are copies",
        grid="x",
        names=True,
    )
    for name, (_, role, mark) in series.items():
        height = 0.22 * (list(FOREST).index(name) - 1)
        for place, one in ((place, row["estimates"][name]) for place, row in enumerate(shown) if _known(row, name)):
            panel.line([(100 * one["low"], place + height), (100 * one["high"], place + height)], role, width=1.8)
            panel.marks([(100 * one["value"], place + height)], mark, role)
    said = "; ".join(f"{row['name']} {wording.percent(row['estimates']['replication_rate']['value'])}" for row in shown)
    return chart.svg("Replication rate of each arm", said + ".")


def _curves(points: Sequence[Mapping[str, Any]], names: Mapping[str, str]) -> str:
    """Replication rate of the samples over the steps of training, one line an arm."""
    known = [point for point in points if wording.is_number(point["value"])]
    if not known:
        return ""
    roles = ("generated", "baseline", "heldout", "copy", "ink")
    arms = list(dict.fromkeys(point["arm"] for point in known))
    looks = {arm: (roles[index % len(roles)], PATTERNS[index // len(roles) % len(PATTERNS)])
             for index, arm in enumerate(arms)}  # fmt: skip
    keys = [Key(short(names[arm]), role, pattern, mark="circle") for arm, (role, pattern) in looks.items()]
    chart = Chart("curves", 432, 288 + 9 * len(arms), keys)
    last = max(point["step"] for point in known)
    panel = chart.panel(
        linear(-0.02 * last, 1.02 * last, "{:,g}".format),
        linear(-2, 102, "{:g} %".format),
        "training step",
        "copies among the samples",
    )
    for arm, (role, pattern) in looks.items():
        own = [point for point in known if point["arm"] == arm]
        if len(arms) <= len(roles):
            ends = [[(point["step"], 100 * point[end]) for point in own] for end in ("low", "high")]
            panel.area([*ends[0], *reversed(ends[1])], role, 0.14)
        line = [(point["step"], 100 * point["value"]) for point in own]
        panel.line(line, role, pattern)
        panel.marks(line, "circle", role, 1.75)
    latest = {point["arm"]: point for point in known}
    said = "; ".join(
        f"{names[arm]}: {wording.percent(latest[arm]['value'])} at step {latest[arm]['step']}" for arm in arms
    )
    return chart.svg("Replication rate over training", said + ".")


def _sheets(pictures: Sequence[Mapping[str, Any]], names: Mapping[str, str]) -> list[tuple[str, list[dict[str, Any]]]]:
    """(name, samples) of each arm; images as `data:` URIs, None where there is none or the page would grow too big."""
    budget = SHEET_BUDGET
    found: dict[str, list[dict[str, Any]]] = {}
    for row in pictures:
        shown = dict(row)
        for side in ("made", "real"):
            content = row[side] if row[side] and len(row[side]) * 4 // 3 <= budget else None
            budget -= len(content) * 4 // 3 if content else 0
            shown[side] = f"data:image/webp;base64,{base64.b64encode(content).decode()}" if content else None
        found.setdefault(row["arm"], []).append(shown)
    return [(names[arm], samples) for arm, samples in found.items()]
