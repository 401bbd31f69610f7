"""Attention rescaling: move cross-attention from trigger tokens to the first token (Ren et al. 2024)."""

from __future__ import annotations

import dataclasses

import torch

from copyscope.diffusion.conditioning import Conditioning
from copyscope.diffusion.denoiser import SamplingContext

from . import CROSS_ATTENTION, PROMPTS, SAMPLING, Generators, OnConditioning


@dataclasses.dataclass(frozen=True)
class AttentionRescaling(OnConditioning):
    """Multiply the attention logits of the first token by `factor` in every cross-attention, and mask padding.

    Source: Ren et al. 2024 (ECCV), inference-time mitigation. Predictions given no prompt are left alone, and so is
    what other parts ask of a text of their own. Both arguments off is the sampling as it was.

    Cost: no model call.

    Args:
        factor: of the logits of the first token, before the softmax; 1 is none. The authors have 1.25, MemBench 1.1.
        mask_padding: leaves out what follows the prompt's end token, for models that otherwise attend to it (Stable
            Diffusion; a small_unet leaves it out as it is).
    """

    factor: float = 1.25
    mask_padding: bool = True
    stages = (SAMPLING,)
    needs = (CROSS_ATTENTION, PROMPTS)

    def __post_init__(self) -> None:
        if not 0 <= self.factor < float("inf"):
            raise ValueError("factor must be a number of 0 or more")

    def perturb(
        self, conditioning: Conditioning, rngs: Generators, request: SamplingContext | None = None
    ) -> Conditioning:
        """Set mask and emphasis of the conditioning; see `OnConditioning.perturb`."""
        if request is None:
            return conditioning
        mask, emphasis, tokenizer = conditioning.mask, conditioning.emphasis, request.model.tokenizer
        if self.mask_padding and tokenizer != "":
            assert request.prompts is not None
            longest = mask.shape[1]
            # Truncated as the model's own, start and end included.
            tokens = tokenizer(list(request.prompts), truncation=True, max_length=longest)["input_ids"]
            ends = torch.tensor([len(each) for each in tokens], device=mask.device)
            mask = mask & (torch.arange(longest, device=mask.device) < ends[:, None])
        if self.factor != 1:
            factor = conditioning.text.new_full((len(conditioning),), self.factor)
            emphasis = factor if emphasis is None else emphasis * factor
        return dataclasses.replace(conditioning, mask=mask, emphasis=emphasis)
