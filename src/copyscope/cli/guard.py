"""Command `guard`: thresholds for signals, and the report of a guard's log."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Annotated, Any

import typer

from copyscope.console import progress_bar, show_json, show_table

from .make import mitigated, recipe_of
from .options import AsJson, MitigationSpecs, ModelSpec, Recipe, Seed, Settings, SignalSpecs, TrustParts, need_torch

USUAL = "text_conditional_norm"


def shortened(spec: str) -> str:
    """Shorten a spec for people: what a signal learned is a number a step."""
    return spec if len(spec) <= 60 else f"{spec.partition('(')[0]}(...)"


guard = typer.Typer(help="What tells that an image in the making is likely a copy.", no_args_is_help=True)


@guard.command("calibrate")
def calibrate(
    model: ModelSpec,
    prompts: Annotated[Path, typer.Option("--prompts", metavar="FILE", help="Ordinary prompts, one a line.")],
    out: Annotated[Path, typer.Option("--out", "-o", metavar="FILE", help="JSON file of the thresholds.")],
    signal: SignalSpecs = None,
    rate: Annotated[float, typer.Option("--rate", help="False-positive rate among ordinary prompts.")] = 0.01,
    recipe: Recipe = None,
    settings: Settings = None,
    mitigation: MitigationSpecs = None,
    seed: Seed = 0,
    trust_parts: TrustParts = False,
    as_json: AsJson = False,
) -> None:
    """Find the scores that ordinary prompts pass at a chosen rate, of each signal.

    Without --signal it is text_conditional_norm. latent_update_norm first learns its band of ordinary prompts, of a
    fifth of them. The file holds for this model and this way to make images (steps, guidance, mitigations) alone.
    """
    need_torch("A guard")
    from copyscope.diffusion.generate import SampleRecipe, prompts_in
    from copyscope.diffusion.prompts.signal_scores import calibrate as run

    resolved = mitigated(recipe_of(SampleRecipe, recipe, settings, "sample", {}, trust_parts), mitigation)
    signals = resolved.signals + tuple(signal or ()) or (USUAL,)
    resolved = dataclasses.replace(resolved, signals=signals, seed=seed)
    with progress_bar() as progress:
        found = run(model, prompts_in(str(prompts)), resolved, rate=rate, trust_parts=trust_parts, progress=progress)
    found.save(out)
    if as_json:
        show_json(found.as_dict())
        return
    import pyarrow as pa

    rows: list[dict[str, Any]] = [
        {"signal": shortened(spec), "flagged above": f"{each.value:.6g}"}
        | {"of ordinary": f"{100 * each.rate:.2g} %", "n": each.n}
        for spec, each in found.signals.items()
    ]
    show_table(pa.Table.from_pylist(rows), "thresholds")
    print(f"Thresholds: {out}")
