"""Refine descriptor groups by pixel comparison: an edge needs the same picture.

Every member is compared with the centre of its group; what is not the same picture as that, with the nearest other two
by the descriptor and by the looks of the whole. So a family of look-alikes costs at most five comparisons an image, and
falls apart into its real duplicates.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from copyscope.detection.embedding.embeddings import Embeddings
from copyscope.detection.matching.ncc import Verify
from copyscope.detection.matching.templates import SYMMETRIES
from copyscope.detection.matching.tiny_image import coarse_candidates, coarse_vectors_of
from copyscope.engine import CacheOptions
from copyscope.machine import Progress

from .near_pairs import merged
from .same_picture import compare_pixels, looks

PIECE = 4096
NEXT = 2
TURNS = range(2, SYMMETRIES)
"""Symmetries that a descriptor does not forgive: turns by a quarter or a half."""
ALIKE = 0.9
"""Coarse vectors of a turned picture and its source agree by so much."""


def same_picture_groups(
    embeddings: Embeddings,
    label: NDArray[np.int64],
    *,
    cache: str | Path | None = None,
    workers: int | None = None,
    progress: Progress | None = None,
) -> NDArray[np.int64]:
    """Refine descriptor groups by pixels: every image must be the same picture as another one of its group.

    Args:
        embeddings: of the corpus.
        label: [n], groups by the descriptor, which are only ever split here.
        cache: folder of the cache; None = the user's.
        workers: threads; None = one a core.
        progress: called with a label, the number done and the total.

    Returns:
        Labels [n].
    """
    options: CacheOptions = {"cache": cache, "workers": workers, "progress": progress}
    grouped = np.flatnonzero((np.bincount(label) > 1)[label])
    found = label.copy()
    found[grouped] = int(label.max(initial=-1)) + 1 + np.arange(len(grouped))
    if not len(grouped):
        return found
    grouped = grouped[np.argsort(label[grouped], kind="stable")]
    groups = np.split(grouped, np.flatnonzero(np.diff(label[grouped])) + 1)
    pairs = np.concatenate([_to_centre(embeddings, members) for members in groups])
    corpus, rows = embeddings.corpus, embeddings.rows
    same = compare_pixels(corpus, rows, pairs, **options).same
    edges = [pairs[same]]
    lost = np.zeros(len(label), bool)
    lost[pairs[~same, 0]] = True
    # Of a pair there is no other one to try.
    left = [members for members in groups if len(members) > 2 and lost[members].any()]
    if left:
        more = np.concatenate([_to_nearest(embeddings, members, lost[members], options) for members in left])
        more = np.unique(np.sort(more, axis=1), axis=0)
        edges.append(more[compare_pixels(corpus, rows, more, **options).same])
    return merged(found, found[np.concatenate(edges)])


def join_turned(
    embeddings: Embeddings,
    label: NDArray[np.int64],
    verify: Verify,
    *,
    cache: str | Path | None = None,
    workers: int | None = None,
    progress: Progress | None = None,
) -> NDArray[np.int64]:
    """Join groups that are the same picture turned by a quarter or a half.

    One image of each group is compared with all others by tiny-image vectors, and the likeliest two by their pixels,
    the whole over the whole: the descriptor does not say that they are alike.

    Args:
        embeddings: of the corpus.
        label: [n], groups.
        verify: whose thumbnails are used.
        cache: folder of the cache; None = the user's.
        workers: threads; None = one a core.
        progress: called with a label, the number done and the total.

    Returns:
        Labels [n].
    """
    options: CacheOptions = {"cache": cache, "workers": workers, "progress": progress}
    _, first = np.unique(label, return_index=True)
    vectors = coarse_vectors_of(embeddings.corpus, embeddings.rows[first], verify, **options)
    own = np.arange(len(first))
    found = coarse_candidates(
        vectors, vectors, NEXT, symmetries=TURNS, query_labels=own, reference_labels=own, workers=workers
    )
    query, slot = np.nonzero((found.index >= 0) & (found.score >= ALIKE))
    if not len(query):
        return label
    pairs = np.unique(np.sort(first[np.stack([query, found.index[query, slot]], axis=1)], axis=1), axis=0)
    same = compare_pixels(embeddings.corpus, embeddings.rows, pairs, whole=True, **options).same
    return merged(label, label[pairs[same]]) if same.any() else label


def _to_centre(embeddings: Embeddings, members: NDArray[np.intp]) -> NDArray[np.int64]:
    """Pairs of every other member with the one that is nearest to the mean."""
    pieces = [members[start : start + PIECE] for start in range(0, len(members), PIECE)]
    mean = np.sum([embeddings.vectors[piece].sum(axis=0) for piece in pieces], axis=0)
    centre = int(np.argmax(np.concatenate([embeddings.vectors[piece] @ mean for piece in pieces])))
    others = np.delete(members, centre)
    return np.stack([others, np.full(len(others), members[centre])], axis=1).astype(np.int64)


def _to_nearest(
    embeddings: Embeddings, members: NDArray[np.intp], lost: NDArray[np.bool_], options: CacheOptions
) -> NDArray[np.int64]:
    """Pairs of the lost members [m] with the nearest NEXT others by either measure, sought in pieces of the group."""
    pairs = []
    for start in range(0, len(members), PIECE):
        piece, mine = members[start : start + PIECE], np.flatnonzero(lost[start : start + PIECE])
        views = looks(embeddings.corpus, embeddings.rows[piece], **options)
        for vectors in (embeddings.vectors[piece].astype(np.float32), views):
            scores = vectors[mine] @ vectors.T
            scores[np.arange(len(mine)), mine] = -np.inf
            near = np.argsort(-scores, axis=1, kind="stable")[:, : min(NEXT, len(piece) - 1)]
            pairs.append(np.stack([np.repeat(piece[mine], near.shape[1]), piece[near].ravel()], axis=1))
    return np.concatenate(pairs).astype(np.int64)
