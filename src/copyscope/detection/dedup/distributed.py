"""Near-duplicate pairs of an IVF index, split over the workers of an engine."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from copyscope.detection.search.ivf import IVF
from copyscope.engine import Engine, TaskFailure
from copyscope.errors import CopyscopeError, InputError

from .near_pairs import PairSearch, begin, find_pairs


@dataclasses.dataclass(frozen=True)
class PairTask:
    """What all tasks have in common; see `ivf_components`.

    Attributes:
        folder: of the IVF index, at the same path on all machines.
        threshold: similarity of a pair.
        k: rows kept nearest to each.
        floor: lowest score of those.
        threads: of a task.
    """

    folder: str
    threshold: float
    k: int
    floor: float
    threads: int


@dataclasses.dataclass(frozen=True)
class PairChunk:
    """Pairs that one range of places gave.

    Attributes:
        edges: rows [e 2] in one component.
        unsure: places [u 2] that half precision cannot tell.
        places: [p], those with something close.
        close: int32 [p k], the places of that; -1 for none.
        score: float32 [p k].
    """

    edges: NDArray[np.int64]
    unsure: NDArray[np.int64]
    places: NDArray[np.int64]
    close: NDArray[np.int32]
    score: NDArray[np.float32]


def by_engine(engine: Engine, search: PairSearch, spans: Sequence[tuple[int, int]]) -> Iterator[int]:
    """Join near-duplicate pairs that the workers of an engine find, range by range.

    Args:
        engine: who searches.
        search: takes what they find.
        spans: ranges of places.

    Yields:
        The end of each range, in their order, when it is joined.

    Raises:
        CopyscopeError: a range is lost: groups without its pairs would look like an answer.
    """
    closest, n = search.closest, len(search.cells.rows)
    task = PairTask(str(search.cells.folder), search.threshold, closest.place.shape[1], closest.floor, engine.threads)
    found: dict[int, PairChunk] = {}
    done = 0
    for number, part in engine.map(stretch, task, spans):
        if isinstance(part, TaskFailure):
            start, stop = spans[number]
            raise CopyscopeError(
                f"Near-duplicates of images {start:,} to {stop - 1:,} of {n:,}, in the order of the cells, "
                f"were not looked for: {part.why}.\n"
                "Run the command again; what was done is kept. Or run it without an engine"
            )
        found[number] = part
        while done in found:
            take(found.pop(done), search)
            yield spans[done][1]
            done += 1


def take(part: PairChunk, search: PairSearch) -> None:
    """Join the pairs that one range gave.

    Args:
        part: of the range.
        search: takes the pairs.
    """
    search.labels.join(part.edges[:, 0], part.edges[:, 1])
    if len(part.unsure):
        search.unsure(part.unsure[:, 0], part.unsure[:, 1])
    there = part.close >= 0
    if there.any():
        places = np.broadcast_to(part.places[:, None], there.shape)
        search.closest.offer(places[there], part.close[there].astype(np.int64), part.score[there])


def stretch(asked: PairTask, span: tuple[int, int]) -> PairChunk:
    """Find the pairs of one range of places, in a worker."""
    folder = Path(asked.folder)
    try:
        cells = IVF.open(folder, np.zeros((0, 0), np.float32))
    except OSError:
        raise InputError(
            f"The cells {folder} are not on the machine of a worker.\n"
            "Let COPYSCOPE_CACHE name a folder that all machines share"
        ) from None
    labels, closest = begin(cells, asked.k, asked.floor)
    before = labels.now
    unsure = [np.zeros((0, 2), np.int64)]
    # A worker has no vectors in full precision: whoever asked decides.
    search = PairSearch(
        cells,
        asked.threshold,
        labels,
        closest,
        lambda one, other: unsure.append(np.stack([one, other], axis=1)),
    )
    find_pairs(search, *span, asked.threads)
    after = labels.settle()
    # Every row of a component and its first, which is a tree that joins them.
    _, first, root = np.unique(after, return_index=True, return_inverse=True)
    moved = np.flatnonzero((first[root] != np.arange(len(after))) & (before != before[first[root]]))
    places = np.flatnonzero((closest.place >= 0).any(axis=1))
    return PairChunk(
        np.stack([moved, first[root][moved]], axis=1),
        np.concatenate(unsure),
        places,
        closest.place[places],
        closest.score[places],
    )
