"""Entropy of the grey values."""

from __future__ import annotations

import dataclasses
import math
from typing import ClassVar

import numpy as np

from copyscope.imaging.images import luma

from . import Item, Measure


@dataclasses.dataclass(frozen=True)
class Entropy(Measure):
    """Shannon entropy -sum p ln p of the 256-level luma histogram: 0 (one grey) to ln 256 = 5.545 (all alike).

    Source: the complexity measures of Somepalli et al. 2023 (arXiv 2305.20086).
    """

    unit: ClassVar[str] = "nats"
    needs_image: ClassVar[bool] = True

    def measure(self, item: Item) -> float:
        """Entropy in nats; see `Measure.measure`."""
        if item.image is None:
            return math.nan
        counts = np.bincount(luma(item.image).ravel(), minlength=256)
        share = counts[counts > 0] / counts.sum()
        return float(max(0.0, -(share * np.log(share)).sum()))
