"""Total variation: how much neighbouring pixels differ."""

from __future__ import annotations

import dataclasses
import math
from typing import ClassVar

import numpy as np

from . import Item, Measure


@dataclasses.dataclass(frozen=True)
class TotalVariation(Measure):
    """1e-4 x the sum of |difference| between horizontal and between vertical neighbours, values 0..255.

    Summed (not averaged) over pixels and over the three channels R, G, B, as DCR does (anisotropic, L1).

    Source: the complexity measures of Somepalli et al. 2023 (arXiv 2305.20086).
    """

    unit: ClassVar[str] = "1e-4 grey levels, summed over R, G, B"
    needs_image: ClassVar[bool] = True

    def measure(self, item: Item) -> float:
        """Total variation; see `Measure.measure`."""
        if item.image is None:
            return math.nan
        pixels = item.image.astype(np.int64)
        across, down = np.abs(np.diff(pixels, axis=1)).sum(), np.abs(np.diff(pixels, axis=0)).sum()
        return 1e-4 * float(across + down)
