"""Fine registration: tell the same picture from another picture of the same motif.

Two artists who draw one symbol agree in what a descriptor sees and in the outline, so a template match is high too; so
do two faces of one artist but for the mouth. A copy agrees everywhere. So a pair is brought into register to a fraction
of a pixel by an affine map and a linear map of colours (Gauss-Newton with the gradients of the fixed picture: the
inverse compositional algorithm, Baker and Matthews 2004; the colours are solved for at every step as in Bartoli 2008).
What counts then is the place where the band-passed pixels differ most, colours as they are and noise taken off: a mean
over the picture would hide a mouth, the hands of a clock or the tone of a skin.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Unpack

import numpy as np
from numpy.typing import NDArray

from copyscope.data.corpus import Corpus
from copyscope.detection.embedding.fill import Feature
from copyscope.detection.search.exact import one_blas_thread
from copyscope.engine import CacheOptions
from copyscope.machine import Progress, cores

from .ncc import Verify
from .templates import fourier, inverse_norms, shrinking, summed_areas, unit_templates

Planes = NDArray[np.float32]
Spectra = NDArray[np.complex64]
Matrices = NDArray[np.float64]

CHUNK = 32
GRID = 32
"""Side in pixels at which pictures are compared; what is finer, small models do not reproduce."""
MARGIN = 2
WINDOWS = (GRID - 2 * MARGIN, 28, 24, 21, 19, 16)
"""Sides of the templates of the coarse search: the first is the centre of the picture, the others the whole, shrunk."""
LEVELS = (32, 48, 64)
"""Sides at which the larger picture is sampled, so that a part of it has the detail of the whole of the smaller one."""
BAND = (1.25, 4.0)
"""Widths in pixels of the two Gaussians whose difference is compared: noise is finer, light and shade are coarser."""
PLACE = 2.0
"""Width in pixels of the Gaussian over which a difference is summed: how large a place is."""
WORST = 0.96
"""Quantile of the places that counts as the worst; the median of them is noise, which is everywhere alike."""
BORDER, COVERED = 3, 0.9
"""Pixels at the edge that are not compared, and share of a place that must lie in both pictures."""
LEAST_COVERED = 0.5
"""Share of the smaller picture that the larger one must cover."""
GAINS = (0.5, 2.0)
"""Contrast that one picture may have of the other."""
STIFFNESS = 0.02
"""Ridge penalty of the map of colours in registration, of the total variance."""
LARGEST_STEP = 0.15
NOISE = 0.5
"""Deviation in grey levels of rounding noise, which is never taken for detail."""


@dataclasses.dataclass(frozen=True)
class Register:
    """Fine registration of pairs; `str` is the spec that a result carries.

    Attributes:
        top: candidates a query that are worth registering.
        size: side of the thumbnails in pixels (`Verify.thumbnails`).
        steps: of Gauss-Newton.
    """

    top: int = 4
    size: int = 64
    steps: int = 8

    def __str__(self) -> str:
        fields = (f"{field.name}={getattr(self, field.name)}" for field in dataclasses.fields(self))
        return f"registered({', '.join(fields)})"

    def work(self) -> Feature:
        """Feature of the thumbnails that are registered."""
        return Verify(size=self.size).work()

    def thumbnails(self, corpus: Corpus, rows: NDArray[np.intp], **options: Unpack[CacheOptions]) -> NDArray[np.uint8]:
        """Thumbnails [n size size 3] of some rows; arguments as in `Verify.thumbnails`."""
        return Verify(size=self.size).thumbnails(corpus, rows, **options)

    def compare(
        self,
        queries: NDArray[np.uint8],
        references: NDArray[np.uint8],
        candidates: NDArray[np.int64],
        *,
        workers: int | None = None,
        progress: Progress | None = None,
    ) -> NDArray[np.float32]:
        """How surely each candidate is the same picture as its query.

        Args:
            queries: thumbnails uint8 [n s s 3], 0..255.
            references: thumbnails uint8 [m s s 3], likewise.
            candidates: int64 [n k], rows of references, -1 for none.
            workers: threads; None = one a core.
            progress: called with a label, the number done and the total.

        Returns:
            float32 [n k] in [-1, 1]: 1 for the same pixels, also moved, zoomed or turned by some degrees; NaN where the
            candidate is -1; 0 for a flat picture, which has nothing to compare. Mirrored and quarter-turned copies
            score as other pictures do: an unseen arrow to the left is a training arrow to the right, mirrored.
        """
        scores = np.full(candidates.shape, np.nan, dtype=np.float32)
        query, slot = np.nonzero(candidates >= 0)
        starts = range(0, len(query), CHUNK)

        def task(start: int) -> None:
            mine, at = query[start : start + CHUNK], slot[start : start + CHUNK]
            used, first = np.unique(mine, return_inverse=True)
            found, second = np.unique(candidates[mine, at], return_inverse=True)
            scores[mine, at] = self._pairs(queries[used], references[found], first.ravel(), second.ravel())

        with one_blas_thread(), ThreadPoolExecutor(workers or cores()) as pool:
            for start, _ in zip(starts, pool.map(task, starts), strict=True):
                if progress:
                    progress("register", min(start + CHUNK, len(query)), len(query))
        return scores

    def _pairs(
        self,
        queries: NDArray[np.uint8],
        references: NDArray[np.uint8],
        first: NDArray[np.intp],
        second: NDArray[np.intp],
    ) -> Planes:
        """Scores [p] of the pairs (queries[first], references[second])."""
        mine, theirs = _planes(queries), _planes(references)
        start = _coarse(_edges(mine), _edges(theirs), first, second)
        inside = start.inside[:, None, None, None]
        small, large = np.where(inside, theirs[second], mine[first]), np.where(inside, mine[first], theirs[second])
        fixed = _blur(_shrink(small, GRID), 0.7)
        scores = np.empty(len(first), np.float32)
        for level, members in _levels(start.place, self.size):
            width = 0.7 if level == GRID else 0.56 * level / GRID
            moving = np.ascontiguousarray(_blur(_shrink(large[members], level), width).transpose(0, 2, 3, 1))
            place = _refine(fixed[members], moving, start.place[members], self.steps)
            scores[members] = _agreement(fixed[members], moving, place)
        return scores


def worst_place(one: Planes, other: Planes, steps: int = Register.steps) -> float:
    """How well two pictures agree where they agree least, once they lie in register: `Register`'s score of luma alone.

    Args:
        one: luma [s s], s a multiple of GRID, 0..255.
        other: luma [s s]; it lies over the other one to some pixels.
        steps: of Gauss-Newton.

    Returns:
        In [-1, 1]; 1 for the same pixels up to brightness and contrast, 0 for two flat pictures.
    """
    fixed, moving = (np.repeat(each[None, None], 3, axis=1) for each in (one, other))
    fixed, moving = (_blur(_shrink(each, GRID), 0.7) for each in (fixed, moving))
    moving = np.ascontiguousarray(moving.transpose(0, 2, 3, 1))
    place = _refine(fixed, moving, np.eye(2, 3)[None], steps)
    return float(_agreement(fixed, moving, place)[0])


@dataclasses.dataclass(frozen=True)
class _Start:
    """Where a pair's search begins.

    Attributes:
        inside: [p], whether the reference lies in the query, else the query lies in the reference.
        place: [p 2 3], affine map from the smaller to the larger picture, (y, x) from -1 to 1.
    """

    inside: NDArray[np.bool_]
    place: Matrices


class _Edges:
    """Gradient magnitudes [n 1 g g] prepared to be found in others, and to have others found in them."""

    def __init__(self, edges: Planes) -> None:
        fft = fourier()

        self.spectra: Spectra = fft.rfft2(edges[:, 0])
        templates = [
            edges[:, :, MARGIN:-MARGIN, MARGIN:-MARGIN],
            *(_shrink(edges, side) for side in WINDOWS[1:]),
        ]
        self.templates: list[Spectra] = [
            np.conj(fft.rfft2(unit_templates(template)[:, 0], s=(GRID, GRID))) for template in templates
        ]
        tables = summed_areas(edges)
        self.inverse_norms = [inverse_norms(tables, side) for side in WINDOWS]


def _coarse(queries: Planes, references: Planes, first: NDArray[np.intp], second: NDArray[np.intp]) -> _Start:
    """The best of all places and zooms, by correlation of edges: these outlive a change of colours."""
    fft = fourier()

    mine, theirs, pairs = _Edges(queries), _Edges(references), np.arange(len(first))
    best = np.full(len(first), -np.inf, np.float32)
    start = _Start(np.zeros(len(first), bool), np.zeros((len(first), 2, 3)))
    for window, side in enumerate(WINDOWS):
        places = GRID - side + 1
        # The first window is the centre, so that its place is a shift; the others are whole pictures.
        scale, corner = (side / GRID, side / 2 - GRID / 2) if window else (1.0, -MARGIN)
        for inside in (False, True) if window else (False,):
            (large, at), (small, of) = (
                ((mine, first), (theirs, second)) if inside else ((theirs, second), (mine, first))
            )
            product = large.spectra[at] * small.templates[window][of]
            found = fft.irfft2(product, s=(GRID, GRID))[:, :places, :places] * large.inverse_norms[window][at]
            flat = found.reshape(len(first), -1)
            place = flat.argmax(axis=1)
            better = flat[pairs, place] > best
            best[better] = flat[pairs, place][better]
            start.inside[better] = inside
            where = np.zeros((len(first), 2, 3))
            where[:, 0, 0] = where[:, 1, 1] = scale
            where[:, :, 2] = (np.stack(np.divmod(place, places), axis=1) + corner) * 2 / GRID
            start.place[better] = where[better]
    return start


def _refine(fixed: Planes, moving: Planes, place: Matrices, steps: int) -> Matrices:
    """Affine maps [p 2 3] that lay pictures `moving` [p s s 3] over `fixed` [p 3 g g], begun at `place`; the best met.

    A step that leaves more than half of the picture uncovered is never the best.
    """
    n = len(fixed)
    target = fixed.reshape(n, 3, -1)
    slopes = [np.gradient(fixed, axis=axis).reshape(n, 1, 3, -1) * np.float32(GRID / 2) for axis in (2, 3)]
    moves = np.concatenate([slope * _PLACES[None, :, None] for slope in slopes], axis=1).astype(
        np.float32
    )  # [p 6 3 g*g]
    flat = moves.reshape(n, 6, -1)
    hessian: Matrices | None = None
    least, kept = np.full(n, np.inf), place.copy()
    for step in range(steps + 1):
        seen, covered = _sample(moving, place)
        a, b = _centred(seen, covered), _centred(target, covered)
        difference = _mapped(a, b, covered, STIFFNESS) - b
        squares = np.square(difference).sum(axis=1)
        variance = (np.square(b).sum(axis=1) * covered).sum(axis=1)
        error = (squares * covered).sum(axis=1) / np.maximum(variance, 1e-6)
        error = np.where(covered.mean(axis=1) < LEAST_COVERED, np.inf, error)
        better = error < least
        least[better], kept[better] = error[better], place[better]
        if step == steps:
            break
        if hessian is None:
            hessian = (moves * covered[:, None, None]).reshape(n, 6, -1) @ flat.transpose(0, 2, 1)
            hessian = hessian + _EYE[6] * (1e-3 * _trace(hessian) + 1e-6)[:, None, None]
        # Cauchy's weights: what differs most counts least.
        scale = (squares * covered).sum(axis=1) / np.maximum(covered.sum(axis=1), 1)
        weights = covered / (1 + squares / np.maximum(4 * scale, 1e-6)[:, None])
        slope = flat @ (difference * weights[:, None]).reshape(n, -1, 1)
        change = np.tile(_EYE[3], (n, 1, 1))
        change[:, :2] += np.clip(np.linalg.solve(hessian, slope), -LARGEST_STEP, LARGEST_STEP).reshape(n, 2, 3)
        whole = np.tile(_EYE[3], (n, 1, 1))
        whole[:, :2] = place
        place = (whole @ np.linalg.inv(change))[:, :2]
    return kept


def _agreement(fixed: Planes, moving: Planes, place: Matrices) -> Planes:
    """Scores [p] of pictures in register, at least -1.

    1 less half of what the worst place's squared difference exceeds the median place's by, as a share of the mean
    square of both pictures.
    """
    seen, covered = _sample(moving, place)
    shape = (len(fixed), 3, GRID, GRID)
    a, b = ((_centred(each, covered) * covered[:, None]).reshape(shape) for each in (seen, fixed.reshape(seen.shape)))
    gain = np.einsum("pchw,pchw->p", a, b) / np.maximum(np.einsum("pchw,pchw->p", a, a), 1e-3)
    a = _band(a * np.clip(gain, *GAINS).astype(np.float32)[:, None, None, None])
    b = _band(b)
    mean = (np.square(a) + np.square(b)).sum(axis=1).mean(axis=(1, 2)) / 2
    compared = _blur(covered.reshape(-1, 1, GRID, GRID), PLACE)[:, 0] > COVERED
    compared[:, :BORDER] = compared[:, -BORDER:] = compared[:, :, :BORDER] = compared[:, :, -BORDER:] = False
    difference = _blur(np.square(a - b).sum(axis=1, keepdims=True), PLACE)[:, 0]
    # Places that are not compared come last in order.
    ordered = np.sort(np.where(compared, difference, np.inf).reshape(len(a), -1), axis=1)
    places = compared.sum(axis=(1, 2))
    last = np.maximum(places - 1, 0)
    known = (mean > 3 * NOISE**2) & (covered.mean(axis=1) >= LEAST_COVERED) & (places > 0)
    ordered = np.where(known[:, None], ordered, 0)
    worst, median = (
        np.take_along_axis(ordered, np.round(share * last).astype(np.intp)[:, None], axis=1)[:, 0]
        for share in (WORST, 0.5)
    )
    scores = np.maximum(1 - (worst - median) / np.maximum(2 * mean, 1e-6), -1)
    return np.where(known, scores, 0).astype(np.float32)


def _mapped(a: Planes, b: Planes, covered: Planes, ridge: float) -> Planes:
    """Colours of `a` [p 3 n] mapped linearly to those of `b`; the map is drawn by `ridge` to one gain for all."""
    weighted = a * covered[:, None]
    own, cross = _products(weighted, a), _products(b, weighted)
    total = _trace(own)
    gain = np.clip(_trace(cross) / np.maximum(total, 1e-6), 0.3, 3)
    penalty = (ridge * total + 1e-6)[:, None, None] * _EYE[3]
    solved = np.linalg.solve(own + penalty, (cross + penalty * gain[:, None, None]).transpose(0, 2, 1))
    return np.asarray(solved.transpose(0, 2, 1).astype(np.float32) @ a)


def _products(a: Planes, b: Planes) -> Matrices:
    """Sums [p 3 3] over pixels of the products of channels of [p 3 n]."""
    return np.asarray(a @ b.transpose(0, 2, 1), np.float64)


def _centred(values: Planes, covered: Planes) -> Planes:
    """Values [p 3 n] less their mean over what is covered [p n]."""
    total = np.maximum(covered.sum(axis=1), 1e-6)[:, None, None]
    return np.asarray(values - (values * covered[:, None]).sum(axis=2, keepdims=True) / total, np.float32)


def _sample(pictures: Planes, place: Matrices) -> tuple[Planes, Planes]:
    """Pictures [p s s 3] at the grid's places under affine maps [p 2 3], bilinear [p 3 g*g], and which lie inside."""
    side = pictures.shape[1]
    at = (place.astype(np.float32) @ _PLACES + 1) * np.float32(side / 2) - np.float32(0.5)
    covered = ((at >= -0.5) & (at <= side - 0.5)).all(axis=1)
    at = np.clip(at, 0, side - 1.001)
    corner = at.astype(np.int32)
    down, right = (at - corner).transpose(1, 0, 2)[..., None]
    row = corner[:, 0] * side + corner[:, 1] + (np.arange(len(pictures)) * side**2)[:, None]
    pixels = pictures.reshape(-1, 3)
    upper, lower = pixels[row], pixels[row + side]
    upper += (pixels[row + 1] - upper) * right
    lower += (pixels[row + side + 1] - lower) * right
    return (upper + (lower - upper) * down).transpose(0, 2, 1), covered.astype(np.float32)


def _levels(place: Matrices, size: int) -> Iterator[tuple[int, NDArray[np.intp]]]:
    """Each level that some of the maps [p 2 3] want, and which."""
    sides = np.array([level for level in LEVELS if level <= size])
    wanted = np.abs(sides - GRID / place[:, 0, 0, None]).argmin(axis=1)
    for at, side in enumerate(sides):
        members = np.flatnonzero(wanted == at)
        if len(members):
            yield int(side), members


def _edges(planes: Planes) -> Planes:
    """Gradient magnitude over all channels, [n 1 g g] of planes [n 3 s s]."""
    small = _blur(_shrink(planes, GRID), 0.5)
    down, right = np.gradient(small, axis=(2, 3))
    return np.asarray(np.sqrt((down**2 + right**2).sum(axis=1, keepdims=True)), np.float32)


def _planes(pictures: NDArray[np.uint8]) -> Planes:
    return np.ascontiguousarray(pictures.transpose(0, 3, 1, 2)).astype(np.float32)


def _shrink(planes: Planes, side: int) -> Planes:
    if side == planes.shape[-1]:
        return planes
    matrix = shrinking(planes.shape[-1], side)
    return np.asarray(matrix @ planes @ matrix.T, np.float32)


def _band(planes: Planes) -> Planes:
    return _blur(planes, BAND[0]) - _blur(planes, BAND[1])


def _blur(planes: Planes, width: float) -> Planes:
    from scipy.ndimage import gaussian_filter

    return np.asarray(gaussian_filter(planes, (0, 0, width, width), truncate=3), np.float32)


def _trace(matrices: Matrices) -> Matrices:
    return np.asarray(np.trace(matrices, axis1=1, axis2=2))


def _grid() -> Planes:
    """Homogeneous (y, x, 1) [3 g*g] of the grid's pixels, from -1 to 1."""
    line = (np.arange(GRID) + 0.5) * 2 / GRID - 1
    down, right = np.meshgrid(line, line, indexing="ij")
    return np.stack([down.ravel(), right.ravel(), np.ones(GRID**2)]).astype(np.float32)


_PLACES = _grid()
_EYE = {side: np.eye(side) for side in (3, 6)}
