"""Atomic, synced file writes; the cache folder; messages where a file cannot be written."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
import re
import stat
import sys
import uuid
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

from .errors import CopyscopeError, InputError

if TYPE_CHECKING:
    import pyarrow as pa
    from numpy.typing import NDArray

AGAIN = "Restore it from a copy, or run the command that made it again"

NOT_REGULAR = "not a regular file"
"""What is said of a pipe, a socket or a device: opening one may wait for ever, or do something."""


def open_regular(path: str | os.PathLike[str]) -> BinaryIO:
    """A local file opened for reading bytes. Raises OSError where it is a pipe, a socket or a device."""
    if not stat.S_ISREG(os.stat(path).st_mode):
        raise OSError(errno.EINVAL, NOT_REGULAR, path)
    # What is put in its place now is not waited for either.
    file = open(path, "rb", opener=_at_once)  # noqa: SIM115
    if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
        file.close()
        raise OSError(errno.EINVAL, NOT_REGULAR, path)
    return file


def _at_once(path: str, flags: int) -> int:
    return os.open(path, flags | getattr(os, "O_NONBLOCK", 0))


def write_file(path: Path, write: Callable[[Path], object]) -> None:
    """Write under a temporary name, then rename: readers see the old file or the whole new one, after a power cut too.

    Makes the folder. Raises InputError where nothing can be written there.
    """
    try:
        replace_file(path, write)
    except OSError as error:
        raise unwritable(path.parent, error) from None


def replace_file(path: Path, write: Callable[[Path], object]) -> None:
    """As `write_file`, raising what the system says."""
    path.parent.mkdir(parents=True, exist_ok=True)
    # Machines that share a file system have processes of one number.
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex[:16]}.tmp")
    try:
        write(temporary)
        sync(temporary)
        os.replace(temporary, path)
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink()


MANY_FILES = 256


def sync(path: Path) -> None:
    """Return once a file, or every file below a folder, is on the disk. Raises OSError where it cannot be written.

    A file system may put a new name on the disk before what is in the file: after a power cut that would be empty, or
    zeros, under a name that says it is whole.
    """
    found = [path] if not path.is_dir() else [each for each in path.rglob("*") if each.is_file()]
    if len(found) > MANY_FILES and hasattr(os, "sync"):
        os.sync()  # all at once is faster; what it could not write is said below
    for each in found:
        with each.open("r+b") as file:
            os.fsync(file.fileno())


def is_bare(path: Path) -> bool:
    """Whether a path is a folder with nothing in it, but for files that processes of ours were killed in."""
    return path.is_dir() and all(re.fullmatch(r"\..+\.(tmp|part)", each.name) for each in path.iterdir())


def file_sha256(path: Path) -> str:
    """Hex sha256 of a file. Raises InputError where it cannot be read."""
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise InputError(f"Cannot read {path}: {error.strerror or error}.\n{AGAIN}") from None


def save_array(path: Path, array: NDArray[Any]) -> None:
    """Write an array as `.npy`, under the very name given. Raises OSError."""
    with path.open("wb") as file:
        write_npy(file, array)


def write_npy(file: BinaryIO, array: NDArray[Any]) -> None:
    """Write an array into an open file as `numpy.save` does, which loses the end of it on a full disk and does not say
    so: the last bytes go through a buffer of C, and nobody looks at whether they could be written."""
    import numpy as np

    plain = np.ascontiguousarray(array)
    np.lib.format.write_array_header_1_0(file, np.lib.format.header_data_from_array_1_0(plain))
    file.write(plain.data)


def write_parquet(table: pa.Table, target: Any) -> None:
    """Write a table to a path or an open file, with a checksum a page."""
    import pyarrow.parquet as pq

    pq.write_table(table, target, write_page_checksum=True)


@contextlib.contextmanager
def whole(path: Path) -> Iterator[None]:
    """Says of what is read of a file, or folder, of ours that it is damaged where it lacks what we put there."""
    try:
        yield
    except (CopyscopeError, OSError):
        raise
    except Exception as error:  # a template's own, among others
        raise InputError(f"{path} is damaged: {type(error).__name__}: {error}.\n{AGAIN}") from None


_FORMULA = re.compile(r"'*[=+\-@\t\r\n]")


def safe_cell(value: Any) -> Any:
    """A value for CSV. A text that a spreadsheet would run as a formula gets an apostrophe before it; `plain_cell`
    takes that away again."""
    return f"'{value}" if isinstance(value, str) and _FORMULA.match(value) else value


def plain_cell(text: str) -> str:
    """The text that `safe_cell` was given."""
    return text[1:] if text.startswith("'") and _FORMULA.match(text) else text


def sweep(path: Path) -> None:
    """Take away what processes that were killed in `replace_file` have left of it. Nobody else may write it now."""
    for left in path.parent.glob(f".{path.name}.*.tmp"):
        left.unlink()


def unwritable(folder: Path, error: OSError) -> InputError:
    """What to say where results cannot be written."""
    return InputError(f"Cannot write results to {folder}: {error.strerror or error}.\nGive another folder with -o")


@contextlib.contextmanager
def told(cache: Path) -> Iterator[None]:
    """What the system says of a cache that cannot be written, for people."""
    try:
        yield
    except OSError as error:
        raise InputError(
            f"Cannot write the cache in {cache}: {error.strerror or error}.\n"
            "Set COPYSCOPE_CACHE to a folder that can be written"
        ) from None


def write_table(table: pa.Table, path: Path) -> None:
    """Write a Parquet file as `replace_file` does. Raises OSError."""
    replace_file(path, lambda part: write_parquet(table, part))


def write_json(values: Mapping[str, Any], path: Path) -> None:
    """Write a JSON file as `replace_file` does. Raises OSError."""
    text = json.dumps(values, indent=1, ensure_ascii=False) + "\n"
    replace_file(path, lambda part: part.write_text(text, encoding="utf-8"))


def write_bytes(data: bytes, path: Path) -> None:
    """Write a file of any kind as `replace_file` does. Raises OSError."""
    replace_file(path, lambda part: part.write_bytes(data))


def cache_folder(said: str | Path | None = None) -> Path:
    """Where Copyscope keeps what it can make or fetch again: what is `said`, else $COPYSCOPE_CACHE, else `copyscope` in
    the user's cache."""
    if chosen := said or os.environ.get("COPYSCOPE_CACHE"):
        return Path(chosen).expanduser()
    home = Path.home()
    if base := os.environ.get("XDG_CACHE_HOME"):
        return Path(base) / "copyscope"
    if sys.platform == "win32":
        return Path(os.environ.get("LOCALAPPDATA") or home / "AppData" / "Local") / "copyscope"
    return home / (".cache" if sys.platform != "darwin" else "Library/Caches") / "copyscope"
