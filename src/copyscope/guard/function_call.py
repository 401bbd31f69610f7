"""Generation calls of any function of prompts."""

from __future__ import annotations

import hashlib
import inspect
import itertools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from copyscope.diffusion import applied
from copyscope.diffusion.denoiser import FindNearest
from copyscope.diffusion.mitigations import SAMPLING, OnCaption
from copyscope.diffusion.models import Image
from copyscope.errors import InputError

from . import returned
from .calls import OUTPUTS, Attempt, GenerationCall, Ladder, SeedOf, StepObserver, generator, has_length

SEVERAL = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)


class FunctionCall(GenerationCall):
    """Call of any function of a prompt, or of prompts [m], that returns images.

    It returns a list, an array [n h w 3], one image, or something with these as `images`; n is a multiple of m. Its
    `seed` or `generator`, where it takes one and was given none, is one a call. An image is made again by a call for
    its prompt alone; or, where other arguments may hold something a prompt, by a call for all of them, of which it
    alone is taken.
    """

    watchable = False

    @classmethod
    def check(cls, made_by: Any, ladder: Ladder, nearest: FindNearest | None) -> None:
        """Accept mitigations of the prompt alone; see `GenerationCall.check`."""
        for spec in itertools.chain(*ladder):
            if not isinstance(applied.named(spec, SAMPLING), OnCaption):
                raise InputError(
                    f"{spec} acts inside a sampling, which a {type(made_by).__name__} keeps to itself.\n"
                    "Give a diffusers pipeline, or take mitigations of the prompt: random_tokens, random_numbers"
                )

    def __init__(
        self, made_by: Any, arguments: tuple[Any, ...], options: Mapping[str, Any], watching: StepObserver
    ) -> None:
        self.function, self.bound = made_by, inspect.signature(made_by).bind_partial(*arguments, **options)
        parameters = self.bound.signature.parameters
        told = self.bound.arguments
        self.name = "prompt" if "prompt" in told else next(iter(told), "")
        prompt = told.get(self.name)
        if not isinstance(prompt, (str, list)) or parameters[self.name].kind in SEVERAL:
            raise InputError("There is no prompt.\nGive a text or a list of texts first, or as `prompt`")
        self.prompt: str | list[str] = prompt
        form = told.get("output_type")
        if isinstance(form, str) and form not in OUTPUTS:
            raise InputError(f"output_type {form!r} cannot be guarded: it may hold no pictures.\nTake 'pil' or 'np'")
        self.takes = seed_argument(made_by)
        self._shown: dict[int, bytes] = {}
        self.seeds = isinstance(told.get(self.takes or ""), (list, tuple))
        """Whether the caller gives one a prompt."""
        # A seed of the caller's, or a function's own default, makes the first try what it is without a guard.
        own = (None, inspect.Parameter.empty)
        self.seeded = self.takes is not None and told.get(self.takes, parameters[self.takes].default) in own

    def seed_used(self, row: int, attempt: int) -> bool:
        """Whether a seed was handed in; see `GenerationCall.seed_used`."""
        # The first try is one call, with the seed of its first image.
        return self.takes is not None if attempt else self.seeded and row == 0

    def first(self, seed_of: SeedOf) -> Attempt:
        """Call the function; see `GenerationCall.first`."""
        self._returned = self._call(self.prompt, seed_of(0) if self.seeded else None)
        images = returned.listed(self._returned)
        texts = [self.prompt] if isinstance(self.prompt, str) else list(self.prompt)
        if not texts or len(images) % len(texts):
            raise InputError(f"{len(images)} images came of {len(texts)} prompts.\nReturn as many of each prompt")
        self.each = len(images) // len(texts)
        self.prompts = [text for text in texts for _ in range(self.each)]
        return Attempt.finished(images)

    def again(self, rows: Sequence[int], rung: Sequence[str], seed_of: SeedOf) -> Attempt:
        """Call it again for the prompts of these rows; see `GenerationCall.again`."""
        captions = applied.MitigationStack(tuple(applied.named(spec, SAMPLING) for spec in rung))
        images = []
        for row in rows:
            seed = seed_of(row)
            text = captions.caption(
                [self.prompts[row] or ""], lambda number, s=seed: applied.sampling_rngs([s], number)[0]
            )
            prompt, place = self._asked(row, text)
            found = returned.listed(self._call(prompt, seed))
            if len(found) != self.each * (len(prompt) if isinstance(prompt, list) else 1):
                raise InputError(f"A prompt gave {self.each} images, then {len(found)}.\nReturn as many each time")
            images.append(found[place])
        return Attempt.finished(images)

    def same_again(self, rows: Sequence[int], views: Sequence[Sequence[Image]]) -> bool:
        """Compare digests, where the function takes no seed; see `GenerationCall.same_again`."""
        if self.takes is not None:
            return False
        digests = {}
        for row, each in zip(rows, views, strict=True):
            content = hashlib.sha256()
            for view in each:
                content.update(repr(view.shape).encode() + view.tobytes())
            digests[row] = content.digest()
        same = all(self._shown.get(row) == digest for row, digest in digests.items())
        self._shown |= digests
        return same

    def _asked(self, row: int, text: str) -> tuple[str | list[str], int]:
        """The prompts of a call that makes an image again, and the image's place among what comes of it."""
        if isinstance(self.prompt, str):
            return text, row
        several = {len(self.prompt), len(self.prompts)}
        others = {name: value for name, value in self.bound.arguments.items() if name not in (self.name, self.takes)}
        if len(self.prompt) == 1 or not has_length(others, several):
            return [text], row % self.each
        return [text if place == row // self.each else each for place, each in enumerate(self.prompt)], row

    def output(self, images: Sequence[Any], extras: Mapping[str, Mapping[int, Any]]) -> Any:
        """Images in the form that the function returned; see `GenerationCall.output`."""
        return returned.like(self._returned, images)

    def _call(self, prompt: Any, seed: int | None) -> Any:
        bound = inspect.BoundArguments(self.bound.signature, self.bound.arguments | {self.name: prompt})
        if seed is not None and self.takes:
            n = len(prompt) if self.seeds and isinstance(prompt, list) else 1
            each: list[Any] = [seed if self.takes == "seed" else generator(seed) for _ in range(n)]
            bound.arguments[self.takes] = each if self.seeds else each[0]
        return self.function(*bound.args, **bound.kwargs)


def seed_argument(function: Callable[..., Any]) -> str | None:
    """Name of a function's seed argument, `seed` or `generator`; None if it takes neither."""
    names = inspect.signature(function).parameters
    found = [name for name in ("seed", "generator") if name in names]
    return next((name for name in found if names[name].kind not in SEVERAL), None)
