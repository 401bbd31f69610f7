"""Blank images: one colour to within the noise of a sensor or a JPEG."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from .images import Image


def is_blank(image: Image) -> bool:
    """Whether an image is blank: one colour to within noise, as the black image of a safety checker.

    Every cell of 1, 2, 4, 8 ... pixels a side lies near the median colour. c pixels a side, it may be away by
    3 + (12 + 8 s) / c levels: 3 for what the eye hardly sees, 12 for what a JPEG makes of a flat picture, and s, at
    most 5, for the noise of a sensor, which averages out in larger cells as nothing drawn or photographed does. One
    dark line one pixel wide is enough not to be blank. s is the median of differences two pixels apart, so that a few
    lines do not count for noise.

    Args:
        image: uint8 [h w 3].

    Returns:
        True where it is blank.
    """
    height, width = image.shape[:2]
    # Most images are told by a few of their pixels: a part cannot differ by more than the whole.
    if not may_be_blank(image[:: max(1, height // 64), :: max(1, width // 64)]) or not may_be_blank(image):
        return False
    if (image == image[0, 0]).all():
        return True
    flat = image.reshape(-1, 3)
    median = np.array([np.bincount(flat[:, channel]).cumsum().searchsorted(len(flat) / 2) for channel in range(3)])
    noise = min(_noise(image), _MOST_NOISE)
    cells: NDArray[Any] = image
    while True:
        side = ((height // cells.shape[0]) * (width // cells.shape[1])) ** 0.5
        away = max(np.abs(end - median).max() for end in (cells.max(axis=(0, 1)), cells.min(axis=(0, 1))))
        if away > _unseen(side, noise):
            return False
        if max(cells.shape[:2]) == 1:
            return True
        for axis in (0, 1):
            if (length := cells.shape[axis] // 2 * 2) > 1:
                even, odd = (cells.take(range(start, length, 2), axis).astype(np.float32) for start in (0, 1))
                cells = (even + odd) / 2


def may_be_blank(pictures: NDArray[np.uint8]) -> NDArray[np.bool_]:
    """Whether the levels of thumbnails [... h w 3] lie so close that `is_blank` must look.

    Where not, neither they nor the images they were shrunk from are blank.
    """
    # Shrinking rounds, and so may add a level at either end.
    return np.asarray(np.ptp(pictures, axis=(-3, -2)).max(axis=-1) <= 2 * (_unseen(1, _MOST_NOISE) + 1))


_MOST_NOISE = 5.0


def _unseen(side: float, noise: float) -> float:
    """By how many levels a cell of `side` pixels may be away from the median of a blank picture with so much noise."""
    return 3 + (12 + 8 * noise) / side


def _noise(image: Image) -> float:
    """Standard deviation, in levels, of a noise without neighbours in `image` [h w 3], whatever a few lines add."""
    found = [0.0]
    for rows in (image, image.transpose(1, 0, 2)):
        # A hundred thousand values tell it.
        some = rows[:: max(1, rows.size // 100_000)].astype(np.int16)
        step = some[:, 2:] - some[:, :-2]
        if step.size:
            centred = np.abs(step - np.median(step, axis=(0, 1)))
            found.append(float(np.median(centred, axis=(0, 1)).max()) / (0.6745 * 2**0.5))
    return max(found)
