"""Signal scores of prompts, and thresholds from ordinary prompts."""

from __future__ import annotations

import contextlib
import dataclasses
import math
import os
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from copyscope.diffusion import applied, observed, thresholds
from copyscope.diffusion.denoiser import DenoiseResult
from copyscope.diffusion.generate import SampleRecipe, block_size, made_with, opened, sample, seeds_of
from copyscope.diffusion.mitigations import PROMPTS, SAMPLING
from copyscope.diffusion.models import Model
from copyscope.diffusion.signals import Signal, SignalState
from copyscope.errors import InputError
from copyscope.machine import Progress
from copyscope.stats import Floats

if TYPE_CHECKING:
    from copyscope.diffusion.run import Run


FITTED, LEAST = 0.2, 10
"""Share of the prompts that signals learn of where they learn, and how many at least."""


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
    """Signal scores of prompts before their images are made.

    As `generate` has them, but sampling stops once all signals have seen what they need. Mitigations that rewrite
    captions are not applied: give the prompts as rewritten.

    Args:
        model: the model.
        prompts: [n].
        seeds: of the images [n].
        recipe: how the images will be made; names the signals.
        progress: called with a label, the number done and the total.

    Returns:
        Signal's spec -> scores [n].

    Raises:
        InputError: a signal needs what is lacking.
    """
    signals = observed.load(recipe.signals, model, guidance=recipe.guidance, has=[PROMPTS])
    found: dict[str, list[Floats]] = {str(signal): [] for signal in signals}
    for watched in _watched(model, prompts, seeds, recipe, signals, progress):
        for spec, values in watched.scores.items():
            found[spec].append(values.double().cpu().numpy())
    return {spec: np.concatenate(each) if each else np.zeros(0) for spec, each in found.items()}


def learned(
    model: Model,
    prompts: Sequence[str],
    seeds: Sequence[int],
    recipe: SampleRecipe,
    *,
    progress: Progress | None = None,
) -> tuple[str, ...]:
    """Fit the signals of a recipe that learn to ordinary prompts.

    Args:
        model: the model.
        prompts: ordinary ones [n].
        seeds: of the images [n].
        recipe: names the signals.
        progress: called with a label, the number done and the total.

    Returns:
        Specs of the signals, in the same order.
    """
    signals = observed.load(recipe.signals, model, guidance=recipe.guidance, has=[PROMPTS])
    learning = [signal for signal in signals if signal.learns]
    seen: dict[str, list[SignalState]] = {str(signal): [] for signal in learning}
    if learning:
        recipe = dataclasses.replace(recipe, signals=tuple(seen))
        for watched in _watched(model, prompts, seeds, recipe, learning, progress):
            for spec, watch in watched.watches.items():
                seen[spec].append(watch)
    return tuple(str(each.fitted(seen[str(each)]) if each.learns else each) for each in signals)


def _watched(
    model: Model,
    prompts: Sequence[str],
    seeds: Sequence[int],
    recipe: SampleRecipe,
    signals: Sequence[Signal],
    progress: Progress | None,
) -> Iterator[observed.Observed]:
    """What the recipe's `signals` see of block after block of the prompts."""
    needed = max((signal.needed(recipe.steps) for signal in signals), default=0)
    size = block_size(model.shape, recipe.n_images)
    for start in range(0, len(prompts), size):
        part, watched = list(prompts[start : start + size]), observed.Observed()
        options: dict[str, Any] = {"prompts": part, "watched": watched, "on_step": _stop_at(needed)}
        with contextlib.suppress(_SeenEnough):
            sample(model, model.condition(part), list(seeds[start : start + size]), recipe, **options)
        yield watched
        if progress:
            progress("watching", min(start + size, len(prompts)), len(prompts))


def calibrate(
    model: Model | Run | str | os.PathLike[str],
    prompts: Sequence[str],
    recipe: SampleRecipe,
    *,
    rate: float = 0.01,
    trust_parts: bool = False,
    progress: Progress | None = None,
) -> thresholds.Thresholds:
    """Calibrate signals on ordinary prompts: the line that these cross at a false-positive rate, one image each.

    Signals that learn do so of the first FITTED of the prompts, which then draw no line of theirs: scores of what was
    learned of are not like those of new prompts. The specs in the result hold what was learned.

    Args:
        model: a run or its folder, a model, or a spec of the shelf.
        prompts: like those that are to be flagged when they are not ordinary, but known to the model from nowhere.
        recipe: how the images will be made; names the signals.
        rate: false-positive rate, in (0, 1).
        trust_parts: of the folder of a run, as in `Run.open`.
        progress: called with a label, the number done and the total.

    Returns:
        The thresholds.

    Raises:
        InputError: a signal needs what is lacking, or there are too few prompts.
    """
    model, run = opened(model, trust_parts)
    if not recipe.signals:
        raise InputError("There are no signals to calibrate.\nName one: text_conditional_norm")
    recipe = dataclasses.replace(recipe, n_images=len(prompts))
    signals = observed.load(recipe.signals, model, guidance=recipe.guidance, has=[PROMPTS])
    first = max(LEAST, math.ceil(FITTED * len(prompts)))
    # Said before the work.
    for signal in signals:
        if signal.learns and len(prompts) < first + 1:
            raise InputError(f"{signal} learns of {LEAST} prompts, and there are {len(prompts)}.\nGive more")
        n = len(prompts) - (first if signal.learns else 0)
        try:
            thresholds.calibrate({str(signal): np.zeros(n)}, "", "", rate)
        except InputError as error:
            if not signal.learns:
                raise
            raise InputError(f"{signal} learns of {first} of the prompts; of the others: {error}") from None
    parts = applied.load(recipe.mitigations, SAMPLING, model, guidance=recipe.guidance)
    seeds = seeds_of(recipe)
    told = [
        parts.caption([prompt], lambda number, seed=seed: applied.sampling_rngs([seed], number)[0])
        for prompt, seed in zip(prompts, seeds, strict=True)
    ]
    specs = learned(model, told[:first], seeds[:first], recipe, progress=progress)
    found = scores(model, told, seeds, dataclasses.replace(recipe, signals=specs), progress=progress)
    others = {spec for spec, signal in zip(specs, signals, strict=True) if signal.learns}
    found = {spec: values[first:] if spec in others else values for spec, values in found.items()}
    return thresholds.calibrate(found, observed.fingerprint(model), made_with(model, run, recipe), rate)


def _stop_at(needed: int) -> Callable[[DenoiseResult], None]:
    def look(step: DenoiseResult) -> None:
        if step.i is not None and step.i + 1 >= needed:
            raise _SeenEnough

    return look
