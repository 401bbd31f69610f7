"""Looks x Rows -> which training images a picture, or a window of it, is like, by both scores of a match."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .codes import Rows
from .match import combine
from .verify import Verify
from .windows import BOXES, Looks

# Candidates of a window that get the second look, and of the whole picture among the windows of training images.
LOCAL_TOP = 4


@dataclasses.dataclass(frozen=True, eq=False)
class Found:
    """What pictures [n] may be copies of: c candidates each, in no order.

    row: int64 [n c], row of the training image, -1 for none. look: which look at the picture [n c], 0 = the whole.
    part: which part of the training image [n c], 0 = the whole. score, verified, combined: float32 [n c], as in Matches.
    """

    row: NDArray[np.int64]
    look: NDArray[np.int64]
    part: NDArray[np.int64]
    score: NDArray[np.float32]
    verified: NDArray[np.float32]
    combined: NDArray[np.float32]

    @property
    def best(self) -> NDArray[np.float32]:
        """Highest combined score of each picture [n], what p-values are of; -inf where there is none."""
        return self.combined.max(axis=1, initial=-np.inf)

    def of_whole(self) -> NDArray[np.float32]:
        """As `best`, of the whole pictures against whole training images alone."""
        whole = (self.look == 0) & (self.part == 0)
        return np.where(whole, self.combined, -np.inf).max(axis=1, initial=-np.inf)

    def of(self, picture: int) -> Iterator[int]:
        """Candidates of a picture, best first, each training image once; those that were not verified come last."""
        seen = {-1}
        for at in np.lexsort((-self.score[picture], -self.combined[picture])).tolist():
            row = int(self.row[picture, at])
            if row not in seen:
                seen.add(row)
                yield at


def locate(
    looks: Looks,
    whole: Rows,
    crops: Rows | None,
    verify: Verify,
    k: int,
    *,
    exact: bool | None = None,
    own: tuple[NDArray[np.int64], NDArray[np.int64]] | None = None,
    **options: Any,
) -> Found:
    """Candidates for every picture: of the whole, the k nearest, the first `verify.top` of them verified, just as
    `match` does it; of each window, and of each picture among the crops of training images, LOCAL_TOP.

    own: labels of the pictures [n] and of the training images [m]; images of a picture's own label do not count.
    options: `workers` and `progress` of `search`.
    """
    n, p = looks.vectors.shape[:2]
    found = [_pass(looks, slice(0, 1), whole, verify, (max(k, verify.top), verify.top), exact, own, options)]
    if p > 1:
        found.append(_pass(looks, slice(1, p), whole, verify, (LOCAL_TOP, LOCAL_TOP), exact, own, options))
        if crops is not None:
            theirs = (own[0], np.repeat(own[1], len(BOXES))) if own else None
            inner = _pass(looks, slice(0, 1), crops, verify, (2 * LOCAL_TOP, 2 * LOCAL_TOP), exact, theirs, options)
            image, window = np.divmod(inner.row, len(BOXES))
            found.append(dataclasses.replace(inner, row=image, part=np.where(inner.row < 0, 0, window + 1)))
    names = [field.name for field in dataclasses.fields(Found)]
    return Found(*(np.concatenate([getattr(each, name) for each in found], axis=1) for name in names))


def _pass(
    looks: Looks,
    some: slice,
    rows: Rows,
    verify: Verify,
    sizes: tuple[int, int],
    exact: bool | None,
    own: tuple[NDArray[np.int64], NDArray[np.int64]] | None,
    options: dict[str, Any],
) -> Found:
    """`some` of the looks against rows: `sizes` says how many are kept, and how many verified, of each look."""
    k, top = sizes
    n = len(looks.vectors)
    vectors, thumbnails = looks.vectors[:, some], looks.thumbnails[:, some]
    p = vectors.shape[1]
    labels = (np.repeat(own[0], p), own[1]) if own else None
    flat = np.ascontiguousarray(vectors.reshape(n * p, -1))
    nearest = rows.nearest(flat, k, exact=exact, own=labels, **options)
    verified = np.full(nearest.index.shape, np.nan, np.float32)
    candidates = nearest.index[:, :top]
    used, places = np.unique(candidates[candidates >= 0], return_inverse=True)
    if len(used):
        slots = np.full(candidates.shape, -1, np.int64)
        slots[candidates >= 0] = places
        queries = np.ascontiguousarray(thumbnails.reshape(n * p, *thumbnails.shape[2:]))
        verified[:, :top] = verify.compare(queries, rows.thumbnails(used), slots, **options)
    look = np.repeat(np.tile(np.arange(p) + (some.start or 0), n)[:, None], k, axis=1)
    whole = np.zeros_like(nearest.index)
    columns = (nearest.index, look, whole, nearest.score, verified, combine(nearest.score, verified))
    return Found(*(column.reshape(n, p * k) for column in columns))
