"""Corpus x Descriptor -> Embeddings, cached by content, resumable at any moment."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import hashlib
import json
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
from numpy.typing import DTypeLike, NDArray

from copyscope.data.assets import cache_folder
from copyscope.data.corpus import Corpus
from copyscope.data.parquet_pages import read_table
from copyscope.detection.descriptors import Descriptor, Image
from copyscope.documents import read_json
from copyscope.engine import Engine, open_engine
from copyscope.errors import CopyscopeError, ImageError, InputError
from copyscope.files import file_sha256, save_array, told, whole, write_file, write_parquet
from copyscope.imaging import images
from copyscope.machine import Progress, cores

from .cache import KEY, ContentStore, Rotten
from .each_image import values_of_each
from .image_status import Ledger, Store
from .protocols import protocol

if TYPE_CHECKING:
    from copyscope.detection.search.ivf import Cells

BATCH = 8
BATCH_BYTES, AHEAD_BYTES = 32 << 20, 128 << 20
"""Of the files in a batch (32 MiB), and in all batches that wait (128 MiB), or a single file."""
CALL_PIXELS = 16_000_000
"""Images of so many pixels are described before more are decoded."""
CHANGED = "another file than when it was first read"
GROUP = 16 * BATCH
LOT = 1_000_000


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


@dataclasses.dataclass(frozen=True)
class Embeddings:
    """Vectors of the readable rows of a corpus.

    corpus: the corpus, its columns sha256, width, height and error now filled.
    rows: corpus row of each vector [n]. vectors: float32 [n d], unit length, perhaps memory-mapped.
    descriptor: the spec. fingerprint: what else decided the vectors (sha256 of the weights). cells: the vectors sorted
    into cells, where they are too many to be searched exactly (`cells.in_cells`).
    """

    corpus: Corpus
    rows: NDArray[np.intp]
    vectors: NDArray[np.float32]
    descriptor: str
    fingerprint: str
    cells: Cells | None = None

    @property
    def ids(self) -> list[str]:
        """Id of each vector [n]."""
        return list(self.corpus.table["id"].take(pa.array(self.rows)).to_pylist())

    @property
    def n_missing(self) -> int:
        """How many rows of the corpus could not be read."""
        return len(self.corpus) - len(self.rows)

    def save(self, folder: str | Path) -> None:
        """Write `vectors.npy`, `embeddings.parquet` (one row a corpus row) and, last, `embeddings.json`."""
        folder = Path(folder)
        write_file(folder / "vectors.npy", lambda path: save_array(path, self.vectors))
        write_file(folder / "embeddings.parquet", lambda path: write_parquet(self.corpus.table, path))
        summary = {
            "schema": "copyscope.embeddings/1",
            "descriptor": self.descriptor,
            "fingerprint": self.fingerprint,
            "corpus": self.corpus.origin,
            "kind": self.corpus.kind,
            "n": len(self.rows),
            "n_missing": self.n_missing,
            "dim": int(self.vectors.shape[1]),
            "sha256": file_sha256(folder / "vectors.npy"),
        }
        write_file(folder / "embeddings.json", lambda path: path.write_text(json.dumps(summary, indent=1) + "\n"))

    @classmethod
    def load(cls, folder: str | Path) -> Embeddings:
        """What `save` wrote, the vectors memory-mapped, or `sharded.write`, at a URL too.

        Raises InputError when it is not complete.
        """
        from . import parquet

        if "://" in str(folder) or parquet.is_sharded(folder):
            return parquet.load(folder)
        folder = Path(folder)
        if not (folder / "embeddings.json").is_file():
            raise InputError(f"No finished embeddings in {folder}.\nMake them with: copyscope embed CORPUS -o {folder}")
        summary, table = read_json(folder / "embeddings.json"), read_table(folder / "embeddings.parquet")
        with whole(folder):
            corpus = Corpus(table, str(summary["corpus"]), str(summary["kind"])).settled()
            rows = np.flatnonzero(corpus.table["error"].is_null().to_numpy(zero_copy_only=False))
            # Those of version 0.1 have no checksum.
            if summary.get("sha256", digest := file_sha256(folder / "vectors.npy")) != digest:
                raise ValueError("vectors.npy is not what its checksum says")
            vectors = np.load(folder / "vectors.npy", mmap_mode="r")
            if vectors.shape != (len(rows), summary["dim"]):
                raise ValueError(f"vectors.npy has the shape {vectors.shape} instead of {(len(rows), summary['dim'])}")
            return cls(corpus, rows, vectors, summary["descriptor"], summary["fingerprint"])


def embed(
    corpus: Corpus | str | Path,
    descriptor: Descriptor | str = "sscd-288",
    *,
    cache: str | Path | None = None,
    workers: int | None = None,
    engine: Engine | str | None = None,
    progress: Progress | None = None,
) -> Embeddings:
    """Describe every readable image of `corpus`; what cannot be read gets an `error` and no vector.

    corpus: a Corpus, or what `Corpus.open` takes. descriptor: a part, or the name of a protocol or a descriptor spec.
    cache: folder of the content store (None = the user's cache). workers: threads that decode and describe (None = one
    a core). A run killed at any moment and started again repeats at most the group of 128 images it was in and the
    batches its workers held, and gives the same bytes.
    """
    corpus = corpus if isinstance(corpus, Corpus) else Corpus.open(corpus)
    descriptor = protocol(descriptor).load() if isinstance(descriptor, str) else descriptor
    fingerprint = descriptor.fingerprint()
    work = Work(
        name=str(descriptor).partition("(")[0].replace(":", "."),
        key=f"{descriptor}\n{fingerprint}",
        dim=descriptor.dim,
        dtype=np.float32,
        function=descriptor.describe if engine is None else Same(descriptor, fingerprint),
    )
    filled, rows, vectors = compute(corpus, work, cache=cache, workers=workers, engine=engine, progress=progress)
    return Embeddings(filled, rows, vectors, str(descriptor), fingerprint)


def read_again(described: Embeddings, work: Work, **options: Any) -> Embeddings:
    """The embeddings without images that cannot be read again for `work`: these have an error, as if they could never
    be read. What the work makes of the others is kept by content, so that no step reads them for it once more.

    options: `cache`, `workers` and `progress` of `compute`.
    """
    filled, rows, _ = compute(described.corpus, work, rows=described.rows, **options)
    if len(rows) == len(described.rows):
        return described
    vectors = described.vectors[np.isin(described.rows, rows)]
    return dataclasses.replace(described, corpus=filled, rows=rows, vectors=vectors, cells=None)


def compute(
    corpus: Corpus,
    work: Work,
    *,
    rows: NDArray[np.intp] | None = None,
    cache: str | Path | None = None,
    workers: int | None = None,
    engine: Engine | str | None = None,
    progress: Progress | None = None,
) -> tuple[Corpus, NDArray[np.intp], NDArray[Any]]:
    """`work` on the given rows (None = all): the corpus with its columns filled, the readable rows [n], values [n dim].

    Files are read once in storage order; those whose content the store knows are not decoded, and those whose sha256
    the corpus already carries are not even read. With an engine, the work must be what can be pickled.
    """
    store = work.store(cache)
    chosen = np.arange(len(corpus)) if rows is None else np.asarray(rows, dtype=np.intp)
    ledger = Ledger(corpus)
    missing = chosen[(ledger.places(store, chosen) < 0) & ~ledger.failed(chosen)]
    while True:
        if len(missing):
            _make(corpus, missing, work, store, ledger, workers, engine, progress)
        good = chosen[~ledger.failed(chosen)]
        store.refresh()
        found = ledger.places(store, good)
        if (found < 0).any():
            raise CopyscopeError(f"The cache {store.folder} was cleared while it was in use.\nRun the command again")
        missing = good[:0]
        try:
            values = store.values(found)
            break
        except FileNotFoundError:  # another process compacted the store just now: look again
            continue
        except Rotten as rotten:
            with told(store.folder):
                store.mend(rotten.rows)
            missing = good[ledger.places(store, good) < 0]
    ledger.widths[good], ledger.heights[good] = store.sizes(found)
    return ledger.filled(), good, values


def _make(
    corpus: Corpus,
    rows: NDArray[np.intp],
    work: Work,
    store: ContentStore,
    ledger: Ledger,
    workers: int | None,
    engine: Engine | str | None,
    progress: Progress | None,
) -> None:
    """Read `rows` and put into the store what it lacks."""
    if engine is None:
        for start in range(0, len(rows), LOT):
            onward = functools.partial(_onward, progress, start, len(rows)) if progress else None
            fill(corpus, rows[start : start + LOT], work, store, ledger, workers or cores(), onward)
            # What the store has need not be remembered.
            store.refresh()
    else:
        from .batches import fill_by  # which is made of what is here

        fill_by(open_engine(engine), corpus, rows, work, store, ledger, progress)
    with told(store.folder):
        store.compact()


def _onward(progress: Progress, before: int, total: int, label: str, done: int, _: int) -> None:
    """Progress of one lot of rows, as that of all."""
    progress(label, before + done, total)


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
