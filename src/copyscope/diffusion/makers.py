"""A call that makes images, and whose images can each be made again: of a diffusers pipeline, or of a plain function.

It knows nothing of what is wrong with an image; whoever does (the guard) says which rows, with which mitigations.
"""

from __future__ import annotations

import abc
import contextlib
import dataclasses
import inspect
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from copyscope.errors import InputError

from . import applied
from .denoiser import FindNearest, Step
from .mitigate import observe
from .mitigations import SAMPLING, OnCaption
from .models import Image, _pipelines
from .models.stable_diffusion import StableDiffusion
from .observed import fingerprint

SeedOf = Callable[[int], int]
"""Row -> the seed of its image in this try."""
Look = Callable[[float, list[Image]], bool]
"""Share of the steps that are done, estimates of the images [n] -> whether to stop there."""
LIKE_PROMPTS = ("prompt_", "negative_prompt", "pooled_prompt", "negative_pooled_prompt")
"""How the arguments begin that hold something a prompt, beside `prompt` and IMAGES."""
SEVERAL = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
IMAGES = ("image", "mask_image", "control_image")


class Stopped(Exception):
    """A look stopped the sampling. estimates: uint8 [h w 3] each."""

    def __init__(self, share: float, estimates: list[Image]) -> None:
        self.share, self.estimates = share, estimates


@dataclasses.dataclass(frozen=True, eq=False)
class Made:
    """Images of a try [n], in the caller's form, None each where it was stopped; estimates: theirs then, after this
    `share` of the steps. signals: scores by spec [n]. beside: what else was returned of each image, by name [n].
    """

    images: list[Any]
    share: float | None = None
    estimates: list[Image] | None = None
    signals: Mapping[str, NDArray[np.float64]] = dataclasses.field(default_factory=dict)
    beside: Mapping[str, list[Any]] = dataclasses.field(default_factory=dict)

    def pictures(self) -> list[Image]:
        """As uint8 [h w 3] each."""
        return [picture(each) for each in self.images] if self.estimates is None else self.estimates


class Maker(abc.ABC):
    """One call. prompts [n]: as asked, None where there is no text; known once `first` has run. arrays: images are
    arrays of numbers from 0 to 1, where there is none to tell."""

    prompts: list[str | None]
    arrays = False

    @abc.abstractmethod
    def seed_used(self, row: int, attempt: int) -> bool:
        """Whether the image came of `seed_of(row)`: not if the caller gave his own, or the function takes none."""

    @abc.abstractmethod
    def first(self, seed_of: SeedOf) -> Made:
        """What the call makes by itself."""

    @abc.abstractmethod
    def again(self, rows: Sequence[int], rung: Sequence[str], seed_of: SeedOf) -> Made:
        """These rows once more, with other seeds and with mitigations."""

    @abc.abstractmethod
    def given(self, images: Sequence[Any], beside: Mapping[str, Mapping[int, Any]]) -> Any:
        """What the call returns, with these images [n], and `beside` of some rows replaced."""


def is_pipeline(made_by: Any) -> bool:
    """Whether it is a pipeline of diffusers that mitigations and signals fit."""
    return _pipelines.family(made_by) in _pipelines.NETWORKS


def check(made_by: Any, ladder: Sequence[Sequence[str]], nearest: FindNearest | None) -> None:
    """Raises PartError or InputError for a rung that cannot be had here."""
    for rung in filter(None, ladder):
        if is_pipeline(made_by):
            with observe(made_by, (), mitigations=rung, nearest=nearest):
                pass
            continue
        for spec in rung:
            if not isinstance(applied.named(spec, SAMPLING), OnCaption):
                name = type(made_by).__name__
                raise InputError(
                    f"{spec} acts inside a sampling, which a {name} keeps to itself.\n"
                    "Give a diffusers pipeline, or take mitigations of the prompt: random_tokens, random_numbers"
                )


def model_fingerprint(pipeline: Any) -> str:
    """sha256 (hex) of the weights of a pipeline's network, as thresholds of signals name it."""
    return fingerprint(StableDiffusion.around(pipeline, pipeline.device))


class PipelineCall(Maker):
    """A call of a diffusers pipeline. signals: watched where nothing is changed, since thresholds hold for that alone.
    looks: ascending shares of the steps after which `look` is shown the estimates."""

    def __init__(
        self,
        pipeline: Any,
        arguments: tuple[Any, ...],
        options: Mapping[str, Any],
        signals: Sequence[str] = (),
        looks: Sequence[float] = (),
        look: Look | None = None,
        nearest: FindNearest | None = None,
    ) -> None:
        self.pipeline, self.signals, self.looks, self.look, self.nearest = pipeline, signals, looks, look, nearest
        self.told = _named(pipeline.__call__, arguments, options)
        kind = self.told.get("output_type") or "pil"
        if kind not in ("pil", "np"):
            raise InputError(f"output_type {kind!r} cannot be guarded: it holds no pictures.\nTake 'pil' or 'np'")
        prompt, embeds = self.told.get("prompt"), self.told.get("prompt_embeds")
        if prompt is None and embeds is None:
            raise InputError("There is no prompt.\nGive `prompt`, or `prompt_embeds`")
        self.arrays = kind == "np"
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

    def first(self, seed_of: SeedOf) -> Made:
        told = dict(self.told)
        if self.seeded:
            told["generator"] = [_generator(seed_of(row)) for row in range(len(self.prompts))]
        made, self._output = self._made(told, len(self.prompts), (), 0)
        return made

    def again(self, rows: Sequence[int], rung: Sequence[str], seed_of: SeedOf) -> Made:
        told = {name: self._of(name, value, rows) for name, value in self.told.items() if name != "latents"}
        told |= {"num_images_per_prompt": 1, "generator": [_generator(seed_of(row)) for row in rows]}
        made, output = self._made(told, len(rows), rung, seed_of(rows[0]))
        # Of a first try that was stopped there is none.
        self._output = self._output or output
        return made

    def given(self, images: Sequence[Any], beside: Mapping[str, Mapping[int, Any]]) -> Any:
        from diffusers.pipelines.stable_diffusion.pipeline_output import StableDiffusionPipelineOutput

        output = self._output or StableDiffusionPipelineOutput(images=[], nsfw_content_detected=None)
        array = self.told.get("output_type") == "np" and all(each is not None for each in images)
        output["images"] = np.stack(images) if array else list(images)
        for name, values in beside.items():
            rows = output[name] if isinstance(output[name], list) else []
            output[name] = [values.get(row, rows[row] if row < len(rows) else None) for row in range(len(images))]
        return output if self.told.get("return_dict", True) else output.to_tuple()

    def _made(self, told: dict[str, Any], n: int, rung: Sequence[str], seed: int) -> tuple[Made, Any]:
        signals = () if rung else self.signals
        inside: Any = contextlib.nullcontext()
        if rung or signals or self.looks:
            settings: dict[str, Any] = {"mitigations": rung, "seed": seed, "nearest": self.nearest}
            inside = observe(self.pipeline, signals, on_step=self._looking() if self.looks else None, **settings)
        with inside as observed:
            try:
                output = self.pipeline(**told | {"return_dict": True})
            except Stopped as stopped:
                scores: dict[str, NDArray[np.float64]] = {} if observed is None else _arrays(observed.scores)
                return Made([None] * n, stopped.share, stopped.estimates, scores), None
            scores = {} if observed is None else _arrays(observed.scores)
        beside = {
            name: value
            for name, value in output.items()
            if name != "images" and isinstance(value, list) and len(value) == n
        }
        return Made(list(output.images), None, None, scores, beside), output

    def _looking(self) -> Callable[[StableDiffusion, Step], None]:
        ahead = list(self.looks)

        def on_step(model: StableDiffusion, step: Step) -> None:
            assert step.i is not None
            assert self.look is not None
            done = step.i + 1
            # After the last step the image itself is looked at.
            if not ahead or done < math.ceil(ahead[0] * step.n_steps) or done == step.n_steps:
                return
            while ahead and done >= math.ceil(ahead[0] * step.n_steps):
                ahead.pop(0)
            estimates = model.decode(step.denoised)
            if self.look(done / step.n_steps, estimates):
                raise Stopped(done / step.n_steps, estimates)

        return on_step

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


class FunctionCall(Maker):
    """A call of any function of a prompt, or of prompts [m], that gives images: a list, an array [n h w 3], one image,
    or something with these as `images`; n is a multiple of m. Its `seed` or `generator`, where it takes one and was
    given none, is one a call. An image is made again by a call for its prompt alone.
    """

    def __init__(self, function: Callable[..., Any], arguments: tuple[Any, ...], options: Mapping[str, Any]) -> None:
        self.function, self.bound = function, inspect.signature(function).bind_partial(*arguments, **options)
        parameters = self.bound.signature.parameters
        told = self.bound.arguments
        self.name = "prompt" if "prompt" in told else next(iter(told), "")
        prompt = told.get(self.name)
        if not isinstance(prompt, (str, list)) or parameters[self.name].kind in SEVERAL:
            raise InputError("There is no prompt.\nGive a text or a list of texts first, or as `prompt`")
        self.prompt: str | list[str] = prompt
        self.takes = seed_argument(function)
        # A seed of the caller's, or a function's own default, makes the first try what it is without a guard.
        own = (None, inspect.Parameter.empty)
        self.seeded = self.takes is not None and told.get(self.takes, parameters[self.takes].default) in own

    def seed_used(self, row: int, attempt: int) -> bool:
        # The first try is one call, with the seed of its first image.
        return self.takes is not None if attempt else self.seeded and row == 0

    def first(self, seed_of: SeedOf) -> Made:
        self._returned = self._call(self.prompt, seed_of(0) if self.seeded else None)
        images = _listed(self._returned)
        texts = [self.prompt] if isinstance(self.prompt, str) else list(self.prompt)
        if not texts or len(images) % len(texts):
            raise InputError(f"{len(images)} images came of {len(texts)} prompts.\nReturn as many of each prompt")
        self.each = len(images) // len(texts)
        self.prompts = [text for text in texts for _ in range(self.each)]
        return Made(images)

    def again(self, rows: Sequence[int], rung: Sequence[str], seed_of: SeedOf) -> Made:
        captions = applied.Mitigations(tuple(applied.named(spec, SAMPLING) for spec in rung))
        images = []
        for row in rows:
            seed = seed_of(row)
            text = captions.caption(
                [self.prompts[row] or ""], lambda number, s=seed: applied.sampling_rngs([s], number)[0]
            )
            found = _listed(self._call(text if isinstance(self.prompt, str) else [text], seed))
            if len(found) != self.each:
                raise InputError(f"A prompt gave {self.each} images, then {len(found)}.\nReturn as many each time")
            images.append(found[row % self.each])
        return Made(images)

    def given(self, images: Sequence[Any], beside: Mapping[str, Mapping[int, Any]]) -> Any:
        holder = getattr(self._returned, "images", None)
        if holder is not None:
            found = _as(holder, images)
            try:
                self._returned.images = found
            except AttributeError:
                return dataclasses.replace(self._returned, images=found)
            return self._returned
        return _as(self._returned, images)

    def _call(self, prompt: Any, seed: int | None) -> Any:
        bound = inspect.BoundArguments(self.bound.signature, self.bound.arguments | {self.name: prompt})
        if seed is not None and self.takes:
            bound.arguments[self.takes] = seed if self.takes == "seed" else _generator(seed)
        return self.function(*bound.args, **bound.kwargs)


def seed_argument(function: Callable[..., Any]) -> str | None:
    """`seed` or `generator`, whichever the function takes by name; None if neither."""
    names = inspect.signature(function).parameters
    found = [name for name in ("seed", "generator") if name in names]
    return next((name for name in found if names[name].kind not in SEVERAL), None)


def picture(image: Any) -> Image:
    """An image of Pillow, or an array [h w 3] or [h w] of uint8 or of numbers from 0 to 1, as uint8 [h w 3]."""
    found = np.asarray(image.convert("RGB") if hasattr(image, "convert") else image)
    if found.dtype != np.uint8:
        found = (np.clip(found, 0, 1) * 255).round().astype(np.uint8)
    return np.repeat(found[..., None], 3, 2) if found.ndim == 2 else found[..., :3]


def blank(image: Any, estimate: Image | None, array: bool) -> Any:
    """A black image of the size and kind of `image`, or of an estimate; array: of numbers from 0 to 1, where that."""
    from PIL import Image as Pillow

    if image is not None:
        return Pillow.new("RGB", image.size) if hasattr(image, "convert") else np.zeros_like(image)
    assert estimate is not None
    height, width = estimate.shape[:2]
    return np.zeros((height, width, 3), np.float32) if array else Pillow.new("RGB", (width, height))


def _named(call: Callable[..., Any], arguments: tuple[Any, ...], options: Mapping[str, Any]) -> dict[str, Any]:
    """The arguments by name. Raises TypeError as the call itself would."""
    signature = inspect.signature(call)
    found: dict[str, Any] = dict(signature.bind(*arguments, **options).arguments)
    for name, parameter in signature.parameters.items():
        if parameter.kind is inspect.Parameter.VAR_KEYWORD:
            found |= found.pop(name, {})
    return found


def _generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def _arrays(scores: Mapping[str, Tensor]) -> dict[str, NDArray[np.float64]]:
    return {spec: values.double().cpu().numpy() for spec, values in scores.items()}


def _listed(returned: Any) -> list[Any]:
    """The images of what a function returned."""
    found = getattr(returned, "images", returned)
    if hasattr(found, "convert") or (isinstance(found, np.ndarray) and found.ndim < 4):
        return [found]
    return list(found)


def _as(form: Any, images: Sequence[Any]) -> Any:
    """The images in the form of what a function returned."""
    if hasattr(form, "convert") or (isinstance(form, np.ndarray) and form.ndim < 4):
        return images[0]
    if isinstance(form, np.ndarray) and all(each is not None for each in images):
        return np.stack(images)
    return list(images)
