"""Rows of a corpus in the making: what every layout puts its images into, and how captions and columns are named."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Any

import pyarrow as pa

from .storage import readable, to_text

SCHEMA = pa.schema(
    {
        "id": pa.string(),
        "image": pa.string(),
        "captions": pa.list_(pa.string()),
        "weight": pa.float64(),
        "sha256": pa.string(),
        "width": pa.int32(),
        "height": pa.int32(),
        "error": pa.string(),
    }
)
CAPTION_COLUMNS = ("caption", "captions", "text", "texts")
"""Columns and keys that hold the captions of an image, each a string or a list of strings; case does not matter."""


class Rows:
    """Collects rows column by column; `table` gives them as Arrow. Identifiers that repeat get `#2`, `#3`, ..."""

    def __init__(self) -> None:
        self._columns: dict[str, list[Any]] = {name: [] for name in ("id", "image", "captions", "weight", "error")}
        self._extras: dict[str, list[Any]] = {}

    def __len__(self) -> int:
        return len(self._columns["id"])

    def add(
        self,
        id: str,
        image: str | None,
        captions: Iterable[str] = (),
        *,
        error: str | None = None,
        extras: Mapping[str, Any] | None = None,
    ) -> None:
        """One image: its locator `image` (None where there is nothing to read), and further columns by name."""
        row = len(self)
        weight = 1.0
        for name, value in (extras or {}).items():
            if name == "weight" and _is_weight(value):
                weight = float(value)
                continue
            column = self._extras.setdefault(_free_name(name), [])
            column.extend([None] * (row - len(column)))
            column.append(value)
        values = (readable(id), None if image is None else to_text(image), list(captions), weight, error)
        for column, value in zip(self._columns.values(), values, strict=True):
            column.append(value)

    @property
    def ids(self) -> list[str]:
        """Identifiers so far, not yet made unique."""
        return list(self._columns["id"])

    @property
    def errors(self) -> list[str | None]:
        """Why each row so far cannot be read; None where it can, as far as is known."""
        return list(self._columns["error"])

    def any_image(self) -> bool:
        """Whether some row has an image to read."""
        return any(image is not None for image in self._columns["image"])

    def rename(self, ids: list[str]) -> None:
        """Sets the identifiers of the rows so far."""
        self._columns["id"] = [readable(name) for name in ids]

    def table(self) -> pa.Table:
        """The rows as a table: the columns of SCHEMA, then the others by name."""
        columns = self._columns | {"id": unique(self._columns["id"])}
        arrays = {
            name: pa.array(columns[name], kind) if name in columns else pa.nulls(len(self), kind)
            for name, kind in zip(SCHEMA.names, SCHEMA.types, strict=True)
        }
        for name, values in self._extras.items():
            values.extend([None] * (len(self) - len(values)))
            arrays[name] = column_of(values)
        return pa.table(arrays)


def captions_of(record: Mapping[str, Any]) -> list[str]:
    """The captions in one record of metadata; its prompt stands in only where it has no caption column at all."""
    keys = {str(name).lower(): name for name in record}
    columns = [keys[name] for name in CAPTION_COLUMNS if name in keys]
    if not columns and "prompt" in keys:
        columns = [keys["prompt"]]
    return distinct(text for name in columns for text in texts(record[name]))


def extras_of(record: Mapping[str, Any], without: Iterable[str] = ()) -> dict[str, Any]:
    """The plain values (text, number, truth value) of a record that are neither captions nor named in `without`."""
    left_out = {*CAPTION_COLUMNS, *without}
    return {
        str(name): value
        for name, value in record.items()
        if str(name).lower() not in left_out and isinstance(value, (str, int, float))
    }


def texts(value: Any) -> list[str]:
    """The non-empty strings of a string or a list of strings, without surrounding white space; a number is its text."""
    values = value if isinstance(value, (list, tuple)) else [value]
    found = (clean(str(text)).strip() for text in values if isinstance(text, (str, int, float)))
    return [text for text in found if text]


def clean(text: str) -> str:
    """`text` without lone surrogates, which JSON can hold and a table cannot."""
    return text.encode("utf-8", "replace").decode()


def distinct(values: Iterable[str]) -> list[str]:
    """The values without repetitions, in their order."""
    return list(dict.fromkeys(values))


def unique(ids: list[str]) -> list[str]:
    """The identifiers, with `#2`, `#3`, ... appended to those that were there before."""
    if len(set(ids)) == len(ids):
        return ids
    taken, seen, result = set(ids), set[str](), []
    next_number: dict[str, int] = {}
    for name in ids:
        new = name
        if name in seen:
            number = next_number.get(name, 2)
            while f"{name}#{number}" in taken:
                number += 1
            new = f"{name}#{number}"
            next_number[name] = number + 1
            taken.add(new)
        seen.add(name)
        result.append(new)
    return result


def column_of(values: list[Any]) -> pa.Array:
    """Plain values as an Arrow column; where they are of several types, numbers become floats and all else text."""
    values = [clean(value) if isinstance(value, str) else value for value in values]
    present = [value for value in values if value is not None]
    if (
        not present
        or any(isinstance(value, str) for value in present)
        or (any(isinstance(value, bool) for value in present) and not all(isinstance(value, bool) for value in present))
    ):
        return pa.array([None if value is None else str(value) for value in values], pa.string())
    try:
        if any(isinstance(value, float) for value in present):
            return pa.array([None if value is None else float(value) for value in values], pa.float64())
        return pa.array(values)
    except (pa.ArrowInvalid, OverflowError):  # integers beyond 64 bits
        return pa.array([None if value is None else str(value) for value in values], pa.string())


def _free_name(name: str) -> str:
    """A column of the data that is named like one of ours, and is not ours, keeps its values under `listed_NAME`."""
    return f"listed_{name}" if name in SCHEMA.names else name


def _is_weight(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value) and value >= 0
