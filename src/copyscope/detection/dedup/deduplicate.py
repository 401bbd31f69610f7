"""Drop near-duplicates from a corpus, with a list of what was dropped and why."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Unpack

import numpy as np

from copyscope.curation.curate import down_weight, kept_because, kept_rows, remove
from copyscope.curation.decisions import Decisions
from copyscope.data.corpus import Corpus
from copyscope.detection.embedding.embed import embed
from copyscope.detection.embedding.embeddings import Embeddings
from copyscope.detection.embedding.protocols import protocol as named_protocol
from copyscope.engine import CacheOptions
from copyscope.files import safe_cell, write_file
from copyscope.machine import Progress

from .decided import decided_same
from .groups import Groups, duplicates
from .same_picture import compare_pixels

HOW = ("keep-one", "down-weight", "remove")
COLUMNS = ("id", "kept_id", "group", "score", "pixels", "reason", "kept_because")


def deduplicated(
    corpus: Corpus,
    how: str,
    protocol: str = "sscd-288",
    *,
    decisions: Decisions | None = None,
    cache: str | Path | None = None,
    workers: int | None = None,
    progress: Progress | None = None,
) -> tuple[Corpus, list[dict[str, Any]]]:
    """Drop near-duplicates from a corpus, or weigh them down, with a list of what was dropped and why.

    Args:
        corpus: the images.
        how: "keep-one" keeps one image of a group (`curate.kept_rows` says which), and drops those alone that are the
            same picture as the kept one by their own pixels or by a decision; "remove" drops whole groups;
            "down-weight" drops none and divides their weight.
        protocol: a name in `PROTOCOLS` or a descriptor spec.
        decisions: of people, as in `duplicates`.
        cache: folder of the cache; None = the user's.
        workers: threads; None = one a core.
        progress: called with a label, the number done and the total.

    Returns:
        The corpus, and a row (COLUMNS) for each image that was dropped. `score`: similarity to the kept image, or the
        one that would be. `pixels`: their agreement (`compare_pixels`). `reason`: why the image was dropped.
        `kept_because`: why the other one was kept. `kept_id`: "" where the whole group was dropped.
    """
    options: CacheOptions = {"cache": cache, "workers": workers, "progress": progress}
    return without_duplicates(*near_duplicates(corpus, protocol, decisions, **options), how, **options)


def near_duplicates(
    corpus: Corpus, protocol: str, decisions: Decisions | None = None, **options: Unpack[CacheOptions]
) -> tuple[Embeddings, Groups]:
    """The embeddings of a corpus by a protocol, and its near-duplicate groups. options: as in `embed`."""
    rules = named_protocol(protocol)
    described = embed(corpus, rules.load(), **options)
    return described, duplicates(described, rules.duplicates, decisions=decisions, **options)


def without_duplicates(
    described: Embeddings, groups: Groups, how: str, **options: Unpack[CacheOptions]
) -> tuple[Corpus, list[dict[str, Any]]]:
    """The corpus of `groups` with these dealt with, and what `deduplicated` returns.

    Args:
        described: embeddings of the corpus.
        groups: its near-duplicate groups.
        how: as in `deduplicated`.
        options: cache, workers and progress of `embed`.
    """
    if how == "down-weight":
        return down_weight(groups.corpus, groups.rows, groups.label), []
    kept = kept_rows(groups.corpus, groups.rows, groups.label)
    one = np.flatnonzero((groups.sizes > 1)[groups.label])
    other = np.searchsorted(groups.rows, [kept[int(row)] for row in groups.rows[one]])
    if how == "keep-one":
        one, other = one[one != other], other[one != other]
    found = compare_pixels(groups.corpus, groups.rows, np.stack([one, other], axis=1), **options)
    decided = np.zeros(len(one), bool)
    if groups.honoured is not None:
        label = decided_same(len(groups.rows), groups.honoured.same)
        decided = label[one] == label[other]
    dropped = found.same | decided if how == "keep-one" else np.ones(len(one), bool)
    ids = groups.corpus.pick("id", groups.rows).to_pylist()
    places = np.flatnonzero(dropped)
    because = [""] * len(places)
    if how == "keep-one":
        because = kept_because(groups.corpus, zip(groups.rows[one[places]], groups.rows[other[places]], strict=True))
    listed = []
    for at, why in zip(places, because, strict=True):
        score = float(described.vectors[one[at]] @ described.vectors[other[at]])
        group = int(groups.label[one[at]])
        if how != "keep-one":
            reason = f"it is one of {groups.sizes[group]} near-duplicates, all of which are dropped"
        else:
            reason = "a decision says that it is the same picture" if decided[at] else _reason(score, groups.threshold)
        listed.append(
            {
                "id": ids[one[at]],
                "kept_id": ids[other[at]] if how == "keep-one" else "",
                "group": group,
                "score": round(score, 4),
                "pixels": round(float(found.score[at]), 4),
                "reason": reason,
                "kept_because": why,
            }
        )
    listed.sort(key=lambda row: (row["group"], row["id"]))
    return remove(groups.corpus, groups.rows[one[dropped]]), listed


def _reason(score: float, threshold: float) -> str:
    """Reason why an image was dropped that is the same picture as the kept one.

    A score below the threshold needs a word: such images were grouped through others, or by their pixels alone.
    """
    if score >= threshold:
        return f"the same picture by score (at least {threshold:g}) and by pixels"
    return f"the same picture by pixels; its score alone, below {threshold:g}, would not say so"


def write_list(rows: Sequence[dict[str, Any]], path: Path, columns: Sequence[str] = COLUMNS) -> None:
    """Write rows, such as those of `deduplicated`, as CSV."""

    def write(temporary: Path) -> None:
        with temporary.open("w", newline="", encoding="utf-8") as file:
            table = csv.DictWriter(file, columns)
            table.writeheader()
            table.writerows({name: safe_cell(value) for name, value in row.items()} for row in rows)

    write_file(path, write)
