"""Read images inside Parquet files.

`index_*` reads names, captions and offsets of a shard, no pixels. A locator inside a shard is the shard's path with
`#row=N` (Parquet, Arrow; `#row=N.K` the image K of a list), or `#bytes=OFFSET+SIZE` (tar) appended. Images are read in
pieces, of which a shard has many: row groups of Parquet, batches of Arrow, neighbours in a tar.
"""

from __future__ import annotations

import collections
import dataclasses
import functools
import itertools
import posixpath
import threading
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from copyscope.errors import ImageError, reason

from .parquet_pages import Chunk, Column, column_size, opened, records
from .storage import MAX_BYTES, OUTSIDE, TOO_LARGE, Storage, join
from .table import CAPTION_COLUMNS, captions_of, extras_of

_IMAGE_COLUMNS = ("image", "img", "jpg", "jpeg", "png", "webp", "image_bytes", "bytes")
_ID_COLUMNS = ("id", "key", "__key__", "file_name")
_CACHED_BYTES = 256 << 20  # row groups up to this size are kept whole for random access
_BATCH = 16
_PAGE_BYTES = 16 << 20  # a batch of values out of pages, or a dictionary, no larger than this takes little memory

Piece = tuple[int, int, Callable[[], Iterator[bytes | ImageError]]]
"""Images that are read together: how many, how many bytes (about), and what gives them or why they cannot be had."""


def image_column(schema: pa.Schema) -> str:
    """The column of a table that holds image bytes, a struct of {bytes, path}, or lists of either; "" if none does."""
    held = [field.name for field in schema if _is_image(field.type)]
    lists = [field.name for field in schema if is_list(field.type) and _is_image(field.type.value_type)]
    named = [name for name in _IMAGE_COLUMNS if name in held]
    return (named or held or lists or [""])[0]


@dataclasses.dataclass
class Indexed:
    """Index of a shard.

    Attributes:
        rows: arguments of `TableBuilder.add`, one dict an image; ids are provisional in Parquet, `NAME:ROW`.
        candidates: of Parquet, the values of columns of which one may become the ids, as Arrow: they are kept until all
            shards are known.
        damage: why there is no more, or "".
        sources: where captions are from -> images.
        passed: (member, why) of what was not used.
        n_read: rows of the table.
    """

    rows: list[dict[str, Any]] = dataclasses.field(default_factory=list)
    candidates: dict[str, pa.Array] = dataclasses.field(default_factory=dict)
    damage: str = ""
    sources: collections.Counter[str] = dataclasses.field(default_factory=collections.Counter)
    passed: list[tuple[str, str]] = dataclasses.field(default_factory=list)
    n_read: int = 0


def index_parquet(storage: Storage, path: str, name: str) -> Indexed:
    """Index one Parquet file, as far as it can be read."""
    found = Indexed()
    ids: dict[str, list[str]] = {}
    try:
        with storage.open(path) as file:
            _scan_parquet(*opened(file), file, storage.local, path, name, found, ids)
    except Exception as error:
        found.damage = reason(error)
    found.candidates = {column: pa.array(values, pa.string()) for column, values in ids.items()}
    return found


def _scan_parquet(
    parquet: Any,
    groups: list[list[Chunk]],
    file: Any,
    walk: bool,
    path: str,
    name: str,
    found: Indexed,
    ids: dict[str, list[str]],
) -> None:
    schema = parquet.metadata.schema.to_arrow_schema()
    image = image_column(schema)
    if not image:
        found.damage = f"no column with image bytes; its columns are: {', '.join(schema.names)}"
        return
    kind = schema.field(image).type
    plain, inner = plain_columns(schema, image), ""
    counts: Iterator[int | None] = itertools.repeat(None)
    if _is_image_struct(kind) and kind.get_field_index("path") >= 0:
        inner = f"{image}.path"  # that leaf alone, without the bytes beside it
    elif is_list(kind):
        counts = _list_lengths(parquet, groups, file, walk, image)
    found_in = (
        (record, *_path_in(record, image if inner else ""), count)
        for record, count in zip(
            records(parquet, groups, file, plain + [inner] * bool(inner), walk=walk), counts, strict=False
        )
    )
    add_records(found_in, path, name, found, ids)


def _path_in(record: dict[str, Any] | str, image: str) -> tuple[str | None]:
    own = record.pop(image, None) if image and isinstance(record, dict) else None
    return (own.get("path") if own else None,)


def _list_lengths(parquet: Any, groups: list[list[Chunk]], file: Any, walk: bool, image: str) -> Iterator[int]:
    """How many images each row has, of a column of lists: it is in the column itself alone."""
    for group, chunks in enumerate(groups):
        for column in _image_pieces(file, parquet.metadata, chunks, image, group, walk):
            yield from column.value_lengths().fill_null(0).to_pylist()


def plain_columns(schema: pa.Schema, image: str) -> list[str]:
    """The columns beside that of the images which are kept: captions, and one plain value a row."""
    return [field.name for field in schema if field.name != image and _is_plain(field)]


def add_records(
    read: Iterable[tuple[dict[str, Any] | str, str | None, int | None]],
    path: str,
    name: str,
    found: Indexed,
    ids: dict[str, list[str]],
) -> None:
    """Adds the rows of a table of images to `found`, and to `ids` what may be their ids.

    Args:
        read: of each row of the table what is in it (or why it is too large), the path in its image, and how many
            images it has (None = one, in no list).
        path: of the table.
        name: of the table, for ids.
        found: to which the rows are added.
        ids: to which values that may be ids are added, by column.
    """
    row = found.n_read
    for record, inner, count in read:
        place = {"id": f"{name}:{row}", "image": f"{path}#row={row}"}
        row += 1
        if isinstance(record, str):
            found.rows.append(place | {"error": f"too large: {record}"})
            continue
        candidates = {column: record.get(column) for column in _ID_COLUMNS} | ({"path": inner} if inner else {})
        extras = extras_of({key: _scalar(value) for key, value in record.items()}, without=["id"])
        captions = captions_of(record)
        if captions:
            columns = [key for key in record if key.lower() in CAPTION_COLUMNS] or ["prompt"]
            found.sources[f"column {columns[0]}"] += 1 if count is None else count
        about = {"captions": captions, "extras": extras}
        if count == 0:
            found.rows.append(place | about | {"image": None, "error": "no image bytes in this row"})
        for item in range(1 if count is None else count):
            suffix = "" if count is None else f".{item}"
            found.rows.append({"id": place["id"] + suffix, "image": place["image"] + suffix} | about)
            for column, value in candidates.items():
                if value is not None:
                    ids.setdefault(column, []).append(str(value) + (suffix if (count or 0) > 1 else ""))
    found.n_read = row


def chosen_ids(shards: list[dict[str, pa.Array]], n: int) -> pa.ChunkedArray | None:
    """The first of the id columns that every one of n rows has and no two rows share; None where there is none."""
    for column in (*_ID_COLUMNS, "path"):
        ids = pa.chunked_array([shard[column] for shard in shards if column in shard], pa.string())
        if len(ids) == n == len(ids.unique()):
            return ids
    return None


class ShardImages:
    """Gets the bytes of an image out of a cell of a table."""

    def __init__(self, storage: Storage) -> None:
        self._storage = storage

    def _bytes(self, path: str, cell: Any, item: int) -> bytes:
        """The bytes of a cell, an Arrow scalar: of them, of a struct, or of a list of either."""
        if is_list(cell.type):
            if not cell.is_valid or item >= len(cell):
                raise ImageError("no image bytes in this row")
            cell = cell[item]
        in_struct = pa.types.is_struct(cell.type)
        if in_struct and not cell.is_valid:
            raise ImageError("no image bytes in this row")
        if data := _scalar_bytes(cell["bytes"] if in_struct else cell):
            return data
        if in_struct and cell.type.get_field_index("path") >= 0 and (beside := cell["path"].as_py()):
            folder = posixpath.dirname(path)
            # A table of images is no list of a person's: what it holds comes from elsewhere.
            if not self._storage.inside(join(folder, beside), folder):
                raise ImageError(OUTSIDE)
            return self._storage.read(join(folder, beside))
        raise ImageError("no image bytes in this row")


class ParquetImages(ShardImages):
    """Reads image bytes out of Parquet files, by (path, row, item). Safe to call from many threads."""

    def __init__(self, storage: Storage) -> None:
        super().__init__(storage)
        self._lock = threading.Lock()
        self._cached: tuple[str, int, Any] = ("", -1, None)

    def read(self, path: str, row: int, item: int = 0) -> bytes:
        """Bytes of one image. The row group it is in is kept for the next call, unless that is very large."""
        with self._lock:
            held, first, column = self._cached
            if held != path or not first <= row < first + len(column):
                try:
                    first, column = self._load(path, row)
                except Exception as error:
                    raise ImageError(f"damaged Parquet: {reason(error)}") from None
                self._cached = (path, first, column)
            cell = column[row - first]
            return self._bytes(path, cell, item)

    def pieces(self, path: str, rows: list[tuple[int, int]]) -> Iterator[Piece]:
        """Many images of one file by (row, item), ascending: a row group a piece, which holds small batches."""
        done = 0
        try:
            with self._storage.open(path) as file:
                parquet, groups = opened(file)
            image = image_column(parquet.metadata.schema.to_arrow_schema())
            for group, first in enumerate(_group_starts(parquet)):
                known = parquet.metadata.row_group(group)
                wanted = [(row - first, item) for row, item in rows[done:] if row < first + known.num_rows]
                if wanted:
                    done += len(wanted)
                    read = functools.partial(
                        self._stream_group, path, parquet.metadata, groups[group], image, group, wanted
                    )
                    yield len(wanted), known.total_byte_size, read
        except Exception as error:
            failure = ImageError(f"damaged Parquet: {reason(error)}")
        else:
            failure = ImageError("the Parquet file has fewer rows than when it was opened")
        if rest := len(rows) - done:
            yield rest, 0, lambda: iter([failure] * rest)

    def _stream_group(
        self, path: str, metadata: Any, chunks: list[Chunk], image: str, group: int, rows: list[tuple[int, int]]
    ) -> Iterator[bytes | ImageError]:
        done = first = 0
        failure = ImageError("damaged Parquet: the row group ends early")
        try:
            with self._storage.open(path) as file:
                for column in _image_pieces(file, metadata, chunks, image, group, self._storage.local):
                    while done < len(rows) and rows[done][0] < first + len(column):
                        row, item = rows[done]
                        done += 1
                        yield self._bytes_or_error(path, column[row - first], item)
                    if done == len(rows):
                        return
                    first += len(column)
        except Exception as error:
            failure = ImageError(f"damaged Parquet: {reason(error)}")
        for _ in rows[done:]:
            yield failure

    def _load(self, path: str, row: int) -> tuple[int, Any]:
        with self._storage.open(path) as file:
            parquet, groups = opened(file)
            image = image_column(parquet.metadata.schema.to_arrow_schema())
            starts = _group_starts(parquet)
            group = max(index for index, first in enumerate(starts) if first <= row)
            first = starts[group]
            whole = parquet.metadata.row_group(group).total_byte_size <= _CACHED_BYTES
            for column in _image_pieces(
                file, parquet.metadata, groups[group], image, group, self._storage.local, whole=whole
            ):
                if row < first + len(column):
                    return first, column
                first += len(column)
            raise IndexError(f"no row {row}")

    def _bytes_or_error(self, path: str, cell: Any, item: int) -> bytes | ImageError:
        try:
            return self._bytes(path, cell, item)
        except ImageError as error:
            return error


def _image_pieces(
    file: Any, metadata: Any, chunks: list[Chunk], image: str, group: int, walk: bool, *, whole: bool = False
) -> Iterator[Any]:
    """Image column of a row group, some rows at a time, or all where that is asked for and not too much.

    What repeats in it is never expanded by more than a few rows.
    """
    sizes: dict[str, Column] = {}
    for chunk in chunks:
        if chunk.path.partition(".")[0] == image:
            sizes[chunk.path] = column_size(file, chunk, walk=walk)
    repeats = [leaf for leaf, size in sizes.items() if size.dictionary]
    total = sum(size.total for size in sizes.values())
    if total <= _CACHED_BYTES:
        # Dictionaries of it all are held at once.
        parquet, n = pq.ParquetFile(file, metadata=metadata, read_dictionary=repeats), _BATCH
    else:
        parquet, n = pq.ParquetFile(file, metadata=metadata), 1
        if all(size.largest <= _PAGE_BYTES and size.dictionary <= _PAGE_BYTES for size in sizes.values()):
            n = _BATCH
    if whole and total <= _CACHED_BYTES:
        yield parquet.read_row_group(group, columns=[image]).column(0)
        return
    for batch in parquet.iter_batches(n, row_groups=[group], columns=[image]):
        yield batch.column(0)


def _scalar_bytes(scalar: Any) -> bytes:
    """The bytes that an Arrow scalar holds, perhaps by way of a dictionary; none where it is null."""
    value = scalar.value if pa.types.is_dictionary(scalar.type) else scalar
    if value is None or not value.is_valid or pa.types.is_null(value.type):
        return b""
    buffer = value.as_buffer()
    if buffer.size > MAX_BYTES:
        raise ImageError(TOO_LARGE)
    return bytes(buffer)


def _group_starts(parquet: Any) -> list[int]:
    starts, total = [], 0
    for group in range(parquet.num_row_groups):
        starts.append(total)
        total += parquet.metadata.row_group(group).num_rows
    return starts


def _is_bytes(kind: pa.DataType) -> bool:
    kind = kind.value_type if pa.types.is_dictionary(kind) else kind
    return bool(pa.types.is_binary(kind) or pa.types.is_large_binary(kind) or pa.types.is_binary_view(kind))


def _is_image_struct(kind: pa.DataType) -> bool:
    return bool(
        pa.types.is_struct(kind)
        and (index := kind.get_field_index("bytes")) >= 0
        and (_is_bytes(kind.field(index).type) or pa.types.is_null(kind.field(index).type))
    )


def _is_image(kind: pa.DataType) -> bool:
    return _is_bytes(kind) or _is_image_struct(kind)


def is_list(kind: pa.DataType) -> bool:
    """Whether a type is one of lists."""
    return bool(pa.types.is_list(kind) or pa.types.is_large_list(kind))


def _is_plain(field: pa.Field) -> bool:
    """Whether a column can be kept: captions, or one plain value a row."""
    if field.name.lower() in CAPTION_COLUMNS:
        return not _is_bytes(field.type)
    return not (pa.types.is_nested(field.type) or _is_bytes(field.type))


def _scalar(value: Any) -> Any:
    """Dates, decimals and other values that JSON does not know, as text."""
    return value if value is None or isinstance(value, (str, int, float, list)) else str(value)
