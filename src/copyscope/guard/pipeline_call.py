"""Generation calls of a diffusers pipeline."""

from __future__ import annotations

import contextlib
import inspect
import sys
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from copyscope.diffusion import applied
from copyscope.diffusion.denoiser import FindNearest
from copyscope.diffusion.mitigations import NEAREST, PROMPTS, SAMPLING, OnCaption
from copyscope.diffusion.models import Image, _pipelines
from copyscope.diffusion.models.stable_diffusion import StableDiffusion
from copyscope.diffusion.pipelines.mitigate import observe
from copyscope.errors import InputError

from . import returned
from .calls import (
    OUTPUTS,
    Attempt,
    GenerationCall,
    Ladder,
    SeedOf,
    StepObserver,
    Stopped,
    arrays,
    generator,
    has_length,
)

LIKE_PROMPTS = ("prompt_", "negative_prompt", "pooled_prompt", "negative_pooled_prompt")
"""How the arguments begin that hold something a prompt, beside `prompt`; the images of a prompt stand side by side."""
IMAGES = ("image", "mask_image", "control_image")
"""Arguments that may hold an image a prompt."""


def is_pipeline(made_by: Any) -> bool:
    """Whether mitigations and signals fit it: a pipeline of diffusers of a known family."""
    return _pipelines.family(made_by) in _pipelines.NETWORKS


def is_text_pipeline(made_by: Any) -> bool:
    """Whether it is a pipeline of diffusers, of any family, that is called with a prompt: inpainting, ControlNet."""
    if not _pipelines.is_pipeline(made_by):
        return False
    taken = _pipelines.call_signature(made_by).parameters
    return all(name in taken for name in ("prompt", "generator", "output_type", "return_dict"))


_FORMS = {"np": np.empty((1, 1, 1, 3)), "pt": torch.empty(1, 3, 1, 1)}


class PipelineCall(GenerationCall):
    """Call of a diffusers pipeline, by the arguments it takes itself."""

    @classmethod
    def check(cls, made_by: Any, ladder: Ladder, nearest: FindNearest | None) -> None:
        """Try every rung on the pipeline; see `GenerationCall.check`."""
        for rung in filter(None, ladder):
            with observe(made_by, (), mitigations=rung, nearest=nearest):
                pass

    @classmethod
    def model(cls, made_by: Any) -> StableDiffusion:
        """Model of the loaded pipeline."""
        return StableDiffusion.around(made_by, made_by.device)

    def __init__(
        self, made_by: Any, arguments: tuple[Any, ...], options: Mapping[str, Any], watching: StepObserver
    ) -> None:
        self.pipeline, self.watching = made_by, watching
        signature = _pipelines.call_signature(made_by)
        self.several = "num_images_per_prompt" in signature.parameters
        self.told = _pipelines.named(signature, arguments, options)
        # What the class gives by itself is said in its signature.
        self.form = self.told.get("output_type", _default(signature, "output_type")) or "pil"
        if self.form not in OUTPUTS:
            raise InputError(
                f"output_type {self.form!r} cannot be guarded: it holds no pictures.\nTake 'pil', 'np' or 'pt'"
            )
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
        """Unless the caller gave a generator; see `GenerationCall.seed_used`."""
        return attempt > 0 or self.seeded

    def fits(self, rung: Sequence[str]) -> bool:
        """Whether a rung loads at this call's guidance; see `GenerationCall.fits`."""
        # What the call before has left there.
        guided = getattr(self.pipeline, "do_classifier_free_guidance", False)
        prompted = self.prompts[0] is not None
        has = [what for what, there in ((PROMPTS, prompted), (NEAREST, self.watching.nearest is not None)) if there]
        scale = self.pipeline.guidance_scale if guided else 1.0
        try:
            loaded = applied.load(rung, SAMPLING, self.model(self.pipeline), guidance=scale, has=has)
        except InputError:
            return False
        return prompted or not loaded.hook(OnCaption)

    def first(self, seed_of: SeedOf) -> Attempt:
        """Call the pipeline; see `GenerationCall.first`."""
        told = dict(self.told)
        if self.seeded:
            told["generator"] = [generator(seed_of(row)) for row in range(len(self.prompts))]
        made, self._output = self._made(told, len(self.prompts), (), 0)
        return made

    def again(self, rows: Sequence[int], rung: Sequence[str], seed_of: SeedOf) -> Attempt:
        """Call it for these rows with a rung; see `GenerationCall.again`."""
        told = {name: value for name, value in self.told.items() if name != "latents"}
        if whole := any(self._may_be_a_row_each(name, value) for name, value in told.items()):
            # Which row of it is whose, the pipeline alone knows: all are made again, and the others left out.
            made_rows: Sequence[int] = range(len(self.prompts))
        else:
            made_rows = rows
            told = {name: self._of(name, value, rows) for name, value in told.items()}
            told |= {"num_images_per_prompt": 1} if self.several else {}
        told["generator"] = [generator(seed_of(row)) for row in made_rows]
        made, output = self._made(told, len(made_rows), rung, seed_of(rows[0]))
        # Of a first try that was stopped there is none.
        self._output = self._output or output
        return made.of(rows) if whole else made

    def output(self, images: Sequence[Any], extras: Mapping[str, Mapping[int, Any]]) -> Any:
        """Output of the pipeline with these images; see `GenerationCall.output`."""
        output = self._output or _empty(self.pipeline)
        whole = all(each is not None for each in images)
        same = whole and len({tuple(each.shape) for each in images if self.form != "pil"}) == 1
        output["images"] = returned.like(_FORMS[self.form], images) if same else list(images)
        for name, values in extras.items():
            rows = output[name] if isinstance(output[name], list) else []
            output[name] = [values.get(row, rows[row] if row < len(rows) else None) for row in range(len(images))]
        return output if self.told.get("return_dict", True) else output.to_tuple()

    def blank(self, image: Any, estimate: Image | None) -> Any:
        """Black image in the output type of the call; see `GenerationCall.blank`."""
        from PIL import Image as Pillow

        if image is None and estimate is not None:
            array = np.zeros(estimate.shape, np.float32)
            tensor = torch.from_numpy(array).permute(2, 0, 1)
            image = {"np": array, "pt": tensor}.get(self.form, Pillow.fromarray(estimate))
        return super().blank(image, None)

    def _made(self, told: dict[str, Any], n: int, rung: Sequence[str], seed: int) -> tuple[Attempt, Any]:
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
                return Attempt.stopped(stopped, observed.scores), None
            scores = {} if observed is None else arrays(observed.scores)
        return self._finished(output, n, scores), output

    def _finished(self, output: Any, n: int, scores: Mapping[str, NDArray[np.float64]]) -> Attempt:
        """What came back of n images. Raises InputError where that is something else, or more."""
        kind = type(self.pipeline).__name__
        if not isinstance(output, Mapping) or "images" not in output:
            raise InputError(
                f"A {kind} gave a {type(output).__name__} without `images`, which cannot be looked up.\n"
                "Wrap a function that returns its images in a list"
            )
        images = returned.listed(output)
        if len(images) != n:
            raise InputError(f"A {kind} gave {len(images)} images where {n} were asked for.\nGive one prompt an image")
        extras = {
            name: value
            for name, value in output.items()
            if name != "images" and isinstance(value, list) and len(value) == n
        }
        return Attempt.finished(images, scores, extras, colours=_pipelines.is_of_diffusers(type(self.pipeline)))

    def _of(self, name: str, value: Any, rows: Sequence[int]) -> Any:
        """An argument of the call, for a call about these rows."""
        places = [row // self.each for row in rows]
        if name == "prompt" or name.startswith(LIKE_PROMPTS):
            if isinstance(value, str):
                return [value] * len(places)
            many = isinstance(value, (list, tuple, np.ndarray, Tensor)) and len(value) == self.n_prompts
        else:
            many = self._is_an_image_a_prompt(name, value)
        if not many:
            return value
        return value[places] if isinstance(value, (np.ndarray, Tensor)) else [value[place] for place in places]

    def _is_an_image_a_prompt(self, name: str, value: Any) -> bool:
        """Where a prompt has several images, pipelines differ in how they lay these out."""
        if name not in IMAGES or self.each > 1 or self.n_prompts == 1:
            return False
        if hasattr(getattr(self.pipeline, "controlnet", None), "nets"):  # One list an image, or one a network?
            return False
        if isinstance(value, (np.ndarray, Tensor)):
            return value.ndim == 4 and len(value) == self.n_prompts
        plain = isinstance(value, (list, tuple)) and not any(isinstance(each, (list, tuple)) for each in value)
        return plain and len(value) == self.n_prompts

    def _may_be_a_row_each(self, name: str, value: Any) -> bool:
        """Whether an argument may hold something an image or a prompt, in an order that is not known."""
        if name in ("prompt", "generator") or name.startswith(LIKE_PROMPTS) or self._is_an_image_a_prompt(name, value):
            return False
        several = {n * halves for n in (self.n_prompts, len(self.prompts)) for halves in (1, 2)}
        images = name in IMAGES and (isinstance(value, (list, tuple)) or getattr(value, "ndim", 0) == 4)
        return len(self.prompts) > 1 and ((images and len(value) > 1) or has_length(value, several))


class OtherPipelineCall(PipelineCall):
    """Call of a diffusers pipeline of an unknown family: no steps are watched, a ladder rewrites the prompt alone."""

    watchable = False

    def fits(self, rung: Sequence[str]) -> bool:
        """Whether there is a prompt to rewrite; see `GenerationCall.fits`."""
        return not rung or self.prompts[0] is not None


def _default(signature: inspect.Signature, name: str) -> Any:
    parameter = signature.parameters.get(name)
    return None if parameter is None or parameter.default is inspect.Parameter.empty else parameter.default


def _empty(pipeline: Any) -> Any:
    """What the pipeline returns, without images: the output that its own module names, where it names one."""
    from diffusers.pipelines.stable_diffusion.pipeline_output import StableDiffusionPipelineOutput
    from diffusers.utils.outputs import BaseOutput

    for name, kind in vars(sys.modules[type(pipeline).__module__]).items():
        if name.endswith("PipelineOutput") and isinstance(kind, type) and issubclass(kind, BaseOutput):
            fields = [field for field in inspect.signature(kind).parameters if field != "images"]
            return kind(images=[], **dict.fromkeys(fields))
    return StableDiffusionPipelineOutput(images=[], nsfw_content_detected=None)
