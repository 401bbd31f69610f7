"""PDQ, Meta's 256-bit perceptual hash, in numpy: the bits of Meta's own C++ code."""

from __future__ import annotations

import dataclasses
import functools

import numpy as np
from numpy.typing import NDArray

from . import Descriptor, Image

Floats = NDArray[np.float32]

_SIDE = 64
"""Pixels a side of the small image that is transformed."""
_BITS = 16
"""Frequencies a side of the hash."""
_LEAST = 5
"""Images with a side below this have the hash 0, as in Meta's code."""
_ROWS = 32
"""Rows whose luminance is computed at once."""
_PIXELS = 1 << 18
"""So many pixels are filtered at once."""


@dataclasses.dataclass(frozen=True)
class Pdq(Descriptor):
    """PDQ hash, 256 bits as +-1/16: inner product = 1 - hamming / 128. Its authors' bound for alike is 31 bits.

    After Meta's C++ code (The TMK+PDQF Video-Hashing Algorithm and the PDQ Image-Hashing Algorithm, 2019): sums in its
    order and in float32, because rounding decides the bits of frequencies that an image lacks (flat images, gradients).
    """

    @property
    def dim(self) -> int:
        """256 bits."""
        return _BITS**2

    def describe(self, images: list[Image]) -> NDArray[np.float32]:
        """PDQ hashes as vectors; see `Descriptor.describe`."""
        small = np.empty((len(images), _SIDE, _SIDE), np.float32)
        shapes: dict[tuple[int, ...], list[int]] = {}
        for place, image in enumerate(images):
            shapes.setdefault(image.shape[:2], []).append(place)
        # Images of one shape share each step: for small ones, the steps are what costs.
        for (height, width), places in shapes.items():
            share = max(1, _PIXELS // (height * width))
            for start in range(0, len(places), share):
                some = places[start : start + share]
                small[some] = _shrink([images[place] for place in some])
        bits = _bits(small)
        bits[[min(image.shape[:2]) < _LEAST for image in images]] = False
        return np.where(bits, 1, -1).astype(np.float32) / np.float32(_BITS)

    def fingerprint(self) -> str:
        """Version of this implementation."""
        return "pdq 1"


def _shrink(images: list[Image]) -> Floats:
    """Luminance [k 64 64] of k images of one shape: two passes of a box filter each way, then one pixel a cell."""
    height, width = images[0].shape[:2]
    pixels = np.empty((height, len(images), width), np.float32)
    for place, image in enumerate(images):
        _luminance(image, pixels[:, place])
    # Only pixels at the centres of the 64 x 64 cells are kept, so the last sums run over those columns alone.
    rows, columns = (((np.arange(_SIDE) + 0.5) * side / _SIDE).astype(np.intp) for side in (height, width))
    if (height, width) == (_SIDE, _SIDE) or min(height, width) < _LEAST:
        return np.asarray(pixels[rows][..., columns].swapaxes(0, 1))
    across, down = (-(-side // (2 * _SIDE)) for side in (width, height))
    pixels = _box(_turned(_box(_turned(pixels), across)), down)
    pixels = _box(_turned(_box(_turned(pixels), across)[columns]), down)
    return np.asarray(pixels[rows].swapaxes(0, 1))


def _luminance(image: Image, out: Floats) -> None:
    """Luminance of an image [h w 3] into `out` [h w], some rows at a time, which stay in the processor's cache."""
    sums, product = np.empty((2, _ROWS, image.shape[1]))
    for top in range(0, len(image), _ROWS):
        some = image[top : top + _ROWS]
        luma, part = sums[: len(some)], product[: len(some)]
        np.multiply(some[..., 0], 0.299, out=luma)
        luma += np.multiply(some[..., 1], 0.587, out=part)
        luma += np.multiply(some[..., 2], 0.114, out=part)
        out[top : top + _ROWS] = luma


def _turned(values: Floats) -> Floats:
    """Values [n k m] as [m k n], in one piece of memory."""
    return np.ascontiguousarray(values.transpose(2, 1, 0))


def _box(values: Floats, window: int) -> Floats:
    """Means over a window of rows around each row of values [n k m], fewer at the ends; one running sum a column."""
    n, ahead = len(values), window // 2
    out = np.empty(values.shape, np.float32)
    rows, sums, total = list(values), list(out), np.zeros(values.shape[1:], np.float32)
    # The window comes in (only additions), slides (an addition, then a subtraction), and leaves (only subtractions).
    for row in rows[:ahead]:
        total += row
    for row, place in zip(rows[ahead:window], sums, strict=False):
        total = np.add(total, row, out=place)
    for row, gone, place in zip(rows[window:], rows, sums[window - ahead :], strict=False):
        total = np.subtract(np.add(total, row, out=place), gone, out=place)
    for gone, place in zip(rows[n - window :], sums[n - ahead :], strict=False):
        total = np.subtract(total, gone, out=place)
    ends = np.arange(n) + ahead + 1
    out /= (np.minimum(ends, n) - np.maximum(ends - window, 0)).astype(np.float32)[:, None, None]
    return out


@functools.cache
def _cosines() -> Floats:
    """Frequencies 1 to 16 of the DCT of 64 values, [16 64]."""
    frequencies, places = np.arange(1, _BITS + 1)[:, None], 2 * np.arange(_SIDE) + 1
    scale = np.float64(np.float32(np.sqrt(2 / _SIDE)))
    return np.asarray(scale * np.cos(np.pi / 2 / _SIDE * frequencies * places), np.float32)


def _bits(small: Floats) -> NDArray[np.bool_]:
    """Bits [k 256] of small images [k 64 64]: which frequencies are above the (lower) median of the image's 256."""
    cosines = _cosines()
    half = np.zeros((len(small), _BITS, _SIDE), np.float32)
    for place in range(_SIDE):
        half += cosines[:, place, None] * small[:, place, None, :]
    whole = np.zeros((len(small), _BITS, _BITS), np.float32)
    for place in range(_SIDE):
        whole += half[:, :, place, None] * cosines[:, place]
    found = whole.reshape(len(small), -1)
    middle = np.partition(found, found.shape[1] // 2 - 1, axis=1)[:, found.shape[1] // 2 - 1]
    return np.asarray((found > middle[:, None])[:, ::-1])
