"""The nearest of very many rows to a few queries: sign bits choose candidates, exact inner products rank them.

A code is the signs of a rotated vector. The share of bits in which two codes differ is the angle of the vectors over
pi, with a standard deviation of at most 0.022 at 512 bits (Charikar 2002): a similarity of 0.5 lies five deviations
from the edge of what is kept. Many queries, or few rows, are searched exactly, which is then as fast.
"""

from __future__ import annotations

import dataclasses
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
from numpy.typing import NDArray

from copyscope.machine import Progress, cores

from .search import NOTHING, Nearest, one_blas_thread, search

Vectors = NDArray[np.float32]
Codes = NDArray[np.uint64]

LEAST_BITS = 256
KEPT = 2048
BLOCK = 32768
# Rows whose distances say how far to look for KEPT of them.
SAMPLED = 65536
# Above so many rows and up to so many queries codes are faster than the exact search.
FAST_ROWS, FAST_QUERIES = 50_000, 32


def rotation(dim: int, seed: int = 0) -> Vectors:
    """Directions [dim bits] whose signs are the bits: orthogonal bases, as many as make at least LEAST_BITS."""
    rng = np.random.default_rng(np.random.SeedSequence(seed))
    bits = max(LEAST_BITS, -(-dim // 64) * 64)
    bases = [np.linalg.qr(rng.standard_normal((dim, dim)))[0] for _ in range(-(-bits // dim))]
    return np.ascontiguousarray(np.concatenate(bases, axis=1)[:, :bits], dtype=np.float32)


def encode(vectors: Vectors, directions: Vectors) -> Codes:
    """Codes [bits/64 n] of vectors [n d]; all rows of one word lie side by side, which is how they are read."""
    words = directions.shape[1] // 64
    codes = np.empty((words, len(vectors)), np.uint64)
    for start in range(0, len(vectors), BLOCK):
        signs = np.asarray(vectors[start : start + BLOCK]) @ directions > 0
        codes[:, start : start + BLOCK] = np.packbits(signs, axis=1).view(np.uint64).T
    return codes


@dataclasses.dataclass(frozen=True, eq=False)
class Block:
    """Rows that lie in one set of files: vectors [n d], codes [w n], thumbnails [n s s 3], `gone` [n] = removed."""

    vectors: Vectors
    codes: Codes
    thumbnails: NDArray[np.uint8]
    gone: NDArray[np.bool_]


class Rows:
    """Blocks as one list of rows, numbered through."""

    def __init__(self, blocks: list[Block], directions: Vectors) -> None:
        self.blocks, self.directions = blocks, directions
        self.starts = np.cumsum([0, *(len(block.vectors) for block in blocks)])

    def __len__(self) -> int:
        return int(self.starts[-1])

    def thumbnails(self, rows: NDArray[np.int64]) -> NDArray[np.uint8]:
        """Thumbnails [n s s 3] of rows [n]."""
        place = np.searchsorted(self.starts, rows, side="right") - 1
        found = [self.blocks[at].thumbnails[row - self.starts[at]] for at, row in zip(place, rows, strict=True)]
        return np.stack(found) if found else np.zeros((0, 1, 1, 3), np.uint8)

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
        """The k rows of largest inner product with each of the queries [n d]; rows removed do not count.

        exact: True for the exact search, False for codes, None for whichever is faster. own: labels of the queries [n]
        and of all rows [m]; a row of the query's own label does not count (exact search).
        """
        if exact is None:
            exact = len(self) <= FAST_ROWS or len(queries) > FAST_QUERIES
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
            found = search(queries, block.vectors, k, workers=workers, progress=progress, **labels)
            index.append(np.where(found.score > NOTHING, found.index + start, -1))
            score.append(found.score)
        # The blocks come in order, so that the stable sort leaves ties in the order of the rows.
        every, scores = np.concatenate(index, axis=1), np.concatenate(score, axis=1)
        order = np.argsort(-scores, axis=1, kind="stable")[:, :k]
        return Nearest(np.take_along_axis(every, order, axis=1), np.take_along_axis(scores, order, axis=1))

    def _by_codes(self, queries: Vectors, k: int, workers: int) -> Nearest:
        codes = encode(queries, self.directions)
        bits = self.directions.shape[1]
        step = max(1, len(self) // SAMPLED)
        distances = np.empty((len(queries), len(self)), np.uint16)
        pieces = [
            (block, start, first)
            for block, start in zip(self.blocks, self.starts, strict=False)
            for first in range(0, len(block.vectors), BLOCK)
        ]

        def measure(piece: tuple[Block, int, int]) -> NDArray[np.int64]:
            block, start, first = piece
            words = block.codes[:, first : first + BLOCK]
            gone = block.gone[first : first + BLOCK]
            counts = np.zeros((len(queries), bits + 1), np.int64)
            for query in range(len(queries)):
                out = distances[query, start + first : start + first + len(gone)]
                _hamming(words, codes[:, query], out)
                out[gone] = bits + 1
                counts[query] = np.bincount(out[::step], minlength=bits + 2)[: bits + 1]
            return counts

        def rank(query: int) -> tuple[NDArray[np.int64], Vectors]:
            # The smallest distance within which enough rows lie, however many share it.
            cut = int(np.searchsorted(np.cumsum(counts[query]), max(KEPT, k) / step))
            rows = np.flatnonzero(distances[query] <= min(cut, bits))
            place = np.searchsorted(rows, self.starts)
            scores = np.concatenate(
                [np.zeros(0, np.float32)]
                + [
                    np.asarray(block.vectors[rows[low:high] - start]) @ queries[query]
                    for block, start, low, high in zip(self.blocks, self.starts, place[:-1], place[1:], strict=False)
                    if high > low
                ]
            )
            best = np.lexsort((rows, -scores))[:k]
            return rows[best], scores[best]

        index = np.full((len(queries), k), -1, np.int64)
        score = np.full((len(queries), k), NOTHING, np.float32)
        with one_blas_thread(), ThreadPoolExecutor(workers) as pool:
            counts = np.sum(list(pool.map(measure, pieces)), axis=0)
            for query, (rows, scores) in enumerate(pool.map(rank, range(len(queries)))):
                index[query, : len(rows)], score[query, : len(rows)] = rows, scores
        return Nearest(index, score)


def _hamming(words: Codes, query: Codes, out: NDArray[np.uint16]) -> None:
    """Bits in which codes [w n] differ from that of the query [w], into `out` [n]."""
    out[:] = 0
    differ = np.empty(words.shape[1], np.uint64)
    for word, own in zip(words, query, strict=True):
        np.bitwise_xor(word, own, out=differ)
        np.add(out, _popcount(differ), out=out)


if hasattr(np, "bitwise_count"):
    _popcount: Any = np.bitwise_count
else:  # numpy 1
    _TABLE = np.array([number.bit_count() for number in range(65536)], np.uint8)

    def _popcount(words: Codes) -> NDArray[np.uint8]:
        counts: NDArray[np.uint8] = _TABLE[words.view(np.uint16)].reshape(len(words), 4).sum(axis=1, dtype=np.uint8)
        return counts
