"""Caption uniqueness: the share of an image among all images with its caption."""

from __future__ import annotations

import dataclasses
import math
from typing import ClassVar

from . import Item, Measure


@dataclasses.dataclass(frozen=True)
class CaptionUniqueness(Measure):
    """1 / (1 + number of other images that share or nearly share a caption): 1 = nobody else's, near 0 = everybody's.

    The share of images under that caption which this image makes up. NaN for an image without captions. What counts as
    sharing: `copyscope.detection.dedup.caption_overlap.caption_sharing`.

    Source: our own, after the caption conditions of Somepalli et al. 2023 (arXiv 2305.20086).
    """

    unit: ClassVar[str] = "1 / images with that caption"
    needs_image: ClassVar[bool] = False

    def measure(self, item: Item) -> float:
        """Uniqueness of the captions; see `Measure.measure`."""
        return 1 / (1 + item.shared + item.near_shared) if item.captions else math.nan
