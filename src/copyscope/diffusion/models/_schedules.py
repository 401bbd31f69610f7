"""Noise schedules of networks (DDPM, rectified flow): their time, input and output against D(x, sigma)."""

from __future__ import annotations

import dataclasses

import torch
from torch import Tensor


@dataclasses.dataclass(frozen=True, eq=False)
class VariancePreserving:
    """Schedule of DDPM networks (Ho et al. 2020): input x / sqrt(1 + sigma^2), times 0..T-1.

    Attributes:
        table: noise level of each time [T], increasing.
        predicts: "epsilon", "v_prediction" or "sample".
    """

    table: Tensor
    predicts: str

    @property
    def sigmas(self) -> tuple[float, float]:
        """Lowest and highest noise level."""
        return float(self.table[0]), float(self.table[-1])

    def time(self, sigma: Tensor) -> Tensor:
        """Time [n], interpolated in log sigma; a whole number, exactly, at the levels of the table."""
        above = torch.searchsorted(self.table, sigma.contiguous()).clamp(1, len(self.table) - 1)
        low, high = self.table[above - 1], self.table[above]
        return above - 1 + (torch.log(sigma / low) / torch.log(high / low)).clamp(0, 1)

    def level(self, time: Tensor) -> Tensor:
        """Noise level [n] of a time [n]: the inverse of `time`, and of the table, exactly, at a whole one."""
        time = time.float().clamp(0, len(self.table) - 1)
        low = time.long()
        high = (low + 1).clamp(max=len(self.table) - 1)
        return self.table[low] * (self.table[high] / self.table[low]) ** (time - low)

    def scaled(self, x: Tensor, sigma: Tensor) -> Tensor:
        """Input of the network for latents x."""
        return x / torch.sqrt(1 + sigma**2)

    def unscaled(self, given: Tensor, sigma: Tensor) -> Tensor:
        """Latents x of an input of the network: the inverse of `scaled`."""
        return given * torch.sqrt(1 + sigma**2)

    def denoised(self, x: Tensor, sigma: Tensor, found: Tensor) -> Tensor:
        """Estimate D of x0 from an output of the network."""
        if self.predicts == "epsilon":
            return x - sigma * found
        if self.predicts == "sample":
            return found
        return x / (1 + sigma**2) - sigma / torch.sqrt(1 + sigma**2) * found

    def found(self, x: Tensor, sigma: Tensor, denoised: Tensor) -> Tensor:
        """Output of the network that means D: the inverse of `denoised`."""
        if self.predicts == "epsilon":
            return (x - denoised) / sigma
        if self.predicts == "sample":
            return denoised
        return (x / (1 + sigma**2) - denoised) * (torch.sqrt(1 + sigma**2) / sigma)

    def weight(self, sigma: Tensor) -> Tensor:
        """Weight of (D - x0)^2 that makes it the squared error of what the network predicts."""
        if self.predicts == "sample":
            return torch.ones_like(sigma)
        return sigma**-2 + (1 if self.predicts == "v_prediction" else 0)

    def levels(self, uniform: Tensor) -> Tensor:
        """Training noise levels: of whole times, all equally likely."""
        times = (uniform * len(self.table)).long().clamp(max=len(self.table) - 1)
        return self.table.to(uniform.device)[times]


@dataclasses.dataclass(frozen=True, eq=False)
class Flow:
    """Schedule of rectified flows (Liu et al. 2023): input (1 - t) x0 + t noise, predicts noise - x0.

    sigma = t / (1 - t).

    Attributes:
        steps: the network's times are 0..steps.
        shift: of the training times towards noise (Esser et al. 2024).
    """

    steps: int
    shift: float

    @property
    def sigmas(self) -> tuple[float, float]:
        """Lowest and highest noise level."""
        return 1 / (self.steps - 1), self.steps - 1.0

    def time(self, sigma: Tensor) -> Tensor:
        """Time [n] of a noise level [n]."""
        return sigma / (1 + sigma) * self.steps

    def level(self, time: Tensor) -> Tensor:
        """Noise level [n] of a time [n]; at the ends, where it is 0 or infinite, the lowest or highest of `sigmas`."""
        share = time.float() / self.steps
        return (share / (1 - share)).clamp(*self.sigmas)

    def scaled(self, x: Tensor, sigma: Tensor) -> Tensor:
        """Input of the network for latents x."""
        return x / (1 + sigma)

    def unscaled(self, given: Tensor, sigma: Tensor) -> Tensor:
        """Latents x of an input of the network: the inverse of `scaled`."""
        return given * (1 + sigma)

    def denoised(self, x: Tensor, sigma: Tensor, found: Tensor) -> Tensor:
        """Estimate D of x0 from an output of the network."""
        return (x - sigma * found) / (1 + sigma)

    def found(self, x: Tensor, sigma: Tensor, denoised: Tensor) -> Tensor:
        """Output of the network that means D: the inverse of `denoised`."""
        return (x - (1 + sigma) * denoised) / sigma

    def weight(self, sigma: Tensor) -> Tensor:
        """Weight of (D - x0)^2 that makes it the squared error of what the network predicts."""
        return ((1 + sigma) / sigma) ** 2

    def levels(self, uniform: Tensor) -> Tensor:
        """Training noise levels: logit-normal times, shifted; sigma is shift times a standard log-normal number."""
        return (self.shift * torch.exp(torch.special.ndtri(uniform))).clamp(*self.sigmas)
