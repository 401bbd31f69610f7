"""Decisions of people about the rows of an index."""

from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from copyscope.curation.decisions import Decided, Decisions, Honoured, Places, names_of
from copyscope.data.corpus import Corpus
from copyscope.detection.dedup.backgrounds import plain_id

from .hits import Excused
from .segments import IndexSnapshot


class IndexDecisions:
    """The decisions, and which rows of the index they name, looked up once for each state.

    Safe to use from many threads.
    """

    def __init__(self, decisions: Decisions) -> None:
        self.decisions = decisions
        self._known: tuple[Any, Places] = None, {}

    def excuse(self, state: IndexSnapshot, mine: Places, honoured: Honoured | None = None) -> Excused:
        """Why a picture and a row are no match; "" where they are one.

        Args:
            state: of the index.
            mine: places of the pictures; none of pictures without files.
            honoured: counts what was excused; None = nobody asks.
        """
        said = self.decisions.between(mine, self._rows(state))
        done = honoured if honoured is not None else Honoured()
        done.found |= said.found

        def excused(picture: int, row: int) -> str:
            verdict = said.excuse(picture, row)
            done.n_apart += verdict == "different"
            done.n_licensed += verdict == "licensed"
            done.n_ignored += verdict == "ignore"
            return verdict

        return excused

    def summary(self, state: IndexSnapshot) -> Decided:
        """What the summary of the index says of the decisions: those that name rows of it are found."""
        done = Honoured(self.decisions.between({}, self._rows(state)).found)
        return {"decisions": self.decisions.summary(done)}

    def excuse_of(
        self, state: IndexSnapshot, corpus: Corpus, rows: NDArray[np.integer[Any]], honoured: Honoured | None
    ) -> Excused:
        """`excuse` of the pictures at these rows of a corpus whose files were read."""
        return self.excuse(state, self.decisions.places(names_of(corpus, rows)), honoured)

    def _rows(self, state: IndexSnapshot) -> Places:
        known, rows = self._known
        if known != state.stamp:
            pieces = (
                (start, piece.set_column(0, "id", pa.array(map(plain_id, piece["id"].to_pylist()), pa.string())))
                for start, piece in state.table.pieces(["id", "sha256"])
            )
            rows = self.decisions.places(pieces)
            self._known = state.stamp, rows
        return rows
