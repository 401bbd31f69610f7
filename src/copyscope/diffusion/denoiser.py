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
        """Estimate x0. A row's result depends on that row alone.

        Args:
            x: noised latents, float32 [n c h w].
            sigma: noise level of each, above 0 [n].
            conditioning: of the n images.

        Returns:
            Estimate of x0, [n c h w].
        """
        ...


@dataclasses.dataclass(frozen=True, eq=False)
class DenoiseQuery:
    """Request of a sampler for an estimate of x0.

    Args:
        x: latents [n c h w].
        sigma: noise levels [n].
        i: step, from 0, that begins here; None at a point that a step only tries.
        n_steps: steps of the sampling.
        scale: of guidance [n].
    """

    x: Tensor
    sigma: Tensor
    i: int | None
    n_steps: int
    scale: Tensor


@dataclasses.dataclass(frozen=True, eq=False)
class DenoiseResult:
    """Answer to a DenoiseQuery, as signals and wrapped denoisers see it.

    Args:
        i: step, as in the query.
        n_steps: as in the query.
        sigma: noise levels [n], as in the query.
        x: latents [n c h w], as in the query.
        conditional: estimate of x0 given the prompt, [n c h w].
        unconditional: estimate given no prompt; None where that was not asked for.
        denoised: the guided estimate that the sampler goes on with.
        scale: of the guidance that `denoised` came from [n], before whatever else changed it; 1 where there was none.
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
    """The training image most like a picture.

    Attributes:
        similarity: as its finder measures it, at most 1.
        caption: "" if it has none.
        picture: uint8 [h w 3].
    """

    similarity: float
    caption: str
    picture: NDArray[np.uint8]


FindNearest = Callable[[Sequence[NDArray[np.uint8]]], Sequence[NearestImage]]
"""Pictures [n], uint8 [h w 3] each -> the nearest training image of each [n].

An attribute `fingerprint`, text, tells `generate` one training set from another.
"""


@dataclasses.dataclass(frozen=True, eq=False)
class SamplingContext:
    """A request to a model for n images, for parts that need to know it, or to ask the model more.

    Args:
        model: the model.
        prompts: [n]; None where the caller gave embeddings.
        conditioning: of the n images.
        null: conditioning without a prompt [n]; None where the model has none.
        scale: of guidance; 1 = none.
        sigma: the noise level that sampling starts at.
        noise: standard normal [n c h w]; sampling starts at sigma * noise.
        predict: asks the model; each row is a model call.
        rngs: a generator an image [n], of the part's own stream.
        nearest: finds training images; None = nobody does.
        block: rows that `predict` shows the model at a time; None = all.
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
        """Guidance direction: D given the prompt minus D given none; two model calls a row. Needs `null`.

        Args:
            x: latents [n c h w].
            sigma: noise levels [n].
            conditioning: in place of the request's; None = the request's.

        Returns:
            [n c h w].
        """
        assert self.null is not None
        told = self.conditioning if conditioning is None else conditioning
        both = self.predict(torch.cat([x, x]), torch.cat([sigma, sigma]), Conditioning.join([told, self.null]))
        return both[: len(x)] - both[len(x) :]


def guided(conditional: Tensor, unconditional: Tensor, scale: float | Tensor) -> Tensor:
    """Classifier-free guidance (Ho & Salimans 2022) of two estimates of x0.

    Args:
        conditional: [n c h w].
        unconditional: [n c h w].
        scale: one, or one a row [n]; 1 is no guidance.
    """
    if isinstance(scale, Tensor):
        scale = scale.view(-1, 1, 1, 1)
    return unconditional + scale * (conditional - unconditional)


def text_conditional_norm(apart: Tensor, sigma: Tensor) -> Tensor:
    """Text-conditional norm [n]: of the difference of two noise predictions, over all elements (Wen et al. 2024).

    epsilon = (x - D) / sigma, so the norm is that of `apart` divided by sigma.

    Args:
        apart: D given the prompt minus D given none, [n c h w].
        sigma: noise levels [n].
    """
    norm: Tensor = torch.linalg.vector_norm(apart.flatten(1), dim=1)
    return norm / sigma
