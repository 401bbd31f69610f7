"""Convert greyscale of more than 8 bits to uint8 RGB."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from PIL import Image as Pillow


def deep_grey(picture: Pillow.Image) -> NDArray[np.uint8]:
    """Rescale grey of more than 8 bits to uint8 [h w 3]; Pillow's own conversion would clip it to white.

    16-bit: v / 257, rounded, so that 65535 becomes 255. 32-bit integers and floats do not say what white is: the
    smallest of the ranges 0..1 (floats only), 0..255 and 0..65535 that holds every value is taken, and else
    minimum..maximum is stretched. Not-a-number counts as 0.
    """
    tags = getattr(picture, "tag_v2", {})
    if picture.mode.startswith("I;16") or (picture.mode == "I" and picture.format in ("PNG", "PPM")):
        white = 4095 if tags.get(258) == (12,) else 65535  # BitsPerSample: Pillow keeps 12 bits as they are
        levels = ((np.minimum(np.arange(65536), white) * 255 + white // 2) // white).astype(np.uint8)
        transparent = picture.info.get("transparency")
        if isinstance(transparent, int) and 0 <= transparent <= 65535:  # PNG: the one value that is see-through
            levels[transparent] = 255

        def scaled(block: NDArray[Any]) -> NDArray[Any]:
            found: NDArray[np.uint8] = levels[np.clip(block, 0, 65535)]
            return found

    else:
        low, high = _range(picture)
        ranges = (1.0, 255.0, 65535.0) if picture.mode == "F" else (255.0, 65535.0)
        fits = [limit for limit in ranges if low >= 0 and high <= limit]
        low, high = (0.0, fits[0]) if fits else (low, high)
        scale = 255 / max(high - low, np.finfo(np.float64).tiny)

        def scaled(block: NDArray[Any]) -> NDArray[Any]:
            found: NDArray[np.float64] = np.rint((_finite(block) - low) * scale)
            return found

    image = np.empty((picture.height, picture.width, 3), dtype=np.uint8)
    for top, block in _blocks(picture):  # arithmetic on the whole of a large image would take gigabytes
        image[top : top + len(block)] = scaled(block)[..., None]
    if picture.format == "TIFF" and tags.get(262) == 0:  # PhotometricInterpretation: 0 is white
        np.subtract(255, image, out=image)
    return image


def _range(picture: Pillow.Image) -> tuple[float, float]:
    ends = [(block.min(), block.max()) for block in (_finite(values) for _, values in _blocks(picture))]
    return float(min(low for low, _ in ends)), float(max(high for _, high in ends))


def _finite(block: NDArray[Any]) -> NDArray[np.float64]:
    return np.nan_to_num(block.astype(np.float64), nan=0.0, posinf=0.0, neginf=0.0)


def _blocks(picture: Pillow.Image) -> Iterator[tuple[int, NDArray[Any]]]:
    """(top, values) of rows of about a million values each."""
    step = max(1, 1_000_000 // picture.width)
    for top in range(0, picture.height, step):
        yield top, np.asarray(picture.crop((0, top, picture.width, min(top + step, picture.height))))
