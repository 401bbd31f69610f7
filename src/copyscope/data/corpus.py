"""Corpus: a table with one row an image, and access to the image bytes."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import os
import re
import tempfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from copyscope.errors import ImageError, InputError
from copyscope.imaging import images
from copyscope.imaging.formats import NO_END, with_end, without_end

from .account import Account
from .arrow_files import ArrowImages
from .shards import ParquetImages
from .storage import Storage, connect, file_system, from_text
from .table import PIECE as ROWS_A_PIECE
from .table import SCHEMA
from .tars.compressed import tar_read
from .tars.webdataset import tar_pieces

ONE_PIECE = 1_000_000
"""A table of more rows stays in pieces, in a file."""
_LOT = 1 << 18  # rows of which it is known at once in which shards they lie
_FILE_BYTES = 1 << 20  # how large an image file is taken to be when many are read ahead
_BACKGROUND = "shown_over_background"
"""Column of a corpus in memory: over which of images.BACKGROUNDS a row shows a transparent image; null = as it is."""
REPAIRED = "repaired"
"""Column that says of which images the file was put right when it was read, and how; null = as it is."""
_Read = tuple[int, bytes | ImageError]
_PACKED = ("webdataset", "zip")
_SHARDS = ("parquet", "arrow", *_PACKED)
_IN_SHARD = re.compile(r"(.*)#(?:row=(\d+)(?:\.(\d+))?|bytes=(\d+)\+(\d+))", re.DOTALL)


@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class Corpus:
    """A table with one row an image, and access to the image bytes, which `read` and `stream` get from where they are.

    Args:
        table: columns `id` (unique), `image` (where it is: a path, or a path and a place in it), `captions` (list
            of strings), `weight` (draws per epoch, relative to 1), `sha256`, `width`, `height` (null until somebody
            has read the image), `error` (why it cannot be read, else null), then whatever else the data had:
            `prompt`, `seed`, `class`, ...
        origin: the path or URL as the user gave it.
        kind: the layout it was recognised as.
        n_outside: images of what was opened that lie outside the folder, listed in a table there or reached through
            a symbolic link.
        account: what became of all that lay there when it was opened.
    """

    table: pa.Table
    origin: str
    kind: str
    n_outside: int = 0
    account: Account = dataclasses.field(default_factory=Account)

    @staticmethod
    def open(
        path_or_url: str | os.PathLike[str],
        *,
        inside_only: bool = False,
        split: str | None = None,
        lenient: bool = False,
    ) -> Corpus:
        """The corpus at a path or fsspec URL: reads names, captions and offsets, not pixels.

        Recognised are a folder of images (with Hugging Face metadata, a captions JSON or text files beside them),
        Parquet with image bytes, Arrow files of `datasets`, WebDataset tars, a table or JSON that lists images, one
        image. A single image that cannot be read is a row with an `error`.

        Args:
            path_or_url: a path or URL; `PATH@SPLIT` reads one split, `PATH@all` all of them.
            inside_only: images that lie outside the folder are rows with an `error`; else they are counted in
                `n_outside`.
            split: as in `PATH@SPLIT`. None = the only one there is.
            lenient: JPEG files without their end marker are read as if they had it, and the column `repaired` says so.
                All files are read for it.

        Raises:
            InputError: there is nothing at the path, or nothing of these; or several splits, and none is asked for.
        """
        from .layouts import Source, detect_layout

        (storage, path), origin, asked = _connected(os.fspath(path_or_url))
        found = detect_layout(Source(storage, path, origin, inside_only, split or asked))
        corpus = Corpus(found.table, origin, found.kind, found.n_outside, found.account).settled()
        corpus = corpus.repaired() if lenient else corpus
        found.account.count(corpus.table)
        return corpus

    def __len__(self) -> int:
        return int(self.table.num_rows)

    def __repr__(self) -> str:
        return f"Corpus({self.origin!r}, {self.kind}, {len(self)} images)"

    @functools.cached_property
    def ids(self) -> list[str]:
        """Identifiers [n], unique. In a folder: the path relative to it, with forward slashes."""
        return list(self.table["id"].to_pylist())

    @functools.cached_property
    def captions(self) -> list[list[str]]:
        """The captions of each image [n], none where nothing was found."""
        return [captions or [] for captions in self.table["captions"].to_pylist()]

    @functools.cached_property
    def prompts(self) -> list[str]:
        """The prompt of each image [n]: its column `prompt`, else its first caption, else ""."""
        first = [captions[0] if captions else "" for captions in self.captions]
        if "prompt" not in self.table.column_names:
            return first
        prompts = self.table["prompt"].to_pylist()
        return [other if prompt is None else str(prompt) for prompt, other in zip(prompts, first, strict=True)]

    def read(self, row: int) -> bytes:
        """Read the bytes of the image file in a row.

        Args:
            row: of the image.

        Returns:
            The bytes.

        Raises:
            ImageError: they cannot be had; the message says why.
        """
        if error := self.table["error"][row].as_py():
            raise ImageError(error)
        path, index, offset, size = _place(self.table["image"][row].as_py(), self.kind)
        if index is not None:
            content = self._table_images.read(path, index, offset)
        elif size is not None:
            content = tar_read(self._storage, path, offset, size)
        else:
            content = self._storage.read(path)
        return self._as_shown(row, content)

    def stream(self, rows: Iterable[int] | None = None) -> Iterator[tuple[int, bytes | ImageError]]:
        """Read the image files of many rows, in the order they are stored, which is fastest.

        A few images are held at a time. From an object store many are read at once, before they are asked for.

        Args:
            rows: which; None = all.

        Yields:
            (row, bytes of its image file, or why they cannot be had).
        """
        wanted = np.arange(len(self)) if rows is None else np.fromiter(rows, np.int64)
        for found in self._storage.ahead(self._pieces(wanted)):
            yield from found if not {_BACKGROUND, REPAIRED} & {*self.table.column_names} else map(self._shown, found)

    def _pieces(self, wanted: NDArray[np.int64]) -> Iterator[tuple[int, Callable[[], Iterable[_Read]]]]:
        """What `Storage.ahead` takes, for these rows."""
        in_shards = self.kind in _SHARDS
        if in_shards and len(wanted) > _LOT:
            wanted = np.sort(wanted)
        for start in range(0, len(wanted), _LOT):
            some = wanted[start : start + _LOT].tolist()
            if in_shards:
                yield from self._in_shards(some)
            else:
                yield from ((_FILE_BYTES, functools.partial(self._read_or_error, row)) for row in some)

    def _in_shards(self, wanted: list[int]) -> Iterator[tuple[int, Callable[[], Iterable[_Read]]]]:
        """The same, of rows of a corpus of shards."""
        by_shard: dict[str, list[tuple[int, int, int]]] = {}
        errors, images = self.table["error"], self.table["image"]
        for row in wanted:
            if errors[row].is_valid:
                yield 0, functools.partial(self._read_or_error, row)
                continue
            path, index, offset, size = _place(images[row].as_py(), self.kind)
            place = (offset, size or 0, row) if index is None else (index, offset, row)
            by_shard.setdefault(path, []).append(place)
        for path, places in sorted(by_shard.items()):
            places.sort()
            where = [(first, second) for first, second, _ in places]
            if self.kind in _PACKED:
                pieces = tar_pieces(self._storage, path, where)
            else:
                pieces = self._table_images.pieces(path, where)
            done = 0
            for n, size, read in pieces:
                rows = [row for *_, row in places[done : done + n]]
                done += n
                yield size, functools.partial(self._numbered, rows, read)

    def _numbered(self, rows: list[int], read: Callable[[], Iterable[bytes | ImageError]]) -> Iterable[_Read]:
        found = zip(rows, read(), strict=True)
        # Whoever reads ahead has read when it returns.
        return list(found) if self._storage.concurrent else found

    def discreet(self, row: int, message: str) -> str:
        """Message on an image that cannot be read, without bytes of a file outside the folder, which may be any.

        Args:
            row: of the image.
            message: the message.

        Returns:
            The message, or a plainer one.
        """
        if not self._storage.local or not self.table["image"][row].is_valid:
            return message
        path = _place(self.table["image"][row].as_py(), self.kind)[0]
        if self._storage.inside(path, self._root):
            return message
        return message.partition(":")[0]

    @functools.cached_property
    def _root(self) -> str:
        """The folder on a disk that the corpus is, or lies in."""
        path = file_system(self.origin)[1]
        return path if os.path.isdir(path) else os.path.dirname(path)

    def paths(self) -> list[str | None]:
        """Files that the images are, or lie in [n]; None where there is none."""
        return [place and _place(place, self.kind)[0] for place in self.table["image"].to_pylist()]

    def settled(self) -> Corpus:
        """The same corpus with its table in one piece; in a mapped file where it is long."""
        table = _mapped(self.table) if len(self) > ONE_PIECE else self.table.combine_chunks()
        return dataclasses.replace(self, table=table)

    def take(self, rows: Sequence[int] | NDArray[np.integer[Any]]) -> Corpus:
        """Select rows.

        Args:
            rows: which, in this order.

        Returns:
            The corpus of these rows.
        """
        at = np.asarray(rows, np.int64)
        columns = {name: _picked(self.table[name], at) for name in self.table.column_names}
        return dataclasses.replace(self, table=pa.table(columns, schema=self.table.schema))

    def id_of(self, row: int | np.integer[Any]) -> str:
        """Identifier of one row.

        Args:
            row: of the image.

        Returns:
            The id.
        """
        return str(self.table["id"][int(row)].as_py())

    def pick(self, name: str, rows: NDArray[np.integer[Any]]) -> pa.ChunkedArray:
        """Column of some rows; memory is that of the answer, however long the column is.

        Args:
            name: of the column.
            rows: which [k], in this order.

        Returns:
            The values [k].
        """
        return _picked(self.table[name], np.asarray(rows, np.int64))

    def with_column(self, name: str, values: Sequence[Any] | pa.Array | pa.ChunkedArray) -> Corpus:
        """Set a column, such as `sha256` or `error` after reading the images.

        Args:
            name: of the column; replaced if it is there.
            values: [n].

        Returns:
            The corpus with the column.

        Raises:
            ValueError: there are not n values.
        """
        if len(values) != len(self):
            raise ValueError(f"column {name!r} has {len(values)} values for {len(self)} images")
        kind = SCHEMA.field(name).type if name in SCHEMA.names else None
        column: Any = values if isinstance(values, (pa.Array, pa.ChunkedArray)) else pa.array(list(values), kind)
        if kind is not None:
            column = column.cast(kind)
        if name == "id" and len(column.unique()) != len(column):
            raise ValueError("the identifiers of a corpus must be unique")
        index = self.table.schema.get_field_index(name)
        if index < 0:
            return dataclasses.replace(self, table=self.table.append_column(name, column))
        return dataclasses.replace(self, table=self.table.set_column(index, name, column))

    @functools.cached_property
    def _storage(self) -> Storage:
        return file_system(self.origin)[0]

    @functools.cached_property
    def _table_images(self) -> ParquetImages | ArrowImages:
        return (ArrowImages if self.kind == "arrow" else ParquetImages)(self._storage)

    def over_backgrounds(self, rows: NDArray[np.integer[Any]], suffix: str) -> Corpus:
        """Composite transparent images over each of `images.BACKGROUNDS`: [backgrounds * rows], read as PNG files.

        Args:
            rows: of the transparent images.
            suffix: ends their ids, with the name of the background put in.

        Returns:
            The corpus of these.
        """
        found = []
        for background in images.BACKGROUNDS:
            more = self.take(rows)
            more = more.with_column("id", [name + suffix.format(background) for name in more.ids])
            for name in ("sha256", "width", "height"):
                more = more.with_column(name, pa.nulls(len(more)))
            found.append(more.with_column(_BACKGROUND, pa.array([background] * len(more), pa.string())).table)
        return dataclasses.replace(self, table=pa.concat_tables(found)).settled()

    def followed_by(self, others: Corpus) -> Corpus:
        """Append the rows that `over_backgrounds` has made of this corpus.

        Args:
            others: those.

        Returns:
            The longer corpus.
        """
        tables = [self.with_column(_BACKGROUND, pa.nulls(len(self), pa.string())).table, others.table]
        return dataclasses.replace(self, table=pa.concat_tables(tables)).settled()

    def repaired(self) -> Corpus:
        """The same, with the column `repaired`, where JPEG files have no end marker: they are read as if they had.

        All files are read for it.
        """
        found: list[str | None] = [None] * len(self)
        for row, content in self.stream():
            if isinstance(content, bytes) and without_end(content):
                found[row] = NO_END
        if not any(found):
            return self
        self.account.notes.append(f"{sum(map(bool, found)):,} images are read without their end marker")
        return self.with_column(REPAIRED, pa.array(found, pa.string()))

    def _cell(self, name: str, row: int) -> str | None:
        return self.table[name][row].as_py() if name in self.table.column_names else None

    def _as_shown(self, row: int, content: bytes) -> bytes:
        """The bytes of a file as its row is to be seen: repaired, over a background."""
        if self._cell(REPAIRED, row):
            content = with_end(content)
        background = self._cell(_BACKGROUND, row)
        return images.over_background(content, background) if background else content

    def _shown(self, read: _Read) -> _Read:
        """What was read of a row of a shard, as the row is to be seen."""
        row, content = read
        # Files one by one come as `read` gives them.
        if self.kind not in _SHARDS or isinstance(content, ImageError):
            return read
        try:
            return row, self._as_shown(row, content)
        except ImageError as error:
            return row, error

    def _read_or_error(self, row: int) -> list[_Read]:
        try:
            return [(row, self.read(row))]
        except ImageError as error:
            return [(row, error)]


def _connected(origin: str) -> tuple[tuple[Storage, str], str, str | None]:
    """What is at a path or URL, the path without the split that may be named behind an `@`, and that split."""
    try:
        return connect(origin), origin, None
    except InputError:
        base, _, split = origin.rpartition("@")
        if not base or not split or "/" in split:
            raise
        # The message is about the path as it was typed, but where the folder is there.
        with contextlib.suppress(InputError):
            return connect(base), base, split
        raise


def _picked(column: pa.ChunkedArray, rows: NDArray[np.int64]) -> pa.ChunkedArray:
    """As `column.take`, which joins the pieces of a column, all of them, to take a few lists from it."""
    if column.num_chunks <= 1 or not len(rows):
        return column.take(pa.array(rows))
    ends = np.cumsum([len(chunk) for chunk in column.chunks])
    order = np.argsort(rows, kind="stable")
    chunks, starts = np.unique(np.searchsorted(ends, rows[order], side="right"), return_index=True)
    pieces = []
    for chunk, mine in zip(chunks.tolist(), np.split(rows[order], starts[1:]), strict=True):
        pieces.append(column.chunk(chunk).take(pa.array(mine - ends[chunk] + len(column.chunk(chunk)))))
    found = pa.chunked_array(pieces, column.type)
    if (np.diff(order) == 1).all():
        return found
    back = np.empty_like(order)
    back[order] = np.arange(len(order))
    return pa.chunked_array([found.combine_chunks()]).take(pa.array(back))


def _mapped(table: pa.Table) -> pa.Table:
    """The same table in a mapped file, of some 200 bytes an image; the system takes its pages back when it must."""
    if os.name == "nt":  # where a file that is mapped cannot be made nameless
        return table
    with tempfile.TemporaryDirectory(prefix="copyscope-") as folder:
        path = os.path.join(folder, "corpus.arrow")
        with pa.OSFile(path, "wb") as file, pa.ipc.new_file(file, table.schema) as writer:
            writer.write_table(table, ROWS_A_PIECE)
        return pa.ipc.open_file(pa.memory_map(path)).read_all()


def _place(locator: str, kind: str) -> tuple[str, int | None, int, int | None]:
    """(path, row of a table, offset in bytes or item of a list, size in bytes) of a locator; row, size may be None."""
    if kind in _SHARDS and (match := _IN_SHARD.fullmatch(locator)):
        path, row, item, offset, size = match.groups()
        if row is not None:
            return from_text(path), int(row), int(item or 0), None
        return from_text(path), None, int(offset), int(size)
    return from_text(locator), None, 0, None
