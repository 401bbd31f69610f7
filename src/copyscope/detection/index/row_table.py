"""Ids, captions and digests of the rows of an index, read from disk on demand."""

from __future__ import annotations

import threading
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from . import manifest as files

SCHEMA = pa.schema(
    {"id": pa.string(), "caption": pa.string(), "sha256": pa.string()}
    | {"weight": pa.float64(), "width": pa.int32(), "height": pa.int32()}
)
GROUP_ROWS = 4096
"""Rows of a group of the file: so many are read where one is asked for."""
PIECE_ROWS = 2**20
HELD = 256
"""Groups that are kept in memory once they were read."""


class RowTable:
    """Rows of all segments of an index, numbered through, read on demand. Safe to use from many threads.

    Args:
        folder: of the index.
        names: of the segments.
    """

    def __init__(self, folder: Path, names: Sequence[str]) -> None:
        # Open from now on, so that a writer cannot take them away; read when asked for.
        self._folder, self._names = folder, [f"{name}.rows" for name in names]
        self._held = [files.hold(folder, name) for name in self._names]
        self._open: list[tuple[pq.ParquetFile, NDArray[np.int64]]] | None = None
        self._groups: dict[tuple[int, int, tuple[str, ...]], pa.Table] = {}
        self._lock = threading.Lock()

    def take(self, rows: NDArray[np.int64], columns: Sequence[str]) -> list[dict[str, Any]]:
        """Some columns of `rows` [n], which ascend, as plain values."""
        found: list[dict[str, Any]] = []
        with self._lock:
            start = 0
            for at, (_, ends) in enumerate(self._files()):
                stop = start + int(ends[-1]) if len(ends) else start
                mine = rows[(rows >= start) & (rows < stop)] - start
                group = np.searchsorted(ends, mine, side="right")
                for each in np.unique(group).tolist():
                    first = int(ends[each - 1]) if each else 0
                    table = self._group(at, each, tuple(columns))
                    found += table.take(pa.array(mine[group == each] - first)).to_pylist()
                start = stop
        return found

    def pieces(self, columns: Sequence[str] | None = None) -> Iterator[tuple[int, pa.Table]]:
        """All rows, a piece at a time: the number of its first row, and the piece.

        Args:
            columns: names; None = all.
        """
        start = 0
        for at in range(len(self._names)):
            with self._lock:
                _, ends = self._files()[at]
            # As many groups as make about PIECE_ROWS, and one at least.
            lots = np.split(np.arange(len(ends)), np.flatnonzero(np.diff((ends - 1) // PIECE_ROWS)) + 1)
            for lot in lots:
                if len(lot):
                    with self._lock:
                        piece = self._read(at, lot.tolist(), columns)
                    yield start, piece
                    start += len(piece)

    def column(self, name: str) -> pa.ChunkedArray:
        """A whole column, as Arrow."""
        parts = [piece[name].combine_chunks() for _, piece in self.pieces([name])]
        return pa.chunked_array(parts, SCHEMA.field(name).type)

    def find(self, ids: pa.Array | pa.ChunkedArray, gone: NDArray[np.bool_]) -> NDArray[np.int64]:
        """Rows whose id is among `ids`, in their order; memory is that of `ids`.

        Args:
            ids: the ids.
            gone: bool [m], rows that do not count.
        """
        found = [np.zeros(0, np.int64)]
        for start, piece in self.pieces(["id"]):
            there = pc.is_in(piece["id"], value_set=ids).to_numpy(zero_copy_only=False)
            found.append(start + np.flatnonzero(there))
        rows = np.concatenate(found)
        return rows[~gone[rows]]

    def _files(self) -> list[tuple[pq.ParquetFile, NDArray[np.int64]]]:
        """Of each segment the file, and where each of its groups ends."""
        if self._open is None:
            opened = []
            for at, held in enumerate(self._held):
                with files.as_corruption_error(self._folder, f"{self._names[at]}.parquet"):
                    file = pq.ParquetFile(held, page_checksum_verification=True)
                about = file.metadata
                sizes = [about.row_group(group).num_rows for group in range(about.num_row_groups)]
                opened.append((file, np.cumsum(sizes, dtype=np.int64)))
            self._open = opened
        return self._open

    def _group(self, at: int, group: int, columns: tuple[str, ...]) -> pa.Table:
        key = at, group, columns
        if key not in self._groups:
            if len(self._groups) >= HELD:
                self._groups.pop(next(iter(self._groups)))
            self._groups[key] = self._read(at, [group], columns)
        return self._groups[key]

    def _read(self, at: int, groups: list[int], columns: Sequence[str] | None) -> pa.Table:
        with files.as_corruption_error(self._folder, f"{self._names[at]}.parquet"):
            return self._files()[at][0].read_row_groups(groups, columns=columns and list(columns))


def described(table: pa.Table, rows: NDArray[np.intp]) -> Iterator[pa.Table]:
    """Columns that an index keeps, of the `rows` [n], which ascend, of a corpus table, in pieces."""
    names = [name for name in (*SCHEMA.names, "captions") if name in table.column_names and name != "caption"]
    table = table.select(names)
    for start in range(0, len(rows), PIECE_ROWS // 8):
        mine = rows[start : start + PIECE_ROWS // 8]
        # Of the slice alone: the whole of a column may be too long to be taken from at once.
        piece = table.slice(int(mine[0]), int(mine[-1] - mine[0]) + 1).take(pa.array(mine - mine[0]))
        piece = piece.append_column("caption", first_of(piece["captions"].combine_chunks()))
        yield piece.select(SCHEMA.names).cast(SCHEMA)


def first_of(lists: pa.ListArray) -> pa.Array:
    """First element of each list [n]; null where there is none."""
    length = pc.fill_null(pc.list_value_length(lists), 0).to_numpy(zero_copy_only=False)
    starts = np.asarray(lists.offsets)[:-1]
    return lists.values.take(pa.array(starts, mask=length == 0))


def write(folder: Path, name: str, pieces: Iterable[pa.Table]) -> dict[str, Any]:
    """Write pieces one after the other as `NAME.rows.parquet`, and return the entry in the manifest."""

    def fill(file: Any) -> None:
        with pq.ParquetWriter(file, SCHEMA, write_page_checksum=True) as writer:
            for piece in _gathered(pieces):
                writer.write_table(piece, row_group_size=GROUP_ROWS)

    return files.write_with(folder, f"{name}.rows.parquet", fill)


def _gathered(pieces: Iterable[pa.Table]) -> Iterator[pa.Table]:
    """The same rows in whole groups, but the last: small pieces would make many small groups."""
    waiting: list[pa.Table] = []
    for piece in pieces:
        whole = pa.concat_tables([*waiting, piece])
        cut = len(whole) // GROUP_ROWS * GROUP_ROWS
        if cut:
            yield whole.slice(0, cut)
        waiting = [whole.slice(cut)]
    if waiting and len(waiting[0]):
        yield waiting[0]
