"""The denoiser's contract, and what it is told: D(x, sigma, conditioning) -> denoised.

One parameterisation for every model (Karras et al. 2022): x = x0 + sigma * noise, sigma the noise level, D the model's
estimate of x0. What a network really predicts (epsilon, v, x0, a velocity) and how its own time runs is known to the
model's file alone. A guided denoiser is a denoiser around another.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Protocol

import torch
from torch import Tensor


@dataclasses.dataclass(frozen=True, eq=False)
class Conditioning:
    """What a model is told of n images.

    text: states of the text's tokens, float32 [n t d]. mask: which tokens count, bool [n t]. pooled: one vector a text
    [n p] where the model wants one beside the states (SDXL, SD3), else None.
    """

    text: Tensor
    mask: Tensor
    pooled: Tensor | None = None

    def __len__(self) -> int:
        return int(self.text.shape[0])

    def take(self, rows: Sequence[int] | Tensor) -> Conditioning:
        """The conditioning of these rows, in this order."""
        index = torch.as_tensor(rows, device=self.text.device)
        return Conditioning(self.text[index], self.mask[index], None if self.pooled is None else self.pooled[index])

    def to(self, device: torch.device | str) -> Conditioning:
        """The same on another device."""
        pooled = None if self.pooled is None else self.pooled.to(device)
        return Conditioning(self.text.to(device), self.mask.to(device), pooled)

    @staticmethod
    def join(parts: Sequence[Conditioning]) -> Conditioning:
        """One after another; shorter texts are padded with zero states that the mask leaves out."""
        longest = max(part.text.shape[1] for part in parts)
        text = [torch.nn.functional.pad(part.text, (0, 0, 0, longest - part.text.shape[1])) for part in parts]
        mask = [torch.nn.functional.pad(part.mask, (0, longest - part.mask.shape[1])) for part in parts]
        pooled = [part.pooled for part in parts if part.pooled is not None]
        return Conditioning(torch.cat(text), torch.cat(mask), torch.cat(pooled) if pooled else None)


class Denoiser(Protocol):
    """D(x, sigma, conditioning) -> denoised."""

    def __call__(self, x: Tensor, sigma: Tensor, conditioning: Conditioning) -> Tensor:
        """x: noised latents float32 [n c h w]. sigma: noise level of each, above 0 [n]. Gives x0's estimate [n c h w].

        A row's result depends on that row alone.
        """
        ...


@dataclasses.dataclass(frozen=True, eq=False)
class Step:
    """One step of sampling, as whatever watches it sees it. i: 0-based, of n_steps. sigma: noise level [n] before it.

    x: latents before it; conditional, unconditional, denoised: estimates of x0 given the prompt, given none (None where
    that was not asked for), and the guided one that the sampler went on with; all [n c h w].
    """

    i: int
    n_steps: int
    sigma: Tensor
    x: Tensor
    conditional: Tensor
    unconditional: Tensor | None
    denoised: Tensor


def guided(conditional: Tensor, unconditional: Tensor, scale: float) -> Tensor:
    """Classifier-free guidance (Ho & Salimans 2022) of two estimates [n c h w]; a scale of 1 is none."""
    return unconditional + scale * (conditional - unconditional)
