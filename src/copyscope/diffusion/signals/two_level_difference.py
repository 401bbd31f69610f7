"""Two-level difference: change of the conditional noise prediction between two noise levels."""

from __future__ import annotations

import dataclasses

import torch
from torch import Tensor

from copyscope.diffusion.denoiser import DenoiseResult, SamplingContext
from copyscope.diffusion.mitigations import GUIDANCE

from . import Signal, SignalState, unknown


@dataclasses.dataclass(frozen=True)
class TwoLevelDifference(Signal):
    """Squared norm of the change of the noise prediction given the prompt, between two points of the sampling.

    Source: DSM, anonymous submission to ICML 2026, |epsilon(x_1, t_1) - epsilon(x_0, t_0)|^2, forward passes only;
    epsilon = (x - D) / sigma. Where a prompt means one picture, D stays that, and guidance by w leads past it by (w -
    1) (D - D(none)): the score of Euler's step is that length, squared, times the squared change of 1 / sigma. So it
    needs guidance: without it such a prompt scores 0, less than any other.

    Cost: no model call.

    Args:
        steps: between the two points, the first being where sampling starts; the authors' code names 1.
    """

    steps: int = 1
    needs = (GUIDANCE,)

    def __post_init__(self) -> None:
        if self.steps < 1:
            raise ValueError("steps must be at least 1")

    def needed(self, steps: int) -> int:
        """One more than `steps`; see `Signal.needed`."""
        return self.steps + 1

    def watch(self, request: SamplingContext) -> SignalState:
        """Begin to watch; see `Signal.watch`."""
        return _Turn(self.steps, request)


@dataclasses.dataclass(eq=False)
class _Turn(SignalState):
    last: int
    request: SamplingContext
    start: Tensor | None = None
    found: Tensor | None = None

    def observe(self, step: DenoiseResult) -> None:
        epsilon = (step.x - step.conditional) / step.sigma.view(-1, 1, 1, 1)
        if step.i == 0:
            self.start = epsilon
        if step.i == self.last and self.start is not None:
            self.found = torch.linalg.vector_norm((epsilon - self.start).flatten(1), dim=1) ** 2

    def scores(self) -> Tensor:
        return unknown(self.request) if self.found is None else self.found
