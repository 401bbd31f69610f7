"""Strong noise on some of the text's tokens (FPAN, 2025)."""

from __future__ import annotations

import dataclasses

import numpy as np
import torch

from copyscope.diffusion.conditioning import Conditioning
from copyscope.diffusion.denoiser import SamplingContext

from . import Generators, OnConditioning
from ._normal import normal


@dataclasses.dataclass(frozen=True)
class TokenNoise(OnConditioning):
    """Add state noise, scale * N(0, 1), to each token that is hit, each with `probability` and by itself.

    Source: FPAN (arXiv 2505.21848). Tokens that the mask leaves out are never hit. Anew at every training step, once an
    image in sampling.

    Cost: no model call.

    Args:
        scale: deviation of the noise, in the units of the text's states (whose own is 1 or near it); 0 is none, 1.7 the
            authors', useful from 0.5 to 2.
        probability: 0 is none, 0.6 the authors', useful from 0.2 to 0.8.
    """

    scale: float = 1.7
    probability: float = 0.6

    def __post_init__(self) -> None:
        if not 0 <= self.scale < float("inf"):
            raise ValueError("scale must be a number of 0 or more")
        if not 0 <= self.probability <= 1:
            raise ValueError("probability must be from 0 to 1")

    def perturb(
        self, conditioning: Conditioning, rngs: Generators, request: SamplingContext | None = None
    ) -> Conditioning:
        """Add noise to the tokens that are hit; see `OnConditioning.perturb`."""
        if self.scale == 0 or self.probability == 0:
            return conditioning
        text = conditioning.text
        counts = conditioning.mask.cpu().numpy()
        hit = np.stack([rng.random(text.shape[1]) < self.probability for rng in rngs]) & counts
        # For tokens that are hit alone, which is most of the cost; row by row, as a row is its generator's.
        drawn = [normal(rng, int(row.sum()), text.shape[2]) for rng, row in zip(rngs, hit, strict=True)]
        noised = text.clone()
        noised[torch.from_numpy(hit).to(text.device)] += self.scale * torch.cat(drawn).to(text)
        return dataclasses.replace(conditioning, text=noised)
