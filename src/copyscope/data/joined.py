"""Several corpora as one, for what compares all of their images."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Iterator, Sequence

import numpy as np
import pyarrow as pa

from copyscope.errors import ImageError

from .corpus import Corpus
from .table import SCHEMA


def name_of(corpus: Corpus) -> str:
    """What a corpus is called among others: where it is, and the split that was read."""
    origin = corpus.origin.rstrip("/")
    return f"{origin}@{corpus.account.split}" if corpus.account.split else origin


@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class JoinedCorpus(Corpus):
    """The rows of several corpora, one after the other.

    Of further columns it has `set`, the name of the corpus that an image is of, and `id_in_set`; its `id` is both, as a
    path.
    """

    parts: tuple[Corpus, ...] = ()

    @staticmethod
    def of(corpora: Sequence[Corpus]) -> JoinedCorpus:
        """The corpora joined; their names are where they are, and differ."""
        tables = []
        for number, corpus in enumerate(corpora):
            name = name_of(corpus)
            table = corpus.table.select(SCHEMA.names)
            n = len(table)
            ids = pa.array([f"{name}/{each}" for each in table["id"].to_pylist()], pa.string())
            more = {
                "set": pa.array([name] * n, pa.string()),
                "id_in_set": table["id"],
                _PART: pa.array([number] * n, pa.int32()),
                _ROW: pa.array(np.arange(n)),
            }
            for column, values in more.items():
                table = table.append_column(column, values)
            tables.append(table.set_column(0, "id", ids))
        origin = ", ".join(corpus.origin for corpus in corpora)
        n_outside = sum(corpus.n_outside for corpus in corpora)
        table = pa.concat_tables(tables).combine_chunks()
        return JoinedCorpus(table, origin, "joined", n_outside, parts=tuple(corpora))

    def read(self, row: int) -> bytes:
        """The bytes of the image file in a row. Raises ImageError."""
        if error := self.table["error"][row].as_py():
            raise ImageError(error)
        part, its = self._place(row)
        return part.read(its)

    def stream(self, rows: Iterable[int] | None = None) -> Iterator[tuple[int, bytes | ImageError]]:
        """(row, bytes of its image file, or why they cannot be had) of `rows`, or of all, corpus by corpus."""
        wanted = np.arange(len(self)) if rows is None else np.fromiter(rows, np.int64)
        numbers, places = (self.table[name].to_numpy()[wanted] for name in (_PART, _ROW))
        for number, part in enumerate(self.parts):
            mine = np.flatnonzero(numbers == number)
            back: dict[int, list[int]] = {}
            for at in mine.tolist():
                back.setdefault(int(places[at]), []).append(int(wanted[at]))
            for its, data in part.stream(list(back)):
                for row in back[its]:
                    error = self.table["error"][row].as_py()
                    yield row, ImageError(error) if error else data

    def discreet(self, row: int, message: str) -> str:
        """As `Corpus.discreet`, of the corpus that the row is of."""
        part, its = self._place(row)
        return part.discreet(its, message)

    def paths(self) -> list[str | None]:
        """The file that each image is, or lies in [n]; None where there is none."""
        every = [part.paths() for part in self.parts]
        return [
            every[number][row]
            for number, row in zip(self.table[_PART].to_pylist(), self.table[_ROW].to_pylist(), strict=True)
        ]

    def _place(self, row: int) -> tuple[Corpus, int]:
        return self.parts[self.table[_PART][int(row)].as_py()], self.table[_ROW][int(row)].as_py()


_PART, _ROW = "joined_part", "joined_row"
