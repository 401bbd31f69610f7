"""Embeddings as Parquet parts in a folder or object store, written by many workers.

`part-DIGEST.parquet` has one row an image, the columns of the corpus and `vector`. DIGEST is of the rows, of the files
they lie in and of the descriptor with its weights: what is there is not made again, so a job that was killed goes on,
and shards that are new in the corpus only add parts. `embeddings.json` is written last and names every part; what it
does not name is not read. Where files could not be read, the part is `some-DIGEST-N.parquet`, N of its rows being read:
the next run tries the others again.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import hashlib
import io
import json
import os
import re
import tempfile
import uuid
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from copyscope.data import removals
from copyscope.data.corpus import Corpus
from copyscope.data.parquet_pages import table_in
from copyscope.data.storage import MAX_BYTES, Storage, file_system, join
from copyscope.detection.descriptors import Descriptor
from copyscope.documents import parse_json
from copyscope.engine import Engine, TaskFailure, open_engine
from copyscope.errors import ImageError, InputError, reason
from copyscope.files import as_damaged, replace_file
from copyscope.machine import Progress

from .batches import InMemoryCache, map_batches
from .cache import IN_MEMORY
from .fill import Feature, FingerprintCheck, fill
from .image_status import ImageStatus
from .protocols import protocol

SCHEMA = "copyscope.embeddings-parts/1"
MANIFEST = "embeddings.json"
SIZES = (2048, 64, 1)
"""Images of a part at most, and of what a part is cut into that could not be made."""

MAX_DIM = 1 << 16
"""Numbers of a vector that a manifest may say."""

_SOME = re.compile(r"some-([0-9a-f]{32})-(\d+)\.parquet")
_OURS = re.compile(r"(part|some|lost|removed)-[0-9a-f]{32}(-\d+)?\.parquet")


@dataclasses.dataclass(frozen=True)
class EmbedTask:
    """What all workers have in common.

    Attributes:
        out: folder or URL of the parts.
        descriptor: the part.
        fingerprint: of its weights.
        threads: of a worker.
        made: parts that the last manifest names, with their entries.
        some: by DIGEST, the name of the part of which most could be read.
    """

    out: str
    descriptor: Descriptor
    fingerprint: str
    threads: int
    made: dict[str, dict[str, Any]]
    some: dict[str, str]


def write(
    corpus: Corpus | str | Path,
    out: str | Path,
    descriptor: Descriptor | str = "sscd-288",
    *,
    engine: Engine | str = "processes",
    without: str | Path | None = None,
    progress: Progress | None = None,
) -> tuple[dict[str, Any], removals.Removed | None]:
    """Embed a corpus by an engine, as Parquet parts in a folder or object store.

    Args:
        corpus: a Corpus, or what `Corpus.open` takes.
        out: folder or URL; parts that are there and whole are not made again.
        descriptor: a part, the name of a protocol, or a descriptor spec.
        engine: who describes, a spec or an Engine.
        without: path or URL of a removal list. Its images are left out by the manifest, so that the list may change
            without making parts again; their rows stay in the parts. None = no list.
        progress: called with a label, the number done and the total.

    Returns:
        (manifest, what became of the removal list or None).

    Raises:
        InputError: nothing can be written, or `out` holds other results.
    """
    corpus = corpus if isinstance(corpus, Corpus) else Corpus.open(corpus)
    descriptor = protocol(descriptor).load() if isinstance(descriptor, str) else descriptor
    engine, out = open_engine(engine), os.fspath(out)
    listed = removals.read_list(without) if without is not None else None
    before = _manifest(out) or {}
    if before and before.get("schema") != SCHEMA:
        raise InputError(
            f"{out} holds {before.get('schema')!r}, which is of another form.\nName another folder with -o"
        )
    _writable(out)
    made = {part["name"]: part for part in before.get("parts", ())}
    task = EmbedTask(out, descriptor, descriptor.fingerprint(), engine.threads, made, _some(out))
    rows = np.arange(len(corpus), dtype=np.intp)
    n_done, parts = 0, dict[int, dict[str, Any]]()

    def tell(n: int) -> None:
        nonlocal n_done
        n_done += n
        if progress:
            progress(str(descriptor).partition("(")[0], n_done, len(corpus))

    for piece, found in map_batches(engine, make, task, corpus, rows, SIZES, tell):
        if isinstance(found, TaskFailure):
            # Under a name that is not looked for: the next run tries again.
            table = _table(corpus.take(piece.tolist()), np.zeros((len(piece), descriptor.dim), np.float32), found.why)
            found = _put(out, f"lost-{uuid.uuid4().hex[:32]}.parquet", table)
        parts[int(piece[0])] = found
    manifest: dict[str, Any] = {
        "schema": SCHEMA,
        "descriptor": str(descriptor),
        "fingerprint": task.fingerprint,
        "corpus": corpus.origin,
        "kind": corpus.kind,
        "n": sum(part["rows"] - part["errors"] for part in parts.values()),
        "n_missing": sum(part["errors"] for part in parts.values()),
        "dim": descriptor.dim,
        "parts": [part for _, part in sorted(parts.items())],
        "removed": None,
    }
    removed = None
    if without is not None and listed is not None:
        removed = _leave_out(out, manifest, listed, progress)
        manifest["without"] = {"list": os.fspath(without), **removed.summary()}
    _put_bytes(out, MANIFEST, (json.dumps(manifest, indent=1) + "\n").encode())
    return manifest, removed


def make(task: EmbedTask, corpus: Corpus) -> dict[str, Any]:
    """Make one part in a worker, unless it is there and whole.

    Returns:
        Its entry in the manifest.
    """
    digest, out = _digest(task, corpus), task.out
    name, some = f"part-{digest}.parquet", task.some.get(digest)
    if name in task.made and _size(out, name) == task.made[name]["bytes"]:
        return task.made[name]
    with contextlib.suppress(Exception):  # there is none, of a job that was killed, or not a whole one
        return _known(out, name)
    vectors = np.zeros((len(corpus), task.descriptor.dim), np.float32)
    unread = np.flatnonzero(corpus.table["error"].is_null().to_numpy(zero_copy_only=False))
    filled = corpus
    if some is not None:
        with contextlib.suppress(Exception):
            before = _table_of(out, {"name": some})
            again = before["error"].is_valid().to_numpy(zero_copy_only=False) & before["sha256"].is_null().to_numpy()
            vectors = _matrix(before["vector"], task.descriptor.dim).copy()
            filled = dataclasses.replace(corpus, table=before.drop_columns(["vector"]))
            unread = unread[again[unread]]
            errors = [None if row in unread else error for row, error in enumerate(before["error"].to_pylist())]
            filled = filled.with_column("error", errors)
    filled = _describe(task, filled, unread, vectors)
    n_read = len(corpus) - sum(
        filled.table["error"][row].is_valid and not filled.table["sha256"][row].is_valid for row in unread.tolist()
    )
    if n_read < len(corpus):
        name = f"some-{digest}-{n_read}.parquet"
        if name == some:  # a manifest may name it: what is there stays as it is
            return _known(out, name)
    return _put(out, name, _table(filled, vectors, None))


def _describe(task: EmbedTask, corpus: Corpus, rows: NDArray[np.intp], vectors: NDArray[np.float32]) -> Corpus:
    """Describe `rows` into vectors [n d]; the corpus, with what is known of them now."""
    work = Feature("", "", task.descriptor.dim, np.float32, FingerprintCheck(task.descriptor, task.fingerprint))
    ledger, held = ImageStatus(corpus), InMemoryCache(np.zeros(0, "S32"))
    fill(corpus, rows, [work], [held], ledger, task.threads, None)
    keys, values = held.made(work)
    place = {bytes(digest): at for at, digest in enumerate(keys["sha256"])}
    good = rows[~ledger.failed(rows)]
    at = np.array([place[bytes(ledger.digests[row])] for row in good], np.intp)
    ledger.widths[good], ledger.heights[good] = keys["width"][at], keys["height"][at]
    vectors[good] = values[at]
    return ledger.filled()


def is_sharded(out: str | Path) -> bool:
    """Whether a folder or URL has a manifest of `write`."""
    return (_manifest(os.fspath(out)) or {}).get("schema") == SCHEMA


def load(out: str | Path) -> tuple[Corpus, NDArray[np.intp], NDArray[np.float32], str, str]:
    """Load embeddings that `write` wrote, without the images on its removal list; vectors beyond 32 MiB are mapped.

    Args:
        out: folder or URL.

    Returns:
        The first five fields of `Embeddings`.

    Raises:
        InputError: there is no manifest, or a part is not what it says.
    """
    out = os.fspath(out)
    manifest = _manifest(out)
    if manifest is None or manifest.get("schema") != SCHEMA:
        raise InputError(
            f"No finished embeddings in {out}.\nMake them with: copyscope embed CORPUS -o {out} --engine ..."
        )
    with as_damaged(out):
        gone, tables, n = set(_removed(out, manifest)), [], 0
        vectors = _room(manifest["n"], manifest["dim"])
        for table in _read(out, manifest["parts"]):
            keep = np.array([id not in gone for id in table["id"].to_pylist()], bool)
            good = keep & table["error"].is_null().to_numpy(zero_copy_only=False)
            found = _matrix(table["vector"], manifest["dim"])[good]
            vectors[n : n + len(found)] = found
            n += len(found)
            tables.append(table.drop_columns(["vector"]).filter(pa.array(keep)))
        if n != manifest["n"]:
            raise ValueError(f"{MANIFEST} says {manifest['n']} images, and its parts have {n}")
        table = pa.concat_tables(tables, promote_options="default")
        corpus = Corpus(table, manifest["corpus"], manifest["kind"]).settled()
        rows = np.flatnonzero(table["error"].is_null().to_numpy(zero_copy_only=False))
        return corpus, rows, vectors, manifest["descriptor"], manifest["fingerprint"]


def _leave_out(
    out: str, manifest: dict[str, Any], listed: Iterable[str], progress: Progress | None
) -> removals.Removed:
    """Take what a removal list names out of the manifest, by the columns of the parts: no image is read."""
    tables = [table.drop_columns(["vector"]) for table in _read(out, manifest["parts"])]
    whole = pa.concat_tables(tables, promote_options="default").combine_chunks()
    corpus = Corpus(whole, manifest["corpus"], manifest["kind"])
    left, removed = removals.leave_out(corpus, listed, progress=progress)
    kept = set(left.ids)
    gone = [id for id in corpus.ids if id not in kept]
    failed = whole["error"].to_pylist()
    n_failed = sum(failed[row] is not None for row, id in enumerate(corpus.ids) if id not in kept)
    manifest["n"] -= len(gone) - n_failed
    manifest["n_missing"] -= n_failed
    table = pa.table({"id": pa.array(gone, pa.string())})
    digest = hashlib.sha256("\n".join(gone).encode()).hexdigest()[:32]
    manifest["removed"] = _put(out, f"removed-{digest}.parquet", table)
    return removed


def _removed(out: str, manifest: dict[str, Any]) -> list[str]:
    if not manifest["removed"]:
        return []
    return list(_table_of(out, manifest["removed"])["id"].to_pylist())


def _digest(task: EmbedTask, corpus: Corpus) -> str:
    """Of all that decides a part: rows as they are known before reading, the files they lie in, and who describes."""
    # Without what is null: a column that other shards bring changes nothing here.
    table = corpus.table.drop_columns(["sha256", "width", "height"])
    rows = [{name: value for name, value in row.items() if value is not None} for row in table.to_pylist()]
    storage, _ = file_system(corpus.origin)
    paths = sorted({path for path in corpus.paths() if path})
    calls = [functools.partial(_stamp, storage, path) for path in paths]
    stamps = list(zip(paths, storage.ahead((0, call) for call in calls), strict=True))
    whole = [SCHEMA, str(task.descriptor), task.fingerprint, corpus.kind, rows, stamps]
    return hashlib.sha256(json.dumps(whole, default=str).encode()).hexdigest()[:32]


def _stamp(storage: Storage, path: str) -> list[str]:
    """What changes when a file is replaced: its size, and its checksum or when it was written."""
    try:
        known = storage.with_retries(lambda: storage.fs.info(path))
    except Exception as error:
        return [reason(error)]
    return [str(known.get(name)) for name in ("size", "ETag", "etag", "md5Hash", "mtime", "LastModified", "updated")]


def _table(corpus: Corpus, vectors: NDArray[np.float32], why: str | None) -> pa.Table:
    """Rows of a part, with their vectors [n d]; `why` nothing of them was described, or None."""
    if why is not None:
        corpus = corpus.with_column("error", [f"not described: {why}"] * len(corpus))
    missing = corpus.table["error"].is_valid().combine_chunks()
    values = pa.array(vectors.ravel(), pa.float32())
    column = pa.FixedSizeListArray.from_arrays(values, vectors.shape[1], mask=missing)
    return corpus.table.append_column("vector", column)


def _matrix(column: pa.ChunkedArray, dim: int) -> NDArray[np.float32]:
    """Float32 [n dim] of a column of vectors; anything where it is null. Raises ValueError where it is none."""
    if not pa.types.is_fixed_size_list(column.type) or column.type.list_size != dim:
        raise ValueError(f"vectors of {dim} numbers are asked for, and there are {column.type}")
    flat = column.combine_chunks()
    flat = flat.chunk(0) if isinstance(flat, pa.ChunkedArray) else flat
    values: NDArray[np.float32] = flat.values.slice(flat.offset * dim, len(flat) * dim).fill_null(0).to_numpy()
    return values.reshape(-1, dim)


def _room(n: int, dim: int) -> NDArray[np.float32]:
    if n * dim * 4 <= IN_MEMORY:
        return np.empty((n, dim), np.float32)
    with tempfile.TemporaryFile() as file:
        return np.memmap(file, np.float32, "w+", shape=(n, dim))


def _read(out: str, parts: list[dict[str, Any]]) -> Iterator[pa.Table]:
    """The tables of parts, in their order, each checked against its entry."""
    storage, _ = file_system(out)

    def read(part: dict[str, Any]) -> pa.Table | InputError:
        try:
            return _table_of(out, part)
        except InputError as error:
            return error

    for found in storage.ahead((part["bytes"], functools.partial(read, part)) for part in parts):
        if isinstance(found, InputError):
            raise found
        yield found


def _bytes(out: str, part: dict[str, Any]) -> bytes:
    """The bytes of a part. Raises InputError where it cannot be read or is not what its entry says."""
    storage, root = file_system(out)
    try:
        data = storage.read(join(root, part["name"]))
    except ImageError as error:
        why = str(error)
    else:
        if "sha256" not in part or hashlib.sha256(data).hexdigest() == part["sha256"]:
            return data
        why = "it is not what was written"
    raise _unread(out, part, why)


def _table_of(out: str, part: dict[str, Any]) -> pa.Table:
    """The table of a part. Raises InputError as `_bytes`, and where it is no table or too large."""
    data = _bytes(out, part)
    try:
        return table_in(io.BytesIO(data))
    except (OSError, ValueError, pa.ArrowException) as error:
        raise _unread(out, part, reason(error)) from None


def _unread(out: str, part: dict[str, Any], why: str) -> InputError:
    return InputError(
        f"Cannot read {part['name']} of {out}: {why}.\n"
        "Delete that file and run the command that made it again: it makes this part and no other"
    )


def _some(out: str) -> dict[str, str]:
    storage, root = file_system(out)
    found: dict[str, tuple[int, str]] = {}
    for name in storage.names(root):
        if known := _SOME.fullmatch(name):
            found[known[1]] = max(found.get(known[1], (-1, "")), (int(known[2]), name))
    return {digest: name for digest, (_, name) in found.items()}


def _size(out: str, name: str) -> int | None:
    storage, root = file_system(out)
    try:
        return int(storage.with_retries(lambda: storage.fs.info(join(root, name)))["size"])
    except Exception:
        return None


def _manifest(out: str) -> dict[str, Any] | None:
    storage, root = file_system(out)
    try:
        storage.fs.invalidate_cache()
        if not storage.kind(join(root, MANIFEST)):
            return None
        found = parse_json(storage.read(join(root, MANIFEST)))
        if isinstance(found, dict) and found.get("schema") == SCHEMA and (wrong := _misshapen(found)):
            raise ValueError(f"it says nothing usable of {wrong}")
    except NotADirectoryError:
        return None
    except Exception as error:
        raise InputError(
            f"Cannot read {MANIFEST} in {out}: {reason(error)}.\nCheck the path, and that it may be read"
        ) from None
    return found if isinstance(found, dict) else None


def _misshapen(manifest: dict[str, Any]) -> str:
    """The first key of a manifest whose value cannot be one of ours; "" where there is none."""
    for key in ("descriptor", "fingerprint", "corpus", "kind"):
        if not isinstance(manifest.get(key), str):
            return key
    entries, removed = manifest.get("parts"), manifest.get("removed")
    if not isinstance(entries, list) or not all(map(_is_entry, entries)):
        return "parts"
    if removed is not None and not _is_entry(removed):
        return "removed"
    # Room is made for as many vectors as it says.
    if not _is_count(manifest.get("n"), sum(each["rows"] for each in entries)):
        return "n"
    return "" if _is_count(manifest.get("dim"), MAX_DIM) else "dim"


def _is_entry(part: Any) -> bool:
    """Whether something names a file beside the manifest, and says what is in it."""
    named = isinstance(part, dict) and _OURS.fullmatch(str(part.get("name")))
    return bool(named) and all(_is_count(part.get(key), MAX_BYTES) for key in ("rows", "errors", "bytes"))


def _is_count(value: Any, most: int) -> bool:
    return type(value) is int and 0 <= value <= most


def _writable(out: str) -> None:
    """Raises InputError where nothing can be written: before the work, rather than by each worker."""
    storage, root = file_system(out)
    name = f".copyscope-{uuid.uuid4().hex}"
    _put_bytes(out, name, b"")
    with contextlib.suppress(Exception):
        storage.fs.rm_file(join(root, name))


def _put(out: str, name: str, table: pa.Table) -> dict[str, Any]:
    """Write one file: its entry in the manifest."""
    file = io.BytesIO()
    pq.write_table(table, file)
    data = file.getvalue()
    _put_bytes(out, name, data)
    return _entry(name, data, table["error"] if "error" in table.column_names else pa.nulls(len(table)))


def _known(out: str, name: str) -> dict[str, Any]:
    """The entry of a part that is there."""
    part = {"name": name}
    return _entry(name, _bytes(out, part), _table_of(out, part)["error"])


def _entry(name: str, data: bytes, errors: Any) -> dict[str, Any]:
    n_errors = len(errors) - errors.null_count
    digest = hashlib.sha256(data).hexdigest()
    return {"name": name, "rows": len(errors), "errors": n_errors, "bytes": len(data), "sha256": digest}


def _put_bytes(out: str, name: str, data: bytes) -> None:
    """A reader sees the whole file or none: an object store does it so, a file gets its name when it is written."""
    storage, root = file_system(out)
    path = join(root, name)
    try:
        if not storage.local:
            storage.with_retries(lambda: storage.fs.pipe_file(path, data))
            return
        # Two machines may write the same part at once.
        replace_file(Path(path), lambda temporary: temporary.write_bytes(data))
    except Exception as error:
        raise InputError(
            f"Cannot write {name} to {out}: {reason(error)}.\nGive another folder or URL with -o"
        ) from None
