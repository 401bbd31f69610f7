"""Translate a diffusers network call to D(x, sigma, conditioning) and back."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from copyscope.diffusion.conditioning import Conditioning
from copyscope.diffusion.denoiser import DenoiseQuery, DenoiseResult, guided
from copyscope.diffusion.models import _pipelines
from copyscope.diffusion.models._schedules import Flow, VariancePreserving
from copyscope.diffusion.models.stable_diffusion import StableDiffusion

Forward = Callable[..., Any]


@dataclasses.dataclass(eq=False)
class NetworkCall:
    """One call of a diffusers network, about n images at one time.

    Attributes:
        pipeline: whose network it is.
        forward: the network's own.
        arguments: its arguments by name; they serve for the questions of mitigations too.
        halves: 2 where the rows are those of guidance, [no prompt; prompt] of n each, else 1.
        time: as the scheduler has it, 0-dimensional, in the units of a Flow's `steps` or of a table's index.
        known: the model of an earlier call.
    """

    pipeline: Any
    forward: Forward
    arguments: dict[str, Any]
    halves: int
    time: Tensor
    known: StableDiffusion | None = None
    _emphasis: Tensor | None = dataclasses.field(default=None, init=False)
    _ran: tuple[Tensor, Tensor] | None = dataclasses.field(default=None, init=False)

    def __post_init__(self) -> None:
        self.unet = _pipelines.NETWORKS[_pipelines.family(self.pipeline)] == "unet"
        self._input = "sample" if self.unet else "hidden_states"
        self.n = len(self.arguments[self._input]) // self.halves
        self.model = self.known or StableDiffusion.around(
            self.pipeline, self.arguments[self._input].device, self._shape()
        )
        self._schedule: VariancePreserving | Flow = self.model._schedule
        noisy = self.unpacked(self.arguments[self._input][-self.n :])
        self.sigma = self._schedule.level(self.time.to(noisy.device).reshape(1)).expand(self.n)
        self.x = self._schedule.unscaled(noisy, self._level(self.sigma))

    @property
    def block(self) -> int:
        """Rows that the network is given at a time, as by the pipeline itself."""
        return self.n * self.halves

    @property
    def text(self) -> Tensor:
        """States of the prompts' tokens [n t d], as the network is given them."""
        return self.arguments["encoder_hidden_states"][-self.n :]  # type: ignore[no-any-return]

    def conditioning(self) -> tuple[Conditioning, Conditioning | None]:
        """Conditioning of the n images, and that without a prompt, if there is one."""
        both = conditioning_of(self.arguments["encoder_hidden_states"], self._pooled())
        rows = torch.arange(len(both))
        return both.take(rows[-self.n :]), both.take(rows[: self.n]) if self.halves == 2 else None

    def set_conditioning(self, conditioning: Conditioning, null: Conditioning | None) -> None:
        """Put another conditioning into the call."""
        both = Conditioning.join([conditioning] if self.halves == 1 or null is None else [null, conditioning])
        self.arguments, self._emphasis = self._with(self.arguments, both), both.emphasis

    def set_noise(self, latents: Tensor, noise: Tensor, deviation: float) -> None:
        """Put another starting noise into the call: the pipeline's latents become deviation * noise, in place.

        The network is given what follows from them.

        Args:
            latents: the pipeline's.
            noise: [n c h w].
            deviation: of the latents at the start.
        """
        latents.copy_(self._packed(noise * deviation))
        noisy = torch.cat([latents] * self.halves)
        if hasattr(self.pipeline.scheduler, "scale_model_input"):
            noisy = self.pipeline.scheduler.scale_model_input(noisy, self.arguments["timestep"])
        self.arguments = self.arguments | {self._input: noisy}
        self.x = self._schedule.unscaled(self.unpacked(noisy[-self.n :]), self._level(self.sigma))

    def run(self) -> Any:
        """The network's own answer."""
        with self.model.attending(self._emphasis):
            return self.forward(**self.arguments)

    def step(self, ask: DenoiseQuery) -> DenoiseResult:
        """Estimates of x0 by the network's own answer to the pipeline; guided, where it is guided."""
        raw = self.run()[0]
        estimates = self._schedule.denoised(
            self.x.repeat(self.halves, 1, 1, 1), self._level(self.sigma[:1]), self.unpacked(raw)
        )
        conditional = denoised = plain = estimates[-self.n :]
        unconditional, scale = None, torch.ones_like(ask.scale)
        if self.halves == 2:
            unconditional, scale = estimates[: self.n], ask.scale
            denoised = guided(conditional, unconditional, scale)
            # What the pipeline itself will make of it, whatever scale was asked for here.
            plain = guided(conditional, unconditional, torch.full_like(ask.scale, self.pipeline.guidance_scale))
        self._ran = raw, plain
        return DenoiseResult(ask.i, ask.n_steps, ask.sigma, ask.x, conditional, unconditional, denoised, scale)

    def answer(self, denoised: Tensor) -> tuple[Tensor]:
        """Output of the network for which the pipeline goes on with this estimate of x0 [n c h w].

        Both halves of guidance are the same then, and guidance of any scale leaves them alone. A row in which nothing
        changed is the network's own answer, to the last bit.
        """
        found = self._packed(self._schedule.found(self.x, self._level(self.sigma), denoised))
        found = found.to(self.arguments[self._input].dtype).repeat(self.halves, *[1] * (found.dim() - 1))
        if self._ran is None:
            return (found,)
        raw, before = self._ran
        same = (denoised == before).flatten(1).all(1).repeat(self.halves)
        return (torch.where(same.view(-1, *[1] * (raw.dim() - 1)), raw, found.to(raw)),)

    def predict(self, x: Tensor, sigma: Tensor, conditioning: Conditioning) -> Tensor:
        """D of any number of rows, as many at a time as the pipeline itself asks for. Gradients flow where enabled.

        Other inputs than latents, time and text (sizes, image embeddings), row r has of image r mod n.
        """
        found = [x[:0]]
        for start in range(0, len(x), self.block):
            rows = torch.arange(start, min(start + self.block, len(x)))
            level, here = self._level(sigma[rows]), x[rows]
            part = conditioning.take(rows)
            arguments = self._with(self._of(rows % self.n), part)
            time = self._schedule.time(sigma[rows])
            if self._flux:
                time = time / self._steps
            noisy = self._packed(self._schedule.scaled(here, level)).to(self.arguments[self._input].dtype)
            with self.model.attending(part.emphasis):
                raw = self.forward(**arguments | {self._input: noisy, "timestep": time})[0]
            found.append(self._schedule.denoised(here, level, self.unpacked(raw)))
        return torch.cat(found)

    def unpacked(self, noisy: Tensor) -> Tensor:
        """Latents float32 [n c h w] of the network's input, which Flux has as [n hw/4 4c]."""
        if not self._flux:
            return noisy.float()
        patches = noisy.float().transpose(1, 2)
        return nn.functional.pixel_shuffle(patches.reshape(*patches.shape[:2], *self._patches()), 2)

    def _packed(self, latents: Tensor) -> Tensor:
        if not self._flux:
            return latents
        return nn.functional.pixel_unshuffle(latents, 2).flatten(2).transpose(1, 2)

    @property
    def _flux(self) -> bool:
        return _pipelines.family(self.pipeline) == "FluxPipeline"

    @property
    def _steps(self) -> int:
        return int(self.pipeline.scheduler.config.num_train_timesteps)

    def _patches(self) -> tuple[int, int]:
        """Height and width in patches of Flux, two latents a side."""
        last = self.arguments["img_ids"].reshape(-1, 3).amax(0)
        return int(last[1]) + 1, int(last[2]) + 1

    def _shape(self) -> tuple[int, int, int]:
        noisy = self.arguments[self._input]
        if not self._flux:
            return noisy.shape[1], noisy.shape[2], noisy.shape[3]
        height, width = self._patches()
        return noisy.shape[2] // 4, 2 * height, 2 * width

    @staticmethod
    def _level(sigma: Tensor) -> Tensor:
        return sigma.view(-1, 1, 1, 1)

    def _pooled(self) -> Tensor | None:
        found: Tensor | None = self.arguments.get("pooled_projections")
        return (self.arguments.get("added_cond_kwargs") or {}).get("text_embeds") if self.unet else found

    def _with(self, arguments: dict[str, Any], conditioning: Conditioning) -> dict[str, Any]:
        """The arguments, with another text."""
        before: Tensor = self.arguments["encoder_hidden_states"]
        arguments = arguments | {"encoder_hidden_states": conditioning.text.to(before.dtype)}
        pooled = None if conditioning.pooled is None else conditioning.pooled.to(before.dtype)
        if not self.unet:
            arguments["pooled_projections"] = pooled
        elif pooled is not None:
            arguments["added_cond_kwargs"] = arguments["added_cond_kwargs"] | {"text_embeds": pooled}
        # Where nothing is left out, the network is asked as its pipeline asks it.
        if self.unet and not conditioning.mask.all():
            arguments["encoder_attention_mask"] = conditioning.mask
        if self._flux:
            arguments["txt_ids"] = arguments["txt_ids"].new_zeros(conditioning.text.shape[1], 3)
        return arguments

    def _of(self, rows: Tensor) -> dict[str, Any]:
        """The arguments, each row as this one of the prompts' half."""
        arguments = dict(self.arguments)
        if arguments.get("guidance") is not None:
            arguments["guidance"] = self._taken(arguments["guidance"], rows)
        if arguments.get("added_cond_kwargs"):
            arguments["added_cond_kwargs"] = {
                name: self._taken(value, rows) for name, value in arguments["added_cond_kwargs"].items()
            }
        return arguments

    def _taken(self, value: Tensor | Sequence[Tensor], rows: Tensor) -> Any:
        """Rows of a tensor, or of each of several (image embeddings)."""
        if isinstance(value, Tensor):
            return value[-self.n :][rows.to(value.device)]
        return [self._taken(each, rows) for each in value]


def conditioning_of(text: Tensor, pooled: Tensor | None) -> Conditioning:
    """Conditioning of states [n t d], of which all count, and pooled vectors [n p]."""
    mask = torch.ones(text.shape[:2], dtype=torch.bool, device=text.device)
    return Conditioning(text.float(), mask, None if pooled is None else pooled.float())


def same(one: Conditioning | None, other: Conditioning) -> bool:
    """Whether two conditionings are the same to a network, the other as `conditioning_of` makes it."""
    if one is None or one.emphasis is not None or one.text.shape != other.text.shape:
        return False
    if one.pooled is not None and other.pooled is not None and not torch.equal(one.pooled, other.pooled):
        return False
    return torch.equal(one.text, other.text) and torch.equal(one.mask, other.mask)
