"""Locate a training image at several sizes and every place of a picture, with its box.

The score is the best normalised cross-correlation, as in `ncc`, and the box is where it is reached. There the whole
is compared, or most of it; here what fills a sixth to a third of the picture.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
from numpy.typing import NDArray

from copyscope.detection.search.exact import one_blas_thread
from copyscope.imaging import images
from copyscope.imaging.images import Image
from copyscope.machine import cores

from .templates import fourier, inverse_norms, shrinking, summed_areas, unit_templates

SIDE = 64
SHARES = (0.4, 0.45, 0.5, 0.55, 0.6)
CORE = 0.875


@dataclasses.dataclass(frozen=True, eq=False)
class Padded:
    """Pictures [n] shrunk to fit a square, the rest filled with their edge.

    Attributes:
        pixels: uint8 [n SIDE SIDE 3].
        extent: float32 [n 2], share of its width and height that the picture fills.
    """

    pixels: NDArray[np.uint8]
    extent: NDArray[np.float32]

    @classmethod
    def of(cls, pixels: NDArray[np.uint8], sizes: NDArray[np.integer[Any]]) -> Padded:
        """Padded pictures from their pixels and their sizes [n 2], width and height in pixels."""
        return cls(pixels, (sizes / sizes.max(axis=1, keepdims=True, initial=1)).astype(np.float32))

    def take(self, rows: NDArray[Any]) -> Padded:
        """Some of the padded pictures."""
        return Padded(self.pixels[rows], self.extent[rows])


def canvas(picture: Image) -> Image:
    """Pad a picture [h w 3]: its longer side fills the square, from the upper left corner on."""
    longer = max(picture.shape[:2])
    rows, columns = (max(1, round(side / longer * SIDE)) for side in picture.shape[:2])
    small = images.resize(picture, (rows, columns))
    return np.pad(small, ((0, SIDE - rows), (0, SIDE - columns), (0, 0)), mode="edge")


def find(
    pictures: Padded, references: NDArray[np.uint8], candidates: NDArray[np.int64], *, workers: int | None = None
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Find references inside pictures, and where.

    Args:
        pictures: padded pictures [n].
        references: thumbnails uint8 [m s s 3].
        candidates: int64 [n k], rows of references, -1 for none.
        workers: threads; None = one a core.

    Returns:
        Scores [n k] in [-1, 1], NaN for candidate -1; and boxes [n k 4]: x, y, width, height as shares of the picture.
    """
    scores = np.full(candidates.shape, np.nan, np.float32)
    boxes = np.zeros((*candidates.shape, 4), np.float32)

    def task(picture: int) -> None:
        there = np.flatnonzero(candidates[picture] >= 0)
        if len(there):
            found = places(pictures.pixels[picture], references[candidates[picture, there]], SHARES)
            scores[picture, there], boxes[picture, there] = found[0], _box(found[1], pictures.extent[picture])

    with one_blas_thread(), ThreadPoolExecutor(workers or cores()) as pool:
        list(pool.map(task, range(len(candidates))))
    return scores, boxes


def places(
    picture: NDArray[np.uint8], references: NDArray[np.uint8], shares: Sequence[float]
) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """Where in one picture references fit best, and how well.

    Args:
        picture: uint8 [h w 3].
        references: uint8 [k s s 3]; of each the central CORE is laid over the picture, mirrored or not.
        shares: sides of the references as shares of the picture's shorter side.

    Returns:
        Scores [k] in [-1, 1], and left, top and side of the core in pixels of the picture, and 1 where mirrored [k 4].
    """
    fft = fourier()

    plane = picture.astype(np.float32).transpose(2, 0, 1)[None]
    height, width = shape = picture.shape[:2]
    spectrum, tables = fft.rfft2(plane), summed_areas(plane)
    size = references.shape[1]
    margin = round(size * (1 - CORE) / 2)
    inner = references[:, margin : size - margin, margin : size - margin].astype(np.float32).transpose(0, 3, 1, 2)
    best = np.full(len(references), -1, np.float32)
    place = np.zeros((len(references), 4), np.int64)
    for share in shares:
        side = round(share * CORE * min(shape))
        shrink = shrinking(inner.shape[-1], side)
        template = unit_templates(np.asarray(shrink @ inner @ shrink.T, np.float32))
        norms = inverse_norms(tables, side)
        rows, columns = height - side + 1, width - side + 1
        for mirrored, one in enumerate((template, template[..., ::-1])):
            product = (spectrum * np.conj(fft.rfft2(one, s=shape))).sum(axis=1)
            found = (fft.irfft2(product, s=shape)[:, :rows, :columns] * norms).reshape(len(references), -1)
            at = found.argmax(axis=1)
            score = found[np.arange(len(references)), at]
            higher = score > best
            best[higher] = score[higher]
            where = [at % columns, at // columns, np.full(len(at), side), np.full(len(at), mirrored)]
            place[higher] = np.stack(where, axis=1)[higher]
    return best, place


def _box(place: NDArray[np.int64], filled: NDArray[np.float32]) -> NDArray[np.float32]:
    """Boxes [k 4] in shares of the picture of `places` [k 4] in pixels of the canvas."""
    margin = place[:, 2] * (1 / CORE - 1) / 2
    low = np.maximum(np.stack([place[:, 0] - margin, place[:, 1] - margin], axis=1) / SIDE, 0)
    high = np.stack([place[:, 0] + place[:, 2] + margin, place[:, 1] + place[:, 2] + margin], axis=1) / SIDE
    low, high = np.minimum(low / filled, 1), np.minimum(high / filled, 1)
    return np.concatenate([low, high - low], axis=1).astype(np.float32)
