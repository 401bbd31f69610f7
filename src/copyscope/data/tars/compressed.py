"""Compressed tars (gzip, zstd) and zips: unpacked once into a nameless temporary file, whose size is bounded."""

from __future__ import annotations

import atexit
import contextlib
import io
import shutil
import tempfile
import threading
import zipfile
import zlib
from typing import Any

from copyscope.data.storage import CUT_SHORT, Storage
from copyscope.errors import ImageError, reason

MOST_BYTES, BYTES_A_BYTE = 1 << 30, 20
"""What a compressed tar may unpack to: 1 GiB, or 20 times its own bytes where that is more."""
_MAGIC = {b"\x1f\x8b": "gzip", b"\x28\xb5\x2f\xfd": "zstd"}
_ZIP = b"PK\x03\x04"
_PIECE = 1 << 20
_DAMAGE = (zipfile.BadZipFile, RuntimeError, NotImplementedError, EOFError, zlib.error)

_lock = threading.Lock()
_known: dict[str, _Unpacked | None] = {}  # by path; None for a tar that is not compressed
_turns: dict[str, threading.Lock] = {}  # by path: one thread unpacks, others wait


class TooMuch(ValueError):
    """A compressed tar unpacks to more than it may."""


class _Unpacked(io.RawIOBase):
    """A view of an unpacked tar with a position of its own."""

    def __init__(self, file: Any, lock: threading.Lock) -> None:
        self._file, self._lock, self._at = file, lock, 0

    def view(self) -> _Unpacked:
        return _Unpacked(self._file, self._lock)

    def seekable(self) -> bool:
        return True

    def readable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = 0) -> int:
        with self._lock:
            self._at = self._file.seek(offset if whence != 1 else self._at + offset, 2 if whence == 2 else 0)
        return self._at

    def tell(self) -> int:
        return self._at

    def read(self, size: int | None = -1) -> bytes:
        with self._lock:
            self._file.seek(self._at)
            data = bytes(self._file.read(-1 if size is None else size))
        self._at += len(data)
        return data


def open_tar(storage: Storage, path: str, block: int) -> Any:
    """A tar opened for reading bytes, seekable, as if it were not compressed. It may have changed since it was.

    Raises TooMuch where it unpacks to more than it may, and what the storage or the decompressor raises.
    """
    file = storage.open(path, block)
    try:
        unpacked = _unpacked(file)
    except BaseException:
        file.close()
        raise
    _known[path] = unpacked
    if unpacked is None:
        file.seek(0)
        return file
    file.close()
    return unpacked.view()


def tar_span(storage: Storage, path: str, offset: int, size: int) -> bytes:
    """`size` bytes of a tar from `offset`, fewer where it ends before. Raises ImageError."""
    try:
        with _lock:
            turn = _turns.setdefault(path, threading.Lock())
        with turn:
            if path not in _known:  # opened in another process
                open_tar(storage, path, 4).close()
            unpacked = _known[path]
        if unpacked is None:
            return storage.span(path, offset, size)
        view = unpacked.view()
        view.seek(offset)
        return view.read(size)
    except ImageError:
        raise
    except Exception as error:
        raise ImageError(reason(error)) from None


def tar_read(storage: Storage, path: str, offset: int, size: int) -> bytes:
    """As `tar_span`, all of them."""
    data = tar_span(storage, path, offset, size)
    if len(data) < size:
        raise ImageError(CUT_SHORT)
    return data


def _unpacked(file: Any) -> _Unpacked | None:
    """A tar unpacked; None where it is not compressed."""
    import pyarrow as pa

    head = bytes(file.read(4))
    if head == _ZIP:
        return _unzipped(file)
    codec = next((name for magic, name in _MAGIC.items() if head.startswith(magic)), None)
    if codec is None:
        return None
    most = max(MOST_BYTES, BYTES_A_BYTE * file.seek(0, 2))
    file.seek(0)
    unpacked, total = tempfile.TemporaryFile(prefix="copyscope-"), 0  # noqa: SIM115
    atexit.register(unpacked.close)
    stream = pa.CompressedInputStream(pa.PythonFile(file, mode="r"), codec)
    while data := stream.read(_PIECE):
        total += len(data)
        if total > most:
            unpacked.close()
            raise TooMuch(f"it unpacks to more than {most >> 20:,} MiB")
        unpacked.write(data)
    return _Unpacked(unpacked, threading.Lock())


def members_of_zip(file: Any) -> dict[str, tuple[int, int]]:
    """(offset, size) of each file of a zip as `open_tar` unpacks it: one after the other."""
    found, at = {}, 0
    with zipfile.ZipFile(file) as archive:
        for entry in archive.infolist():
            if not entry.is_dir():
                found[entry.filename] = (at, entry.file_size)
                at += entry.file_size
    return found


def _unzipped(file: Any) -> _Unpacked:
    """The files of a zip one after the other; one that is damaged or encrypted is zeros."""
    most = max(MOST_BYTES, BYTES_A_BYTE * file.seek(0, 2))
    unpacked = tempfile.TemporaryFile(prefix="copyscope-")  # noqa: SIM115
    atexit.register(unpacked.close)
    with zipfile.ZipFile(file) as archive:
        for entry in archive.infolist():
            end = unpacked.tell() + (0 if entry.is_dir() else entry.file_size)
            if end > most:
                unpacked.close()
                raise TooMuch(f"it unpacks to more than {most >> 20:,} MiB")
            if not entry.is_dir():
                # zipfile gives no more bytes than the entry says.
                with contextlib.suppress(*_DAMAGE), archive.open(entry) as member:
                    shutil.copyfileobj(member, unpacked, _PIECE)
            unpacked.seek(end)
            unpacked.truncate()
    return _Unpacked(unpacked, threading.Lock())
