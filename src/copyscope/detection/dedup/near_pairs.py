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
Places = NDArray[np.int64]
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


@dataclasses.dataclass(frozen=True)
class PairSearch:
    """A search for near-duplicate pairs, and what it has found so far.

    Attributes:
        cells: the IVF index whose rows are compared.
        threshold: similarity from which two rows are a pair.
        labels: takes the pairs.
        closest: takes the nearest rows.
        unsure: called with places [e] and places [e] whose similarity is within ROUNDING of the threshold, so that half
            precision cannot tell on which side.
    """

    cells: IVF
    threshold: float
    labels: Labels
    closest: Closest
    unsure: Callable[[Places, Places], None]

    @functools.cached_property
    def is_first(self) -> NDArray[np.bool_]:
        """Whether the vector at a place [n] is the first of its equals; the others need no comparison."""
        return np.asarray(self.cells.first == np.arange(len(self.cells.rows)))

    def join(self, one: Places, other: Places, scores: NDArray[np.float32]) -> None:
        """Take note of the pairs among places `one` [p] and `other` [q] of the similarities `scores` [p q]."""
        # Scores of interest: of near-duplicates, or among the closest so far.
        bar = np.full((len(one), 1), self.threshold - ROUNDING, np.float32)
        looks_closest = self.closest.place.shape[1] > 0
        close = self.closest.bar(one)[:, None] if looks_closest else bar
        hot = scores >= np.minimum(bar, close)
        if np.count_nonzero(hot) > hot.size // CROWD:
            # Where many are alike most pairs are of rows known to be in one component, and say nothing.
            label, rows = self.labels.now, self.cells.rows
            hot &= (label[rows[one]][:, None] != label[rows[other]]) | (scores > close)
        flat = np.flatnonzero(hot)
        if not len(flat):
            return
        row, column, score = flat // len(other), flat % len(other), scores.ravel()[flat]
        # The closest.
        if looks_closest:
            apart = one[row] != other[column]
            self.closest.offer(one[row[apart]], other[column[apart]], score[apart])
        # Near-duplicates: those that half precision tells, then the others.
        sure = score >= self.threshold + ROUNDING
        self._join_sure(one, other, row[sure], column[sure])
        unsure = ~sure & (score >= self.threshold - ROUNDING)
        if unsure.any():
            self.unsure(one[row[unsure]], other[column[unsure]])

    def _join_sure(self, one: Places, other: Places, row: NDArray[np.intp], column: NDArray[np.intp]) -> None:
        """Join the edges [e] from one[row] to other[column]."""
        rows = self.cells.rows
        if len(row) <= len(one) + len(other):
            self.labels.join(rows[one[row]], rows[other[column]])
            return
        # A spanning forest says as much: every vertex and the first of its component.
        group = _connected(row, len(one) + column, len(one) + len(other))
        _, first, root = np.unique(group, return_index=True, return_inverse=True)
        everyone = np.concatenate([one, other])
        self.labels.join(rows[everyone], rows[everyone[first[root]]])


def find_pairs(search: PairSearch, start: int, stop: int, workers: int | None) -> None:
    """Join all pairs of which one is at a place from `start` to `stop`, in a cell that is near to the other."""
    held = _CellRange.read(search, start, stop)
    with one_blas_thread(), ThreadPoolExecutor(workers or cores()) as pool:
        list(pool.map(functools.partial(held.compare, search), range(0, len(search.is_first), LOT)))
    drop_pages(search.cells.near)


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
    places: Places
    cells: range
    bounds: NDArray[np.int64]

    @classmethod
    def read(cls, search: PairSearch, start: int, stop: int) -> _CellRange:
        cells, is_first = search.cells, search.is_first
        places = start + np.flatnonzero(is_first[start:stop])
        vectors = np.empty((len(places), cells.halves.shape[1]), np.float32)
        there = 0
        for first in range(start, stop, LOT):
            last = min(first + LOT, stop)
            mine = cells.read(first, last)[is_first[first:last]]
            vectors[there : there + len(mine)] = mine
            there += len(mine)
        low, high = np.searchsorted(cells.starts, [start, stop - 1], side="right") - 1
        bounds = np.searchsorted(places, cells.starts[low : high + 2])
        return cls(vectors, places, range(low, high + 1), bounds)

    def compare(self, search: PairSearch, first: int) -> None:
        """Compare the LOT of places from `first` on with those that are held, in the cells that are near to each."""
        # Which of them visit which of the held cells.
        near = search.cells.near[first : first + LOT]
        is_first = search.is_first[first : first + LOT, None]
        visits = (near >= self.cells.start) & (near < self.cells.stop) & is_first
        mine = np.flatnonzero(visits.any(axis=1))
        if not len(mine):
            return
        vectors = search.cells.read(first, first + len(near))[mine].astype(np.float32)
        # Visits in the order of the cells.
        row, column = np.nonzero(visits[mine])
        visited = near[mine[row], column]
        order = np.argsort(visited, kind="stable")
        row, starts = row[order], np.searchsorted(visited[order], np.arange(self.cells.start, self.cells.stop + 1))
        # Inner products, cell by cell, in blocks of PIECE x 2 PIECE.
        for cell in range(len(self.cells)):
            visitors = row[starts[cell] : starts[cell + 1]]
            for one in range(0, len(visitors), PIECE):
                asked = visitors[one : one + PIECE]
                for there in range(self.bounds[cell], self.bounds[cell + 1], 2 * PIECE):
                    some = slice(there, min(there + 2 * PIECE, self.bounds[cell + 1]))
                    search.join(first + mine[asked], self.places[some], vectors[asked] @ self.vectors[some].T)
