"""Search many rows for few queries: sign codes prefilter, exact inner products rank.

A code is the signs of a rotated vector. The share of bits in which two codes differ is the angle of the vectors over
pi, with a standard deviation of at most 0.022 at 512 bits (Charikar 2002): at a million rows a similarity of 0.5 lies
four deviations from the edge of the KEPT nearest codes, which faiss finds. Many queries, or few rows, are searched
exactly, which is then as fast; and all are where faiss is not installed.
"""

from __future__ import annotations

import dataclasses
import functools
import importlib.util
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
from numpy.typing import NDArray

from copyscope.machine import Progress, cores

from .exact import NOTHING, Nearest, faiss_for, one_blas_thread, search
from .quantized import Stored, Vectors

Codes = NDArray[np.uint8]

LEAST_BITS = 512
KEPT = 512
FURTHEST = np.iinfo(np.int32).max
BLOCK = 32768
# Above so many rows and up to so many queries codes are faster than the exact search.
FAST_ROWS, FAST_QUERIES = 50_000, 32


def rotation(dim: int, seed: int = 0) -> Vectors:
    """Random orthogonal directions [dim bits] whose signs are the bits: as many bases as make LEAST_BITS bits."""
    rng = np.random.default_rng(np.random.SeedSequence(seed))
    bits = max(LEAST_BITS, -(-dim // 64) * 64)
    bases = [np.linalg.qr(rng.standard_normal((dim, dim)))[0] for _ in range(-(-bits // dim))]
    return np.ascontiguousarray(np.concatenate(bases, axis=1)[:, :bits], dtype=np.float32)


def encode(vectors: Vectors, directions: Vectors) -> Codes:
    """Sign codes [n bits/8] of vectors [n d]."""
    codes = np.empty((len(vectors), directions.shape[1] // 8), np.uint8)
    for start in range(0, len(vectors), BLOCK):
        signs = np.asarray(vectors[start : start + BLOCK]) @ directions > 0
        codes[start : start + BLOCK] = np.packbits(signs, axis=1)
    return codes


@dataclasses.dataclass(frozen=True, eq=False)
class Block:
    """Rows that lie in one set of files.

    Attributes:
        vectors: [n d].
        codes: [n b].
        thumbnails: [n s s 3].
        gone: bool [n], removed rows.
    """

    vectors: Vectors | Stored
    codes: Codes
    thumbnails: NDArray[np.uint8]
    gone: NDArray[np.bool_]

    @functools.cached_property
    def n_gone(self) -> int:
        """Number of removed rows."""
        return int(self.gone.sum())

    @functools.cached_property
    def there(self) -> tuple[NDArray[np.int64] | None, Codes]:
        """Rows that were not removed, and their codes.

        None and all codes where so few were removed that it is cheaper to find more than to copy the rest.
        """
        if self.n_gone <= KEPT:
            return None, self.codes
        rows = np.flatnonzero(~self.gone)
        return rows, self.codes[rows]


class VectorBlocks:
    """Blocks as one list of rows, numbered through.

    Args:
        blocks: in order.
        directions: [d bits], of the codes.
    """

    def __init__(self, blocks: list[Block], directions: Vectors) -> None:
        self.blocks, self.directions = blocks, directions
        self.starts = np.cumsum([0, *(len(block.vectors) for block in blocks)])

    def __len__(self) -> int:
        return int(self.starts[-1])

    @property
    def last(self) -> VectorBlocks:
        """Rows of the last block alone."""
        return VectorBlocks(self.blocks[-1:], self.directions)

    def thumbnails(self, rows: NDArray[np.int64]) -> NDArray[np.uint8]:
        """Thumbnails [n s s 3] of rows [n]."""
        place = np.searchsorted(self.starts, rows, side="right") - 1
        found = [self.blocks[at].thumbnails[row - self.starts[at]] for at, row in zip(place, rows, strict=True)]
        return np.stack(found) if found else np.zeros((0, 1, 1, 3), np.uint8)

    def similarities(self, queries: Vectors, rows: NDArray[np.int64]) -> Vectors:
        """Inner products [n k] of queries [n d] with rows [n k]; -2 for row -1."""
        used, places = np.unique(rows, return_inverse=True)
        vectors = np.zeros((len(used), queries.shape[1]), np.float32)
        real = used >= 0
        if real.any():
            vectors[real] = np.concatenate([block.vectors[of] for block, of in self._parts(used[real])])
        scores = np.einsum("nkd,nd->nk", vectors[places.reshape(rows.shape)], queries)
        return np.where(rows < 0, NOTHING, scores).astype(np.float32)

    def nearest(
        self,
        queries: Vectors,
        k: int,
        *,
        exact: bool | None = None,
        own: tuple[NDArray[np.int64], NDArray[np.int64]] | None = None,
        workers: int | None = None,
        progress: Progress | None = None,
    ) -> Nearest:
        """The k rows of largest inner product with each query; removed rows do not count.

        Args:
            queries: [n d].
            k: rows a query.
            exact: True for exact search, False for codes (needs faiss), None for whichever is faster.
            own: labels of the queries [n] and of all rows [m]; a row of the query's own label does not count (exact
                search).
            workers: threads; None = one a core.
            progress: called with a label, the number done and the total.
        """
        if exact is None:
            few = len(self) <= FAST_ROWS or len(queries) > FAST_QUERIES
            exact = few or importlib.util.find_spec("faiss") is None
        if exact or own is not None:
            return self._exact(queries, k, own, workers, progress)
        return self._by_codes(queries, k, workers or cores())

    def _exact(
        self,
        queries: Vectors,
        k: int,
        own: tuple[NDArray[np.int64], NDArray[np.int64]] | None,
        workers: int | None,
        progress: Progress | None,
    ) -> Nearest:
        index = [np.full((len(queries), k), -1, np.int64)]
        score = [np.full((len(queries), k), NOTHING, np.float32)]
        for block, start in zip(self.blocks, self.starts, strict=False):
            labels: dict[str, Any] = {}
            if own is not None:
                mine = own[1][start : start + len(block.vectors)]
                labels = {"query_labels": own[0], "reference_labels": mine}
            elif block.gone.any():
                # What is removed shares a label with all queries.
                ours = np.zeros(len(queries), np.int64)
                labels = {"query_labels": ours, "reference_labels": (~block.gone).astype(np.int64)}
            references: Any = block.vectors  # of which it takes slices, which are float32
            found = search(queries, references, k, workers=workers, progress=progress, **labels)
            index.append(np.where(found.score > NOTHING, found.index + start, -1))
            score.append(found.score)
        # The blocks come in order, so that the stable sort leaves ties in the order of the rows.
        every, scores = np.concatenate(index, axis=1), np.concatenate(score, axis=1)
        order = np.argsort(-scores, axis=1, kind="stable")[:, :k]
        return Nearest(np.take_along_axis(every, order, axis=1), np.take_along_axis(scores, order, axis=1))

    def _by_codes(self, queries: Vectors, k: int, workers: int) -> Nearest:
        faiss, enough = faiss_for("exact=False searches by sign bits"), max(KEPT, k)

        def sift(codes: Codes) -> tuple[NDArray[np.int64], NDArray[np.int32]]:
            # The workers are the threads. Those of OpenMP, once woken, spin and take the time of what comes next.
            faiss.omp_set_num_threads(1)
            near, far = [np.zeros((len(codes), 0), np.int64)], [np.zeros((len(codes), 0), np.int32)]
            for block, start in zip(self.blocks, self.starts, strict=False):
                rows, theirs = block.there
                if len(theirs):
                    more = block.n_gone if rows is None else 0
                    distances, found = faiss.knn_hamming(codes, theirs, min(enough + more, len(theirs)))
                    found = found if rows is None else rows[found]
                    gone = block.gone[found]
                    near.append(np.where(gone, -1, found + start))
                    far.append(np.where(gone, FURTHEST, distances))
            return np.concatenate(near, axis=1), np.concatenate(far, axis=1)

        def rank(query: int) -> tuple[NDArray[np.int64], Vectors]:
            rows = np.sort(candidates[query, np.argsort(bits[query], kind="stable")[:enough]])
            rows = rows[rows >= 0]
            scores = [np.asarray(block.vectors[of]) @ queries[query] for block, of in self._parts(rows)]
            scored = np.concatenate([np.zeros(0, np.float32), *scores])
            best = np.lexsort((rows, -scored))[:k]
            return rows[best], scored[best]

        index = np.full((len(queries), k), -1, np.int64)
        score = np.full((len(queries), k), NOTHING, np.float32)
        with one_blas_thread(), ThreadPoolExecutor(workers) as pool:
            shares = np.array_split(encode(queries, self.directions), max(1, min(workers, len(queries))))
            candidates, bits = (np.concatenate(each) for each in zip(*pool.map(sift, shares), strict=True))
            for query, (rows, scores) in enumerate(pool.map(rank, range(len(queries)))):
                index[query, : len(rows)], score[query, : len(rows)] = rows, scores
        return Nearest(index, score)

    def _parts(self, rows: NDArray[np.int64]) -> Iterator[tuple[Block, NDArray[np.int64]]]:
        """Blocks that sorted `rows` lie in, each with its own rows among them."""
        place = np.searchsorted(rows, self.starts)
        for block, start, low, high in zip(self.blocks, self.starts, place[:-1], place[1:], strict=False):
            if high > low:
                yield block, rows[low:high] - start
