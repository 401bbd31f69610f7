"""Convert Pillow images of any mode to RGB, over several backgrounds if transparent.

Strip by strip: whole copies in other modes would take several times the memory of the picture.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from copyscope.errors import ImageError

from .deep_grey import deep_grey

if TYPE_CHECKING:
    from PIL import Image as Pillow

Image = NDArray[np.uint8]

STRIP_PIXELS = 1 << 22


def layers(picture: Pillow.Image) -> tuple[Image, Image | None]:
    """RGB pixels of a loaded Pillow picture of any mode, not yet turned upright, over both backgrounds if needed.

    White is the background, unless nothing would be seen: a white drawing is composited over black.
    """
    if picture.mode == "F" or picture.mode.startswith("I") or not picture.has_transparency_data:
        return _rgb(picture), None
    if all(strip.convert("RGBA").getchannel("A").getextrema() == (255, 255) for _, strip in _strips(picture)):
        return _joined(picture, lambda strip: strip.convert("RGBA").convert("RGB")), None
    white, black = (_joined(picture, functools.partial(_over, colour)) for colour in ("white", "black"))
    # A level or two is rounding.
    return (black, white) if white.min() >= 253 and black.max() > 2 else (white, black)


def without_alpha(picture: Pillow.Image) -> tuple[Image, None]:
    """Colours of a loaded transparent picture without its alpha, also where nothing of them is seen."""
    return _joined(picture, lambda strip: strip.convert("RGBA").convert("RGB")), None


def _over(colour: str, picture: Pillow.Image) -> Pillow.Image:
    """A transparent picture over a background."""
    from PIL.Image import new

    picture = picture.convert("RGBA")
    ground = new("RGB", picture.size, colour)
    ground.paste(picture, mask=picture.getchannel("A"))
    return ground


def _joined(picture: Pillow.Image, convert: Callable[[Pillow.Image], Pillow.Image]) -> Image:
    """What `convert` makes of a picture of any mode, as uint8 [h w 3], strip by strip: whole copies add up."""
    image = np.empty((picture.height, picture.width, 3), np.uint8)
    for top, strip in _strips(picture):
        image[top : top + strip.height] = np.asarray(convert(strip))
    return image


def _strips(picture: Pillow.Image) -> Iterator[tuple[int, Pillow.Image]]:
    """(top, strip) of a loaded picture, of some million pixels each; a small picture is one strip."""
    rows = max(1, STRIP_PIXELS // picture.width)
    if rows >= picture.height:
        yield 0, picture
        return
    for top in range(0, picture.height, rows):
        yield top, picture.crop((0, top, picture.width, min(top + rows, picture.height)))


def _rgb(picture: Pillow.Image) -> Image:
    """Pixels uint8 [h w 3] of a loaded opaque picture of any mode."""
    mode = picture.mode
    if mode == "RGB":
        return _joined(picture, lambda strip: strip)
    if mode == "F" or mode.startswith("I"):
        return deep_grey(picture)
    try:
        return _joined(picture, lambda strip: strip.convert("RGB"))
    except ValueError:
        raise ImageError(f"the colour space {mode} is not supported") from None
