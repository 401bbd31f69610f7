"""How the prompt's pull lies to the prediction without it, on pure noise."""

from __future__ import annotations

import dataclasses

import torch
from torch import Tensor

from copyscope.diffusion.denoiser import DenoiseResult, SamplingContext, text_conditional_norm
from copyscope.diffusion.mitigations import NULL

from . import OnSteps, cond_minus_uncond


@dataclasses.dataclass(frozen=True)
class Isotropy(OnSteps):
    """The text-conditional norm where sampling starts, plus how alike the prompt's pull and the prediction without a
    prompt are when pure noise is shown as if it were nearly an image.

    Source: Asthana & Belagiannis 2026 (ICLR), first * |e(prompt) - e(none)| at the first noise level + second * the
    mean over places of the cosine over channels of e(none) and e(prompt) - e(none) at a low one, where the network is
    given the same noise; nothing is denoised. e = (x - D) / sigma, and noise of deviation 1 in a network's own input is
    x = sqrt(1 + sigma^2) * noise.

    first, second: weights, found by hand for each model: 1 and 2 for SD 1.4, 1 and 0.1 for SD 2, 2 and 1 for Realistic
    Vision. level: the low noise level; 0.2 is that of the authors, the third last of 50 DDIM steps.

    Cost: two model calls, and one where there is no guidance.
    """

    first: float = 1.0
    second: float = 2.0
    level: float = 0.2
    needs = (NULL,)

    def __post_init__(self) -> None:
        if not (0 <= self.first < float("inf") and 0 <= self.second < float("inf") and 0 < self.level < float("inf")):
            raise ValueError("first and second must be 0 or more, and level above 0")

    def calls(self, steps: int, guided: bool) -> int:
        return 2 if guided else 3

    def value(self, step: DenoiseResult, request: SamplingContext) -> Tensor:
        assert request.null is not None
        sigma = torch.full_like(step.sigma, self.level)
        x = request.noise * (1 + self.level**2) ** 0.5
        given, without = (request.predict(x, sigma, told) for told in (request.conditioning, request.null))
        alike = torch.nn.functional.cosine_similarity(x - without, without - given, dim=1).mean((1, 2))
        return self.first * text_conditional_norm(cond_minus_uncond(step, request), step.sigma) + self.second * alike
