"""Atomic, synced file writes; the cache folder; messages where a file cannot be written."""

from __future__ import annotations

import contextlib
import errno
import functools
import hashlib
import json
import os
import platform
import re
import shutil
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
    """Open a regular local file for reading bytes.

    Raises:
        OSError: the path is a pipe, a socket or a device.
    """
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
    """Write a file atomically: under a temporary name, then rename.

    Readers see the old file or the whole new one, after a power cut too.

    Args:
        path: the file; its folder is made.
        write: called with the temporary path.

    Raises:
        InputError: nothing can be written there.
    """
    try:
        replace_file(path, write)
    except OSError as error:
        raise unwritable(path.parent, error) from None


def replace_file(path: Path, write: Callable[[Path], object]) -> None:
    """Write a file atomically as `write_file` does, but raise the system's OSError."""
    path.parent.mkdir(parents=True, exist_ok=True)
    remove_stale(path.parent, path.name)
    with temporary_path(path) as temporary:
        write(temporary)
        sync(temporary)
        os.replace(temporary, path)


@contextlib.contextmanager
def temporary_path(path: Path, *, folder: bool = False) -> Iterator[Path]:
    """Temporary file or folder beside `path`, for what is to be renamed to it; gone at the end.

    `remove_stale` sees that it is in use.

    Args:
        path: the later name.
        folder: make a folder instead of a file.

    Raises:
        OSError: nothing can be written there.
    """
    with contextlib.ExitStack() as stack:
        while True:
            # Machines that share a file system have processes of one number.
            temporary = path.with_name(f".{_short(path.name)}.{_HERE}-{uuid.uuid4().hex[:16]}.tmp")
            if folder:
                temporary.mkdir(0o700)
            else:
                temporary.open("xb").close()
            stack.callback(_remove, temporary)
            # Before it was held, another process may have taken it for what a dead one has left.
            with contextlib.suppress(FileNotFoundError):
                stack.callback(_hold(temporary))
                if temporary.exists():
                    break
        yield temporary


def _remove(path: Path) -> None:
    """Take a file or folder of ours away, if it is there."""
    with contextlib.suppress(OSError):
        path.unlink()
    shutil.rmtree(path, ignore_errors=True)


def remove_stale(folder: Path, name: str | None = None) -> None:
    """Remove temporary files of `temporary_path` that processes left when they were killed.

    Files of a living process stay, and those of another machine: its locks may not be seen here.

    Args:
        folder: where to look; nothing happens if there is none.
        name: later name of the files; None = any.
    """
    called = ".+" if name is None else re.escape(_short(name))
    with contextlib.suppress(OSError), os.scandir(folder) as found:
        ours = re.compile(rf"(?s)\.{called}\.{_HERE}-[0-9a-f]{{16}}\.tmp")
        for left in [folder / each.name for each in found if ours.fullmatch(each.name)]:
            with contextlib.suppress(OSError):
                _take_away(left)


def _take_away(path: Path) -> None:
    """Raises OSError where somebody holds it, or that cannot be known."""
    held = os.open(path, _LOOK)
    try:
        _lock(held, alone=True)
        _remove(path)
    finally:
        os.close(held)


_HERE = hashlib.sha256(platform.node().encode()).hexdigest()[:8]
_LOOK = os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_NOFOLLOW", 0)


def _short(name: str) -> str:
    """A name that leaves room for what is added to it, of the 255 bytes that file systems allow."""
    return name if len(os.fsencode(name)) <= 200 else hashlib.sha256(os.fsencode(name)).hexdigest()


def _hold(path: Path) -> Callable[[], object]:
    """Tell others that a file or folder is in use, until the function returned is called or the process ends.

    Where there are no locks, nobody removes stale files either. Raises FileNotFoundError where it is gone.
    """
    if sys.platform == "win32":  # what is open could have no other name there
        return lambda: None
    held = os.open(path, _LOOK)
    with contextlib.suppress(OSError):
        _lock(held, alone=False)
    return functools.partial(os.close, held)


def _lock(file: int, *, alone: bool) -> None:
    if sys.platform == "win32":
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))
    import fcntl

    fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB if alone else fcntl.LOCK_SH)


MANY_FILES = 256


def sync(path: Path) -> None:
    """Flush a file, or every file below a folder, to the disk.

    A file system may put a new name on the disk before the content: after a power cut the file would be empty, or
    zeros, under a name that says it is whole.

    Raises:
        OSError: something cannot be written.
    """
    found = [path] if not path.is_dir() else [each for each in path.rglob("*") if each.is_file()]
    if len(found) > MANY_FILES and hasattr(os, "sync"):
        os.sync()  # all at once is faster; what it could not write is said below
    for each in found:
        with each.open("r+b") as file:
            os.fsync(file.fileno())


def is_bare(path: Path) -> bool:
    """Whether a folder is empty, but for temporary files of our own killed processes."""
    return path.is_dir() and all(re.fullmatch(r"\..+\.(tmp|part)", each.name) for each in path.iterdir())


def file_sha256(path: Path) -> str:
    """Hex sha256 of a file.

    Raises:
        InputError: the file cannot be read.
    """
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise InputError(f"Cannot read {path}: {error.strerror or error}.\n{AGAIN}") from None


def save_array(path: Path, array: NDArray[Any]) -> None:
    """Write an array as `.npy`, under exactly this name.

    Raises:
        OSError: the file cannot be written.
    """
    with path.open("wb") as file:
        write_npy(file, array)


def write_npy(file: BinaryIO, array: NDArray[Any]) -> None:
    """Write an array as `.npy` into an open file, and notice a full disk.

    `numpy.save` does not: the last bytes go through a buffer of C, and nobody checks whether they could be written.
    """
    import numpy as np

    plain = np.ascontiguousarray(array)
    np.lib.format.write_array_header_1_0(file, np.lib.format.header_data_from_array_1_0(plain))
    file.write(plain.data)


def write_parquet(table: pa.Table, target: Any) -> None:
    """Write a table as Parquet, with a checksum a page, to a path or an open file."""
    import pyarrow.parquet as pq

    pq.write_table(table, target, write_page_checksum=True)


@contextlib.contextmanager
def as_damaged(path: Path | str) -> Iterator[None]:
    """Turn errors of reading a file or folder of ours into an InputError that says it is damaged.

    Raises:
        InputError: in the block something was missing that we put there.
    """
    try:
        yield
    except (CopyscopeError, OSError):
        raise
    except Exception as error:  # a template's own, among others
        raise InputError(f"{path} is damaged: {type(error).__name__}: {error}.\n{AGAIN}") from None


_FORMULA = re.compile(r"'*(?:[\t\r\n]|[\s\ufeff\0]*[=+\-@\uff1d\uff0b\uff0d\uff20])")


def safe_cell(value: Any) -> Any:
    """Value for a CSV cell; text that a spreadsheet would run as a formula gets an apostrophe in front.

    `plain_cell` takes the apostrophe away again.
    """
    return f"'{value}" if isinstance(value, str) and _FORMULA.match(value) else value


def plain_cell(text: str) -> str:
    """Undo `safe_cell` of a text."""
    return text[1:] if text.startswith("'") and _FORMULA.match(text) else text


def unwritable(folder: Path, error: OSError) -> InputError:
    """Error for results that cannot be written into `folder`."""
    return InputError(f"Cannot write results to {folder}: {error.strerror or error}.\nGive another folder with -o")


@contextlib.contextmanager
def cache_errors(cache: Path) -> Iterator[None]:
    """Turn an OSError of a cache that cannot be written into an InputError for people.

    Raises:
        InputError: in the block an OSError was raised.
    """
    try:
        yield
    except OSError as error:
        raise InputError(
            f"Cannot write the cache in {cache}: {error.strerror or error}.\n"
            "Set COPYSCOPE_CACHE to a folder that can be written"
        ) from None


def write_table(table: pa.Table, path: Path) -> None:
    """Write a Parquet file atomically, as `replace_file` does.

    Raises:
        OSError: the file cannot be written.
    """
    replace_file(path, lambda part: write_parquet(table, part))


def write_json(values: Mapping[str, Any], path: Path) -> None:
    """Write a JSON file atomically, as `replace_file` does.

    Raises:
        OSError: the file cannot be written.
    """
    text = json.dumps(values, indent=1, ensure_ascii=False) + "\n"
    replace_file(path, lambda part: part.write_text(text, encoding="utf-8"))


def write_bytes(data: bytes, path: Path) -> None:
    """Write a file of any kind atomically, as `replace_file` does.

    Raises:
        OSError: the file cannot be written.
    """
    replace_file(path, lambda part: part.write_bytes(data))


def cache_folder(folder: str | Path | None = None) -> Path:
    """Folder of what Copyscope can make or fetch again.

    Args:
        folder: the folder that the caller asked for; None = $COPYSCOPE_CACHE, else `copyscope` in the user's cache.
    """
    if chosen := folder or os.environ.get("COPYSCOPE_CACHE"):
        return Path(chosen).expanduser()
    home = Path.home()
    if base := os.environ.get("XDG_CACHE_HOME"):
        return Path(base) / "copyscope"
    if sys.platform == "win32":
        return Path(os.environ.get("LOCALAPPDATA") or home / "AppData" / "Local") / "copyscope"
    return home / (".cache" if sys.platform != "darwin" else "Library/Caches") / "copyscope"
