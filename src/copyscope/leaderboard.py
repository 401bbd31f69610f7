"""The arms of an experiment ranked: how much less each copies than the plain model, and what that costs.

Pure functions of the rows of an experiment's summary. An arm's seeds become one row.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from .outcomes import over_seeds
from .stats import Estimate

COPIES, COST = "replication_rate", "general_frechet_distance"
"""What is compared: copies among images of training captions, distance of images of held-out captions."""
DEAREST = 0.05
"""Rows whose distance is more than this share above the plain model's come after all others."""

Row = Mapping[str, Any]


def leaderboard(arms: Sequence[Row]) -> list[dict[str, Any]]:
    """Rows of the finished arms, best first; [] where the first arm is not finished or none has a distance.

    The first arm is the plain model. A row: `label`; `stage`, "plain" or where it differs from that: "training",
    "sampling", "both"; `seeds`; `estimates`, over several seeds the mean with Student's
    interval; `fewer_copies`, share of the plain model's copies that is gone; `dearer`, share by which the distance is
    above the plain model's; `frontier`, whether no other row has both fewer copies and a smaller distance.

    Ranked by replication rate, those dearer than DEAREST last. fewer_copies of one seed: Katz et al. 1978 (log ratio
    of two shares, half a copy where there is none), which leaves the pairing of the images unused; of several: Student
    over the seeds' ratios. dearer of one seed: the two relative errors added as squares.
    """
    labels = list(dict.fromkeys(row["label"] for row in arms))
    finished = [row for row in arms if _value(row, COPIES) is not None and _value(row, COST) is not None]
    grouped = {label: [row for row in finished if row["label"] == label] for label in labels}
    plain = {row["seed"]: row for row in grouped.get(labels[0], [])} if labels else {}
    found = [_row(label, rows, plain) for label, rows in grouped.items() if any(row["seed"] in plain for row in rows)]
    for row in found:
        row["frontier"] = not any(_beats(other, row) for other in found)
    return sorted(found, key=lambda row: ((row["dearer"]["value"] or 0) > DEAREST, *_place(row)))


def _row(label: str, rows: Sequence[Row], plain: Mapping[int, Row]) -> dict[str, Any]:
    names = list(rows[0]["estimates"])
    paired = [(row, plain[row["seed"]]) for row in rows if row["seed"] in plain]
    return {
        "label": label,
        "stage": _stage(rows[0]),
        "seeds": [row["seed"] for row in rows],
        "estimates": {name: _mean([row["estimates"][name] for row in rows]) for name in names},
        "fewer_copies": _over([_fewer(row, first) for row, first in paired]).as_dict(),
        "dearer": _over([_dearer(row, first) for row, first in paired]).as_dict(),
    }


def _stage(row: Row) -> str:
    """By the tables of the values that the arm names."""
    named = {key.partition(".")[0] for key, value in row["values"].items() if value not in (None, [], "")}
    acts = named & {"train", "data"}, named & {"sample"}
    return "both" if all(acts) else "training" if acts[0] else "sampling" if acts[1] else "plain"


def _mean(estimates: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """One estimate as it is; of several seeds, those known, their mean."""
    known = [each for each in estimates if each["value"] is not None]
    if len(known) < 2:
        return dict(known[0] if known else estimates[0])
    return over_seeds([each["value"] for each in known]).as_dict()


def _over(estimates: Sequence[Estimate]) -> Estimate:
    return estimates[0] if len(estimates) == 1 else over_seeds([each.value for each in estimates])


def _fewer(row: Row, plain: Row) -> Estimate:
    """1 - rate / plain rate."""
    (rate, n), (usual, m) = ((each["estimates"][COPIES]["value"], each["estimates"][COPIES]["n"])
                             for each in (row, plain))  # fmt: skip
    if not usual:
        return Estimate(math.nan, math.nan, math.nan, n)
    if row is plain:
        return Estimate(0.0, 0.0, 0.0, n)
    copies, others = max(rate * n, 0.5), usual * m
    reach = 1.96 * math.sqrt(max(1 / copies - 1 / n + 1 / others - 1 / m, 0))
    ratio = copies / n / usual
    # Where there is none at all, half a copy is for the lower end alone.
    high = min(1.0, 1 - ratio * math.exp(-reach)) if rate else 1.0
    return Estimate(1 - rate / usual, 1 - ratio * math.exp(reach), high, n)


def _dearer(row: Row, plain: Row) -> Estimate:
    """Distance / plain distance - 1."""
    own, usual = row["estimates"][COST], plain["estimates"][COST]
    ratio = own["value"] / usual["value"]
    if row is plain:
        return Estimate(0.0, 0.0, 0.0, own["n"])
    errors = [(each["high"] - each["low"]) / 2 / each["value"] for each in (own, usual) if each["high"] is not None]
    reach = ratio * math.hypot(*errors) if len(errors) == 2 else math.nan
    return Estimate(ratio - 1, ratio - 1 - reach, ratio - 1 + reach, own["n"])


def _beats(other: Row, row: Row) -> bool:
    ours, theirs = _place(row), _place(other)
    return theirs != ours and theirs[0] <= ours[0] and theirs[1] <= ours[1]


def _place(row: Row) -> tuple[float, float]:
    return row["estimates"][COPIES]["value"], row["estimates"][COST]["value"]


def _value(row: Row, name: str) -> float | None:
    value: float | None = (row["estimates"].get(name) or {}).get("value")
    return value
