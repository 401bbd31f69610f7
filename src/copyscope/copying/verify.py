"""The second look: an aligned pixel comparison of the candidates that the descriptor retrieved.

A descriptor forgives what makes two pictures of one kind look alike; pixels laid over each other do not. The score is the
best normalised cross-correlation of two small thumbnails over small shifts, zooms and a flip (template matching,
Lewis 1995), 1 for the same picture up to contrast and about 0 for unrelated ones.
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

Windows = NDArray[np.float32]


@dataclasses.dataclass(frozen=True)
class Verify:
    """How candidates are compared; `str` is the spec that a result carries.

    top: candidates a query. size: side of the thumbnail in pixels (shorter side resized, central square).
    shift: largest shift either way in thumbnail pixels. zooms: side of the window as a share of the full one; each is
    tried on either picture, so that a copy cropped or shrunk by that much still lies over its source. flip: mirror too.
    """

    top: int = 8
    size: int = 48
    shift: int = 3
    zooms: tuple[float, ...] = (1.0, 0.9, 0.8)
    flip: bool = True

    def __str__(self) -> str:
        return f"aligned_ncc(top={self.top}, size={self.size}, shift={self.shift}, zooms={self.zooms}, flip={self.flip})"

    @property
    def window(self) -> int:
        """Side in pixels of the windows that are compared."""
        return self.size - 2 * self.shift

    def thumbnails(
        self,
        corpus: Corpus,
        rows: NDArray[np.intp],
        *,
        cache: Path | None = None,
        workers: int | None = None,
        progress: Progress | None = None,
    ) -> NDArray[np.uint8]:
        """Thumbnails [n size size 3] of the given readable rows, kept by content like embeddings."""
        work = Work("thumbnails", f"central square {self.size}", 3 * self.size**2, np.uint8, self._shrink)
        _, _, values = compute(corpus, work, rows=rows, cache=cache, workers=workers, progress=progress)
        return values.reshape(len(values), self.size, self.size, 3)

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
        workers = workers or cores()
        operators = self._operators()
        still = operators[:, self.shift]

        def task(query: int) -> None:
            there = np.flatnonzero(candidates[query] >= 0)
            if len(there):
                moved = _windows(operators, operators, queries[query]).reshape(-1, 3 * self.window**2)
                fixed = self._fixed(still, references[candidates[query, there]])
                best = (moved @ fixed.T).max(axis=0)
                scores[query, there] = best.reshape(len(there), -1).max(axis=1)

        with one_blas_thread(), ThreadPoolExecutor(workers) as pool:
            for done, _ in enumerate(pool.map(task, range(len(queries)))):
                if progress and (done % 64 == 0 or done + 1 == len(queries)):
                    progress("verify", done + 1, len(queries))
        return scores

    def _fixed(self, still: Windows, references: NDArray[np.uint8]) -> Windows:
        """Central windows [k * zooms * flips, 3 window^2] of references [k s s 3], those of one reference together."""
        windows = np.stack([_centred(still, reference) for reference in references])
        if self.flip:
            windows = np.concatenate([windows, windows[:, :, :, ::-1]], axis=1)
        return windows.reshape(-1, 3 * self.window**2)

    def _operators(self) -> Windows:
        """Linear maps [zooms, shifts, window, size]: bilinear sampling of a window at each zoom and shift."""
        shifts = np.arange(-self.shift, self.shift + 1)
        maps = np.zeros((len(self.zooms), len(shifts), self.window, self.size), dtype=np.float32)
        for zoom, share in enumerate(self.zooms):
            for place, offset in enumerate(shifts):
                position = (np.arange(self.window) + 0.5 - self.window / 2) * share + self.size / 2 + offset - 0.5
                position = np.clip(position, 0, self.size - 1)
                low = np.minimum(position.astype(int), self.size - 2)
                maps[zoom, place, np.arange(self.window), low] = 1 - (position - low)
                maps[zoom, place, np.arange(self.window), low + 1] += position - low
        return maps

    def _shrink(self, pictures: list[NDArray[np.uint8]]) -> NDArray[np.uint8]:
        squares = [images.centre_crop(picture, min(picture.shape[:2])) for picture in pictures]
        return np.stack([images.resize(square, (self.size, self.size)).ravel() for square in squares])


def _windows(down: Windows, across: Windows, picture: NDArray[np.uint8]) -> Windows:
    """Unit-length windows [zooms, shifts, shifts, w, w, 3] of a picture [s s 3], each channel's mean taken off."""
    zooms, shifts, window, size = down.shape
    planes = picture.astype(np.float32)
    tall = (down.reshape(-1, size) @ planes.reshape(size, -1)).reshape(zooms, shifts, window, size, 3)
    wide = np.matmul(across[:, None, :, None], tall[:, :, None])
    return _normalised(wide)


def _centred(still: Windows, picture: NDArray[np.uint8]) -> Windows:
    """The unshifted windows [zooms, w, w, 3]."""
    return _windows(still[:, None], still[:, None], picture)[:, 0, 0]


def _normalised(windows: Windows) -> Windows:
    windows = windows - windows.mean(axis=(-3, -2), keepdims=True)
    norms = np.sqrt(np.einsum("...hwc,...hwc->...", windows, windows))[..., None, None, None]
    # Below one grey level of contrast there is only rounding noise to correlate.
    flat = norms < windows.shape[-2]
    return np.where(flat, np.float32(0), windows / np.maximum(norms, 1e-6)).astype(np.float32)
