"""Conditioning: text states that a denoiser is conditioned on."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence

import torch
from torch import Tensor


@dataclasses.dataclass(frozen=True, eq=False)
class Conditioning:
    """What a model is told of n images.

    text: states of the text's tokens, float32 [n t d]. mask: which tokens count, bool [n t]. pooled: one vector a text
    [n p] where the model wants one beside the states (SDXL, SD3), else None. emphasis: what the attention logits of the
    first token are multiplied by [n], None is 1; `Model.attending` sees to it.
    """

    text: Tensor
    mask: Tensor
    pooled: Tensor | None = None
    emphasis: Tensor | None = None

    def __len__(self) -> int:
        return int(self.text.shape[0])

    def take(self, rows: Sequence[int] | Tensor) -> Conditioning:
        """The conditioning of these rows, in this order."""
        index = torch.as_tensor(rows, device=self.text.device)
        return self._each(lambda tensor: tensor[index])

    def to(self, device: torch.device | str) -> Conditioning:
        """The same on another device."""
        return self._each(lambda tensor: tensor.to(device))

    @staticmethod
    def join(parts: Sequence[Conditioning]) -> Conditioning:
        """One after another; shorter texts are padded with zero states that the mask leaves out."""
        longest = max(part.text.shape[1] for part in parts)
        text = [torch.nn.functional.pad(part.text, (0, 0, 0, longest - part.text.shape[1])) for part in parts]
        mask = [torch.nn.functional.pad(part.mask, (0, longest - part.mask.shape[1])) for part in parts]
        pooled = [part.pooled for part in parts if part.pooled is not None]
        emphasis = [part.text.new_ones(len(part)) if part.emphasis is None else part.emphasis for part in parts]
        emphasised = any(part.emphasis is not None for part in parts)
        return Conditioning(
            torch.cat(text),
            torch.cat(mask),
            torch.cat(pooled) if pooled else None,
            torch.cat(emphasis) if emphasised else None,
        )

    def _each(self, change: Callable[[Tensor], Tensor]) -> Conditioning:
        pooled, emphasis = (None if each is None else change(each) for each in (self.pooled, self.emphasis))
        return Conditioning(change(self.text), change(self.mask), pooled, emphasis)
