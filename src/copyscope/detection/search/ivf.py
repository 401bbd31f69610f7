"""IVF (inverted file) search for more than a million rows, with measured recall.

An inverted file (Jegou et al. 2011): centres by spherical k-means on a sample; every row in the cell of its nearest
centre, in half precision, in the order of the cells, on disk; what is found is ranked again by the vectors themselves.
It misses some: `recall` measures how many, against exact search.
"""

from __future__ import annotations

import dataclasses
import hashlib
import math
import tempfile
import weakref
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Annotated, Any, TypedDict

import numpy as np
from numpy.typing import NDArray

from copyscope import stats
from copyscope.detection.embedding.embeddings import Embeddings
from copyscope.files import cache_errors, cache_folder
from copyscope.machine import Progress, cores, drop_pages, file_lock, memory_budget
from copyscope.stats import Estimate, EstimateDict

from .exact import NOTHING, Best, Nearest, one_blas_thread, search
from .ivf_files import BLOCK, DONE, PIECE, SCHEMA, Vectors, make, pieces

EXACT_ROWS = 1_000_000
"""Up to so many rows are searched exactly."""
PROBE_FRACTION = 32
"""One cell in so many is searched for a query."""
NEAR = 16
"""Cells that are searched for near-duplicates of a row: those are nearer than what a query is looked for."""
COPY_LIKE = 0.5
MEASURED, COPIES, MOST = 200, 100, 2000
"""Recall is measured on MEASURED queries; on as many as promise COPIES that are like a row, at most MOST, where fewer
of those are."""
Labels = NDArray[np.int64]


@dataclasses.dataclass(frozen=True, eq=False)
class IVF:
    """IVF (inverted file) index of unit vectors: rows sorted into c cells.

    A place is a row's number in the order of the cells.

    Attributes:
        vectors: float32 [n d], in the order of the rows.
        folder: where the files lie.
        centres: float32 [c d].
        starts: int64 [c+1], the first place of each cell.
        rows: int64 [n], row of each place.
        near: int32 [n p], the cells nearest to each place, its own first.
        halves: float16 [n d], vector of each place.
        first: int64 [n], for each place the first that has the very same vector.
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
    ) -> IVF:
        """Sort vectors into cells. Needs the extra `scale`.

        Args:
            vectors: float32 [n d], unit length.
            count: number of cells; None = `how_many`.
            folder: where the files are kept, for these vectors alone; files that are there are used, and a build that
                was killed goes on. None = a temporary one.
            seed: of the clustering.
            workers: threads; None = one a core.
            progress: called with a label, the number done and the total.
        """
        kept = folder or Path(tempfile.mkdtemp(prefix="copyscope-"))
        with cache_errors(kept), file_lock(kept / ".lock"):
            made = cls._kept(kept, vectors)
            if made is None:
                count = count or how_many(len(vectors))
                make(kept, vectors, count, NEAR, seed=seed, workers=workers, progress=progress)
                made = cls.open(kept, vectors)
        if folder is None:
            weakref.finalize(made, _forget, kept)
        return made

    @classmethod
    def _kept(cls, folder: Path, vectors: Vectors) -> IVF | None:
        """The cells in a folder; None where there are none, or a file of them is not whole: then none of them stays."""
        if not (folder / DONE).is_file():
            return None
        try:
            return cls.open(folder, vectors)
        except (OSError, ValueError, EOFError):
            for path in [folder / DONE, *folder.glob("*.np[yz]")]:
                path.unlink(missing_ok=True)
            return None

    @classmethod
    def open(cls, folder: Path, vectors: Vectors) -> IVF:
        """Open the index of these vectors that `build` has made in a folder.

        Raises:
            OSError: there is none.
        """
        names = ("centres", "starts", "rows", "near", "halves", "first")
        arrays = {name: np.load(folder / f"{name}.npy", mmap_mode="r") for name in names}
        for name in ("centres", "starts", "rows", "first"):
            arrays[name] = np.array(arrays[name])
        return cls(vectors=vectors, folder=folder, **arrays)

    def read(self, start: int, stop: int) -> NDArray[np.float16]:
        """Vectors of the places from `start` to `stop`, read into memory: a map would stay with the process."""
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
        """Approximate search: the nearest rows within the cells nearest to each query; some are missed, none is wrong.

        Args:
            queries: float32 [n d].
            k: rows a query.
            probes: number of cells searched; None = one in SHARE.
            query_labels: int64 [n]; a row of the query's own label does not count. None = all count.
            reference_labels: int64 [m], likewise.
            workers: threads; None = one a core.
            progress: called with a label, the number done and the total.
        """
        index = np.full((len(queries), k), -1, np.int64)
        score = np.full((len(queries), k), NOTHING, np.float32)
        reach = min(probes or max(1, -(-len(self.centres) // PROBE_FRACTION)), len(self.centres))
        lot = max(BLOCK, memory_budget() // 4 // (4 * queries.shape[1]))
        for start in range(0, len(queries), lot):
            piece = slice(start, start + lot)
            mine = query_labels[piece] if query_labels is not None else None
            some = np.ascontiguousarray(queries[piece])
            place = self._places(some, k + max(8, k // 4), reach, mine, reference_labels, workers, progress)
            found = self._ranked(some, place, k)
            index[piece], score[piece] = found.index, found.score
        return Nearest(index, score)

    def recall(
        self,
        queries: Vectors | None = None,
        *,
        seed: int = 0,
        workers: int | None = None,
        progress: Progress | None = None,
    ) -> Estimate:
        """Measured recall: share of a sample of queries whose nearest row is found, with its interval.

        A query that is less alike to every row than 0.5 counts only where nothing is more alike: no copy is among it.
        The sample grows to MOST where others are few.

        Args:
            queries: float32 [n d]; None = the rows themselves and their nearest other row, as near-duplicates are
                looked for.
            seed: of the sample.
            workers: threads; None = one a core.
            progress: called with a label, the number done and the total.
        """
        rng = np.random.default_rng(np.random.SeedSequence([seed, 4]))
        n = len(self.rows if queries is None else queries)
        chosen = rng.choice(n, min(MOST, n), replace=False)
        exact = self._found(queries, chosen[:MEASURED], True, workers, progress)
        like = int((exact >= COPY_LIKE).sum())
        if like < COPIES and len(chosen) > MEASURED:
            more = chosen[MEASURED : min(MOST, -(-MEASURED * COPIES // max(1, like)))]
            exact = np.concatenate([exact, self._found(queries, more, True, workers, progress)])
        counts = exact >= COPY_LIKE
        counts = counts if counts.any() else np.ones(len(exact), bool)
        found = self._found(queries, chosen[: len(exact)][counts], False, workers, progress)
        return stats.proportion(int((found >= exact[counts] - 1e-5).sum()), int(counts.sum()))

    def _found(
        self,
        queries: Vectors | None,
        chosen: NDArray[np.int64],
        exactly: bool,
        workers: int | None,
        progress: Progress | None,
    ) -> NDArray[np.float32]:
        """How alike the nearest row is to each of the chosen queries [m]; of rows themselves, the nearest other row."""
        options: dict[str, Any] = {"workers": workers, "progress": progress}
        if queries is None:
            options |= {"query_labels": chosen, "reference_labels": np.arange(len(self.rows))}
        order = np.argsort(chosen)
        some = np.empty((len(chosen), self.vectors.shape[1]), np.float32)
        some[order] = (self.vectors if queries is None else queries)[chosen[order]]
        if exactly:
            return search(some, self.vectors, 1, **options).score[:, 0]
        return self.nearest(some, 1, probes=NEAR if queries is None else None, **options).score[:, 0]

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
            for start, stop in pieces(self.starts[cell], self.starts[cell + 1], PIECE):
                halves = self.read(start, stop).astype(np.float32)
                for one, other in pieces(0, len(mine), BLOCK // 16):
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
        for start, stop in pieces(0, len(there), PIECE):
            vectors = np.asarray(self.vectors[index.ravel()[there[start:stop]]])
            score.ravel()[there[start:stop]] = np.einsum("ed,ed->e", vectors, queries[asking[start:stop]])
            drop_pages(self.vectors)
        order = np.lexsort((index, -score))[:, :k]
        return Nearest(np.take_along_axis(index, order, axis=1), np.take_along_axis(score, order, axis=1))


def how_many(n: int) -> int:
    """Number of cells for n rows: a power of two, about twice the square root; never more than rows.

    Half as many cells, half of them searched, compare as many rows and miss three times as many near-duplicates.
    """
    n = max(1, n)
    return int(min(n, 2 ** round(math.log2(n) / 2 + 1)))


def by_cell(near: NDArray[Any], count: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Sort rows by the cells they are near to.

    Args:
        near: [n p], cells of each row.
        count: number of cells.

    Returns:
        (rows in the order of the cells, where each cell begins [count+1]).
    """
    order = np.argsort(near, axis=None, kind="stable")
    return order // near.shape[1], np.searchsorted(near.ravel()[order], np.arange(count + 1))


def _forget(folder: Path) -> None:
    import shutil

    shutil.rmtree(folder, ignore_errors=True)


def with_ivf(
    embeddings: Embeddings,
    *,
    cache: str | Path | None = None,
    workers: int | None = None,
    progress: Progress | None = None,
) -> Embeddings:
    """Add an IVF index to embeddings of more than EXACT_ROWS vectors; it is cached by all that decides it.

    Args:
        embeddings: returned as they are where they are few.
        cache: folder of the cache; None = the user's.
        workers: threads; None = one a core.
        progress: called with a label, the number done and the total.
    """
    if embeddings.cells is not None or len(embeddings.vectors) <= EXACT_ROWS:
        return embeddings
    folder = cache_folder(cache) / "cells" / _identity(embeddings)
    cells = IVF.build(embeddings.vectors, folder=folder, workers=workers, progress=progress)
    return dataclasses.replace(embeddings, cells=cells)


def _identity(embeddings: Embeddings) -> str:
    """Hex digest of what decides the vectors: the descriptor, its weights, and the images in their order."""
    digest = hashlib.sha256(f"{SCHEMA}\n{embeddings.descriptor}\n{embeddings.fingerprint}\n".encode())
    for start, stop in pieces(0, len(embeddings.rows), BLOCK):
        digest.update("".join(embeddings.corpus.pick("sha256", embeddings.rows[start:stop]).to_pylist()).encode())
    return digest.hexdigest()[:16]


class SearchReport(TypedDict):
    """How the nearest training images were found."""

    method: Annotated[
        str,
        "`exact`, or `cells`: the nearest cells of the training images alone "
        "([scale](numbers.md#many-training-images))",
    ]
    cells: Annotated[int | None, "cells there are, null where exact"]
    recall: Annotated[EstimateDict | None, "share of a sample whose nearest training image of all is found"]


def search_report(references: Embeddings, queries: Vectors | None = None, **options: Any) -> SearchReport:
    """How vectors were searched, for a summary; with the recall where some are missed.

    Args:
        references: what was searched.
        queries: float32 [n d]; None = the references among themselves.
        options: of `IVF.recall`.
    """
    cells = references.cells
    if cells is None:
        return {"method": "exact", "cells": None, "recall": None}
    return {"method": "cells", "cells": len(cells.centres), "recall": cells.recall(queries, **options).as_dict()}


def nearest(
    queries: Vectors,
    vectors: Vectors,
    k: int,
    cells: IVF | None,
    *,
    probes: int | None = None,
    query_labels: Labels | None = None,
    reference_labels: Labels | None = None,
    workers: int | None = None,
    progress: Progress | None = None,
) -> Nearest:
    """Search vectors exactly as `search`, or by their IVF index where there is one.

    Args:
        queries: float32 [n d].
        vectors: float32 [m d].
        k: rows a query.
        cells: IVF index of the vectors; None = exact search.
        probes: as in `IVF.nearest`.
        query_labels: as in `search`.
        reference_labels: as in `search`.
        workers: threads; None = one a core.
        progress: called with a label, the number done and the total.
    """
    options: dict[str, Any] = {"query_labels": query_labels, "reference_labels": reference_labels}
    options |= {"workers": workers, "progress": progress}
    if cells is None:
        return search(queries, vectors, k, **options)
    return cells.nearest(queries, k, probes=probes, **options)
