"""Calls of a diffusers pipeline."""

from __future__ import annotations

import contextlib
import inspect
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from torch import Tensor

from copyscope.errors import InputError

from . import applied
from .denoiser import FindNearest
from .makers import Ladder, Made, Maker, SeedOf, Stopped, Watching, arrays, generator
from .mitigate import observe
from .mitigations import NEAREST, PROMPTS, SAMPLING, OnCaption
from .models import Image, _pipelines
from .models.stable_diffusion import StableDiffusion

LIKE_PROMPTS = ("prompt_", "negative_prompt", "pooled_prompt", "negative_pooled_prompt")
"""How the arguments begin that hold something a prompt, beside `prompt` and IMAGES."""
IMAGES = ("image", "mask_image", "control_image")


def is_pipeline(made_by: Any) -> bool:
    """Whether it is a pipeline of diffusers that mitigations and signals fit."""
    return _pipelines.family(made_by) in _pipelines.NETWORKS


class PipelineCall(Maker):
    """A call of a pipeline, by the arguments it takes itself."""

    @classmethod
    def check(cls, made_by: Any, ladder: Ladder, nearest: FindNearest | None) -> None:
        for rung in filter(None, ladder):
            with observe(made_by, (), mitigations=rung, nearest=nearest):
                pass

    @classmethod
    def model(cls, made_by: Any) -> StableDiffusion:
        return StableDiffusion.around(made_by, made_by.device)

    def __init__(
        self, made_by: Any, arguments: tuple[Any, ...], options: Mapping[str, Any], watching: Watching
    ) -> None:
        self.pipeline, self.watching = made_by, watching
        self.told = _named(made_by.__call__, arguments, options)
        kind = self.told.get("output_type") or "pil"
        if kind not in ("pil", "np"):
            raise InputError(f"output_type {kind!r} cannot be guarded: it holds no pictures.\nTake 'pil' or 'np'")
        prompt, embeds = self.told.get("prompt"), self.told.get("prompt_embeds")
        if prompt is None and embeds is None:
            raise InputError("There is no prompt.\nGive `prompt`, or `prompt_embeds`")
        self.each = self.told.get("num_images_per_prompt") or 1
        texts: list[str | None] = (
            [None] * len(self.told["prompt_embeds"])
            if prompt is None
            else [prompt]
            if isinstance(prompt, str)
            else list(prompt)
        )
        self.n_prompts = len(texts)
        self.prompts = [text for text in texts for _ in range(self.each)]
        self.seeded = self.told.get("generator") is None

    def seed_used(self, row: int, attempt: int) -> bool:
        return attempt > 0 or self.seeded

    def fits(self, rung: Sequence[str]) -> bool:
        # What the call before has left there.
        guided = getattr(self.pipeline, "do_classifier_free_guidance", False)
        prompted = self.prompts[0] is not None
        has = [what for what, there in ((PROMPTS, prompted), (NEAREST, self.watching.nearest is not None)) if there]
        scale = self.pipeline.guidance_scale if guided else 1.0
        try:
            loaded = applied.load(rung, SAMPLING, self.model(self.pipeline), guidance=scale, has=has)
        except InputError:
            return False
        return prompted or not loaded.door(OnCaption)

    def first(self, seed_of: SeedOf) -> Made:
        told = dict(self.told)
        if self.seeded:
            told["generator"] = [generator(seed_of(row)) for row in range(len(self.prompts))]
        made, self._output = self._made(told, len(self.prompts), (), 0)
        return made

    def again(self, rows: Sequence[int], rung: Sequence[str], seed_of: SeedOf) -> Made:
        told = {name: self._of(name, value, rows) for name, value in self.told.items() if name != "latents"}
        told |= {"num_images_per_prompt": 1, "generator": [generator(seed_of(row)) for row in rows]}
        made, output = self._made(told, len(rows), rung, seed_of(rows[0]))
        # Of a first try that was stopped there is none.
        self._output = self._output or output
        return made

    def given(self, images: Sequence[Any], beside: Mapping[str, Mapping[int, Any]]) -> Any:
        output = self._output or _empty(self.pipeline)
        array = self.told.get("output_type") == "np" and all(each is not None for each in images)
        output["images"] = np.stack(images) if array else list(images)
        for name, values in beside.items():
            rows = output[name] if isinstance(output[name], list) else []
            output[name] = [values.get(row, rows[row] if row < len(rows) else None) for row in range(len(images))]
        return output if self.told.get("return_dict", True) else output.to_tuple()

    def blank(self, image: Any, estimate: Image | None) -> Any:
        from PIL import Image as Pillow

        if image is None and estimate is not None:
            array = np.zeros(estimate.shape, np.float32)
            image = array if self.told.get("output_type") == "np" else Pillow.fromarray(estimate)
        return super().blank(image, None)

    def _made(self, told: dict[str, Any], n: int, rung: Sequence[str], seed: int) -> tuple[Made, Any]:
        signals, on_step = self.watching.of(rung), self.watching.looking()
        inside: Any = contextlib.nullcontext()
        if rung or signals or on_step:
            settings: dict[str, Any] = {"mitigations": rung, "seed": seed, "nearest": self.watching.nearest}
            inside = observe(self.pipeline, signals, on_step=on_step, **settings)
        with inside as observed:
            try:
                output = self.pipeline(**told | {"return_dict": True})
            except Stopped as stopped:
                # What the pipeline itself does at the end of a call.
                self.pipeline.maybe_free_model_hooks()
                return Made.stopped(stopped, observed.scores), None
            scores = {} if observed is None else arrays(observed.scores)
        beside = {
            name: value
            for name, value in output.items()
            if name != "images" and isinstance(value, list) and len(value) == n
        }
        return Made(list(output.images), None, None, scores, beside), output

    def _of(self, name: str, value: Any, rows: Sequence[int]) -> Any:
        """An argument of the call, for a call about these rows."""
        like_prompt = name == "prompt" or name.startswith(LIKE_PROMPTS)
        if not like_prompt and name not in IMAGES:
            return value
        places = [row // self.each for row in rows]
        if isinstance(value, str):
            return [value] * len(places)
        if isinstance(value, Tensor):
            many = len(value) == self.n_prompts and (like_prompt or self.n_prompts > 1)
            return value[places] if many else value
        if isinstance(value, (list, tuple, np.ndarray)) and len(value) == self.n_prompts:
            return value[places] if isinstance(value, np.ndarray) else [value[place] for place in places]
        return value


def _named(call: Callable[..., Any], arguments: tuple[Any, ...], options: Mapping[str, Any]) -> dict[str, Any]:
    """The arguments by name. Raises TypeError as the call itself would."""
    signature = inspect.signature(call)
    found: dict[str, Any] = dict(signature.bind(*arguments, **options).arguments)
    for name, parameter in signature.parameters.items():
        if parameter.kind is inspect.Parameter.VAR_KEYWORD:
            found |= found.pop(name, {})
    return found


def _empty(pipeline: Any) -> Any:
    """What the pipeline returns, without images: the output that its own module names, where it names one."""
    from diffusers.pipelines.stable_diffusion.pipeline_output import StableDiffusionPipelineOutput
    from diffusers.utils.outputs import BaseOutput

    for name, kind in vars(sys.modules[type(pipeline).__module__]).items():
        if name.endswith("PipelineOutput") and isinstance(kind, type) and issubclass(kind, BaseOutput):
            fields = [field for field in inspect.signature(kind).parameters if field != "images"]
            return kind(images=[], **dict.fromkeys(fields))
    return StableDiffusionPipelineOutput(images=[], nsfw_content_detected=None)
