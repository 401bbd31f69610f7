"""What benchmarks/validity.py counts: cells of audits, and the rows of the tables in docs/numbers.md."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from copyscope.stats import bootstrap, proportion

NONE_FOUND = "no copies found"


class Cell(NamedTuple):
    """Audits that are counted together: one a draw. kind: "" without copies."""

    corpus: str
    protocol: str
    split: str
    method: str
    m: int
    prevalence: float
    kind: str


class Outcome(NamedTuple):
    """What one audit came to.

    tpr: share of the copies that is called, NaN without copies. fdr: share of the calls that is wrong, 0 without calls.
    covered: whether the interval of the corrected rate holds the true one; upper: its upper end. differs: whether the
    held-out images were taken for another kind.
    """

    answer: str
    tpr: float
    fdr: float
    covered: bool
    upper: float
    differs: bool


Cells = Mapping[Cell, Sequence[Outcome]]


def counted(cells: Cells) -> dict[str, Any]:
    """Every cell, and what holds over all of them."""
    silent = {cell: _share(found, NONE_FOUND) for cell, found in cells.items() if cell.prevalence > 0}
    return {
        "cells_with_copies": len(silent),
        "cells_with_copies_where_more_than_5_percent_say_no_copies_found": sum(each > 0.05 for each in silent.values()),
        "lowest_coverage": min(_coverage(found) for found in cells.values()),
        "cells": [
            cell._asdict()
            | {
                "draws": len(found),
                "answers": dict(Counter(each.answer for each in found)),
                "tpr": round(float(np.mean([each.tpr for each in found])), 4) if cell.kind else None,
                "fdr": round(float(np.mean([each.fdr for each in found])), 4),
                "coverage": round(_coverage(found), 4),
                "median_upper_end": round(float(np.median([each.upper for each in found])), 4),
            }
            for cell, found in cells.items()
        ],
    }


def rows_of_tables(cells: Cells) -> list[dict[str, Any]]:
    """A row for each corpus, split, method and m: the cells of all prevalences and kinds together."""
    together: dict[tuple[str, str, str, str, int], dict[Cell, Sequence[Outcome]]] = defaultdict(dict)
    for cell, found in cells.items():
        together[cell[:5]][cell] = found
    rows = []
    for (corpus, protocol, split, method, m), mine in together.items():
        row: dict[str, Any] = {"corpus": corpus, "protocol": protocol, "split": split, "method": method, "m": m}
        row["answers"], row["fdr"], row["tpr"], row["median_upper_end"] = {}, {}, {}, {}
        for prevalence in sorted({cell.prevalence for cell in mine}):
            some = {cell.kind: found for cell, found in mine.items() if cell.prevalence == prevalence}
            every = [each for found in some.values() for each in found]
            name = f"{prevalence:g}"
            row["answers"][name] = {answer: _share(every, answer) for answer in sorted({each.answer for each in every})}
            row["fdr"][name] = _over_draws([[each.fdr for each in found] for found in some.values()])
            row["median_upper_end"][name] = round(float(np.median([each.upper for each in every])), 4)
            if prevalence:
                row["tpr"][name] = {
                    kind: round(float(np.mean([each.tpr for each in found])), 3) for kind, found in some.items()
                }
        of_copies = [found for cell, found in mine.items() if cell.prevalence > 0]
        row["highest_share_of_no_copies_found"] = max(_share(found, NONE_FOUND) for found in of_copies)
        row["lowest_coverage"] = round(min(_coverage(found) for found in mine.values()), 4)
        every = [each for found in mine.values() for each in found]
        row["coverage"] = proportion(sum(each.covered for each in every), len(every)).as_dict()
        row["called_another_kind"] = round(float(np.mean([each.differs for each in every])), 4)
        rows.append(row)
    return rows


def _over_draws(values: Sequence[Sequence[float]]) -> dict[str, Any]:
    """Mean of values [cells draws] with its interval over the draws, which the cells share."""
    return bootstrap(_mean, np.asarray(values, np.float64).mean(axis=0)).as_dict()


def _share(found: Sequence[Outcome], answer: str) -> float:
    return round(sum(each.answer == answer for each in found) / len(found), 4)


def _coverage(found: Sequence[Outcome]) -> float:
    return sum(each.covered for each in found) / len(found)


def _mean(values: NDArray[np.float64]) -> float:
    return float(values.mean())
