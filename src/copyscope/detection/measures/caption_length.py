"""Length of the caption."""

from __future__ import annotations

import dataclasses
from typing import ClassVar

from . import Item, Measure


@dataclasses.dataclass(frozen=True)
class CaptionLength(Measure):
    """Words (runs without white space) in the caption; the mean over an image's captions, 0 if it has none.

    Source: our own; caption specificity is a cause of copying in Somepalli et al. 2023 (arXiv 2305.20086).
    """

    unit: ClassVar[str] = "words"
    needs_image: ClassVar[bool] = False

    def measure(self, item: Item) -> float:
        """Mean number of words; see `Measure.measure`."""
        return sum(len(caption.split()) for caption in item.captions) / max(1, len(item.captions))
