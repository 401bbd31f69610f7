"""Models: what makes images from noise and a text, one file a model.

Every model is a denoiser (see `denoiser.py`) that also knows how to turn captions into conditioning and latents into
pictures; one that can be trained knows its network, how pictures become latents, and at which noise levels it learns.
Constructors only store; weights load on first use, and a model given no weights starts from its seed.
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
        """Lowest and highest noise level the model is good for; sampling starts at the highest."""
        return 0.02, 80.0

    @property
    def schedule(self) -> str:
        """How sampling spaces its noise levels unless told otherwise, as in `sampling.noise_levels`."""
        return "karras"

    @property
    def tokenizer(self) -> Any:
        """What cuts its captions into tokens, of transformers; "" where it has none."""
        return ""

    @property
    def has_null(self) -> bool:
        """Whether it can be told nothing, which guidance needs."""
        return True

    @property
    def cross_attentions(self) -> list[torch.nn.Module]:
        """Its layers that attend from places to text tokens, each with a linear `to_k` of the tokens; none if []."""
        return []

    @contextlib.contextmanager
    def attending(self, emphasis: Tensor | None) -> Iterator[None]:
        """While it lasts, `cross_attentions` multiply the logits of the first token by these [n], for n rows asked of
        it in this thread. A logit is linear in the key, so the token's key is multiplied, and its value is not."""
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
        """Where the weights are."""
        return torch.device("cpu")

    @abc.abstractmethod
    def __call__(self, x: Tensor, sigma: Tensor, conditioning: Conditioning) -> Tensor:
        """D(x, sigma, conditioning) -> denoised, as in `denoiser.Denoiser`."""

    @abc.abstractmethod
    def condition(self, captions: Sequence[str]) -> Conditioning:
        """What the model is told by these captions [n]; "" is the null caption of guidance."""

    @abc.abstractmethod
    def decode(self, latents: Tensor) -> list[Image]:
        """Pictures, uint8 [h w 3] each, of latents [n c h w]."""


class Trainable(Model, abc.ABC):
    """A model that `train` can train."""

    @property
    @abc.abstractmethod
    def network(self) -> torch.nn.Module:
        """What is trained: its parameters with requires_grad are, and only those are checkpointed. `__call__` uses it.

        Frozen parts (text encoder, VAE, the base under a LoRA) are not in it or do not require gradients.
        """

    @property
    @abc.abstractmethod
    def image_size(self) -> int:
        """Side in pixels of the square pictures it learns and makes."""

    @abc.abstractmethod
    def encode(self, pictures: Sequence[Image]) -> Tensor:
        """Latents [n c h w] of pictures, uint8 [image_size image_size 3] each. Deterministic."""

    @abc.abstractmethod
    def noise_levels(self, uniform: Tensor) -> Tensor:
        """Training noise levels sigma [n] from numbers uniform in (0, 1) [n]: the quantile function of the model's own
        distribution of noise levels."""

    @abc.abstractmethod
    def loss_weight(self, sigma: Tensor) -> Tensor:
        """Weight [n] of the squared error of D at these noise levels: loss = weight * mean((D - x0)^2).

        1 / sigma^2 is the loss of epsilon-prediction, 1 + 1 / sigma^2 that of v-prediction.
        """

    def seeded(self, seed: int) -> Trainable:
        """The model whose first weights are drawn by `seed`, as `train` wants it; itself, if it draws none."""
        return self

    @abc.abstractmethod
    def save(self, folder: Path) -> None:
        """Writes the model as it is now into a folder that others can load (diffusers layout, safetensors)."""

    @abc.abstractmethod
    def with_weights(self, folder: Path) -> Trainable:
        """The same model with the weights that `save` wrote into `folder`, loaded on first use."""


SHELF = Model
