"""Loss gate: leave memorized samples out of the loss, by their text-conditional norm (Wen et al. 2024)."""

from __future__ import annotations

import dataclasses

import torch
from torch import Tensor

from copyscope.diffusion.denoiser import text_conditional_norm

from . import NULL, Batch, OnLoss


@dataclasses.dataclass(frozen=True)
class LossGate(OnLoss):
    """Count a sample only if the norm of the difference of its predictions with and without text is below `above`.

    Source: Wen et al. 2024, section 5. The norm is of noise predictions. The loss is the mean over the samples that
    count (of a process's part of the batch), and 0 where there is none; the step is taken all the same.

    Cost: one model call an image and step, without gradients.

    Args:
        above: 2 is the authors' for the 4 x 64 x 64 latents of Stable Diffusion; the norm is over all elements of a
            latent, so that other models need another one: try a high percentile of the norms before copying sets in. 0
            = never leaves out any.
    """

    above: float = 2.0
    needs = (NULL,)
    training_calls = 1

    def __post_init__(self) -> None:
        if not 0 <= self.above < float("inf"):
            raise ValueError("above must be a number of 0 or more")

    def weigh(self, batch: Batch, memory: Tensor) -> Tensor:
        """Leave out losses of samples with a high text-conditional norm; see `OnLoss.weigh`."""
        if self.above == 0:
            return torch.ones_like(batch.loss)
        apart = batch.denoised - batch.predict(batch.x, batch.sigma, batch.null)
        counts = (text_conditional_norm(apart, batch.sigma) < self.above).to(batch.loss)
        return counts * (len(counts) / counts.sum().clamp(min=1))
