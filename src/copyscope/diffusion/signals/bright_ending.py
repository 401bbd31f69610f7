"""Bright ending: attention to the end-of-text token in the last steps."""

from __future__ import annotations

import dataclasses
import math

import torch
from torch import Tensor

from copyscope.diffusion.denoiser import DenoiseResult, SamplingContext
from copyscope.diffusion.mitigations import CROSS_ATTENTION, NULL, PROMPTS

from . import Signal, SignalState, cond_minus_uncond, unknown
from ._attention import attention


@dataclasses.dataclass(frozen=True)
class BrightEnding(Signal):
    """Text-conditional norm, each place weighed by its attention to the end of the text in the last step.

    Where that is bright, a region is likely copied; `maps` gives that attention [n h w].

    Source: Chen et al. 2025 (ICLR). |m (e(prompt) - e(none))| / mean(m), the mean over all steps, with e = (x - D) /
    sigma, and m the cross-attention to the end-of-text token, the mean over heads and over the layers that see most
    places, brought to the size of the latents. The authors take those on the way down of Stable Diffusion, 64 x 64, and
    run each prompt twice.

    Cost: a model call, whose attention is read; and one a step where there is no guidance.
    """

    needs = (CROSS_ATTENTION, NULL, PROMPTS)

    def needed(self, steps: int) -> int:
        """All steps; see `Signal.needed`."""
        return steps

    def calls(self, steps: int, guided: bool) -> int:
        """One at the end; see `Signal.calls`."""
        return 1 if guided else steps + 1

    def watch(self, request: SamplingContext) -> SignalState:
        """Begin to watch; see `Signal.watch`."""
        return _Ending(request)


@dataclasses.dataclass(eq=False)
class _Ending(SignalState):
    """State of BrightEnding.

    Attributes:
        squares: of each step, |e(prompt) - e(none)|^2 over channels [n h w].
        bright: m [n h w]; None before the last step.
    """

    request: SamplingContext
    squares: list[Tensor] = dataclasses.field(default_factory=list)
    bright: Tensor | None = None

    def observe(self, step: DenoiseResult) -> None:
        pull = cond_minus_uncond(step, self.request) / step.sigma.view(-1, 1, 1, 1)
        self.squares.append(pull.square().sum(1))
        if step.i == step.n_steps - 1:
            self.bright = self._seen(step)

    def scores(self) -> Tensor:
        if self.bright is None:
            return unknown(self.request)
        weighed = [(self.bright.square() * square).sum((1, 2)).sqrt() for square in self.squares]
        return torch.stack(weighed).mean(0) / self.bright.mean((1, 2))

    def maps(self) -> Tensor | None:
        return self.bright

    def _seen(self, step: DenoiseResult) -> Tensor:
        request, (height, width) = self.request, step.x.shape[2:]
        layers = attention(request, step.x, step.sigma, lambda found: found.mean(1))
        most = max(layer.shape[1] for layer in layers)
        seen = torch.stack([layer for layer in layers if layer.shape[1] == most]).mean(0)
        ends = torch.tensor(_ends(request), device=seen.device)
        map = seen[torch.arange(len(seen), device=seen.device), :, ends]
        rows = round(math.sqrt(most * height / width))
        map = map.view(len(map), 1, rows, most // rows)
        return torch.nn.functional.interpolate(map, (height, width), mode="bilinear")[:, 0]


def _ends(request: SamplingContext) -> list[int]:
    """Place of the last token of each prompt [n]: the one that says that the text ends."""
    assert request.prompts is not None
    tokenizer, length = request.model.tokenizer, request.conditioning.text.shape[1]
    return [len(tokenizer(prompt, truncation=True, max_length=length).input_ids) - 1 for prompt in request.prompts]
