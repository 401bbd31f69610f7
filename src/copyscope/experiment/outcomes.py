"""Outcomes per image, rates per arm, paired differences between arms.

Arms of one seed are given the same prompts' images and the same noise, so they are compared image by image. Pure
functions of tables; every number is an Estimate.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from copyscope import stats
from copyscope.data.parquet_pages import read_table
from copyscope.stats import Estimate, proportion

Flags = NDArray[np.bool_]

#: Measure -> what it is, for reports, in the order they are shown.
MEASURES = {
    "replication_rate": "share of images that are copies",
    "replication_rate_duplicated": "the same, of images prompted by a duplicated training image",
    "replication_rate_others": "the same, of images prompted by any other",
    "replication_rate_fixed": "share of images whose score at most 1 % of the calibration images reach: one line for "
    "all arms, while that of the replication rate is the higher the fewer copies an arm makes",
    "replication_rate_fixed_duplicated": "the same, of images prompted by a duplicated training image",
    "copies_of_duplicated": "of the copies, those of a duplicated training image",
    "own_rate": "share of images whose match is the image that prompted them, or in its near-duplicate group",
    "own_copy_rate": "share of images that are copies of the image that prompted them, or of its group",
    "similarity_mean": "mean similarity of an image to its nearest training image",
    "similarity_p95": "95th percentile of that similarity",
}
ENDS = ("value", "low", "high", "n")
COMPARED = (
    "replication_rate", "replication_rate_duplicated", "replication_rate_fixed", "own_rate", "similarity_mean",
)  # fmt: skip
LINE = 0.01
"""An image is beyond the fixed line when at most this share of the calibration images score as high."""


def outcomes(
    audited: pa.Table, made: Mapping[str, Mapping[str, Any]], duplicated: Mapping[str, bool], groups: Mapping[str, Any],
    n_calibration: int,
) -> pa.Table:  # fmt: skip
    """Outcomes: one row a generated image, null where it could not be read, or nothing is known.

    Columns id, seed, source_id, prompt, match, similarity, combined, copied, beyond, own, duplicated, match_duplicated.

    Args:
        audited: the table `generated` of an audit.
        made: id -> `seed` and `source_id`, the training image whose caption was the prompt.
        duplicated: training id -> whether it was drawn more often.
        groups: training id -> near-duplicate group.
        n_calibration: images that the audit was calibrated on.
    """
    rows: list[dict[str, Any]] = []
    for row in audited.to_pylist():
        facts = made.get(row["id"], {})
        source, match = facts.get("source_id"), row["match"]
        read = row["error"] is None
        own = None
        if read and source is not None:
            own = match == source or (match in groups and groups[match] == groups.get(source))
        rows.append(
            {
                **{name: row[name] for name in ("id", "prompt", "match", "similarity", "combined")},
                "seed": facts.get("seed"),
                "source_id": source,
                "copied": bool(row["copied"]) if read else None,
                "beyond": beyond(row["p_value"], n_calibration) if read else None,
                "own": own,
                "duplicated": None if source is None else duplicated.get(source),
                "match_duplicated": None if match is None else duplicated.get(match),
            }
        )
    return pa.Table.from_pylist(rows, SCHEMA)


SCHEMA = pa.schema(
    {
        "id": pa.string(),
        "seed": pa.int64(),
        "source_id": pa.string(),
        "prompt": pa.string(),
        "match": pa.string(),
        "similarity": pa.float64(),
        "combined": pa.float64(),
        "copied": pa.bool_(),
        "beyond": pa.bool_(),
        "own": pa.bool_(),
        "duplicated": pa.bool_(),
        "match_duplicated": pa.bool_(),
    }
)


def beyond(p_value: float | None, n_calibration: int) -> bool | None:
    """Whether a conformal p-value is beyond the fixed line; None where there is nothing to tell by."""
    if p_value is None or not n_calibration:
        return None
    # p = (1 + as high) / (1 + all).
    return round(p_value * (n_calibration + 1)) - 1 <= LINE * n_calibration


def read(folder: Path) -> pa.Table:
    """Outcomes that an arm wrote, those of an earlier version with nulls in the columns it did not have."""
    table = read_table(folder / "outcomes.parquet")
    for name in SCHEMA.names:
        if name not in table.column_names:
            table = table.append_column(SCHEMA.field(name), pa.nulls(len(table), SCHEMA.field(name).type))
    return table.select(SCHEMA.names)


def rates(table: pa.Table) -> dict[str, Estimate]:
    """MEASURES of the outcomes of one arm. Images that could not be read count against the model, as in an audit."""
    read, copied = _known(table, "copied"), _flags(table, "copied")
    sourced, own = _known(table, "source_id"), _flags(table, "own")
    twice, told = _flags(table, "duplicated"), _known(table, "duplicated")
    over, scored = _flags(table, "beyond"), _known(table, "beyond")
    # Of images that were read and not scored there is nothing to calibrate on, and so no share.
    of = scored | ~read if scored.any() else np.zeros_like(read)
    found = {
        "replication_rate": _share(copied, read, np.ones_like(read)),
        "replication_rate_duplicated": _share(copied, read, twice),
        "replication_rate_others": _share(copied, read, told & ~twice),
        "replication_rate_fixed": _share(over, scored, of),
        "replication_rate_fixed_duplicated": _share(over, scored, of & twice),
        "copies_of_duplicated": _share(_flags(table, "match_duplicated"), copied, copied),
        "own_rate": _share(own, read, sourced),
        "own_copy_rate": _share(own & copied, read, sourced),
    }
    similarity = _numbers(table, "similarity")
    similarity = similarity[np.isfinite(similarity)]
    found["similarity_mean"] = stats.bootstrap(_mean, similarity)
    return found | {"similarity_p95": stats.quantile(similarity, 0.95)}


def contrasts(first: pa.Table, second: pa.Table) -> Iterator[dict[str, Any]]:
    """Paired differences: COMPARED measures of the second arm minus the first's, over the images of both.

    Images pair by id, seed and source. Shares: Newcombe's interval and the exact McNemar test; `duplicated` is of
    images whose source is duplicated in either arm. Similarity: bootstrap over pairs, no test. Intervals are of these
    two runs: what another training seed would give, they do not tell. Nothing where not all images of the smaller arm
    pair: with other training images the prompts are others.

    Args:
        first: outcomes of one arm.
        second: outcomes of the other.

    Yields:
        `difference` with `low`, `high`, `n` pairs, and `p_value` of no difference, of each measure.
    """
    columns = ("id", "seed", "source_id")
    places = {key: row for row, key in enumerate(zip(*(second[name].to_pylist() for name in columns), strict=True))}
    keys = list(zip(*(first[name].to_pylist() for name in columns), strict=True))
    pairs = [(row, places[key]) for row, key in enumerate(keys) if key in places]
    if len(pairs) < min(len(first), len(second)):
        return
    sides = list(zip(*pairs, strict=True)) or [(), ()]
    first, second = (table.take(pa.array(rows, pa.int64())) for table, rows in zip((first, second), sides, strict=True))
    twice = _flags(first, "duplicated") | _flags(second, "duplicated")
    for measure in COMPARED:
        if measure == "similarity_mean":
            change = _numbers(second, "similarity") - _numbers(first, "similarity")
            estimate, p_value = stats.bootstrap(_mean, change[np.isfinite(change)]), None
        else:
            name = {"own_rate": "own", "replication_rate_fixed": "beyond"}.get(measure, "copied")
            use = _known(first, name) & _known(second, name)
            use &= twice if measure == "replication_rate_duplicated" else True
            estimate, p_value = paired_difference(_flags(first, name)[use], _flags(second, name)[use])
        if estimate.n:
            yield {"measure": measure, **difference_of(estimate), "p_value": p_value}


def difference_of(estimate: Estimate) -> dict[str, Any]:
    """The estimate of a difference as the columns of a contrast."""
    numbers = estimate.as_dict()
    return {"difference": numbers["value"], "low": numbers["low"], "high": numbers["high"], "n": numbers["n"]}


CONTRASTS = pa.schema(
    {name: pa.string() for name in ("key", "from", "to", "at")}
    | {"seed": pa.int64(), "measure": pa.string()}
    | {name: pa.float64() for name in ("difference", "low", "high")}
    | {"n": pa.int64(), "p_value": pa.float64()}
)


def paired_difference(first: Flags, second: Flags, level: float = 0.95) -> tuple[Estimate, float | None]:
    """Difference of two shares of the same cases, with its interval and the p-value of no difference.

    Interval: Newcombe 1998 (Statistics in Medicine 17:2635), method 10, the two Wilson intervals joined with the
    correlation of the pairs; it has a width even where no pair differs. P-value: exact McNemar (1947), two-sided.

    Args:
        first: flags [n].
        second: flags [n] of the same cases, whose share is taken less that of `first`.
        level: of the interval, in (0, 1).
    """
    from scipy.stats import binomtest, norm

    n = len(first)
    if n == 0:
        return Estimate(math.nan, math.nan, math.nan, 0), None
    both, neither = int((first & second).sum()), int((~first & ~second).sum())
    lost, gained = int((first & ~second).sum()), int((~first & second).sum())
    z = float(norm.ppf((1 + level) / 2))
    (p1, low1, high1), (p2, low2, high2) = (_wilson(count, n, z) for count in (both + lost, both + gained))
    product = (both + lost) * (gained + neither) * (both + gained) * (lost + neither)
    agreement: float = both * neither - lost * gained
    if agreement > 0:
        agreement = max(agreement - n / 2, 0)
    phi = agreement / math.sqrt(product) if product else 0.0
    below, above = _joined(p2 - low2, high1 - p1, phi), _joined(high2 - p2, p1 - low1, phi)
    p_value = float(binomtest(gained, lost + gained).pvalue) if lost + gained else 1.0
    return Estimate(p2 - p1, max(p2 - p1 - below, -1.0), min(p2 - p1 + above, 1.0), n), p_value


def over_seeds(differences: list[float], level: float = 0.95) -> Estimate:
    """Mean of one difference over training seeds with Student's interval: n is the number of seeds, two at least."""
    from scipy.stats import t

    n = len(differences)
    mean = float(np.mean(differences))
    reach = float(t.ppf((1 + level) / 2, n - 1) * np.std(differences, ddof=1) / math.sqrt(n)) if n > 1 else math.nan
    return Estimate(mean, mean - reach, mean + reach, n)


def seconds_per_image(timings: Sequence[tuple[float, int]], level: float = 0.95) -> Estimate:
    """Seconds an image over several samplings.

    Student's interval of their seconds an image, cut at 0: no interval of one sampling, and a wide one of two.

    Args:
        timings: (seconds, images) of each sampling.
        level: of the interval, in (0, 1).
    """
    n = sum(images for _, images in timings)
    if not n:
        return Estimate(math.nan, math.nan, math.nan, 0)
    apart = over_seeds([seconds / images for seconds, images in timings if images], level)
    # Not max(0.0, NaN), which is 0.
    low = max(apart.low, 0.0)
    return Estimate(sum(seconds for seconds, _ in timings) / n, low, apart.high, n)


def arms_table(rows: Sequence[Mapping[str, Any]]) -> pa.Table:
    """Table of arms: values under their dotted keys, and `NAME`, `NAME_low`, `NAME_high`, `NAME_n` of each number.

    A value that an arm does not set is null.
    """
    columns: dict[str, Any] = {name: [row[name] for row in rows] for name in ("arm", "label")}
    columns["name"] = pa.array([row["name"] for row in rows], pa.string())
    for key in dict.fromkeys(key for row in rows for key in row["values"]):
        values = [row["values"].get(key) for row in rows]
        known = [value for value in values if value is not None]
        same = len({type(value) for value in known}) == 1 and isinstance(known[0], (str, int, float))
        columns[key] = values if same else [None if value is None else json.dumps(value) for value in values]
    kinds = {"seed": pa.int64(), "answer": pa.string(), "error": pa.string(), "train_seconds": pa.float64()}
    kinds |= {"seconds": pa.float64()} | dict.fromkeys(("n_train", "n_generated", "n_missing", "steps"), pa.int64())
    columns |= {name: pa.array([row[name] for row in rows], kind) for name, kind in kinds.items()}
    for name in rows[0]["estimates"]:
        for end in ENDS:
            kind = pa.int64() if end == "n" else pa.float64()
            column = name if end == "value" else f"{name}_{end}"
            columns[column] = pa.array([row["estimates"][name][end] for row in rows], kind)
    return pa.table(columns)


def _wilson(count: int, n: int, z: float) -> tuple[float, float, float]:
    """(share, low, high): the score interval of Wilson 1927."""
    share = count / n
    centre = (share + z * z / (2 * n)) / (1 + z * z / n)
    reach = z * math.sqrt(share * (1 - share) / n + z * z / (4 * n * n)) / (1 + z * z / n)
    return share, min(centre - reach, share), max(centre + reach, share)


def _joined(one: float, other: float, phi: float) -> float:
    return math.sqrt(max(one * one - 2 * phi * one * other + other * other, 0.0))


def _share(hits: Flags, read: Flags, of: Flags) -> Estimate:
    """Share of `hits` among `of` [n], of which those not `read` are missing."""
    return proportion(int((hits & read & of).sum()), int((read & of).sum()), missing=int((of & ~read).sum()))


def _flags(table: pa.Table, name: str) -> Flags:
    return np.array([value is True for value in table[name].to_pylist()], dtype=bool)


def _known(table: pa.Table, name: str) -> Flags:
    return np.array([value is not None for value in table[name].to_pylist()], dtype=bool)


def _numbers(table: pa.Table, name: str) -> NDArray[np.float64]:
    return np.array([math.nan if value is None else value for value in table[name].to_pylist()], dtype=np.float64)


def _mean(values: NDArray[Any]) -> float:
    return float(values.mean())
