"""Anti-gradient control: leave out losses far below the mean of their noise level (IET-AGC, 2024)."""

from __future__ import annotations

import dataclasses

import torch
from torch import Tensor

from . import Batch, OnLoss


@dataclasses.dataclass(frozen=True)
class AntiGradient(OnLoss):
    """Count a sample only if its loss is at least `below` of the exponential mean of losses at its noise level.

    Source: anti-gradient control of IET-AGC (arXiv 2407.15328), which has a mean for each timestep. Noise levels are
    continuous here, so there is one for each of `bins` equal parts of sigma / (1 + sigma), which runs from 0 to 1
    whatever the levels of the model; the logarithm of sigma would need to know these. Samples are judged by the means
    before their step. Then the mean of each bin that has samples becomes decay * mean + (1 - decay) * the mean of all
    their losses, of those left out too, since it could never fall otherwise. A bin without a sample so far leaves out
    none. The loss is the mean over the samples that count (of a process's part of the batch), and 0 where there is
    none; the step is taken all the same.

    Cost: no model call.

    Args:
        below: 1 over the authors' `mem_ratio`: 0.8 is theirs for Stable Diffusion, 0.5 for CIFAR-10; 0 = never leaves
            out any.
        decay: of the means, in [0, 1); 0.8 is the authors'.
        bins: number of bins of noise levels, 1 or more.
    """

    below: float = 0.8
    decay: float = 0.8
    bins: int = 32

    def __post_init__(self) -> None:
        if not 0 <= self.below < float("inf"):
            raise ValueError("below must be a number of 0 or more")
        if not 0 <= self.decay < 1:
            raise ValueError("decay must be at least 0 and below 1")
        if self.bins < 1:
            raise ValueError("bins must be 1 or more")

    def state(self) -> Tensor:
        """Memory: of each bin the decayed sum of its means, then of their weights.

        Their ratio is the mean from the first sample on, and stays one when both are averaged over processes of which
        some had no sample.
        """
        return torch.zeros(2 * self.bins, dtype=torch.float64)

    def weigh(self, batch: Batch, memory: Tensor) -> Tensor:
        """Leave out losses far below the mean of their bin; see `OnLoss.weigh`."""
        if self.below == 0:
            return torch.ones_like(batch.loss)
        loss, sigma = batch.loss.cpu().double(), batch.sigma.cpu().double()
        place = (self.bins * sigma / (1 + sigma)).long().clamp(max=self.bins - 1)
        sums, weights = memory.view(2, -1)
        usual = (sums / weights)[place]
        # Without history it is 0 / 0, which no loss is below.
        counts: Tensor = (~(loss < self.below * usual)).to(batch.loss)
        number = torch.bincount(place, minlength=self.bins)
        mean = torch.bincount(place, loss, self.bins) / number
        seen = number > 0
        for kept, new in ((sums, mean), (weights, torch.ones_like(weights))):
            kept.copy_(torch.where(seen, self.decay * kept + (1 - self.decay) * new, kept))
        return counts * (len(counts) / counts.sum().clamp(min=1))
