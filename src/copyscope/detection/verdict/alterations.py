"""Alter an image as models and people do: light copy, crop, mirror, recolour, overlay, rotate, part.

The kinds are those of the copy detection literature (Pizzi et al. 2022; Douze et al. 2021, "DISC"), at strengths fixed
here so that numbers can be compared.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from copyscope.imaging import images
from copyscope.imaging.images import Image

VERSION = 1
"""Changes whenever a kind draws other pictures, so that nothing cached of the old ones is used."""
LONGEST = 512
"""Longer sides are shrunk to this before anything else: what most models make."""


def alter(image: Image, kind: str, rng: np.random.Generator, background: Image) -> Image:
    """A copy of an image, altered.

    Args:
        image: uint8 [h w 3] of any size; its longer side is shrunk to LONGEST.
        kind: a name in KINDS.
        rng: draws strength, place and direction.
        background: uint8 [h w 3] of any size; what `part` is set into. Other kinds do not use it.

    Raises:
        ValueError: the kind is unknown.
    """
    if kind not in KINDS:
        raise ValueError(f"no alteration {kind!r}; there are: {', '.join(KINDS)}")
    small = image if max(image.shape[:2]) <= LONGEST else images.thumbnail(image, LONGEST)
    return KINDS[kind](small, rng, background)


def _light(image: Image, rng: np.random.Generator, background: Image) -> Image:
    """Light copy, as a model reproduces a picture.

    Half resolution and back, blur of .8 pixels, noise of 6/255, contrast by up to 8 %, shifted by up to 4 pixels, JPEG
    85.
    """
    from PIL import Image as pillow
    from PIL import ImageFilter

    height, width = image.shape[:2]
    half = images.resize(image, (max(1, height // 2), max(1, width // 2)))
    whole = images.resize(half, (height, width))
    blurred = np.asarray(pillow.fromarray(whole).filter(ImageFilter.GaussianBlur(0.8)), np.float64)
    contrast = 1 + rng.uniform(-0.08, 0.08)
    noisy = (blurred - blurred.mean()) * contrast + blurred.mean() + rng.normal(0, 6, blurred.shape)
    down, right = (int(each) for each in rng.integers(-4, 5, 2))
    rows = np.clip(np.arange(height) - down, 0, height - 1)
    columns = np.clip(np.arange(width) - right, 0, width - 1)
    return _jpeg(_to_bytes(noisy)[rows[:, None], columns[None, :]], 85)


def _crop(image: Image, rng: np.random.Generator, background: Image) -> Image:
    """60 to 75 % of each side, anywhere, JPEG 50."""
    share = rng.uniform(0.6, 0.75)
    height, width = image.shape[:2]
    rows, columns = max(1, round(share * height)), max(1, round(share * width))
    top, left = int(rng.integers(height - rows + 1)), int(rng.integers(width - columns + 1))
    return _jpeg(image[top : top + rows, left : left + columns], 50)


def _mirror(image: Image, rng: np.random.Generator, background: Image) -> Image:
    """Left and right exchanged, hue turned by 10 to 30 degrees either way."""
    from PIL import Image as pillow

    hsv = np.array(pillow.fromarray(np.ascontiguousarray(image[:, ::-1])).convert("HSV"))
    turn = round(_either_way(rng, 10, 30) / 360 * 256)
    hsv[:, :, 0] += np.uint8(turn % 256)
    return np.array(pillow.fromarray(hsv, "HSV").convert("RGB"))


def _recolour(image: Image, rng: np.random.Generator, background: Image) -> Image:
    """Grey, or two or three colour channels exchanged."""
    way = int(rng.integers(4))
    if way == 0:
        return np.repeat(images.luma(image)[:, :, None], 3, axis=2)
    orders = ((2, 1, 0), (1, 2, 0), (2, 0, 1))
    return np.ascontiguousarray(image[:, :, orders[way - 1]])


def _overlay(image: Image, rng: np.random.Generator, background: Image) -> Image:
    """A fifth of the picture covered by a rectangle of one colour, anywhere."""
    height, width = image.shape[:2]
    aspect = rng.uniform(0.5, 2)
    rows = min(height, max(1, round(height * np.sqrt(0.2 * aspect))))
    columns = min(width, max(1, round(0.2 * height * width / rows)))
    top, left = int(rng.integers(height - rows + 1)), int(rng.integers(width - columns + 1))
    covered = image.copy()
    covered[top : top + rows, left : left + columns] = rng.integers(0, 256, 3)
    return covered


def _rotate(image: Image, rng: np.random.Generator, background: Image) -> Image:
    """By 10 degrees (the corners that open take the colour of the picture's own corner) or by a quarter turn."""
    from PIL import Image as pillow

    sign = int(rng.choice([-1, 1]))
    if rng.integers(2):
        return np.ascontiguousarray(np.rot90(image, sign))
    corner = tuple(int(value) for value in image[0, 0])
    return np.array(pillow.fromarray(image).rotate(10 * sign, pillow.Resampling.BICUBIC, fillcolor=corner))


def _part(image: Image, rng: np.random.Generator, background: Image) -> Image:
    """Half as wide and half as high, anywhere in the background: a quarter of the area."""
    height, width = image.shape[:2]
    whole = images.resize(background, (height, width))
    small = images.resize(image, (max(1, height // 2), max(1, width // 2)))
    rows, columns = small.shape[:2]
    top, left = int(rng.integers(height - rows + 1)), int(rng.integers(width - columns + 1))
    whole[top : top + rows, left : left + columns] = small
    return whole


def _jpeg(image: Image, quality: int) -> Image:
    return images.decode(images.encode(np.ascontiguousarray(image), "jpeg", quality))


def _to_bytes(values: np.ndarray[tuple[int, ...], np.dtype[np.float64]]) -> Image:
    return np.clip(values, 0, 255).round().astype(np.uint8)


def _either_way(rng: np.random.Generator, low: float, high: float) -> float:
    return float(rng.choice([-1, 1]) * rng.uniform(low, high))


KINDS: dict[str, Callable[[Image, np.random.Generator, Image], Image]] = {
    "light": _light,
    "crop": _crop,
    "mirror": _mirror,
    "recolour": _recolour,
    "overlay": _overlay,
    "rotate": _rotate,
    "part": _part,
}
"""Name -> function(image, rng, background) of each kind of alteration."""
