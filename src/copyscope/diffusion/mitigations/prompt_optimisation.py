"""Optimise the prompt's text states to lower the text-conditional norm (Wen et al. 2024)."""

from __future__ import annotations

import dataclasses

import torch
from torch import Tensor

from copyscope.diffusion.conditioning import Conditioning
from copyscope.diffusion.denoiser import SamplingContext, text_conditional_norm

from . import NULL, SAMPLING, Generators, OnConditioning
from ._start import blocks, descend


@dataclasses.dataclass(frozen=True)
class PromptOptimisation(OnConditioning):
    """Move the states of the prompt's tokens by Adam to lower the text-conditional norm where sampling starts.

    Source: Wen et al. 2024, inference-time mitigation. The norm is that of D(x, prompt) - D(x, nothing) over sigma, at
    the first noise level and an image's own noise. An image stops once its norm is at most the target. The first token
    stays, unless it is the only one, as do tokens that the mask leaves out and the pooled vector of SDXL and SD3. The
    authors have 10 steps, a rate of 0.05, and a target of 3 with the norm taken over four images at once, which is 1.5
    for one. On a small_unet of 64 px trained to copy, captions had a median of 0.44 and other prompts of 0.39; a target
    of 0.2 to 0.3 helped. The authors' AdamW also decays the states, by 0.0005 of themselves a step; here nothing but
    the norm moves them.

    Cost: one model call, and one a step of Adam with its backward pass (twice as long again).

    Args:
        steps: of Adam, at most; 0 is none.
        rate: length of a step in each number of a state, in the units of the states (whose own deviation is 1 or near
            it).
        target: norm; 0 takes all steps. Norms depend on the model and the number of latents: take one that ordinary
            prompts have (their 90% quantile, say), so that these are left as they are.
    """

    steps: int = 10
    rate: float = 0.05
    target: float = 3.0
    stages = (SAMPLING,)
    needs = (NULL,)

    def __post_init__(self) -> None:
        if self.steps < 0 or not 0 <= self.rate < float("inf") or not self.target >= 0:
            raise ValueError("steps, rate and target must be 0 or more")

    def calls(self, steps: int) -> int:
        """One, and one a step of Adam; see `Mitigation.calls`."""
        return self.steps + 1 if self.steps else 0

    def perturb(
        self, conditioning: Conditioning, rngs: Generators, request: SamplingContext | None = None
    ) -> Conditioning:
        """Move the states of the prompt; see `OnConditioning.perturb`."""
        if self.steps == 0 or request is None:
            return conditioning
        asked = dataclasses.replace(request, conditioning=conditioning)
        return dataclasses.replace(conditioning, text=torch.cat([self._moved(block) for block in blocks(asked)]))

    def _moved(self, request: SamplingContext) -> Tensor:
        """The states of the prompts' tokens [n t d]."""
        conditioning = request.conditioning
        assert request.null is not None
        sigma = request.noise.new_full((len(conditioning),), request.sigma)
        x = request.noise * request.sigma
        without = request.predict(x, sigma, request.null)
        free = conditioning.mask.clone()
        free[:, 0] &= free.shape[1] == 1

        def norm(text: Tensor) -> Tensor:
            moved = torch.where(free[..., None], text, conditioning.text)
            told = dataclasses.replace(conditioning, text=moved)
            return text_conditional_norm(request.predict(x, sigma, told) - without, sigma)

        return descend(conditioning.text, norm, self.steps, self.rate, self.target)
