"""Optimise the starting noise for a small and flat guidance direction (SAIL of Jeon et al. 2025)."""

from __future__ import annotations

import dataclasses

import torch
from torch import Tensor

from copyscope.diffusion.denoiser import SamplingContext

from . import NULL, OnNoise
from ._start import blocks, descend, guidance_direction, length, unit


@dataclasses.dataclass(frozen=True)
class SharpnessAwareNoise(OnNoise):
    """Move the starting noise by Adam, with the loss |D(noise + D / |D|)| + weight * |noise|.

    Source: SAIL of Jeon et al. 2025 (ICML). D(noise): difference of the noise predictions given the prompt and none,
    where sampling starts, at x = sigma * noise; D / |D|, of length 1, counts as a constant in the gradient, as in
    sharpness-aware minimisation. |.|: Euclidean norm over all numbers of an image. An image stops once its loss is at
    most the target. The authors draw eight noises, and others with a higher target until one is accepted; here each
    image keeps its own noise and the steps are all there is. The authors have 10 steps, a rate of 0.05, a weight of
    0.05 (0.01 on SD 2) and a target of 8.2 on SD 1.4, whose noise is 128 long, so that 6.4 of the 8.2 are its length's.

    Cost: four model calls a step, two of them with their backward pass (twice as long again).

    Args:
        steps: of Adam, at most; 0 is none.
        rate: length of a step in each number of the noise.
        weight: of the noise's own length, which keeps it likely.
        target: loss; 0 takes all steps. The length of other noise is the square root of its numbers: take weight * that
            + a norm of D that ordinary prompts have.
    """

    steps: int = 10
    rate: float = 0.05
    weight: float = 0.05
    target: float = 8.2
    needs = (NULL,)

    def __post_init__(self) -> None:
        if self.steps < 0 or not (0 <= self.rate < float("inf") and 0 <= self.weight < float("inf")):
            raise ValueError("steps, rate and weight must be 0 or more")
        if not self.target >= 0:
            raise ValueError("target must be 0 or more")

    def calls(self, steps: int) -> int:
        """Four a step of Adam; see `Mitigation.calls`."""
        return 4 * self.steps

    def draw(self, noise: Tensor, request: SamplingContext) -> Tensor:
        """Move the noise of each image; see `OnNoise.draw`."""
        if self.steps == 0:
            return noise
        asked = dataclasses.replace(request, noise=noise)
        return torch.cat([self._moved(block) for block in blocks(asked)])

    def _moved(self, request: SamplingContext) -> Tensor:
        def loss(noise: Tensor) -> Tensor:
            with torch.no_grad():
                ahead = unit(guidance_direction(noise, request))
            return length(guidance_direction(noise + ahead, request)) + self.weight * length(noise)

        return descend(request.noise, loss, self.steps, self.rate, self.target)
