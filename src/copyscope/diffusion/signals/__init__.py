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
    """State of a signal while it watches one sampling of n images."""

    @abc.abstractmethod
    def observe(self, step: DenoiseResult) -> None:
        """See a step of the sampling; all come, in order.

        Args:
            step: the answer at that step; `step.i` is its number.
        """

    @abc.abstractmethod
    def scores(self) -> Tensor:
        """Scores [n], float32, higher = more likely memorized; NaN where it has not seen all that it needs."""

    def maps(self) -> Tensor | None:
        """Maps [n h w] of where in the latents an image is likely copied, 0 or more; None if that is not known."""
        return None


class Signal(Part, abc.ABC):
    """Base of all signals.

    Attributes:
        needs: keys of `mitigations.NEEDS`.
    """

    needs: ClassVar[tuple[str, ...]] = ()

    def needed(self, steps: int) -> int:
        """Number of steps, from the first, that it must see before its scores are final.

        Args:
            steps: of the sampling.

        Returns:
            The number.
        """
        return 1

    def calls(self, steps: int, guided: bool) -> int:
        """Model calls that it makes for an image, beyond the sampler's: forward passes under one conditioning.

        Args:
            steps: of the sampling.
            guided: the sampler itself asks for the prediction without a prompt.

        Returns:
            The number.
        """
        return 0

    @property
    def learns(self) -> bool:
        """Whether it is of more use once it was `fitted`, which calibration then does first."""
        return False

    def fitted(self, ordinary: Sequence[SignalState]) -> Signal:
        """Fit to ordinary prompts.

        Args:
            ordinary: states that watched ordinary prompts, a block each.

        Returns:
            The signal with what it learned; itself, if it does not learn.
        """
        return self

    @abc.abstractmethod
    def watch(self, request: SamplingContext) -> SignalState:
        """Begin to watch the sampling of a request.

        Args:
            request: the request; `request.rngs` are the signal's own generators.

        Returns:
            The state.
        """


class OnSteps(Signal):
    """Base of signals with a number at each step; the score is the mean over the steps needed."""

    @abc.abstractmethod
    def value(self, step: DenoiseResult, request: SamplingContext) -> Tensor:
        """Number of each image at a step.

        Args:
            step: the answer at that step.
            request: of the sampling.

        Returns:
            [n].
        """

    def watch(self, request: SamplingContext) -> SignalState:
        """Begin to watch, and average the values of the steps.

        Args:
            request: of the sampling.

        Returns:
            The state.
        """
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
    """Score of images that cannot be told yet: NaN for each.

    Args:
        request: of n images.

    Returns:
        [n].
    """
    return request.noise.new_full((len(request.noise),), float("nan"))


def cond_minus_uncond(step: DenoiseResult, request: SamplingContext) -> Tensor:
    """Guidance direction at a step: D given the prompt minus D given none.

    Of a sampling with a negative prompt, "none" is that prompt. A model call a row where the sampler asked for one
    prediction only.

    Args:
        step: the answer at that step.
        request: of the sampling.

    Returns:
        [n c h w].
    """
    without = step.unconditional
    if without is None:
        assert request.null is not None
        without = request.predict(step.x, step.sigma, request.null)
    return step.conditional - without


SHELF = Signal
