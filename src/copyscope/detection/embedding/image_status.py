"""Digests, sizes and errors of the rows of a corpus while images are read."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from copyscope.data.corpus import Corpus

PIECE = 65536


class Store(Protocol):
    """Store that `fill` looks up and puts values in: a ContentStore, or a stand-in elsewhere."""

    @property
    def folder(self) -> Path:
        """Folder of the store, for messages."""

    def find(self, digests: NDArray[np.bytes_]) -> NDArray[np.intp]:
        """Row of each digest [n]; -1 where the store does not have it."""

    def add(self, keys: NDArray[Any], values: NDArray[Any]) -> None:
        """Add keys [n] of dtype KEY and values [n dim]."""


class ImageStatus:
    """Digests, sizes and errors of the rows of a corpus, while its images are read.

    Args:
        corpus: what is known so far.
    """

    def __init__(self, corpus: Corpus) -> None:
        self.corpus = corpus
        table = corpus.table
        self.digests = np.zeros(len(corpus), dtype="S32")
        for start in range(0, len(corpus), PIECE):
            values = table["sha256"].slice(start, PIECE).to_pylist()
            self.digests[start : start + PIECE] = [bytes.fromhex(value) if value else b"" for value in values]
        self.any_new = False
        bad = np.flatnonzero(table["error"].is_valid().to_numpy(zero_copy_only=False))
        messages = table["error"].take(pa.array(bad)).to_pylist()
        self.errors: dict[int, str] = dict(zip(bad.tolist(), messages, strict=True))
        self.widths, self.heights = (
            np.array(table[name].cast(pa.int32()).fill_null(0).to_numpy()) for name in ("width", "height")
        )

    def failed(self, rows: NDArray[np.intp]) -> NDArray[np.bool_]:
        """Which of `rows` could not be read, bool [n]."""
        return np.isin(rows, np.fromiter(self.errors, np.intp, len(self.errors)))

    def places(self, store: Store, rows: NDArray[np.intp]) -> NDArray[np.intp]:
        """Row in the store of the images of `rows` [n]; -1 where the store has none."""
        places = np.empty(len(rows), np.intp)
        for start in range(0, len(rows), PIECE):
            places[start : start + PIECE] = store.find(self.digests[rows[start : start + PIECE]])
        return places

    def filled(self) -> Corpus:
        """The corpus with columns sha256, width, height and error filled."""
        corpus = self.corpus
        if self.any_new:
            corpus = corpus.with_column("sha256", self._pieces(lambda row: _hex(self.digests[row])))
        for name, values in (("width", self.widths), ("height", self.heights)):
            corpus = corpus.with_column(name, pa.array(values, pa.int32(), mask=values == 0))
        corpus = corpus.with_column("error", self._pieces(self.errors.get))
        return corpus.settled() if self.any_new else corpus

    def _pieces(self, value: Callable[[int], str | None]) -> pa.ChunkedArray:
        """A column of texts: few of them are Python objects at one time."""
        n = len(self.corpus)
        starts = range(0, max(n, 1), PIECE)
        return pa.chunked_array(
            [pa.array([value(row) for row in range(start, min(start + PIECE, n))], pa.string()) for start in starts]
        )


def _hex(digest: bytes) -> str | None:
    return digest.ljust(32, b"\0").hex() if digest else None
