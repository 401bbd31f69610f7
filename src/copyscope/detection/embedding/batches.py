"""Split a corpus into batches for an engine; a lost batch is split again, down to one image.

A piece that cannot be done is cut smaller and tried again, down to one image: so an image that kills whoever decodes it
costs its own row alone.
"""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from copyscope.data.corpus import Corpus
from copyscope.engine import Engine, TaskFailure
from copyscope.errors import CopyscopeError
from copyscope.files import cache_errors
from copyscope.machine import Progress

from .cache import KEY, ContentStore
from .fill import Feature, fill
from .image_status import ImageStatus

SIZES = (512, 16, 1)
"""Images of a piece at most, and of what is cut of one that is lost."""

LEAST = 32
"""A small corpus is cut into pieces of fewer images, so that each worker has some, but not fewer than so many."""

BYTES = 256 << 20
"""A piece of a tar holds no more than this (256 MiB), or a single image."""

GIVE_UP = 20
"""So many pieces lost and not one done: it would be the same with all others."""

_NEEDED = ("id", "image", "captions", "weight", "sha256", "width", "height", "error")

S = TypeVar("S")
R = TypeVar("R")


@dataclasses.dataclass
class Described:
    """Values that a worker computed of a batch of n rows.

    Attributes:
        digests: S32 [n], of their files; b"" where a file was not read.
        errors: place in the batch -> why the image could not be read.
        made: of each work, KEY [m] and values [m dim] of the contents that were not known.
    """

    digests: NDArray[np.bytes_]
    errors: dict[int, str]
    made: list[tuple[NDArray[Any], NDArray[Any]]]


@dataclasses.dataclass(frozen=True)
class EmbedTask:
    """What all workers of a run have in common.

    Attributes:
        works: what to compute.
        threads: how many do so in a worker.
        known: of each work, S32 [s], the contents whose values its store has.
    """

    works: list[Feature]
    threads: int
    known: list[NDArray[np.bytes_]]


def split(corpus: Corpus, rows: NDArray[np.intp], size: int) -> Iterator[NDArray[np.intp]]:
    """Split rows into batches: neighbours of one shard or folder.

    A batch also ends where an id says so, by chance, every size / 2 rows or so: images that are added to a folder then
    change the batch they fall into and none beyond.

    Args:
        corpus: whose rows.
        rows: in their order.
        size: rows of a batch at most.
    """
    ids, images = corpus.table["id"], corpus.table["image"]
    piece: list[int] = []
    before, held = "", 0
    for row in rows.tolist():
        place = images[row].as_py() or ""
        container, _, inside = place.rpartition("#" if corpus.kind in ("parquet", "webdataset") else "/")
        weight = int(inside.rpartition("+")[2]) if corpus.kind == "webdataset" and "+" in inside else 0
        if piece and (container != before or len(piece) >= size or held + weight > BYTES):
            yield np.array(piece, np.intp)
            piece, held = [], 0
        piece.append(row)
        before, held = container, held + weight
        chance = int.from_bytes(hashlib.sha256(ids[row].as_py().encode()).digest()[:8], "big")
        if chance % max(1, size // 2) == 0:
            yield np.array(piece, np.intp)
            piece, held = [], 0
    if piece:
        yield np.array(piece, np.intp)


def map_batches(
    engine: Engine,
    function: Callable[[S, Corpus], R],
    shared: S,
    corpus: Corpus,
    rows: NDArray[np.intp],
    sizes: Sequence[int],
    progress: Callable[[int], None],
) -> Iterator[tuple[NDArray[np.intp], R | TaskFailure]]:
    """Run a function on all batches of `rows` by an engine; a batch that fails is split again.

    Args:
        engine: who runs it.
        function: called as `function(shared, corpus of the rows)`.
        shared: what all calls have in common.
        corpus: whose rows.
        rows: in their order.
        sizes: rows of a batch, first try to last; only a batch of the last size that fails is handed on as a
            TaskFailure.
        progress: called with the number of rows done.

    Yields:
        (rows, result or TaskFailure), as they are done.

    Raises:
        CopyscopeError: nothing can be done by this engine, as far as that can be told.
    """
    n_done = 0
    left = [rows]
    for level, size in enumerate(sizes):
        pieces: list[NDArray[np.intp]] = []

        def tasks(size: int = size, left: list[NDArray[np.intp]] = left, pieces: Any = pieces) -> Iterator[Corpus]:
            for run in left:
                for piece in split(corpus, run, size):
                    pieces.append(piece)
                    yield corpus.take(piece.tolist())

        lost: list[NDArray[np.intp]] = []
        for number, found in engine.map(function, shared, tasks()):
            piece = pieces[number]
            last = level == len(sizes) - 1 or len(piece) == 1
            if isinstance(found, TaskFailure):
                lost.append(piece)
                if not n_done and (found.is_deterministic or len(lost) >= GIVE_UP):
                    raise CopyscopeError(
                        f"The engine {engine} can do nothing of what it is given: {found.why}.\n"
                        "What was done before is kept. See what it says with one image, without an engine"
                    )
            if not isinstance(found, TaskFailure) or last:
                n_done += not isinstance(found, TaskFailure)
                progress(len(piece))
                yield piece, found
        if not lost:
            return
        left = sorted((piece for piece in lost if len(piece) > 1), key=lambda piece: int(piece[0]))


def fill_by_engine(
    engine: Engine,
    corpus: Corpus,
    rows: NDArray[np.intp],
    works: Sequence[Feature],
    stores: Sequence[ContentStore],
    ledger: ImageStatus,
    progress: Progress | None,
) -> None:
    """Fill stores as `fill` does, by an engine: one shard of each store a batch.

    An image that is lost has an `error` in `ledger` and nothing in the store, so that the next run tries again.

    Args:
        engine: who computes.
        corpus: whose rows.
        rows: the rows wanted.
        works: what to compute [w].
        stores: where the values go [w].
        ledger: takes digests, sizes and errors.
        progress: called with a label, the number done and the total.
    """
    n_done = 0

    def tell(n: int) -> None:
        nonlocal n_done
        n_done += n
        if progress:
            progress(works[0].name, n_done, len(rows))

    lean = dataclasses.replace(corpus, table=corpus.table.select(_NEEDED))
    shared = EmbedTask(list(works), engine.threads, [store.digests for store in stores])
    size = min(SIZES[0], max(LEAST, len(rows) // (4 * engine.width())))
    for piece, found in map_batches(engine, describe, shared, lean, rows, (size, *SIZES[1:]), tell):
        if isinstance(found, TaskFailure):
            ledger.errors |= {int(row): f"not described: {found.why}" for row in piece}
            continue
        ledger.digests[piece], ledger.any_new = found.digests, True
        ledger.errors |= {int(piece[place]): error for place, error in found.errors.items()}
        for store, (keys, values) in zip(stores, found.made, strict=True):
            if len(keys):
                with cache_errors(store.folder):
                    store.add(keys, values)


def describe(asked: EmbedTask, corpus: Corpus) -> Described:
    """Compute all works of the images of `corpus`, in a worker."""
    ledger, held = ImageStatus(corpus), [InMemoryCache(known) for known in asked.known]
    fill(corpus, np.arange(len(corpus)), asked.works, held, ledger, asked.threads, None)
    made = [each.made(work) for each, work in zip(held, asked.works, strict=True)]
    return Described(ledger.digests, ledger.errors, made)


class InMemoryCache:
    """Store in memory for what a worker computes of its batch.

    Args:
        known: S32 [s], sorted: contents that need not be computed.
    """

    folder = Path()

    def __init__(self, known: NDArray[np.bytes_]) -> None:
        self._known = known
        self.keys: list[NDArray[Any]] = []
        self.values: list[NDArray[Any]] = []

    def find(self, digests: NDArray[np.bytes_]) -> NDArray[np.intp]:
        """0 for each digest [n] that is known, else -1."""
        if not len(self._known):
            return np.full(len(digests), -1, np.intp)
        place = np.minimum(np.searchsorted(self._known, digests), len(self._known) - 1)
        return np.where(self._known[place] == digests, 0, -1).astype(np.intp)

    def add(self, keys: NDArray[Any], values: NDArray[Any]) -> None:
        """Keep these until the piece is done."""
        self.keys.append(keys)
        self.values.append(values)

    def made(self, work: Feature) -> tuple[NDArray[Any], NDArray[Any]]:
        """Keys KEY [m] and values [m dim] of all that was added."""
        keys = np.concatenate([np.zeros(0, KEY), *self.keys])
        return keys, np.concatenate([np.zeros((0, work.dim), work.dtype), *self.values])
