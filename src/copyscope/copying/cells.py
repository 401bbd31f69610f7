"""The nearest of very many rows to many queries, without looking at all: rows lie in cells, and the cells whose centres
are nearest to a query are searched.

An inverted file (Jegou et al. 2011): centres by spherical k-means on a sample; every row in the cell of its nearest
centre, in half precision, in the order of the cells, on disk; what is found is ranked again by the vectors themselves.
It misses some: `recall` measures how many, against exact search.

All files are read from their beginning to their end, piece by piece: 10 million rows are 20 GB, and a disk that is
asked here and there for a kilobyte gives a hundredth of what it could.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
import math
import tempfile
import weakref
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import DTypeLike, NDArray

from copyscope import stats
from copyscope.assets import cache_folder
from copyscope.machine import Progress, cores, let_go, locked, memory
from copyscope.stats import Estimate

from .embed import Embeddings, replace_file, sweep, told
from .search import NOTHING, Best, Nearest, faiss_for, one_blas_thread, search

EXACT_ROWS = 1_000_000
"""Up to so many rows are searched exactly."""
SHARE = 32
"""One cell in so many is searched for a query."""
NEAR = 8
"""Cells that are searched for near-duplicates of a row: those are nearer than what a query is looked for."""
SAMPLED_PER_CELL, ROUNDS = 32, 8
BLOCK = 32768
PIECE = 16384
COPY_LIKE = 0.5
MEASURED = 200
"""Queries that recall is measured on."""
DONE, SCHEMA = "cells.json", "copyscope.cells/1"

Vectors = NDArray[np.float32]
Labels = NDArray[np.int64]


@dataclasses.dataclass(frozen=True, eq=False)
class Cells:
    """Rows of `vectors` [n d], unit length, sorted into c cells. A place is a row's number in the order of the cells.

    folder: where they lie on disk. centres: float32 [c d]. starts: int64 [c+1], the first place of each cell. Of each
    place: rows, int64 [n], its row; near, int32 [n p], the cells nearest to it, its own first; halves, float16 [n d],
    its vector; first, int64 [n], the first place that has the very same vector.
    """

    vectors: Vectors
    folder: Path
    centres: Vectors
    starts: NDArray[np.int64]
    rows: NDArray[np.int64]
    near: NDArray[np.int32]
    halves: NDArray[np.float16]
    first: NDArray[np.int64]

    @classmethod
    def build(
        cls,
        vectors: Vectors,
        count: int | None = None,
        *,
        folder: Path | None = None,
        seed: int = 0,
        workers: int | None = None,
        progress: Progress | None = None,
    ) -> Cells:
        """Sort vectors [n d] into `count` cells, about the square root of n unless said. Needs the extra `scale`.

        folder: where they are kept, for these vectors alone; what is there is used, and what a killed process left is
        gone on with. None = a temporary one.
        """
        kept = folder or Path(tempfile.mkdtemp(prefix="copyscope-"))
        with told(kept), locked(kept / ".lock"):
            if not (kept / DONE).is_file():
                _make(kept, vectors, count or 2 ** round(math.log2(max(1, len(vectors))) / 2), seed, workers, progress)
        made = cls.open(kept, vectors)
        if folder is None:
            weakref.finalize(made, _forget, kept)
        return made

    @classmethod
    def open(cls, folder: Path, vectors: Vectors) -> Cells:
        """The cells of these vectors that `build` has made in a folder. Raises OSError where there are none."""
        names = ("centres", "starts", "rows", "near", "halves", "first")
        arrays = {name: np.load(folder / f"{name}.npy", mmap_mode="r") for name in names}
        for name in ("centres", "starts", "rows", "first"):
            arrays[name] = np.array(arrays[name])
        return cls(vectors=vectors, folder=folder, **arrays)

    def read(self, start: int, stop: int) -> NDArray[np.float16]:
        """Vectors of the places from `start` to `stop`, in memory: a map would stay with the process."""
        dim = self.halves.shape[1]
        offset = self.halves.offset + start * dim * 2  # type: ignore[attr-defined]
        return np.fromfile(self.folder / "halves.npy", np.float16, (stop - start) * dim, offset=offset).reshape(-1, dim)

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
        reach = min(probes or max(1, -(-len(self.centres) // SHARE)), len(self.centres))
        lot = max(BLOCK, memory() // 8 // (4 * queries.shape[1]))
        for start in range(0, len(queries), lot):
            piece = slice(start, start + lot)
            mine = query_labels[piece] if query_labels is not None else None
            some = np.ascontiguousarray(queries[piece])
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
        """Places [q k] of what is nearest to each query in half precision; -1 for none."""
        near = search(queries, self.centres, probes, workers=workers).index
        asking, bounds = by_cell(near, len(self.centres))
        best = Best(len(queries), k)

        def task(cell: int) -> None:
            mine = asking[bounds[cell] : bounds[cell + 1]]
            if not len(mine):
                return
            for start, stop in _pieces(self.starts[cell], self.starts[cell + 1], PIECE):
                halves = self.read(start, stop).astype(np.float32)
                for one, other in _pieces(0, len(mine), BLOCK // 16):
                    asked = mine[one:other]
                    scores = queries[asked] @ halves.T
                    if query_labels is not None and reference_labels is not None:
                        same = query_labels[asked][:, None] == reference_labels[self.rows[start:stop]]
                        scores[same] = NOTHING
                    best.offer(scores, start, asked)

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
        there = np.flatnonzero(place.ravel() >= 0)
        there = there[np.argsort(index.ravel()[there], kind="stable")]
        asking = there // place.shape[1]
        for start, stop in _pieces(0, len(there), PIECE):
            vectors = np.asarray(self.vectors[index.ravel()[there[start:stop]]])
            score.ravel()[there[start:stop]] = np.einsum("ed,ed->e", vectors, queries[asking[start:stop]])
            let_go(self.vectors)
        order = np.lexsort((index, -score))[:, :k]
        return Nearest(np.take_along_axis(index, order, axis=1), np.take_along_axis(score, order, axis=1))


def by_cell(near: NDArray[Any], count: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Cells [n p] that rows are near to -> the rows in the order of the cells, and where each cell begins [count+1]."""
    order = np.argsort(near, axis=None, kind="stable")
    return order // near.shape[1], np.searchsorted(near.ravel()[order], np.arange(count + 1))


def _make(
    folder: Path, vectors: Vectors, count: int, seed: int, workers: int | None, progress: Progress | None
) -> None:
    """Write the files of cells into `folder`, DONE last."""
    n = len(vectors)
    centres = folder / "centres.npy"
    sweep(centres)
    if not centres.is_file():
        rng = np.random.default_rng(np.random.SeedSequence([seed, 3]))
        sample = np.sort(rng.choice(n, min(n, SAMPLED_PER_CELL * count), replace=False))
        found = _centres(np.ascontiguousarray(vectors[sample]), count, seed)
        replace_file(centres, lambda path: _save(path, found))
        let_go(vectors)
    near, keys = _assigned(folder, vectors, np.load(centres), workers, progress)
    own = np.array(near[:, 0])
    rows = np.argsort(own, kind="stable")
    starts = np.searchsorted(own[rows], np.arange(count + 1))
    halves = _mapped(folder / "halves.npy", np.float16, vectors.shape)
    _scatter(vectors, own, starts, folder / "halves.npy", halves.offset, progress)  # type: ignore[attr-defined]
    in_order = _mapped(folder / "near.npy", np.int32, near.shape)
    for start, stop in _pieces(0, n, BLOCK):
        in_order[start:stop] = near[rows[start:stop]]
    for name, array in (("rows", rows), ("starts", starts), ("first", _first(keys[rows], halves))):
        np.save(folder / f"{name}.npy", array)
    for name in ("near.part", "keys.part"):
        with contextlib.suppress(OSError):
            (folder / name).unlink()
    about = {"schema": SCHEMA, "n": n, "dim": vectors.shape[1], "cells": count}
    replace_file(folder / DONE, lambda path: path.write_text(json.dumps(about) + "\n"))
    for array in (halves, in_order):
        let_go(array)


def _assigned(
    folder: Path, vectors: Vectors, centres: Vectors, workers: int | None, progress: Progress | None
) -> tuple[NDArray[np.int32], NDArray[np.uint64]]:
    """The cells nearest to each row [n p], and a number [n] that rows of the very same vector share.

    Both are appended to as they come: of what a killed process has left at most the last block is made again.
    """
    n, width = len(vectors), min(NEAR, len(centres))
    factors = np.random.default_rng(0).integers(1, 2**63, vectors.shape[1], np.uint64) | np.uint64(1)
    paths = folder / "near.part", folder / "keys.part"
    with paths[0].open("ab", buffering=0) as near, paths[1].open("ab", buffering=0) as keys:
        done = min(near.tell() // (4 * width), keys.tell() // 8) // BLOCK * BLOCK
        near.truncate(done * 4 * width)
        keys.truncate(done * 8)
        for start, stop in _pieces(done, n, BLOCK):
            block = np.ascontiguousarray(vectors[start:stop], np.float32)
            let_go(vectors)
            found = search(block, centres, width, workers=workers).index
            near.write(np.ascontiguousarray(found, np.int32).data)
            keys.write((block.view(np.uint32) * factors).sum(axis=1).data)
            if progress:
                progress("cells", stop, 2 * n)
    return np.memmap(paths[0], np.int32, "r", shape=(n, width)), np.fromfile(paths[1], np.uint64)


def _scatter(
    vectors: Vectors,
    own: NDArray[np.int32],
    starts: NDArray[np.int64],
    path: Path,
    offset: int,
    progress: Progress | None,
) -> None:
    """Write vectors [n d] as halves in the order of their cells, from `offset` of the file on.

    As many at a time as memory has room for, so that what goes to one cell is long enough to be written at once; and
    not into a map, which would read around each of these places before it writes.
    """
    n, dim = vectors.shape
    free = starts[:-1].copy()
    with path.open("r+b", buffering=0) as file:
        for start, stop in _pieces(0, n, max(BLOCK, memory() // 4 // (2 * dim))):
            lot = np.empty((stop - start, dim), np.float16)
            for first, last in _pieces(start, stop, BLOCK):
                lot[first - start : last - start] = vectors[first:last]
                let_go(vectors)
                if progress:
                    progress("cells", n + last, 2 * n)
            order = np.argsort(own[start:stop], kind="stable")
            cells, bounds = np.unique(own[start:stop][order], return_index=True)
            for cell, mine in zip(cells, np.split(order, bounds[1:]), strict=True):
                file.seek(offset + int(free[cell]) * 2 * dim)
                file.write(lot[mine].data)
                free[cell] += len(mine)


def _first(keys: NDArray[np.uint64], halves: NDArray[np.float16]) -> NDArray[np.int64]:
    """Of each place [n] the first that has the very same vector."""
    order = np.argsort(keys, kind="stable")
    fresh = np.flatnonzero(np.diff(keys[order], prepend=keys[order[:1]] + np.uint64(1)))
    first = np.empty(len(keys), np.int64)
    first[order] = np.repeat(order[fresh], np.diff(fresh, append=len(keys)))
    again = np.flatnonzero(first != np.arange(len(keys)))
    for start, stop in _pieces(0, len(again), PIECE):
        mine = again[start:stop]
        other = (halves[mine] != halves[first[mine]]).any(axis=1)
        first[mine[other]] = mine[other]
    return first


def _centres(sample: Vectors, count: int, seed: int) -> Vectors:
    faiss = faiss_for(f"More than {EXACT_ROWS:,} images are searched by cells")
    found = faiss.Kmeans(
        sample.shape[1], count, niter=ROUNDS, spherical=True, seed=seed + 1, max_points_per_centroid=SAMPLED_PER_CELL
    )
    found.cp.min_points_per_centroid = 1
    found.train(sample)
    return _in_order(np.asarray(found.centroids, np.float32))


def _in_order(centres: Vectors) -> Vectors:
    """The centres [c d], those that are alike near one another: halved again and again where they spread most. What is
    near to some cells then lies in few stretches of the disk."""
    parts, order = [np.arange(len(centres))], []
    while parts:
        those = parts.pop()
        if len(those) < 3:
            order.append(those)
            continue
        away = centres[those] - centres[those].mean(axis=0)
        direction = away[np.argmax(np.square(away).sum(axis=1))]
        for _ in range(8):  # of power iteration: near the direction of the largest spread is near enough
            direction = away.T @ (away @ direction)
            direction /= max(float(np.linalg.norm(direction)), 1e-12)
        along = those[np.argsort(away @ direction, kind="stable")]
        parts += [along[len(along) // 2 :], along[: len(along) // 2]]
    return centres[np.concatenate(order)]


def _mapped(path: Path, dtype: DTypeLike, shape: tuple[int, ...]) -> NDArray[Any]:
    return np.lib.format.open_memmap(path, "w+", dtype, shape)


def _save(path: Path, array: NDArray[Any]) -> None:
    with path.open("wb") as file:
        np.save(file, array, allow_pickle=False)


def _pieces(start: int, stop: int, size: int) -> Iterator[tuple[int, int]]:
    for first in range(int(start), int(stop), size):
        yield first, min(first + size, int(stop))


def _forget(folder: Path) -> None:
    import shutil

    shutil.rmtree(folder, ignore_errors=True)


def in_cells(
    embeddings: Embeddings,
    *,
    cache: Path | None = None,
    workers: int | None = None,
    progress: Progress | None = None,
) -> Embeddings:
    """The same, with cells where there are more than EXACT_ROWS vectors. They are kept in the cache, by what decides
    them, so that they are made once for a training set. cache, workers: as in `embed`."""
    if embeddings.cells is not None or len(embeddings.vectors) <= EXACT_ROWS:
        return embeddings
    folder = (cache or cache_folder()) / "cells" / _identity(embeddings)
    cells = Cells.build(embeddings.vectors, folder=folder, workers=workers, progress=progress)
    return dataclasses.replace(embeddings, cells=cells)


def _identity(embeddings: Embeddings) -> str:
    """Hex digest of what decides the vectors: the descriptor, its weights, and the images in their order."""
    digest = hashlib.sha256(f"{SCHEMA}\n{embeddings.descriptor}\n{embeddings.fingerprint}\n".encode())
    images = embeddings.corpus.table["sha256"]
    for start, stop in _pieces(0, len(embeddings.rows), BLOCK):
        digest.update("".join(images.take(embeddings.rows[start:stop]).to_pylist()).encode())
    return digest.hexdigest()[:16]


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
