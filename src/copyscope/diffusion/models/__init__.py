"""Models: what makes images from noise and a text, one file a model.

Every model is a denoiser (see `diffusion.denoiser`) that also knows how to turn captions into conditioning and latents
into pictures; one that can be trained knows its network, how pictures become latents, and at which noise levels it
learns. Constructors only store; weights load on first use, and a model given no weights starts from its seed.
"""

from __future__ import annotations

import abc
import contextlib
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from copyscope.diffusion.conditioning import Conditioning
from copyscope.parts import Part

Image = NDArray[np.uint8]


class Model(Part, abc.ABC):
    """A denoiser with its text encoder and its decoder."""

    @property
    @abc.abstractmethod
    def shape(self) -> tuple[int, int, int]:
        """Shape (c, h, w) of the latents of one image."""

    @property
    def sigmas(self) -> tuple[float, float]:
        """Lowest and highest noise level that the model is good for; sampling starts at the highest."""
        return 0.02, 80.0

    @property
    def schedule(self) -> str:
        """Default spacing of the noise levels in sampling, as in `sampling.noise_levels`."""
        return "karras"

    @property
    def tokenizer(self) -> Any:
        """Tokenizer of its captions, of transformers; "" where it has none."""
        return ""

    @property
    def has_null(self) -> bool:
        """Whether it can be conditioned on no prompt, which guidance needs."""
        return True

    @property
    def cross_attentions(self) -> list[torch.nn.Module]:
        """Layers that attend from places to text tokens, each with a linear `to_k` of the tokens; [] = none."""
        return []

    @contextlib.contextmanager
    def attending(self, emphasis: Tensor | None) -> Iterator[None]:
        """Rescale the attention to the first token while it lasts, in calls of the model by this thread.

        A logit is linear in the key, so the token's key is multiplied, and its value is not.

        Args:
            emphasis: factor of the first token's logits in `cross_attentions`, for n rows [n]; None = 1.

        Yields:
            Nothing.
        """
        thread = threading.get_ident()

        def stressed(layer: torch.nn.Module, given: Any, keys: Tensor) -> Tensor:
            if emphasis is None or threading.get_ident() != thread:
                return keys
            first = keys[:, :1] * emphasis.to(keys.dtype)[:, None, None]
            return torch.cat([first, keys[:, 1:]], 1)

        with contextlib.ExitStack() as hooks:
            for layer in self.cross_attentions if emphasis is not None else []:
                to_k: Any = layer.to_k
                hooks.callback(to_k.register_forward_hook(stressed).remove)
            yield

    @property
    def device(self) -> torch.device:
        """Device of the weights."""
        return torch.device("cpu")

    @abc.abstractmethod
    def __call__(self, x: Tensor, sigma: Tensor, conditioning: Conditioning) -> Tensor:
        """Denoise: D(x, sigma, conditioning), as in `denoiser.Denoiser`.

        Args:
            x: noised latents, float32 [n c h w].
            sigma: noise levels, above 0 [n].
            conditioning: of the n images.

        Returns:
            Estimate of x0, [n c h w]; a row's depends on that row alone.
        """

    @abc.abstractmethod
    def condition(self, captions: Sequence[str]) -> Conditioning:
        """Encode captions.

        Args:
            captions: [n]; "" is the null caption of guidance.

        Returns:
            Conditioning of n images; a row depends on its caption alone.
        """

    @abc.abstractmethod
    def decode(self, latents: Tensor) -> list[Image]:
        """Decode latents to pictures.

        Args:
            latents: [n c h w].

        Returns:
            n pictures, uint8 [h w 3] each.
        """


class Trainable(Model, abc.ABC):
    """A model that `train` can train."""

    @property
    @abc.abstractmethod
    def network(self) -> torch.nn.Module:
        """Network that is trained: those parameters that require gradients are, and only they are checkpointed.

        `__call__` uses it. Frozen parts (text encoder, VAE, the base under a LoRA) are not in it or do not require
        gradients.
        """

    @property
    @abc.abstractmethod
    def image_size(self) -> int:
        """Side in pixels of the square pictures it learns and makes."""

    @abc.abstractmethod
    def encode(self, pictures: Sequence[Image]) -> Tensor:
        """Encode pictures to latents, deterministically.

        Args:
            pictures: uint8 [image_size image_size 3] each.

        Returns:
            Latents [n c h w].
        """

    @abc.abstractmethod
    def noise_levels(self, uniform: Tensor) -> Tensor:
        """Training noise levels: the quantile function of the model's own distribution of noise levels.

        Args:
            uniform: numbers uniform in (0, 1) [n].

        Returns:
            sigma [n].
        """

    @abc.abstractmethod
    def loss_weight(self, sigma: Tensor) -> Tensor:
        """Weight of the squared error of D: loss = weight * mean((D - x0)^2).

        1 / sigma^2 is the loss of epsilon-prediction, 1 + 1 / sigma^2 that of v-prediction.

        Args:
            sigma: noise levels [n].

        Returns:
            Weights [n].
        """

    def seeded(self, seed: int) -> Trainable:
        """The model with first weights drawn by a seed, as `train` wants it.

        Args:
            seed: 0 or more.

        Returns:
            The model; itself, if it draws no weights.
        """
        return self

    @abc.abstractmethod
    def save(self, folder: Path) -> None:
        """Write the model as it is now into a folder that others can load (diffusers layout, safetensors).

        Args:
            folder: made if it is not there.
        """

    @abc.abstractmethod
    def with_weights(self, folder: Path) -> Trainable:
        """The same model with saved weights, loaded on first use.

        Args:
            folder: where `save` wrote them.

        Returns:
            The model.
        """


SHELF = Model
