"""Dual fusion: mix each image and each text with another one (Li et al. 2023)."""

from __future__ import annotations

import dataclasses
import functools

import torch
from torch import Tensor

from copyscope.data.corpus import Corpus
from copyscope.diffusion.conditioning import Conditioning
from copyscope.diffusion.encoded_cache import FusionImages
from copyscope.diffusion.models import Trainable
from copyscope.diffusion.training.draws import WeightedSampler
from copyscope.errors import InputError

from . import Generators, OnLatents
from .mix_up import mixed, partners


@dataclasses.dataclass(frozen=True)
class DualFusion(OnLatents):
    """Fuse each image and its text with another: (1 - share) * own + share * the other's.

    Source: Li et al. 2023 (arXiv 2309.07254): 0.1 of an image of TinyImageNet, and 0.5 of the text of its class. Both
    shares are from 0 to 1 and useful to 0.5; both 0 is none.

    Cost: no model call; each of `images` is encoded once, and again where memory does not hold all
    (`encoded_cache.KEPT_BYTES`).

    Args:
        share: of the other image's latents.
        text_share: of the other image's text.
        images: a folder, or what else a Corpus opens, of other images with a caption each; the middle square of one is
            taken, one that cannot be read is passed over, one of weight 0 is never drawn. "" = the other is another row
            of the batch (of a process's part of it), and a batch of one row stays as it is.
    """

    share: float = 0.1
    text_share: float = 0.5
    images: str = ""

    def __post_init__(self) -> None:
        if not (0 <= self.share <= 1 and 0 <= self.text_share <= 1):
            raise ValueError("share and text_share must be from 0 to 1")

    def check(self) -> None:
        """Check that `images` can be opened.

        Raises:
            InputError: there are no such images, or none can be drawn.
        """
        if self.images:
            try:
                _ = self._corpus
            except InputError as error:
                raise InputError(f"{self}: {error}") from None

    def fuse(
        self, latents: Tensor, conditioning: Conditioning, rngs: Generators, model: Trainable
    ) -> tuple[Tensor, Conditioning]:
        """Mix latents and text with another image's; see `OnLatents.fuse`."""
        n = len(latents)
        if self.share == self.text_share == 0 or (n < 2 and not self.images):
            return latents, conditioning
        if self.images:
            if str(model) not in self._others:
                self._others[str(model)] = FusionImages(self._corpus, model)
            others, told = self._others[str(model)].draw(rngs)
        else:
            rows = partners(rngs)
            others, told = latents[rows], conditioning.take(rows)
        if self.share:
            latents = (1 - self.share) * latents + self.share * others.to(latents)
        if self.text_share:
            both = Conditioning.join([conditioning, told.to(conditioning.text.device)])
            own, other = both.take(range(n)), both.take(range(n, 2 * n))
            conditioning = mixed(own, other, torch.full((n,), 1 - self.text_share))
        return latents, conditioning

    @functools.cached_property
    def _corpus(self) -> Corpus:
        corpus = Corpus.open(self.images)
        return corpus.take(WeightedSampler.from_corpus(corpus).rows.tolist())

    @functools.cached_property
    def _others(self) -> dict[str, FusionImages]:
        return {}
