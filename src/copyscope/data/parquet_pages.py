"""Bound the memory of reading Parquet: decompressed sizes from metadata and page headers.

Arrow makes room for what a page's header claims before it has read the page, and a page of repeats is expanded to what
they are repeats of: a file of some KB may ask for any amount of memory. So headers are read first (they are Thrift in
its compact protocol), and rows are taken in pieces whose size is known before they become objects.
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from copyscope.errors import InputError, reason
from copyscope.files import AGAIN, open_regular

MAX_PAGE = 1 << 30
"""Bytes that one page may decompress to (1 GiB). Writers make pages of 1 MiB, or of one value."""
MAX_CHUNK = 1 << 30
"""Bytes that a column of text in one row group may decompress to (1 GiB)."""
MAX_ROW = 1 << 20
"""Bytes of text of one row (1 MiB)."""
MAX_TEXT, TEXT_A_BYTE = 256 << 20, 50
"""Bytes of text of a file: 256 MiB, or 50 times the bytes of the file where that is more."""
MAX_ROWS, ROWS_A_BYTE = 1_000_000, 8
"""Rows of a file: a million, or 8 a byte of the file where that is more."""
LEAVES_A_ROW = 1000
"""Values of a list in a row, on average, beyond the first MAX_ROWS of a row group."""
MAX_TABLE = 1 << 30
"""Bytes that a table which is read whole may take: 1 GiB, or TEXT_A_BYTE times the file where that is more."""
MAX_FOOTER = 16 << 20
"""Bytes of a footer (16 MiB): of a hundred thousand columns of row groups."""
PIECE_BYTES = 64 << 20
"""Text that is Python objects at one time."""

_HEADER_BYTES = (1 << 12, 1 << 16, 1 << 20, 1 << 24)
_BATCH = 4096


class ParquetBomb(ValueError):
    """Why a file is not read: it asks for more memory or rows than it may."""


@dataclasses.dataclass
class Column:
    """Decompressed size of one column of one row group, in bytes.

    Attributes:
        total: all pages.
        largest: the largest page.
        dictionary: that of the dictionary.
    """

    total: int = 0
    largest: int = 0
    dictionary: int = 0


@dataclasses.dataclass(frozen=True)
class Chunk:
    """A column of a row group, as the footer has it.

    Attributes:
        path: of the leaf, with dots.
        n_values: number of values.
        unpacked: bytes decompressed.
        packed: bytes in the file.
        data: offset of the first page.
        dictionary: offset of the dictionary's page.
        coded: whether by a dictionary.
    """

    path: str
    n_values: int
    unpacked: int
    packed: int
    data: int
    dictionary: int
    coded: bool


def opened(file: Any) -> tuple[pq.ParquetFile, list[list[Chunk]]]:
    """Open a Parquet file, texts read as dictionaries, with the columns of each of its row groups.

    Raises:
        ParquetBomb: it has more rows than its length allows, or its footer is damaged; or as Arrow does.
    """
    metadata, groups = pq.read_metadata(file), chunks(file)
    length = file.seek(0, 2)
    if metadata.num_rows > max(MAX_ROWS, ROWS_A_BYTE * length):
        raise ParquetBomb(f"{metadata.num_rows:,} rows in {length:,} bytes")
    return pq.ParquetFile(file, metadata=metadata, read_dictionary=_texts(metadata, groups)), groups


def chunks(file: Any) -> list[list[Chunk]]:
    """Columns of each row group, by the footer.

    pyarrow could tell them too, but where the footer is damaged it may end the process.

    Raises:
        ParquetBomb: it is damaged, or larger than MAX_FOOTER.
    """
    length = file.seek(0, 2)
    file.seek(max(0, length - 8))
    size = int.from_bytes(bytes(file.read(8))[:4], "little")
    if size > MAX_FOOTER:
        raise ParquetBomb(f"a footer of {size >> 20:,} MiB")
    file.seek(max(0, length - 8 - size))
    try:
        footer, _ = _struct(bytes(file.read(size)), 0, 0)
        return [[_chunk(each) for each in group[1]] for group in footer[4]]
    except (LookupError, ValueError, TypeError, AttributeError):
        raise ParquetBomb("a damaged footer") from None


def _chunk(found: dict[int, Any]) -> Chunk:
    about = found[3]
    n_values, unpacked, packed, data, dictionary = (int(about.get(field) or 0) for field in (5, 6, 7, 9, 11))
    path = ".".join(piece.decode() for piece in about[3])
    return Chunk(path, n_values, unpacked, packed, data, dictionary, bool(dictionary or {2, 8} & {*about[2]}))


def column_size(file: Any, chunk: Chunk, *, walk: bool = True) -> Column:
    """Decompressed size of a column of a row group.

    Args:
        file: the Parquet file.
        chunk: the column.
        walk: look at the header of every page; else, where each look would be a request to a store, the footer is
            believed.

    Raises:
        ParquetBomb: a page is beyond MAX_PAGE or its header is damaged.
    """
    found = Column(total=chunk.unpacked)
    start, first = chunk.data, chunk.dictionary
    if 0 < first < start:
        start = first
    if not walk:
        # A dictionary is at most the whole.
        found.dictionary = chunk.unpacked if chunk.coded else 0
        return found
    found.total, end, n_values = 0, start + chunk.packed, 0
    while start < end and n_values < chunk.n_values:
        page, header = _page(file, start)
        size, kept = page.get(2), page.get(3)
        if not isinstance(size, int) or not isinstance(kept, int) or size < 0 or kept < 0:
            raise ParquetBomb("a damaged page header")
        found.total, found.largest = found.total + size, max(found.largest, size)
        if page.get(1) == 2:
            found.dictionary = max(found.dictionary, size)
        if size > MAX_PAGE:
            raise ParquetBomb(f"a page that decompresses to {size >> 20:,} MiB")
        # Values of a data page, of either version.
        n_values += max(int((page.get(5) or page.get(8) or {}).get(1, 0)), 0)
        if n_values > chunk.n_values:
            raise ParquetBomb("more values than its metadata says")
        start += header + kept
    return found


def records(
    parquet: pq.ParquetFile, groups: list[list[Chunk]], file: Any, columns: list[str] | None, *, walk: bool
) -> Iterator[dict[str, Any] | str]:
    """Rows of a Parquet file as dicts of plain values; or why not, where the text of a row is too large.

    Args:
        parquet: as `opened` gives it.
        groups: as `opened` gives them.
        file: the file.
        columns: names of columns, or of leaves within; None = all.
        walk: as in `column_size`.

    Raises:
        ParquetBomb: its text is beyond MAX_CHUNK, MAX_TEXT or, of nested values, LEAVES_A_ROW.
    """
    length, total = file.seek(0, 2), 0
    for group, chunks_of in enumerate(groups):
        for chunk in chunks_of:
            if columns is not None and not {chunk.path, chunk.path.partition(".")[0]} & {*columns}:
                continue
            if chunk.n_values > MAX_ROWS + LEAVES_A_ROW * parquet.metadata.num_rows:
                raise ParquetBomb(f"the column {chunk.path:.80} holds {chunk.n_values:,} values")
            if (size := column_size(file, chunk, walk=walk).total) > MAX_CHUNK:
                raise ParquetBomb(f"the column {chunk.path:.80} decompresses to {size >> 20:,} MiB")
        for batch in parquet.iter_batches(_BATCH, row_groups=[group], columns=columns):
            sizes: NDArray[np.int64] = np.zeros(batch.num_rows, np.int64)
            for each in batch.columns:
                sizes = sizes + text_bytes(each)
            total += int(sizes[sizes <= MAX_ROW].sum())
            if total > max(MAX_TEXT, TEXT_A_BYTE * length):
                raise ParquetBomb(f"its text is more than {MAX_TEXT >> 20:,} MiB, in a file of {length:,} bytes")
            yield from rows_of(batch, sizes)


def read_table(path: str | os.PathLike[str], columns: Sequence[str] | None = None) -> pa.Table:
    """Read a whole table in a Parquet file, or some of its columns, as `table_in`.

    Raises:
        InputError: the file is missing, damaged, too large, or lacks one of the columns; the message names it.
    """
    try:
        # By a handle: Arrow would take a folder of that name for a table in parts.
        with open_regular(path) as file:
            return table_in(file, columns)
    except (OSError, ValueError, KeyError, TypeError, pa.ArrowException) as error:
        raise InputError(f"Cannot read {os.fspath(path)}: {reason(error)}.\n{AGAIN}") from None


def table_in(file: Any, columns: Sequence[str] | None = None) -> pa.Table:
    """Read a whole table in an open Parquet file; its pages are compared with their checksums where they have any.

    Raises:
        ParquetBomb: it takes more than MAX_TABLE and than TEXT_A_BYTE a byte of the file; or as Arrow does.
    """
    (parquet, groups), total = opened(file), 0
    most = max(MAX_TABLE, TEXT_A_BYTE * file.seek(0, 2))
    for chunk in (each for group in groups for each in group):
        total += column_size(file, chunk).total
        _refuse_table(total, most)
    for batch in parquet.iter_batches(_BATCH):
        total += sum(int(text_bytes(each).sum()) for each in batch.columns)
        _refuse_table(total, most)
    file.seek(0)
    return pq.read_table(file, columns=columns and list(columns), page_checksum_verification=True)


def _refuse_table(size: int, most: int) -> None:
    if size > most:
        raise ParquetBomb(f"it decompresses to more than {most >> 20:,} MiB")


def text_bytes(array: Any) -> NDArray[np.int64]:
    """Bytes of text and of other values in each row [n] of an Arrow array, as they would be were no value shared."""
    kind = array.type
    if pa.types.is_dictionary(kind):
        sizes: NDArray[np.int64] = np.append(text_bytes(array.dictionary), 0)
        places = array.indices.fill_null(len(sizes) - 1).to_numpy(zero_copy_only=False)
        return np.asarray(sizes[places.astype(np.int64)], np.int64)
    if pa.types.is_list(kind) or pa.types.is_large_list(kind):
        offsets = array.offsets.to_numpy(zero_copy_only=False).astype(np.int64)
        first, last = int(offsets[0]), int(offsets[-1])
        ends = np.concatenate([[0], np.cumsum(8 + text_bytes(array.values.slice(first, last - first)))])
        return np.asarray(ends[offsets[1:] - first] - ends[offsets[:-1] - first], np.int64)
    if pa.types.is_struct(kind):
        found = np.zeros(len(array), np.int64)
        for each in array.flatten():
            found = found + text_bytes(each)
        return found
    if (
        pa.types.is_string(kind)
        or pa.types.is_large_string(kind)
        or pa.types.is_binary(kind)
        or pa.types.is_large_binary(kind)
    ):
        return np.asarray(pc.binary_length(array).fill_null(0).to_numpy(zero_copy_only=False), np.int64)
    # Maps, unions and views are rare and not expanded by a dictionary: what Arrow holds of them, shared out.
    return np.full(len(array), 8 if len(array) == 0 else max(8, array.nbytes // len(array)), np.int64)


def rows_of(batch: pa.RecordBatch, sizes: NDArray[np.int64]) -> Iterator[dict[str, Any] | str]:
    """The rows of a batch as dicts, a piece at a time; why not, where the text of one, `sizes` [n], is too large."""
    start = 0
    while start < len(sizes):
        if sizes[start] > MAX_ROW:
            yield f"{sizes[start]:,} bytes of text, and {MAX_ROW:,} are the most"
            start += 1
            continue
        stop, held = start, 0
        while stop < len(sizes) and sizes[stop] <= MAX_ROW and held + sizes[stop] <= PIECE_BYTES:
            held += int(sizes[stop])
            stop += 1
        piece = batch.slice(start, stop - start)
        yield from piece.to_pylist() if batch.num_columns else ({} for _ in range(stop - start))
        start = stop


def _texts(metadata: Any, groups: list[list[Chunk]]) -> list[str]:
    """Leaves of text or bytes that a dictionary codes, for the `read_dictionary` of a ParquetFile.

    Arrow then keeps what repeats once.
    """
    coded = {chunk.path for group in groups for chunk in group if chunk.coded}
    leaves = [metadata.schema.column(place) for place in range(metadata.num_columns)]
    return [
        leaf.path
        for leaf in leaves
        if leaf.path in coded
        and leaf.physical_type == "BYTE_ARRAY"
        and leaf.logical_type.type in ("STRING", "NONE", "JSON", "ENUM")
    ]


def _page(file: Any, start: int) -> tuple[dict[int, Any], int]:
    """The fields of the page header at `start`, by number, and how long it is. Raises ParquetBomb where it is none."""
    for size in _HEADER_BYTES:
        file.seek(start)
        data = bytes(file.read(size))
        try:
            return _struct(data, 0, 0)
        except IndexError:  # it goes on behind these bytes
            if len(data) < size:
                break
        except (ValueError, RecursionError):
            break
    raise ParquetBomb("a damaged page header")


def _struct(data: bytes, at: int, depth: int) -> tuple[dict[int, Any], int]:
    """Parse a struct of Thrift's compact protocol: its values by field, and where it ends.

    Raises IndexError where the bytes end before it does.
    """
    if depth > 16:
        raise ValueError("nested too deeply")
    found: dict[int, Any] = {}
    field = 0
    while kind := data[at]:
        at += 1
        if kind >> 4:
            field += kind >> 4
        else:
            value, at = _varint(data, at)
            field = (value >> 1) ^ -(value & 1)
        found[field], at = _value(data, at, kind & 15, depth)
    return found, at + 1


def _value(data: bytes, at: int, kind: int, depth: int) -> tuple[Any, int]:
    if kind in (1, 2):
        return kind == 1, at
    if kind == 3:
        return data[at], at + 1
    if kind in (4, 5, 6):
        value, at = _varint(data, at)
        return (value >> 1) ^ -(value & 1), at
    if kind == 7:
        return None, at + 8
    if kind == 8:
        size, at = _varint(data, at)
        if at + size > len(data):
            raise IndexError
        return data[at : at + size], at + size
    if kind in (9, 10):
        size, inner, at = data[at] >> 4, data[at] & 15, at + 1
        if size == 15:
            size, at = _varint(data, at)
        found = []
        for _ in range(size):
            # A truth value in a list has a byte, as a field it has none.
            each, at = (None, at + 1) if inner in (1, 2) else _value(data, at, inner, depth + 1)
            if at > len(data):
                raise IndexError
            found.append(each)
        return found, at
    if kind == 12:
        return _struct(data, at, depth + 1)
    raise ValueError(f"no type {kind} in a page header")


def _varint(data: bytes, at: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        byte = data[at]
        value, at, shift = value | (byte & 127) << shift, at + 1, shift + 7
        if byte < 128:
            return value, at
        if shift > 63:
            raise ValueError("a number without end")
