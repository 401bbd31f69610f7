"""Re-rank candidates by aligned pixel comparison (normalised cross-correlation, NCC).

A descriptor forgives what makes two pictures of one kind look alike; pixels laid over each other do not. The score is
the best normalised cross-correlation (template matching; Lewis 1995) of one picture, shrunk to several sizes, over
every place of the other, either in the other, mirrored or turned by quarters: 1 for the same picture up to contrast, so
also for a crop of it or for it set small into another, and about a half for unrelated ones.
"""

from __future__ import annotations

import dataclasses
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from copyscope.data.corpus import Corpus
from copyscope.detection.embedding.compute import compute
from copyscope.detection.embedding.fill import Feature
from copyscope.detection.search.exact import one_blas_thread
from copyscope.imaging import images
from copyscope.machine import Progress, cores

from .templates import SYMMETRIES, Planes, fourier, inverse_norms, shrinking, summed_areas, turned, unit_templates
from .tiny_image import coarse_vectors, turned_vectors

Spectra = NDArray[np.complex64]

CHUNK = 64
# Turned by quarters, two pictures are compared under the one symmetry that the coarse pixels like best, where they like
# it better than upright and by LIKELY at least; and the score counts from TURNED on: what strangers reach upright may
# not rise because they were looked at from all sides.
LIKELY, TURNED = 0.5, 0.9


@dataclasses.dataclass(frozen=True)
class Verify:
    """Re-ranking by aligned pixel comparison (NCC); `str` is the spec that a result carries.

    Args:
        top: candidates a query.
        size: side of the thumbnails in pixels (shorter side resized, central square).
        core: share of the side that is compared at full size; what is cut off leaves room for shifts.
        zooms: sides to which the whole picture is shrunk besides, as shares; so much may have been cropped, or so small
            may it be set.
        flip: compare mirrored too.
        turn: turn by quarters and by half too, and with `flip` mirrored so; of these the one that fits best by
            tiny-image vectors.
    """

    top: int = 8
    size: int = 32
    core: float = 0.875
    zooms: tuple[float, ...] = (0.9, 0.8, 0.7, 0.6)
    flip: bool = True
    turn: bool = True

    def __str__(self) -> str:
        fields = (f"{field.name}={getattr(self, field.name)}" for field in dataclasses.fields(self))
        return f"aligned_ncc({', '.join(fields)})"

    def work(self) -> Feature:
        """Feature of an image's thumbnail.

        Returns:
            The feature, for `compute`.
        """
        return Feature("thumbnails", f"central square {self.size}", 3 * self.size**2, np.uint8, self._flat)

    def _flat(self, pictures: list[images.Image]) -> NDArray[np.uint8]:
        return self.shrink(pictures).reshape(len(pictures), -1)

    def thumbnails(
        self,
        corpus: Corpus,
        rows: NDArray[np.intp],
        *,
        cache: str | Path | None = None,
        workers: int | None = None,
        progress: Progress | None = None,
    ) -> NDArray[np.uint8]:
        """Thumbnails of some images, cached by content; black for an image that is gone by now.

        Args:
            corpus: the images.
            rows: corpus rows [n].
            cache: folder of the cache; None = the user's.
            workers: threads; None = one a core.
            progress: called with a label, the number done and the total.

        Returns:
            uint8 [n size size 3].
        """
        work = self.work()
        taken = corpus.take(rows)
        _, found, values = compute(taken, work, cache=cache, workers=workers, progress=progress)
        if len(found) < len(rows):
            whole = np.zeros((len(rows), work.dim), np.uint8)
            whole[found] = values
            values = whole
        return values.reshape(len(values), self.size, self.size, 3)

    def shrink(self, pictures: list[images.Image]) -> NDArray[np.uint8]:
        """Thumbnails of pictures in memory.

        Args:
            pictures: uint8 [h w 3] each, of any size.

        Returns:
            uint8 [n size size 3].
        """
        return np.stack([images.resize_square(picture, self.size) for picture in pictures])

    def compare(
        self,
        queries: NDArray[np.uint8],
        references: NDArray[np.uint8],
        candidates: NDArray[np.int64],
        *,
        workers: int | None = None,
        progress: Progress | None = None,
    ) -> NDArray[np.float32]:
        """Pixel scores of candidates: normalised cross-correlation over shifts, zooms and symmetries.

        A flat picture has nothing to align and scores 0.

        Args:
            queries: thumbnails uint8 [n s s 3].
            references: thumbnails uint8 [m s s 3].
            candidates: int64 [n k], rows of references, -1 for none.
            workers: threads; None = one a core.
            progress: called with a label, the number done and the total.

        Returns:
            float32 [n k] in [-1, 1]; NaN where the candidate is -1.
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
        mine, theirs = _Prepared.of(self, queries), _Prepared.of(self, references)
        best = mine.laid_over(theirs, query, reference)
        if self.flip:
            flipped = _Prepared.of(self, queries[:, :, ::-1])
            np.maximum(best, flipped.laid_over(theirs, query, reference), out=best)
        if self.turn:
            symmetry = self._best_turn(queries, references, query, reference)
            for one in np.unique(symmetry[symmetry > 0]).tolist():
                chosen = np.flatnonzero(symmetry == one)
                rows, place = np.unique(query[chosen], return_inverse=True)
                found = mine.turned(rows, one).laid_over(theirs, place.ravel(), reference[chosen])
                best[chosen] = np.where(found >= TURNED, np.maximum(best[chosen], found), best[chosen])
        return best

    def _best_turn(
        self,
        queries: NDArray[np.uint8],
        references: NDArray[np.uint8],
        query: NDArray[np.intp],
        reference: NDArray[np.intp],
    ) -> NDArray[np.int64]:
        """The symmetry [p] under which each pair is to be compared besides; 0 where none is likely to agree."""
        one, other = coarse_vectors(queries), coarse_vectors(references)[reference]
        # Reversing the columns alone, or the rows, or swapping both is a mirror image: of two, three or one bits an odd
        # number is set.
        symmetries = [each for each in range(SYMMETRIES) if self.flip or each.bit_count() % 2 == 0]
        alike = np.stack([np.einsum("pd,pd->p", turned_vectors(one, each)[query], other) for each in symmetries])
        upright = 2 if self.flip else 1
        best = upright + alike[upright:].argmax(axis=0)
        likely = alike[upright:].max(axis=0) > np.maximum(alike[:upright].max(axis=0), LIKELY)
        return np.where(likely, np.array(symmetries)[best], 0)


@dataclasses.dataclass(frozen=True)
class _Prepared:
    """Pictures [n s s 3] prepared to be found in others and to have others found in them.

    Attributes:
        planes: the pictures [n 3 s s].
        units: of each size, unit templates [n 3 w w].
        inverse_norms: of each size, of all places.
        spectra: of the pictures.
        templates: spectra of the templates, conjugate.
    """

    planes: Planes
    units: list[Planes]
    inverse_norms: list[Planes]
    spectra: Spectra
    templates: list[Spectra]

    @classmethod
    def of(cls, verify: Verify, pictures: NDArray[np.uint8]) -> _Prepared:
        size = verify.size
        planes = pictures.astype(np.float32).transpose(0, 3, 1, 2)
        margin = round(size * (1 - verify.core) / 2)
        templates: list[Planes] = [planes[:, :, margin : size - margin, margin : size - margin]]
        for zoom in verify.zooms:
            shrink = shrinking(size, round(zoom * size))
            templates.append(np.asarray(shrink @ planes @ shrink.T, np.float32))
        tables = summed_areas(planes)
        norms = [inverse_norms(tables, template.shape[-1]) for template in templates]
        return cls._prepared(planes, [unit_templates(template) for template in templates], norms)

    @classmethod
    def _prepared(cls, planes: Planes, units: list[Planes], norms: list[Planes]) -> _Prepared:
        fft = fourier()

        size = planes.shape[-1]
        return cls(
            planes, units, norms, fft.rfft2(planes), [np.conj(fft.rfft2(unit, s=(size, size))) for unit in units]
        )

    def turned(self, rows: NDArray[np.intp], symmetry: int) -> _Prepared:
        """Some of the pictures under a symmetry. The norms of windows turn with the picture."""
        planes, units, norms = self.planes, self.units, self.inverse_norms
        return self._prepared(
            turned(planes[rows], symmetry),
            [turned(unit[rows], symmetry) for unit in units],
            [turned(norm[rows], symmetry) for norm in norms],
        )

    def laid_over(self, others: _Prepared, mine: NDArray[np.intp], theirs: NDArray[np.intp]) -> Planes:
        """Scores [p] of pictures `mine` [p] and `theirs` [p]: either found in the other, at every size."""
        best = np.full(len(mine), -1, dtype=np.float32)
        for at in range(len(self.units)):
            np.maximum(best, self.found_in(others, at, mine, theirs), out=best)
            np.maximum(best, others.found_in(self, at, theirs, mine), out=best)
        return best

    def found_in(self, others: _Prepared, at: int, mine: NDArray[np.intp], theirs: NDArray[np.intp]) -> Planes:
        """Best correlation [p] of template `at` of pictures `mine` [p] over all places of pictures `theirs` [p]."""
        fft = fourier()

        size = self.planes.shape[-1]
        product = np.einsum("pchw,pchw->phw", others.spectra[theirs], self.templates[at][mine])
        places = size - self.units[at].shape[-1] + 1
        correlation = fft.irfft2(product, s=(size, size))[:, :places, :places]
        best: Planes = (correlation * others.inverse_norms[at][theirs]).max(axis=(1, 2))
        return best
