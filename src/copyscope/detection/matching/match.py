"""`match`: nearest training images of each image, re-ranked by pixel comparison."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from copyscope.detection.embedding.embeddings import Embeddings
from copyscope.detection.search.distributed import nearest_by
from copyscope.detection.search.exact import NOTHING, Nearest
from copyscope.detection.search.ivf import nearest
from copyscope.engine import Engine, Options
from copyscope.machine import Progress

from .ncc import Verify

if TYPE_CHECKING:
    from .edges import Edges
    from .part_search import Parts, PartSearch
    from .registration import Register

K = 50
EVIDENCE = ("similarity", "combined", "registered", "edges", "part")
"""The columns of `Matches.evidence`; the last three only where pairs were registered, where edges were compared, and
where parts were looked at."""


@dataclasses.dataclass(frozen=True)
class Matches:
    """The k nearest references of every readable query, with all scores.

    Args:
        queries: the images matched [n].
        references: what they are matched with.
        nearest: positions among the readable references [n k] and their similarity; where edges were compared, the
            nearest by these comes last, if it is none of the others.
        verified: [n k], the aligned pixel score of the first `Verify.top` and of the nearest by edges; NaN beyond.
        next_index: [n], the nearest reference outside the group of the best match; -1 where there is none.
        next_score: [n], its similarity; NaN where there is none.
        chosen: [n], which of the k is the match; None = the one of highest combined score.
        registered: [n k], how well the first few by combined score agree in register, NaN beyond; None = none was
            registered.
        edged: [n k], how far the edges of the nearest by these agree, NaN elsewhere; None = not compared.
        parts: the best part of each query; None = not looked at.
        by_part: [n], whose match is that of its part; None = of none.
    """

    queries: Embeddings
    references: Embeddings
    nearest: Nearest
    verified: NDArray[np.float32]
    next_index: NDArray[np.int64]
    next_score: NDArray[np.float32]
    chosen: NDArray[np.intp] | None = None
    registered: NDArray[np.float32] | None = None
    edged: NDArray[np.float32] | None = None
    parts: Parts | None = None
    by_part: NDArray[np.bool_] | None = None

    def of_sources(self, references: Embeddings, source: NDArray[np.int64]) -> Matches:
        """Put other references in the place of these, as for further rows of transparent images.

        Args:
            references: the other ones.
            source: [m], position among them that each reference stands for.

        Returns:
            The same matches, with the other references.
        """

        def mapped(positions: NDArray[np.int64]) -> NDArray[np.int64]:
            return np.where(positions < 0, positions, source[positions]) if len(source) else positions

        return dataclasses.replace(
            self,
            references=references,
            nearest=Nearest(mapped(self.nearest.index), self.nearest.score),
            next_index=mapped(self.next_index),
            parts=self.parts and dataclasses.replace(self.parts, match=mapped(self.parts.match)),
        )

    @property
    def by_descriptor(self) -> Nearest:
        """The k nearest by the descriptor alone."""
        if self.edged is None:
            return self.nearest
        return Nearest(self.nearest.index[:, :-1], self.nearest.score[:, :-1])

    @property
    def similarity(self) -> NDArray[np.float32]:
        """Similarity score of each query [n]: its highest similarity to any reference (DCR's top-1)."""
        return self.nearest.score[:, 0]

    @property
    def combined(self) -> NDArray[np.float32]:
        """Descriptor score s and pixel score v as one [n k], the score that verdicts rest on; -inf where not verified.

        1 - sqrt((1 - s) * (1 - v)): the geometric mean of what is missing, so that either being sure weighs much.
        """
        return combine(self.nearest.score, self.verified)

    @property
    def evidence(self) -> NDArray[np.float32]:
        """Evidence that a verdict weighs [n d]: the highest of each score of each query, in the order of EVIDENCE."""
        columns = [each.max(axis=1) for each in self._of_wholes]
        return np.stack(columns if self.parts is None else [*columns, self.parts.score], axis=1)

    @property
    def _of_wholes(self) -> list[NDArray[np.float32]]:
        """The scores of whole pictures [n k] each, -1 where one is not known."""
        more = [np.nan_to_num(each, nan=-1) for each in (self.registered, self.edged) if each is not None]
        return [self.nearest.score, self.combined, *more]

    @property
    def pixels(self) -> NDArray[np.float32]:
        """Highest pixel score of each query [n], -1 where no pair was compared."""
        best: NDArray[np.float32] = np.nan_to_num(self.verified, nan=-1).max(axis=1, initial=-1)
        return best

    @property
    def best(self) -> NDArray[np.intp]:
        """Place among the k of each query's match [n]: the one of highest combined score, unless one was chosen."""
        best: NDArray[np.intp] = self.combined.argmax(axis=1) if self.chosen is None else self.chosen
        return best

    def choose(self, queries: NDArray[np.bool_], calibration: NDArray[np.floating[Any]]) -> Matches:
        """Choose as match of some queries the candidate that stands out most from calibration images.

        A score that stands out may be of another candidate than that of the highest combined score: of a picture whose
        colours are exchanged the similarity is, and a chance candidate has the better pixel score.

        Args:
            queries: bool [n], whose match to choose.
            calibration: float [m d], evidence of images that are no copies.

        Returns:
            The same matches, with `chosen` filled.
        """
        rows = np.flatnonzero(queries)
        if not len(rows) or not len(calibration):
            return self
        low, high = np.quantile(calibration, [0.9, 0.95], axis=0)
        scores = np.stack([each[rows] for each in self._of_wholes], axis=2)
        wholes = slice(0, scores.shape[2])
        best = self.best.copy()
        best[rows] = ((scores - low[wholes]) / np.maximum(high - low, 1e-3)[wholes]).max(axis=2).argmax(axis=1)
        by_part = rests_on_part(self.evidence, calibration) & queries if self.parts else None
        return dataclasses.replace(self, chosen=best, by_part=by_part)

    def of_best(self, values: NDArray[np.float32], of_part: NDArray[np.float32] | None = None) -> NDArray[np.float32]:
        """Values at the best match of each query.

        Args:
            values: [n k].
            of_part: [n], values of queries whose match is that of a part; None = the value at the match.

        Returns:
            [n].
        """
        found: NDArray[np.float32] = np.take_along_axis(values, self.best[:, None], axis=1)[:, 0]
        return found if self.by_part is None or of_part is None else np.where(self.by_part, of_part, found)

    @property
    def scores(self) -> dict[str, NDArray[np.float32]]:
        """Similarity ("score"), pixel score ("verified") and combined score of each query [n] and its match."""
        whole = (self.nearest.score, self.verified, self.combined)
        parts = self.parts
        of_part = (None, None, None) if parts is None else (parts.similarity, parts.verified, parts.score)
        found = (self.of_best(*each) for each in zip(whole, of_part, strict=True))
        return dict(zip(("score", "verified", "combined"), found, strict=True))

    @property
    def match(self) -> NDArray[np.int64]:
        """Position of the match of each query among the readable references [n]; -1 where there is none."""
        found: NDArray[np.int64] = np.take_along_axis(self.nearest.index, self.best[:, None], axis=1)[:, 0]
        return found if self.by_part is None or self.parts is None else np.where(self.by_part, self.parts.match, found)

    @property
    def identical(self) -> NDArray[np.bool_]:
        """Which queries [n] are their match itself, to within rounding in both scores: copies that need no test."""
        return is_identical(self.of_best(self.nearest.score), self.of_best(self.verified))

    def table(self, k: int) -> pa.Table:
        """Table of matches: query_id, reference_id, rank (from 1), score, verified, combined.

        Args:
            k: rows a query.

        Returns:
            The table, query by query, best first.
        """
        k = min(k, self.nearest.index.shape[1])
        index = self.nearest.index[:, :k]
        there = index >= 0
        query = np.nonzero(there)[0]
        queries, references = self.queries, self.references
        verified, combined = self.verified[:, :k][there], self.combined[:, :k][there]
        return pa.table(
            {
                "query_id": queries.corpus.pick("id", queries.rows[query]),
                "reference_id": references.corpus.pick("id", references.rows[index[there]]),
                "rank": pa.array((np.nonzero(there)[1] + 1).astype(np.int32)),
                "score": pa.array(self.nearest.score[:, :k][there]),
                "verified": pa.array(verified, mask=np.isnan(verified)),
                "combined": pa.array(combined, mask=np.isneginf(combined)),
            }
        )


def rests_on_part(evidence: NDArray[np.float32], calibration: NDArray[np.floating[Any]]) -> NDArray[np.bool_]:
    """Which images stand out more by their part than as a whole, bool [n].

    Args:
        evidence: [n d], its last column of parts.
        calibration: [m d], of images that are no copies.
    """
    if not len(calibration):
        return np.zeros(len(evidence), dtype=bool)
    low, high = np.quantile(calibration, [0.9, 0.95], axis=0)
    out = (evidence - low) / np.maximum(high - low, 1e-3)
    return np.asarray((out[:, -1] > out[:, :-1].max(axis=1)) & (evidence[:, -1] > -1), dtype=bool)


def is_identical(score: NDArray[np.float32], verified: NDArray[np.float32]) -> NDArray[np.bool_]:
    """Where descriptor and pixel scores of any one shape are both 1 to within rounding: the same image."""
    same: NDArray[np.bool_] = (score >= 1 - 1e-5) & (verified >= 1 - 1e-4)
    return same


def combine(score: NDArray[np.float32], verified: NDArray[np.float32]) -> NDArray[np.float32]:
    """Combined score of descriptor and pixel scores of any one shape; see `Matches.combined`."""
    missing = np.maximum(1 - score, 0) * np.maximum(1 - verified, 0)
    return np.where(np.isnan(missing), -np.inf, 1 - np.sqrt(missing)).astype(np.float32)


def match(
    queries: Embeddings,
    references: Embeddings,
    verify: Verify = Verify(),
    *,
    k: int = K,
    labels: NDArray[np.int64] | None = None,
    own: NDArray[np.int64] | None = None,
    register: Register | None = None,
    edges: Edges | None = None,
    thumbnails: Mapping[int, NDArray[np.uint8]] | None = None,
    parts: PartSearch | None = None,
    cache: str | Path | None = None,
    workers: int | None = None,
    engine: Engine | str | None = None,
    progress: Progress | None = None,
) -> Matches:
    """Match every readable query against the readable references: nearest by the descriptor, re-ranked by pixels.

    References with an IVF index are searched by that.

    Args:
        queries: embeddings of the images to match [n].
        references: embeddings by the same descriptor [m].
        verify: the pixel comparison.
        k: references a query, 1 or more.
        labels: near-duplicate group of each reference [m]; None = each is a group of its own.
        own: group of each query [n], which does not count for it (a training image against the others); None = all
            count.
        register: brings the best candidates into register; None = nobody does.
        edges: finds the reference with the same edges, where there are not too many references; None = nobody does.
        thumbnails: of the queries by side in pixels, as `Verify.thumbnails` gives them; None = they are made.
        parts: looks for references in parts of the queries too; None = nobody looks.
        cache: folder of the cache; None = the user's.
        workers: threads; None = one a core.
        engine: who searches exactly, where there is much to search; None = this process.
        progress: called with a label, the number done and the total.

    Returns:
        The matches.

    Raises:
        InputError: vectors of the two are not of one length, or k is below 1.
    """
    labels = np.arange(len(references.rows), dtype=np.int64) if labels is None else labels
    found = nearest_by(
        engine,
        queries.vectors,
        references.vectors,
        k,
        references.cells,
        query_labels=own,
        reference_labels=labels if own is not None else None,
        workers=workers,
        progress=progress,
    )
    options: Options = {"workers": workers, "progress": progress}

    def shrunk(by: Verify | Register) -> NDArray[np.uint8]:
        """Thumbnails of the queries."""
        mine = (thumbnails or {}).get(by.size)
        return by.thumbnails(queries.corpus, queries.rows, cache=cache, **options) if mine is None else mine

    def compared(by: Verify | Register, candidates: NDArray[np.int64]) -> NDArray[np.float32]:
        """Pixel scores of candidates [n k], -1 for none, NaN there."""
        used, places = np.unique(candidates[candidates >= 0], return_inverse=True)
        if not len(used):
            return np.full(candidates.shape, np.nan, np.float32)
        slots = np.full(candidates.shape, -1, dtype=np.int64)
        slots[candidates >= 0] = places
        theirs = by.thumbnails(references.corpus, references.rows[used], cache=cache, **options)
        return by.compare(shrunk(by), theirs, slots, **options)

    second_look, edged = np.zeros(found.index.shape, bool), None
    second_look[:, : verify.top] = True
    if edges and 0 < len(references.rows) <= edges.most:
        theirs = verify.thumbnails(references.corpus, references.rows, cache=cache, **options)
        by_edges, agreed = edges.nearest(shrunk(verify), theirs, own, labels, workers)
        similarity = np.einsum("nd,nd->n", queries.vectors, references.vectors[by_edges])
        found, edged = _with_another(found, by_edges, similarity, agreed)
        second_look = np.pad(second_look, ((0, 0), (0, 1))) | ~np.isnan(edged)
    verified = compared(verify, np.where(second_look, found.index, -1))
    registered = None
    if register:
        order = np.argsort(-combine(found.score, verified), axis=1, kind="stable")[:, : register.top]
        registered = np.full(found.index.shape, np.nan, dtype=np.float32)
        scores = compared(register, np.take_along_axis(found.index, order, axis=1))
        np.put_along_axis(registered, order, scores, axis=1)
    matches = Matches(
        queries,
        references,
        found,
        verified,
        *_empty_next(len(queries.rows)),
        registered=registered,
        edged=edged,
        parts=parts(queries) if parts else None,
    )
    next_index, next_score = _next_group(matches, labels, own, workers)
    return dataclasses.replace(matches, next_index=next_index, next_score=next_score)


def _with_another(
    found: Nearest, index: NDArray[np.int64], similarity: NDArray[np.float32], score: NDArray[np.float32]
) -> tuple[Nearest, NDArray[np.float32]]:
    """Another reference of each query [n], -1 for none, as column k + 1 where it is not among the k.

    Returns the k + 1 and the `score` [n] of that reference where it stands [n k+1], NaN elsewhere.
    """
    same = found.index == index[:, None]
    lacks = ~same.any(axis=1) & (index >= 0)
    whole = Nearest(
        np.concatenate([found.index, np.where(lacks, index, -1)[:, None]], axis=1),
        np.concatenate([found.score, np.where(lacks, similarity, NOTHING)[:, None]], axis=1, dtype=np.float32),
    )
    there = (whole.index == index[:, None]) & (index >= 0)[:, None]
    return whole, np.where(there, score[:, None], np.nan).astype(np.float32)


def _empty_next(n: int) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    return np.full(n, -1, dtype=np.int64), np.full(n, np.nan, dtype=np.float32)


def _next_group(
    matches: Matches, labels: NDArray[np.int64], own: NDArray[np.int64] | None, workers: int | None
) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    """The nearest reference outside the group of the match: among the k where they reach, else by another search."""
    index, score = _empty_next(len(matches.queries.rows))
    candidates = matches.by_descriptor
    if not len(labels) or not len(index):
        return index, score
    group = np.where(matches.match >= 0, labels[matches.match], -1)
    other = (candidates.index >= 0) & (labels[candidates.index] != group[:, None])
    first = other.argmax(axis=1)
    there = other.any(axis=1)
    rows = np.arange(len(index))
    index[there] = candidates.index[rows, first][there]
    score[there] = candidates.score[rows, first][there]
    # All k in one group: a picture duplicated more often than k.
    lost = np.flatnonzero(~there & (matches.match >= 0) & (candidates.index[:, -1] >= 0))
    if own is None and len(lost):
        again = nearest(
            matches.queries.vectors[lost],
            matches.references.vectors,
            1,
            matches.references.cells,
            query_labels=group[lost],
            reference_labels=labels,
            workers=workers,
        )
        found = again.score[:, 0] > NOTHING
        index[lost[found]], score[lost[found]] = again.index[found, 0], again.score[found, 0]
    return index, score
