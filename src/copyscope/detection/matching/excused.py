"""Matches without the pairs that people decided are no copies."""

from __future__ import annotations

import dataclasses

import numpy as np
from numpy.typing import NDArray

from copyscope.curation.decisions import Decisions, Honoured, names_of
from copyscope.detection.embedding.embeddings import Embeddings
from copyscope.detection.search.exact import Nearest

from .match import Matches

LOWEST = -1.0


class Excuse:
    """Takes the pairs that people decided about out of the matches of an audit, and counts what decisions did.

    Args:
        decisions: of people.
        train: the training images.
        source: int [m], the position in `train` of the image that each reference of the matches shows.
        label: int [t], the near-duplicate group of each image of `train`.
        honoured: what the decisions changed about the groups.
    """

    def __init__(
        self,
        decisions: Decisions,
        train: Embeddings,
        source: NDArray[np.int64],
        label: NDArray[np.int64],
        honoured: Honoured,
    ) -> None:
        self.decisions, self.honoured = decisions, honoured
        self._about = train, source, label

    def __call__(self, found: Matches) -> Matches:
        """The matches without what people decided."""
        found, done = excused(found, self.decisions, *self._about)
        self.honoured.add(done)
        return found


def excused(
    found: Matches, decisions: Decisions, train: Embeddings, source: NDArray[np.int64], label: NDArray[np.int64]
) -> tuple[Matches, Honoured]:
    """The matches without pairs that are "different" or "ignore" and without licensed images, and what that changed.

    What is said of a training image holds for its near-duplicate group.

    Args:
        found: the matches.
        decisions: of people.
        train: the training images.
        source: int [m], the position in `train` of the image that each reference of `found` shows.
        label: int [t], the group of each image of `train`.
    """
    queries = found.queries
    mine = decisions.places(names_of(queries.corpus, queries.rows))
    said = decisions.between(mine, decisions.places(names_of(train.corpus, train.rows)))
    done = Honoured(set(said.found))
    group = label[source]
    verdicts = {int(label[row]): verdict for row, verdict in said.references.items()}
    spared = np.isin(group, list(verdicts))
    by_query: dict[int, dict[int, str]] = {}
    for (query, row), verdict in said.pairs.items():
        by_query.setdefault(query, {})[int(label[row])] = verdict
    index = found.nearest.index
    if not len(group) or not index.size:
        return found, done
    out = (index >= 0) & spared[index]
    for query, groups in by_query.items():
        out[query] |= (index[query] >= 0) & np.isin(group[index[query]], list(groups))
    out[sorted(said.queries)] = True
    for query in np.flatnonzero(np.take_along_axis(out, found.best[:, None], axis=1)[:, 0]).tolist():
        its = int(group[found.match[query]])
        verdict = "ignore" if query in said.queries else by_query.get(query, {}).get(its) or verdicts.get(its, "")
        done.n_apart += verdict == "different"
        done.n_licensed += verdict == "licensed"
        done.n_ignored += verdict == "ignore"
    return _without(found, out), done


def _without(found: Matches, out: NDArray[np.bool_]) -> Matches:
    """The matches without the candidates `out` [n k]. Where none is left, they stay with the lowest scores."""
    if not out.any():
        return found
    scores = np.where(out, np.float32(LOWEST), found.nearest.score)
    index = np.where(out & ~out.all(axis=1, keepdims=True), -1, found.nearest.index)
    # The nearest by edges has the last column.
    k = index.shape[1] - (found.edged is not None)
    order = np.tile(np.arange(index.shape[1]), (len(index), 1))
    order[:, :k] = np.argsort(-scores[:, :k], axis=1, kind="stable")

    def placed(values: NDArray[np.float32] | None, lowest: float) -> NDArray[np.float32] | None:
        return None if values is None else np.take_along_axis(np.where(out, np.float32(lowest), values), order, axis=1)

    verified = placed(found.verified, LOWEST)
    assert verified is not None
    parts = found.parts
    if parts is not None:
        # A part is left out with the image that it shows.
        gone = np.zeros(len(parts.match), bool)
        for query in np.flatnonzero(out.any(axis=1)):
            gone[query] = parts.match[query] in found.nearest.index[query][out[query]] or bool(out[query].all())
        parts = dataclasses.replace(parts, match=np.where(gone, -1, parts.match))
    left = np.isin(found.next_index, found.nearest.index[out])
    return dataclasses.replace(
        found,
        nearest=Nearest(np.take_along_axis(index, order, axis=1), np.take_along_axis(scores, order, axis=1)),
        verified=verified,
        registered=placed(found.registered, np.nan),
        edged=placed(found.edged, np.nan),
        parts=parts,
        next_index=np.where(left, -1, found.next_index),
        next_score=np.where(left, np.float32(np.nan), found.next_score),
    )
