"""Connected components among very many rows, through an IVF index; resumable."""

from __future__ import annotations

import contextlib
import functools
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from copyscope.detection.search.exact import NOTHING, Nearest
from copyscope.detection.search.ivf import IVF
from copyscope.engine import Engine, open_engine
from copyscope.files import cache_errors, replace_file
from copyscope.machine import Progress, cores, file_lock, memory_budget

from .near_pairs import LOT, PIECE, Closest, Labels, PairSearch, Places, begin, find_pairs


def ivf_components(
    cells: IVF,
    threshold: float,
    *,
    k: int = 0,
    floor: float = 1.0,
    workers: int | None = None,
    engine: Engine | str | None = None,
    progress: Progress | None = None,
) -> tuple[NDArray[np.int64], Nearest]:
    """Connected components by the pairs that an IVF index finds, and the rows nearest to each row; resumable.

    What is done is kept beside the index. Where several rows have the very same vector, only the first of them has
    nearest rows and is one.

    Args:
        cells: the IVF index.
        threshold: similarity of a pair.
        k: nearest rows kept of each row.
        floor: lowest score of those.
        workers: threads; None = one a core.
        engine: who goes through the cells; its machines share the folder of the index. None = this process.
        progress: called with a label, the number done and the total.

    Returns:
        (component of each row [n], nearest rows).
    """
    n, dim = cells.halves.shape
    kept = cells.folder / f"components-{threshold:g}-{k}-{floor:g}.npz"
    engine = open_engine(engine) if engine is not None else None
    with cache_errors(cells.folder), file_lock(kept.with_suffix(".lock")):
        labels, closest, done = _begun(kept, cells, k, floor)
        size = _stretch(n, dim, engine, workers or cores())
        spans = [(start, min(start + size, n)) for start in range(done, n, size)]

        def join_exact(one: Places, other: Places) -> None:
            vectors = (cells.vectors[cells.rows[places]] for places in (one, other))
            near = np.einsum("ed,ed->e", *vectors) >= threshold
            labels.join(cells.rows[one[near]], cells.rows[other[near]])

        search = PairSearch(cells, threshold, labels, closest, join_exact)
        for stop in _done(search, spans, workers, engine):
            arrays = {"label": labels.settle(), "place": closest.place, "score": closest.score, "done": stop}
            replace_file(kept, functools.partial(_save, arrays=arrays))
            if progress:
                progress("duplicates", stop, n)
    index, score = np.full((n, k), -1, np.int64), np.full((n, k), NOTHING, np.float32)
    index[cells.rows] = np.where(closest.place >= 0, cells.rows[closest.place], -1)
    score[cells.rows] = closest.score
    return labels.now, Nearest(index, score)


def _stretch(n: int, dim: int, engine: Engine | None, workers: int) -> int:
    """How many places make a stretch that memory holds; by an engine, each of the tasks of one machine has one."""
    # Of all places: what merging labels takes for a while, and in another process the labels and the cells. Of each
    # thread: a lot of rows, and scores.
    places, a_thread = (24 if engine is None else 65) * n, LOT * dim * 6 + 8 * PIECE**2 * 2
    tasks = 1 if engine is None else max(1, cores() // engine.threads)
    threads = workers if engine is None else tasks * engine.threads
    return max(LOT, memory_budget(tasks * places + threads * a_thread) // tasks // (4 * dim))


def _done(
    search: PairSearch, spans: list[tuple[int, int]], workers: int | None, engine: Engine | None
) -> Iterator[int]:
    """The end of each of the stretches `spans` of places, when its pairs are joined."""
    if engine is not None:
        from .distributed import by_engine

        yield from by_engine(engine, search, spans)
        return
    for start, stop in spans:
        find_pairs(search, start, stop, workers)
        yield stop


def _begun(kept: Path, cells: IVF, k: int, floor: float) -> tuple[Labels, Closest, int]:
    """Labels, nearest rows and number of places done, of an earlier run; nothing of a file that is not whole."""
    if kept.is_file():
        with (
            contextlib.suppress(ValueError, EOFError, KeyError, zipfile.BadZipFile),
            kept.open("rb") as file,
            np.load(file) as found,
        ):
            return Labels(found["label"]), Closest(floor, found["place"], found["score"]), int(found["done"])
    return *begin(cells, k, floor), 0


def _save(path: Path, arrays: dict[str, Any]) -> None:
    with path.open("wb") as file:
        np.savez(file, **arrays)
