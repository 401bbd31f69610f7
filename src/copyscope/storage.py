"""Files by path or URL, through fsspec: one code for a local disk, a zip, memory, an object store.

A path here is the file system's own (`/data/a.jpg`, `bucket/a.jpg`); `connect` makes one from what the user typed.
"""

from __future__ import annotations

import dataclasses
import difflib
import os
import posixpath
from collections.abc import Iterator
from typing import Any
from urllib.parse import quote_from_bytes, unquote_to_bytes

from .errors import ImageError, InputError

MAX_BYTES = 1 << 30
"""Files larger than this (1 GiB) are not read as images."""

_RAW = "%bytes:"


@dataclasses.dataclass(frozen=True)
class Listing:
    """All files below a folder: `files` maps the path relative to it to the size in bytes (None if unknown).

    `unreadable` maps what could not be looked into (a folder without permission) to the reason.
    """

    files: dict[str, int | None]
    unreadable: dict[str, str]


@dataclasses.dataclass(frozen=True)
class Storage:
    """One fsspec file system."""

    fs: Any
    local: bool

    def kind(self, path: str) -> str:
        """What is at `path`: "file", "directory", "other", or "" if nothing is."""
        try:
            return str(self.fs.info(path)["type"])
        except FileNotFoundError:
            return ""

    def names(self, folder: str) -> list[str]:
        """Names of what is directly in `folder`; none where it cannot be listed."""
        try:
            return sorted(posixpath.basename(str(name).rstrip("/")) for name in self.fs.ls(folder, detail=False))
        except Exception:
            return []

    def open(self, path: str) -> Any:
        """`path` opened for reading bytes, seekable."""
        return open(path, "rb") if self.local else self.fs.open(path, "rb")

    def read(self, path: str, offset: int = 0, size: int | None = None) -> bytes:
        """The bytes of a file, or `size` of them from `offset`. Raises ImageError: it is images that are read so."""
        try:
            # Opening a pipe would wait for a writer for ever.
            if self.local and os.path.exists(path) and not os.path.isfile(path):
                raise ImageError("not a regular file")
            with self.open(path) as file:
                return read_from(file, offset, size)
        except ImageError:
            raise
        except Exception as error:
            raise ImageError(reason(error)) from None

    def read_all(self, paths: list[str]) -> Iterator[tuple[str, bytes]]:
        """(path, bytes) of many small text files. Raises InputError for the first that cannot be read."""
        for start in range(0, len(paths), 500):
            batch = paths[start : start + 500]
            if self.local:
                for path in batch:
                    yield path, self.text_bytes(path)
            else:  # all at once: a round trip each would take minutes
                found = self.fs.cat(batch, on_error="return")
                # A single path gives its bytes alone.
                found = found if isinstance(found, dict) else {batch[0]: found}
                for path, value in found.items():
                    if isinstance(value, Exception):
                        raise _cannot_read(path, value)
                    yield path, value

    def text_bytes(self, path: str) -> bytes:
        """The bytes of a file of captions. Raises InputError where it cannot be read."""
        try:
            with self.open(path) as file:
                return bytes(file.read())
        except Exception as error:
            raise _cannot_read(path, error) from None

    def list_files(self, root: str) -> Listing:
        """All files below the folder `root` but hidden ones. Symbolic links are followed, though not round in loops."""
        files: dict[str, int | None] = {}
        unreadable: dict[str, str] = {}
        pending: list[tuple[str, str, tuple[str, ...]]] = [(root, "", (os.path.realpath(root),))]
        while pending:
            folder, prefix, trail = pending.pop()
            try:
                entries = self.fs.ls(folder, detail=True)
            except Exception as error:
                if not prefix:
                    raise InputError(
                        f"Cannot list {root}: {reason(error)}.\nCheck the path and its permissions"
                    ) from None
                unreadable[prefix] = reason(error)
                continue
            for entry in entries:
                path = str(entry["name"]).rstrip("/")
                name = posixpath.basename(path)
                # Object stores list a folder as a member of itself.
                if not name or name.startswith(".") or name == "__MACOSX" or path == folder.rstrip("/"):
                    continue
                kind = self._followed(entry, path)
                if kind == "directory":
                    target = os.path.realpath(path) if self.local else path
                    if entry.get("islink") and any(f"{real}/".startswith(f"{target}/") for real in trail):
                        continue  # it leads back to a folder we are in
                    pending.append((path, f"{prefix}{name}/", (*trail, target)))
                elif kind == "file":
                    files[prefix + name] = entry.get("size")
        return Listing(dict(sorted(files.items())), dict(sorted(unreadable.items())))

    def _followed(self, entry: dict[str, Any], path: str) -> str:
        if not entry.get("islink"):
            return str(entry["type"])
        if os.path.isdir(path):
            return "directory"
        # A dangling link is a file that cannot be read, and so a row that says so.
        return "file" if os.path.isfile(path) or not os.path.exists(path) else "other"


def file_system(origin: str) -> tuple[Storage, str]:
    """The file system of a path or URL as the user typed it, and the path on it. Raises InputError if there is none."""
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
    """As `file_system`, and something is there. Raises InputError, with the closest name there is, if not."""
    storage, path = file_system(origin)
    try:
        found = bool(origin) and (path.strip("/") == "" or storage.kind(path) != "")
    except Exception as error:
        raise InputError(f"Cannot open {origin!r}: {reason(error)}.\nCheck the path or URL") from None
    if not found:
        folder, _, name = path.rstrip("/").rpartition("/")
        near = storage.names(folder or "/") if origin and (storage.local or folder) else []
        close = difflib.get_close_matches(name, near, 1)
        hint = f"Did you mean {join(folder, close[0])!r}?" if close else "Check the path"
        raise InputError(f"Cannot open {origin!r}: no such file or folder.\n{hint}")
    return storage, path


def read_from(file: Any, offset: int, size: int | None) -> bytes:
    """`size` bytes from `offset` of an open file, or all to its end. Raises ImageError beyond MAX_BYTES."""
    if offset:
        file.seek(offset)
    data = bytes(file.read(MAX_BYTES + 1 if size is None else min(size, MAX_BYTES + 1)))
    if len(data) > MAX_BYTES:
        raise ImageError(f"too large: more than {MAX_BYTES >> 20} MiB")
    if size is not None and len(data) < size:
        raise ImageError("truncated: the file ends before the image does")
    return data


def join(folder: str, name: str) -> str:
    """`name` inside `folder`, with `.` and `..` resolved; an absolute `name` stays."""
    return posixpath.normpath(posixpath.join(folder, name)) if folder else posixpath.normpath(name)


def reason(error: BaseException) -> str:
    """Why a file could not be read, in a few words."""
    if isinstance(error, FileNotFoundError):
        return "no such file"
    if isinstance(error, PermissionError):
        return "no permission to read it"
    if isinstance(error, OSError) and error.strerror:
        return error.strerror.lower()
    return " ".join(str(error).split())[:120] or type(error).__name__


def to_text(path: str) -> str:
    """A path as text that a table can hold: file names need not be UTF-8, and then keep their bytes %-escaped."""
    try:
        path.encode()
    except UnicodeEncodeError:
        plain = False
    else:
        plain = not path.startswith(_RAW)
    return path if plain else _RAW + quote_from_bytes(path.encode("utf-8", "surrogateescape"))


def from_text(text: str) -> str:
    """The path that `to_text` made `text` from."""
    if text.startswith(_RAW):
        return unquote_to_bytes(text[len(_RAW) :]).decode("utf-8", "surrogateescape")
    return text


def readable(path: str) -> str:
    """A path for people and ids: bytes that are not UTF-8 become the replacement character."""
    return path.encode("utf-8", "surrogateescape").decode("utf-8", "replace")


def _cannot_read(path: str, error: Exception) -> InputError:
    return InputError(f"Cannot read the captions in {path}: {reason(error)}.\nMake it readable, or move it elsewhere")
