"""Sentences about matches: which picture is a copy of which, and how many are."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Annotated, Any, TypedDict, Unpack, cast

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from copyscope.curation.decisions import Decisions
from copyscope.data.corpus import Corpus
from copyscope.detection.dedup.backgrounds import over_all
from copyscope.detection.embedding.embed import embed
from copyscope.detection.embedding.protocols import Protocol
from copyscope.detection.index.hits import Hit, is_copy
from copyscope.detection.matching.blank import blank_rows, without_rows
from copyscope.detection.matching.excused import excused
from copyscope.detection.matching.match import Matches, is_identical, match
from copyscope.detection.matching.ncc import Verify
from copyscope.engine import EngineOptions, open_engine, without_engine

from .one_pass import read_queries, read_train

LISTED = 100
"""Most copies that a summary lists; the table of matches has all."""


class MatchCopy(TypedDict):
    """A query called a copy."""

    query_id: Annotated[str, "image asked about"]
    reference_id: Annotated[str, "training image, or reference"]
    identical: Annotated[bool, "the same image"]
    p_value: Annotated[float | None, "conformal p-value; null where nothing is calibrated, as between two sets"]
    similarity: Annotated[float, "descriptor similarity"]
    sentence: Annotated[str, "the two in words"]


class MatchRow(TypedDict):
    """A match of a query."""

    query_id: Annotated[str, "query"]
    reference_id: Annotated[str, "reference"]
    rank: Annotated[int, "1 = highest descriptor similarity"]
    score: Annotated[float, "descriptor similarity"]
    verified: Annotated[float | None, "pixel score"]
    combined: Annotated[float | None, "combined score"]
    identical: Annotated[bool, "the query is the reference: the same image"]


class MatchSummary(TypedDict):
    """Summary of `match` of two sets."""

    schema: Annotated[str, "`copyscope.matches/1`"]
    sentence: Annotated[str, "what was found, in words"]
    n_missing: Annotated[list[int], "queries, and references, that cannot be read"]
    n_blank: Annotated[list[int], "queries, and references, of one colour to within noise: left out"]
    n_identical: Annotated[int, "queries that are the same image as a reference"]
    n_similar: Annotated[
        int, "other queries whose first match has a similarity of at least `threshold`; no calibration backs it"
    ]
    threshold: Annotated[float, "similarity above which the literature says replication"]
    copies: Annotated[list[MatchCopy], "the first 100 of both, identical ones first"]


def named(reference: str, origin: str) -> str:
    """Id of an image with its set's folder in front, where it is a file in that folder."""
    there = "://" not in origin and (Path(origin) / reference).is_file()
    return str(Path(origin) / reference) if there else reference


def copies_in_index(ids: Sequence[str], hits: Sequence[list[Hit]], level: float) -> tuple[int, list[MatchCopy]]:
    """Copies among pictures that were looked up in an index.

    Args:
        ids: of the pictures [n].
        hits: of each picture [n].
        level: largest p-value of a copy.

    Returns:
        (how many pictures are copies, the LISTED of them with the highest combined scores).
    """
    copies = [(each, found[0]) for each, found in zip(ids, hits, strict=True) if is_copy(found, level)]
    copies.sort(key=lambda pair: (not pair[1].identical, -(pair[1].combined or -1.0)))
    return len(copies), [
        _copy(
            each,
            hit.id,
            hit.id,
            hit.identical,
            hit.p_value,
            hit.score,
            f"p-value {hit.p_value:.2g}{', a part of it' if hit.box else ''}",
        )
        for each, hit in copies[:LISTED]
    ]


def match_sets(
    queries: Corpus,
    references: Corpus,
    rules: Protocol,
    k: int,
    decisions: Decisions | None = None,
    **options: Unpack[EngineOptions],
) -> tuple[MatchSummary, pa.Table]:
    """Match two sets: the k references most like each query; blank images of both are set apart.

    Args:
        queries: the images to match.
        references: what they are matched with.
        rules: the protocol.
        k: references a query.
        decisions: pairs that are "different" or "ignore", and licensed references, are no matches; None = there are
            none.
        options: `workers`, `engine` and `progress` of `match`.

    Returns:
        (summary of `copyscope.matches/1` without its matches, the matches as a table).
    """
    descriptor = rules.load()
    plain = without_engine(options)
    spec = options.get("engine")
    engine = open_engine(spec) if spec is not None else None
    opened = [
        read_queries(queries, descriptor, engine=engine, **plain),
        read_train(references, descriptor, engine=engine, **plain),
    ]
    described = [embed(corpus, descriptor, **plain) for corpus in opened]
    both, source = over_all(described[1], descriptor, **options)
    blank = [blank_rows(each, **plain) for each in (described[0], both)]
    looked_up = without_rows(described[0], blank[0])
    found = match(looked_up, without_rows(both, blank[1]), Verify(), k=k, **options)
    found = found.of_sources(described[1], source[~blank[1]])
    decided: dict[str, Any] = {}
    if decisions is not None:
        every = np.arange(len(described[1].rows), dtype=np.int64)
        found, done = excused(found, decisions, described[1], every, every)
        decided = {"decisions": decisions.summary(done)}
    n_identical, n_similar, copies = copies_of_matches(found, rules.threshold)
    missing = [each.n_missing for each in described]
    n_blank = [int(some[: len(each.rows)].sum()) for some, each in zip(blank, described, strict=True)]
    n = len(looked_up.rows)
    said = f"{n} {'readable ' if missing[0] else ''}{'image' if n == 1 else 'images'}"
    summary: MatchSummary = {
        "schema": "copyscope.matches/1",
        "sentence": sentence_of_matches(said, n_identical, n_similar, rules.threshold)
        + blank_said(n_blank[0])
        + (f" {decided['decisions']['sentence']}" if decided else ""),
        "n_missing": missing,
        "n_blank": n_blank,
        "n_identical": n_identical,
        "n_similar": n_similar,
        "threshold": rules.threshold,
        "copies": copies,
    }
    return cast("MatchSummary", summary | decided), with_identical(found, k)


def copies_of_matches(found: Matches, threshold: float) -> tuple[int, int, list[MatchCopy]]:
    """Copies among matched queries, without a calibration.

    Args:
        found: the matches.
        threshold: similarity of the queries that are counted.

    Returns:
        (how many queries are a reference itself, how many others have a similarity of `threshold` or more, the first
        LISTED of both: identical ones first, then by similarity; their p_value is None).
    """
    if not found.nearest.index.shape[1]:
        return 0, 0, []
    same: NDArray[np.bool_] = identical(found)
    is_same = np.asarray(same.any(axis=1))
    place = np.where(is_same, same.argmax(axis=1), found.best)[:, None]
    score = np.take_along_axis(found.nearest.score, place, axis=1)[:, 0]
    reference = np.take_along_axis(found.nearest.index, place, axis=1)[:, 0]
    like = np.asarray((score >= threshold) & (reference >= 0))
    rows = np.flatnonzero(like | is_same)
    rows = rows[np.lexsort((-score[rows], ~is_same[rows]))][:LISTED]
    references = found.references
    queries = found.queries.corpus.pick("id", found.queries.rows[rows]).to_pylist()
    theirs = references.corpus.pick("id", references.rows[reference[rows]]).to_pylist()
    return (
        int(is_same.sum()),
        int((like & ~is_same).sum()),
        [
            _copy(
                query,
                their,
                named(their, references.corpus.origin),
                bool(is_same[row]),
                None,
                float(score[row]),
                f"similarity {score[row]:.2f}",
            )
            for query, their, row in zip(queries, theirs, rows.tolist(), strict=True)
        ],
    )


def identical(found: Matches) -> NDArray[np.bool_]:
    """Which of the k references of each query are the query itself, bool [n k]."""
    return is_identical(found.nearest.score, found.verified)


def with_identical(found: Matches, k: int) -> pa.Table:
    """`Matches.table` of the first k, with a column `identical`."""
    table = found.table(k)
    there = found.nearest.index[:, :k] >= 0
    return table.append_column("identical", pa.array(identical(found)[:, :k][there], pa.bool_()))


def sentence_of_index(n: str, n_copies: int, n_identical: int, level: float, n_calibration: int) -> str:
    """Sentence for the result of an index lookup, with p-values."""
    match = "matches" if n_copies == 1 else "match"
    if n_calibration < 1 / level - 1:
        said = f"{n_copies} of {n} {match} a training image (the same image)."
        return (
            f"{said if n_copies else f'None of {n} is the same as a training image.'} Other copies cannot be "
            f"told: with {n_calibration} calibration images no p-value can be as small as {level:g}, which takes "
            f"{round(1 / level) - 1}."
        )
    if not n_copies:
        return f"None of {n} matches a training image (no p-value of {level:g} or less)."
    how = f"a p-value of {level:g} or less"
    if n_identical == n_copies:
        return f"{n_copies} of {n} {match} a training image (the same image)."
    if n_identical:
        how = f"{n_identical} the same image, {n_copies - n_identical} by {how}"
    said = f"{n_copies} of {n} {match} a training image ({how})."
    return f"{said} This is the share flagged; of unseen images {100 * level:g} % would be flagged by chance."


def sentence_of_matches(n: str, n_identical: int, n_like: int, threshold: float) -> str:
    """Sentence for the result of matching two sets, without a calibration."""
    are = f"{n_identical} of {n} {'is' if n_identical == 1 else 'are'}" if n_identical else f"None of {n} is"
    said = f"{are} the same as an image of the other set."
    if n_like:
        has = "has" if n_like == 1 else "have"
        said += (
            f" {n_like} more {has} a similarity of {threshold:g} or more, which the literature calls a copy; without a "
            "calibration that is no proof: build an index with --held-out, or audit."
        )
    return said


def blank_said(n: int) -> str:
    """Sentence that says how many images were set apart as blank; "" where none was."""
    return f" {n} blank {'image was' if n == 1 else 'images were'} left out." if n else ""


def lines_of(copies: Iterable[dict[str, Any]], n: int) -> list[str]:
    """Sentences of the first copies, and how many more there are.

    Args:
        copies: as `copies_in_index` lists them.
        n: number of all copies.
    """
    said = [each["sentence"] for each in copies]
    return said + ([f"... and {n - len(said)} more"] if n > len(said) else [])


def _copy(
    query: str, reference: str, shown: str, same: bool, p_value: float | None, similarity: float, why: str
) -> MatchCopy:
    if same:
        is_one = f"{query} is a copy of {shown} (the same image)"
    elif p_value is None:  # a similarity that nothing calibrates is no more than that
        is_one = f"{query} resembles {shown} ({why})"
    else:
        is_one = f"{query} is likely a copy of {shown} ({why})"
    return {
        "query_id": query,
        "reference_id": reference,
        "identical": same,
        "p_value": p_value,
        "similarity": similarity,
        "sentence": is_one,
    }
