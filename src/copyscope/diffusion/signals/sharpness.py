"""Sharpness: Hessian-score difference of the log-density with and without the prompt."""

from __future__ import annotations

import dataclasses

import torch
from torch import Tensor

from copyscope.diffusion.denoiser import DenoiseResult, SamplingContext
from copyscope.diffusion.mitigations import NULL

from . import OnSteps, cond_minus_uncond

AHEAD = 0.1
"""How far the difference quotient looks, in noise levels: little beside noise, and far above what rounding does."""


@dataclasses.dataclass(frozen=True)
class Sharpness(OnSteps):
    """Hessian-score difference: how sharply the log-density bends given the prompt, against given none.

    Source: Jeon et al. 2025 (ICML), |H(prompt) s - H(none) s| of one step, s being the difference of the two scores. A
    score is -epsilon / sigma and H its Jacobian, so that with d = D(prompt) - D(none) and J its Jacobian it is |J d| /
    sigma^4; times (1 + sigma^2)^1.5 it is the authors' number, whose x is smaller by sqrt(1 + sigma^2). They have J d
    by forward differentiation, which fused attention and normalisation of channels-last images do not know; here it is
    a difference quotient along d, which is as good to 1 % in float32, and rough in half precision.

    Cost: two model calls a step, and one more where there is no guidance.

    Args:
        steps: how many, from the first, the mean of which is taken; the authors have 1.
    """

    steps: int = 1
    needs = (NULL,)

    def __post_init__(self) -> None:
        if self.steps < 1:
            raise ValueError("steps must be at least 1")

    def needed(self, steps: int) -> int:
        """As `steps`; see `Signal.needed`."""
        return min(self.steps, steps)

    def calls(self, steps: int, guided: bool) -> int:
        """Two or three a step; see `Signal.calls`."""
        return self.needed(steps) * (2 if guided else 3)

    def value(self, step: DenoiseResult, request: SamplingContext) -> Tensor:
        """Hessian-score difference at a step; see `OnSteps.value`."""
        pull, sigma = cond_minus_uncond(step, request), step.sigma
        size = torch.linalg.vector_norm(pull.flatten(1), dim=1)
        reach = AHEAD * sigma / size.clamp(min=1e-12)
        there = request.apart(step.x + reach.view(-1, 1, 1, 1) * pull, sigma)
        bent = torch.linalg.vector_norm((there - pull).flatten(1), dim=1) / reach
        found: Tensor = bent * (1 + sigma**2) ** 1.5 / sigma**4
        return found
