"""Exact top-k inner-product search, blocked, over memory-mapped vectors."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
from numpy.typing import NDArray

from copyscope.errors import InputError
from copyscope.machine import Progress, cores, drop_pages, memory

QUERY_BLOCK = 1024
REFERENCE_BLOCK = 4096
NOTHING = -2.0


@dataclasses.dataclass(frozen=True)
class Nearest:
    """The k nearest references of each query, best first; equal scores in the order of the references.

    Attributes:
        index: int64 [n k], -1 where there were fewer than k.
        score: float32 [n k], inner product, higher = more alike; -2 where there was none.
    """

    index: NDArray[np.int64]
    score: NDArray[np.float32]


def search(
    queries: NDArray[np.float32],
    references: NDArray[np.float32],
    k: int = 10,
    *,
    query_labels: NDArray[np.int64] | None = None,
    reference_labels: NDArray[np.int64] | None = None,
    workers: int | None = None,
    block: int | None = None,
    look: Callable[[NDArray[np.float32], int, int], None] | None = None,
    progress: Progress | None = None,
) -> Nearest:
    """Exact top-k inner-product search, in blocks of bounded memory whatever the number of references.

    Each worker needs memory for one block of scores.

    Args:
        queries: float32 [n d].
        references: float32 [m d], perhaps mapped.
        k: references a query, 1 or more.
        query_labels: int64 [n]; a reference of the query's own label does not count: how a training image is kept from
            matching itself or its near-duplicate group. None = all count.
        reference_labels: int64 [m], likewise.
        workers: threads; None = one a core.
        block: queries of one matrix product, which may round otherwise in blocks of another size; None = `query_block`.
        look: called with each block of scores [q r], the number of its first query and that of its first reference, by
            several threads; None = nobody looks.
        progress: called with a label, the number done and the total.

    Raises:
        InputError: vectors of the two are not of one length, or k is below 1.
    """
    if queries.shape[1] != references.shape[1]:
        raise InputError(
            f"The queries have {queries.shape[1]} dimensions and the references {references.shape[1]}.\n"
            "Embed both with the same descriptor"
        )
    if k < 1:
        raise InputError(f"k must be at least 1, not {k}")
    n, m = len(queries), len(references)
    workers = workers or cores()
    block = block or query_block(n, workers)
    tops = [Best(min(block, n - start), k) for start in range(0, n, block)]
    members = _members(reference_labels) if reference_labels is not None else None
    streamed = 4 * m * references.shape[1] > memory() // 4
    with one_blas_thread(), ThreadPoolExecutor(workers) as pool:
        for start in range(0, m, REFERENCE_BLOCK):
            # One copy of the block, contiguous and in memory, serves all queries.
            piece = np.ascontiguousarray(references[start : start + REFERENCE_BLOCK], dtype=np.float32)

            def task(number: int, piece: NDArray[np.float32] = piece, start: int = start) -> None:
                rows = slice(number * block, number * block + block)
                scores = np.matmul(queries[rows], piece.T, out=_scratch((len(queries[rows]), len(piece))))
                if members is not None and query_labels is not None:
                    _exclude(scores, query_labels[rows], members, start)
                tops[number].offer(scores, start)
                if look is not None:
                    look(scores, rows.start, start)

            list(pool.map(task, range(len(tops))))
            if streamed:
                drop_pages(references)
            if progress:
                progress("search", min(start + REFERENCE_BLOCK, m), m)
    for top in tops:
        top.settle()
    empty = np.zeros((0, k))
    return Nearest(
        np.concatenate([empty.astype(np.int64), *(top.index for top in tops)]),
        np.concatenate([empty.astype(np.float32), *(top.score for top in tops)]),
    )


def query_block(n: int, workers: int) -> int:
    """How many of n queries each of so many workers compares at once."""
    return max(1, min(QUERY_BLOCK, -(-n // workers)))


class Best:
    """The k best so far of each of q queries; scores that beat the k-th best are put aside and sorted in together.

    `index`, int64 [q k], and `score`, float32 [q k], hold after `settle`. Many threads may offer at once; which of
    equal scores stay then depends on the order of their offers.
    """

    def __init__(self, q: int, k: int) -> None:
        self.index = np.full((q, k), -1, dtype=np.int64)
        self.score = np.full((q, k), NOTHING, dtype=np.float32)
        self._aside: list[tuple[NDArray[np.intp], NDArray[np.int64], NDArray[np.float32]]] = []
        self._n_aside = 0
        self._lock = threading.Lock()

    def offer(self, scores: NDArray[np.float32], start: int, rows: NDArray[np.int64] | None = None) -> None:
        """Offer scores of some queries with a range of references.

        Args:
            scores: [r b].
            start: number of the first reference.
            rows: which queries [r]; None = all.
        """
        q, k = self.index.shape
        bar = self.score[:, -1] if rows is None else self.score[rows, -1]
        first = bar <= NOTHING
        if scores.shape[1] > k and first.all():
            # The k-th best of the first block is a bar that few later scores pass.
            bar = -np.partition(-scores, k - 1, axis=1)[:, k - 1]
            # `>` must let through what ties with it.
            bar = np.nextafter(bar, np.float32(NOTHING))
        hot = np.flatnonzero(scores.max(axis=1) > bar)
        if len(hot) == 0:
            return
        some = scores if len(hot) == len(bar) else scores[hot]
        flat = np.flatnonzero(some > bar[hot, None])
        row = hot[flat // scores.shape[1]]
        piece = row if rows is None else rows[row], flat % scores.shape[1] + start, some.ravel()[flat]
        with self._lock:
            self._aside.append(piece)
            self._n_aside += len(flat)
            if start == 0 or self._n_aside > 4 * q * k:
                self.settle()

    def settle(self) -> None:
        """Sort the scores put aside into the best."""
        if not self._aside:
            return
        q, k = self.index.shape
        # The best so far come first, and the rest in the order of the references: the stable sort then settles ties.
        row = np.concatenate([np.repeat(np.arange(q), k), *(piece[0] for piece in self._aside)])
        index = np.concatenate([self.index.ravel(), *(piece[1] for piece in self._aside)])
        score = np.concatenate([self.score.ravel(), *(piece[2] for piece in self._aside)])
        order = np.argsort((row.astype(np.uint64) << np.uint64(32)) | _falling(score), kind="stable")
        starts = np.searchsorted(row[order], np.arange(q))
        best = order[(starts[:, None] + np.arange(k)).ravel()]
        self.index, self.score = index[best].reshape(q, k), score[best].reshape(q, k)
        self._aside, self._n_aside = [], 0


def _falling(score: NDArray[np.float32]) -> NDArray[np.uint64]:
    """Numbers of 32 bits [n] in the opposite order of scores [n].

    One sort of whole numbers takes a third of the time of two.
    """
    bits = (score + np.float32(0)).view(np.uint32)  # 0 and -0 are one score
    return np.where(bits >> 31, bits, ~(bits | np.uint32(2**31))).astype(np.uint64)


_local = threading.local()


def _scratch(shape: tuple[int, int]) -> NDArray[np.float32]:
    """This thread's buffer for a block of scores: fresh memory for each block would cost more than the selection."""
    size = shape[0] * shape[1]
    buffer: NDArray[np.float32] | None = getattr(_local, "buffer", None)
    if buffer is None or len(buffer) < size:
        buffer = _local.buffer = np.empty(size, dtype=np.float32)
    return buffer[:size].reshape(shape)


def _members(labels: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.intp], NDArray[np.intp]]:
    """(distinct labels, rows sorted by label, start of each label's rows)."""
    order = np.argsort(labels, kind="stable")
    distinct, starts = np.unique(labels[order], return_index=True)
    return distinct, order, np.append(starts, len(labels))


def _exclude(scores: NDArray[np.float32], labels: NDArray[np.int64], members: tuple[Any, Any, Any], start: int) -> None:
    """Blot out of scores [q b] every reference that has its query's label."""
    distinct, order, starts = members
    place = np.searchsorted(distinct, labels)
    place = np.minimum(place, len(distinct) - 1)
    for row in np.flatnonzero(distinct[place] == labels):
        own = order[starts[place[row]] : starts[place[row] + 1]]
        own = own[np.searchsorted(own, start) : np.searchsorted(own, start + scores.shape[1])]
        scores[row, own - start] = NOTHING


class _OneBlasThread:
    """Limit BLAS to one thread while at least one caller is inside.

    Most libraries have one number of threads for the whole process: the first caller sets it, the last one restores it.
    Were each to restore what it found, some would restore the limit of another. Libraries on OpenMP have one a thread.
    """

    def __init__(self) -> None:
        self._lock, self._inside = threading.Lock(), 0
        self._before: list[int | None] = []

    @contextlib.contextmanager
    def __call__(self) -> Iterator[None]:
        """One BLAS thread: the workers are the threads, and selection then runs in parallel too."""
        shared, own = _blas_libraries()
        mine = _limit(own)
        with self._lock:
            if not self._inside:
                self._before = _limit(shared)
            self._inside += 1
        try:
            yield
        finally:
            _set_threads(own, mine)
            with self._lock:
                self._inside -= 1
                if not self._inside:
                    _set_threads(shared, self._before)


one_blas_thread = _OneBlasThread()


def _limit(libraries: Sequence[Any]) -> list[int | None]:
    """Set each library to one thread; returns how many threads each had, None = it does not say."""
    before = [each.get_num_threads() for each in libraries]
    _set_threads(libraries, [number and 1 for number in before])
    return before


def _set_threads(libraries: Sequence[Any], numbers: Sequence[int | None]) -> None:
    """Set the number of threads of each library; None leaves it."""
    for library, number in zip(libraries, numbers, strict=True):
        # threadpoolctl 3.8 ignores all threads but the first that ever set OpenBLAS, unless it is told to forget it.
        forget = getattr(library, "clear_controlling_thread", lambda force: None)
        if number is not None:
            forget(force=True)
            library.set_num_threads(number)
            forget(force=True)


@functools.cache
def _blas_libraries() -> tuple[list[Any], list[Any]]:
    """Libraries whose number of threads is one of the process, and those with one a thread."""
    # Looking for them takes longer than a small search.
    from threadpoolctl import ThreadpoolController

    found = [each for each in ThreadpoolController().lib_controllers if each.user_api == "blas"]
    return [each for each in found if not _is_own(each)], [each for each in found if _is_own(each)]


def _is_own(library: Any) -> bool:
    return getattr(library, "threading_layer", "") == "openmp"


def faiss_for(what: str) -> Any:
    """Import faiss.

    Args:
        what: what needs it, a clause for the message.

    Raises:
        InputError: it is not installed.
    """
    try:
        import faiss
    except ImportError:
        raise InputError(f"{what}, which needs faiss.\nInstall it with: pip install 'copyscope[scale]'") from None
    return faiss
