"""Length of the caption."""

from __future__ import annotations

import dataclasses
from typing import ClassVar

from . import Item, Measure


@dataclasses.dataclass(frozen=True)
class CaptionLength(Measure):
    """Words (runs without white space) in the caption; the mean over an image's captions, 0 if it has none."""

    unit: ClassVar[str] = "words"
    needs_image: ClassVar[bool] = False

    def measure(self, item: Item) -> float:
        return sum(len(caption.split()) for caption in item.captions) / max(1, len(item.captions))
