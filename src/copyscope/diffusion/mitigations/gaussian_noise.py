"""Gaussian noise on text states (GN of Somepalli et al. 2023)."""

from __future__ import annotations

import dataclasses

import torch

from copyscope.diffusion.conditioning import Conditioning
from copyscope.diffusion.denoiser import SamplingContext

from . import Generators, OnConditioning
from ._normal import normal


@dataclasses.dataclass(frozen=True)
class GaussianNoise(OnConditioning):
    """Add Gaussian noise to the text's states, anew at every training step and once an image in sampling.

    states + scale * N(0, 1), each element.

    Source: GN of Somepalli et al. 2023, section 6.

    Cost: no model call.

    Args:
        scale: deviation of the noise, in the units of the text's states (whose own is 1 or near it); 0 is none, 0.1 the
            authors' example, useful to 0.5.
        both: in sampling, also noise on the conditioning without a prompt, as the authors' code does; the paper's text
            has the prompt's alone.
    """

    scale: float = 0.1
    both: bool = False

    def __post_init__(self) -> None:
        if not 0 <= self.scale < float("inf"):
            raise ValueError("scale must be a number of 0 or more")

    @property
    def on_null(self) -> bool:
        """As `both`."""
        return self.both

    def perturb(
        self, conditioning: Conditioning, rngs: Generators, request: SamplingContext | None = None
    ) -> Conditioning:
        """Add the noise to the states of tokens that count; see `OnConditioning.perturb`."""
        if self.scale == 0:
            return conditioning
        text = conditioning.text.clone()
        # Of the tokens that count alone, which is most of the cost; row by row, as a row is its generator's.
        counts = conditioning.mask.sum(1).tolist()
        drawn = [normal(rng, n, text.shape[2]) for rng, n in zip(rngs, counts, strict=True)]
        text[conditioning.mask] += self.scale * torch.cat(drawn).to(text)
        return dataclasses.replace(conditioning, text=text)
