"""Mitigations: what makes a model copy less, in training or in sampling, one file each.

A mitigation acts through one of six doors, its base class. Those that draw at random are given generators and use
nothing else; one that is turned down to nothing (each says how) changes nothing at all; inputs are never changed.

| door | is given | acts in |
|---|---|---|
| OnCaption | the captions of an image -> the caption of this draw | training, sampling |
| OnConditioning | what the model is told -> what it is told instead | training, sampling |
| OnLatents | latents and conditioning of a batch -> others | training |
| OnLoss | the losses of a batch -> their weights | training |
| OnNoise | the noise sampling starts from -> other noise | sampling |
| OnDenoiser | a guided denoiser -> one around it | sampling |

Changes to the rows of a training set (near-duplicates removed or down-weighted, captions added) are `curate`'s, and
recipes of training have their own fields: `min_snr`, `stop_at_replication`, `steps`.
"""

from __future__ import annotations

import abc
import dataclasses
from collections.abc import Sequence
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor

from copyscope.diffusion.conditioning import Conditioning
from copyscope.diffusion.denoiser import GuidedDenoiser, Predict, SamplingContext
from copyscope.diffusion.models import Trainable
from copyscope.parts import Part

TRAINING, SAMPLING = "training", "sampling"
NULL, GUIDANCE, CROSS_ATTENTION, PROMPTS, NEAREST = "null", "guidance", "cross-attention", "prompts", "nearest"
#: What a part may need -> how it is said to whoever lacks it: (what is missing, what to do).
NEEDS = {
    NULL: ("a prediction without a prompt, which this model does not make", "Use another one"),
    GUIDANCE: ("classifier-free guidance, and there is none", "Set guidance above 1"),
    CROSS_ATTENTION: ("cross-attention to the text, which this model does not have", "Use another one"),
    PROMPTS: ("prompts as text, and was given embeddings", "Give the prompt itself"),
    NEAREST: ("to be told the nearest training image", "Give `nearest`, a function that finds it"),
}
Generators = Sequence[np.random.Generator]


class Mitigation(Part, abc.ABC):
    """Base of the doors. stages: where it may act. needs: keys of NEEDS."""

    stages: ClassVar[tuple[str, ...]] = (TRAINING, SAMPLING)
    needs: ClassVar[tuple[str, ...]] = ()
    training_calls: ClassVar[int] = 0
    """Model calls (forward passes of one image) a training step needs for each image beyond its own."""

    def calls(self, steps: int) -> int:
        """Model calls (forward passes of one image under one conditioning, at most) an image needs beyond those of the
        sampler, which are one each time that it asks, and two with guidance. steps: how often it asks: once a step, but
        Heun's twice, save in the last."""
        return 0

    def check(self) -> None:
        """Raises InputError where what its values name is not there; asked before the work begins."""


class OnCaption(Mitigation):
    """Gives another caption. A part with a field `tokenizer` that is "" is given that of the model."""

    @abc.abstractmethod
    def rewrite(self, captions: Sequence[str], rng: np.random.Generator) -> str:
        """captions: of one image, one at least; the first is the one drawn, all others are its alternatives."""

    def __call__(self, captions: str | Sequence[str], seed: int | np.random.Generator) -> str:
        """The same in a loop of one's own (`datasets.map`, a collate function). seed: another for each draw."""
        rng = seed if isinstance(seed, np.random.Generator) else np.random.default_rng(np.random.SeedSequence(seed))
        return self.rewrite([captions] if isinstance(captions, str) else list(captions) or [""], rng)


class OnConditioning(Mitigation):
    """Gives another conditioning."""

    @property
    def on_null(self) -> bool:
        """Whether it also acts, in sampling, on what the model is told when told nothing."""
        return False

    @abc.abstractmethod
    def perturb(
        self, conditioning: Conditioning, rngs: Generators, request: SamplingContext | None = None
    ) -> Conditioning:
        """conditioning: of n images. rngs: one an image [n], so that an image depends on its own alone. request: in
        sampling, what is asked; None in training."""


class OnLatents(Mitigation):
    """Gives a training batch other latents, and a conditioning that fits them."""

    stages = (TRAINING,)

    @abc.abstractmethod
    def fuse(
        self, latents: Tensor, conditioning: Conditioning, rngs: Generators, model: Trainable
    ) -> tuple[Tensor, Conditioning]:
        """latents: [n c h w], without noise. rngs: one an image [n]. model: what made them."""


@dataclasses.dataclass(frozen=True, eq=False)
class Batch:
    """A batch at its loss: losses [n] as they count, model's estimate `denoised` of x0 from x [n c h w] at sigma [n];
    nothing requires gradients. predict: asks the model, without gradients. null: [n]."""

    loss: Tensor
    x: Tensor
    sigma: Tensor
    denoised: Tensor
    null: Conditioning
    predict: Predict


class OnLoss(Mitigation):
    """Weighs the losses of a training batch."""

    stages = (TRAINING,)

    @abc.abstractmethod
    def weigh(self, batch: Batch, memory: Tensor) -> Tensor:
        """Weight [n] of each loss, without gradient; all zero is allowed. memory: what `state` gave at the start,
        then as this left it: changed in place, saved with the checkpoints, averaged over processes after each step."""

    def state(self) -> Tensor:
        """What the part remembers from step to step, as it is at the start: float64, any length."""
        return torch.zeros(0, dtype=torch.float64)


class OnNoise(Mitigation):
    """Gives sampling another start."""

    stages = (SAMPLING,)

    @abc.abstractmethod
    def draw(self, noise: Tensor, request: SamplingContext) -> Tensor:
        """noise: [n c h w], standard normal or what another part made of it. Gives noise of that shape; an image's
        depends on its own row alone."""


class OnDenoiser(Mitigation):
    """Changes what the sampler is answered."""

    stages = (SAMPLING,)

    @abc.abstractmethod
    def wrap(self, denoiser: GuidedDenoiser, request: SamplingContext) -> GuidedDenoiser:
        """A guided denoiser around `denoiser`, for one sampling of n images: what it remembers is of these alone."""


SHELF = Mitigation
