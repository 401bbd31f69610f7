"""The second look: an aligned pixel comparison of the candidates that the descriptor retrieved.

A descriptor forgives what makes two pictures of one kind look alike; pixels laid over each other do not. The score is
the best normalised cross-correlation (template matching; Lewis 1995) of one picture, shrunk to several sizes, over
every place of the other, either in the other, mirrored or not: 1 for the same picture up to contrast, so also for a
crop of it or for it set small into another, and about a half for unrelated ones.
"""

from __future__ import annotations

import dataclasses
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from copyscope import images
from copyscope.corpus import Corpus
from copyscope.machine import Progress, cores

from .embed import Work, compute
from .search import one_blas_thread

Planes = NDArray[np.float32]
Spectra = NDArray[np.complex64]

CHUNK = 64


@dataclasses.dataclass(frozen=True)
class Verify:
    """How candidates are compared; `str` is the spec that a result carries.

    top: candidates a query. size: side of the thumbnails in pixels (shorter side resized, central square). core: share
    of the side that is compared at full size; what is cut off leaves room for shifts. zooms: sides to which the whole
    picture is shrunk besides, as shares; so much may have been cropped, or so small may it be set. flip: mirror too.
    """

    top: int = 8
    size: int = 32
    core: float = 0.875
    zooms: tuple[float, ...] = (0.9, 0.8, 0.7, 0.6)
    flip: bool = True

    def __str__(self) -> str:
        fields = (f"{field.name}={getattr(self, field.name)}" for field in dataclasses.fields(self))
        return f"aligned_ncc({', '.join(fields)})"

    def thumbnails(
        self,
        corpus: Corpus,
        rows: NDArray[np.intp],
        *,
        cache: str | Path | None = None,
        workers: int | None = None,
        progress: Progress | None = None,
    ) -> NDArray[np.uint8]:
        """Thumbnails [n size size 3] of the given rows, kept by content; black for an image that is gone by now."""

        def function(pictures: list[images.Image]) -> NDArray[np.uint8]:
            return self.shrink(pictures).reshape(len(pictures), -1)

        work = Work("thumbnails", f"central square {self.size}", 3 * self.size**2, np.uint8, function)
        taken = corpus.take(rows)
        _, found, values = compute(taken, work, cache=cache, workers=workers, progress=progress)
        if len(found) < len(rows):
            whole = np.zeros((len(rows), work.dim), np.uint8)
            whole[found] = values
            values = whole
        return values.reshape(len(values), self.size, self.size, 3)

    def shrink(self, pictures: list[images.Image]) -> NDArray[np.uint8]:
        """Thumbnails [n size size 3] of pictures of any size."""
        squares = [images.centre_crop(picture, min(picture.shape[:2])) for picture in pictures]
        return np.stack([images.resize(square, (self.size, self.size)) for square in squares])

    def compare(
        self,
        queries: NDArray[np.uint8],
        references: NDArray[np.uint8],
        candidates: NDArray[np.int64],
        *,
        workers: int | None = None,
        progress: Progress | None = None,
    ) -> NDArray[np.float32]:
        """Scores [n k] in [-1, 1] of thumbnails `queries` [n s s 3] against `references[candidates]`; NaN where -1.

        candidates: int64 [n k], rows of references, -1 for none. A flat picture has nothing to align and scores 0.
        """
        scores = np.full(candidates.shape, np.nan, dtype=np.float32)
        starts = range(0, len(queries), CHUNK)

        def task(start: int) -> None:
            mine = candidates[start : start + CHUNK]
            query, slot = np.nonzero(mine >= 0)
            if len(query):
                used, reference = np.unique(mine[query, slot], return_inverse=True)
                pairs = query, reference.ravel()
                scores[start + query, slot] = self._pairs(queries[start : start + CHUNK], references[used], pairs)

        with one_blas_thread(), ThreadPoolExecutor(workers or cores()) as pool:
            for start, _ in zip(starts, pool.map(task, starts), strict=True):
                if progress:
                    progress("verify", min(start + CHUNK, len(queries)), len(queries))
        return scores

    def _pairs(
        self,
        queries: NDArray[np.uint8],
        references: NDArray[np.uint8],
        pairs: tuple[NDArray[np.intp], NDArray[np.intp]],
    ) -> Planes:
        """Scores [p] of the pairs (query, reference)."""
        query, reference = pairs
        theirs = _Looks(self, references)
        best = np.full(len(query), -1, dtype=np.float32)
        for pictures in (queries, queries[:, :, ::-1]) if self.flip else (queries,):
            mine = _Looks(self, pictures)
            for at in range(1 + len(self.zooms)):
                np.maximum(best, mine.found_in(theirs, at, query, reference), out=best)
                np.maximum(best, theirs.found_in(mine, at, reference, query), out=best)
        return best


class _Looks:
    """Pictures [n s s 3] prepared to be found in others and to have others found in them."""

    def __init__(self, verify: Verify, pictures: NDArray[np.uint8]) -> None:
        from scipy.fft import rfft2

        size = self.size = verify.size
        planes = pictures.astype(np.float32).transpose(0, 3, 1, 2)
        self.spectra: Spectra = rfft2(planes)
        margin = round(size * (1 - verify.core) / 2)
        templates: list[Planes] = [planes[:, :, margin : size - margin, margin : size - margin]]
        for zoom in verify.zooms:
            shrink = shrinking(size, round(zoom * size))
            templates.append(np.asarray(shrink @ planes @ shrink.T, np.float32))
        self.sides = [template.shape[-1] for template in templates]
        self.templates: list[Spectra] = [
            np.conj(rfft2(unit_templates(template), s=(size, size))) for template in templates
        ]
        tables = summed_areas(planes)
        self.inverse_norms = [inverse_norms(tables, side) for side in self.sides]

    def found_in(self, others: _Looks, at: int, mine: NDArray[np.intp], theirs: NDArray[np.intp]) -> Planes:
        """Best correlation [p] of template `at` of pictures `mine` [p] over all places of pictures `theirs` [p]."""
        from scipy.fft import irfft2

        product = np.einsum("pchw,pchw->phw", others.spectra[theirs], self.templates[at][mine])
        places = self.size - self.sides[at] + 1
        correlation = irfft2(product, s=(self.size, self.size))[:, :places, :places]
        best: Planes = (correlation * others.inverse_norms[at][theirs]).max(axis=(1, 2))
        return best


def shrinking(size: int, side: int) -> Planes:
    """The linear map [side size] that resizes a row of pixels by the antialiased triangle filter."""
    scale = size / side
    centres = (np.arange(side) + 0.5) * scale - 0.5
    weights = np.maximum(0, 1 - np.abs(np.arange(size)[None, :] - centres[:, None]) / scale)
    return np.asarray(weights / weights.sum(axis=1, keepdims=True), np.float32)


def unit_templates(templates: Planes) -> Planes:
    """Each channel's mean taken off, then the whole [n 3 w w] scaled to unit length; flat ones to nothing."""
    centred = templates - templates.mean(axis=(2, 3), keepdims=True)
    norms = np.sqrt(np.einsum("nchw,nchw->n", centred, centred))[:, None, None, None]
    return np.asarray(centred * _inverse(norms, templates.shape[-1]), np.float32)


def summed_areas(planes: Planes) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Summed-area tables [n 3 s+1 s+1] of planes [n 3 s s] and of their squares."""
    values = np.pad(planes.astype(np.float64), ((0, 0), (0, 0), (1, 0), (1, 0)))
    return values.cumsum(axis=2).cumsum(axis=3), np.square(values).cumsum(axis=2).cumsum(axis=3)


def inverse_norms(tables: tuple[NDArray[np.float64], NDArray[np.float64]], side: int) -> Planes:
    """1 / length [n p p] of every window of `side`, each channel's mean taken off; 0 for flat ones."""
    plain, squares = (
        table[:, :, side:, side:]
        - table[:, :, :-side, side:]
        - table[:, :, side:, :-side]
        + table[:, :, :-side, :-side]
        for table in tables
    )
    variation = (squares - plain**2 / side**2).sum(axis=1)
    return _inverse(np.sqrt(np.maximum(variation, 0)).astype(np.float32), side)


def _inverse(norms: Planes, side: int) -> Planes:
    # Below a grey level of contrast there is only rounding noise to correlate.
    return np.where(norms < side, np.float32(0), 1 / np.maximum(norms, np.float32(1e-6)))
