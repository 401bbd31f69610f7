"""Images inside bigger files: Parquet with image bytes, and WebDataset tars as img2dataset writes them.

`index_*` reads names, captions and offsets of a shard, no pixels. A locator inside a shard is the shard's path with
`#row=N` (Parquet) or `#bytes=OFFSET+SIZE` (tar) appended.
"""

from __future__ import annotations

import json
import posixpath
import tarfile
import threading
from collections.abc import Iterator
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from .errors import ImageError, InputError
from .rows import CAPTION_COLUMNS, Rows, captions_of, distinct, extras_of, texts
from .sidecars import is_image_name
from .storage import Storage, join, reason

_IMAGE_COLUMNS = ("image", "img", "jpg", "jpeg", "png", "webp", "image_bytes", "bytes")
_ID_COLUMNS = ("id", "key", "__key__", "file_name")
_CACHED_BYTES = 256 << 20  # row groups up to this size are kept whole for random access


def image_column(schema: pa.Schema) -> str:
    """The column of a Parquet file that holds image bytes, or a struct of {bytes, path}; "" if there is none."""
    held = [field.name for field in schema if _is_bytes(field.type) or _is_image_struct(field.type)]
    named = [name for name in _IMAGE_COLUMNS if name in held]
    return (named or held or [""])[0]


def index_parquet(storage: Storage, path: str, rows: Rows, name: str) -> list[dict[str, Any]]:
    """Adds the rows of one Parquet file; its id is provisional, `name:ROW`. Gives the id candidates of each row."""
    with storage.open(path) as file:
        parquet = pq.ParquetFile(file)
        schema = parquet.schema_arrow
        image = image_column(schema)
        if not image:
            raise InputError(f"no column with image bytes; its columns are: {', '.join(schema.names)}")
        plain = [field.name for field in schema if field.name != image and _is_plain(field)]
        inner = ""
        if _is_image_struct(schema.field(image).type) and schema.field(image).type.get_field_index("path") >= 0:
            inner = f"{image}.path"  # that leaf alone, without the bytes beside it
        candidates: list[dict[str, Any]] = []
        for batch in parquet.iter_batches(batch_size=4096, columns=plain + [inner] * bool(inner)):
            for record in batch.to_pylist() if batch.num_columns else [{} for _ in range(batch.num_rows)]:
                own = record.pop(image, None) if inner else None
                ids = {column: record[column] for column in _ID_COLUMNS if record.get(column) is not None}
                if own and own.get("path"):
                    ids["path"] = own["path"]
                candidates.append(ids)
                row = len(candidates) - 1
                extras = extras_of({key: _scalar(value) for key, value in record.items()}, without=["id"])
                rows.add(f"{name}:{row}", f"{path}#row={row}", captions_of(record), extras=extras)
        return candidates


def chosen_ids(candidates: list[dict[str, Any]], provisional: list[str]) -> list[str]:
    """The first of the id columns that every row has and no two rows share, else the provisional ids."""
    for column in (*_ID_COLUMNS, "path"):
        ids = [str(record[column]) for record in candidates if column in record]
        if len(ids) == len(candidates) == len(set(ids)):
            return ids
    return provisional


class ParquetImages:
    """Reads image bytes out of Parquet files, by (path, row). Safe to call from many threads."""

    def __init__(self, storage: Storage) -> None:
        self._storage = storage
        self._lock = threading.Lock()
        self._cached: tuple[str, int, Any] = ("", -1, None)

    def read(self, path: str, row: int) -> bytes:
        """Bytes of one image. The row group it is in is kept for the next call, unless that is very large."""
        with self._lock:
            held, first, column = self._cached
            if held != path or not first <= row < first + len(column):
                try:
                    first, column = self._load(path, row)
                except Exception as error:
                    raise ImageError(f"damaged Parquet: {reason(error)}") from None
                self._cached = (path, first, column)
            cell = column[row - first].as_py()
        return self._bytes(path, cell)

    def stream(self, path: str, rows: list[int]) -> Iterator[bytes | ImageError]:
        """Bytes of many images of one file, `rows` ascending, holding a small batch of them at a time."""
        done = 0
        try:
            with self._storage.open(path) as file:
                parquet = pq.ParquetFile(file)
                image = image_column(parquet.schema_arrow)
                wanted = iter(rows)
                row = next(wanted, None)
                for group, first in enumerate(_group_starts(parquet)):
                    if row is None or row >= first + parquet.metadata.row_group(group).num_rows:
                        continue
                    for batch in parquet.iter_batches(16, row_groups=[group], columns=[image]):
                        column = batch.column(0)
                        while row is not None and row < first + len(column):
                            yield self._bytes_or_error(path, column[row - first].as_py())
                            done += 1
                            row = next(wanted, None)
                        first += len(column)
                        if row is None:
                            return
        except Exception as error:
            failure = ImageError(f"damaged Parquet: {reason(error)}")
        else:
            failure = ImageError("the Parquet file has fewer rows than when it was opened")
        for _ in rows[done:]:
            yield failure

    def _load(self, path: str, row: int) -> tuple[int, Any]:
        with self._storage.open(path) as file:
            parquet = pq.ParquetFile(file)
            image = image_column(parquet.schema_arrow)
            starts = _group_starts(parquet)
            group = max(index for index, first in enumerate(starts) if first <= row)
            first = starts[group]
            if parquet.metadata.row_group(group).total_byte_size <= _CACHED_BYTES:
                return first, parquet.read_row_group(group, columns=[image]).column(0)
            for batch in parquet.iter_batches(16, row_groups=[group], columns=[image]):
                if row < first + batch.num_rows:
                    return first, batch.column(0)
                first += batch.num_rows
            raise IndexError(f"no row {row}")

    def _bytes_or_error(self, path: str, cell: Any) -> bytes | ImageError:
        try:
            return self._bytes(path, cell)
        except ImageError as error:
            return error

    def _bytes(self, path: str, cell: Any) -> bytes:
        data = cell.get("bytes") if isinstance(cell, dict) else cell
        if data:
            return bytes(data)
        beside = cell.get("path") if isinstance(cell, dict) else None
        if beside:
            return self._storage.read(join(posixpath.dirname(path), beside))
        raise ImageError("no image bytes in this row")


def index_tar(storage: Storage, path: str, rows: Rows, name: str) -> None:
    """Adds the samples of one tar in one pass over its headers; a damaged tar adds an error row after what it gave."""
    samples: dict[str, dict[str, Any]] = {}
    damage = ""
    try:
        with storage.open(path) as file:
            size = file.seek(0, 2)
            file.seek(0)
            damage = _scan_tar(file, size, samples)
    except Exception as error:
        damage = reason(error)
    for key, sample in samples.items():
        listed = sample.get("json", {})
        captions = distinct(texts(sample.get("txt")) + captions_of(listed))
        extras = extras_of(listed, without=["key"]) | ({"class": sample["cls"]} if "cls" in sample else {})
        where = sample.get("image", sample.get("other"))
        missing = None if where else "no image in this sample"
        rows.add(key, where and f"{path}#bytes={where[0]}+{where[1]}", captions, error=missing, extras=extras)
    if damage:
        rows.add(name, None, error=f"damaged tar: {damage}")


def _scan_tar(file: Any, size: int, samples: dict[str, dict[str, Any]]) -> str:
    """Fills `samples` by key; gives the damage found, or ""."""
    with tarfile.open(fileobj=file, mode="r:") as tar:
        while member := tar.next():
            tar.members = []  # type: ignore[attr-defined]  # else it keeps every header it has seen
            if not member.isfile():
                continue
            folder, base = posixpath.split(member.name.removeprefix("./"))
            stem, _, suffix = base.partition(".")
            if not stem or base.startswith("."):
                continue
            suffix = suffix.lower()
            sample = samples.setdefault(posixpath.join(folder, stem), {})
            if member.offset_data + member.size > size:
                return "truncated"
            if is_image_name(base):
                # KEY.jpg is the image; KEY.mask.png stands in only where there is no such.
                sample.setdefault("other" if "." in suffix else "image", (member.offset_data, member.size))
            elif suffix in ("txt", "caption", "json", "cls"):
                file.seek(member.offset_data)
                text = file.read(member.size).decode("utf-8-sig", "replace").strip()
                sample["txt" if suffix == "caption" else suffix] = _json_object(text) if suffix == "json" else text
        file.seek(tar.offset)
        # A whole archive ends in blocks of zeros.
        return "" if file.read(512) == bytes(512) else "truncated"


def _json_object(text: str) -> dict[str, Any]:
    try:
        found = json.loads(text)
    except (ValueError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}


def _group_starts(parquet: Any) -> list[int]:
    starts, total = [], 0
    for group in range(parquet.num_row_groups):
        starts.append(total)
        total += parquet.metadata.row_group(group).num_rows
    return starts


def _is_bytes(kind: pa.DataType) -> bool:
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
