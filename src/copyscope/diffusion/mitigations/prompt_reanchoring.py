"""Guidance that leads to a paraphrase of the prompt, and away from the prompt where that pulls hard."""

from __future__ import annotations

import dataclasses

import torch

from copyscope.curation.captions import paraphrases
from copyscope.diffusion.conditioning import Conditioning

from ..denoiser import DenoiseQuery, DenoiseResult, GuidedDenoiser, SamplingContext, text_conditional_norm
from . import GUIDANCE, NULL, PROMPTS, OnDenoiser


@dataclasses.dataclass(frozen=True)
class PromptReanchoring(OnDenoiser):
    """At each step, for the images whose text-conditional norm is above the trigger, with guidance of scale w:
    D = D_prompt + s (D_new - D_prompt) + (w - s) (D_new - D_none), where D_new is given a paraphrase of the prompt.

    Source: PRSS of Chen et al. 2025 (CVPR). s rises linearly with the norm from 1 at the trigger to w at `full`: the
    authors' min(w (norm - k) / (5 - k), w) with k = (w trigger - 5) / (w - 1), but defined at w = 1. The paraphrase is
    the first, of those made by sentence templates (the authors use 25 of a language model), whose norm at the start of
    sampling is at most the threshold, else the one with the lowest norm; it is searched when an image triggers.

    threshold, trigger, full: norms, 1, 3 and 5 on Stable Diffusion. Those of a small_unet rise from 0.4 to 100 as the
    noise falls: take a high quantile of those of ordinary prompts over the steps as trigger, a low one at the first as
    threshold. paraphrases: tried at most; 0 is the sampling as it was.

    Cost: for an image that triggers, a model call at each step that it does, and as many as paraphrases tried, plus 1.
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
        return self.paraphrases + 1 + steps if self.paraphrases else 0

    def wrap(self, denoiser: GuidedDenoiser, request: SamplingContext) -> GuidedDenoiser:
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
