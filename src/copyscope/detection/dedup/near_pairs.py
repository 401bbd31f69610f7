"""Find near-duplicate pairs in part of an IVF index, and merge their labels."""

from __future__ import annotations

import dataclasses
import functools
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import numpy as np
from numpy.typing import NDArray

from copyscope.detection.search.exact import NOTHING, one_blas_thread
from copyscope.detection.search.ivf import IVF
from copyscope.machine import cores, drop_pages

LOT = 32768
PIECE = 2048
# Half precision moves an inner product of unit vectors by less.
ROUNDING = 1e-3
Exact = Callable[[NDArray[np.int64], NDArray[np.int64]], NDArray[np.bool_]]
# Labels are merged when so many edges are put aside; pieces of which one in CROWD is a pair are thinned first.
MANY, CROWD = 65536, 64


@dataclasses.dataclass
class Closest:
    """The k rows nearest to each place so far. Two threads may offer at once, if not for the same places.

    Attributes:
        floor: lowest score that counts.
        place: int32 [n k], -1 for none.
        score: float32 [n k], best first, -2 for none.
    """

    floor: float
    place: NDArray[np.int32]
    score: NDArray[np.float32]

    @classmethod
    def none(cls, n: int, k: int, floor: float) -> Closest:
        """Nothing found yet, of n places."""
        return cls(floor, np.full((n, k), -1, np.int32), np.full((n, k), NOTHING, np.float32))

    def bar(self, places: NDArray[np.int64]) -> NDArray[np.float32]:
        """Score that a further row must reach, for each of `places`."""
        bar: NDArray[np.float32] = np.maximum(self.score[places, -1], np.float32(self.floor))
        return bar

    def offer(self, places: NDArray[np.int64], others: NDArray[np.int64], scores: NDArray[np.float32]) -> None:
        """Offer pairs [e]; a pair that is known already changes nothing."""
        k = self.place.shape[1]
        mine, row = np.unique(places, return_inverse=True)
        row = np.concatenate([np.repeat(np.arange(len(mine)), k), row])
        other = np.concatenate([self.place[mine].ravel(), others.astype(np.int32)])
        score = np.concatenate([self.score[mine].ravel(), scores])
        order = np.lexsort((other, -score, row))
        row, other, score = row[order], other[order], score[order]
        again = (np.diff(row, prepend=-1) == 0) & (np.diff(other, prepend=-2) == 0) & (other >= 0)
        row, other, score = row[~again], other[~again], score[~again]
        starts = np.searchsorted(row, np.arange(len(mine)))
        best = starts[:, None] + np.arange(k)
        there = best < np.append(starts[1:], len(row))[:, None]
        best = np.minimum(best, len(row) - 1)
        self.place[mine] = np.where(there, other[best], -1)
        self.score[mine] = np.where(there, score[best], NOTHING)


class Labels:
    """Component of each row so far: union of pairs from many threads.

    `now` has the labels [n] as of the last `settle`.

    Args:
        label: [n], to begin with.
    """

    def __init__(self, label: NDArray[np.int64]) -> None:
        self.now = label
        self._aside: list[NDArray[np.int64]] = []
        self._n_aside = 0
        self._lock = threading.Lock()

    def join(self, one: NDArray[np.int64], other: NDArray[np.int64]) -> None:
        """Join rows [e] with rows [e]."""
        these, those = self.now[one], self.now[other]
        apart = np.flatnonzero(these != those)
        these, those = these[apart], those[apart]
        # One edge for each two components: a thousand copies of one image then give one, not a million.
        both = np.minimum(these, those) * len(self.now) + np.maximum(these, those)
        kept = apart[np.unique(both, return_index=True)[1]]
        with self._lock:
            self._aside.append(np.stack([one[kept], other[kept]], axis=1))
            self._n_aside += len(kept)
            if self._n_aside > max(MANY, len(self.now) // 16):
                self._settle()

    def settle(self) -> NDArray[np.int64]:
        """Merge the pairs that were joined, and return the labels [n]."""
        with self._lock:
            self._settle()
            return self.now

    def _settle(self) -> None:
        if self._n_aside:
            self.now = merged(self.now, self.now[np.concatenate(self._aside)])
        self._aside, self._n_aside = [], 0


def merged(label: NDArray[np.int64], pairs: NDArray[np.int64]) -> NDArray[np.int64]:
    """Labels [n] with the two labels of each pair [p 2] made one."""
    used, place = np.unique(pairs, return_inverse=True)
    one, other = place.reshape(pairs.shape).T
    group = _connected(one, other, len(used))
    first = np.unique(group, return_index=True)[1]
    # Only what is in a pair goes through the graph: that of all labels takes more than twice the memory.
    fresh = np.arange(int(label.max(initial=-1)) + 1)
    fresh[used] = used[first[group]]
    found: NDArray[np.int64] = fresh[label]
    return found


def _connected(one: NDArray[np.int64], other: NDArray[np.int64], size: int) -> NDArray[np.int64]:
    """The component of each of `size` vertices, with edges [e] between `one` and `other`."""
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components

    graph = coo_array((np.ones(len(one), bool), (one, other)), shape=(size, size))
    return np.asarray(connected_components(graph, directed=False)[1], np.int64)


def begin(cells: IVF, k: int, floor: float) -> tuple[Labels, Closest]:
    """Labels and nearest rows before any two rows are compared: equal vectors are joined."""
    label = np.empty(len(cells.rows), np.int64)
    label[cells.rows] = cells.rows[cells.first]
    return Labels(label), Closest.none(len(label), k, floor)


def go_through(
    cells: IVF,
    start: int,
    stop: int,
    threshold: float,
    labels: Labels,
    closest: Closest,
    exact: Exact,
    workers: int | None,
) -> None:
    """Join all near-duplicate pairs of which one is in a range of places.

    Args:
        cells: the IVF index.
        start: first place.
        stop: place behind the last.
        threshold: similarity of a pair.
        labels: takes the pairs.
        closest: takes the nearest rows.
        exact: compares places [e] with places [e] that half precision cannot tell.
        workers: threads; None = one a core.
    """
    alone = cells.first == np.arange(len(cells.rows))
    stretch = _CellRange.read(cells, alone, start, stop)
    with one_blas_thread(), ThreadPoolExecutor(workers or cores()) as pool:
        join = functools.partial(
            stretch.join, cells, alone, threshold=threshold, labels=labels, closest=closest, exact=exact
        )
        list(pool.map(join, range(0, len(alone), LOT)))
    drop_pages(cells.near)


@dataclasses.dataclass(frozen=True)
class _CellRange:
    """Places from `start` on that memory holds, of equal vectors the first alone.

    Attributes:
        vectors: float32 [s d].
        places: int64 [s].
        cells: which they are of.
        bounds: int64 [c+1], where each cell begins in them.
    """

    vectors: NDArray[np.float32]
    places: NDArray[np.int64]
    cells: range
    bounds: NDArray[np.int64]

    @classmethod
    def read(cls, cells: IVF, alone: NDArray[np.bool_], start: int, stop: int) -> _CellRange:
        places = start + np.flatnonzero(alone[start:stop])
        vectors = np.empty((len(places), cells.halves.shape[1]), np.float32)
        there = 0
        for first in range(start, stop, LOT):
            last = min(first + LOT, stop)
            mine = cells.read(first, last)[alone[first:last]]
            vectors[there : there + len(mine)] = mine
            there += len(mine)
        low, high = np.searchsorted(cells.starts, [start, stop - 1], side="right") - 1
        bounds = np.searchsorted(places, cells.starts[low : high + 2])
        return cls(vectors, places, range(low, high + 1), bounds)

    def join(
        self,
        cells: IVF,
        alone: NDArray[np.bool_],
        first: int,
        *,
        threshold: float,
        labels: Labels,
        closest: Closest,
        exact: Exact,
    ) -> None:
        """Join pairs of inner product >= threshold, and put the nearest rows into `closest`.

        One is of the LOT of places from `first` on, the other of the stretch, in a cell that is near to the one.
        """
        near = cells.near[first : first + LOT]
        visits = (near >= self.cells.start) & (near < self.cells.stop) & alone[first : first + LOT, None]
        mine = np.flatnonzero(visits.any(axis=1))
        if not len(mine):
            return
        vectors = cells.read(first, min(first + LOT, len(alone)))[mine].astype(np.float32)
        row, column = np.nonzero(visits[mine])
        visited = near[mine[row], column]
        order = np.argsort(visited, kind="stable")
        row, starts = row[order], np.searchsorted(visited[order], np.arange(self.cells.start, self.cells.stop + 1))
        for cell in range(len(self.cells)):
            visitors = row[starts[cell] : starts[cell + 1]]
            for one in range(0, len(visitors), PIECE):
                asked = visitors[one : one + PIECE]
                for there in range(self.bounds[cell], self.bounds[cell + 1], 2 * PIECE):
                    some = slice(there, min(there + 2 * PIECE, self.bounds[cell + 1]))
                    scores = vectors[asked] @ self.vectors[some].T
                    _join(cells, first + mine[asked], self.places[some], scores, threshold, labels, closest, exact)


def _join(
    cells: IVF,
    one: NDArray[np.int64],
    other: NDArray[np.int64],
    scores: NDArray[np.float32],
    threshold: float,
    labels: Labels,
    closest: Closest,
    exact: Exact,
) -> None:
    """Scores [p q] of places `one` [p] and `other` [q] -> the pairs that they are."""
    bar = np.full((len(one), 1), threshold - ROUNDING, np.float32)
    close = closest.bar(one)[:, None] if closest.place.shape[1] else bar
    hot = scores >= np.minimum(bar, close)
    if np.count_nonzero(hot) > hot.size // CROWD:
        # Where many are alike most pairs are of rows known to be in one component, and say nothing.
        label = labels.now
        hot &= (label[cells.rows[one]][:, None] != label[cells.rows[other]]) | (scores > close)
    flat = np.flatnonzero(hot)
    if not len(flat):
        return
    row, column, score = flat // len(other), flat % len(other), scores.ravel()[flat]
    if closest.place.shape[1]:
        apart = one[row] != other[column]
        closest.offer(one[row[apart]], other[column[apart]], score[apart])
    near = score >= threshold - ROUNDING
    unsure = np.flatnonzero(near & (score < threshold + ROUNDING))
    if len(unsure):
        near[unsure] = exact(one[row[unsure]], other[column[unsure]])
    row, column = row[near], column[near]
    if len(row) > len(one) + len(other):
        # A spanning forest says as much: every vertex and the first of its component.
        group = _connected(row, len(one) + column, len(one) + len(other))
        _, first, root = np.unique(group, return_index=True, return_inverse=True)
        everyone = np.concatenate([one, other])
        labels.join(cells.rows[everyone], cells.rows[everyone[first[root]]])
    else:
        labels.join(cells.rows[one[row]], cells.rows[other[column]])
