"""Entropy of the cross-attention over the prompt's tokens."""

from __future__ import annotations

import dataclasses

import torch
from torch import Tensor

from copyscope.diffusion.denoiser import DenoiseResult, SamplingContext
from copyscope.diffusion.mitigations import CROSS_ATTENTION
from copyscope.errors import InputError

from . import OnSteps, SignalState
from ._attention import attention


@dataclasses.dataclass(frozen=True)
class AttentionEntropy(OnSteps):
    """Entropy of the attention to the prompt's tokens, which a prompt that triggers a memory draws off the first one.

    Source: Ren et al. 2024 (ECCV). Attention is averaged over heads, places and layers to p, one number a token; its
    entropy is -sum p log p, in nats, the mean over the first steps. With layer=3 and steps=1 it is the authors' cheap
    detector of SD 1. Their other one takes the last 10 of 50 steps, and adds how much the tokens after the text change;
    here steps=0 takes all, and those tokens count like others. A model that masks padding has more entropy of longer
    texts.

    Cost: a model call a step, whose attention is read.

    Args:
        layer: one of the model's, from 0 in the order in which it has them; -1 = all.
        steps: how many, from the first; 0 takes all.
    """

    layer: int = -1
    steps: int = 1
    needs = (CROSS_ATTENTION,)

    def __post_init__(self) -> None:
        if self.layer < -1 or self.steps < 0:
            raise ValueError("layer must be -1 or more, and steps 0 or more")

    def needed(self, steps: int) -> int:
        """As `steps`; see `Signal.needed`."""
        return min(self.steps or steps, steps)

    def calls(self, steps: int, guided: bool) -> int:
        """One a step; see `Signal.calls`."""
        return self.needed(steps)

    def watch(self, request: SamplingContext) -> SignalState:
        """Begin to watch; see `Signal.watch`.

        Raises:
            InputError: the model has no such layer.
        """
        n_layers = len(request.model.cross_attentions)
        if self.layer >= n_layers:
            raise InputError(f"{self} names a layer of {n_layers}.\nTake one from 0 to {n_layers - 1}, or -1 for all")
        return super().watch(request)

    def value(self, step: DenoiseResult, request: SamplingContext) -> Tensor:
        """Entropy at a step; see `OnSteps.value`."""
        layers = attention(request, step.x, step.sigma, lambda found: found.mean((1, 2)))
        mean = torch.stack(layers).mean(0) if self.layer == -1 else layers[self.layer]
        entropy: Tensor = torch.special.entr(mean).sum(1)
        return entropy
