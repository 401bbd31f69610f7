"""Denoiser contract D(x, sigma, conditioning), guidance, and the state of a sampling step.

One parameterisation for every model (Karras et al. 2022): x = x0 + sigma * noise, sigma the noise level, D the model's
estimate of x0. What a network really predicts (epsilon, v, x0, a velocity) and how its own time runs is known to the
model's file alone. A guided denoiser is a denoiser around another.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from .conditioning import Conditioning

if TYPE_CHECKING:
    from .models import Model


class Denoiser(Protocol):
    """D(x, sigma, conditioning) -> denoised."""

    def __call__(self, x: Tensor, sigma: Tensor, conditioning: Conditioning) -> Tensor:
        """x: noised latents float32 [n c h w]. sigma: noise level of each, above 0 [n]. Gives x0's estimate [n c h w].

        A row's result depends on that row alone.
        """
        ...


@dataclasses.dataclass(frozen=True, eq=False)
class DenoiseQuery:
    """Where a sampler asks for an estimate of x0: latents x [n c h w] at noise levels sigma [n].

    i: step, from 0, of n_steps, that begins here; None at a point that a step only tries. scale: of guidance [n].
    """

    x: Tensor
    sigma: Tensor
    i: int | None
    n_steps: int
    scale: Tensor


@dataclasses.dataclass(frozen=True, eq=False)
class DenoiseResult:
    """What an Ask was answered, as whatever watches the sampling sees it. i, n_steps, sigma [n], x: those of the Ask.

    conditional, unconditional, denoised: estimates of x0 given the prompt, given none (None where that was not asked
    for), and the guided one that the sampler goes on with; all [n c h w]. scale: of the guidance that `denoised` came
    from [n], before whatever else changed it; 1 where there was none.
    """

    i: int | None
    n_steps: int
    sigma: Tensor
    x: Tensor
    conditional: Tensor
    unconditional: Tensor | None
    denoised: Tensor
    scale: Tensor


GuidedDenoiser = Callable[[DenoiseQuery], DenoiseResult]
"""A denoiser that has been told what to make, guidance included: what a sampler asks, and mitigations wrap."""
Predict = Callable[[Tensor, Tensor, Conditioning], Tensor]
"""A Denoiser that n rows of any number can be given; gradients flow through it where they are enabled."""


@dataclasses.dataclass(frozen=True, eq=False)
class NearestImage:
    """The training image most like a picture: similarity as its finder measures it, at most 1; its caption, "" if it
    has none; itself, uint8 [h w 3]."""

    similarity: float
    caption: str
    picture: NDArray[np.uint8]


FindNearest = Callable[[Sequence[NDArray[np.uint8]]], Sequence[NearestImage]]
"""Pictures [n], uint8 [h w 3] each -> the nearest training image of each [n].

An attribute `fingerprint`, text, tells `generate` one training set from another.
"""


@dataclasses.dataclass(frozen=True, eq=False)
class SamplingContext:
    """n images that are asked of a model, for parts that need to know, or to ask the model more.

    prompts: [n]; None where the caller gave embeddings. conditioning: of n images. null: what the model is told when
    told nothing [n], None where it cannot be. scale: of guidance, 1 = none. sigma: the noise level sampling starts at.
    noise: standard normal [n c h w]; sampling starts at sigma * noise. predict: asks the model; each row is a model
    call. rngs: a generator an image [n], of the part's own stream. nearest: finds training images, None if nobody does.
    block: how many rows `predict` shows the model at a time, None = all.
    """

    model: Model
    prompts: Sequence[str] | None
    conditioning: Conditioning
    null: Conditioning | None
    scale: float
    sigma: float
    noise: Tensor
    predict: Predict
    rngs: Sequence[np.random.Generator]
    nearest: FindNearest | None = None
    block: int | None = None

    def apart(self, x: Tensor, sigma: Tensor, conditioning: Conditioning | None = None) -> Tensor:
        """D given the prompt minus D given none [n c h w] at x, sigma: two model calls a row. The null is there."""
        assert self.null is not None
        told = self.conditioning if conditioning is None else conditioning
        both = self.predict(torch.cat([x, x]), torch.cat([sigma, sigma]), Conditioning.join([told, self.null]))
        return both[: len(x)] - both[len(x) :]


def guided(conditional: Tensor, unconditional: Tensor, scale: float | Tensor) -> Tensor:
    """Classifier-free guidance (Ho & Salimans 2022) of two estimates [n c h w]; a scale of 1 is none. scale: one, or
    one a row [n]."""
    if isinstance(scale, Tensor):
        scale = scale.view(-1, 1, 1, 1)
    return unconditional + scale * (conditional - unconditional)


def text_conditional_norm(apart: Tensor, sigma: Tensor) -> Tensor:
    """Norm [n] of the difference of two noise predictions (Wen et al. 2024), per sample, over all its elements.

    apart: D given the prompt minus D given none [n c h w] at sigma [n]. epsilon = (x - D) / sigma, so the norm is that
    of `apart` divided by sigma.
    """
    norm: Tensor = torch.linalg.vector_norm(apart.flatten(1), dim=1)
    return norm / sigma
