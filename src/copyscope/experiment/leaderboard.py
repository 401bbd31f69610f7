"""Rank mitigations: copies removed against image quality lost.

Pure functions of the rows of an experiment's summary. An arm's seeds become one row.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from copyscope.report.leaderboard import DEAREST, Row, place
from copyscope.stats import Estimate, EstimateDict

from .outcomes import over_seeds

COPIES, COST, FLOOR = "replication_rate_fixed", "general_frechet_distance", "real_frechet_distance"
"""What is compared: copies among images of training captions, by one line for all arms; distance of images of held-out
captions, and what is left of it for images that are real."""


def leaderboard(arms: Sequence[Row]) -> list[dict[str, Any]]:
    """Rank the finished arms by how many copies they avoid, and at what cost of quality.

    An arm's plain model is the one it is compared with, `first`. A row: `label`; `stage`, "plain" or where it differs
    from that: "training", "sampling", "both"; `seeds`, those whose plain model is finished; `estimates`, over several
    seeds the mean with Student's interval; `fewer_copies`, share of the plain model's copies that is gone; `dearer`,
    share by which the distance is above the plain model's; `excess`, the same of distances less that of real images;
    `frontier`, whether no row with the same plain model has both fewer copies and less excess, or one and as much of
    the other.

    Ranked by fewer_copies, rows with more excess than DEAREST last. Ratios are to the plain model of the same seed, so
    rows of different seeds can be ranked. fewer_copies of one seed: Katz et al. 1978 (log ratio of two shares, half a
    copy where there is none), which leaves the pairing of the images unused; of several: Student over the seeds'
    ratios, those left out whose plain model does not copy. dearer and excess of one seed: the two relative errors added
    as squares, what is real taken as known.

    Args:
        arms: rows of the experiment.

    Returns:
        Rows, best first; [] where no arm has copies, a distance, and a plain model that has both.
    """
    finished = {row["arm"]: row for row in arms if _value(row, COPIES) is not None and _value(row, COST) is not None}
    grouped: dict[str, list[tuple[Row, Row]]] = {}
    for row in finished.values():
        first = finished.get(row["first"] or row["arm"])
        if first is not None:
            grouped.setdefault(row["label"], []).append((row, first))
    found = {label: _row(label, pairs) for label, pairs in grouped.items()}
    for label, row in found.items():
        plain = grouped[label][0][1]["label"]
        rivals = [other for name, other in found.items() if grouped[name][0][1]["label"] == plain]
        row["frontier"] = not any(_beats(other, row) for other in rivals)
    return sorted(found.values(), key=lambda row: (place(row)[1] > 1 + DEAREST, *place(row)))


def _row(label: str, pairs: Sequence[tuple[Row, Row]]) -> dict[str, Any]:
    rows = [row for row, _ in pairs]
    return {
        "label": label,
        "stage": _stage(*pairs[0]),
        "seeds": [row["seed"] for row in rows],
        "estimates": {name: _mean([row["estimates"][name] for row in rows]) for name in rows[0]["estimates"]},
        "fewer_copies": _over([_fewer(row, plain) for row, plain in pairs], highest=1.0).as_dict(),
        "dearer": _over([_dearer(row, plain, 0.0) for row, plain in pairs]).as_dict(),
        "excess": _over([_dearer(row, plain, _value(row, FLOOR) or 0.0) for row, plain in pairs]).as_dict(),
    }


def _stage(row: Row, plain: Row) -> str:
    """By the tables of the values that differ from the plain model's."""
    keys = {key for key in {**row["values"], **plain["values"]} if _set(row, key) != _set(plain, key)}
    tables = {key.partition(".")[0] for key in keys}
    acts = tables & {"train", "data"}, tables & {"sample"}
    return "both" if all(acts) else "training" if acts[0] else "sampling" if acts[1] else "plain"


def _set(row: Row, key: str) -> Any:
    """A value of an arm, None where it is as good as not set."""
    value = row["values"].get(key)
    return None if value in ([], "") else value


def _mean(estimates: Sequence[EstimateDict]) -> EstimateDict:
    """One estimate as it is; of several seeds, those known, their mean."""
    known = [each for each in estimates if each["value"] is not None]
    if len(known) < 2:
        return known[0] if known else estimates[0]
    mean = over_seeds([value for each in known if (value := each["value"]) is not None])
    # Student's interval does not know that a share is one.
    if all(0 <= (end or 0) <= 1 for each in known for end in (each["value"], each["low"], each["high"])):
        mean = Estimate(mean.value, max(mean.low, 0.0), min(mean.high, 1.0), mean.n)
    return mean.as_dict()


def _over(estimates: Sequence[Estimate], highest: float = math.inf) -> Estimate:
    """Of several seeds, those known, the mean; no end above `highest`."""
    known = [each for each in estimates if not math.isnan(each.value)]
    if len(known) < 2:
        return known[0] if known else estimates[0]
    mean = over_seeds([each.value for each in known])
    return Estimate(mean.value, mean.low, min(mean.high, highest), mean.n)


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


def _dearer(row: Row, plain: Row, floor: float) -> Estimate:
    """(distance - floor) / (plain distance - floor) - 1."""
    own, usual = row["estimates"][COST], plain["estimates"][COST]
    above, base = own["value"] - floor, usual["value"] - floor
    if row is plain:
        return Estimate(0.0, 0.0, 0.0, own["n"])
    if base <= 0:
        return Estimate(math.nan, math.nan, math.nan, own["n"])
    widths = [math.nan if each["high"] is None else (each["high"] - each["low"]) / 2 for each in (own, usual)]
    reach = math.hypot(widths[0] / base, above / base * widths[1] / base)
    return Estimate(above / base - 1, above / base - 1 - reach, above / base - 1 + reach, own["n"])


def _beats(other: Row, row: Row) -> bool:
    ours, theirs = place(row), place(other)
    return theirs != ours and theirs[0] <= ours[0] and theirs[1] <= ours[1]


def _value(row: Row, name: str) -> float | None:
    value: float | None = (row["estimates"].get(name) or {}).get("value")
    return value
