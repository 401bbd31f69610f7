"""Exact search split over the workers of an engine, answers merged.

The answers are those of `search` to the bit, on processors of one kind: the blocks of its matrix products are the same.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from copyscope.engine import Engine, TaskFailure, open_engine
from copyscope.errors import CopyscopeError
from copyscope.machine import Progress, cores

from . import exact as searching
from .exact import Nearest, query_block, search
from .ivf import IVF, nearest

RANGE = 16
"""A task has no more than so many blocks of references."""

SCORES = 1 << 30
"""Fewer scores than this take less long than sending them out, and are computed here."""


@dataclasses.dataclass(frozen=True)
class SearchTask:
    """What all tasks have in common.

    Attributes:
        queries: float32 [n d].
        labels: int64 [n] of the queries, or None.
        k: references a query.
        threads: of a task.
        block: queries of one matrix product.
    """

    queries: NDArray[np.float32]
    labels: NDArray[np.int64] | None
    k: int
    threads: int
    block: int


@dataclasses.dataclass(frozen=True)
class Range:
    """A range of the references.

    Attributes:
        start: number of the first.
        references: float32 [r d].
        labels: int64 [r], or None.
    """

    start: int
    references: NDArray[np.float32]
    labels: NDArray[np.int64] | None


def search_by(
    engine: Engine,
    queries: NDArray[np.float32],
    references: NDArray[np.float32],
    k: int = 10,
    *,
    query_labels: NDArray[np.int64] | None = None,
    reference_labels: NDArray[np.int64] | None = None,
    workers: int | None = None,
    progress: Progress | None = None,
) -> Nearest:
    """Exact search as `search`, split over the workers of an engine.

    Args:
        engine: who searches; its tasks use the threads that the engine says.
        queries: float32 [n d].
        references: float32 [m d].
        k: references a query.
        query_labels: int64 [n]; a reference of the query's own label does not count. None = all count.
        reference_labels: int64 [m], likewise.
        workers: as in `search`.
        progress: called with a label, the number done and the total.

    Raises:
        CopyscopeError: a range of the references could not be searched: the rest would be an answer too, and a wrong
            one.
    """
    n, m = len(queries), len(references)
    labels: dict[str, Any] = {"query_labels": query_labels, "reference_labels": reference_labels}
    if not m or n * m < SCORES or queries.shape[1] != references.shape[1] or k < 1:
        return search(queries, references, k, **labels, workers=workers, progress=progress)
    block = searching.REFERENCE_BLOCK
    n_blocks = -(-m // block)
    # Some for each worker, so that a slow one does not hold up the rest, and never a part of a block.
    size = block * max(1, min(RANGE, n_blocks // (4 * engine.width())))

    def ranges() -> Iterator[Range]:
        for start in range(0, m, size):
            piece = slice(start, start + size)
            theirs = None if reference_labels is None else np.ascontiguousarray(reference_labels[piece])
            yield Range(start, np.ascontiguousarray(references[piece], np.float32), theirs)

    task = SearchTask(
        np.ascontiguousarray(queries), query_labels, k, engine.threads, query_block(n, workers or cores())
    )
    # By number, for results come in any order, and which of equal scores stays shall not depend on that.
    found: dict[int, Nearest] = {}
    best, merged = Nearest(np.zeros((n, 0), np.int64), np.zeros((n, 0), np.float32)), 0
    for done, (number, part) in enumerate(engine.map(search_range, task, ranges()), 1):
        if isinstance(part, TaskFailure):
            first = number * size
            raise CopyscopeError(
                f"References {first:,} to {min(first + size, m) - 1:,} of {m:,} were not searched: {part.why}.\n"
                "Run the command again; what was described is kept. Or run it without an engine"
            )
        found[number] = part
        while merged in found:
            best, merged = merge(best, found.pop(merged), k), merged + 1
        if progress:
            progress("search", min(done * size, m), m)
    return best


def nearest_by(
    engine: Engine | str | None,
    queries: NDArray[np.float32],
    references: NDArray[np.float32],
    k: int,
    cells: IVF | None,
    **options: Any,
) -> Nearest:
    """Search as `ivf.nearest`, by an engine where there is one and the search is exact.

    Args:
        engine: who searches; None = this process.
        queries: float32 [n d].
        references: float32 [m d].
        k: references a query.
        cells: IVF index of the references; None = exact search.
        options: of `search_by`.
    """
    if engine is None or cells is not None:
        return nearest(queries, references, k, cells, **options)
    return search_by(open_engine(engine), queries, references, k, **options)


def search_range(task: SearchTask, part: Range) -> Nearest:
    """The k best of one range for each query, in a worker; indices count from the first of all references."""
    labels: dict[str, Any] = {"query_labels": task.labels, "reference_labels": part.labels}
    found = search(task.queries, part.references, task.k, **labels, workers=task.threads, block=task.block)
    return Nearest(np.where(found.index >= 0, found.index + part.start, -1), found.score)


def merge(before: Nearest, after: Nearest, k: int) -> Nearest:
    """Merge the k best of two ranges, the second behind the first; of equal scores the first come first."""
    score = np.concatenate([before.score, after.score], axis=1)
    order = np.argsort(-score, axis=1, kind="stable")[:, :k]
    index = np.concatenate([before.index, after.index], axis=1)
    return Nearest(np.take_along_axis(index, order, axis=1), np.take_along_axis(score, order, axis=1))
