"""Files of an index: immutable segments and one manifest that is replaced atomically.

    index.json              the manifest, renamed into place last; it carries a digest of itself and of every file
    NAME.vectors.npy        [n d], float32, float16 or int8, as the manifest's `precision` says
    NAME.scales.npy         float32 [n], of int8 alone: what a row is multiplied by
    NAME.codes.npy          uint8 [n b]
    NAME.thumbnails.npy     uint8 [n s s 3]        NAME.rows.parquet   id, caption, sha256, weight, width, height
    NAME.coarse.*.npy       the same of the coarse vectors [n 48], without thumbnails
    NAME.crops.*.npy        the same of the windows of each image, w rows an image, where crops were asked for
    NAME.removed.parquet    segment, row: what was taken out since
    NAME.looks.npy, ...     what the p-values rest on; NAME.rotation.npy, the directions of the codes

A reader maps the files its manifest names and goes on with them, whatever a writer does meanwhile: it holds them open.
Writers exclude one another by a lock. One that is killed leaves files that no manifest names; the next takes them away.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
import uuid
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from copyscope.data.parquet_pages import ParquetBomb, table_in
from copyscope.documents import MAX_JSON_BYTES, parse_json, read_bytes
from copyscope.errors import InputError
from copyscope.files import sync, unwritable, write_file, write_parquet

SCHEMA, SHORT_SCHEMA = "copyscope.index/2", "copyscope.index/3"
"""Of an index whose vectors are float32, as all were before there was a choice; and of any other, which a Copyscope
that knows of no choice would read wrongly, and so must not read."""
MANIFEST = "index.json"
OURS = re.compile(r"[0-9a-f]{16}\.[a-z.]+\.(npy|parquet)|\.[0-9a-f]{16}\..+\.tmp|\.index\.json\..+\.tmp|\.lock")
"""Names of the files that an index may have beside its manifest; no other is ever taken away."""
COPY_ROWS = 8192

T = TypeVar("T")


class Damaged(InputError):
    """A file of an index is missing, cut short, or not what its checksum says."""


def read_manifest(folder: Path) -> dict[str, Any]:
    """Read the manifest of the index in `folder`.

    Raises:
        InputError: there is no index.
        Damaged: the manifest was changed.
    """
    try:
        text = read_bytes(folder / MANIFEST, MAX_JSON_BYTES)
    except FileNotFoundError:
        raise InputError(f"No index in {folder}.\nMake one with: copyscope index build TRAIN -o {folder}") from None
    except (OSError, ValueError) as error:
        raise damaged(folder, MANIFEST, f"cannot be read: {error}") from None
    try:
        manifest: dict[str, Any] = parse_json(text)
        claimed = manifest.pop("digest")
        schema = manifest["schema"]
    except (ValueError, KeyError, AttributeError, TypeError):
        raise damaged(folder, MANIFEST, "is not a manifest") from None
    if schema not in (SCHEMA, SHORT_SCHEMA):
        raise InputError(
            f"{folder} holds {schema!r}, and this Copyscope reads {SCHEMA!r} and {SHORT_SCHEMA!r}.\n"
            "Build the index again"
        )
    if claimed != digest_of(manifest):
        raise damaged(folder, MANIFEST, "is not what its own checksum says")
    if wrong := _misshapen(manifest):
        raise damaged(folder, MANIFEST, f"says nothing usable of {wrong}")
    return manifest


_NAME = re.compile(r"[0-9a-f]{16}")
_TYPES: dict[str, Any] = {"crops": bool, "dim": int, "n_missing": int, "n_removed": int, "duplicates": (int, float)}
_TYPES |= dict.fromkeys(("copyscope", "created", "protocol", "descriptor", "fingerprint", "verify", "rotation"), str)
_TYPES |= {"segments": list, "files": dict, "calibration": dict, "removed": (str, type(None))}


def _misshapen(manifest: dict[str, Any]) -> str:
    """The first key of a manifest whose value cannot be one of ours: whoever makes one can make its digest too."""
    for key, kind in _TYPES.items():
        if not isinstance(manifest.get(key), kind):
            return key
    if not all(
        isinstance(each, dict) and _is_name(each.get("name")) and type(each.get("n")) is int and each["n"] >= 0
        for each in manifest["segments"]
    ):
        return "segments"
    if not all(
        OURS.fullmatch(name) and isinstance(each, dict) and type(each.get("bytes")) is int and "sha256" in each
        for name, each in manifest["files"].items()
    ):
        return "files"
    kept = manifest["calibration"]
    if not (_is_name(kept.get("looks")) and _is_name(kept.get("scores")) and {"method", "n", "rule"} <= kept.keys()):
        return "calibration"
    removed = manifest["removed"]
    if not _is_name(manifest["rotation"]) or (removed and not _is_name(removed.removesuffix(".removed"))):
        return "rotation" if not _is_name(manifest["rotation"]) else "removed"
    return ""


def _is_name(value: Any) -> bool:
    return isinstance(value, str) and _NAME.fullmatch(value) is not None


def write_manifest(folder: Path, manifest: dict[str, Any]) -> None:
    """Replace the manifest, then remove every file that it does not name."""
    whole = manifest | {"digest": digest_of(manifest)}
    text = json.dumps(whole, indent=1, ensure_ascii=False, allow_nan=False) + "\n"
    write_file(folder / MANIFEST, lambda path: path.write_text(text, encoding="utf-8"))
    remove_stale(folder, manifest["files"])


def changed(
    manifest: dict[str, Any], written: dict[str, Any], dropped: Iterable[str | None] = (), **values: Any
) -> dict[str, Any]:
    """A manifest with other values, without every file of the names `dropped`, and with the entries `written`."""
    gone = tuple(name for name in dropped if name)
    files = {file: entry for file, entry in manifest["files"].items() if not file.startswith(gone)}
    return manifest | values | {"files": files | written}


def remove_stale(folder: Path, named: Iterable[str] = ()) -> None:
    """Remove every file of an index but those `named`: the rest of a writer that was killed."""
    kept = {".lock", *named}
    for path in folder.iterdir():
        if OURS.fullmatch(path.name) and path.name not in kept:
            with contextlib.suppress(OSError):  # Windows keeps what a reader has open
                path.unlink()


def digest_of(manifest: dict[str, Any]) -> str:
    """sha256 (hex) of a manifest without its own digest."""
    return hashlib.sha256(json.dumps(manifest, sort_keys=True).encode()).hexdigest()


def new_name() -> str:
    """New name that no file has."""
    return uuid.uuid4().hex[:16]


def write_array(
    folder: Path, name: str, *arrays: NDArray[Any], keep: Sequence[NDArray[np.bool_]] | None = None
) -> dict[str, Any]:
    """Write arrays one after the other as `NAME.npy`, a few rows at a time in memory.

    Args:
        folder: of the index.
        name: of the file, without suffix.
        arrays: [n ...] each.
        keep: bool [n] for each array, the rows to write; None = all.

    Returns:
        The file's entry in the manifest.
    """
    kept = keep or [np.ones(len(array), bool) for array in arrays]

    def pieces() -> Iterator[tuple[NDArray[Any]]]:
        for array, wanted in zip(arrays, kept, strict=True):
            for start in range(0, len(array), COPY_ROWS):
                piece = slice(start, start + COPY_ROWS)
                yield (array[piece] if wanted[piece].all() else array[piece][wanted[piece]],)

    empty = (np.zeros((0, *arrays[0].shape[1:]), arrays[0].dtype),)
    return write_arrays(folder, [name], int(sum(each.sum() for each in kept)), pieces(), empty)


def write_arrays(
    folder: Path,
    names: Sequence[str],
    n: int,
    pieces: Iterable[tuple[NDArray[Any], ...]],
    like: tuple[NDArray[Any], ...],
) -> dict[str, Any]:
    """Write several arrays of n rows side by side, each as `NAME.npy`; nothing is held in memory.

    Args:
        folder: of the index.
        names: of the files, without suffix.
        n: rows.
        pieces: of each array some rows, as they come.
        like: arrays of no rows, of the same kinds.

    Returns:
        The files' entries in the manifest.
    """
    entries: dict[str, Any] = {}
    with contextlib.ExitStack() as stack:
        files = [stack.enter_context(_growing(folder, f"{name}.npy", entries)) for name in names]
        for file, array in zip(files, like, strict=True):
            descr = np.lib.format.dtype_to_descr(array.dtype)
            header = {"descr": descr, "fortran_order": False, "shape": (n, *array.shape[1:])}
            np.lib.format.write_array_header_1_0(file, header)
        for piece in pieces:
            for file, array, kind in zip(files, piece, like, strict=True):
                file.write(np.ascontiguousarray(array, kind.dtype).data)
    return entries


class _Summed:
    """A file that is written from its beginning to its end, and the sha256 of what went in."""

    def __init__(self, file: Any) -> None:
        self.file, self.sha256, self.bytes = file, hashlib.sha256(), 0

    def write(self, data: Any) -> None:
        self.file.write(data)
        self.sha256.update(data)
        self.bytes += memoryview(data).nbytes


@contextlib.contextmanager
def _growing(folder: Path, name: str, entries: dict[str, Any]) -> Iterator[_Summed]:
    """A file to be filled, put in place and noted in `entries` at the end, or not at all; as `write_file`."""
    temporary = folder / f".{name}.{os.getpid()}.tmp"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        try:
            with temporary.open("wb") as file:
                summed = _Summed(file)
                yield summed
            # What the manifest promises must be on the disk before the manifest is.
            sync(temporary)
            os.replace(temporary, folder / name)
        finally:
            with contextlib.suppress(OSError):
                temporary.unlink()
    except OSError as error:
        raise unwritable(folder, error) from None
    entries[name] = {"bytes": summed.bytes, "sha256": summed.sha256.hexdigest()}


def write_table(folder: Path, name: str, table: pa.Table) -> dict[str, Any]:
    """Write `NAME.parquet`, and return its entry in the manifest."""
    return write_with(folder, f"{name}.parquet", lambda file: write_parquet(table, file))


def write_with(folder: Path, file: str, write: Callable[[Any], object]) -> dict[str, Any]:
    """Write a file by a function that gets it opened, and return its entry in the manifest."""
    write_file(folder / file, lambda path: _filled(path, write))
    return {file: {"bytes": (folder / file).stat().st_size, "sha256": sha256(folder / file)}}


def _filled(path: Path, write: Callable[[Any], object]) -> None:
    with path.open("wb") as file:
        write(file)


def sha256(path: Path) -> str:
    """Hex sha256 of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def check_sizes(folder: Path, manifest: dict[str, Any]) -> None:
    """Check that every file is there in its full length.

    Raises:
        FileNotFoundError: a file is not there.
        Damaged: a file is cut short.
    """
    for file, entry in manifest["files"].items():
        size = (folder / file).stat().st_size
        if size != entry["bytes"]:
            raise damaged(folder, file, f"has {size} bytes instead of {entry['bytes']}")


def check_sums(folder: Path, manifest: dict[str, Any], progress: Callable[[int, int], object]) -> None:
    """Check that every byte of every file is what was written.

    Args:
        folder: of the index.
        manifest: names the files.
        progress: called with the number of bytes done and the total.

    Raises:
        FileNotFoundError: a file is not there.
        Damaged: a file was changed; the message names the first.
    """
    total = sum(entry["bytes"] for entry in manifest["files"].values())
    done = 0
    for file, entry in manifest["files"].items():
        if sha256(folder / file) != entry["sha256"]:
            raise damaged(folder, file, "is not what its checksum says")
        done += entry["bytes"]
        progress(done, total)


def map_array(folder: Path, name: str) -> NDArray[Any]:
    """Memory-map `NAME.npy`.

    Raises:
        FileNotFoundError: there is none.
        Damaged: it is no such file.
    """
    try:
        array: NDArray[Any] = np.load(folder / f"{name}.npy", mmap_mode="r")
    except (ValueError, EOFError) as error:
        raise damaged(folder, f"{name}.npy", f"cannot be read: {error}") from None
    # The plain view of it: indexing a memmap costs more than reading it.
    return array.view(np.ndarray)


def hold(folder: Path, name: str) -> pa.MemoryMappedFile:
    """Keep `NAME.parquet` open from now on, so that a writer cannot take it away.

    Raises:
        FileNotFoundError: there is none.
    """
    try:
        return pa.memory_map(str(folder / f"{name}.parquet"))
    except FileNotFoundError:
        raise
    except OSError as error:
        raise damaged(folder, f"{name}.parquet", f"cannot be read: {error}") from None


def read_table(folder: Path, name: str) -> pa.Table:
    """Read `NAME.parquet`.

    Raises:
        FileNotFoundError: there is none.
        Damaged: it is no such file.
    """
    held = hold(folder, name)
    with as_corruption_error(folder, f"{name}.parquet"):
        return table_in(held)


@contextlib.contextmanager
def as_corruption_error(folder: Path, file: str) -> Iterator[None]:
    """Turn errors of reading a table into one that names the damaged file.

    Raises:
        Damaged: in the block the table could not be read.
    """
    try:
        yield
    except (OSError, ParquetBomb, pa.ArrowException) as error:
        raise damaged(folder, file, f"cannot be read: {error}") from None


def damaged(folder: Path, file: str, what: str) -> Damaged:
    """Error for a damaged file of an index."""
    return Damaged(f"The index {folder} is damaged: {file} {what}.\nRestore it from a copy, or build the index again")


def stamp(folder: Path) -> tuple[int, int, int] | None:
    """Identity of the manifest in place, without reading it; None where there is none."""
    try:
        found = (folder / MANIFEST).stat()
    except OSError:
        return None
    return found.st_mtime_ns, found.st_size, found.st_ino


def with_retries(folder: Path, use: Callable[[dict[str, Any]], T]) -> T:
    """Use the manifest, again where a writer has meanwhile put another in place and taken away files.

    Args:
        folder: of the index.
        use: called with the manifest.

    Raises:
        Damaged: a file that the manifest in place names is missing.
    """
    while True:
        manifest = read_manifest(folder)
        before = digest_of(manifest)
        try:
            return use(manifest)
        except (KeyError, TypeError, IndexError, AttributeError, ValueError) as error:
            raise damaged(folder, MANIFEST, f"does not go with its files: {type(error).__name__}: {error}") from None
        except FileNotFoundError as error:
            if digest_of(read_manifest(folder)) == before:
                raise damaged(folder, Path(str(error.filename)).name, "is missing") from None
