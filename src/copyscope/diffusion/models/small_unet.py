"""A small text-conditional U-Net that trains from nothing on two cores, and copies a few hundred images in minutes."""

from __future__ import annotations

import dataclasses
import functools
import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor, nn

from copyscope.diffusion.conditioning import Conditioning
from copyscope.diffusion.text.encoder import TextEncoder
from copyscope.documents import read_json
from copyscope.errors import InputError

from . import Image, Trainable

# The network sees time = sigma / (1 + sigma) in (0, 1), the mixing of rectified flow (Liu et al. 2023).
LOWEST_TIME = 0.1  # Where the loss stops growing: below, what is left to learn is pixel noise.
MOSTLY_NOISE = 1.5  # Mean of log sigma in training; what an image is is decided there.
# Deviation of an 8 x 8 cosine coefficient of frequency f in channels of luma and of two colour differences, from
# pictures in -1..1; measured on 782 emoji, and near the 1/f law of natural images.
FALL, CHANNELS = 2.6, (13.0, 6.5, 3.6)
MAP_CHANNELS = 32


@dataclasses.dataclass(frozen=True)
class SmallUNet(Trainable):
    """Small U-Net on cosine coefficients of 8 x 8 blocks, conditioned by a frozen MiniLM; predicts x0.

    The text acts by cross-attention to the token states and, by the mean of these, on every layer and every place: a
    short path from caption to picture, without which copying takes far more steps.

    Args:
        size: pixels a side, a multiple of 16.
        components: coefficients kept of the 192 of a block (64: RMSE 0.018 of the range).
        channels: of its levels.
        tokens: of a caption, start and end included; longer ones are cut.
        text: folder of another text encoder; "" = the packaged MiniLM-L6.
        seed: of the first weights, which `train` sets.
        weights: folder that `save` wrote; "" = untrained.
    """

    weight_files: ClassVar[tuple[str, ...]] = ("weights",)

    size: int = 64
    components: int = 64
    channels: tuple[int, ...] = (96, 128)
    tokens: int = 16
    text: str = ""
    seed: int = 0
    weights: str = ""

    def __post_init__(self) -> None:
        if self.size < 16 or self.size % 16 or not 1 <= self.components <= 192:
            raise ValueError("size must be a multiple of 16, and components 1 to 192")
        if not self.channels or any(each % 32 for each in self.channels):
            raise ValueError("channels must be multiples of 32")

    @property
    def shape(self) -> tuple[int, int, int]:
        """(components, size / 8, size / 8)."""
        return self.components, self.size // 8, self.size // 8

    @property
    def schedule(self) -> str:
        """That of flows."""
        return "flow"

    @property
    def image_size(self) -> int:
        """As `size`."""
        return self.size

    @property
    def tokenizer(self) -> Any:
        """Tokenizer of the text encoder."""
        return self._encoder.tokenizer

    @property
    def cross_attentions(self) -> list[nn.Module]:
        """Cross-attention layers of the U-Net."""
        return [part for name, part in self.network.named_modules() if name.endswith(".attn2")]

    def __call__(self, x: Tensor, sigma: Tensor, conditioning: Conditioning) -> Tensor:
        """Denoise by the U-Net; see `Model.__call__`."""
        time = sigma / (1 + sigma)
        mixed = (x / (1 + sigma).view(-1, 1, 1, 1)).contiguous(memory_format=torch.channels_last)
        denoised: Tensor = self.network(mixed, time, conditioning.text, conditioning.mask)
        return denoised.float()

    def condition(self, captions: Sequence[str]) -> Conditioning:
        """Encode captions by MiniLM; see `Model.condition`."""
        return self._encoder.encode(captions)

    def encode(self, pictures: Sequence[Image]) -> Tensor:
        """Cosine coefficients of the pixels; see `Trainable.encode`."""
        pixels = torch.from_numpy(np.stack(pictures)).float() / 127.5 - 1
        side = self.size // 8
        blocks = pixels.view(-1, side, 8, side, 8, 3).permute(0, 1, 3, 2, 4, 5).reshape(-1, side, side, 192)
        basis, scale = _cosines(self.components)
        return ((blocks @ basis.T) / scale).permute(0, 3, 1, 2).contiguous()

    def decode(self, latents: Tensor) -> list[Image]:
        """Pixels of cosine coefficients; see `Model.decode`."""
        basis, scale = _cosines(self.components)
        side = self.size // 8
        blocks = (latents.detach().permute(0, 2, 3, 1) * scale) @ basis
        pixels = blocks.view(-1, side, side, 8, 8, 3).permute(0, 1, 3, 2, 4, 5).reshape(-1, self.size, self.size, 3)
        return list(((pixels + 1) * 127.5).round().clamp(0, 255).to(torch.uint8).numpy())

    def noise_levels(self, uniform: Tensor) -> Tensor:
        """Logit-normal times (Esser et al. 2024): log sigma is normal with mean MOSTLY_NOISE and deviation 1."""
        low, high = self.sigmas
        return torch.exp(MOSTLY_NOISE + torch.special.ndtri(uniform)).clamp(low, high)

    def loss_weight(self, sigma: Tensor) -> Tensor:
        """1 / time^2: the loss of the velocity that a prediction of x0 implies, capped at low noise (Li & He 2025)."""
        return (sigma / (1 + sigma)).clamp(min=LOWEST_TIME) ** -2

    @functools.cached_property
    def network(self) -> nn.Module:
        """The U-Net, loaded or drawn by the seed on first use."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self.seed)
            network = _Network(self._unet(), self._encoder.dim, self.shape)
        if self.weights:
            network.load(Path(self.weights))
        return network.eval().to(memory_format=torch.channels_last)  # type: ignore[call-overload, no-any-return]

    def seeded(self, seed: int) -> SmallUNet:
        """The same with another seed."""
        return dataclasses.replace(self, seed=seed)

    def save(self, folder: Path) -> None:
        """Write `unet/` (a diffusers UNet2DConditionModel), `text_map.safetensors` and `small_unet.json`."""
        folder.mkdir(parents=True, exist_ok=True)
        assert isinstance(self.network, _Network)
        self.network.save(folder)
        (folder / "small_unet.json").write_text(json.dumps(self._built_of(), indent=1) + "\n", encoding="utf-8")

    def with_weights(self, folder: Path) -> SmallUNet:
        """The same with saved weights; see `Trainable.with_weights`.

        Raises:
            InputError: the folder holds none, or those of another small_unet.
        """
        try:
            saved = read_json(folder / "small_unet.json")
        except InputError:
            raise InputError(f"{folder} holds no small_unet.\nName the folder `model` of a finished run") from None
        if saved != self._built_of():
            raise InputError(f"{folder} holds a small_unet of other measures: {saved}.\nAsk for these in the spec")
        return dataclasses.replace(self, weights=str(folder))

    def _built_of(self) -> dict[str, Any]:
        values = {name: getattr(self, name) for name in ("size", "components", "channels", "tokens", "text")}
        return {name: list(value) if isinstance(value, tuple) else value for name, value in values.items()}

    @functools.cached_property
    def _encoder(self) -> TextEncoder:
        return TextEncoder(self.text, self.tokens)

    def _unet(self) -> Any:
        from diffusers import UNet2DConditionModel

        attending = len(self.channels) - 1
        return UNet2DConditionModel(  # type: ignore[no-untyped-call]
            sample_size=self.shape[1],
            in_channels=self.components + MAP_CHANNELS,
            out_channels=self.components,
            block_out_channels=self.channels,
            layers_per_block=1,
            down_block_types=("DownBlock2D",) + ("CrossAttnDownBlock2D",) * attending,
            up_block_types=("CrossAttnUpBlock2D",) * attending + ("UpBlock2D",),
            cross_attention_dim=self._encoder.dim,
            attention_head_dim=32,
            norm_num_groups=16,
            class_embed_type="projection",
            projection_class_embeddings_input_dim=self._encoder.dim,
        )


class _Network(nn.Module):
    """The U-Net, and the map from the mean token state to MAP_CHANNELS numbers at every place."""

    def __init__(self, unet: Any, dim: int, shape: tuple[int, int, int]) -> None:
        super().__init__()
        self.unet = unet
        self.places = shape[1:]
        self.text_map = nn.Sequential(
            nn.Linear(dim, 256), nn.SiLU(), nn.Linear(256, MAP_CHANNELS * math.prod(self.places))
        )

    def forward(self, x: Tensor, time: Tensor, text: Tensor, mask: Tensor) -> Tensor:
        counted = mask.to(text.dtype)
        mean = (text * counted[..., None]).sum(1) / counted.sum(1, keepdim=True).clamp(min=1)
        places = self.text_map(mean).view(-1, MAP_CHANNELS, *self.places)
        told = torch.cat([x, places], 1).contiguous(memory_format=torch.channels_last)
        found = self.unet(told, time * 1000, text, class_labels=mean, encoder_attention_mask=counted)
        return found.sample  # type: ignore[no-any-return]

    def enable_gradient_checkpointing(self) -> None:
        """Trades a second forward pass for memory, as `TrainRecipe.gradient_checkpointing` asks."""
        self.unet.enable_gradient_checkpointing()

    def save(self, folder: Path) -> None:
        from safetensors.torch import save_file

        self.unet.save_pretrained(folder / "unet", safe_serialization=True)
        save_file({name: value.contiguous() for name, value in self.text_map.state_dict().items()},
                  folder / "text_map.safetensors")  # fmt: skip

    def load(self, folder: Path) -> None:
        from safetensors import SafetensorError
        from safetensors.torch import load_file

        try:
            self.unet.load_state_dict(load_file(folder / "unet" / "diffusion_pytorch_model.safetensors"))
            self.text_map.load_state_dict(load_file(folder / "text_map.safetensors"))
        except (OSError, RuntimeError, SafetensorError) as error:
            raise InputError(
                f"The weights in {folder} cannot be loaded: {str(error).splitlines()[0]}.\nTrain the model again"
            ) from None


@functools.cache
def _cosines(components: int) -> tuple[Tensor, Tensor]:
    """Rows of an orthonormal basis of 8 x 8 x 3 blocks [components 192], and the latent's unit in each [components].

    The cosine transform of JPEG (type II) in one luma and two colour-difference channels, lowest frequencies first by
    the expected deviation. The unit is the square root of that deviation: noise of the model is spread over the
    frequencies as pictures are, half-way to white, so that what is left of it is smooth and not pixel noise.
    """
    k = torch.arange(8.0)
    cosine = torch.cos(math.pi * (k[None] + 0.5) * k[:, None] / 8) * 0.5
    cosine[0] /= math.sqrt(2)
    colours = torch.tensor([[1.0, 1, 1], [1, 0, -1], [1, -2, 1]])
    colours /= colours.norm(dim=1, keepdim=True)
    basis = torch.einsum("uy,vx,oc->uvoyxc", cosine, cosine, colours).reshape(192, 192)
    fall = (1 + torch.hypot(k[:, None], k[None])) ** -FALL
    deviation = (fall[..., None] * torch.tensor(CHANNELS)).reshape(192)
    order = deviation.argsort(descending=True, stable=True)[:components]
    unit = deviation[order].sqrt()
    return basis[order].contiguous(), unit * (deviation[order] / unit).square().mean().sqrt()
