"""Statistics: Estimate with interval, conformal p-values, FDR, corrected rates, bootstrap."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from typing import Annotated, Any, NamedTuple, TypedDict

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.floating[Any]]
_BLOCK = 4_000_000  # comparisons held at once
_LEAST_SCALE = 1e-3  # of a score that takes few values, as one of a hash does


class EstimateDict(TypedDict):
    """An Estimate as plain values."""

    value: Annotated[float | None, "the number; null where there was nothing to estimate from"]
    low: Annotated[float | None, "lower end of its interval at 95 %; null where none is known"]
    high: Annotated[float | None, "upper end"]
    n: Annotated[int, "cases it rests on"]


@dataclasses.dataclass(frozen=True, eq=False)
class Estimate:
    """A number with its interval at the stated level (95 % unless said) and the number of cases it rests on.

    Two estimates are equal where all numbers are, with NaN equal to NaN.

    Args:
        value: the estimate; NaN where there was nothing to estimate from.
        low: lower end of the interval; NaN where no interval is known.
        high: upper end, likewise.
        n: number of cases.
    """

    value: float
    low: float
    high: float
    n: int

    def __eq__(self, other: object) -> bool:
        return self._key() == other._key() if isinstance(other, Estimate) else NotImplemented

    def __hash__(self) -> int:
        return hash(self._key())

    def _key(self) -> tuple[float | None, ...]:
        """All numbers, None for NaN, which is unequal to itself."""
        return tuple(None if math.isnan(each) else each for each in (self.value, self.low, self.high, self.n))

    def __str__(self) -> str:
        return f"{self.value:.3g} [{self.low:.3g}, {self.high:.3g}] n={self.n}"

    def as_dict(self) -> EstimateDict:
        """Plain values for JSON: NaN becomes None."""
        return {"value": _finite(self.value), "low": _finite(self.low), "high": _finite(self.high), "n": self.n}


class Correlation(NamedTuple):
    """A correlation coefficient with its interval, and the two-sided p-value of no correlation."""

    estimate: Estimate
    p_value: float


def proportion(count: int, n: int, *, missing: int = 0, level: float = 0.95) -> Estimate:
    """Share `count / n` with the Clopper-Pearson interval (exact binomial, Clopper & Pearson 1934).

    Args:
        count: cases that hit, 0 to n.
        n: cases in all.
        missing: cases without an answer. They count against us: the upper end is the one that would hold had every
            missing case been a hit, the lower end the one had none been.
        level: of the interval, in (0, 1).
    """
    if not 0 <= count <= n or missing < 0:
        raise ValueError(f"a proportion needs 0 <= count <= n and missing >= 0, not {count}, {n}, {missing}")
    from scipy.stats import beta  # equals binomtest(...).proportion_ci() to 1e-12 and takes a twentieth of its time

    total, tail = n + missing, (1 - level) / 2
    if total == 0:
        return Estimate(math.nan, 0.0, 1.0, 0)
    low = 0.0 if count == 0 else float(beta.ppf(tail, count, total - count + 1))
    worst = count + missing
    high = 1.0 if worst == total else float(beta.ppf(1 - tail, worst + 1, total - worst))
    return Estimate(count / n if n else math.nan, low, high, n)


def cases_needed(rate: float, level: float = 0.95) -> int:
    """Number of cases without a hit that puts the upper end of `proportion` at or below a rate.

    Args:
        rate: in (0, 1).
        level: of the interval, in (0, 1).
    """
    if not 0 < rate < 1:
        raise ValueError(f"a rate must lie between 0 and 1, not {rate}")
    return math.ceil(math.log((1 - level) / 2) / math.log1p(-rate))


def conformal_p_values(scores: Floats, calibration: Floats) -> Floats:
    """P-values of images against calibration images that are no copies.

    p = (1 + #{calibration >= score}) / (m + 1): valid whenever a non-copy is exchangeable with the calibration images
    (Vovk et al. 2005; Bates et al. 2023).

    With several scores an image, what counts is the score that stands out most. An image's rank in a score is how many
    calibration images reach it; images are ordered by their best rank over the scores, and equal ones by their highest
    t = (score - q90) / (q95 - q90), which puts the upper tails of the scores on one scale. p is the share of images
    that stand out as much. Ranks and quantiles are those of the calibration images and the image in question together
    (full conformal prediction), so that p is valid for any m. An image that is beyond all calibration images in one
    score competes with those alone that are the highest in another.

    Args:
        scores: of the images, float [n], or [n d] with d scores each; higher = more alike. An image with a NaN has a
            p-value of NaN, which `benjamini_hochberg` never takes for a discovery.
        calibration: of the calibration images, float [m] or [m d]. A tie counts for the calibration image.

    Returns:
        p-values, float64 [n], in (0, 1].
    """
    scores = np.asarray(scores, dtype=np.float64)
    calibration = np.asarray(calibration, dtype=np.float64)
    if scores.ndim == 1:
        scores, calibration = scores[:, None], calibration.reshape(len(calibration), 1)
    n, m = len(scores), len(calibration)
    if m == 0:
        return np.where(np.isnan(scores).any(axis=1), np.nan, 1.0)
    ascending = np.sort(calibration, axis=0)

    def at_least(values: Floats) -> NDArray[np.int64]:
        """How many calibration images reach values [k d] in each score [k d]."""
        found = [m - np.searchsorted(ascending[:, j], values[:, j], side="left") for j in range(values.shape[1])]
        return np.stack(found, axis=1).astype(np.int64)

    if scores.shape[1] == 1:
        return np.where(np.isnan(scores[:, 0]), np.nan, (1 + at_least(scores)[:, 0]) / (m + 1))
    ordered = np.pad(ascending, ((1, 0), (0, 0)), constant_values=-math.inf)
    low, high = (
        # The k-th smallest of the calibration scores and the image's own.
        np.clip(scores, ordered[k - 1], ordered[k])
        for k in (min(math.ceil(share * (m + 1)), m) for share in (0.9, 0.95))
    )
    scale = 1 / np.maximum(high - low, _LEAST_SCALE)
    mine, found = ((scores - low) * scale).max(axis=1), np.empty(n)
    rank, others = at_least(scores).min(axis=1), at_least(calibration) - 1
    for start in range(0, n, step := max(1, _BLOCK // calibration.size)):
        piece = slice(start, start + step)
        # A calibration image is one rank lower where the image in question reaches its score.
        ranks = (others + (scores[piece, None, :] >= calibration)).min(axis=2)
        theirs = ((calibration - low[piece, None]) * scale[piece, None]).max(axis=2)
        equal = (ranks == rank[piece, None]) & (theirs >= mine[piece, None])
        found[piece] = (1 + ((ranks < rank[piece, None]) | equal).sum(axis=1)) / (m + 1)
    return np.where(np.isnan(scores).any(axis=1), np.nan, found)


def benjamini_hochberg(p_values: Floats, rate: float = 0.05) -> NDArray[np.bool_]:
    """Discoveries at a false discovery rate (Benjamini & Hochberg 1995).

    Args:
        p_values: [n]; NaN is never a discovery.
        rate: false discovery rate, in (0, 1).

    Returns:
        bool [n], which are discoveries.
    """
    from scipy.stats import false_discovery_control

    p_values = np.asarray(p_values, dtype=np.float64)
    adjusted = false_discovery_control(np.nan_to_num(p_values, nan=1.0))
    # The tolerance keeps p = rate * k / n a discovery when the product is off by one unit in the last place.
    found: NDArray[np.bool_] = (adjusted <= rate * (1 + 1e-12)) & ~np.isnan(p_values)
    return found


def corrected_proportion(
    count: int,
    n: int,
    seen: tuple[int, int],
    false: tuple[int, int],
    level: float = 0.95,
) -> Estimate:
    """True share behind an imperfect test: corrected for sensitivity and false alarms, both measured.

    (q - f) / (s - f) with q = count / n, s the sensitivity and f the rate of false alarms (Rogan & Gladen 1978), cut to
    [0, 1]. The interval is that of Lang & Reiczigel (2014, eqs. 6-8), which holds the uncertainty of all three.

    Args:
        count: positives among the `n` images tested.
        n: images tested.
        seen: true cases that test positive, of how many true cases tried.
        false: clean cases that test positive, of how many clean cases tried.
        level: of the interval, in (0, 1).

    Returns:
        The estimate; value NaN and the interval [0, 1] where the test does not tell true cases from clean ones.
    """
    from scipy.stats import norm

    if not (0 <= count <= n and 0 <= seen[0] <= seen[1] and 0 <= false[0] <= false[1]):
        raise ValueError(f"counts must lie between 0 and what they are counts of, not {count}, {n}, {seen}, {false}")
    if n == 0 or seen[1] == 0 or false[1] == 0 or seen[0] / seen[1] <= false[0] / false[1]:
        return Estimate(math.nan, 0.0, 1.0, n)
    z = float(norm.ppf((1 + level) / 2))
    share, sensitivity, alarms = count / n, seen[0] / seen[1], false[0] / false[1]
    value = min(max((share - alarms) / (sensitivity - alarms), 0.0), 1.0)
    # Each count is moved towards the middle, the first by z^2 / 2 (Agresti & Coull), the others by one.
    n_z, n_s, n_f = n + z * z, seen[1] + 2, false[1] + 2
    share, sensitivity, alarms = (count + z * z / 2) / n_z, (seen[0] + 1) / n_s, (false[0] + 1) / n_f
    apart = sensitivity - alarms
    if apart <= 0:
        return Estimate(value, 0.0, 1.0, n)
    moved = (share - alarms) / apart
    of_s, of_f = sensitivity * (1 - sensitivity) / n_s, alarms * (1 - alarms) / n_f
    shift = 2 * z * z * (moved * of_s - (1 - moved) * of_f)
    variance = share * (1 - share) / n_z + moved**2 * of_s + (1 - moved) ** 2 * of_f
    reach = z * math.sqrt(variance) / apart
    low, high = (min(max(moved + shift + side * reach, 0.0), 1.0) for side in (-1, 1))
    return Estimate(value, min(low, value), max(high, value), n)


def excess(scores: Floats, others: Floats, level: float = 0.95) -> tuple[float, float]:
    """How much more of the `scores` lies above some line than of the `others`: a lower bound.

    The lines are the 1st, 2nd, 4th, ... highest of the others. At each, the share of all others above it is bounded
    from above by the Beta law of that order statistic, and the share of all scores from below by Clopper and Pearson,
    each at its part of 1 - level (Bonferroni over lines and sides): the bounds hold at all lines at once, for any laws.

    Args:
        scores: [n], higher = more alike.
        others: [m], what they are compared with.
        level: of the bound, in (0, 1).

    Returns:
        (bound in [0, 1], line where it is reached; NaN where the bound is 0).
    """
    from scipy.stats import beta

    scores, others = (np.asarray(each, dtype=np.float64) for each in (scores, others))
    scores, others = scores[~np.isnan(scores)], np.sort(others[~np.isnan(others)])[::-1]
    n, m = len(scores), len(others)
    ranks = [2**power for power in range(max(m, 1).bit_length()) if 2**power <= m]
    best, where = 0.0, math.nan
    tail = (1 - level) / (2 * max(len(ranks), 1))
    for rank in ranks:
        line = others[rank - 1]
        above = int((scores > line).sum())
        if above == 0:
            continue
        bound = float(beta.ppf(tail, above, n - above + 1)) - float(beta.ppf(1 - tail, rank, m - rank + 1))
        if bound > best:
            best, where = bound, float(line)
    return best, where


def bootstrap(
    statistic: Callable[..., float],
    *columns: Floats,
    clusters: NDArray[Any] | None = None,
    resamples: int = 1000,
    level: float = 0.95,
    seed: int = 0,
) -> Estimate:
    """`statistic(*columns)` with its percentile bootstrap interval (Efron 1979).

    Resamples whose statistic is not finite are left out. No interval with fewer than two rows, or two clusters.

    Args:
        statistic: function of the columns.
        columns: arrays [n ...] that are resampled together.
        clusters: labels [n]; whole clusters are drawn, for rows that are not independent (several images of one match).
            None = rows are drawn.
        resamples: number of resamples.
        level: of the interval, in (0, 1).
        seed: of the resamples.
    """
    n = len(columns[0]) if columns else 0
    value = float(statistic(*columns)) if n else math.nan
    if n < 2 or (clusters is not None and len(np.unique(clusters)) < 2):
        return Estimate(value, math.nan, math.nan, n)
    rng = np.random.default_rng(np.random.SeedSequence(seed))
    draw = _row_sampler(n, rng) if clusters is None else _cluster_sampler(np.asarray(clusters), rng)
    found = np.empty(resamples)
    for index in range(resamples):
        rows = draw()
        found[index] = statistic(*(column[rows] for column in columns))
    found = found[np.isfinite(found)]
    if len(found) == 0:
        return Estimate(value, math.nan, math.nan, n)
    low, high = np.quantile(found, [(1 - level) / 2, (1 + level) / 2])
    return Estimate(value, float(low), float(high), n)


def quantile(values: Floats, q: float, *, level: float = 0.95) -> Estimate:
    """Quantile with its distribution-free interval from order statistics (David & Nagaraja 2003).

    An end is NaN where n is too small for any order statistic to bound the quantile at this level (the 95th percentile
    has no upper end below n = 72).

    Args:
        values: [n].
        q: in (0, 1).
        level: of the interval, in (0, 1).
    """
    from scipy.stats import binom

    values = np.sort(np.asarray(values, dtype=np.float64))
    n = len(values)
    if n == 0:
        return Estimate(math.nan, math.nan, math.nan, 0)
    low, high = binom.ppf([(1 - level) / 2, (1 + level) / 2], n, q).astype(int)
    return Estimate(
        float(np.quantile(values, q)),
        float(values[low - 1]) if low > 0 else math.nan,
        float(values[high]) if high < n else math.nan,
        n,
    )


def correlation(x: Floats, y: Floats, method: str = "pearson", *, level: float = 0.95) -> Correlation:
    """Pearson or Spearman correlation, Fisher-z interval (Spearman: Bonett & Wright 2000 variance).

    Rows where either is not finite are left out; NaN with fewer than four rows or a constant column.

    Args:
        x: [n].
        y: [n].
        method: "pearson" or "spearman".
        level: of the interval, in (0, 1).
    """
    from scipy import stats

    x, y = np.asarray(x, dtype=np.float64), np.asarray(y, dtype=np.float64)
    keep = np.isfinite(x) & np.isfinite(y)
    x, y = x[keep], y[keep]
    n = len(x)
    if n < 4 or _constant(x) or _constant(y):
        return Correlation(Estimate(math.nan, math.nan, math.nan, n), math.nan)
    r, p_value = (stats.pearsonr if method == "pearson" else stats.spearmanr)(x, y)
    variance = (1.0 if method == "pearson" else 1 + r * r / 2) / (n - 3)
    centre = math.atanh(min(max(r, -1 + 1e-12), 1 - 1e-12))
    reach = stats.norm.ppf((1 + level) / 2) * math.sqrt(variance)
    low, high = min(float(r), math.tanh(centre - reach)), max(float(r), math.tanh(centre + reach))
    return Correlation(Estimate(float(r), low, high, n), float(p_value))


def _constant(values: Floats) -> bool:
    """Whether `values` differ by no more than rounding does."""
    return bool(np.ptp(values) <= 1e-12 * np.abs(values).max())


def _finite(value: float) -> float | None:
    return float(value) if math.isfinite(value) else None


def _row_sampler(n: int, rng: np.random.Generator) -> Callable[[], NDArray[np.intp]]:
    return lambda: rng.integers(0, n, n)


def _cluster_sampler(clusters: NDArray[Any], rng: np.random.Generator) -> Callable[[], NDArray[np.intp]]:
    _, codes = np.unique(clusters, return_inverse=True)
    order = np.argsort(codes, kind="stable")
    members = np.split(order, np.cumsum(np.bincount(codes))[:-1])
    return lambda: np.concatenate([members[index] for index in rng.integers(0, len(members), len(members))])
