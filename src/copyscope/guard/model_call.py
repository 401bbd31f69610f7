"""Generation calls of a model or a run."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

from copyscope.diffusion import applied, observed
from copyscope.diffusion.denoiser import DenoiseResult, FindNearest
from copyscope.diffusion.generate import SampleRecipe, opened, sample
from copyscope.diffusion.mitigations import NEAREST, PROMPTS, SAMPLING
from copyscope.diffusion.models import Image, Model
from copyscope.errors import InputError

from .calls import Attempt, GenerationCall, Ladder, SeedOf, StepObserver, Stopped, arrays


class ModelCall(GenerationCall):
    """Call of a model: `(prompts, recipe=None, seeds=None) -> pictures`, a list of uint8 [h w 3], one a prompt.

    `prompts` is a text or a list of n; `recipe` a SampleRecipe, of which `prompts`, `n_images`, `signals` and `seed` do
    not count here; `seeds` are those of the first try [n]. The mitigations of a rung come after the recipe's own.
    """

    @classmethod
    def check(cls, made_by: Any, ladder: Ladder, nearest: FindNearest | None) -> None:
        """Check that every rung loads for the model; see `GenerationCall.check`."""
        model = cls.model(made_by)
        for rung in filter(None, ladder):
            _loaded(rung, model, 2.0, nearest)

    @classmethod
    def model(cls, made_by: Any) -> Model:
        """Model of the run, folder or spec."""
        return opened(made_by)[0]

    def __init__(
        self, made_by: Any, arguments: tuple[Any, ...], options: Mapping[str, Any], watching: StepObserver
    ) -> None:
        self.loaded, self.watching = self.model(made_by), watching
        prompts, recipe, self.seeds = _told(*arguments, **options)
        texts = [prompts] if isinstance(prompts, str) else list(prompts) if isinstance(prompts, Sequence) else []
        if not texts or not all(isinstance(each, str) for each in texts):
            raise InputError("There is no prompt.\nGive a text or a list of texts first, or as `prompts`")
        if self.seeds is not None and len(self.seeds) != len(texts):
            raise InputError(f"There are {len(self.seeds)} seeds for {len(texts)} prompts.\nGive one a prompt")
        self.texts, self.prompts = texts, [*texts]
        self.recipe = recipe or SampleRecipe()

    def seed_used(self, row: int, attempt: int) -> bool:
        """Unless the caller gave seeds; see `GenerationCall.seed_used`."""
        return attempt > 0 or self.seeds is None

    def fits(self, rung: Sequence[str]) -> bool:
        """Whether a rung loads at the recipe's guidance; see `GenerationCall.fits`."""
        try:
            _loaded(rung, self.loaded, self.recipe.guidance, self.watching.nearest)
        except InputError:
            return False
        return True

    def first(self, seed_of: SeedOf) -> Attempt:
        """Sample all prompts; see `GenerationCall.first`."""
        rows = range(len(self.texts))
        return self._made(rows, self.seeds or [seed_of(row) for row in rows], ())

    def again(self, rows: Sequence[int], rung: Sequence[str], seed_of: SeedOf) -> Attempt:
        """Sample these rows with a rung; see `GenerationCall.again`."""
        return self._made(rows, [seed_of(row) for row in rows], rung)

    def output(self, images: Sequence[Any], extras: Mapping[str, Mapping[int, Any]]) -> list[Image]:
        """Pictures as a list; see `GenerationCall.output`."""
        return list(images)

    def _made(self, rows: Sequence[int], seeds: Sequence[int], rung: Sequence[str]) -> Attempt:
        specs = (*self.recipe.mitigations, *rung)
        settings: dict[str, Any] = {"mitigations": specs, "signals": tuple(self.watching.of(rung))}
        recipe = dataclasses.replace(self.recipe, n_images=len(rows), **settings)
        parts = _loaded(specs, self.loaded, recipe.guidance, self.watching.nearest)
        texts = [
            parts.caption([self.texts[row]], lambda number, s=seed: applied.sampling_rngs([s], number)[0])
            for row, seed in zip(rows, seeds, strict=True)
        ]
        watched, looking = observed.Observed(), self.watching.looking()

        def on_step(step: DenoiseResult) -> None:
            if looking:
                looking(self.loaded, step)

        try:
            images = sample(
                self.loaded,
                self.loaded.condition(texts),
                seeds,
                recipe,
                prompts=texts,
                nearest=self.watching.nearest,
                on_step=on_step,
                watched=watched,
            )
        except Stopped as stopped:
            return Attempt.stopped(stopped, watched.scores)
        return Attempt.finished(images, arrays(watched.scores), colours=True)


def _told(
    prompts: str | Sequence[str], recipe: SampleRecipe | None = None, seeds: Sequence[int] | None = None
) -> tuple[str | Sequence[str], SampleRecipe | None, Sequence[int] | None]:
    return prompts, recipe, seeds


def _loaded(
    specs: Sequence[str], model: Model, guidance: float, nearest: FindNearest | None
) -> applied.MitigationStack:
    has = [PROMPTS] if nearest is None else [PROMPTS, NEAREST]
    return applied.load(specs, SAMPLING, model, guidance=guidance, has=has)
