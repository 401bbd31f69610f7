"""Prompt re-anchoring (PRSS): guide by a paraphrase of a prompt that triggers (Chen et al. 2025)."""

from __future__ import annotations

import dataclasses

import torch

from copyscope.curation.captions import paraphrases
from copyscope.diffusion.conditioning import Conditioning

from ..denoiser import DenoiseQuery, DenoiseResult, GuidedDenoiser, SamplingContext, text_conditional_norm
from . import GUIDANCE, NULL, PROMPTS, OnDenoiser


@dataclasses.dataclass(frozen=True)
class PromptReanchoring(OnDenoiser):
    """Guide by a paraphrase of the prompt, at each step and for the images whose norm is above the trigger.

    With guidance of scale w, D = D_prompt + s (D_new - D_prompt) + (w - s) (D_new - D_none), where D_new is given the
    paraphrase. s rises linearly with the text-conditional norm from 1 at the trigger to w at `full`.

    Source: PRSS of Chen et al. 2025 (CVPR), whose s is min(w (norm - k) / (5 - k), w) with k = (w trigger - 5) / (w -
    1); here it is defined at w = 1 too. The paraphrase is the first, of those made by sentence templates (the authors
    use 25 of a language model), whose norm at the start of sampling is at most the threshold, else the one with the
    lowest norm; it is searched when an image triggers. Norms of a small_unet rise from 0.4 to 100 as the noise falls.

    Cost: for an image that triggers, a model call at each step that it does, and as many as paraphrases tried, plus 1.

    Args:
        threshold: norm of a paraphrase, 1 on Stable Diffusion; else take a low quantile of those of ordinary prompts at
            the first step.
        paraphrases: tried at most; 0 is the sampling as it was.
        trigger: norm, 3 on Stable Diffusion; else take a high quantile of those of ordinary prompts over the steps.
        full: norm, 5 on Stable Diffusion; above the trigger.
    """

    threshold: float = 1.0
    paraphrases: int = 5
    trigger: float = 3.0
    full: float = 5.0
    needs = (PROMPTS, GUIDANCE, NULL)

    def __post_init__(self) -> None:
        if self.paraphrases < 0 or not self.threshold >= 0 or not 0 <= self.trigger < self.full:
            raise ValueError("paraphrases, threshold and trigger must be 0 or more, and full above trigger")

    def calls(self, steps: int) -> int:
        """One a step, and one a paraphrase, plus 1; see `Mitigation.calls`."""
        return self.paraphrases + 1 + steps if self.paraphrases else 0

    def wrap(self, denoiser: GuidedDenoiser, request: SamplingContext) -> GuidedDenoiser:
        """Guide by a paraphrase where an image triggers; see `OnDenoiser.wrap`."""
        if self.paraphrases == 0:
            return denoiser
        anchors: dict[int, Conditioning | None] = {}

        def reanchored(ask: DenoiseQuery) -> DenoiseResult:
            step = denoiser(ask)
            assert step.unconditional is not None
            norm = text_conditional_norm(step.conditional - step.unconditional, step.sigma)
            over = (norm > self.trigger).nonzero()[:, 0].tolist()
            anchors.update(self._anchors([row for row in over if row not in anchors], request))
            told = {row: anchor for row in over if (anchor := anchors[row]) is not None}
            if not told:
                return step
            rows = list(told)
            new = request.predict(ask.x[rows], ask.sigma[rows], Conditioning.join(list(told.values())))
            share = ((norm[rows] - self.trigger) / (self.full - self.trigger)).clamp(max=1)
            w = step.scale[rows].view(-1, 1, 1, 1)
            s = 1 + (w - 1) * share.view(-1, 1, 1, 1)
            prompt, none, denoised = step.conditional[rows], step.unconditional[rows], step.denoised.clone()
            denoised[rows] = prompt + s * (new - prompt) + (w - s) * (new - none)
            return dataclasses.replace(step, denoised=denoised)

        return reanchored

    def _anchors(self, rows: list[int], request: SamplingContext) -> dict[int, Conditioning | None]:
        """Of each row, what the model is told by the paraphrase taken; None where there is no paraphrase."""
        assert request.null is not None
        assert request.prompts is not None
        others = {row: paraphrases(request.prompts[row], self.paraphrases, request.rngs[row]) for row in rows}
        lowest, found = dict.fromkeys(rows, float("inf")), dict[int, Conditioning | None].fromkeys(rows)
        sigma = request.noise.new_full((len(request.noise),), request.sigma)
        x, none = request.noise * request.sigma, torch.zeros_like(request.noise)
        if rows:
            none[rows] = request.predict(x[rows], sigma[rows], request.null.take(rows))
        for turn in range(self.paraphrases):
            on = [row for row in rows if turn < len(others[row]) and lowest[row] > self.threshold]
            if not on:
                break
            told = request.model.condition([others[row][turn] for row in on]).to(x.device)
            norms = text_conditional_norm(request.predict(x[on], sigma[on], told) - none[on], sigma[on])
            for place, (row, norm) in enumerate(zip(on, norms.tolist(), strict=True)):
                if norm < lowest[row]:
                    lowest[row], found[row] = norm, told.take([place])
        return found
