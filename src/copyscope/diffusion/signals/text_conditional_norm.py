"""Text-conditional norm: how far the prompt moves the noise prediction."""

from __future__ import annotations

import dataclasses

from torch import Tensor

from copyscope.diffusion.denoiser import DenoiseResult, SamplingContext, text_conditional_norm
from copyscope.diffusion.mitigations import NULL

from . import OnSteps, cond_minus_uncond


@dataclasses.dataclass(frozen=True)
class TextConditionalNorm(OnSteps):
    """Norm of the noise prediction given the prompt minus that given none, over all numbers of an image.

    Source: Wen et al. 2024 (ICLR), section 3. |epsilon(prompt) - epsilon(none)| = |D(prompt) - D(none)| / sigma, the
    mean over the first steps. The authors take it besides over all images of a prompt; here each has its own.

    Cost: none with guidance; else a model call a step.

    Args:
        steps: how many, from the first; 0 takes all. The authors have 1, 10 and 50 of 50 steps: 1 tells nearly as much.
    """

    steps: int = 1
    needs = (NULL,)

    def __post_init__(self) -> None:
        if self.steps < 0:
            raise ValueError("steps must be 0 or more")

    def needed(self, steps: int) -> int:
        """As `steps`; see `Signal.needed`."""
        return min(self.steps or steps, steps)

    def calls(self, steps: int, guided: bool) -> int:
        """None, or one a step; see `Signal.calls`."""
        return 0 if guided else self.needed(steps)

    def value(self, step: DenoiseResult, request: SamplingContext) -> Tensor:
        """The norm at a step; see `OnSteps.value`."""
        return text_conditional_norm(cond_minus_uncond(step, request), step.sigma)
