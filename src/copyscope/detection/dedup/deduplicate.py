"""Drop near-duplicates from a corpus, with a list of what was dropped and why."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

import numpy as np

from copyscope.curation.curate import down_weight, kept_rows, remove
from copyscope.data.corpus import Corpus
from copyscope.detection.embedding.embed import embed
from copyscope.detection.embedding.protocols import protocol as named_protocol
from copyscope.files import safe_cell, write_file
from copyscope.machine import Progress

from .groups import duplicates
from .same_picture import compare_pixels

HOW = ("keep-one", "down-weight", "remove")
COLUMNS = ("id", "kept_id", "group", "score", "pixels")


def deduplicated(
    corpus: Corpus,
    how: str,
    protocol: str = "sscd-288",
    *,
    cache: str | Path | None = None,
    workers: int | None = None,
    progress: Progress | None = None,
) -> tuple[Corpus, list[dict[str, Any]]]:
    """The corpus with its near-duplicate groups dealt with, and a row (COLUMNS) for each image that was dropped.

    how: "keep-one" drops all but the largest image of a group, those alone that are the same picture as the kept one by
    their own pixels; "remove" drops whole groups (`kept_id` is then empty); "down-weight" drops none and divides their
    weight. protocol: a name in `PROTOCOLS` or a descriptor spec. score: similarity to the kept image, or the one that
    would be; pixels: their agreement (`compare_pixels`). cache, workers: as in `embed`.
    """
    rules = named_protocol(protocol)
    options: dict[str, Any] = {"cache": cache, "workers": workers, "progress": progress}
    described = embed(corpus, rules.load(), **options)
    groups = duplicates(described, rules.duplicates, **options)
    if how == "down-weight":
        return down_weight(groups.corpus, groups.rows, groups.label), []
    kept = kept_rows(groups.corpus, groups.rows, groups.label)
    one = np.flatnonzero((groups.sizes > 1)[groups.label])
    other = np.searchsorted(groups.rows, [kept[int(row)] for row in groups.rows[one]])
    if how == "keep-one":
        one, other = one[one != other], other[one != other]
    found = compare_pixels(groups.corpus, groups.rows, np.stack([one, other], axis=1), **options)
    dropped = found.same if how == "keep-one" else np.ones(len(one), bool)
    ids = groups.corpus.pick("id", groups.rows).to_pylist()
    listed = [
        {
            "id": ids[one[at]],
            "kept_id": ids[other[at]] if how == "keep-one" else "",
            "group": int(groups.label[one[at]]),
            "score": round(float(described.vectors[one[at]] @ described.vectors[other[at]]), 4),
            "pixels": round(float(found.score[at]), 4),
        }
        for at in np.flatnonzero(dropped)
    ]
    listed.sort(key=lambda row: (row["group"], row["id"]))
    return remove(groups.corpus, groups.rows[one[dropped]]), listed


def write_list(rows: list[dict[str, Any]], path: Path) -> None:
    """Write the rows of `deduplicated` as CSV."""

    def write(temporary: Path) -> None:
        with temporary.open("w", newline="", encoding="utf-8") as file:
            table = csv.DictWriter(file, COLUMNS)
            table.writeheader()
            table.writerows({name: safe_cell(value) for name, value in row.items()} for row in rows)

    write_file(path, write)
