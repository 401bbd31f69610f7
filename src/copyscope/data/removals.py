"""Removal lists (opt-outs): leave out images named by id, sha256, URL or key."""

from __future__ import annotations

import dataclasses
import hashlib
import os
import posixpath
import re
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from copyscope.errors import ImageError, InputError
from copyscope.files import plain_cell
from copyscope.machine import Progress

from .captions.tables import records
from .corpus import Corpus
from .storage import connect

COLUMNS = ("id", "sha256", "url", "key", "image", "file_name")
"""Columns of a table that name what shall be removed, and of a corpus that are compared with it."""

_COMPARED = {*COLUMNS, "original_id", "listed_sha256"}
PIECE = 65_536
_SHA256 = re.compile(r"[0-9a-fA-F]{64}")


@dataclasses.dataclass(frozen=True)
class Removed:
    """What a removal list did.

    Args:
        n_listed: different entries of the list.
        n_removed: images that one or more of them name.
        unmatched: entries that name none.
    """

    n_listed: int
    n_removed: int
    unmatched: frozenset[str]

    def summary(self) -> dict[str, int]:
        """Counts as plain values: n_listed, n_removed, n_unmatched."""
        return {"n_listed": self.n_listed, "n_removed": self.n_removed, "n_unmatched": len(self.unmatched)}


def read_list(path_or_url: str | os.PathLike[str]) -> list[str]:
    """Read the entries of a removal list.

    Args:
        path_or_url: of a .csv, .tsv, .jsonl or .parquet table all values in COLUMNS count, of any other file its lines.

    Returns:
        The entries, without empty ones.

    Raises:
        InputError: the list cannot be read, or the table has no such column.
    """
    origin = os.fspath(path_or_url)
    storage, path = connect(origin)
    suffix = posixpath.splitext(path)[1].lower()
    if suffix not in (".csv", ".tsv", ".jsonl", ".parquet"):
        try:
            lines = storage.read(path).decode("utf-8-sig", "replace").splitlines()
        except ImageError as error:
            raise InputError(
                f"Cannot read {origin}: {error}.\nGive a text file, one id, sha256 or URL a line"
            ) from None
        return [line.strip() for line in lines if line.strip()]
    entries: list[str] = []
    for where, record in records(storage, path):
        named = [str(value) for name, value in record.items() if name.lower() in COLUMNS and value is not None]
        if not named:
            raise InputError(f"{origin}, {where}: names no image.\nEach record has one of: {', '.join(COLUMNS)}")
        # Our own lists have an apostrophe before what a spreadsheet would run.
        entries += map(plain_cell, named) if suffix in (".csv", ".tsv") else named
    return entries


def leave_out(corpus: Corpus, listed: Iterable[str], *, progress: Progress | None = None) -> tuple[Corpus, Removed]:
    """Leave the images out that a removal list names.

    An entry names every image whose column `id`, `sha256`, `url`, `key`, `file_name`, `image`, `original_id` or
    `listed_sha256` is equal to it, or whose URL or key in its store is. Where an entry looks like a sha256, files whose
    sha256 is not known yet are read for it, and it is in the corpus then. A row that cannot be read has none, and
    stays, with its error.

    Args:
        corpus: the images.
        listed: the entries.
        progress: called with a label, the number done and the total.

    Returns:
        The corpus without the images, and what became of the list.

    Raises:
        InputError: no image is left.
    """
    wanted = {_plain(entry) for entry in listed}
    names = [name for name in corpus.table.column_names if str(name).lower() in _COMPARED]
    removed, matched = _rows_named(corpus, names, wanted)
    if any(_SHA256.fullmatch(entry) for entry in wanted):  # the same file may be there under other names too
        corpus = _hashed(corpus, removed, progress)
        more, found = _rows_named(corpus, ["sha256"], wanted)
        removed, matched = removed | more, matched | found
    n = int(removed.sum())
    if n and n == len(corpus):
        raise InputError(f"All {n} images in {corpus.origin} are to be removed.\nName other images")
    return corpus.take(np.flatnonzero(~removed)), Removed(len(wanted), n, frozenset(wanted - matched))


def ids_of(ids: Sequence[str], sha256: Sequence[str | None], listed: Iterable[str]) -> tuple[list[str], Removed]:
    """Ids that a removal list names, where images are known by id and sha256 alone, as in an index; and its outcome.

    Args:
        ids: of the images [n].
        sha256: hex, of their files [n]; None where it is not known.
        listed: the entries.
    """
    wanted = {_plain(entry) for entry in listed}
    rows, matched = _named([ids, sha256], wanted)
    return [ids[row] for row in sorted(rows)], Removed(len(wanted), len(rows), frozenset(wanted - matched))


def _plain(entry: str) -> str:
    return entry.lower() if _SHA256.fullmatch(entry) else entry


def _named(columns: Iterable[Sequence[Any]], wanted: set[str]) -> tuple[set[int], set[str]]:
    """Rows that some entry names, and these entries."""
    rows, matched = set[int](), set[str]()
    for column in columns:
        for row, value in enumerate(column):
            if value is not None and (entry := _plain(str(value))) in wanted:
                rows.add(row)
                matched.add(entry)
    return rows, matched


def _rows_named(corpus: Corpus, names: Iterable[str], wanted: set[str]) -> tuple[NDArray[np.bool_], set[str]]:
    """Which rows [n] some entry names in one of these columns, and these entries.

    By its address too, if `id` is among the columns.
    """
    names = list(names)
    found, matched = np.zeros(len(corpus), dtype=bool), set[str]()
    for start in range(0, len(corpus), PIECE):
        part = dataclasses.replace(corpus, table=corpus.table.slice(start, PIECE))
        columns = [part.table[name].to_pylist() for name in names]
        rows, entries = _named([*columns, *(_addresses(part) if "id" in names else [])], wanted)
        found[[start + row for row in rows]] = True
        matched |= entries
    return found, matched


def _addresses(corpus: Corpus) -> list[list[str | None]]:
    """URL and key of each image that is a file of its own in a store."""
    protocol, found, _ = corpus.origin.partition("://")
    if not found or "::" in corpus.origin:
        return []
    paths = [path and path.removeprefix(f"{protocol}://").lstrip("/") for path in corpus.table["image"].to_pylist()]
    return [
        [path and f"{protocol}://{path}" for path in paths],
        [path and path.partition("/")[2] for path in paths],
    ]


def _hashed(corpus: Corpus, skipped: NDArray[np.bool_], progress: Progress | None) -> Corpus:
    """With the sha256 of every file that can be read, but of the rows that are removed anyway."""
    column = corpus.table["sha256"]
    unknown = np.flatnonzero(column.is_null().to_numpy() & ~skipped)
    found = np.zeros(len(unknown), "S64")
    for done, (row, data) in enumerate(corpus.stream(unknown.tolist()), 1):
        if isinstance(data, bytes):
            found[np.searchsorted(unknown, row)] = hashlib.sha256(data).hexdigest()
        if progress:
            progress("hash", done, len(unknown))
    pieces = [pa.array([], pa.string())]
    for start in range(0, len(corpus), PIECE):
        digests = column.slice(start, PIECE).to_pylist()
        for at in range(*np.searchsorted(unknown, [start, start + PIECE])):
            digests[unknown[at] - start] = found[at].decode() or None
        pieces.append(pa.array(digests, pa.string()))
    return corpus.with_column("sha256", pa.chunked_array(pieces).combine_chunks())
