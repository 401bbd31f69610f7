"""Connected components of the near-duplicate graph by all pairs, in blocks of bounded memory."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np
from numpy.typing import NDArray

from copyscope.detection.search.exact import Nearest, one_blas_thread, search
from copyscope.machine import Progress, cores

from .near_pairs import Labels

BLOCK = 1024


def components(
    vectors: NDArray[np.float32],
    threshold: float,
    *,
    workers: int | None = None,
    progress: Progress | None = None,
) -> NDArray[np.int64]:
    """Connected components [n] of the graph of pairs with inner product >= threshold, in blocks of bounded memory.

    For more rows than all pairs can be compared of, see `ivf_components`.

    Args:
        vectors: float32 [n d], unit length.
        threshold: in [-1, 1].
        workers: threads; None = one a core.
        progress: called with a label, the number done and the total.
    """
    return components_at(vectors, [threshold], workers=workers, progress=progress)[0]


def components_at(
    vectors: NDArray[np.float32],
    thresholds: Sequence[float],
    *,
    workers: int | None = None,
    progress: Progress | None = None,
) -> list[NDArray[np.int64]]:
    """The components [n] of `components` at each of several thresholds, by one comparison of all pairs."""
    n = len(vectors)
    labels = [Labels(np.arange(n, dtype=np.int64)) for _ in thresholds]

    def join(first: int, start: int) -> None:
        scores = vectors[first : first + BLOCK] @ vectors[start : start + BLOCK].T
        for each, threshold in zip(labels, thresholds, strict=True):
            row, column = np.nonzero(scores >= threshold)
            each.join(row + first, column + start)

    with one_blas_thread(), ThreadPoolExecutor(workers or cores()) as pool:
        for first in range(0, n, BLOCK):
            starts = range(first, n, BLOCK)
            list(pool.map(join, [first] * len(starts), starts))
            for each in labels:
                each.settle()
            if progress:
                progress("duplicates", min(first + BLOCK, n), n)
    return [each.now for each in labels]


def components_and_nearest(
    vectors: NDArray[np.float32],
    threshold: float,
    k: int,
    *,
    workers: int | None = None,
    progress: Progress | None = None,
) -> tuple[NDArray[np.int64], Nearest]:
    """The components [n] of `components`, and the k other rows nearest to each row, by one comparison of all pairs."""
    own = np.arange(len(vectors), dtype=np.int64)
    labels = Labels(own)

    def join(scores: NDArray[np.float32], first: int, start: int) -> None:
        # Each pair stands in two blocks: that above the diagonal will do. In pieces, for all of a block may be pairs.
        for piece in range(0, scores.shape[1], BLOCK):
            if start + piece + BLOCK > first:
                row, column = np.nonzero(scores[:, piece : piece + BLOCK] >= threshold)
                labels.join(row + first, column + start + piece)

    found = search(
        vectors,
        vectors,
        k,
        query_labels=own,
        reference_labels=own,
        workers=workers,
        look=join,
        progress=progress and (lambda _, done, n: progress("duplicates", done, n)),
    )
    return labels.settle(), found
