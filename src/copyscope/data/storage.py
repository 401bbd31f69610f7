"""File access by path or URL through fsspec: local disk, zip, memory, object stores.

A path here is the file system's own (`/data/a.jpg`, `bucket/a.jpg`); `connect` makes one from what the user typed.
What is not local is asked again where that may help (`RetryPolicy`), an object store many things at once (`ahead`).
"""

from __future__ import annotations

import dataclasses
import difflib
import errno
import functools
import io
import itertools
import os
import posixpath
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, TypeVar
from urllib.parse import quote_from_bytes, unquote_to_bytes

from copyscope.errors import ImageError, InputError, reason
from copyscope.files import NOT_REGULAR, open_regular

from .folders.names import suffix_of
from .retry import PATIENCE

MAX_BYTES = 384 << 20
"""Files larger than this (384 MiB) are not read as images."""

MAX_TEXT_BYTES = 128 << 20
"""Files larger than this (128 MiB) are not read as captions."""

CUT_SHORT = "truncated: the file ends before the image does"
TOO_LARGE = f"too large: more than {MAX_BYTES >> 20} MiB"

READERS = 16
"""Threads that read from an object store: it is the waiting that they share, not the processor."""

AHEAD_BYTES = 128 << 20
"""What is read before it is asked for is not more than this (128 MiB), or a single piece."""

BLOCK_BYTES = 64 << 10
"""What is read of an opened file that is not local beyond what is asked (64 KiB), unless `open` says otherwise."""

OUTSIDE = "lies outside the folder"

MAX_DEPTH, MAX_FOLDERS = 100, 1_000_000
"""A folder deeper than this below the one that was named is not looked into, nor are more folders than this."""

_RAW = "%bytes:"

T = TypeVar("T")


@dataclasses.dataclass(frozen=True)
class Listing:
    """All files below a folder.

    `unreadable` maps what is not looked into (a folder without permission, a pipe, a device) to the reason. `outside`:
    those of the files that lie elsewhere, and are only reached through a symbolic link.

    Args:
        hidden: files and folders that are left out for their names, folders with a slash at the end.
    """

    files: dict[str, int | None]
    unreadable: dict[str, str]
    outside: frozenset[str] = frozenset()
    hidden: tuple[str, ...] = ()

    @functools.cached_property
    def by_suffix(self) -> dict[str, list[str]]:
        """The files by the suffix of their names."""
        found: dict[str, list[str]] = {}
        for path in self.files:
            found.setdefault(suffix_of(path), []).append(path)
        return found

    def ending(self, suffixes: Iterable[str]) -> list[str]:
        """The files whose names have one of these suffixes, by name."""
        found = [self.by_suffix[suffix] for suffix in suffixes if suffix in self.by_suffix]
        return found[0] if len(found) == 1 else sorted(itertools.chain.from_iterable(found))


@dataclasses.dataclass(frozen=True)
class Storage:
    """One file system of fsspec, `local` if it is the local disk."""

    fs: Any
    local: bool

    @property
    def concurrent(self) -> bool:
        """Whether many threads may read at once: those of one connection or one archive could mix up the answers."""
        kinds = self.fs.protocol if isinstance(self.fs.protocol, tuple) else (self.fs.protocol,)
        return bool(self.fs.async_impl) or "hf" in kinds

    def with_retries(self, read: Callable[[], T]) -> T:
        """Call `read`, under the retry policy unless the file system is local."""
        return read() if self.local else PATIENCE(read)

    def kind(self, path: str) -> str:
        """Kind of what is at `path`: "file", "directory", "other" (a pipe, a socket, a device), or "" if nothing is."""
        try:
            return str(self.with_retries(lambda: self.fs.info(path))["type"])
        except FileNotFoundError:
            return ""
        except (OSError, ValueError) as error:
            # No name of a file: too long, or with a NUL in it.
            if isinstance(error, ValueError) or error.errno == errno.ENAMETOOLONG:
                return ""
            raise

    def inside(self, path: str, folder: str) -> bool:
        """Whether a path is in a folder, and on a disk does not lead out of it by a link."""
        if self.local:
            return within(os.path.realpath(path), os.path.realpath(folder))
        return within(path, folder)

    def names(self, folder: str) -> list[str]:
        """Names of what is directly in `folder`; none where it cannot be listed."""
        try:
            found = self.with_retries(lambda: self.fs.ls(folder, detail=False))
            return sorted(posixpath.basename(str(name).rstrip("/")) for name in found)
        except Exception:
            return []

    def open(self, path: str, block: int | None = None) -> Any:
        """Open `path` for reading bytes, seekable.

        Args:
            path: on this file system.
            block: bytes read beyond what is asked, where it is not local; None = BLOCK_BYTES.
        """
        if self.local:
            return open_regular(path)
        # The default of s3fs is 50 MiB, which are then read for a header of 512 bytes.
        asked = {"block_size": block or BLOCK_BYTES, "cache_type": "readahead"}
        return _Steady(self, self.with_retries(lambda: self.fs.open(path, "rb", **asked)))

    def read(self, path: str, offset: int = 0, size: int | None = None) -> bytes:
        """Read the bytes of a file, or `size` of them from `offset`.

        Raises:
            ImageError: they cannot be had; it is images that are read so.
        """
        data = self.span(path, offset, size)
        if size is not None and len(data) < size:
            raise ImageError(CUT_SHORT)
        return data

    def span(self, path: str, offset: int = 0, size: int | None = None) -> bytes:
        """Read as `read`, but fewer bytes than `size` where the file ends before.

        Raises:
            ImageError: they cannot be had.
        """
        try:
            if size is not None and size > MAX_BYTES:
                raise ImageError(TOO_LARGE)
            with self.open(path, 1) as file:  # nothing beyond: one request for these bytes
                file.seek(offset)
                data = bytes(file.read(MAX_BYTES + 1 if size is None else size))
            if len(data) > MAX_BYTES:
                raise ImageError(TOO_LARGE)
            return data
        except ImageError:
            raise
        except Exception as error:
            raise ImageError(reason(error)) from None

    def ahead(self, pieces: Iterable[tuple[int, Callable[[], T]]]) -> Iterator[T]:
        """Prefetch: results of many calls, in their order.

        Of an object store, READERS threads make the calls before they are asked for, as far as AHEAD_BYTES go: so one
        large shard is read by all of them, as many small ones are. What a call raises ends it, in its turn.

        Args:
            pieces: (bytes it will hold, about; call).
        """
        if not self.concurrent:
            for _, read in pieces:
                yield read()
            return
        under_way: deque[tuple[int, Future[T]]] = deque()
        held = 0
        with ThreadPoolExecutor(READERS, thread_name_prefix="copyscope-reader") as pool:
            try:
                for size, read in pieces:
                    while under_way and (len(under_way) >= 2 * READERS or held + size > AHEAD_BYTES):
                        before, future = under_way.popleft()
                        held -= before
                        yield future.result()
                    under_way.append((size, pool.submit(read)))
                    held += size
                while under_way:
                    yield under_way.popleft()[1].result()
            finally:
                for _, future in under_way:
                    future.cancel()

    def read_all(self, sizes: dict[str, int | None], most: int) -> Iterator[tuple[str, bytes]]:
        """Read many small text files: (path, bytes), `most` bytes and one more at most.

        Args:
            sizes: of each path, as far as they are known.
            most: bytes of a file.

        Raises:
            InputError: names the first that cannot be read.
        """
        if not self.fs.async_impl:
            found = self.ahead((most, functools.partial(self._first_bytes, path, most)) for path in sizes)
            yield from zip(sizes, found, strict=True)
            return
        for batch in _batches(sizes, most):
            # All at once: a round trip each would take minutes.
            answers = self.fs.cat_ranges(batch, 0, most + 1, on_error="return")
            for path, value in zip(batch, answers, strict=True):
                yield path, self._first_bytes(path, most) if isinstance(value, Exception) else value

    def text_bytes(self, path: str) -> bytes:
        """Read a file of captions.

        Raises:
            InputError: it cannot be read.
        """
        data = self._first_bytes(path, MAX_TEXT_BYTES)
        if len(data) > MAX_TEXT_BYTES:
            raise _cannot_read(path, ValueError(f"larger than {MAX_TEXT_BYTES >> 20} MiB"))
        return data

    def _first_bytes(self, path: str, most: int) -> bytes:
        """`most` bytes of a file of captions, and one more where it is longer."""
        try:
            with self.open(path) as file:
                return bytes(file.read(most + 1))
        except Exception as error:
            raise _cannot_read(path, error) from None

    def list_files(self, root: str) -> Listing:
        """List all files below the folder `root` but hidden ones.

        Symbolic links to folders are followed, each folder once, and not back into a folder that the link lies in.

        Raises:
            InputError: the folder cannot be listed.
        """
        found = Listing({}, {})
        outside: set[str] = set()
        hidden: list[str] = []
        top = os.path.realpath(root) if self.local else root
        followed: set[str] = set()
        n_folders = 0
        pending: list[tuple[str, str, tuple[str, ...], bool]] = [(root, "", (top,), False)]
        while pending:
            folder, prefix, trail, away = pending.pop()
            n_folders += 1
            if n_folders > MAX_FOLDERS:
                found.unreadable[prefix] = f"not looked into: more than {MAX_FOLDERS:,} folders"
                break
            if len(trail) > MAX_DEPTH:
                found.unreadable[prefix] = f"not looked into: more than {MAX_DEPTH} folders deep"
                continue
            try:
                entries = self._entries(folder)
            except Exception as error:
                if not prefix:
                    raise InputError(
                        f"Cannot list {root}: {reason(error)}.\nCheck the path and its permissions"
                    ) from None
                found.unreadable[prefix] = reason(error)
                continue
            for entry in entries:
                path = str(entry["name"]).rstrip("/")
                name = posixpath.basename(path)
                # Object stores list a folder as a member of itself.
                if not name or path == folder.rstrip("/"):
                    continue
                if name.startswith(".") or name == "__MACOSX":
                    hidden.append(f"{prefix}{name}/" if entry.get("type") == "directory" else prefix + name)
                    continue
                link = bool(self.local and entry.get("islink"))
                target = os.path.realpath(path) if link else join(trail[-1], name)
                left = away or (link and not within(target, top))
                kind = self._followed(entry, path)
                if kind == "directory":
                    if link and (target in followed or any(within(real, target) for real in trail)):
                        continue
                    if link:
                        followed.add(target)
                    pending.append((path, f"{prefix}{name}/", (*trail, target), left))
                elif kind == "file":
                    found.files[prefix + name] = entry.get("size")
                    if left:
                        outside.add(prefix + name)
                else:
                    found.unreadable[prefix + name] = NOT_REGULAR
        for name in self._roundabout(root):
            found.unreadable.setdefault(
                name, f"{name[:80]!r} is no plain path: nothing in the archive is reached by it"
            )
        files, unreadable = dict(sorted(found.files.items())), dict(sorted(found.unreadable.items()))
        return Listing(files, unreadable, frozenset(outside), tuple(sorted(hidden)))

    def _roundabout(self, root: str) -> Iterator[str]:
        """Files of an archive with `..`, `.` or nothing between slashes in their names.

        No listing of a folder has them, and hidden ones are left out here too.
        """
        from fsspec.archive import AbstractArchiveFileSystem

        if not isinstance(self.fs, AbstractArchiveFileSystem):
            return
        for path, entry in self.fs.dir_cache.items():
            parts = path.split("/")
            odd = {"", ".", ".."}.intersection(parts)
            hidden = any(part.startswith(".") for part in parts if part not in odd)
            if odd and not hidden and entry["type"] == "file" and path.startswith(root):
                yield path[len(root) :]

    def _entries(self, folder: str) -> list[dict[str, Any]]:
        return list(self.with_retries(lambda: self.fs.ls(folder, detail=True)))

    def _followed(self, entry: dict[str, Any], path: str) -> str:
        if not entry.get("islink"):
            return str(entry["type"])
        if os.path.isdir(path):
            return "directory"
        # A dangling link is a file that cannot be read, and so a row that says so.
        return "file" if os.path.isfile(path) or not os.path.exists(path) else "other"


def within(path: str, folder: str) -> bool:
    """Whether a path, both without links in them, is a folder or lies in it."""
    return path == folder or path.startswith(folder.rstrip("/") + "/")


def _batches(sizes: dict[str, int | None], most: int) -> Iterator[list[str]]:
    """The paths, at most 500 and AHEAD_BYTES at a time, where `most` bytes of each are read."""
    batch: list[str] = []
    held = 0
    for path, size in sizes.items():
        held += most if size is None else min(size, most)
        if batch and (len(batch) == 500 or held > AHEAD_BYTES):
            yield batch
            batch, held = [], 0
        batch.append(path)
    if batch:
        yield batch


class _Steady(io.RawIOBase):
    """A file of fsspec whose reads are tried again where that may help."""

    def __init__(self, storage: Storage, file: Any) -> None:
        self._storage, self._file = storage, file

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = 0) -> int:
        return int(self._file.seek(offset, whence))

    def tell(self) -> int:
        return int(self._file.tell())

    def read(self, size: int | None = -1) -> bytes:
        # Not by `readinto`, as the base class does: that holds the bytes up to three times.
        return self._read(-1 if size is None else size)

    def readall(self) -> bytes:
        return self._read(-1)

    def readinto(self, buffer: Any) -> int:
        data = self._read(len(buffer))
        buffer[: len(data)] = data
        return len(data)

    def close(self) -> None:
        if not self.closed:
            self._file.close()
        super().close()

    def _read(self, size: int) -> bytes:
        at = self._file.tell()

        def read() -> bytes:
            if self._file.tell() != at:  # a try that failed half-way
                self._file.seek(at)
            return bytes(self._file.read(size))

        return self._storage.with_retries(read)


def file_system(origin: str) -> tuple[Storage, str]:
    """File system of a path or URL as the user typed it, and the path on it.

    Raises:
        InputError: there is none.
    """
    import fsspec

    try:
        # A local name may hold "::", which chains URLs.
        if "://" in origin:
            fs, path = fsspec.url_to_fs(origin)
        else:
            fs, path = fsspec.filesystem("file"), os.path.abspath(os.path.expanduser(origin))
    except ImportError as error:
        raise InputError(f"Cannot open {origin!r}: {reason(error)}.\nInstall that package, then try again") from None
    except Exception as error:
        raise InputError(f"Cannot open {origin!r}: {reason(error)}.\nCheck the path or URL") from None
    return Storage(fs, type(fs).__name__ == "LocalFileSystem"), str(path)


def connect(origin: str) -> tuple[Storage, str]:
    """As `file_system`, where something is there.

    Raises:
        InputError: nothing is; the message has the closest name there is.
    """
    storage, path = file_system(origin)
    try:
        # Listings are kept as long as the process lives; what is opened now is what is there now.
        storage.fs.invalidate_cache()
        found = bool(origin) and (path.strip("/") == "" or storage.kind(path) != "")
    except Exception as error:
        advice = "Check the path or URL" + ("" if storage.local else ", and the credentials for it")
        raise InputError(f"Cannot open {origin!r}: {reason(error)}.\n{advice}") from None
    if not found:
        folder, _, name = path.rstrip("/").rpartition("/")
        near = storage.names(folder or "/") if origin and (storage.local or folder) else []
        close = difflib.get_close_matches(name, near, 1)
        meant = join(folder, close[0]) if close else ""
        if close and "://" in origin and "::" not in origin:
            meant = str(storage.fs.unstrip_protocol(meant))
        hint = f"Did you mean {meant!r}?" if close else "Check the path"
        raise InputError(f"Cannot open {origin!r}: no such file or folder.\n{hint}")
    return storage, path


def join(folder: str, name: str) -> str:
    """Join `name` to `folder`, with `.` and `..` resolved; an absolute `name` stays."""
    return posixpath.normpath(posixpath.join(folder, name)) if folder else posixpath.normpath(name)


def failure(error: BaseException) -> str:
    """Message of an error that nobody raised on purpose, in a few words."""
    return "out of memory" if isinstance(error, MemoryError) else f"{type(error).__name__}: {reason(error)}"


def to_text(path: str) -> str:
    """A path as text that a table can hold: file names need not be UTF-8, and then keep their bytes %-escaped."""
    try:
        path.encode()
    except UnicodeEncodeError:
        plain = False
    else:
        plain = not path.startswith(_RAW)
    return path if plain else _RAW + quote_from_bytes(_bytes_of(path))


def from_text(text: str) -> str:
    """The path that `to_text` made `text` from."""
    if text.startswith(_RAW):
        return unquote_to_bytes(text[len(_RAW) :]).decode("utf-8", "surrogateescape")
    return text


def readable(path: str) -> str:
    """A path for people and ids: bytes that are not UTF-8 become the replacement character."""
    return _bytes_of(path).decode("utf-8", "replace")


def _bytes_of(path: str) -> bytes:
    try:
        return path.encode("utf-8", "surrogateescape")
    except UnicodeEncodeError:  # surrogates that stand for no byte, as JSON can hold: no file has that name
        return path.encode("utf-8", "replace")


def _cannot_read(path: str, error: Exception) -> InputError:
    return InputError(f"Cannot read the captions in {path}: {reason(error)}.\nMake it readable, or move it elsewhere")
