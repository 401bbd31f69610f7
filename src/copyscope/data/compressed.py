"""Compressed tars (gzip, zstd): unpacked once into a nameless temporary file, whose size is bounded."""

from __future__ import annotations

import io
import tempfile
import threading
from typing import Any

from copyscope.errors import ImageError, reason

from .storage import CUT_SHORT, Storage

MOST_BYTES, BYTES_A_BYTE = 1 << 30, 20
"""What a compressed tar may unpack to: 1 GiB, or 20 times its own bytes where that is more."""
_MAGIC = {b"\x1f\x8b": "gzip", b"\x28\xb5\x2f\xfd": "zstd"}
_PIECE = 1 << 20

_lock = threading.Lock()
_unpacked: dict[str, _Unpacked | None] = {}  # by path; None for a tar that is not compressed


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


def open_tar(storage: Storage, path: str, block: int, *, anew: bool = False) -> Any:
    """A tar opened for reading bytes, seekable, as if it were not compressed. anew: it may have changed.

    Raises TooMuch where it unpacks to more than it may, and what the storage or the decompressor raises.
    """
    with _lock:
        if anew or path not in _unpacked:
            _unpacked[path] = _unpack(storage, path)
        held = _unpacked[path]
    return storage.open(path, block) if held is None else held.view()


def tar_span(storage: Storage, path: str, offset: int, size: int) -> bytes:
    """`size` bytes of a tar from `offset`, fewer where it ends before. Raises ImageError."""
    try:
        with open_tar(storage, path, 1) as file:
            if not isinstance(file, _Unpacked):
                return storage.span(path, offset, size)
            file.seek(offset)
            return file.read(size)
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


def _unpack(storage: Storage, path: str) -> _Unpacked | None:
    """The tar unpacked; None where it is not compressed."""
    import pyarrow as pa

    with storage.open(path, _PIECE) as file:
        head = bytes(file.read(4))
        codec = next((name for magic, name in _MAGIC.items() if head.startswith(magic)), None)
        if codec is None:
            return None
        most = max(MOST_BYTES, BYTES_A_BYTE * file.seek(0, 2))
        file.seek(0)
        unpacked, total = tempfile.TemporaryFile(prefix="copyscope-"), 0  # noqa: SIM115
        stream = pa.CompressedInputStream(pa.PythonFile(file, mode="r"), codec)
        while data := stream.read(_PIECE):
            total += len(data)
            if total > most:
                unpacked.close()
                raise TooMuch(f"it unpacks to more than {most >> 20:,} MiB")
            unpacked.write(data)
    return _Unpacked(unpacked, threading.Lock())
