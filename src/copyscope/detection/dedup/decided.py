"""Groups as people decided: pairs told apart or joined, images left out."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from copyscope.curation.decisions import Decisions, Honoured
from copyscope.detection.embedding.embeddings import Embeddings

from .near_pairs import merged


def as_decided(
    embeddings: Embeddings, label: NDArray[np.int64], decisions: Decisions
) -> tuple[NDArray[np.int64], Honoured]:
    """Groups as people decided, and what that changed.

    Pairs that are "same" are in one group, those that are "different" or "ignore" in two, and an image that is to be
    ignored is alone. An image of a group that falls apart stays with the most similar of those that were told apart.

    Args:
        embeddings: of the corpus.
        label: [n], group of each readable image.
        decisions: of people.
    """
    said = decisions.within(embeddings.corpus, embeddings.rows)
    done = Honoured(set(said.found), same=said.of("same"))
    together = np.array([pair for pair in done.same if label[pair[0]] != label[pair[1]]], np.int64).reshape(-1, 2)
    done.n_joined = len(together)
    label = merged(label, label[together]) if len(together) else label.copy()
    fresh = int(label.max(initial=-1)) + 1
    sizes = np.bincount(label)
    for row in sorted(said.ignored):
        done.n_ignored += int(sizes[label[row]] > 1)
        label[row], fresh = fresh, fresh + 1
    apart: dict[int, dict[int, set[int]]] = {}
    for verdict in ("different", "ignore"):
        for one, other in said.of(verdict):
            if one == other or label[one] != label[other]:
                continue
            done.n_apart += verdict == "different"
            done.n_ignored += verdict == "ignore"
            foes = apart.setdefault(int(label[one]), {})
            foes.setdefault(one, set()).add(other)
            foes.setdefault(other, set()).add(one)
    for group, foes in apart.items():
        for part in _parts(embeddings.vectors, np.flatnonzero(label == group).tolist(), foes)[1:]:
            label[part], fresh = fresh, fresh + 1
    return label, done


def decided_same(n: int, pairs: list[tuple[int, int]]) -> NDArray[np.int64]:
    """A label for each of n images [n], equal for those that decisions make one picture."""
    label = np.arange(n, dtype=np.int64)
    return merged(label, np.array(pairs, np.int64)) if pairs else label


def _parts(vectors: NDArray[np.float32], members: list[int], foes: dict[int, set[int]]) -> list[list[int]]:
    """Members of a group, split so that no part has two that are foes; each goes to the part most similar to it."""
    parts: list[list[int]] = []
    for member in sorted(members, key=lambda row: (row not in foes, row)):
        against = foes.get(member, set())
        open_to = [part for part in parts if not against.intersection(part)]
        if not open_to:
            parts.append([member])
            continue
        nearest = [float((vectors[part] @ vectors[member]).max()) for part in open_to]
        open_to[int(np.argmax(nearest))].append(member)
    return parts
