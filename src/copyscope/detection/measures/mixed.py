"""DCR's product of entropy and JPEG size."""

from __future__ import annotations

import dataclasses
import math
from typing import ClassVar

from . import Item, Measure
from .entropy import Entropy
from .jpeg_size import JpegSize


@dataclasses.dataclass(frozen=True)
class Mixed(Measure):
    """Entropy x sqrt(JPEG KiB): DCR's one number for complexity. See `entropy` and `jpeg_size`.

    Source: the code of Somepalli et al. 2023 (arXiv 2305.20086).
    """

    unit: ClassVar[str] = "nats x sqrt(KiB)"
    needs_image: ClassVar[bool] = True

    def measure(self, item: Item) -> float:
        """Entropy times root of the JPEG size; see `Measure.measure`."""
        return Entropy().measure(item) * math.sqrt(JpegSize().measure(item))
