"""Image quality: Fréchet distance, precision and recall, diversity, text alignment.

All numbers are of vectors, in the space of a named descriptor; the name goes with them (`Quality.space`). In the space
of Inception the Frechet distance has a name of its own, which is not used here for any other.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from copyscope import stats
from copyscope.stats import Estimate, Floats

NEIGHBOURS = 3
"""k of precision and recall, as in Kynkaanniemi et al. 2019 and DCR."""
LARGEST_SAMPLE = 10_000
"""Most images a side that `quality` takes for precision and recall, as DCR does; a random sample of the rest."""
_FOLDS = 10
_BLOCK = 8_000_000  # float64 numbers held at one time beside the vectors


@dataclasses.dataclass(frozen=True, eq=False)
class PrecisionRecall:
    """Improved precision and recall of generated images, and which images they rest on.

    Attributes:
        precision: share of generated images among the real ones.
        recall: share of real images among the generated ones.
    """

    precision: float
    recall: float
    generated_inside: NDArray[np.bool_]
    """For each generated image [m]: within reach of a real one."""
    real_inside: NDArray[np.bool_]
    """For each real image [n]: within reach of a generated one."""


@dataclasses.dataclass(frozen=True)
class Quality:
    """Quality of generated images against those they were trained from, in a descriptor's `space`."""

    space: str
    frechet_distance: Estimate
    precision: Estimate
    recall: Estimate
    diversity_generated: Estimate
    diversity_train: Estimate
    text_image_alignment: Estimate | None
    notes: tuple[str, ...]

    def as_dict(self) -> dict[str, Any]:
        """The `quality` of an audit's summary, JSON-safe."""
        found: dict[str, Any] = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        plain = {name: value.as_dict() if isinstance(value, Estimate) else value for name, value in found.items()}
        return plain | {"notes": list(self.notes)}


def frechet_distance(x: Floats, y: Floats) -> float:
    """Squared Frechet distance of the normal laws with the means and covariances of x [n d] and y [m d]; >= 0.

    |mean_x - mean_y|^2 + tr C_x + tr C_y - 2 tr (C_x C_y)^(1/2)   (Dowson & Landau 1982; Heusel et al. 2017, eq. 6)

    with the unbiased covariances (n - 1). With C = R' R, tr (C_x C_y)^(1/2) is the sum of the singular values of R_x
    R_y': real for any data, also for n <= d, where a matrix square root turns complex. NaN with fewer than two rows on
    a side. Biased upwards, about as 1/n: compare only equal n.
    """
    _check(x, y)
    if min(len(x), len(y)) < 2:
        return math.nan
    return _frechet(_moments(x), _moments(y))


def precision_recall(real: Floats, generated: Floats, k: int = NEIGHBOURS) -> PrecisionRecall:
    """Improved precision and recall (Kynkaanniemi et al. 2019, eqs. 1-3) of generated against real vectors.

    A set covers the balls around its vectors that reach to their k-th nearest other one (Euclidean, edge included).
    precision = share of generated vectors covered by the real set; recall = share of real ones covered by the generated
    set. In blocks: memory does not grow with n x m. Both depend on n and m: compare only equal sizes. NaN, nothing
    inside, with k or fewer rows on a side.

    Args:
        real: [n d].
        generated: [m d].
        k: neighbour that a ball reaches to.
    """
    _check(real, generated)
    if min(len(real), len(generated)) <= k:
        nothing = np.zeros(len(generated), dtype=bool), np.zeros(len(real), dtype=bool)
        return PrecisionRecall(math.nan, math.nan, *nothing)
    # About the common mean, where float64 leaves the least rounding in |a|^2 + |b|^2 - 2ab.
    centre = real.mean(axis=0, dtype=np.float64)
    real, generated = real - centre, generated - centre
    reach_real, reach_generated = _reach(real, k), _reach(generated, k)
    generated_inside = np.zeros(len(generated), dtype=bool)
    real_inside = np.zeros(len(real), dtype=bool)
    for rows, squared in _squared_distances(generated, real):
        generated_inside[rows] = (squared <= reach_real).any(axis=1)
        real_inside |= (squared <= reach_generated[rows, None]).any(axis=0)
    return PrecisionRecall(float(generated_inside.mean()), float(real_inside.mean()), generated_inside, real_inside)


def diversity(x: Floats) -> float:
    """Mean cosine distance of all pairs of x [n d]: 0 = all alike, 1 = unrelated, never above n / (n - 1).

    1 - (|sum u|^2 - n) / (n (n - 1)), with u the vectors at unit length: O(n d). NaN with fewer than two rows.
    """
    return _diversity(x).value


def alignment(image_vectors: Floats, text_vectors: Floats) -> float:
    """Mean cosine similarity of image i and text i, [n d] each, from one joint model, in [-1, 1]; NaN without rows."""
    cosines = _cosines(image_vectors, text_vectors)
    return float(cosines.mean()) if len(cosines) else math.nan


def quality(
    generated: Floats,
    train: Floats,
    space: str,
    text: tuple[Floats, Floats] | None = None,
    seed: int = 0,
) -> Quality:
    """Image quality of generated images against their training images, in the space of a descriptor.

    The training images are the fixed target and the generated ones a sample, so intervals are of the generated side.
    Frechet distance (Heusel et al. 2017): jackknife over ten folds, sampling error only, not the bias. Precision
    (Kynkaanniemi et al. 2019): exact binomial over the generated images, recall over the training images drawn, the
    balls taken as given. Diversity: jackknife over images (Arvesen 1969). Alignment: bootstrap over images. Precision
    and recall are of random samples of one size, at most LARGEST_SAMPLE a side.

    Args:
        generated: vectors [m d].
        train: vectors [n d].
        space: the descriptor's spec.
        text: vectors of images and of their prompts, [p e] each, from a joint model, which need not be `space`; None =
            alignment is not measured.
        seed: of the samples.
    """
    _check(generated, train)
    rng = np.random.default_rng(np.random.SeedSequence(seed))
    notes: list[str] = []
    distance = _frechet_estimate(generated, train, rng, notes)
    size = min(len(generated), len(train), LARGEST_SAMPLE)
    found = precision_recall(train[_draw(len(train), size, rng)], generated[_draw(len(generated), size, rng)])
    if math.isnan(found.precision):
        notes.append(f"No precision and recall: they need more than {NEIGHBOURS} images a side.")
    elif len(generated) != len(train) or size == LARGEST_SAMPLE:
        notes.append(
            f"Precision and recall are of {size} random images a side: they are comparable at equal sizes only."
        )
    return Quality(
        space,
        distance,
        _share(found.generated_inside, found.precision),
        _share(found.real_inside, found.recall),
        _diversity(generated),
        _diversity(train),
        None if text is None else stats.bootstrap(lambda cosines: float(cosines.mean()), _cosines(*text), seed=seed),
        tuple(notes),
    )


@dataclasses.dataclass(frozen=True, eq=False)
class _Moments:
    """Mean [d], trace of the covariance, and a root R [r d] of it: covariance = R' R, r = min(n, d)."""

    mean: Floats
    trace: float
    root: Floats


def _moments(x: Floats) -> _Moments:
    n, d = x.shape
    mean = x.mean(axis=0, dtype=np.float64)
    if n <= d:
        root = (x - mean) / math.sqrt(n - 1)
        return _Moments(mean, float((root**2).sum()), root)
    covariance = np.zeros((d, d))
    for rows in _blocks(n, d):
        part = x[rows] - mean
        covariance += part.T @ part
    covariance /= n - 1
    values, vectors = np.linalg.eigh(covariance)
    return _Moments(mean, float(np.trace(covariance)), np.sqrt(np.maximum(values, 0))[:, None] * vectors.T)


def _frechet(a: _Moments, b: _Moments) -> float:
    overlap = float(np.linalg.svd(a.root @ b.root.T, compute_uv=False).sum())
    return max(0.0, float(((a.mean - b.mean) ** 2).sum()) + a.trace + b.trace - 2 * overlap)


def _frechet_estimate(generated: Floats, train: Floats, rng: np.random.Generator, notes: list[str]) -> Estimate:
    m, n, d = len(generated), len(train), train.shape[1]
    if min(m, n) < 2:
        notes.append("No Frechet distance: it needs two images a side.")
        return Estimate(math.nan, math.nan, math.nan, m)
    target = _moments(train)
    value = _frechet(_moments(generated), target)
    if min(m, n) <= d:
        notes.append(
            f"{min(m, n)} images are no more than the {d} dimensions: the Frechet distance is biased upwards strongly; "
            "compare it only with one of as many images."
        )
    half = min(m, n // 2)
    if half >= 2:
        both = _draw(n, 2 * half, rng)
        apart = _frechet(_moments(train[both[:half]]), _moments(train[both[half:]]))
        notes.append(f"For scale: two random sets of {half} training images are at Frechet distance {apart:.3g}.")
    if m < 2 * _FOLDS:
        return Estimate(value, math.nan, math.nan, m)
    fold = rng.permutation(m) % _FOLDS
    left_out = [_frechet(_moments(generated[fold != index]), target) for index in range(_FOLDS)]
    return _jackknife(value, np.array(left_out), m, low=0.0, high=math.inf)


def _jackknife(value: float, left_out: Floats, n: int, *, low: float, high: float) -> Estimate:
    """Estimate with a 95 % interval (Student t) from the values [g] with one of g groups left out, cut to range."""
    from scipy.stats import t

    groups = len(left_out)
    error = math.sqrt((groups - 1) / groups * float(((left_out - left_out.mean()) ** 2).sum()))
    reach = float(t.ppf(0.975, groups - 1)) * error
    return Estimate(value, max(low, value - reach), min(high, value + reach), n)


def _diversity(x: Floats) -> Estimate:
    n = len(x)
    if n < 2:
        return Estimate(math.nan, math.nan, math.nan, n)
    total = np.zeros(x.shape[1])
    for rows in _blocks(n, x.shape[1]):
        total += _unit(x[rows]).sum(axis=0)
    squared = float(total @ total)
    value = 1 - (squared - n) / (n * (n - 1))
    if n < 3:
        return Estimate(value, math.nan, math.nan, n)
    left_out = np.empty(n)
    for rows in _blocks(n, x.shape[1]):
        # |total - u|^2 = |total|^2 - 2 total.u + 1
        rest = squared - 2 * (_unit(x[rows]) @ total) + 1
        left_out[rows] = 1 - (rest - (n - 1)) / ((n - 1) * (n - 2))
    return _jackknife(value, left_out, n, low=0.0, high=n / (n - 1))


def _share(inside: NDArray[np.bool_], value: float) -> Estimate:
    if math.isnan(value):
        return Estimate(math.nan, math.nan, math.nan, len(inside))
    return stats.proportion(int(inside.sum()), len(inside))


def _cosines(image_vectors: Floats, text_vectors: Floats) -> Floats:
    if np.shape(image_vectors) != np.shape(text_vectors):
        raise ValueError(
            f"images {np.shape(image_vectors)} and texts {np.shape(text_vectors)} must be as many, as long"
        )
    cosines: Floats = np.einsum("nd,nd->n", _unit(image_vectors), _unit(text_vectors))
    return cosines


def _unit(x: Floats) -> Floats:
    x = np.asarray(x, dtype=np.float64)
    unit: Floats = x / np.maximum(np.linalg.norm(x, axis=1, keepdims=True), np.finfo(np.float64).tiny)
    return unit


def _reach(x: Floats, k: int) -> Floats:
    """Squared distance [n] from each row of x [n d] to its k-th nearest other row."""
    found = np.empty(len(x))
    for rows, squared in _squared_distances(x, x):
        squared[np.arange(len(squared)), np.arange(rows.start, rows.stop)] = np.inf
        found[rows] = np.partition(squared, k - 1, axis=1)[:, k - 1]
    return found


def _squared_distances(a: Floats, b: Floats) -> Iterator[tuple[slice, Floats]]:
    """Rows of a, and the squared Euclidean distances of those rows to all of b; a block at a time."""
    norms = np.einsum("nd,nd->n", b, b)
    # What rounding makes of equal vectors must count as zero, or a copy could fall outside the ball of its original.
    zero = 1e-13 * float(norms.max(initial=0.0))
    for rows in _blocks(len(a), len(b)):
        part = a[rows]
        squared = np.einsum("nd,nd->n", part, part)[:, None] + norms - 2 * (part @ b.T)
        squared[squared < zero] = 0.0
        yield rows, squared


def _blocks(n: int, width: int) -> Iterator[slice]:
    step = max(1, _BLOCK // max(1, width))
    for start in range(0, n, step):
        yield slice(start, min(start + step, n))


def _draw(n: int, size: int, rng: np.random.Generator) -> NDArray[np.int64]:
    return rng.permutation(n)[:size]


def _check(x: Floats, y: Floats) -> None:
    if np.ndim(x) != 2 or np.ndim(y) != 2 or np.shape(x)[1] != np.shape(y)[1]:
        raise ValueError(f"vectors must be [n d] and [m d], of one length d, not {np.shape(x)} and {np.shape(y)}")
