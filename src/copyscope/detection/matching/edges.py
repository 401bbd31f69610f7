"""Match edges: finds the source of pictures that are partly covered or recoloured.

A descriptor has been taught to forgive changes of colour and small overlays, and still loses the source of a picture of
which a fifth is covered; a correlation of pixels counts what lies in the cover. Edges whose strength is cut off count
alike wherever there are some, in whatever colours: so the source of a covered picture stays the nearest. Then the two
are compared block by block, and the blocks that agree least are left out (a trimmed mean, so that what covers them
has no say).
"""

from __future__ import annotations

import dataclasses
import math
from concurrent.futures import ThreadPoolExecutor

import numpy as np
from numpy.typing import NDArray

from copyscope.detection.search.exact import one_blas_thread
from copyscope.machine import cores

from .templates import shrinking

Planes = NDArray[np.float32]

CHUNK = 256
LUMA = np.array([0.299, 0.587, 0.114], np.float32)
LEAST = 1e-3
FLAT = 0.5
"""Blocks with less than this have no edges to compare."""


@dataclasses.dataclass(frozen=True)
class Edges:
    """How edges are compared; planted copies are cached by its `str`.

    Attributes:
        side: pixels a side to which pictures are shrunk.
        strength: in grey levels from one pixel to the next; far beyond it all edges count alike.
        top: training images an image whose blocks are compared, the nearest by all edges.
        blocks: a side.
        left_out: share of a pair's edges that may disagree, in [0, 1).
        most: training images up to which edges are compared. Each image is compared with each, so that time and memory
            (4 KB a training image) grow with their number.
    """

    side: int = 24
    strength: float = 6.0
    top: int = 6
    blocks: int = 6
    left_out: float = 0.45
    most: int = 20_000

    def __str__(self) -> str:
        fields = (f"{field.name}={getattr(self, field.name)}" for field in dataclasses.fields(self))
        return f"edges({', '.join(fields)})"

    def nearest(
        self,
        queries: NDArray[np.uint8],
        references: NDArray[np.uint8],
        own: NDArray[np.int64] | None = None,
        labels: NDArray[np.int64] | None = None,
        workers: int | None = None,
    ) -> tuple[NDArray[np.int64], Planes]:
        """Find the reference whose edges agree best with those of each query.

        Args:
            queries: thumbnails uint8 [n s s 3].
            references: thumbnails uint8 [m s s 3].
            own: group of each query [n]; references of that group do not count. None = all count.
            labels: group of each reference [m]; None = all count.
            workers: threads; None = one a core.

        Returns:
            Rows of the references int64 [n], -1 where none counts, and agreements float32 [n] in [-1, 1]: 1 for the
            same picture in whatever colours, partly covered or not; -1 where none counts.
        """
        theirs = self._slopes(references)
        units = _units(theirs)
        index, score = np.full(len(queries), -1, np.int64), np.full(len(queries), -1, np.float32)

        def task(start: int) -> None:
            piece = slice(start, start + CHUNK)
            mine = self._slopes(queries[piece])
            alike = _units(mine) @ units.T
            if own is not None and labels is not None:
                alike[own[piece, None] == labels[None, :]] = -np.inf
            few = min(self.top, len(units))
            top = np.argpartition(-alike, few - 1, axis=1)[:, :few]
            top.sort(axis=1)
            query = np.repeat(np.arange(len(mine)), few)
            agreed = self._agreement(mine[query], theirs[top.ravel()]).reshape(top.shape)
            agreed[np.take_along_axis(alike, top, axis=1) == -np.inf] = -np.inf
            best = agreed.argmax(axis=1)[:, None]
            found = np.take_along_axis(agreed, best, axis=1)[:, 0]
            there = found > -np.inf
            index[piece] = np.where(there, np.take_along_axis(top, best, axis=1)[:, 0], -1)
            score[piece] = np.where(there, found, -1)

        if len(queries) and len(references):
            with one_blas_thread(), ThreadPoolExecutor(workers or cores()) as pool:
                list(pool.map(task, range(0, len(queries), CHUNK)))
        return index, score

    def _slopes(self, thumbnails: NDArray[np.uint8]) -> Planes:
        """Edges [n 2 p p] downwards and to the right, each between -1 and 1."""
        luma = thumbnails.astype(np.float32) @ LUMA
        shrink = shrinking(luma.shape[-1], self.side)
        luma = np.asarray(shrink @ luma @ shrink.T, np.float32)
        slopes = [np.diff(luma, axis=1)[:, :, :-1], np.diff(luma, axis=2)[:, :-1, :]]
        return np.asarray(np.tanh(np.stack(slopes, axis=1) / np.float32(self.strength)))

    def _agreement(self, one: Planes, other: Planes) -> Planes:
        """Agreement [p] of pairs of edges [p 2 p p].

        Mean correlation of the blocks, weighted by how much edge they hold in either picture, without the `left_out` of
        the weight that agrees least.
        """
        products = self._block_sums((one * other).sum(axis=1))
        squares = [self._block_sums(np.square(each).sum(axis=1)) for each in (one, other)]
        agreed = products / np.maximum(np.sqrt(squares[0] * squares[1]), FLAT)
        weight = np.sqrt(np.maximum(*squares))
        order = np.argsort(agreed, axis=1, kind="stable")
        agreed, weight = (np.take_along_axis(each, order, axis=1) for each in (agreed, weight))
        total = np.maximum(weight.sum(axis=1, keepdims=True), LEAST)
        # Of the block at the border a part is left out.
        beyond = np.cumsum(weight, axis=1) - self.left_out * total
        weight = np.clip(beyond, 0, weight)
        return np.asarray((agreed * weight).sum(axis=1) / np.maximum(weight.sum(axis=1), LEAST), np.float32)

    def _block_sums(self, values: Planes) -> Planes:
        """Sums [n blocks**2] of values [n p p] over blocks."""
        starts = np.linspace(0, values.shape[1], self.blocks + 1).round().astype(int)[:-1]
        rows: Planes = np.add.reduceat(values, starts, axis=1)
        sums: Planes = np.add.reduceat(rows, starts, axis=2)
        return sums.reshape(len(values), -1)


def _units(slopes: Planes) -> Planes:
    """Edges [n 2 p p] as unit vectors [n d]; a picture without edges is all zeros."""
    flat = slopes.reshape(len(slopes), math.prod(slopes.shape[1:]))
    return np.asarray(flat / np.maximum(np.linalg.norm(flat, axis=1, keepdims=True), LEAST))
