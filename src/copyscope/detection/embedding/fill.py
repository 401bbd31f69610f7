"""Read, decode and describe images on this machine, in batches and threads."""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import DTypeLike, NDArray

from copyscope.data.corpus import Corpus
from copyscope.detection.descriptors import Descriptor, Image
from copyscope.errors import CopyscopeError, ImageError
from copyscope.files import cache_folder, told
from copyscope.imaging import images
from copyscope.machine import Progress

from .cache import KEY, ContentStore
from .each_image import values_of_each
from .image_status import Ledger, Store

BATCH = 8
BATCH_BYTES, AHEAD_BYTES = 32 << 20, 128 << 20
"""Of the files in a batch (32 MiB), and in all batches that wait (128 MiB), or a single file."""
CALL_PIXELS = 16_000_000
"""Images of so many pixels are described before more are decoded."""
CHANGED = "another file than when it was first read"
GROUP = 16 * BATCH


@dataclasses.dataclass(frozen=True)
class Work:
    """One thing to compute of images: `function` maps n images to values [n dim]; `key` names all that decides them.

    layers: `function` is given what `images.decode_layers` gives of each, not the image alone.
    """

    name: str
    key: str
    dim: int
    dtype: DTypeLike
    function: Callable[[list[Any]], NDArray[Any]]
    layers: bool = False

    def store(self, cache: str | Path | None) -> ContentStore:
        """The store that keeps this work, in the user's cache unless `cache` names another folder."""
        root = cache_folder(cache)
        digest = hashlib.sha256(f"{self.name}\n{self.key}\n{self.dim}".encode()).hexdigest()[:16]
        with told(root):
            return ContentStore(root / "content" / f"{self.name}-{digest}", self.dim, self.dtype)


@dataclasses.dataclass(frozen=True)
class Same:
    """`descriptor.describe` on another machine, where its weights, or the library it rests on, may be other ones."""

    descriptor: Descriptor
    fingerprint: str

    def __call__(self, pictures: list[Image]) -> NDArray[np.float32]:
        """As `Descriptor.describe`. Raises CopyscopeError where the fingerprint is another one here."""
        if (here := self.descriptor.fingerprint()) != self.fingerprint:
            raise CopyscopeError(
                f"A worker's {self.descriptor} is {here!r}, and that of the machine which asks {self.fingerprint!r}.\n"
                "Install the same versions and weights on all machines"
            )
        return self.descriptor.describe(pictures)


@dataclasses.dataclass
class _Batch:
    """Images in one call: their keys, and the rows that hold each content (a corpus may hold it more than once)."""

    digests: list[bytes]
    contents: list[bytes]

    @property
    def bytes(self) -> int:
        return sum(map(len, self.contents))


@dataclasses.dataclass(frozen=True)
class _Done:
    keys: NDArray[Any]
    values: NDArray[Any]
    errors: dict[bytes, str]
    n: int


def fill(
    corpus: Corpus,
    rows: NDArray[np.intp],
    work: Work,
    store: Store,
    ledger: Ledger,
    workers: int,
    progress: Progress | None,
) -> None:
    """Read `rows`, compute what the store lacks, commit it group by group."""
    total, seen = len(rows), 0
    wrong: dict[bytes, str] = {}
    scheduled: set[bytes] = set()

    def batches() -> Iterator[_Batch]:
        nonlocal seen
        batch = _Batch([], [])
        for row, content in corpus.stream(rows):
            seen += 1
            if progress:
                progress(work.name, seen - len(scheduled) + finished, total)
            if isinstance(content, ImageError):
                ledger.errors[row] = corpus.discreet(row, str(content))
                continue
            digest = hashlib.sha256(content).digest()
            if (known := bytes(ledger.digests[row])) and known.ljust(32, b"\0") != digest:
                ledger.errors[row] = CHANGED
                continue
            ledger.digests[row], ledger.any_new = digest, True
            if digest in scheduled or store.find(np.array([digest], dtype="S32"))[0] >= 0:
                continue
            scheduled.add(digest)
            batch.digests.append(digest)
            batch.contents.append(content)
            if len(batch.digests) == BATCH or batch.bytes > BATCH_BYTES:
                yield batch
                batch = _Batch([], [])
        if batch.digests:
            yield batch

    pending: list[_Done] = []
    finished = 0
    for done in _parallel(batches(), lambda batch: _describe(batch, work), workers):
        wrong.update(done.errors)
        pending.append(done)
        finished += done.n
        if progress:
            progress(work.name, seen - len(scheduled) + finished, total)
        if sum(len(piece.keys) for piece in pending) >= GROUP:
            _commit(store, pending)
            pending = []
    _commit(store, pending)
    if wrong:
        for row in rows:
            message = wrong.get(bytes(ledger.digests[row]).ljust(32, b"\0"))
            if message is not None:
                ledger.errors[int(row)] = corpus.discreet(int(row), message)


def _commit(store: Store, pending: list[_Done]) -> None:
    if any(len(piece.keys) for piece in pending):
        with told(store.folder):
            store.add(
                np.concatenate([piece.keys for piece in pending]), np.concatenate([piece.values for piece in pending])
            )


def _parallel(batches: Iterable[_Batch], function: Callable[[_Batch], _Done], workers: int) -> Iterator[_Done]:
    """Results in the order of the batches, at most two a worker under way, and their files at most AHEAD_BYTES."""
    with ThreadPoolExecutor(workers) as pool:
        under_way: deque[tuple[int, Future[_Done]]] = deque()
        held = 0
        try:
            for batch in batches:
                under_way.append((size := batch.bytes, pool.submit(function, batch)))
                held += size
                while under_way and (len(under_way) >= 2 * workers or held > AHEAD_BYTES):
                    held -= under_way[0][0]
                    yield under_way.popleft()[1].result()
            while under_way:
                yield under_way.popleft()[1].result()
        finally:
            for _, future in under_way:
                future.cancel()


def _describe(batch: _Batch, work: Work) -> _Done:
    """The values of a batch. What a decoder or the work raises of one image is the error of that image alone."""
    errors: dict[bytes, str] = {}
    keys: list[tuple[bytes, int, int]] = []
    values: list[NDArray[Any]] = [np.zeros((0, work.dim), work.dtype)]
    waiting: list[tuple[bytes, tuple[int, ...], Any]] = []

    def call() -> None:
        for (digest, shape, _), value in zip(
            waiting,
            values_of_each(work.name, work.function, work.dim, work.dtype, [given for *_, given in waiting]),
            strict=True,
        ):
            if isinstance(value, str):
                errors[digest] = value
            else:
                keys.append((digest, shape[1], shape[0]))
                values.append(value)
        waiting.clear()

    with contextlib.ExitStack() as turn:
        for digest, content in zip(batch.digests, batch.contents, strict=True):
            try:
                layers = images.decode_layers(content, turn=turn)
            except ImageError as error:
                errors[digest] = str(error)
                continue
            waiting.append((digest, layers[0].shape, layers if work.layers else layers[0]))
            del layers
            if sum(height * width for _, (height, width, _), _ in waiting) >= CALL_PIXELS:
                call()
        call()
    return _Done(np.array(keys, dtype=KEY), np.concatenate(values), errors, len(batch.digests))
