"""Read images inside Arrow files, as `datasets` writes them (`save_to_disk`, its cache): streams of record batches."""

from __future__ import annotations

import functools
import mmap
import shutil
import struct
import tempfile
import threading
from collections.abc import Iterator
from typing import Any

import numpy as np
import pyarrow as pa

from copyscope.errors import ImageError, reason

from .parquet_pages import rows_of, text_bytes
from .shards import Indexed, Piece, ShardImages, add_records, image_column, plain_columns
from .storage import Storage

_MAGIC = b"ARROW1\0\0"
_SCHEMA, _BATCH = 1, 3
_ROWS = 4096


def index_arrow(storage: Storage, path: str, name: str) -> Indexed:
    """The rows of one Arrow file, as far as it can be read."""
    found = Indexed()
    ids: dict[str, list[str]] = {}
    try:
        for batch in _batches(storage, path):
            _scan(batch, path, name, found, ids)
    except Exception as error:
        found.damage = reason(error)
    found.candidates = {column: pa.array(values, pa.string()) for column, values in ids.items()}
    return found


def _scan(batch: Any, path: str, name: str, found: Indexed, ids: dict[str, list[str]]) -> None:
    image = image_column(batch.schema)
    if not image:
        raise ValueError(f"no column with image bytes; its columns are: {', '.join(batch.schema.names)}")
    plain = plain_columns(batch.schema, image)
    column = batch.column(image)
    listed = pa.types.is_list(column.type) or pa.types.is_large_list(column.type)
    paths = None
    if pa.types.is_struct(column.type) and column.type.get_field_index("path") >= 0:
        paths = (
            column.field("path")
            if column.null_count == 0
            else pa.array([each.get("path") if each.is_valid else None for each in column])
        )
    lengths = column.value_lengths().fill_null(0).to_pylist() if listed else None
    for start in range(0, batch.num_rows, _ROWS):
        some = batch.select(plain).slice(start, _ROWS)
        n = min(_ROWS, batch.num_rows - start)
        sizes = sum((text_bytes(each) for each in some.columns), np.zeros(n, np.int64))
        records = rows_of(some, sizes)
        inner = paths.slice(start, n).to_pylist() if paths is not None else [None] * n
        counts = lengths[start : start + n] if lengths is not None else [None] * n
        add_records(zip(records, inner, counts, strict=True), path, name, found, ids)


class ArrowImages(ShardImages):
    """Reads image bytes out of Arrow files, by (path, row, item). Safe to call from many threads."""

    def __init__(self, storage: Storage) -> None:
        super().__init__(storage)
        self._lock = threading.Lock()
        self._held: dict[str, list[tuple[int, Any]]] = {}

    def read(self, path: str, row: int, item: int = 0) -> bytes:
        """Bytes of one image."""
        try:
            return self._bytes(path, self._cell(path, row), item)
        except ImageError:
            raise
        except Exception as error:
            raise ImageError(f"damaged Arrow: {reason(error)}") from None

    def pieces(self, path: str, places: list[tuple[int, int]]) -> Iterator[Piece]:
        """Many images of one file by (row, item), in order, one a piece: the file is mapped."""
        for row, item in places:
            yield 1, 0, functools.partial(self._one, path, row, item)

    def _one(self, path: str, row: int, item: int) -> Iterator[bytes | ImageError]:
        try:
            yield self.read(path, row, item)
        except ImageError as error:
            yield error

    def _cell(self, path: str, row: int) -> Any:
        with self._lock:
            if path not in self._held:
                starts, first = [], 0
                for batch in _batches(self._storage, path):
                    starts.append((first, batch.column(image_column(batch.schema))))
                    first += batch.num_rows
                self._held = {path: starts}
            for first, column in self._held[path]:
                if row < first + len(column):
                    return column[row - first]
        raise IndexError(f"no row {row}")


def _batches(storage: Storage, path: str) -> Iterator[Any]:
    """Record batches of a file, which stays mapped as long as they are used.

    Raises ValueError for compressed batches, whose size nobody knows before they are unpacked, and for dictionaries.
    """
    with _local_file(storage, path) as file:
        try:
            mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        except ValueError:
            raise ValueError("empty file") from None
    start = 8 if mapped[:8] == _MAGIC else 0
    source = pa.BufferReader(pa.py_buffer(mapped).slice(start))
    reader = pa.ipc.MessageReader.open_stream(source)
    schema = None
    while True:
        try:
            message = reader.read_next_message()
        except StopIteration:
            return
        kind, compressed = _about(message.metadata.to_pybytes())
        if kind == _SCHEMA and schema is None:
            schema = pa.ipc.read_schema(message)
        elif kind == _BATCH and schema is not None and not compressed:
            batch = pa.ipc.read_record_batch(message, schema)
            batch.validate(full=True)
            yield batch
        else:
            raise ValueError("compressed or with dictionaries: write it with `to_parquet`")


def _local_file(storage: Storage, path: str) -> Any:
    """The file, or a nameless copy of one that is not on a disk."""
    if storage.local:
        return storage.open(path)
    copy = tempfile.TemporaryFile(prefix="copyscope-")  # noqa: SIM115
    with storage.open(path, 1 << 20) as file:
        shutil.copyfileobj(file, copy, 1 << 20)
    copy.flush()
    return copy


def _about(message: bytes) -> tuple[int, bool]:
    """(kind of header, whether its buffers are compressed) of a message: a flatbuffer as Arrow's Message.fbs has it."""

    def field(table: int, number: int) -> int:
        offsets = table - struct.unpack_from("<i", message, table)[0]
        size = struct.unpack_from("<H", message, offsets)[0]
        at = struct.unpack_from("<H", message, offsets + 4 + 2 * number)[0] if 4 + 2 * number < size else 0
        return table + at if at else 0

    try:
        root = struct.unpack_from("<I", message, 0)[0]
        kind_at, header_at = field(root, 1), field(root, 2)
        kind = message[kind_at] if kind_at else 0
        header = header_at + struct.unpack_from("<I", message, header_at)[0]
        return kind, kind == _BATCH and bool(field(header, 3))
    except (struct.error, IndexError):
        raise ValueError("a damaged message") from None
