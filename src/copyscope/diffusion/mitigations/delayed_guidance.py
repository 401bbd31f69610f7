"""Delayed guidance: no guidance before a fixed or a dynamic transition point (Jain et al. 2025)."""

from __future__ import annotations

import dataclasses

import torch

from copyscope.diffusion.denoiser import (
    DenoiseQuery,
    DenoiseResult,
    GuidedDenoiser,
    SamplingContext,
    guided,
    text_conditional_norm,
)

from . import GUIDANCE, OnDenoiser


@dataclasses.dataclass(frozen=True)
class DelayedGuidance(OnDenoiser):
    """No guidance while the sampling is in the attraction basin of a memorized image, the usual one after it.

    Source: Jain et al. 2025 (CVPR), static and dynamic transition point.

    Cost: no model call.

    Args:
        start: share of the steps before guidance sets in, 0 to 1; 0 is the sampling as it was, 0.3 to 0.5 is useful.
        early: scale until then: 0 makes an image of no prompt, 1 of the prompt without guidance; minus the scale is the
            authors' opposite guidance, away from the prompt first.
        dynamic: guidance sets in for each image where the norm of the difference between the predictions with and
            without prompt has passed its first local minimum over the steps (the first step counts as one where the
            second is higher), and at `start` at the latest; the authors have early=1 there, and no latest: start=1.
    """

    start: float = 0.5
    early: float = 0.0
    dynamic: bool = False
    needs = (GUIDANCE,)

    def __post_init__(self) -> None:
        if not 0 <= self.start <= 1:
            raise ValueError("start must be a share from 0 to 1")

    def wrap(self, denoiser: GuidedDenoiser, request: SamplingContext) -> GuidedDenoiser:
        """Guide by `early` until guidance sets in; see `OnDenoiser.wrap`."""
        n = len(request.conditioning)
        begun = torch.zeros(n, dtype=torch.bool, device=request.noise.device)
        before = torch.full((n,), torch.inf, device=request.noise.device)

        def delayed(ask: DenoiseQuery) -> DenoiseResult:
            step = denoiser(ask)
            assert step.unconditional is not None
            if ask.i is not None:
                # Less a little: 0.56 * 25 is more than 14 in floating point.
                begun.logical_or_(torch.tensor(ask.i >= self.start * ask.n_steps - 1e-9))
                if self.dynamic:
                    norm = text_conditional_norm(step.conditional - step.unconditional, step.sigma)
                    begun.logical_or_(norm > before)
                    before.copy_(norm)
            early = guided(step.conditional, step.unconditional, self.early)
            scale = torch.where(begun, step.scale, self.early)
            denoised = torch.where(begun.view(-1, 1, 1, 1), step.denoised, early)
            return dataclasses.replace(step, denoised=denoised, scale=scale)

        return delayed
