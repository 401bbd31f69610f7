"""Mitigations: what makes a model copy less, in training or in sampling, one file each.

A mitigation acts through one of six hooks, its base class. Those that draw at random are given generators and use
nothing else; one that is turned down to nothing (each says how) changes nothing at all; inputs are never changed.

| hook | is given | acts in |
|---|---|---|
| OnCaption | the captions of an image -> the caption of this draw | training, sampling |
| OnConditioning | the conditioning -> another one | training, sampling |
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
    """Base of all mitigations. A subclass derives from one of the hooks.

    Attributes:
        stages: where it may act, TRAINING and SAMPLING.
        needs: keys of NEEDS.
    """

    stages: ClassVar[tuple[str, ...]] = (TRAINING, SAMPLING)
    needs: ClassVar[tuple[str, ...]] = ()
    training_calls: ClassVar[int] = 0
    """Model calls (forward passes of one image) a training step needs for each image beyond its own."""

    def calls(self, steps: int) -> int:
        """Model calls that an image needs beyond those of the sampler, at most.

        A call is a forward pass of one image under one conditioning. The sampler makes one each time that it asks, and
        two with guidance.

        Args:
            steps: how often the sampler asks: once a step, but Heun's twice, save in the last.

        Returns:
            The number.
        """
        return 0

    def check(self) -> None:
        """Check that files which its values name are there, before the work begins; parts that name some override it.

        Raises:
            InputError: they are not.
        """


class OnCaption(Mitigation):
    """Hook that rewrites captions. A part with a field `tokenizer` that is "" gets that of the model."""

    @abc.abstractmethod
    def rewrite(self, captions: Sequence[str], rng: np.random.Generator) -> str:
        """Rewrite the caption of one draw of an image.

        Args:
            captions: of the image, at least one; the first is the one drawn, all others are its alternatives.
            rng: the only source of chance.

        Returns:
            The caption of this draw.
        """

    def __call__(self, captions: str | Sequence[str], seed: int | np.random.Generator) -> str:
        """Rewrite captions in a loop of one's own (`datasets.map`, a collate function).

        Args:
            captions: one, or those of an image, the one drawn first.
            seed: another for each draw, or a generator.

        Returns:
            The caption of this draw.
        """
        rng = seed if isinstance(seed, np.random.Generator) else np.random.default_rng(np.random.SeedSequence(seed))
        return self.rewrite([captions] if isinstance(captions, str) else list(captions) or [""], rng)


class OnConditioning(Mitigation):
    """Hook that changes the conditioning."""

    @property
    def on_null(self) -> bool:
        """Whether it also acts, in sampling, on the conditioning without a prompt."""
        return False

    @abc.abstractmethod
    def perturb(
        self, conditioning: Conditioning, rngs: Generators, request: SamplingContext | None = None
    ) -> Conditioning:
        """Change the conditioning of n images; the input stays as it is.

        Args:
            conditioning: of n images.
            rngs: one an image [n], so that an image depends on its own alone.
            request: in sampling, what is asked of the model; None in training.

        Returns:
            The conditioning to use instead.
        """


class OnLatents(Mitigation):
    """Hook that changes the latents of a training batch, and the conditioning with them."""

    stages = (TRAINING,)

    @abc.abstractmethod
    def fuse(
        self, latents: Tensor, conditioning: Conditioning, rngs: Generators, model: Trainable
    ) -> tuple[Tensor, Conditioning]:
        """Change the latents and conditioning of a training batch; the inputs stay as they are.

        Args:
            latents: [n c h w], without noise.
            conditioning: of the n images.
            rngs: one an image [n].
            model: what made the latents.

        Returns:
            (latents, conditioning) to use instead.
        """


@dataclasses.dataclass(frozen=True, eq=False)
class Batch:
    """A training batch at its loss; nothing requires gradients.

    Args:
        loss: [n], as it counts.
        x: noised latents [n c h w].
        sigma: noise levels [n].
        denoised: the model's estimate of x0 [n c h w].
        null: conditioning without a prompt [n].
        predict: asks the model, without gradients.
    """

    loss: Tensor
    x: Tensor
    sigma: Tensor
    denoised: Tensor
    null: Conditioning
    predict: Predict


class OnLoss(Mitigation):
    """Hook that weighs the losses of a training batch."""

    stages = (TRAINING,)

    @abc.abstractmethod
    def weigh(self, batch: Batch, memory: Tensor) -> Tensor:
        """Weigh the losses of a batch; all zero is allowed.

        Args:
            batch: the batch.
            memory: what `state` gave at the start, then as this left it: changed in place, saved with the checkpoints,
                averaged over processes after each step.

        Returns:
            Weight [n] of each loss, without gradient.
        """

    def state(self) -> Tensor:
        """Memory of the part at the start of training: float64, any length."""
        return torch.zeros(0, dtype=torch.float64)


class OnNoise(Mitigation):
    """Hook that changes the noise sampling starts from."""

    stages = (SAMPLING,)

    @abc.abstractmethod
    def draw(self, noise: Tensor, request: SamplingContext) -> Tensor:
        """Change the starting noise; the input stays as it is.

        Args:
            noise: [n c h w], standard normal or what another part made of it.
            request: what is asked of the model.

        Returns:
            Noise of that shape; an image's depends on its own row alone.
        """


class OnDenoiser(Mitigation):
    """Hook that changes the estimates a sampler goes on with."""

    stages = (SAMPLING,)

    @abc.abstractmethod
    def wrap(self, denoiser: GuidedDenoiser, request: SamplingContext) -> GuidedDenoiser:
        """Wrap a guided denoiser for one sampling of n images; what the wrapper remembers is of these alone.

        Args:
            denoiser: the guided denoiser.
            request: what is asked of the model.

        Returns:
            A guided denoiser around it.
        """


SHELF = Mitigation
