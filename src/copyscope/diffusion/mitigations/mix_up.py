"""Mix-up of the text states of two images of a batch (in the code of Somepalli et al. 2023, not in their paper)."""

from __future__ import annotations

import dataclasses

import torch
from torch import Tensor

from copyscope.diffusion.conditioning import Conditioning
from copyscope.diffusion.denoiser import SamplingContext

from . import TRAINING, Generators, OnConditioning
from ._checks import check_probability


@dataclasses.dataclass(frozen=True)
class MixUp(OnConditioning):
    """Mix the text states of two rows: lam * own + (1 - lam) * partner's, lam ~ Beta(alpha, 1); images stay.

    Source: `mixup_noise_lam` in the code of Somepalli et al. 2023, which they do not report on. There one lam is drawn
    a batch, here one a row, and the partner, another row of the batch, by that row's generator too. A batch of one row
    stays as it is. With several processes or accumulations the partner is of the same part of the batch, so that their
    number matters.

    Cost: no model call.

    Args:
        probability: share of rows that are mixed; 0 is none.
        alpha: above 0; the mean of lam is alpha / (alpha + 1); useful from 1 (any share) to 10 (own words nearly
            alone).
    """

    probability: float = 1.0
    alpha: float = 4.0
    stages = (TRAINING,)

    def __post_init__(self) -> None:
        check_probability(self.probability)
        if not 0 < self.alpha < float("inf"):
            raise ValueError("alpha must be a number above 0")

    def perturb(
        self, conditioning: Conditioning, rngs: Generators, request: SamplingContext | None = None
    ) -> Conditioning:
        """Mix the text states of rows; see `OnConditioning.perturb`."""
        if self.probability == 0 or len(conditioning) < 2:
            return conditioning
        lam = [rng.beta(self.alpha, 1) if rng.random() < self.probability else 1.0 for rng in rngs]
        return mixed(conditioning, conditioning.take(partners(rngs)), torch.tensor(lam))


def partners(rngs: Generators) -> list[int]:
    """Draw for each row [n] another row, each equally likely. Two rows at least."""
    drawn = [int(rng.integers(len(rngs) - 1)) for rng in rngs]
    return [other + (other >= row) for row, other in enumerate(drawn)]


def mixed(own: Conditioning, other: Conditioning, share: Tensor) -> Conditioning:
    """Mix conditioning row by row: share * own + (1 - share) * other's; rows of share 1 are own alone.

    A token counts where it does in either; in the one where it does not, its state is taken for 0.

    Args:
        own: of n rows.
        other: of n rows and as many tokens.
        share: [n].
    """
    share = share.to(own.text).view(-1, 1, 1)
    mask = own.mask | (other.mask & (share < 1)[..., 0])
    text = share * own.text * own.mask[..., None] + (1 - share) * other.text * other.mask[..., None]
    text = torch.where((mask & (share < 1)[..., 0])[..., None], text, own.text)
    if own.pooled is None or other.pooled is None:
        return Conditioning(text, mask, own.pooled)
    return Conditioning(text, mask, share[..., 0] * own.pooled + (1 - share[..., 0]) * other.pooled)
