"""Decide by pixels which pairs of a corpus show the same picture; views are cached."""

from __future__ import annotations

import dataclasses
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Unpack

import numpy as np
from numpy.typing import NDArray

from copyscope.data.corpus import Corpus
from copyscope.detection.embedding.compute import compute
from copyscope.detection.embedding.fill import Feature
from copyscope.detection.matching.templates import Planes, turned
from copyscope.detection.matching.tile_comparison import COARSE, DETAIL, LARGE, SMALL, agreement, detail, resampling
from copyscope.detection.search.exact import one_blas_thread
from copyscope.engine import CacheOptions
from copyscope.imaging import images
from copyscope.imaging.blank import is_blank
from copyscope.imaging.images import Image
from copyscope.machine import cores

PAIRS, FINE_PAIRS = 4096, 256
"""Pairs whose small views, and whose large ones, are in memory at one time."""
HUES = 8
COLOURFUL, SAME_HUES = 10.0, 0.5
"""Two pictures of this chroma (root mean square, of 128) are one only if their hues correlate by so much: a red heart
is not a blue one. A grey copy has none to compare."""


@dataclasses.dataclass(frozen=True)
class Agreements:
    """Pixel agreement of pairs of images.

    Attributes:
        score: float32 [p], the lowest agreement of their tiles but for a few (`tile_comparison`).
        same: bool [p], whether they are the same picture.
    """

    score: NDArray[np.float32]
    same: NDArray[np.bool_]


@dataclasses.dataclass(frozen=True)
class _Views:
    """Views of images that are compared.

    Attributes:
        luma: uint8 [n 2 s s], over either background.
        hues: float32 [n 2 HUES HUES].
        detail: bool [n].
        blank: bool [n].
        layered: bool [n], transparent.
        sizes: int [n 2], height and width.
    """

    luma: NDArray[np.uint8]
    hues: Planes
    detail: NDArray[np.bool_]
    blank: NDArray[np.bool_]
    layered: NDArray[np.bool_]
    sizes: NDArray[np.int64]


def compare_pixels(
    corpus: Corpus,
    rows: NDArray[np.intp],
    pairs: NDArray[np.int64],
    whole: bool = False,
    **options: Unpack[CacheOptions],
) -> Agreements:
    """Decide by pixels which pairs of images show the same picture.

    The same: mirrored, turned, cropped to .6 of the side, resized, recompressed, grey, brighter or in a border; but not
    another picture of the kind. Blank images are the same as none.

    Args:
        corpus: the images.
        rows: corpus rows [n].
        pairs: int64 [p 2], positions in rows.
        whole: neither is cropped, as in `tile_comparison.agreement`.
        options: `cache`, `workers` and `progress` of `embed`.
    """
    score, same = np.zeros(len(pairs), np.float32), np.zeros(len(pairs), bool)
    # Pairs of one centre come together: its view is then in memory once.
    order = np.lexsort((pairs[:, 0], pairs[:, 1])) if len(pairs) else np.zeros(0, np.intp)
    for start in range(0, len(order), PAIRS):
        lot = order[start : start + PAIRS]
        score[lot], same[lot], unsure = _compare(corpus, rows, pairs[lot], None, whole, options)
        fine = lot[unsure]
        for first in range(0, len(fine), FINE_PAIRS):
            some = fine[first : first + FINE_PAIRS]
            large = _large_views(corpus, rows[np.unique(pairs[some])], options)
            score[some], same[some], _ = _compare(corpus, rows, pairs[some], large, whole, options)
    return Agreements(score, same)


def looks(corpus: Corpus, rows: NDArray[np.intp], **options: Unpack[CacheOptions]) -> Planes:
    """Unit vectors [n COARSE*COARSE] of how images look as a whole, to find pairs whose pixels are likeliest the same.

    A descriptor forgives what tells charts or sentences apart, and not hard recompression; these do the reverse.
    """
    luma = _small_views(corpus, rows, options).luma[:, 0]
    shrink = resampling(SMALL, 0, 1, COARSE)
    small = np.stack([(shrink @ each @ shrink.T).ravel() for each in luma.astype(np.float32)])
    small -= small.mean(axis=1, keepdims=True)
    return np.asarray(small / np.maximum(np.linalg.norm(small, axis=1, keepdims=True), 1), np.float32)


def _compare(
    corpus: Corpus,
    rows: NDArray[np.intp],
    pairs: NDArray[np.int64],
    large: NDArray[np.uint8] | None,
    whole: bool,
    options: CacheOptions,
) -> tuple[NDArray[np.float32], NDArray[np.bool_], NDArray[np.bool_]]:
    """Score [p], whether the same [p], and whether only large views can say so [p]."""
    used, places = np.unique(pairs, return_inverse=True)
    places = places.reshape(pairs.shape)
    views = _small_views(corpus, rows[used], options)
    detailed = np.asarray(views.detail[places].any(axis=1), bool)

    def task(at: int) -> tuple[float, bool, bool]:
        one, other = places[at]
        if views.blank[one] or views.blank[other]:
            return 0.0, False, False
        sizes = tuple((int(height), int(width)) for height, width in views.sizes[[one, other]])
        found: list[tuple[float, bool, bool]] = []
        for layer in range(2 if views.layered[one] and views.layered[other] else 1):
            planes = [
                (
                    views.luma[place, layer].astype(np.float32),
                    large[place].astype(np.float32) if large is not None and layer == 0 else None,
                )
                for place in (one, other)
            ]
            score, same, symmetry = agreement(planes[0], planes[1], (sizes[0], sizes[1]), bool(detailed[at]), whole)
            # There are large views over the first background alone.
            unsure = same is None and layer == 0
            same = same is not False and _same_hues(views.hues[one], views.hues[other], symmetry)
            found.append((score, same, same and unsure))
        return min(each[0] for each in found), all(each[1] for each in found), any(each[2] for each in found)

    with one_blas_thread(), ThreadPoolExecutor(options.get("workers") or cores()) as pool:
        found = list(pool.map(task, range(len(places))))
    score = np.array([each[0] for each in found], np.float32)
    same, unsure = (np.array([each[at] for each in found], bool) for at in (1, 2))
    return score, same, same & unsure


def _same_hues(one: Planes, other: Planes, symmetry: int) -> bool:
    norms = [float(np.sqrt(np.square(each).sum() / HUES**2)) for each in (one, other)]
    if min(norms) < COLOURFUL:
        return True
    return float((one * turned(other, symmetry)).sum()) >= SAME_HUES * norms[0] * norms[1] * HUES**2


def _small_views(corpus: Corpus, rows: NDArray[np.intp], options: CacheOptions) -> _Views:
    """Views of `rows` [n]; blank for an image that is gone by now."""
    luma, hues = 2 * SMALL**2, 2 * HUES**2
    work = Feature("views", f"luma {SMALL} twice, hues {HUES}, detail, blank", luma + hues + 3, np.uint8, _view, True)
    values, filled = _values(corpus, rows, work, options)
    gone = ~values.any(axis=1)
    return _Views(
        values[:, :luma].reshape(-1, 2, SMALL, SMALL),
        values[:, luma : luma + hues].reshape(-1, 2, HUES, HUES).astype(np.float32) - 128,
        values[:, -3] > round(255 * DETAIL),
        (values[:, -2] > 0) | gone,
        values[:, -1] > 0,
        np.stack([filled.table[name].to_numpy(zero_copy_only=False) for name in ("height", "width")], axis=1),
    )


def _large_views(corpus: Corpus, rows: NDArray[np.intp], options: CacheOptions) -> NDArray[np.uint8]:
    work = Feature("large-views", f"luma {LARGE}", LARGE**2, np.uint8, _large_view)
    values, _ = _values(corpus, rows, work, options)
    found: NDArray[np.uint8] = values.reshape(-1, LARGE, LARGE)
    return found


def _values(
    corpus: Corpus, rows: NDArray[np.intp], work: Feature, options: CacheOptions
) -> tuple[NDArray[Any], Corpus]:
    """Values [n dim] of `rows` and these rows as a corpus, sizes filled in; zeros for an image that is gone by now."""
    filled, found, values = compute(corpus.take(rows), work, **options)
    whole = np.zeros((len(rows), work.dim), work.dtype)
    whole[found] = values
    return whole, filled


def _view(pictures: list[tuple[Image, Image | None]]) -> NDArray[np.uint8]:
    found = []
    for picture, behind in pictures:
        large = _luma(picture, LARGE)
        small = [_luma(each, SMALL) for each in (picture, picture if behind is None else behind)]
        lost = min(1.0, detail(large.astype(np.float32)))
        blank = is_blank(picture) and (behind is None or is_blank(behind))
        marks = np.array([round(255 * lost), blank, behind is not None], np.uint8)
        found.append(np.concatenate([*(each.ravel() for each in small), _hues(picture).ravel(), marks]))
    return np.stack(found)


def _large_view(pictures: list[Image]) -> NDArray[np.uint8]:
    return np.stack([_luma(picture, LARGE).ravel() for picture in pictures])


def _luma(picture: Image, side: int) -> NDArray[np.uint8]:
    return images.luma(images.resize(picture, (side, side)))


def _hues(picture: Image) -> NDArray[np.uint8]:
    """Blue and red less luma [2 HUES HUES] (ITU-R 601-2), halved, about 128."""
    cells = images.resize(picture, (HUES, HUES), "box").astype(np.float32)
    luma = cells @ np.array([0.299, 0.587, 0.114], np.float32)
    planes = np.stack([(cells[..., 2] - luma) / 2, (cells[..., 0] - luma) / 2])
    return np.asarray(np.clip(np.rint(planes) + 128, 0, 255), np.uint8)
