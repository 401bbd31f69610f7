"""Size as a JPEG file."""

from __future__ import annotations

import dataclasses
import math
from typing import ClassVar

from copyscope.imaging.images import encode

from . import Item, Measure


@dataclasses.dataclass(frozen=True)
class JpegSize(Measure):
    """Length of the image as a JPEG of quality 90: small for a simple picture.

    Encoded by Pillow with the channels in their right order. DCR hands RGB to OpenCV, which takes it for BGR and so
    swaps red and blue before it splits off the luma: its sizes differ from ours by some per cent on colourful images.

    Source: the complexity measures of Somepalli et al. 2023 (arXiv 2305.20086).
    """

    unit: ClassVar[str] = "KiB"
    needs_image: ClassVar[bool] = True

    def measure(self, item: Item) -> float:
        """Size in KiB; see `Measure.measure`."""
        return math.nan if item.image is None else len(encode(item.image, "jpeg", quality=90)) / 1024
