"""Read images inside Parquet files and WebDataset tars.

`index_*` reads names, captions and offsets of a shard, no pixels. A locator inside a shard is the shard's path with
`#row=N` (Parquet) or `#bytes=OFFSET+SIZE` (tar) appended. Images are read in pieces, of which a shard has many: row
groups of Parquet, neighbours in a tar.
"""

from __future__ import annotations

import dataclasses
import functools
import posixpath
import threading
from collections.abc import Callable, Iterator
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from copyscope.documents import parse_json
from copyscope.errors import ImageError, reason

from .parquet_pages import Chunk, Column, column_size, opened, records
from .sidecars import SIDECAR_BYTES, is_image_name
from .storage import CUT_SHORT, MAX_BYTES, OUTSIDE, TOO_LARGE, Storage, join
from .table import CAPTION_COLUMNS, captions_of, distinct, extras_of, texts
from .tar_headers import TarDamage, members

_IMAGE_COLUMNS = ("image", "img", "jpg", "jpeg", "png", "webp", "image_bytes", "bytes")
_ID_COLUMNS = ("id", "key", "__key__", "file_name")
_CACHED_BYTES = 256 << 20  # row groups up to this size are kept whole for random access
_BATCH = 16
_PAGE_BYTES = 16 << 20  # a batch of values out of pages, or a dictionary, no larger than this takes little memory
_TAR_BLOCK = 1 << 20  # read at once while headers are looked for: most samples are smaller, a request costs as much
_TAR_PIECE = 8 << 20  # neighbours in a tar are read together up to this size,
_TAR_GAP = 64 << 10  # unless more than this lies between them, which nobody wants

Piece = tuple[int, int, Callable[[], Iterator[bytes | ImageError]]]
"""Images that are read together: how many, how many bytes (about), and what gives them or why they cannot be had."""


def image_column(schema: pa.Schema) -> str:
    """Column of a Parquet file that holds image bytes, or a struct of {bytes, path}; "" if there is none."""
    held = [field.name for field in schema if _is_bytes(field.type) or _is_image_struct(field.type)]
    named = [name for name in _IMAGE_COLUMNS if name in held]
    return (named or held or [""])[0]


@dataclasses.dataclass
class Indexed:
    """Index of a shard.

    Attributes:
        rows: arguments of `TableBuilder.add`, one dict an image; ids are provisional in Parquet, `NAME:ROW`.
        candidates: of Parquet, the values of columns of which one may become the ids, as Arrow: they are kept until all
            shards are known.
        damage: why there is no more, or "".
    """

    rows: list[dict[str, Any]] = dataclasses.field(default_factory=list)
    candidates: dict[str, pa.Array] = dataclasses.field(default_factory=dict)
    damage: str = ""


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
    plain = [field.name for field in schema if field.name != image and _is_plain(field)]
    inner = ""
    if _is_image_struct(schema.field(image).type) and schema.field(image).type.get_field_index("path") >= 0:
        inner = f"{image}.path"  # that leaf alone, without the bytes beside it
    for record in records(parquet, groups, file, plain + [inner] * bool(inner), walk=walk):
        row = len(found.rows)
        place = {"id": f"{name}:{row}", "image": f"{path}#row={row}"}
        if isinstance(record, str):
            found.rows.append(place | {"error": f"too large: {record}"})
            continue
        own = record.pop(image, None) if inner else None
        candidates = {column: record.get(column) for column in _ID_COLUMNS}
        if own and own.get("path"):
            candidates["path"] = own["path"]
        for column, value in candidates.items():
            if value is not None:
                ids.setdefault(column, []).append(str(value))
        extras = extras_of({key: _scalar(value) for key, value in record.items()}, without=["id"])
        found.rows.append(place | {"captions": captions_of(record), "extras": extras})


def chosen_ids(shards: list[dict[str, pa.Array]], n: int) -> pa.ChunkedArray | None:
    """The first of the id columns that every one of n rows has and no two rows share; None where there is none."""
    for column in (*_ID_COLUMNS, "path"):
        ids = pa.chunked_array([shard[column] for shard in shards if column in shard], pa.string())
        if len(ids) == n == len(ids.unique()):
            return ids
    return None


class ParquetImages:
    """Read image bytes out of Parquet files, by (path, row). Safe to call from many threads."""

    def __init__(self, storage: Storage) -> None:
        self._storage = storage
        self._lock = threading.Lock()
        self._cached: tuple[str, int, Any] = ("", -1, None)

    def read(self, path: str, row: int) -> bytes:
        """Bytes of one image. The row group it is in is kept for the next call, unless that is very large.

        Raises:
            ImageError: they cannot be had.
        """
        with self._lock:
            held, first, column = self._cached
            if held != path or not first <= row < first + len(column):
                try:
                    first, column = self._load(path, row)
                except Exception as error:
                    raise ImageError(f"damaged Parquet: {reason(error)}") from None
                self._cached = (path, first, column)
            cell = column[row - first]
            return self._bytes(path, cell)

    def pieces(self, path: str, rows: list[int]) -> Iterator[Piece]:
        """Many images of one file, `rows` ascending: a row group a piece, which holds a small batch at a time."""
        done = 0
        try:
            with self._storage.open(path) as file:
                parquet, groups = opened(file)
            image = image_column(parquet.metadata.schema.to_arrow_schema())
            for group, first in enumerate(_group_starts(parquet)):
                known = parquet.metadata.row_group(group)
                wanted = [row - first for row in rows[done:] if row < first + known.num_rows]
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
        self, path: str, metadata: Any, chunks: list[Chunk], image: str, group: int, rows: list[int]
    ) -> Iterator[bytes | ImageError]:
        done = first = 0
        failure = ImageError("damaged Parquet: the row group ends early")
        try:
            with self._storage.open(path) as file:
                for column in _image_pieces(file, metadata, chunks, image, group, self._storage.local):
                    while done < len(rows) and rows[done] < first + len(column):
                        cell = column[rows[done] - first]
                        done += 1
                        yield self._bytes_or_error(path, cell)
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

    def _bytes_or_error(self, path: str, cell: Any) -> bytes | ImageError:
        try:
            return self._bytes(path, cell)
        except ImageError as error:
            return error

    def _bytes(self, path: str, cell: Any) -> bytes:
        """The bytes of a cell, an Arrow scalar: of them or of a struct."""
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


def index_tar(storage: Storage, path: str) -> Indexed:
    """Index one tar in one pass over its headers, as far as it can be read."""
    samples: dict[str, dict[str, Any]] = {}
    found = Indexed()
    try:
        with storage.open(path, _TAR_BLOCK) as file:
            size = file.seek(0, 2)
            file.seek(0)
            found.damage = _scan_tar(file, size, samples)
    except Exception as error:
        found.damage = reason(error)
    for key, sample in samples.items():
        listed = sample.get("json", {})
        where = sample.get("image", sample.get("other"))
        found.rows.append(
            {
                "id": key,
                "image": where and f"{path}#bytes={where[0]}+{where[1]}",
                "captions": distinct(texts(sample.get("txt")) + captions_of(listed)),
                "error": sample.get("error") or (None if where else "no image in this sample"),
                "extras": extras_of(listed, without=["key"]) | ({"class": sample["cls"]} if "cls" in sample else {}),
            }
        )
    return found


def tar_pieces(storage: Storage, path: str, places: list[tuple[int, int]]) -> Iterator[Piece]:
    """Many images of one tar by (offset, size) in bytes, ascending: neighbours are one piece, read at once."""
    first = 0
    for number in range(1, len(places) + 1):
        start, end = places[first][0], sum(places[number - 1])
        if number < len(places):
            offset, size = places[number]
            if offset - end <= _TAR_GAP and offset + size - start <= _TAR_PIECE:
                continue
        run, first = places[first:number], number
        yield len(run), end - start, functools.partial(_read_run, storage, path, run)


def _read_run(storage: Storage, path: str, run: list[tuple[int, int]]) -> Iterator[bytes | ImageError]:
    start = run[0][0]
    try:
        data = storage.span(path, start, sum(run[-1]) - start)
    except ImageError as error:
        yield from [error] * len(run)
        return
    for offset, size in run:
        whole = offset + size - start <= len(data)
        yield data[offset - start : offset + size - start] if whole else ImageError(CUT_SHORT)


def _scan_tar(file: Any, size: int, samples: dict[str, dict[str, Any]]) -> str:
    """Fills `samples` by key; gives the damage found, or ""."""
    try:
        for name, offset, length in members(file, size):
            folder, base = posixpath.split(name.removeprefix("./"))
            stem, _, suffix = base.partition(".")
            if not stem or base.startswith("."):
                continue
            suffix = suffix.lower()
            sample = samples.setdefault(posixpath.join(folder, stem), {})
            if offset + length > size:
                return "truncated"
            if is_image_name(base):
                # KEY.jpg is the image; KEY.mask.png stands in only where there is no such.
                sample.setdefault("other" if "." in suffix else "image", (offset, length))
            elif suffix in ("txt", "caption", "json", "cls"):
                if length > SIDECAR_BYTES:
                    sample["error"] = (
                        f"too large: {base[-80:]} has {length:,} bytes, and {SIDECAR_BYTES:,} are the most"
                    )
                    continue
                file.seek(offset)
                text = file.read(length).decode("utf-8-sig", "replace").strip()
                sample["txt" if suffix == "caption" else suffix] = _json_object(text) if suffix == "json" else text
    except TarDamage as error:
        return str(error)
    return ""


def _json_object(text: str) -> dict[str, Any]:
    try:
        found = parse_json(text)
    except ValueError:
        return {}
    return found if isinstance(found, dict) else {}


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


def _is_plain(field: pa.Field) -> bool:
    """Whether a column can be kept: captions, or one plain value a row."""
    if field.name.lower() in CAPTION_COLUMNS:
        return not _is_bytes(field.type)
    return not (pa.types.is_nested(field.type) or _is_bytes(field.type))


def _scalar(value: Any) -> Any:
    """Dates, decimals and other values that JSON does not know, as text."""
    return value if value is None or isinstance(value, (str, int, float, list)) else str(value)
