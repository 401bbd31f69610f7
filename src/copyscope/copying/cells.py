"""The nearest of very many rows to many queries, without looking at all: rows lie in cells, and the cells whose centres
are nearest to a query are searched.

An inverted file (Jegou et al. 2011): centres by spherical k-means on a sample; every row in the cell of its nearest
centre, in half precision, in the order of the cells, on disk; what is found is ranked again by the vectors themselves.
It misses some: `recall` measures how many, against exact search.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
from numpy.typing import NDArray

from copyscope import stats
from copyscope.machine import Progress, cores
from copyscope.stats import Estimate

from .embed import Embeddings, allocate
from .search import NOTHING, Best, Nearest, faiss_for, one_blas_thread, search

EXACT_ROWS = 1_000_000
"""Up to so many rows are searched exactly."""
SHARE = 32
"""One cell in so many is searched for a query."""
NEAR = 8
"""Cells that are searched for near-duplicates of a row: those are nearer than what a query is looked for."""
SAMPLED_PER_CELL, ROUNDS = 32, 8
BLOCK = 32768
COPY_LIKE = 0.5
LOT = 2048
# Half precision moves an inner product of unit vectors by less.
ROUNDING = 1e-3
MEASURED = 200
"""Queries that recall is measured on."""

Vectors = NDArray[np.float32]
Labels = NDArray[np.int64]


@dataclasses.dataclass(frozen=True, eq=False)
class Cells:
    """Rows of `vectors` [n d], unit length, sorted into c cells.

    centres: float32 [c d]. near: int32 [n p], the cells nearest to each row, its own first. starts: int64 [c+1], where
    each cell begins among `rows`, int64 [n], and `halves`, float16 [n d], both in the order of the cells.
    """

    vectors: Vectors
    centres: Vectors
    near: NDArray[np.int32]
    starts: NDArray[np.int64]
    rows: NDArray[np.int64]
    halves: NDArray[np.float16]

    @classmethod
    def of(
        cls, vectors: Vectors, *, seed: int = 0, workers: int | None = None, progress: Progress | None = None
    ) -> Cells | None:
        """Cells of more than EXACT_ROWS vectors; None for fewer, which are searched exactly."""
        if len(vectors) <= EXACT_ROWS:
            return None
        return cls.build(vectors, seed=seed, workers=workers, progress=progress)

    @classmethod
    def build(
        cls,
        vectors: Vectors,
        count: int | None = None,
        *,
        seed: int = 0,
        workers: int | None = None,
        progress: Progress | None = None,
    ) -> Cells:
        """Sort vectors [n d] into `count` cells, about the square root of n unless said. Needs the extra `scale`."""
        n = len(vectors)
        count = count or 2 ** round(math.log2(max(1, n)) / 2)
        rng = np.random.default_rng(np.random.SeedSequence([seed, 3]))
        sample = np.sort(rng.choice(n, min(n, SAMPLED_PER_CELL * count), replace=False))
        centres = _centres(np.ascontiguousarray(vectors[sample]), count, seed)
        near = allocate((n, min(NEAR, count)), np.int32)
        for start in range(0, n, BLOCK):
            piece = slice(start, start + BLOCK)
            near[piece] = search(np.ascontiguousarray(vectors[piece]), centres, near.shape[1], workers=workers).index
            if progress:
                progress("cells", min(start + BLOCK, n), 2 * n)
        rows, starts = _by_cell(near[:, :1], count)
        halves = allocate((n, vectors.shape[1]), np.float16)
        for start in range(0, n, BLOCK):
            halves[start : start + BLOCK] = vectors[rows[start : start + BLOCK]]
            if progress:
                progress("cells", n + min(start + BLOCK, n), 2 * n)
        return cls(vectors, centres, near, starts, rows, halves)

    def nearest(
        self,
        queries: Vectors,
        k: int = 10,
        *,
        probes: int | None = None,
        query_labels: Labels | None = None,
        reference_labels: Labels | None = None,
        workers: int | None = None,
        progress: Progress | None = None,
    ) -> Nearest:
        """As `search` gives, of the rows in the `probes` cells nearest to each query alone: some are missed, none is
        wrong. One cell in SHARE unless said."""
        index = np.full((len(queries), k), -1, np.int64)
        score = np.full((len(queries), k), NOTHING, np.float32)
        for start in range(0, len(queries), BLOCK):
            piece = slice(start, start + BLOCK)
            mine = query_labels[piece] if query_labels is not None else None
            some = np.ascontiguousarray(queries[piece])
            reach = min(probes or max(1, -(-len(self.centres) // SHARE)), len(self.centres))
            place = self._places(some, k + max(8, k // 4), reach, mine, reference_labels, workers, progress)
            found = self._ranked(some, place, k)
            index[piece], score[piece] = found.index, found.score
        return Nearest(index, score)

    def recall(self, queries: Vectors | None = None, *, seed: int = 0, workers: int | None = None) -> Estimate:
        """Of up to MEASURED of the queries [n d], the share whose nearest row of all is found, with its interval.

        Without queries: of the rows themselves, and their nearest other row, as near-duplicates are looked for. What is
        less alike to every row than 0.5 counts only where nothing is more alike: no copy is among it.
        """
        rng = np.random.default_rng(np.random.SeedSequence([seed, 4]))
        n = len(self.rows if queries is None else queries)
        chosen = np.sort(rng.choice(n, min(MEASURED, n), replace=False))
        options: dict[str, Any] = {"workers": workers}
        if queries is None:
            options |= {"query_labels": chosen, "reference_labels": np.arange(n)}
        some = np.ascontiguousarray((self.vectors if queries is None else queries)[chosen])
        exact = search(some, self.vectors, 1, **options)
        found = self.nearest(some, 1, probes=NEAR if queries is None else None, **options)
        counts = exact.score[:, 0] >= COPY_LIKE
        counts = counts if counts.any() else np.ones(len(some), bool)
        hit = found.score[:, 0] >= exact.score[:, 0] - 1e-5
        return stats.proportion(int((hit & counts).sum()), int(counts.sum()))

    def pairs(self, cell: int, threshold: float) -> Iterator[tuple[NDArray[np.int64], NDArray[np.int64]]]:
        """Pairs of rows of inner product >= threshold, one in the cell, the other with the cell among its NEAR.

        They come in lots, those [e] and these [e]; some pairs twice, as (a, b) and (b, a), and every row with itself.
        """
        visitors, bounds, place = self._visitors
        mine = self.rows[self.starts[cell] : self.starts[cell + 1]]
        for first in range(bounds[cell], bounds[cell + 1], LOT):
            others = visitors[first : min(first + LOT, bounds[cell + 1])]
            theirs = self.halves[place[others]].astype(np.float32)
            for start in range(0, len(mine), LOT):
                inside = slice(self.starts[cell] + start, min(self.starts[cell] + start + LOT, self.starts[cell + 1]))
                scores = theirs @ self.halves[inside].astype(np.float32).T
                row, column = np.nonzero(scores >= threshold - ROUNDING)
                one, other = others[row], mine[start + column]
                unsure = np.flatnonzero(scores[row, column] < threshold + ROUNDING)
                exact = np.einsum("ed,ed->e", self.vectors[one[unsure]], self.vectors[other[unsure]])
                there = np.ones(len(one), bool)
                there[unsure] = exact >= threshold
                yield one[there], other[there]

    @functools.cached_property
    def _visitors(self) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]:
        """Rows in the order of the cells that they have among their NEAR, where each cell begins among them [c+1], and
        the place of each row among `rows` [n]."""
        place = np.empty(len(self.rows), np.int64)
        place[self.rows] = np.arange(len(self.rows))
        return *_by_cell(self.near, len(self.centres)), place

    def _places(
        self,
        queries: Vectors,
        k: int,
        probes: int,
        query_labels: Labels | None,
        reference_labels: Labels | None,
        workers: int | None,
        progress: Progress | None,
    ) -> NDArray[np.int64]:
        """Places among `rows` [q k] of what is nearest to each query in half precision; -1 for none."""
        near = search(queries, self.centres, probes, workers=workers).index
        asking, bounds = _by_cell(near, len(self.centres))
        best = Best(len(queries), k)

        def task(cell: int) -> None:
            mine = asking[bounds[cell] : bounds[cell + 1]]
            inside = slice(self.starts[cell], self.starts[cell + 1])
            if not len(mine) or inside.start == inside.stop:
                return
            scores = queries[mine] @ self.halves[inside].astype(np.float32).T
            if query_labels is not None and reference_labels is not None:
                scores[query_labels[mine][:, None] == reference_labels[self.rows[inside]]] = NOTHING
            best.offer(scores, inside.start, mine)

        with one_blas_thread(), ThreadPoolExecutor(workers or cores()) as pool:
            for cell, _ in enumerate(pool.map(task, range(len(self.centres)))):
                if progress:
                    progress("search", cell + 1, len(self.centres))
        best.settle()
        return best.index

    def _ranked(self, queries: Vectors, place: NDArray[np.int64], k: int) -> Nearest:
        """The k best of each query's places [q p], by the vectors themselves."""
        index = np.where(place >= 0, self.rows[place], -1)
        score = np.full(place.shape, NOTHING, np.float32)
        for start in range(0, len(queries), 512):
            piece = slice(start, start + 512)
            vectors = np.asarray(self.vectors[np.maximum(index[piece], 0)])
            score[piece] = np.where(index[piece] >= 0, np.einsum("qpd,qd->qp", vectors, queries[piece]), NOTHING)
        order = np.lexsort((index, -score))[:, :k]
        return Nearest(np.take_along_axis(index, order, axis=1), np.take_along_axis(score, order, axis=1))


def _by_cell(near: NDArray[Any], count: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Cells [n p] that rows are near to -> the rows in the order of the cells, and where each cell begins [count+1]."""
    order = np.argsort(near, axis=None, kind="stable")
    return order // near.shape[1], np.searchsorted(near.ravel()[order], np.arange(count + 1))


def _centres(sample: Vectors, count: int, seed: int) -> Vectors:
    faiss = faiss_for(f"More than {EXACT_ROWS:,} images are searched by cells")
    found = faiss.Kmeans(
        sample.shape[1], count, niter=ROUNDS, spherical=True, seed=seed + 1, max_points_per_centroid=SAMPLED_PER_CELL
    )
    found.cp.min_points_per_centroid = 1
    found.train(sample)
    return np.asarray(found.centroids, np.float32)


def in_cells(embeddings: Embeddings, **options: Any) -> Embeddings:
    """The same, with cells where there are more than EXACT_ROWS vectors. options: `workers` and `progress`."""
    return dataclasses.replace(embeddings, cells=Cells.of(embeddings.vectors, **options))


def how_searched(references: Embeddings, queries: Vectors | None = None, **options: Any) -> dict[str, Any]:
    """How `queries`, or without any the references among themselves, were looked up, for a summary.

    The recall is in it where some are missed. options: `seed` and `workers`.
    """
    cells = references.cells
    if cells is None:
        return {"method": "exact", "cells": None, "recall": None}
    return {"method": "cells", "cells": len(cells.centres), "recall": cells.recall(queries, **options).as_dict()}


def nearest(
    queries: Vectors,
    vectors: Vectors,
    k: int,
    cells: Cells | None,
    *,
    probes: int | None = None,
    query_labels: Labels | None = None,
    reference_labels: Labels | None = None,
    workers: int | None = None,
    progress: Progress | None = None,
) -> Nearest:
    """As `search`, by the cells of `vectors` where there are any."""
    options: dict[str, Any] = {"query_labels": query_labels, "reference_labels": reference_labels}
    options |= {"workers": workers, "progress": progress}
    if cells is None:
        return search(queries, vectors, k, **options)
    return cells.nearest(queries, k, probes=probes, **options)
