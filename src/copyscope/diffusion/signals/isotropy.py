"""Isotropy: alignment of the guidance direction with the unconditional prediction."""

from __future__ import annotations

import dataclasses

import torch
from torch import Tensor

from copyscope.diffusion.denoiser import DenoiseResult, SamplingContext, text_conditional_norm
from copyscope.diffusion.mitigations import NULL

from . import OnSteps, cond_minus_uncond


@dataclasses.dataclass(frozen=True)
class Isotropy(OnSteps):
    """Text-conditional norm, plus the cosine of the guidance direction and the unprompted prediction at low noise.

    Source: Asthana & Belagiannis 2026 (ICLR), first * |e(prompt) - e(none)| at the first noise level + second * the
    mean over places of the cosine over channels of e(none) and e(prompt) - e(none) at a low one, where the network is
    given the same noise as if it were nearly an image; nothing is denoised. e = (x - D) / sigma, and noise of deviation
    1 in a network's own input is x = sqrt(1 + sigma^2) * noise. Weights were found by hand for each model: 1 and 2 for
    SD 1.4, 1 and 0.1 for SD 2, 2 and 1 for Realistic Vision.

    Cost: two model calls, and one where there is no guidance.

    Args:
        first: weight of the norm.
        second: weight of the cosine.
        level: the low noise level; 0.2 is that of the authors, the third last of 50 DDIM steps.
    """

    first: float = 1.0
    second: float = 2.0
    level: float = 0.2
    needs = (NULL,)

    def __post_init__(self) -> None:
        if not (0 <= self.first < float("inf") and 0 <= self.second < float("inf") and 0 < self.level < float("inf")):
            raise ValueError("first and second must be 0 or more, and level above 0")

    def calls(self, steps: int, guided: bool) -> int:
        """Two or three; see `Signal.calls`."""
        return 2 if guided else 3

    def value(self, step: DenoiseResult, request: SamplingContext) -> Tensor:
        """Norm and cosine where sampling starts; see `OnSteps.value`."""
        assert request.null is not None
        sigma = torch.full_like(step.sigma, self.level)
        x = request.noise * (1 + self.level**2) ** 0.5
        given, without = (request.predict(x, sigma, told) for told in (request.conditioning, request.null))
        alike = torch.nn.functional.cosine_similarity(x - without, without - given, dim=1).mean((1, 2))
        return self.first * text_conditional_norm(cond_minus_uncond(step, request), step.sigma) + self.second * alike
