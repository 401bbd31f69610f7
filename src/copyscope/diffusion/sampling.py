"""Noise schedules, seeded noise and samplers, as pure functions.

Every number of an image comes from operations on its own row, and its noise from its own seed, so that who else is in
the batch changes nothing, as long as the denoiser keeps to that too (`generate` sees to it).
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from copyscope.errors import InputError

Denoise = Callable[[Tensor, Tensor, int | None], Tensor]
"""(x [n c h w], sigma [n], i) -> denoised [n c h w]: a denoiser that has been told what to make.

i: number of the step that begins at x, from 0; None at a point that a step only tries.
"""
Sampler = Callable[[Denoise, Tensor, Tensor], Tensor]
"""(denoise, x [n c h w] at the first noise level, noise levels [n_steps + 1]) -> x [n c h w] at the last."""
SCHEDULES = ("karras", "flow")


def noise_levels(n_steps: int, low: float, high: float, schedule: str = "karras") -> Tensor:
    """Noise levels of a sampling, from `high` down to `low`, then 0.

    "karras": equally spaced in sigma^(1/7) (Karras et al. 2022, eq. 5). "flow": equally spaced in sigma / (1 + sigma),
    the time of rectified flow (Liu et al. 2023), from `high` to 0; `low` plays no part.

    Args:
        n_steps: 1 or more.
        low: lowest level above 0.
        high: highest level.
        schedule: "karras" or "flow".

    Returns:
        [n_steps + 1].

    Raises:
        InputError: there is no such schedule, or no step.
    """
    if n_steps < 1 or not 0 < low < high:
        raise InputError(
            f"No {n_steps} noise levels from {high} down to {low}.\nTake 1 step or more, and levels 0 < low < high"
        )
    if schedule not in SCHEDULES:
        raise InputError(f"No schedule {schedule!r}.\nThere are: {', '.join(SCHEDULES)}")
    if schedule == "flow":
        time = torch.linspace(high / (1 + high), 0, n_steps + 1, dtype=torch.float64)
        return (time / (1 - time)).float()
    ramp = torch.linspace(0, 1, n_steps, dtype=torch.float64)
    levels = (high ** (1 / 7) + ramp * (low ** (1 / 7) - high ** (1 / 7))) ** 7
    return torch.cat([levels, levels.new_zeros(1)]).float()


def noise(seeds: Sequence[int], shape: tuple[int, ...]) -> Tensor:
    """Standard normal noise on the CPU, each image's from its own seed alone.

    Args:
        seeds: of the images [n].
        shape: of one image's latents.

    Returns:
        float32 [n *shape].
    """
    drawn = [torch.randn(shape, generator=torch.Generator().manual_seed(seed)) for seed in seeds]
    return torch.stack(drawn) if drawn else torch.zeros(0, *shape)


def euler(denoise: Denoise, x: Tensor, sigmas: Tensor) -> Tensor:
    """Euler's method, first order: DDIM (Song et al. 2021) in these coordinates. One call of the denoiser a step.

    Args:
        denoise: (x, sigma [n], step or None) -> estimate of x0.
        x: latents at the first level [n c h w].
        sigmas: noise levels, falling to 0 [n_steps + 1].
    """
    for i, (sigma, following) in enumerate(_steps(sigmas)):
        denoised = denoise(x, _all(sigma, x), i)
        x = denoised + (x - denoised) * (following / sigma)
    return x


def heun(denoise: Denoise, x: Tensor, sigmas: Tensor) -> Tensor:
    """Heun's method, second order (Karras et al. 2022, algorithm 1).

    Two calls of the denoiser a step, but one where the step ends at 0.

    Args:
        denoise: as in `euler`.
        x: as in `euler`.
        sigmas: as in `euler`.
    """
    for i, (sigma, following) in enumerate(_steps(sigmas)):
        slope = (x - denoise(x, _all(sigma, x), i)) / sigma
        reached = x + slope * (following - sigma)
        if following > 0:
            after = (reached - denoise(reached, _all(following, x), None)) / following
            reached = x + (slope + after) * ((following - sigma) / 2)
        x = reached
    return x


def dpmpp_2m(denoise: Denoise, x: Tensor, sigmas: Tensor) -> Tensor:
    """DPM-Solver++(2M) (Lu et al. 2022, algorithm 2): second order at one call a step.

    First order where it begins, and where the step ends at 0.

    Args:
        denoise: as in `euler`.
        x: as in `euler`.
        sigmas: as in `euler`.
    """
    before: tuple[Tensor, float] | None = None
    for i, (sigma, following) in enumerate(_steps(sigmas)):
        denoised = denoise(x, _all(sigma, x), i)
        if following == 0:
            return denoised
        ratio = following / sigma
        direction = denoised
        if before is not None:
            earlier, earlier_ratio = before
            # Half the ratio of the steps in -log sigma, by which the estimate is carried on in a line.
            carry = math.log(ratio) / math.log(earlier_ratio) / 2
            direction = denoised * (1 + carry) - earlier * carry
        x = x * ratio + direction * (1 - ratio)
        before = denoised, ratio
    return x


SAMPLERS: dict[str, Sampler] = {"euler": euler, "heun": heun, "dpmpp_2m": dpmpp_2m}


def _steps(sigmas: Tensor) -> list[tuple[float, float]]:
    """Noise level before and after each step, as plain numbers: on a GPU, a comparison of tensors would wait for it."""
    levels: list[float] = sigmas.tolist()
    return list(itertools.pairwise(levels))


def _all(sigma: float, x: Tensor) -> Tensor:
    return x.new_full((len(x),), sigma)
