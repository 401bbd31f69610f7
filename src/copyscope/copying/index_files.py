"""An index on disk: files that never change, and one manifest, replaced whole, that says which of them are the index.

    index.json              the manifest, renamed into place last; it carries a digest of itself and of every file
    NAME.vectors.npy        float32 [n d]          NAME.codes.npy      uint8 [n b]
    NAME.thumbnails.npy     uint8 [n s s 3]        NAME.rows.parquet   id, caption, sha256, weight
    NAME.coarse.*.npy       the same of the coarse vectors, float32 [n 48], without thumbnails
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
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from copyscope.errors import InputError

from .embed import write_file

SCHEMA = "copyscope.index/2"
MANIFEST = "index.json"
OURS = re.compile(r"[0-9a-f]{16}\.[a-z.]+\.(npy|parquet)|\.[0-9a-f]{16}\..+\.tmp|\.index\.json\..+\.tmp|\.lock")
"""Names of the files that an index may have beside its manifest; no other is ever taken away."""
COPY_ROWS = 8192

T = TypeVar("T")


class Damaged(InputError):
    """A file of an index is missing, cut short, or not what its checksum says."""


def read_manifest(folder: Path) -> dict[str, Any]:
    """The manifest of the index in `folder`. Raises InputError where there is none, Damaged where it was changed."""
    try:
        text = (folder / MANIFEST).read_text(encoding="utf-8")
    except FileNotFoundError:
        raise InputError(f"No index in {folder}.\nMake one with: copyscope index TRAIN -o {folder}") from None
    except (OSError, ValueError) as error:
        raise damaged(folder, MANIFEST, f"cannot be read: {error}") from None
    try:
        manifest: dict[str, Any] = json.loads(text)
        claimed = manifest.pop("digest")
        schema = manifest["schema"]
    except (ValueError, KeyError, AttributeError, TypeError):
        raise damaged(folder, MANIFEST, "is not a manifest") from None
    if schema != SCHEMA:
        raise InputError(f"{folder} holds {schema!r}, and this Copyscope reads {SCHEMA!r}.\nBuild the index again")
    if claimed != digest_of(manifest):
        raise damaged(folder, MANIFEST, "is not what its own checksum says")
    return manifest


def write_manifest(folder: Path, manifest: dict[str, Any]) -> None:
    """Put the manifest in place of the one before, then take away every file that it does not name."""
    whole = manifest | {"digest": digest_of(manifest)}
    text = json.dumps(whole, indent=1, ensure_ascii=False, allow_nan=False) + "\n"
    write_file(folder / MANIFEST, lambda path: _synced(path, lambda file: file.write(text.encode())))
    for path in folder.iterdir():
        if OURS.fullmatch(path.name) and path.name not in {".lock", *manifest["files"]}:
            with contextlib.suppress(OSError):  # Windows keeps what a reader has open
                path.unlink()


def digest_of(manifest: dict[str, Any]) -> str:
    """sha256 (hex) of a manifest without its own digest."""
    return hashlib.sha256(json.dumps(manifest, sort_keys=True).encode()).hexdigest()


def new_name() -> str:
    """A name that no file has."""
    return uuid.uuid4().hex[:16]


def write_array(
    folder: Path, name: str, *arrays: NDArray[Any], keep: Sequence[NDArray[np.bool_]] | None = None
) -> dict[str, Any]:
    """Write arrays [n ...], or the rows of each that `keep` says, one after the other as `NAME.npy`; its entry in the
    manifest. A few rows at a time are in memory."""
    kept = keep or [np.ones(len(array), bool) for array in arrays]
    shape = (int(sum(each.sum() for each in kept)), *arrays[0].shape[1:])

    def write(file: Any) -> None:
        descr = np.lib.format.dtype_to_descr(arrays[0].dtype)
        np.lib.format.write_array_header_1_0(file, {"descr": descr, "fortran_order": False, "shape": shape})
        for array, wanted in zip(arrays, kept, strict=True):
            for start in range(0, len(array), COPY_ROWS):
                piece = slice(start, start + COPY_ROWS)
                file.write(np.ascontiguousarray(array[piece][wanted[piece]]).data)

    return _written(folder, f"{name}.npy", write)


def write_table(folder: Path, name: str, table: pa.Table) -> dict[str, Any]:
    """Write `NAME.parquet`; its entry in the manifest."""
    return _written(folder, f"{name}.parquet", lambda file: pq.write_table(table, file))


def _written(folder: Path, file: str, write: Callable[[Any], object]) -> dict[str, Any]:
    write_file(folder / file, lambda path: _synced(path, write))
    return {file: {"bytes": (folder / file).stat().st_size, "sha256": sha256(folder / file)}}


def _synced(path: Path, write: Callable[[Any], object]) -> None:
    # What the manifest promises must be on the disk before the manifest is.
    with path.open("wb") as file:
        write(file)
        file.flush()
        os.fsync(file.fileno())


def sha256(path: Path) -> str:
    """Hex sha256 of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def check_sizes(folder: Path, manifest: dict[str, Any]) -> None:
    """That every file is there in its full length. Raises FileNotFoundError, or Damaged where it is cut short."""
    for file, entry in manifest["files"].items():
        size = (folder / file).stat().st_size
        if size != entry["bytes"]:
            raise damaged(folder, file, f"has {size} bytes instead of {entry['bytes']}")


def check_sums(folder: Path, manifest: dict[str, Any], progress: Callable[[int, int], object]) -> None:
    """That every byte of every file is what was written. Raises FileNotFoundError or Damaged for the first."""
    total = sum(entry["bytes"] for entry in manifest["files"].values())
    done = 0
    for file, entry in manifest["files"].items():
        if sha256(folder / file) != entry["sha256"]:
            raise damaged(folder, file, "is not what its checksum says")
        done += entry["bytes"]
        progress(done, total)


def map_array(folder: Path, name: str) -> NDArray[Any]:
    """`NAME.npy`, mapped. Raises FileNotFoundError, or Damaged where it is no such file."""
    try:
        array: NDArray[Any] = np.load(folder / f"{name}.npy", mmap_mode="r")
    except (ValueError, EOFError) as error:
        raise damaged(folder, f"{name}.npy", f"cannot be read: {error}") from None
    # The plain view of it: indexing a memmap costs more than reading it.
    return array.view(np.ndarray)


def map_table(folder: Path, name: str) -> Callable[[], pa.Table]:
    """A function that reads `NAME.parquet`, which is open from now on, so that a writer cannot take it away."""
    try:
        held = pa.memory_map(str(folder / f"{name}.parquet"))
    except OSError as error:
        if isinstance(error, FileNotFoundError):
            raise
        raise damaged(folder, f"{name}.parquet", f"cannot be read: {error}") from None

    def read() -> pa.Table:
        try:
            return pq.read_table(held)
        except (OSError, pa.ArrowException) as error:
            raise damaged(folder, f"{name}.parquet", f"cannot be read: {error}") from None

    return read


def damaged(folder: Path, file: str, what: str) -> Damaged:
    """What to say of a damaged file."""
    return Damaged(f"The index {folder} is damaged: {file} {what}.\nRestore it from a copy, or build the index again")


def stamp(folder: Path) -> tuple[int, int, int] | None:
    """What tells one manifest from the next without reading it; None where there is none."""
    try:
        found = (folder / MANIFEST).stat()
    except OSError:
        return None
    return found.st_mtime_ns, found.st_size, found.st_ino


def steadily(folder: Path, use: Callable[[dict[str, Any]], T]) -> T:
    """What `use` makes of the manifest, again where a writer has taken away what it named, and put another in place.

    Raises Damaged where a file that the manifest names is missing.
    """
    while True:
        manifest = read_manifest(folder)
        before = digest_of(manifest)
        try:
            return use(manifest)
        except FileNotFoundError as error:
            if digest_of(read_manifest(folder)) == before:
                raise damaged(folder, Path(str(error.filename)).name, "is missing") from None
