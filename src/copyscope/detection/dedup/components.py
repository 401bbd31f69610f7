"""Connected components of the near-duplicate graph by all pairs, in blocks of bounded memory."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import numpy as np
from numpy.typing import NDArray

from copyscope.detection.search.exact import one_blas_thread
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
    n = len(vectors)
    labels = Labels(np.arange(n, dtype=np.int64))

    def join(first: int, start: int) -> None:
        row, column = np.nonzero(vectors[first : first + BLOCK] @ vectors[start : start + BLOCK].T >= threshold)
        labels.join(row + first, column + start)

    with one_blas_thread(), ThreadPoolExecutor(workers or cores()) as pool:
        for first in range(0, n, BLOCK):
            starts = range(first, n, BLOCK)
            list(pool.map(join, [first] * len(starts), starts))
            labels.settle()
            if progress:
                progress("duplicates", min(first + BLOCK, n), n)
    return labels.now
