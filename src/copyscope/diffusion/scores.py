"""Prompts -> scores of signals, without making the images; and of ordinary ones, where a high score begins."""

from __future__ import annotations

import contextlib
import dataclasses
import os
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from copyscope import thresholds
from copyscope.errors import InputError
from copyscope.machine import Progress
from copyscope.stats import Floats

from . import applied, observed
from .denoiser import Step
from .generate import SampleRecipe, block_size, made_with, opened, sample, seeds_of
from .mitigations import PROMPTS, SAMPLING
from .models import Model

if TYPE_CHECKING:
    from .train import Run


class _SeenEnough(Exception):
    """All signals have seen what they need."""


def scores(
    model: Model,
    prompts: Sequence[str],
    seeds: Sequence[int],
    recipe: SampleRecipe,
    *,
    progress: Progress | None = None,
) -> dict[str, Floats]:
    """Of each signal of the recipe, the scores [n] that images of these prompts and seeds would have.

    As `generate` has them, but sampling stops once all signals have seen what they need. Mitigations that rewrite
    captions are not applied: give the prompts as rewritten. Raises InputError where a signal needs what is lacking.
    """
    signals = observed.load(recipe.signals, model, guidance=recipe.guidance, has=[PROMPTS])
    needed = max((signal.needed(recipe.steps) for signal in signals), default=0)
    found: dict[str, list[Floats]] = {str(signal): [] for signal in signals}
    size = block_size(model.shape, recipe.n_images)
    for start in range(0, len(prompts), size):
        part, watched = list(prompts[start : start + size]), observed.Observed()
        options: dict[str, Any] = {"prompts": part, "watched": watched, "on_step": _stop_at(needed)}
        with contextlib.suppress(_SeenEnough):
            sample(model, model.condition(part), list(seeds[start : start + size]), recipe, **options)
        for spec, values in watched.scores.items():
            found[spec].append(values.double().cpu().numpy())
        if progress:
            progress("watching", min(start + size, len(prompts)), len(prompts))
    return {spec: np.concatenate(each) if each else np.zeros(0) for spec, each in found.items()}


def calibrate(
    model: Model | Run | str | os.PathLike[str],
    prompts: Sequence[str],
    recipe: SampleRecipe,
    *,
    rate: float = 0.01,
    progress: Progress | None = None,
) -> thresholds.Thresholds:
    """Of each signal of the recipe the line that ordinary prompts cross at this false-positive rate, one image each.

    model: as for `generate`. prompts: like those that are to be flagged when they are not ordinary, but known to the
    model from nowhere. recipe: how the images will be made. Raises InputError where a signal needs what is lacking, or
    there are too few prompts.
    """
    model, run = opened(model)
    if not recipe.signals:
        raise InputError("There are no signals to calibrate.\nName one: text_conditional_norm")
    # Said before the work.
    thresholds.calibrate({"": np.zeros(len(prompts))}, "", "", rate)
    recipe = dataclasses.replace(recipe, n_images=len(prompts))
    parts = applied.load(recipe.mitigations, SAMPLING, model, guidance=recipe.guidance)
    seeds = seeds_of(recipe)
    told = [
        parts.caption([prompt], lambda number, seed=seed: applied.sampling_rngs([seed], number)[0])
        for prompt, seed in zip(prompts, seeds, strict=True)
    ]
    found = scores(model, told, seeds, recipe, progress=progress)
    return thresholds.calibrate(found, observed.fingerprint(model), made_with(model, run, recipe), rate)


def _stop_at(needed: int) -> Callable[[Step], None]:
    def look(step: Step) -> None:
        if step.i is not None and step.i + 1 >= needed:
            raise _SeenEnough

    return look
