"""Train at some noise levels only (after Shah et al. 2025)."""

from __future__ import annotations

import dataclasses

from torch import Tensor

from . import Batch, OnLoss


@dataclasses.dataclass(frozen=True)
class NoiseRestriction(OnLoss):
    """Count a sample only if its noise level sigma is at least `lowest` and at most `highest`.

    Source: a simple form of what follows from "Does Generation Require Memorization?" (Shah et al. 2025, arXiv
    2502.21278), that memorization is only necessary at low noise. They train on noised images at high noise; this does
    not train there at all, so that what the image is, which is decided there, is left to the model that is fine-tuned.
    One trained from nothing never learns what is left out. The loss is the mean over the samples that count (of a
    process's part of the batch), and 0 where there is none; the step is taken all the same.

    Cost: no model call; the images left out were computed in vain.

    Args:
        lowest: sigma, in the latents' units, whose own deviation is near 1; 0 = no limit.
        highest: sigma, likewise; 0 = no limit; try 1 to 5.
    """

    lowest: float = 0.0
    highest: float = 0.0

    def __post_init__(self) -> None:
        if not 0 <= self.lowest < float("inf") or not 0 <= self.highest < float("inf"):
            raise ValueError("lowest and highest must be numbers of 0 or more")
        if 0 < self.highest < self.lowest:
            raise ValueError("highest must be 0 or at least lowest")

    def weigh(self, batch: Batch, memory: Tensor) -> Tensor:
        """Leave out losses outside the limits; see `OnLoss.weigh`."""
        counts = (batch.sigma >= self.lowest) & (batch.sigma <= (self.highest or float("inf")))
        return counts.to(batch.loss) * (len(counts) / counts.sum().clamp(min=1))
