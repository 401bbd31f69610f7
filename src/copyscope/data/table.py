"""Build the table of a corpus; names of its columns and of caption columns."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterable, Mapping
from decimal import Decimal
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
OWN = ("id", "image", "captions", "weight", "error")
PIECE = 65536
MAX_NAME, MAX_TEXT, MAX_CAPTIONS, MAX_COLUMNS = 4096, 100_000, 10_000, 1000
"""Characters of a name, and of a caption or another value; captions of an image; columns of a corpus. A row beyond
these has an error."""
CAPTION_COLUMNS = ("caption", "captions", "text", "texts")
"""Columns and keys that hold the captions of an image, each a string or a list of strings; case does not matter."""
STAND_INS = ("prompt", "comment", "sentence", "sentences", "description", "tags")
"""Those of a record that has none of the former, the first alone."""


class TableBuilder:
    """Collect rows column by column into an Arrow table. Identifiers that repeat get `#2`, `#3`, ...

    Every PIECE rows what was added becomes Arrow: as Python objects, the rows of ten million images would take more
    memory than all that is done with them.
    """

    def __init__(self) -> None:
        self._columns: dict[str, _Column] = {name: _Column(SCHEMA.field(name).type) for name in OWN}
        self._extras: dict[str, _Column] = {}
        self._n = 0
        self._first_error: str | None = None
        self._any_image = False

    def __len__(self) -> int:
        return self._n

    def add(
        self,
        id: str,
        image: str | None,
        captions: Iterable[str] = (),
        *,
        error: str | None = None,
        extras: Mapping[str, Any] | None = None,
    ) -> None:
        """Add an image.

        Args:
            id: identifier.
            image: locator; None where there is nothing to read.
            captions: of the image.
            error: why it cannot be read.
            extras: further columns by name.
        """
        weight = 1.0
        captions, extras = list(captions), extras or {}
        if wrong := self._beyond_bounds(id, captions, extras):
            error, captions, extras = error or wrong, [], {}
            image = None if "name" in wrong else image
        for name, value in extras.items():
            if name == "weight":
                if value is None or value == "":
                    continue
                if (given := _weight(value)) is not None:
                    weight = given
                    continue
                error, value = error or f"its weight is not a number from 0: {_shown(value)!r:.60}", _shown(value)
            self._extras.setdefault(_free_name(clean(name)), _Column(None)).put(self._n, value)
        values = (_bounded(readable(id)), None if image is None else to_text(image), captions, weight, error)
        for column, value in zip(self._columns.values(), values, strict=True):
            column.put(self._n, value)
        self._n += 1
        self._first_error = self._first_error or error
        self._any_image |= image is not None

    def _beyond_bounds(self, id: str, captions: list[str], extras: Mapping[str, Any]) -> str:
        """What of a row is more than any image has, and would make the table too large; "" where nothing is."""
        if len(id) > MAX_NAME or "\0" in id:
            return f"its name has {len(id):,} characters" if len(id) > MAX_NAME else "its name has a NUL in it"
        if len(captions) > MAX_CAPTIONS:
            return f"{len(captions):,} captions, and {MAX_CAPTIONS:,} are the most"
        longest = max(map(len, captions), default=0)
        if longest > MAX_TEXT:
            return f"a caption of {longest:,} characters, and {MAX_TEXT:,} are the most"
        for name, value in extras.items():
            if len(name) > MAX_NAME or (isinstance(value, str) and len(value) > MAX_TEXT):
                return f"the column {name[:40]!r} has more than {MAX_TEXT:,} characters"
        if len(self._extras) + len(extras) > MAX_COLUMNS and len(self._extras.keys() | extras.keys()) > MAX_COLUMNS:
            return f"columns beyond the first {MAX_COLUMNS:,}"
        return ""

    @property
    def first_error(self) -> str | None:
        """Error of the first row that is known not to be readable; None where all may be."""
        return self._first_error

    def any_image(self) -> bool:
        """Whether some row has an image to read."""
        return self._any_image

    def rename(self, ids: Iterable[str]) -> None:
        """Set the identifiers of the rows so far."""
        column = self._columns["id"] = _Column(pa.string())
        for row, name in enumerate(ids):
            column.put(row, _bounded(readable(name)))

    def table(self) -> pa.Table:
        """The rows as a table: the columns of SCHEMA, then the others by name."""
        columns = {name: column.whole(self._n) for name, column in self._columns.items()}
        if len(columns["id"].unique()) != self._n:
            columns["id"] = pa.chunked_array([unique(columns["id"].to_pylist())], pa.string())
        arrays = {
            name: columns[name] if name in columns else pa.nulls(self._n, kind)
            for name, kind in zip(SCHEMA.names, SCHEMA.types, strict=True)
        }
        return pa.table(arrays | {name: column.whole(self._n) for name, column in self._extras.items()})


class _Column:
    """The values of a column by row, those not put null. kind: their type; None = what holds all of them."""

    def __init__(self, kind: pa.DataType | None) -> None:
        self._kind = kind
        self._chunks: list[pa.Array] = []
        self._n_before = 0
        self._values: list[Any] = []

    def put(self, row: int, value: Any) -> None:
        """The value of a row behind all that have one."""
        self._fill(row)
        self._values.append(value)

    def whole(self, n: int) -> pa.ChunkedArray:
        """The values of rows 0 to n - 1."""
        self._fill(n)
        chunks = [*self._chunks, self._chunk(self._values)]
        kind = self._kind or _type_of_all([chunk.type for chunk in chunks])
        if kind is None:
            values = [value for chunk in chunks for value in chunk.to_pylist()]
            return pa.chunked_array([column_of(values)])
        # An integer that a float cannot hold becomes the nearest one, as it does within a piece.
        return pa.chunked_array([chunk.cast(kind, safe=False) for chunk in chunks], kind)

    def _fill(self, row: int) -> None:
        """With nulls up to a row; what makes a whole piece becomes Arrow."""
        while self._n_before + len(self._values) < row or len(self._values) >= PIECE:
            room = min(row - self._n_before, PIECE) - len(self._values)
            self._values += [None] * room
            if len(self._values) >= PIECE:
                self._chunks.append(self._chunk(self._values))
                self._n_before += len(self._values)
                self._values = []

    def _chunk(self, values: list[Any]) -> pa.Array:
        if self._kind is not None:
            return pa.array(values, self._kind)
        return column_of(values) if any(value is not None for value in values) else pa.nulls(len(values))


def _type_of_all(kinds: list[pa.DataType]) -> pa.DataType | None:
    """The type that pieces of these types become without a change of any value; None where there is none."""
    found = {kind for kind in kinds if kind != pa.null()}
    if len(found) < 2:
        return next(iter(found), pa.string())
    return pa.float64() if found == {pa.int64(), pa.float64()} else None


def captions_of(record: Mapping[str, Any]) -> list[str]:
    """Captions in one record of metadata.

    Its prompt stands in only where it has no caption column at all, then a comment, a sentence, ...
    """
    keys = {str(name).strip().lower(): name for name in record}
    columns = [keys[name] for name in CAPTION_COLUMNS if name in keys]
    if not columns:
        columns = [keys[name] for name in STAND_INS if name in keys][:1]
    return distinct(text for name in columns for text in texts(record[name]))


def extras_of(record: Mapping[str, Any], without: Iterable[str] = ()) -> dict[str, Any]:
    """Plain values (text, number, truth value) of a record that are neither captions nor named in `without`."""
    left_out = {*CAPTION_COLUMNS, *without}
    return {
        str(name): float(value) if isinstance(value, Decimal) else value
        for name, value in record.items()
        if (str(name).strip().lower() not in left_out and isinstance(value, (str, int, float, Decimal)))
        or (name == "weight" and value is not None)
    }


def texts(value: Any) -> list[str]:
    """Non-empty strings of a string or a list of strings, without surrounding white space.

    A number is its text, and NaN, which stands for nothing in tables, is none.
    """
    values = value if isinstance(value, (list, tuple)) else [value]
    found = (clean(str(text)).strip() for text in values if isinstance(text, (str, int, float)) and text == text)
    return [text for text in found if text]


def clean(text: str) -> str:
    """`text` without lone surrogates, which JSON can hold and a table cannot."""
    return text.encode("utf-8", "replace").decode()


def distinct(values: Iterable[str]) -> list[str]:
    """Drop repetitions, in order."""
    return list(dict.fromkeys(values))


def unique(ids: list[str]) -> list[str]:
    """Append `#2`, `#3`, ... to identifiers that were there before."""
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
    """Arrow column of plain values; where they are of several types, numbers become floats and all else text."""
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


def _bounded(name: str) -> str:
    """A name as an id: without NUL, and of a length that a table and a terminal can bear."""
    name = name.replace("\0", "\N{REPLACEMENT CHARACTER}")
    return name if len(name) <= MAX_NAME else f"{name[:200]}...{hashlib.sha256(name.encode()).hexdigest()[:8]}"


def _shown(value: Any) -> str:
    try:
        return str(value)[:MAX_NAME]
    except ValueError:  # a number of more digits than Python writes
        return "a number of thousands of digits"


def _weight(value: Any) -> float | None:
    """A weight from any form of number that a table can hold; None where it is none, or negative."""
    if isinstance(value, bool) or (isinstance(value, str) and len(value) > MAX_NAME):
        return None
    try:
        weight = float(value)
    except (TypeError, ValueError, OverflowError):
        return None
    return weight if math.isfinite(weight) and weight >= 0 else None
