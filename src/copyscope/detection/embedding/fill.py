"""Read, decode and describe images on this machine, in batches and threads."""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import DTypeLike, NDArray

from copyscope.data.corpus import Corpus
from copyscope.detection.descriptors import Descriptor, Image
from copyscope.detection.descriptors._device import BATCH as DEVICE_BATCH
from copyscope.detection.descriptors._device import is_gpu
from copyscope.errors import CopyscopeError, ImageError
from copyscope.files import cache_errors, cache_folder
from copyscope.imaging import images
from copyscope.machine import Progress

from .cache import KEY, ContentStore
from .each_image import values_of_each
from .image_status import ImageStatus, Store

BATCH = 8
BATCH_BYTES, AHEAD_BYTES = 32 << 20, 128 << 20
"""Of the files in a batch (32 MiB), and in all batches that wait (128 MiB), or a single file."""
CALL_PIXELS = 8_000_000
"""Images of so many pixels are described before more are decoded."""
DECODING_AHEAD = 2
"""Threads beside one a core where a GPU describes: one waits for it and one is next, while every core decodes."""
CHANGED = "another file than when it was first read"
GROUP = 16 * BATCH


@dataclasses.dataclass(frozen=True)
class Feature:
    """Something to compute of every image, with its name in the cache.

    Args:
        name: for people, as in progress and errors.
        key: names all that decides the values; the cache's folder.
        dim: values an image.
        dtype: of the values.
        function: images [n] -> values [n dim].
        layers: `function` gets the pair that `images.decode_layers` gives of each image, not the image alone.
        folder: the cache that keeps it, whatever cache is asked for; None = the one asked for.
        device: where `function` runs, as `Descriptor.device`.
    """

    name: str
    key: str
    dim: int
    dtype: DTypeLike
    function: Callable[[list[Any]], NDArray[Any]]
    layers: bool = False
    folder: Path | None = None
    device: str = "cpu"

    def store(self, cache: str | Path | None) -> ContentStore:
        """Store that keeps this feature.

        Args:
            cache: folder of the cache; None = the user's.
        """
        root = self.folder or cache_folder(cache)
        digest = hashlib.sha256(f"{self.name}\n{self.key}\n{self.dim}".encode()).hexdigest()[:16]
        with cache_errors(root):
            return ContentStore(root / "content" / f"{self.name}-{digest}", self.dim, self.dtype)


@dataclasses.dataclass(frozen=True)
class FingerprintCheck:
    """`descriptor.describe` on another machine, where weights or a library may be other ones.

    Attributes:
        descriptor: the part.
        fingerprint: of the machine that asks.
    """

    descriptor: Descriptor
    fingerprint: str

    def __call__(self, pictures: list[Image]) -> NDArray[np.float32]:
        """As `Descriptor.describe`.

        Raises:
            CopyscopeError: the fingerprint is another one here.
        """
        if (here := self.descriptor.fingerprint()) != self.fingerprint:
            raise CopyscopeError(
                f"A worker's {self.descriptor} is {here!r}, and that of the machine which asks {self.fingerprint!r}.\n"
                "Install the same versions and weights on all machines, and give all the same COPYSCOPE_DEVICE"
            )
        return self.descriptor.describe(pictures)


@dataclasses.dataclass
class _Batch:
    """Images that are decoded together: their keys, their files, and which of the works each lacks, by number."""

    digests: list[bytes]
    contents: list[bytes]
    lacking: list[list[int]]

    @property
    def bytes(self) -> int:
        return sum(map(len, self.contents))


@dataclasses.dataclass(frozen=True)
class _Done:
    """What one work made of a batch: keys and values of its store, and errors by digest."""

    keys: NDArray[Any]
    values: NDArray[Any]
    errors: dict[bytes, str]


def fill(
    corpus: Corpus,
    rows: NDArray[np.intp],
    works: Sequence[Feature],
    stores: Sequence[Store],
    ledger: ImageStatus,
    workers: int,
    progress: Progress | None,
) -> None:
    """Read and decode each image once, and compute of it what each store lacks; commit group by group.

    Errors of reading, of decoding and of the first work go into the ledger. Another work that fails on an image leaves
    it out of its store.

    Args:
        corpus: whose rows.
        rows: the rows wanted.
        works: what to compute [w].
        stores: where the values go [w].
        ledger: takes digests, sizes and errors.
        workers: threads.
        progress: called with a label, the number done and the total.
    """
    total, seen = len(rows), 0
    gpu = any(is_gpu(work.device) for work in works)
    at_once, workers = (DEVICE_BATCH, workers + DECODING_AHEAD) if gpu else (BATCH, workers)
    wrong: dict[bytes, str] = {}
    scheduled: set[bytes] = set()

    def batches() -> Iterator[_Batch]:
        nonlocal seen
        batch = _Batch([], [], [])
        for row, content in corpus.stream(rows):
            seen += 1
            if progress:
                progress(works[0].name, seen - len(scheduled) + finished, total)
            if isinstance(content, ImageError):
                ledger.errors[row] = corpus.discreet(row, str(content))
                continue
            digest = hashlib.sha256(content).digest()
            if (known := bytes(ledger.digests[row])) and known.ljust(32, b"\0") != digest:
                ledger.errors[row] = CHANGED
                continue
            ledger.digests[row], ledger.any_new = digest, True
            key = np.array([digest], dtype="S32")
            lacking = [] if digest in scheduled else [at for at, store in enumerate(stores) if store.find(key)[0] < 0]
            if not lacking:
                continue
            scheduled.add(digest)
            batch.digests.append(digest)
            batch.contents.append(content)
            batch.lacking.append(lacking)
            if len(batch.digests) == at_once or batch.bytes > BATCH_BYTES:
                yield batch
                batch = _Batch([], [], [])
        if batch.digests:
            yield batch

    pending: list[list[_Done]] = [[] for _ in works]
    finished = 0
    for n, found in _parallel(batches(), lambda batch: _describe(batch, works), workers):
        wrong.update(found[0].errors)
        finished += n
        if progress:
            progress(works[0].name, seen - len(scheduled) + finished, total)
        for at, done in enumerate(found):
            pending[at].append(done)
            if sum(len(piece.keys) for piece in pending[at]) >= GROUP:
                _commit(stores[at], pending[at])
                pending[at] = []
    for store, left in zip(stores, pending, strict=True):
        _commit(store, left)
    if wrong:
        for row in rows:
            message = wrong.get(bytes(ledger.digests[row]).ljust(32, b"\0"))
            if message is not None:
                ledger.errors[int(row)] = corpus.discreet(int(row), message)


def _commit(store: Store, pending: list[_Done]) -> None:
    if any(len(piece.keys) for piece in pending):
        with cache_errors(store.folder):
            store.add(
                np.concatenate([piece.keys for piece in pending]), np.concatenate([piece.values for piece in pending])
            )


def _parallel(
    batches: Iterable[_Batch], function: Callable[[_Batch], list[_Done]], workers: int
) -> Iterator[tuple[int, list[_Done]]]:
    """(images, results) in the order of the batches.

    At most two batches a worker are under way, and their files hold at most AHEAD_BYTES.
    """
    with ThreadPoolExecutor(workers) as pool:
        under_way: deque[tuple[_Batch, int, Future[list[_Done]]]] = deque()
        held = 0
        try:
            for batch in batches:
                under_way.append((batch, size := batch.bytes, pool.submit(function, batch)))
                held += size
                while under_way and (len(under_way) >= 2 * workers or held > AHEAD_BYTES):
                    first, bytes_of_first, future = under_way.popleft()
                    held -= bytes_of_first
                    yield len(first.digests), future.result()
            while under_way:
                first, _, future = under_way.popleft()
                yield len(first.digests), future.result()
        finally:
            for *_, future in under_way:
                future.cancel()


def _describe(batch: _Batch, works: Sequence[Feature]) -> list[_Done]:
    """What each work makes of a batch. What is raised of one image is the error of that image alone."""
    errors: list[dict[bytes, str]] = [{} for _ in works]
    keys: list[list[tuple[bytes, int, int]]] = [[] for _ in works]
    values: list[list[NDArray[Any]]] = [[np.zeros((0, work.dim), work.dtype)] for work in works]
    waiting: list[tuple[bytes, list[int], list[Any]]] = []

    def call() -> None:
        with images.shared(layers[0] for *_, layers in waiting):
            compute()
        waiting.clear()

    def compute() -> None:
        for at, work in enumerate(works):
            mine = [(digest, layers) for digest, lacking, layers in waiting if at in lacking]
            given = [tuple(layers) if work.layers else layers[0] for _, layers in mine]
            found = values_of_each(work.name, work.function, work.dim, work.dtype, given)
            for (digest, layers), value in zip(mine, found, strict=True):
                if isinstance(value, str):
                    errors[at][digest] = value
                else:
                    keys[at].append((digest, layers[0].shape[1], layers[0].shape[0]))
                    values[at].append(value)

    with contextlib.ExitStack() as turn:
        for digest, content, lacking in zip(batch.digests, batch.contents, batch.lacking, strict=True):
            try:
                layers = images.decode_layers(content, turn=turn)
            except ImageError as error:
                for at in lacking:
                    errors[at][digest] = str(error)
                # Whatever was asked, an image that cannot be decoded is an error of its row.
                errors[0][digest] = str(error)
                continue
            needs_layers = any(works[at].layers for at in lacking)
            waiting.append((digest, lacking, list(layers if needs_layers else layers[:1])))
            del layers
            if sum(layers[0].shape[0] * layers[0].shape[1] for *_, layers in waiting) >= CALL_PIXELS:
                call()
        call()
    return [_Done(np.array(each, dtype=KEY), np.concatenate(values[at]), errors[at]) for at, each in enumerate(keys)]
