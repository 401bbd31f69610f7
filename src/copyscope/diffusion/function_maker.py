"""Calls of any function of prompts that gives images."""

from __future__ import annotations

import dataclasses
import inspect
import itertools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from copyscope.errors import InputError

from . import applied
from .denoiser import FindNearest
from .makers import Ladder, Made, Maker, SeedOf, Watching, generator
from .mitigations import SAMPLING, OnCaption

SEVERAL = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)


class FunctionCall(Maker):
    """A call of any function of a prompt, or of prompts [m], that gives images: a list, an array [n h w 3], one image,
    or something with these as `images`; n is a multiple of m. Its `seed` or `generator`, where it takes one and was
    given none, is one a call. An image is made again by a call for its prompt alone.
    """

    watchable = False

    @classmethod
    def check(cls, made_by: Any, ladder: Ladder, nearest: FindNearest | None) -> None:
        for spec in itertools.chain(*ladder):
            if not isinstance(applied.named(spec, SAMPLING), OnCaption):
                raise InputError(
                    f"{spec} acts inside a sampling, which a {type(made_by).__name__} keeps to itself.\n"
                    "Give a diffusers pipeline, or take mitigations of the prompt: random_tokens, random_numbers"
                )

    def __init__(
        self, made_by: Any, arguments: tuple[Any, ...], options: Mapping[str, Any], watching: Watching
    ) -> None:
        self.function, self.bound = made_by, inspect.signature(made_by).bind_partial(*arguments, **options)
        parameters = self.bound.signature.parameters
        told = self.bound.arguments
        self.name = "prompt" if "prompt" in told else next(iter(told), "")
        prompt = told.get(self.name)
        if not isinstance(prompt, (str, list)) or parameters[self.name].kind in SEVERAL:
            raise InputError("There is no prompt.\nGive a text or a list of texts first, or as `prompt`")
        self.prompt: str | list[str] = prompt
        self.takes = seed_argument(made_by)
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
            bound.arguments[self.takes] = seed if self.takes == "seed" else generator(seed)
        return self.function(*bound.args, **bound.kwargs)


def seed_argument(function: Callable[..., Any]) -> str | None:
    """`seed` or `generator`, whichever the function takes by name; None if neither."""
    names = inspect.signature(function).parameters
    found = [name for name in ("seed", "generator") if name in names]
    return next((name for name in found if names[name].kind not in SEVERAL), None)


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
