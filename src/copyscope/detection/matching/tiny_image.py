"""Tiny-image vectors (4 x 4 pixels) that find rough copies the descriptor misses.

The inner product of two is the normalised cross-correlation of `ncc`, of four by four pixels in one place. Many
pictures that have nothing to do with one another agree so far: it names candidates, and proves nothing. A quarter turn,
which moves a descriptor far, only permutes these numbers.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Unpack

import numpy as np
from numpy.typing import NDArray

from copyscope.data.corpus import Corpus
from copyscope.detection.search.exact import NOTHING, Nearest, search
from copyscope.engine import CacheOptions
from copyscope.machine import Progress

from .templates import SYMMETRIES, shrinking, turned, unit_templates

if TYPE_CHECKING:
    from .ncc import Verify

SIDE = 4
DIM = 3 * SIDE**2
PIECE = 65_536
LOT = 4096


def coarse_vectors(thumbnails: NDArray[np.uint8]) -> NDArray[np.float32]:
    """Tiny-image unit vectors [n DIM] of thumbnails [n s s 3]; zeros for a flat one."""
    shrink = shrinking(thumbnails.shape[1], SIDE)
    small = np.asarray(shrink @ thumbnails.astype(np.float32).transpose(0, 3, 1, 2) @ shrink.T, np.float32)
    return unit_templates(small).reshape(len(thumbnails), DIM)


def turned_vectors(vectors: NDArray[np.float32], symmetry: int) -> NDArray[np.float32]:
    """Tiny-image vectors [n DIM] of the same pictures under a symmetry (`templates.turned`)."""
    return turned(vectors.reshape(-1, 3, SIDE, SIDE), symmetry).reshape(len(vectors), DIM)


def coarse_vectors_of(
    corpus: Corpus, rows: NDArray[np.intp], verify: Verify, **options: Unpack[CacheOptions]
) -> NDArray[np.float32]:
    """Tiny-image vectors [n DIM] of some rows, from their cached thumbnails; zeros for an image that is gone by now.

    Args:
        corpus: the images.
        rows: corpus rows [n].
        verify: whose thumbnails.
        options: `cache`, `workers` and `progress` of `Verify.thumbnails`.
    """
    pieces = [
        coarse_vectors(verify.thumbnails(corpus, rows[start : start + PIECE], **options))
        for start in range(0, len(rows), PIECE)
    ]
    return np.concatenate([np.zeros((0, DIM), np.float32), *pieces])


def coarse_candidates(
    queries: NDArray[np.float32],
    references: NDArray[np.float32],
    k: int,
    *,
    symmetries: Sequence[int] = range(SYMMETRIES),
    query_labels: NDArray[np.int64] | None = None,
    reference_labels: NDArray[np.int64] | None = None,
    workers: int | None = None,
    progress: Progress | None = None,
) -> Nearest:
    """The k references most alike to each query by tiny-image vectors, under whichever symmetry fits best.

    Exact; compares every query with every reference once a symmetry.

    Args:
        queries: [n DIM].
        references: [m DIM].
        k: references a query.
        symmetries: those to try (`templates.turned`).
        query_labels: [n]; a reference of the query's own label does not count. None = all count.
        reference_labels: [m], likewise.
        workers: threads; None = one a core.
        progress: called with a label, the number done and the total.
    """
    index, score = np.full((len(queries), k), -1, np.int64), np.full((len(queries), k), NOTHING, np.float32)
    for start in range(0, len(queries), LOT):
        mine = queries[start : start + LOT]
        n = len(mine)
        found = search(
            np.concatenate([turned_vectors(mine, symmetry) for symmetry in symmetries]),
            references,
            k,
            query_labels=np.tile(query_labels[start : start + LOT], len(symmetries))
            if query_labels is not None
            else None,
            reference_labels=reference_labels,
            workers=workers,
            progress=progress,
        )
        rows = found.index.reshape(-1, n, k).swapaxes(0, 1).reshape(n, -1)
        scores = found.score.reshape(-1, n, k).swapaxes(0, 1).reshape(n, -1)
        index[start : start + LOT], score[start : start + LOT] = _best(rows, scores, k)
    return Nearest(index, score)


def _best(
    index: NDArray[np.int64], score: NDArray[np.float32], k: int
) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    """The k best of each row of candidates [n c], each index once."""
    order = np.lexsort((-score, index))
    index, score = np.take_along_axis(index, order, axis=1), np.take_along_axis(score, order, axis=1)
    again = np.zeros(index.shape, bool)
    again[:, 1:] = index[:, 1:] == index[:, :-1]
    index, score = np.where(again, -1, index), np.where(again, np.float32(NOTHING), score)
    order = np.lexsort((index, -score))[:, :k]
    return np.take_along_axis(index, order, axis=1), np.take_along_axis(score, order, axis=1)
