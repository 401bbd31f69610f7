"""Variation over seeds: how alike the images of a prompt are, whatever the noise."""

from __future__ import annotations

import dataclasses

import numpy as np
import torch
from torch import Tensor

from copyscope.diffusion import sampling
from copyscope.diffusion.conditioning import Conditioning
from copyscope.diffusion.denoiser import DenoiseResult, SamplingContext

from . import OnSteps


@dataclasses.dataclass(frozen=True)
class SeedVariation(OnSteps):
    """Minus the root mean square difference of images of the prompt from other seeds: nearest 0, they are all the same.

    Source: after Carlini et al. 2023 (USENIX Security), who make 500 images a prompt, join those whose pixels differ
    little in every tile, and call a prompt memorized that has 10 joined in a clique. Here there are few, compared as
    latents, in no tiles, all pairs by their mean, so that no line is drawn before the calibration does. They are made
    from noise of the image's own generator in few steps of Euler's method, of the prompt alone, without guidance.

    Cost: images * steps model calls.

    Args:
        images: of other seeds, 2 at least.
        steps: of each; 1 is the model's first estimate, as of Webster 2023.
    """

    images: int = 4
    steps: int = 4

    def __post_init__(self) -> None:
        if self.images < 2 or self.steps < 1:
            raise ValueError("images must be at least 2, and steps at least 1")

    def calls(self, steps: int, guided: bool) -> int:
        """One a step of each image; see `Signal.calls`."""
        return self.images * self.steps

    def value(self, step: DenoiseResult, request: SamplingContext) -> Tensor:
        """Minus the difference of the images; see `OnSteps.value`."""
        levels = sampling.noise_levels(self.steps, request.model.sigmas[0], request.sigma, request.model.schedule)
        told = Conditioning.join([request.conditioning] * self.images)
        shape = (self.images, *request.noise.shape[1:])
        drawn = [torch.from_numpy(rng.standard_normal(shape, dtype=np.float32)) for rng in request.rngs]
        noise = torch.stack(drawn, 1).flatten(0, 1).to(request.noise)
        made = sampling.euler(lambda x, sigma, i: request.predict(x, sigma, told), noise * request.sigma, levels)
        each = made.reshape(self.images, len(request.noise), -1)
        # The mean over pairs of |a - b|^2 is twice the variance about the mean of all, n - 1 in its denominator.
        return -(2 * each.var(0).mean(1)).sqrt()
