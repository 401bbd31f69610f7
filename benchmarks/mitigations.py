"""What each mitigation costs: time of a training step, time of an image, and model calls of an image.

    python benchmarks/mitigations.py              about 20 minutes on two quiet cores
    python benchmarks/mitigations.py --rounds 1 --steps 4 gaussian_noise delayed_guidance

All on `small_unet`, each part at its defaults or as in SPECS, beside the same without it, in turn: steps of training
alternate one by one, samplings one by one. `step`: a training step over a plain one, both with the cache of texts; what
a run pays. New captions are not in that cache and are encoded, so `encoding all` is the same where neither side has a
cache: the part alone. Expect at most 1.02: `step`, or `encoding all` of those that rewrite captions; not of those with
calls in training. `calls` of the model, counted, are an image's beyond the sampler's own; `says`: what the part says,
at most.
"""

from __future__ import annotations

import argparse
import functools
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator

from copyscope import Corpus, parts
from copyscope.diffusion import SampleRecipe, TrainRecipe
from copyscope.diffusion.generate import sample
from copyscope.diffusion.mitigations import NEAREST, SAMPLING, TRAINING, OnCaption
from copyscope.diffusion.models import Model
from copyscope.diffusion.training.data import LatentCache
from copyscope.diffusion.training.loop import Loop
from copyscope.diffusion.training.train import train
from copyscope.nearest_image import nearest
from pictures import corpus
from record import record

N, BATCH, WARM = 128, 32, 3
N_SAMPLES, SAMPLE_STEPS, GUIDANCE, COUNTED = 16, 25, 3.0, 4
# Parts that do nothing without arguments, or as much as the picture calls for: here they pay all they may cost.
SPECS = {
    "antimemorization_guidance": "antimemorization_guidance(threshold=-1.0)",
    "noise_restriction": "noise_restriction(highest=3.0)",
    "prompt_optimisation": "prompt_optimisation(target=0.0)",
    "prompt_reanchoring": "prompt_reanchoring(threshold=0.0, trigger=0.0)",
    "sharpness_aware_noise": "sharpness_aware_noise(target=0.0)",
}
BAR = 1.02


def stepper(training: Corpus, out: Path, *specs: str, cache: bool = True) -> Callable[[int], float]:
    """Step -> seconds it took in a training with these mitigations."""
    recipe = TrainRecipe(steps=10**6, batch_size=BATCH, mitigations=specs, cache_text=cache, tracker="none")
    model = parts.load("models", recipe.model)
    loop = Loop(
        model, LatentCache(training, model, recipe, None), training, recipe, out, Accelerator(cpu=True), None, None
    )
    model.network.train()

    def seconds(step: int) -> float:
        start = time.perf_counter()
        loop._step(step)
        return time.perf_counter() - start

    return seconds


def in_turn(ours: Callable[[int], float], plain: Callable[[int], float], first: int, n: int) -> tuple[float, float]:
    """Median seconds of each over n turns, the one that goes first changing from turn to turn."""
    took: list[tuple[float, float]] = []
    for turn in range(first, first + n):
        if turn % 2:
            a = ours(turn)
            took.append((a, plain(turn)))
        else:
            b = plain(turn)
            took.append((ours(turn), b))
    a, b = (statistics.median(each) for each in zip(*took, strict=True))
    return a, b


def compared(ours: Callable[[int], float], plain: Callable[[int], float], rounds: int, n: int) -> dict[str, Any]:
    """Rounds of n turns, after a few that do not count."""
    in_turn(ours, plain, 0, WARM if n > 1 else 1)
    pairs = [in_turn(ours, plain, WARM + n * turn, n) for turn in range(rounds)]
    each = [a / b for a, b in pairs]
    return {
        "seconds": [a for a, _ in pairs],
        "seconds_plain": [b for _, b in pairs],
        "ratio": statistics.median(each),
        "ratios": each,
    }


def trainings(names: Sequence[str], training: Corpus, out: Path, rounds: int, n: int) -> dict[str, dict[str, Any]]:
    """A training step with each part over a plain one; of caption parts besides where both encode all captions."""
    plain = {cache: stepper(training, out, cache=cache) for cache in (True, False)}
    found: dict[str, dict[str, Any]] = {}
    # What the measurement itself is worth, and the cache of texts.
    found["plain, again"] = {"step": compared(stepper(training, out), plain[True], rounds, n)}
    found["plain, encoding all"] = {"step": compared(plain[False], plain[True], rounds, n)}
    for name in names:
        cls, spec = parts.part_class("mitigations", name), SPECS.get(name, name)
        row: dict[str, Any] = {"spec": spec, "training_calls": cls.training_calls}
        row["step"] = compared(stepper(training, out, spec), plain[True], rounds, n)
        if issubclass(cls, OnCaption):
            ours = stepper(training, out, spec, cache=False)
            row["encoding_all"] = compared(ours, plain[False], rounds, n)
        found[name] = row
        print(name, "in training", _shown(row.get("encoding_all", row["step"])), flush=True)
    return found


def samplings(names: Sequence[str], model: Model, training: Corpus, rounds: int) -> dict[str, dict[str, Any]]:
    """Model calls of an image and seconds of sampling with each part, beside plain sampling."""
    prompts = [row[0] for row in training.captions[:N_SAMPLES]]
    find = nearest(training, "sscd-distilled")
    find([np.zeros((64, 64, 3), np.uint8)])

    def made(turn: int, specs: tuple[str, ...], n: int = N_SAMPLES, block: int = N_SAMPLES) -> float:
        recipe = SampleRecipe(n_images=block, steps=SAMPLE_STEPS, guidance=GUIDANCE, mitigations=specs)
        start = time.perf_counter()
        told = model.condition(prompts[:n])
        sample(model, told, range(turn, turn + n), recipe, prompts=prompts[:n], nearest=find)
        return time.perf_counter() - start

    def calls(*specs: str) -> float:
        """Of an image. In blocks of one, so that none is filled up."""
        rows: list[int] = []
        hook = model.network.register_forward_pre_hook(lambda _, given: rows.append(len(given[0])))
        made(0, specs, COUNTED, 1)
        hook.remove()
        return sum(rows) / COUNTED

    own = calls()
    found: dict[str, dict[str, Any]] = {}
    for name in names:
        spec = SPECS.get(name, name)
        part = parts.load("mitigations", spec)
        ours, plain = functools.partial(made, specs=(spec,)), functools.partial(made, specs=())
        row = {"spec": spec, "calls": calls(spec) - own, "calls_said": part.calls(SAMPLE_STEPS), "calls_plain": own}
        found[name] = row | {"nearest": NEAREST in part.needs} | compared(ours, plain, rounds, 1)
        print(name, "in sampling", row["calls"], "of", row["calls_said"], _shown(found[name]), flush=True)
    return found


def _shown(found: dict[str, Any] | None) -> str:
    return f"{found['ratio']:.3f}" if found else ""


def show(trained: dict[str, dict[str, Any]], sampled: dict[str, dict[str, Any]]) -> None:
    """The table: a row a part."""
    heads = ("mitigation", "step", "encoding all", "calls in training", "sampling", "calls", "says")
    rows = [heads]
    for name in dict.fromkeys([*trained, *sampled]):
        a, b = trained.get(name, {}), sampled.get(name, {})
        cells = (a.get("training_calls", ""), _shown(b), b.get("calls", ""), b.get("calls_said", ""))
        rows.append((name, _shown(a.get("step")), _shown(a.get("encoding_all")), *map(str, cells)))
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        print("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())
    for name, row in trained.items():
        alone = row.get("encoding_all", row["step"])
        if row.get("training_calls") == 0 and alone["ratio"] >= BAR:
            print(f"Above the bar of {BAR}: {name}, {alone['ratio']:.3f}")
    for name, row in sampled.items():
        if row["calls"] > row["calls_said"]:
            print(f"More calls than it says: {name}")


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("names", nargs="*", metavar="PART", help="only these")
    arguments.add_argument("--rounds", type=int, default=5)
    arguments.add_argument("--steps", type=int, default=20, help="steps of training a round")
    options = arguments.parse_args()
    names = options.names or parts.names("mitigations")
    stages = {name: parts.part_class("mitigations", name).stages for name in names}
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        training = corpus(folder / "train", N, 4)
        acting = [name for name in names if TRAINING in stages[name]]
        trained = trainings(acting, training, folder / "none", options.rounds, options.steps)
        # Trained a little, so that prompts, and parts that look at what they do, make a difference.
        run = train(training, folder / "run", TrainRecipe(steps=60, caption_dropout=0.1, tracker="none"))
        acting = [name for name in names if SAMPLING in stages[name]]
        sampled = samplings(acting, run.model, training, options.rounds)
    show(trained, sampled)
    sizes = {"rounds": options.rounds, "steps": options.steps, "threads": torch.get_num_threads(), "batch": BATCH}
    sizes |= {"samples": N_SAMPLES, "sample_steps": SAMPLE_STEPS, "guidance": GUIDANCE}
    record("mitigations", {"training": trained, "sampling": sampled} | sizes)


if __name__ == "__main__":
    main()
