"""Guidance direction at the start of sampling, and descent along it: shared by several mitigations."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from copyscope.diffusion.denoiser import SamplingContext

TINY = 1e-12


def guidance_direction(noise: Tensor, request: SamplingContext) -> Tensor:
    """Guidance direction where sampling starts: noise prediction given the prompt minus that given none [n c h w].

    Two model calls a row. epsilon = (x - D) / sigma, hence the sign.
    """
    sigma = noise.new_full((len(noise),), request.sigma)
    return request.apart(noise * request.sigma, sigma) / -request.sigma


def length(x: Tensor) -> Tensor:
    """Euclidean norm [n] of each sample of x [n ...], over all its elements."""
    norm: Tensor = torch.linalg.vector_norm(x.flatten(1), dim=1)
    return norm


def unit(x: Tensor) -> Tensor:
    """Scale each sample of x [n c h w] to length 1; nought stays nought."""
    return x / length(x).clamp(min=TINY).view(-1, 1, 1, 1)


def blocks(request: SamplingContext) -> Iterator[SamplingContext]:
    """Cut a request into as many images at a time as the model is shown: a graph of more would be kept whole."""
    n = len(request.noise)
    for rows in torch.split(torch.arange(n, device=request.noise.device), request.block or max(n, 1)):
        places = rows.tolist()
        yield dataclasses.replace(
            request,
            prompts=None if request.prompts is None else [request.prompts[place] for place in places],
            conditioning=request.conditioning.take(rows),
            null=None if request.null is None else request.null.take(rows),
            noise=request.noise[rows],
            rngs=[request.rngs[place] for place in places],
        )


def descend(start: Tensor, loss_of: Callable[[Tensor], Tensor], steps: int, rate: float, target: float) -> Tensor:
    """Move each sample by Adam (Kingma & Ba 2015, its defaults) until its loss is at most the target.

    Args:
        start: [n ...].
        loss_of: samples -> loss [n], that of a sample by that sample alone; asked once a step, with gradients.
        steps: at most.
        rate: length of a step in each number.
        target: loss at which a sample stops.
    """
    at, still = start.detach(), torch.ones(len(start), dtype=torch.bool, device=start.device)
    mean, square = torch.zeros_like(at), torch.zeros_like(at)
    for step in range(1, steps + 1):
        leaf = at.clone().requires_grad_()
        with torch.enable_grad():
            loss = loss_of(leaf)
            total = loss.sum()
        still &= loss.detach() > target
        if not still.any():
            break
        # Not `backward`, which would leave gradients on the model's weights.
        (gradient,) = torch.autograd.grad(total, leaf)
        mean = 0.9 * mean + 0.1 * gradient
        square = 0.999 * square + 0.001 * gradient**2
        move = mean / (1 - 0.9**step) / ((square / (1 - 0.999**step)).sqrt() + 1e-8)
        at = torch.where(still.view(-1, *[1] * (at.ndim - 1)), at - rate * move, at)
    return at
