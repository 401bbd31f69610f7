"""How well each signal tells prompts that a model has memorized from ordinary ones, and what it costs.

    python benchmarks/signals.py RUN --train TRAIN --held-out HELD_OUT        2 minutes on two quiet cores

RUN: a finished training on TRAIN. Prompts are training captions and captions of held-out images, one image each, all
signals in one sampling. What is true of a prompt is told in two columns: `known`, it is a training caption; `copied`,
the image made of it is a copy by the audit. Of both, the area under the ROC curve and the share found at 1 % false
positives, with bootstrap intervals. `combined`: logistic regression on the signals in nested cross-validation, the
inner one choosing how many of them, best first. `calibrated`: thresholds at 1 % by the other held-out captions (99 at
least), and the share of `known` and of unknown prompts above them. `calls` and `ratio`: model calls of an image
beyond the sampler's, and time of a sampling over one without the signal.
"""

from __future__ import annotations

import argparse
import dataclasses
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

import copyscope
from copyscope import Corpus, stats
from copyscope.detection.causes.firth import firth
from copyscope.diffusion import Run, SampleRecipe, observed, thresholds
from copyscope.diffusion.generate import generate, sample, seeds_of
from copyscope.diffusion.models import Model
from copyscope.diffusion.prompts.signal_scores import learned, scores
from record import record

SPECS = (
    "text_conditional_norm", "text_conditional_norm(steps=5)", "text_conditional_norm(steps=0)", "latent_update_norm",
    "two_level_difference", "two_level_difference(steps=10)", "sharpness", "isotropy", "attention_entropy",
    "attention_entropy(steps=0)", "bright_ending", "seed_variation", "seed_variation(steps=1)",
)  # fmt: skip
RATE, FOLDS = 0.01, 5
Bools = NDArray[np.bool_]


def area(values: NDArray[Any], truth: NDArray[Any]) -> float:
    """Under the ROC curve: how often a true one scores above one that is not, ties by half."""
    is_true = truth.astype(bool)
    if is_true.all() or not is_true.any():
        return float("nan")
    difference = values[is_true][:, None] - values[~is_true][None]
    return float(((difference > 0) + 0.5 * (difference == 0)).mean())


def found_at(values: NDArray[Any], truth: NDArray[Any]) -> float:
    """Share of the true ones above the lowest line that at most 1 % of the others pass."""
    is_true = truth.astype(bool)
    if is_true.all() or not is_true.any():
        return float("nan")
    others = np.sort(values[~is_true])[::-1]
    return float((values[is_true] > others[int(RATE * len(others))]).mean())


def told_apart(values: NDArray[Any], truth: Bools) -> dict[str, Any]:
    measures: dict[str, Callable[..., float]] = {"auc": area, "tpr_at_1_percent_fpr": found_at}
    return {
        name: stats.bootstrap(measure, values, truth.astype(float)).as_dict() for name, measure in measures.items()
    } | {"n_true": int(truth.sum()), "n_false": int((~truth).sum())}


def fitted(table: NDArray[Any], truth: Bools, rows: NDArray[Any], columns: Sequence[int]) -> NDArray[Any]:
    """Log-odds of all rows by a regression on some of them."""
    part = table[:, columns]
    part = (part - part[rows].mean(0)) / part[rows].std(0).clip(min=1e-12)
    x = np.column_stack([np.ones(len(part)), part])
    return x @ firth(x[rows], truth[rows]).coefficients


def folds(truth: Bools, rows: NDArray[Any], seed: int) -> list[NDArray[Any]]:
    """Rows in FOLDS parts, true ones and others evenly."""
    rng, parts = np.random.default_rng(seed), [[] for _ in range(FOLDS)]
    for side in (rows[truth[rows]], rows[~truth[rows]]):
        for place, row in enumerate(rng.permutation(side)):
            parts[place % FOLDS].append(row)
    return [np.array(sorted(part)) for part in parts]


def combined(table: NDArray[Any], truth: Bools) -> NDArray[Any] | None:
    """Log-odds [n], of each row by a fit that has not seen it; None where there are too few of a kind."""
    every = np.arange(len(truth))
    if min(truth.sum(), (~truth).sum()) < 2 * FOLDS:
        return None
    found = np.zeros(len(truth))
    for held in folds(truth, every, 0):
        rest = np.setdiff1d(every, held)
        best = sorted(range(table.shape[1]), key=lambda column: -area(table[rest, column], truth[rest]))

        def inner(k: int, rest: NDArray[Any] = rest, best: list[int] = best) -> float:
            out = np.zeros(len(truth))
            for left in folds(truth, rest, 1):
                out[left] = fitted(table, truth, np.setdiff1d(rest, left), best[:k])[left]
            return area(out[rest], truth[rest])

        k = max((1, 2, 3, 5, len(best)), key=inner)
        found[held] = fitted(table, truth, rest, best[:k])[held]
    return found


def costs(model: Model, prompts: list[str], recipe: SampleRecipe, specs: Sequence[str], rounds: int) -> dict[str, Any]:
    """Of each signal, model calls of an image and time of a sampling over one without it, in turn."""
    told = model.condition(prompts)

    def seconds(signals: tuple[str, ...]) -> float:
        watched, asked = observed.Observed(), dataclasses.replace(recipe, signals=signals, n_images=len(prompts))
        start = time.perf_counter()
        sample(model, told, range(len(prompts)), asked, prompts=prompts, watched=watched)
        return time.perf_counter() - start

    found = {}
    for spec in specs:
        signal = observed.load([spec], model, guidance=recipe.guidance)[0]
        pairs = [(seconds((spec,)), seconds(())) for _ in range(rounds)]
        found[spec] = {
            "calls": signal.calls(recipe.steps, recipe.guidance != 1),
            "calls_of_the_sampler": recipe.steps * (2 if recipe.guidance != 1 else 1),
            "needed_steps": signal.needed(recipe.steps),
            "ratio": statistics.median(ours / plain for ours, plain in pairs),
        }
    return found


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("run")
    arguments.add_argument("--train", required=True)
    arguments.add_argument("--held-out", required=True)
    arguments.add_argument("-n", type=int, default=128, help="prompts of each kind")
    arguments.add_argument("--guidance", type=float, default=1.5)
    arguments.add_argument("--steps", type=int, default=20)
    arguments.add_argument("--rounds", type=int, default=3)
    options = arguments.parse_args()
    run, held_out, n = Run.open(options.run), Corpus.open(options.held_out), options.n
    rng = np.random.default_rng(0)
    rows = [row for row in run.table.select(["id", "captions", "weight"]).to_pylist() if row["weight"] > 0]
    known = [rows[row] for row in rng.permutation(len(rows))[:n]]
    bearing = {row["captions"][0] for row in rows}
    others = list(dict.fromkeys(each[0] for each in held_out.captions if each and each[0] not in bearing))
    others = [others[row] for row in rng.permutation(len(others))]
    unknown, usual, ordinary = others[:n], others[n : 2 * n], others[2 * n :]
    recipe = SampleRecipe(n_images=2 * n, steps=options.steps, guidance=options.guidance)
    asked = dataclasses.replace(recipe, signals=("latent_update_norm",), n_images=len(usual))
    (banded,) = learned(run.model, usual, seeds_of(asked), asked)
    named = dict(zip((*SPECS, banded), (*SPECS, "latent_update_norm(band)"), strict=True))
    recipe = dataclasses.replace(recipe, signals=tuple(named))
    with tempfile.TemporaryDirectory() as temporary:
        captions = [row["captions"][0] for row in known] + unknown
        ids = [row["id"] for row in known] + [None] * n
        made = generate(run, Path(temporary) / "made", recipe, captions=captions, ids=ids)
        audit = copyscope.audit(made, options.train, options.held_out, "sscd-288")
    verdicts = dict(zip(*(audit.tables["generated"][name].to_pylist() for name in ("id", "copied")), strict=True))
    copied = np.array([bool(verdicts[each]) for each in made.table["id"].to_pylist()])
    is_known = np.arange(2 * n) < n
    table = np.column_stack([np.array(made.table[spec].to_pylist(), dtype=float) for spec in named])
    truths: dict[str, Bools] = {"known": is_known, "copied": copied}
    cost = costs(run.model, captions[:8], recipe, list(named), options.rounds)
    calibrating = dataclasses.replace(recipe, n_images=len(ordinary), seed=1)
    drawn = thresholds.calibrate(scores(run.model, ordinary, seeds_of(calibrating), calibrating), "", "", RATE)
    found: dict[str, Any] = {}
    for (spec, name), values in zip(named.items(), table.T, strict=True):
        flagged = values > drawn.signals[spec].value
        shares = {"known": flagged[is_known], "unknown": flagged[~is_known]}
        found[name] = {truth: told_apart(values, kind) for truth, kind in truths.items()} | cost[spec]
        found[name]["calibrated"] = {
            kind: stats.proportion(int(each.sum()), len(each)).as_dict() for kind, each in shares.items()
        }
    together = {truth: combined(table, kind) for truth, kind in truths.items()}
    found["combined"] = {
        truth: told_apart(values, truths[truth]) for truth, values in together.items() if values is not None
    }
    counts = {kind: [int(copied[each].sum()), n] for kind, each in (("known", is_known), ("unknown", ~is_known))}
    show(found)
    sizes = {
        "n": n,
        "n_calibrating": len(ordinary),
        "steps": options.steps,
        "guidance": options.guidance,
        "copied": counts,
    }
    record("signals", {"signals": found, "model": run.recipe.model, "training": run.recipe.steps} | sizes)


def show(found: dict[str, Any]) -> None:
    for name, row in found.items():
        cells = [
            f"{truth} {row[truth]['auc']['value']:.3f} {row[truth]['tpr_at_1_percent_fpr']['value']:.3f}"
            for truth in ("known", "copied")
            if truth in row and row[truth]["auc"]["value"] is not None
        ]
        print(f"{name:34}", *cells, row.get("calls", ""), f"{row['ratio']:.2f}" if "ratio" in row else "", flush=True)


if __name__ == "__main__":
    main()
