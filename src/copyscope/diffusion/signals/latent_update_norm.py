"""Latent update norm: how far the latents move in a step, against ordinary prompts."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import torch
from torch import Tensor

from copyscope.diffusion.denoiser import DenoiseResult, SamplingContext

from . import Signal, SignalState, unknown


@dataclasses.dataclass(frozen=True)
class LatentUpdateNorm(Signal):
    """Norm of the change of the latents over a step, by how many deviations it is off that of ordinary prompts.

    Source: "Broken Memories" (arXiv 2605.22050). In the coordinates of a variance-preserving pipeline, y = x / sqrt(1 +
    sigma^2), the norms |y_(i+1) - y_i| of all steps but the last, whose end is not seen; the score is the mean over
    steps of | |y_(i+1) - y_i| - mean_i | / deviation_i. The authors' code is not public; this is from their abstract.

    Cost: no model call.

    Args:
        mean: of the norms of ordinary prompts, one number a step but the last; `guard calibrate` finds them. () = the
            score is the mean norm itself.
        deviation: of these norms, likewise.
    """

    mean: tuple[float, ...] = ()
    deviation: tuple[float, ...] = ()

    def __post_init__(self) -> None:
        if len(self.mean) != len(self.deviation) or not all(each > 0 for each in self.deviation):
            raise ValueError("mean and deviation must have a number a step each, and deviations above 0")

    def needed(self, steps: int) -> int:
        """All steps; see `Signal.needed`."""
        return max(steps, 2)

    @property
    def learns(self) -> bool:
        """True without `mean`."""
        return not self.mean

    def fitted(self, ordinary: Sequence[SignalState]) -> LatentUpdateNorm:
        """Take mean and deviation of two ordinary prompts or more, each number to six digits, since a spec is read."""
        norms = torch.cat([watch.norms() for watch in ordinary if isinstance(watch, Moves)])
        ends = (norms.mean(0), norms.std(0).clamp(min=1e-12))
        return LatentUpdateNorm(*(tuple(float(f"{each:.6g}") for each in end.tolist()) for end in ends))

    def watch(self, request: SamplingContext) -> Moves:
        """Begin to watch; see `Signal.watch`."""
        return Moves(self, request)


@dataclasses.dataclass(eq=False)
class Moves(SignalState):
    """Norms of the changes of the latents in one sampling."""

    signal: LatentUpdateNorm
    request: SamplingContext
    n_steps: int = 2
    before: Tensor | None = None
    found: list[Tensor] = dataclasses.field(default_factory=list)

    def observe(self, step: DenoiseResult) -> None:
        """Measure the change since the step before; see `SignalState.observe`."""
        self.n_steps = step.n_steps
        y = step.x / torch.sqrt(1 + step.sigma**2).view(-1, 1, 1, 1)
        if self.before is not None:
            self.found.append(torch.linalg.vector_norm((y - self.before).flatten(1), dim=1))
        self.before = y

    def norms(self) -> Tensor:
        """Norms [n steps] of the steps seen so far."""
        return torch.stack(self.found, 1) if self.found else self.request.noise.new_zeros(len(self.request.noise), 0)

    def scores(self) -> Tensor:
        """Mean deviation from ordinary norms; see `SignalState.scores`."""
        norms, mean = self.norms(), self.signal.mean
        if len(self.found) < self.signal.needed(self.n_steps) - 1 or (mean and len(mean) != len(self.found)):
            return unknown(self.request)
        if not mean:
            return norms.mean(1)
        return ((norms - _row(mean, norms)).abs() / _row(self.signal.deviation, norms)).mean(1)


def _row(values: Sequence[float], like: Tensor) -> Tensor:
    return like.new_tensor(values)[None]
