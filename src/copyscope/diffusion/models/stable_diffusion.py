"""Stable Diffusion 1, 2, XL and 3, and Flux, from a local diffusers folder: whole fine-tuning or a LoRA."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from copyscope.diffusion.conditioning import Conditioning
from copyscope.errors import InputError

from . import Image, Trainable, _pipelines
from ._schedules import Flow, VariancePreserving

PRECISIONS = ("float32", "bfloat16", "float16")


@dataclasses.dataclass(frozen=True)
class StableDiffusion(Trainable):
    """Stable Diffusion 1, 2, XL, 3 or Flux from a local diffusers folder; text encoders and VAE stay frozen.

    Args:
        path: folder of a pipeline of the kinds in `_pipelines.NETWORKS`.
        lora_rank: 0 trains the whole network, more a LoRA of that rank on the attention projections.
        lora_alpha: scale of the LoRA times its rank; 0 = the rank.
        resolution: pixels a side; 0 = the network's own.
        on: device; "auto" = a GPU if there is one.
        precision: of the weights; a LoRA itself and the VAE are float32 always, and whole fine-tuning should be.
        embedded_guidance: scale that a guidance-distilled network (Flux dev) is conditioned on.
        seed: of a new LoRA, which `train` sets.
        weights: folder that `save` wrote; "" = those of the pipeline.
    """

    weight_files: ClassVar[tuple[str, ...]] = ("weights",)

    path: str
    lora_rank: int = 0
    lora_alpha: int = 0
    resolution: int = 0
    on: str = "auto"
    precision: str = "float32"
    embedded_guidance: float = 3.5
    seed: int = 0
    weights: str = ""

    def __post_init__(self) -> None:
        if min(self.lora_rank, self.lora_alpha, self.resolution) < 0:
            raise ValueError("lora_rank, lora_alpha and resolution must be 0 or more")
        if self.precision not in PRECISIONS:
            raise ValueError(f"precision must be one of {', '.join(PRECISIONS)}, not {self.precision!r}")

    @classmethod
    def around(
        cls, pipeline: Any, device: torch.device | str, shape: tuple[int, int, int] | None = None
    ) -> StableDiffusion:
        """Model of a pipeline that is loaded, which stays as it is: for use, not for training.

        Args:
            pipeline: of diffusers.
            device: where it computes.
            shape: of the latents of its images; None = as the network has them.
        """
        network = getattr(pipeline, _pipelines.NETWORKS[_pipelines.family(pipeline)])
        kept_in = str(network.dtype).removeprefix("torch.")
        # Weights that are stored in fewer bits are computed with in one of these.
        precision = kept_in if kept_in in PRECISIONS else "bfloat16"
        model = cls(pipeline.name_or_path or "", on=str(device), precision=precision)
        vars(model)["_pipeline"] = pipeline
        if shape:
            vars(model)["shape"] = shape
        return model

    @property
    def image_size(self) -> int:
        """Pixels a side."""
        return self._shrink * self.shape[1]

    @functools.cached_property
    def shape(self) -> tuple[int, int, int]:
        """Shape of the latents at this resolution.

        Raises:
            InputError: the resolution does not fit the network.
        """
        config = getattr(self._pipeline, self._name).config
        # Flux states no size of its own; its pipeline takes 128.
        size = self.resolution or config.get("sample_size", 128) * self._shrink
        unit = self._shrink * (1 if self._name == "unet" else 2)
        if size % unit:
            raise InputError(f"A resolution of {size} does not fit {self.path}.\nTake a multiple of {unit}")
        return self._pipeline.vae.config.latent_channels, size // self._shrink, size // self._shrink

    @property
    def sigmas(self) -> tuple[float, float]:
        """Noise levels of the scheduler."""
        return self._schedule.sigmas

    @property
    def schedule(self) -> str:
        """Karras for U-Nets, flow for transformers."""
        return "karras" if self._name == "unet" else "flow"

    @functools.cached_property
    def device(self) -> torch.device:
        """Device that `on` names."""
        if self.on != "auto":
            return torch.device(self.on)
        if torch.cuda.is_available():
            return torch.device("cuda", torch.cuda.current_device())
        return torch.device("mps" if torch.backends.mps.is_available() else "cpu")

    @property
    def tokenizer(self) -> Any:
        """Tokenizer of the pipeline."""
        return self._pipeline.tokenizer

    @property
    def has_null(self) -> bool:
        """False for Flux, whose guidance is distilled into the network."""
        return _pipelines.family(self._pipeline) != "FluxPipeline"

    @property
    def cross_attentions(self) -> list[nn.Module]:
        """Cross-attention layers of a U-Net; transformers attend to text and picture together."""
        return [part for name, part in self.network.named_modules() if name.endswith(".attn2")]

    def __call__(self, x: Tensor, sigma: Tensor, conditioning: Conditioning) -> Tensor:
        """Denoise by the pipeline's network; see `Model.__call__`."""
        schedule, level = self._schedule, sigma.view(-1, 1, 1, 1)
        found = self._predict(schedule.scaled(x, level), schedule.time(sigma), conditioning)
        return schedule.denoised(x, level, found.float())

    def condition(self, captions: Sequence[str]) -> Conditioning:
        """Encode captions as the pipeline's own `encode_prompt`, one at a time, so that a caption depends on no other.

        The pipeline attends to padding too, hence the mask leaves nothing out. A U-Net keeps to a mask that does;
        transformers do not.
        """
        each = {caption: at for at, caption in enumerate(dict.fromkeys(captions or [""]))}
        found = [_pipelines.encode_text(self._pipeline, caption, self.device) for caption in each]
        text = torch.cat([states for states, _ in found])
        pooled = [vector for _, vector in found if vector is not None]
        mask = torch.ones(text.shape[:2], dtype=torch.bool, device=text.device)
        unique = Conditioning(text, mask, torch.cat(pooled) if pooled else None)
        return unique.take(torch.tensor([each[caption] for caption in captions], dtype=torch.long, device=text.device))

    @torch.no_grad()
    def encode(self, pictures: Sequence[Image]) -> Tensor:
        """The mode of the VAE's posterior, in the network's units.

        Somepalli et al. 2023 draw from the posterior; its deviation is far below that of the latents.
        """
        shift, scale = self._units
        latents = [torch.zeros(0, *self.shape, device=self.device)]
        for picture in pictures:
            pixels = torch.tensor(picture, device=self.device).permute(2, 0, 1)[None].float() / 127.5 - 1
            mode = self._pipeline.vae.encode(pixels.to(self._pipeline.vae.dtype)).latent_dist.mode()
            latents.append((mode.float() - shift) * scale)
        return torch.cat(latents)

    @torch.no_grad()
    def decode(self, latents: Tensor) -> list[Image]:
        """Decode by the VAE, one at a time; see `Model.decode`."""
        shift, scale = self._units
        pictures = []
        for latent in latents.to(self.device):
            unscaled = (latent[None] / scale + shift).to(self._pipeline.vae.dtype)
            pixels = self._pipeline.vae.decode(unscaled).sample[0].float().permute(1, 2, 0)
            pictures.append(((pixels / 2 + 0.5).clamp(0, 1) * 255).round().to(torch.uint8).cpu().numpy())
        return pictures

    def noise_levels(self, uniform: Tensor) -> Tensor:
        """DDPM networks: of whole times, all equally likely. Flows: of logit-normal times (Esser et al. 2024)."""
        return self._schedule.levels(uniform)

    def loss_weight(self, sigma: Tensor) -> Tensor:
        """Makes the loss the mean squared error of what the network predicts: epsilon, v, x0 or the flow's velocity."""
        return self._schedule.weight(sigma)

    @property
    def network(self) -> nn.Module:
        """U-Net or transformer of the pipeline, with its LoRA."""
        return getattr(self._pipeline, self._name)  # type: ignore[no-any-return]

    def seeded(self, seed: int) -> StableDiffusion:
        """The same with another seed."""
        return dataclasses.replace(self, seed=seed)

    def save(self, folder: Path) -> None:
        """Write a LoRA as `pytorch_lora_weights.safetensors`, for `load_lora_weights`; else the whole pipeline."""
        folder.mkdir(parents=True, exist_ok=True)
        if self.lora_rank:
            _pipelines.save_lora(self._pipeline, folder)
            return
        with _pipelines.quiet():
            self._pipeline.save_pretrained(folder, safe_serialization=True)

    def with_weights(self, folder: Path) -> StableDiffusion:
        """The same with saved weights; see `Trainable.with_weights`.

        Raises:
            InputError: the folder holds none.
        """
        name = _pipelines.LORA if self.lora_rank else _pipelines.INDEX
        if not (folder / name).is_file():
            raise InputError(f"{folder} holds no {name}.\nName the folder `model` of a finished run of this model")
        return dataclasses.replace(self, weights=str(folder))

    @functools.cached_property
    def _pipeline(self) -> Any:
        folder = self.path if self.lora_rank or not self.weights else self.weights
        pipeline = _pipelines.load(Path(folder), self._kept_in)
        trained = getattr(pipeline, _pipelines.NETWORKS[_pipelines.family(pipeline)])
        for part in pipeline.components.values():
            if isinstance(part, nn.Module):
                part.requires_grad_(part is trained)
        if self.lora_rank:
            _pipelines.add_lora(trained, self.lora_rank, self.lora_alpha or self.lora_rank, self.seed)
            if self.weights:
                _pipelines.load_lora(pipeline, Path(self.weights))
        for name, part in pipeline.components.items():
            if part is trained or name == "vae" or (name.startswith("text_encoder") and part is not None):
                part.to(self.device)
        return pipeline

    @property
    def _kept_in(self) -> torch.dtype:
        return getattr(torch, self.precision)  # type: ignore[no-any-return]

    @property
    def _name(self) -> str:
        return _pipelines.NETWORKS[_pipelines.family(self._pipeline)]

    @property
    def _shrink(self) -> int:
        """Pixels a latent, along a side."""
        return int(2 ** (len(self._pipeline.vae.config.block_out_channels) - 1))

    @functools.cached_property
    def _units(self) -> tuple[Tensor | float, Tensor | float]:
        """Shift and scale: latents = (what the VAE gives - shift) * scale."""
        config = self._pipeline.vae.config
        scale = config.scaling_factor
        if getattr(config, "latents_mean", None) is None:
            return getattr(config, "shift_factor", None) or 0.0, scale
        mean, deviation = (torch.tensor(each, device=self.device).view(1, -1, 1, 1)
                           for each in (config.latents_mean, config.latents_std))  # fmt: skip
        return mean, scale / deviation

    @functools.cached_property
    def _schedule(self) -> VariancePreserving | Flow:
        config = self._pipeline.scheduler.config
        if self._name == "transformer":
            shift = 1.0 if config.get("use_dynamic_shifting") else config.get("shift", 1.0)
            return Flow(config.num_train_timesteps, shift)
        predicts = config.get("prediction_type", "epsilon")
        usual = "beta_schedule" in config and config.get("timestep_type", "discrete") == "discrete"
        distilled = getattr(self._pipeline.unet.config, "time_cond_proj_dim", None) is not None
        if not usual or distilled or predicts not in {"epsilon", "v_prediction", "sample"}:
            raise InputError(
                f"The scheduler {type(self._pipeline.scheduler).__name__} of {self.path} is none of DDPM's.\n"
                "Use a pipeline with a table of betas that predicts epsilon, v or the sample, and is not distilled"
            )
        from diffusers import DDPMScheduler

        with _pipelines.quiet():
            kept: Tensor = DDPMScheduler.from_config(config).alphas_cumprod  # type: ignore[no-untyped-call]
        # A schedule that ends in pure noise has no finite last level: this is the one that diffusers gives it.
        kept = kept.double().clamp(min=2**-24)
        return VariancePreserving(((1 - kept) / kept).sqrt().float().to(self.device), predicts)

    def _predict(self, x: Tensor, time: Tensor, conditioning: Conditioning) -> Tensor:
        """What the network finds in its own input, at its own times."""
        n, _, height, width = x.shape
        x, text = x.to(self._kept_in), conditioning.text.to(self._kept_in)
        pooled = None if conditioning.pooled is None else conditioning.pooled.to(self._kept_in)
        name = _pipelines.family(self._pipeline)
        if name == "StableDiffusion3Pipeline":
            return self.network(x, text, pooled, time, return_dict=False)[0]  # type: ignore[no-any-return]
        if name == "FluxPipeline":
            places = torch.zeros(height // 2, width // 2, 3, device=x.device)
            places[..., 1] += torch.arange(height // 2, device=x.device)[:, None]
            places[..., 2] += torch.arange(width // 2, device=x.device)
            distilled = self._pipeline.transformer.config.guidance_embeds
            found = self.network(
                hidden_states=nn.functional.pixel_unshuffle(x, 2).flatten(2).transpose(1, 2),
                encoder_hidden_states=text,
                pooled_projections=pooled,
                timestep=time / self._pipeline.scheduler.config.num_train_timesteps,
                guidance=x.new_full((n,), self.embedded_guidance) if distilled else None,
                img_ids=places.view(-1, 3),
                txt_ids=places.new_zeros(text.shape[1], 3),
                return_dict=False,
            )[0]
            return nn.functional.pixel_shuffle(found.transpose(1, 2).unflatten(2, (height // 2, width // 2)), 2)
        # Where nothing is left out, the network is asked as its pipeline asks it.
        mask = None if conditioning.mask.all() else conditioning.mask
        added = None
        if pooled is not None:
            size = float(self.image_size)
            # Told that each picture is whole: of this size, cut nowhere.
            whole = torch.tensor([size, size, 0, 0, size, size], device=x.device, dtype=x.dtype).expand(n, 6)
            added = {"text_embeds": pooled, "time_ids": whole}
        told = {"encoder_attention_mask": mask, "added_cond_kwargs": added}
        return self.network(x, time, text, **told, return_dict=False)[0]  # type: ignore[no-any-return]
