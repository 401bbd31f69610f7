"""Signals: what tells, while an image is made, that it is likely memorized, one file each.

A signal watches the steps of a sampling and gives each image a number, higher = more likely memorized. It changes
nothing, and a number depends on the image's own prompt, noise and seed alone. What number is high depends on model and
sampling: `copyscope guard calibrate` finds out on ordinary prompts.
"""

from __future__ import annotations

import abc
import dataclasses
from collections.abc import Sequence
from typing import ClassVar

import torch
from torch import Tensor

from copyscope.diffusion.denoiser import DenoiseResult, SamplingContext
from copyscope.parts import Part


class SignalState(abc.ABC):
    """What a signal sees of one sampling of n images."""

    @abc.abstractmethod
    def observe(self, step: DenoiseResult) -> None:
        """Each step of the sampling, in order; `step.i` is its number."""

    @abc.abstractmethod
    def scores(self) -> Tensor:
        """[n], float32; NaN where it has not seen all that it needs."""

    def maps(self) -> Tensor | None:
        """Where in the latents an image is likely copied [n h w], 0 or more; None if that is not known."""
        return None


class Signal(Part, abc.ABC):
    """Base of all signals. needs: keys of `mitigations.NEEDS`."""

    needs: ClassVar[tuple[str, ...]] = ()

    def needed(self, steps: int) -> int:
        """How many of the sampling's steps, from the first, it must see before its scores are final."""
        return 1

    def calls(self, steps: int, guided: bool) -> int:
        """Model calls (forward passes of one image under one conditioning) it makes for an image, beyond the sampler's.

        guided: the sampler itself asks for the prediction without a prompt.
        """
        return 0

    @property
    def learns(self) -> bool:
        """Whether it is of more use once it was `fitted`, which calibration then does first."""
        return False

    def fitted(self, ordinary: Sequence[SignalState]) -> Signal:
        """The signal with what it learns of ordinary prompts, of which each block was watched by one of `ordinary`."""
        return self

    @abc.abstractmethod
    def watch(self, request: SamplingContext) -> SignalState:
        """Begins to watch the sampling of a request; `request.rngs` are the signal's own generators."""


class OnSteps(Signal):
    """Gives a number at each step that it needs; the score is their mean."""

    @abc.abstractmethod
    def value(self, step: DenoiseResult, request: SamplingContext) -> Tensor:
        """[n] at this step."""

    def watch(self, request: SamplingContext) -> SignalState:
        return _Mean(self, request)


@dataclasses.dataclass(eq=False)
class _Mean(SignalState):
    signal: OnSteps
    request: SamplingContext
    n_steps: int = 1
    values: list[Tensor] = dataclasses.field(default_factory=list)

    def observe(self, step: DenoiseResult) -> None:
        self.n_steps = step.n_steps
        if len(self.values) < self.signal.needed(step.n_steps):
            self.values.append(self.signal.value(step, self.request).float())

    def scores(self) -> Tensor:
        if len(self.values) < self.signal.needed(self.n_steps):
            return unknown(self.request)
        return torch.stack(self.values).mean(0)


def unknown(request: SamplingContext) -> Tensor:
    """NaN for each image."""
    return request.noise.new_full((len(request.noise),), float("nan"))


def cond_minus_uncond(step: DenoiseResult, request: SamplingContext) -> Tensor:
    """D given the prompt minus D given none [n c h w] at a step; a model call a row where the sampler asked for one
    only. Of a sampling with a negative prompt, "none" is that prompt."""
    without = step.unconditional
    if without is None:
        assert request.null is not None
        without = request.predict(step.x, step.sigma, request.null)
    return step.conditional - without


SHELF = Signal
