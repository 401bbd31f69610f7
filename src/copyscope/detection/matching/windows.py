"""Descriptors and thumbnails of a picture and of its windows (QueryFeatures)."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any, Unpack

import numpy as np
from numpy.typing import NDArray

from copyscope.data.corpus import Corpus
from copyscope.data.storage import failure
from copyscope.detection.descriptors import Descriptor
from copyscope.detection.embedding.compute import compute, compute_ahead
from copyscope.detection.embedding.embed import embed, vectors_work
from copyscope.detection.embedding.fill import Feature
from copyscope.engine import CacheOptions
from copyscope.errors import CopyscopeError, ImageError
from copyscope.imaging.images import Image

from .ncc import Verify
from .partial_copies import SIDE as SIDE_OF_CANVAS
from .partial_copies import Padded, canvas

Box = tuple[float, float, float, float]
SIDE, STRIDE = 0.5, 0.25
PLACES = tuple(STRIDE * step for step in range(round((1 - SIDE) / STRIDE) + 1))
BOXES: tuple[Box, ...] = tuple((x, y, SIDE, SIDE) for y in PLACES for x in PLACES)
"""The windows: x, y, width, height as shares of the picture; each covers a quarter of it."""


LOT = 64
"""Pictures and windows described at one time: a network takes some 10 MB for each."""


@dataclasses.dataclass(frozen=True, eq=False)
class QueryFeatures:
    """Features of pictures [n] that are looked up: of the whole and, if p > 1, of their windows.

    Attributes:
        vectors: float32 [n p d], unit length, the first of each picture that of the whole, then those of its windows.
        thumbnails: uint8 [n s s 3], for re-ranking the whole.
        canvases: padded pictures, for re-ranking parts.
    """

    vectors: NDArray[np.float32]
    thumbnails: NDArray[np.uint8]
    canvases: Padded

    def take(self, rows: NDArray[Any]) -> QueryFeatures:
        """Features of some of the pictures."""
        return QueryFeatures(self.vectors[rows], self.thumbnails[rows], self.canvases.take(rows))


def window_crops(picture: Image) -> list[Image]:
    """Cut the windows out of a picture [h w 3], in the order of BOXES; at least one pixel each."""
    height, width = picture.shape[:2]
    found = []
    for x, y, w, h in BOXES:
        left, top = min(int(x * width), width - 1), min(int(y * height), height - 1)
        right, bottom = max(left + 1, round((x + w) * width)), max(top + 1, round((y + h) * height))
        found.append(np.ascontiguousarray(picture[top:bottom, left:right]))
    return found


def extract(pictures: list[Image], descriptor: Descriptor, verify: Verify, local: bool) -> QueryFeatures:
    """Compute the features of pictures in memory.

    Args:
        pictures: uint8 [h w 3] each.
        descriptor: what describes them.
        verify: whose thumbnails.
        local: with their windows.

    Raises:
        ImageError: the descriptor cannot take a picture.
    """
    every = [each for picture in pictures for each in (picture, *(window_crops(picture) if local else ()))]
    lots = [every[start : start + LOT] for start in range(0, len(every), LOT)]
    try:
        vectors = np.concatenate([np.zeros((0, descriptor.dim), np.float32), *map(descriptor.describe, lots)])
    except CopyscopeError:
        raise
    except Exception as error:
        if len(pictures) > 1:
            for picture in pictures:  # so that the error is of the one it is about
                extract([picture], descriptor, verify, local)
        height, width = pictures[0].shape[:2]
        raise ImageError(f"{width} x {height} pixels cannot be described: {failure(error)}") from None
    sizes = [picture.shape[1::-1] for picture in pictures]
    return QueryFeatures(
        vectors.reshape(len(pictures), -1, descriptor.dim),
        verify.shrink(pictures),
        Padded.of(np.stack([canvas(picture) for picture in pictures]), np.array(sizes)),
    )


def extract_from(
    corpus: Corpus,
    descriptor: Descriptor,
    verify: Verify,
    local: bool,
    also: Sequence[Feature] = (),
    **options: Unpack[CacheOptions],
) -> tuple[Corpus, NDArray[np.intp], QueryFeatures]:
    """Compute the features of a corpus; cached by content.

    An image that cannot be read for all features has an error.

    Args:
        corpus: the images.
        descriptor: what describes them.
        verify: whose thumbnails.
        local: with their windows.
        also: other features that these images will be asked for.
        options: `cache`, `workers` and `progress` of `embed`.

    Returns:
        (corpus with its columns filled, readable rows [n], features [n]).
    """
    works = [verify.work()]
    if local:
        works += [window_work(descriptor), canvas_work()]
    described = embed(
        compute_ahead(corpus, [vectors_work(descriptor), *works, *also], **options), descriptor, **options
    )
    filled, rows = described.corpus, described.rows
    found: list[NDArray[Any]] = [np.asarray(described.vectors)]
    for work in works:
        filled, again, values = compute(filled, work, rows=rows, **options)
        if len(again) < len(rows):
            found = [each[np.isin(rows, again)] for each in found]
        rows, found = again, [*found, values]
    n, size = len(rows), verify.size
    vectors = found[0][:, None]
    small = np.zeros((n, SIDE_OF_CANVAS, SIDE_OF_CANVAS, 3), np.uint8)
    if local:
        vectors = np.concatenate([vectors, found[2].reshape(n, len(BOXES), descriptor.dim)], axis=1)
        small = found[3].reshape(small.shape)
    sizes = np.stack([filled.table[name].to_numpy()[rows] for name in ("width", "height")], axis=1)
    return filled, rows, QueryFeatures(vectors, found[1].reshape(n, size, size, 3), Padded.of(small, sizes))


def canvases(corpus: Corpus, rows: NDArray[np.intp], **options: Unpack[CacheOptions]) -> NDArray[np.uint8]:
    """Padded pictures [n s s 3] of the images in `rows`, cached by content; black for an image that is gone by now."""
    return _values(corpus, rows, canvas_work(), options).reshape(-1, SIDE_OF_CANVAS, SIDE_OF_CANVAS, 3)


def canvas_work() -> Feature:
    """Feature of padded pictures."""
    return Feature("canvases", f"fit to {SIDE_OF_CANVAS}", 3 * SIDE_OF_CANVAS**2, np.uint8, _canvases)


def _canvases(pictures: list[Image]) -> NDArray[np.uint8]:
    return np.stack([canvas(picture) for picture in pictures]).reshape(len(pictures), -1)


def window_vectors(
    corpus: Corpus,
    rows: NDArray[np.intp],
    descriptor: Descriptor,
    **options: Unpack[CacheOptions],
) -> NDArray[np.float32]:
    """Vectors [n w d] of the windows of images, cached by content.

    Args:
        corpus: the images.
        rows: corpus rows [n].
        descriptor: what describes them.
        options: of `compute`.
    """
    return _values(corpus, rows, window_work(descriptor), options).reshape(-1, len(BOXES), descriptor.dim)


def window_work(descriptor: Descriptor) -> Feature:
    """Feature of the vectors of an image's windows."""
    n, dim = len(BOXES), descriptor.dim

    def describe(pictures: list[Image]) -> NDArray[np.float32]:
        return descriptor.describe([each for picture in pictures for each in window_crops(picture)]).reshape(
            -1, n * dim
        )

    key = f"{descriptor}\n{descriptor.fingerprint()}\n{BOXES}"
    return Feature("windows", key, n * dim, np.float32, describe, device=descriptor.device)


def window_thumbnails(
    corpus: Corpus,
    rows: NDArray[np.intp],
    verify: Verify,
    **options: Unpack[CacheOptions],
) -> NDArray[np.uint8]:
    """Thumbnails [n w s s 3] of the windows of images, cached by content.

    Args:
        corpus: the images.
        rows: corpus rows [n].
        verify: whose thumbnails.
        options: of `compute`.
    """
    found = _values(corpus, rows, window_thumbnails_work(verify), options)
    return found.reshape(-1, len(BOXES), verify.size, verify.size, 3)


def window_thumbnails_work(verify: Verify) -> Feature:
    """Feature of the thumbnails of an image's windows."""
    size = verify.size

    def shrink(pictures: list[Image]) -> NDArray[np.uint8]:
        shrunk = verify.shrink([each for picture in pictures for each in window_crops(picture)])
        return shrunk.reshape(len(pictures), -1)

    dim = len(BOXES) * 3 * size**2
    return Feature("window-thumbnails", f"central square {size} of {BOXES}", dim, np.uint8, shrink)


def _values(corpus: Corpus, rows: NDArray[np.intp], work: Feature, options: CacheOptions) -> NDArray[Any]:
    """Values [n dim] of all `rows`; zeros for an image that is gone by now."""
    _, found, values = compute(corpus, work, rows=rows, **options)
    if len(found) == len(rows):
        return values
    whole = np.zeros((len(rows), work.dim), work.dtype)
    whole[np.isin(rows, found)] = values
    return whole
