"""Conditioning: text states that a denoiser is conditioned on."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence

import torch
from torch import Tensor


@dataclasses.dataclass(frozen=True, eq=False)
class Conditioning:
    """Text states that a denoiser is conditioned on, of n images.

    Args:
        text: float32 [n t d], states of the text's tokens.
        mask: bool [n t], which tokens count.
        pooled: [n p], one vector a text where the model wants one beside the states (SDXL, SD3); else None.
        emphasis: [n], factor of the attention logits of the first token, for `Model.attending`; None = 1.
    """

    text: Tensor
    mask: Tensor
    pooled: Tensor | None = None
    emphasis: Tensor | None = None

    def __len__(self) -> int:
        return int(self.text.shape[0])

    def take(self, rows: Sequence[int] | Tensor) -> Conditioning:
        """Select rows.

        Args:
            rows: which, in this order.

        Returns:
            Their conditioning.
        """
        index = torch.as_tensor(rows, device=self.text.device)
        return self._each(lambda tensor: tensor[index])

    def to(self, device: torch.device | str) -> Conditioning:
        """Move to another device.

        Args:
            device: where to.

        Returns:
            The same there.
        """
        return self._each(lambda tensor: tensor.to(device))

    @staticmethod
    def join(parts: Sequence[Conditioning]) -> Conditioning:
        """Concatenate; shorter texts are padded with zero states that the mask leaves out.

        Args:
            parts: one after another, at least one.

        Returns:
            The conditioning of all their rows.
        """
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
