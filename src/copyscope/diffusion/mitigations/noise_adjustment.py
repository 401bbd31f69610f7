"""Adjust the starting noise to weaken the guidance direction, without gradients (Han et al. 2025)."""

from __future__ import annotations

import dataclasses

from torch import Tensor

from copyscope.diffusion.denoiser import SamplingContext

from . import NULL, OnNoise
from ._start import guidance_direction, unit


@dataclasses.dataclass(frozen=True)
class NoiseAdjustment(OnNoise):
    """Move the starting noise: noise - gamma * (D(noise + rho * D / |D|) - D(noise)), `rounds` times, image by image.

    Source: Han et al. 2025 (NeurIPS), batch-wise adjustment; their |D| is that of the batch, here each image has its
    own. D(noise): difference of the noise predictions given the prompt and none, where sampling starts, at x = sigma *
    noise. Theirs is of a latent of about unit deviation at the last time of DDPM, x / sqrt(1 + sigma^2), which is the
    noise but for a factor of 0.998 on Stable Diffusion: their numbers hold for the noise as it is. The authors have
    gamma 0.7, rho 50 and 2 rounds for the 16384 numbers of SD at 512 px, whose noise is 128 long. They guide from their
    fourth step of 50 on: add `delayed_guidance(start=0.08)`. What gamma does goes with how D changes with the noise: on
    a small_unet whose copies the prompt alone decides, 0.7 does nothing, and 1000 was needed.

    Cost: four model calls a round, no gradients.

    Args:
        gamma: share of the difference that is taken away; 0 is none.
        rho: how far ahead it looks, as a length over all numbers of the noise; take 0.4 of the square root of the
            numbers (25 for a small_unet of 64 px).
        rounds: 0 or more.
    """

    gamma: float = 0.7
    rho: float = 50.0
    rounds: int = 2
    needs = (NULL,)

    def __post_init__(self) -> None:
        if not 0 <= self.gamma < float("inf") or not 0 <= self.rho < float("inf") or self.rounds < 0:
            raise ValueError("gamma, rho and rounds must be 0 or more")

    def calls(self, steps: int) -> int:
        """Four a round; see `Mitigation.calls`."""
        return 4 * self.rounds if self.gamma else 0

    def draw(self, noise: Tensor, request: SamplingContext) -> Tensor:
        """Adjust the noise of each image; see `OnNoise.draw`."""
        for _ in range(self.rounds if self.gamma else 0):
            here = guidance_direction(noise, request)
            noise = noise - self.gamma * (guidance_direction(noise + self.rho * unit(here), request) - here)
        return noise
