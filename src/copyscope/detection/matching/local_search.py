"""Candidates of an index for a picture and its windows, re-ranked by pixels."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import Unpack

import numpy as np
from numpy.typing import NDArray

from copyscope.detection.search.binary_codes import VectorBlocks
from copyscope.detection.search.exact import NOTHING, Nearest
from copyscope.engine import Options

from .match import combine
from .ncc import Verify
from .partial_copies import find
from .templates import SYMMETRIES
from .tiny_image import coarse_vectors, turned_vectors
from .windows import BOXES, QueryFeatures

Own = tuple[NDArray[np.int64], NDArray[np.int64]]
WHOLE = (0.0, 0.0, 1.0, 1.0)


@dataclasses.dataclass(frozen=True, eq=False)
class Candidates:
    """Candidates of pictures [n]: what they may be copies of, c each, in no order.

    Attributes:
        row: int64 [n c], row of the training image, -1 for none.
        box: float32 [n c 4], part of the picture: x, y, width, height as shares of it.
        source_box: float32 [n c 4], part of the training image, likewise.
        score: float32 [n c], descriptor similarity, as in Matches.
        verified: float32 [n c], pixel score.
        combined: float32 [n c], both as one.
    """

    row: NDArray[np.int64]
    box: NDArray[np.float32]
    source_box: NDArray[np.float32]
    score: NDArray[np.float32]
    verified: NDArray[np.float32]
    combined: NDArray[np.float32]

    @property
    def best(self) -> NDArray[np.float32]:
        """Highest combined score of each picture [n], which its p-value is of; -inf where there is none."""
        best: NDArray[np.float32] = self.combined.max(axis=1, initial=-np.inf)
        return best

    def of(self, picture: int, first: NDArray[np.bool_] | None = None) -> Iterator[int]:
        """Candidates of a picture, best first, each training image once; those that were not verified come last.

        Args:
            picture: its place.
            first: bool [c], candidates that come before all others; None = none does.
        """
        seen = {-1}
        later = np.zeros(self.row.shape[1], bool) if first is None else ~first
        for at in np.lexsort((-self.score[picture], -self.combined[picture], later)).tolist():
            row = int(self.row[picture, at])
            if row not in seen:
                seen.add(row)
                yield at


def local_search(
    looks: QueryFeatures,
    whole: VectorBlocks,
    coarse: VectorBlocks,
    crops: VectorBlocks | None,
    verify: Verify,
    k: int,
    *,
    exact: bool | None = None,
    own: Own | None = None,
    **options: Unpack[Options],
) -> Candidates:
    """Find candidates for every picture and its windows, and re-rank them by pixels.

    Candidates are the k nearest to the whole, as `match` finds them, the first `verify.top` verified; the `verify.top`
    whose tiny-image vectors are nearest to those of the whole, under any of the eight symmetries; with windows, the
    `verify.top` nearest to any of them, looked for within the picture; and where there are `crops`, the `verify.top`
    parts of training images that are nearest to the whole.

    Args:
        looks: features of the pictures [n].
        whole: vectors of the training images.
        coarse: their tiny-image vectors.
        crops: vectors of their windows; None = they have none.
        verify: the pixel comparison.
        k: candidates by the whole.
        exact: as in `VectorBlocks.nearest`.
        own: labels of the pictures [n] and of the training images [m]; images of a picture's own label do not count.
        options: `workers` and `progress` of `search`.
    """
    top = verify.top
    nearest = _nearest(looks.vectors, whole, max(k, top), exact, own, options)
    found = [_wholes(looks, whole, coarse, _of(nearest, slice(0, 1)), verify, exact, own, options)]
    if looks.vectors.shape[1] > 1:
        found.append(_insets(looks, whole, _of(nearest, slice(1, None)), top, options))
        if crops is not None:
            theirs = (own[0], np.repeat(own[1], len(BOXES))) if own else None
            parts = _nearest(looks.vectors[:, :1], crops, top, exact, theirs, options)
            cut = _wholes(looks, crops, None, parts, verify, exact, theirs, options)
            row, window = np.divmod(cut.row, len(BOXES))
            boxes = np.array(BOXES, np.float32)[window]
            found.append(dataclasses.replace(cut, row=np.where(cut.row < 0, -1, row), source_box=boxes))
    return Candidates(
        *(
            np.concatenate([getattr(each, field.name) for each in found], axis=1)
            for field in dataclasses.fields(Candidates)
        )
    )


def _nearest(
    vectors: NDArray[np.float32],
    rows: VectorBlocks,
    k: int,
    exact: bool | None,
    own: Own | None,
    options: Options,
) -> Nearest:
    """The k rows nearest to each of the p vectors of each picture [n p d]: index and score [n p k]."""
    n, p, d = vectors.shape
    theirs = (np.repeat(own[0], p), own[1]) if own else None
    queries = np.ascontiguousarray(vectors.reshape(n * p, d))
    found = rows.nearest(queries, k, exact=exact, own=theirs, **options)
    return Nearest(found.index.reshape(n, p, k), found.score.reshape(n, p, k))


def _of(nearest: Nearest, some: slice) -> Nearest:
    """What is nearest to some of the vectors."""
    return Nearest(nearest.index[:, some], nearest.score[:, some])


def _to_any(nearest: Nearest, top: int) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    """The `top` rows nearest to any of the vectors of each picture, -1 for none, and how near [n top]."""
    n = len(nearest.index)
    index, score = (each[:, :, :top].reshape(n, -1) for each in (nearest.index, nearest.score))
    row = np.full((n, top), -1, np.int64)
    best = np.full((n, top), NOTHING, np.float32)
    for picture in range(n):
        order = np.lexsort((index[picture], -score[picture]))
        # Of the vectors that a training image is near to, the nearest counts.
        _, first = np.unique(index[picture, order], return_index=True)
        chosen = order[np.sort(first)]
        chosen = chosen[index[picture, chosen] >= 0][:top]
        row[picture, : len(chosen)], best[picture, : len(chosen)] = index[picture, chosen], score[picture, chosen]
    return row, best


def _wholes(
    looks: QueryFeatures,
    rows: VectorBlocks,
    coarse: VectorBlocks | None,
    nearest: Nearest,
    verify: Verify,
    exact: bool | None,
    own: Own | None,
    options: Options,
) -> Candidates:
    """The rows nearest to each whole picture, and besides those nearest by coarse vectors under any symmetry."""
    index, score, seen = nearest.index[:, 0], nearest.score[:, 0], verify.top
    if coarse is not None:
        upright = coarse_vectors(looks.thumbnails)
        every = np.stack([turned_vectors(upright, symmetry) for symmetry in range(SYMMETRIES)], axis=1)
        more, _ = _to_any(_nearest(every, coarse, seen, exact, own, options), seen)
        more[(more[:, :, None] == index[:, None, :seen]).any(axis=2)] = -1
        score = np.concatenate([rows.similarities(looks.vectors[:, 0], more), score], axis=1)
        index = np.concatenate([more, index], axis=1)
        seen *= 2
    verified = np.full(index.shape, np.nan, np.float32)
    thumbnails, slots = _thumbnails(rows, index[:, :seen])
    verified[:, :seen] = verify.compare(looks.thumbnails, thumbnails, slots, **options)
    return _found(index, score, verified, np.full((*index.shape, 4), WHOLE, np.float32))


def _insets(looks: QueryFeatures, rows: VectorBlocks, nearest: Nearest, top: int, options: Options) -> Candidates:
    """The `top` rows nearest to any window of each picture, and where in the picture they are."""
    row, best = _to_any(nearest, top)
    thumbnails, slots = _thumbnails(rows, row)
    verified, box = find(looks.canvases, thumbnails, slots, workers=options.get("workers"))
    return _found(row, best, verified, box)


def _thumbnails(rows: VectorBlocks, candidates: NDArray[np.int64]) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    """Thumbnails [u s s 3] of all that occur among candidates [n k], and candidates as rows of those; -1 stays."""
    used, places = np.unique(candidates[candidates >= 0], return_inverse=True)
    slots = np.full(candidates.shape, -1, np.int64)
    slots[candidates >= 0] = places
    return rows.thumbnails(used), slots


def _found(
    row: NDArray[np.int64], score: NDArray[np.float32], verified: NDArray[np.float32], box: NDArray[np.float32]
) -> Candidates:
    return Candidates(row, box, np.full_like(box, WHOLE), score, verified, combine(score, verified))
