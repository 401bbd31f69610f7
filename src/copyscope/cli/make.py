"""Commands `train`, `generate` and `experiment`."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TypeVar

import typer

from copyscope.console import note, note_unreadable, progress_bar, show_json, show_table
from copyscope.errors import InputError

from .options import (
    AsJson,
    CorpusPath,
    DryRun,
    HeldOut,
    InsideOnly,
    Lenient,
    MitigationSpecs,
    ProtocolName,
    Recipe,
    Settings,
    SignalSpecs,
    Split,
    TrustParts,
    Without,
    Workers,
    check_out,
    need_torch,
    opened,
    refuse_idle,
)

if TYPE_CHECKING:
    from copyscope.experiment.run import Experiment

T = TypeVar("T")

TomlFile = Annotated[Path, typer.Argument(metavar="TOML", help="The experiment: data, recipes, grid and seeds.")]
ArmsOut = Annotated[Path | None, typer.Option("--out", "-o", metavar="DIR", help="Its folder, else runs/NAME.")]

experiment = typer.Typer(
    help="A grid of recipes: train, generate and audit each; then one table and one report.", no_args_is_help=True
)


def train(
    context: typer.Context,
    corpus: CorpusPath,
    out: Annotated[Path, typer.Option("--out", "-o", metavar="RUN", help="Folder of the run.")],
    without: Without = None,
    inside_only: InsideOnly = False,
    split: Split = None,
    lenient: Lenient = False,
    recipe: Recipe = None,
    settings: Settings = None,
    mitigation: MitigationSpecs = None,
    watch: Annotated[
        int | None, typer.Option("--watch", metavar="N", min=1, help="Audit N samples at each checkpoint.")
    ] = None,
    held_out: HeldOut = None,
    protocol: ProtocolName = "sscd-288",
    trust_parts: TrustParts = False,
    dry_run: DryRun = False,
    as_json: AsJson = False,
    workers: Workers = None,
) -> None:
    """Train a model on CORPUS; killed and started again, it goes on where it was, to the same weights.

    Duplicates, captions, model and all else are in the recipe: a TOML file, the preset dcr-2023, or the defaults.
    """
    need_torch("Training")
    from copyscope.detection.watch import make_watch
    from copyscope.diffusion.recipe import PRESETS, TrainRecipe
    from copyscope.diffusion.training.train import train as run
    from copyscope.recipes import as_dict

    resolved = mitigated(recipe_of(TrainRecipe, recipe, settings, "train", PRESETS, trust_parts), mitigation)
    if watch:
        resolved = dataclasses.replace(resolved, sample_images=watch)
    elif held_out:
        raise InputError(
            "--held-out calibrates the watch, and there is none.\nAdd --watch N, for N samples at each checkpoint"
        )
    if not watch:
        refuse_idle(context, ["protocol"], "without --watch: only its audits use it\nLeave it out, or add --watch N")
    if dry_run:
        show_json(as_dict(resolved))
        return
    check_out(out)
    with progress_bar() as progress:
        images, left_out = opened(corpus, without, inside_only, progress, split, lenient)
        look = make_watch(images, held_out, protocol, workers=workers) if watch else None
        finished = run(images, out, resolved, watch=look, progress=progress)
    if as_json:
        show_json(finished.summary | left_out)
        return
    if watch:
        curve = finished.history.select(["step", *(f"replication{end}" for end in ("", "_low", "_high", "_n"))])
        show_table(curve.filter(curve["replication_n"].is_valid()), "replication while training")
    print(f"{finished.summary['steps']} steps on {finished.summary['n']} images; the model is in {out / 'model'}")
    note_unreadable(finished.summary["n_missing"])
    note(f"For images of it: copyscope generate {out} -o DIR")


def mitigated(recipe: T, specs: Sequence[str] | None) -> T:
    """The recipe with these mitigations after its own."""
    own: tuple[str, ...] = recipe.mitigations  # type: ignore[attr-defined]
    return dataclasses.replace(recipe, mitigations=own + tuple(specs or ()))  # type: ignore[type-var]


def generate(
    model: Annotated[str, typer.Argument(metavar="RUN", help="Folder that `train -o` wrote, or a model's spec.")],
    out: Annotated[Path, typer.Option("--out", "-o", metavar="DIR", help="Folder of the images.")],
    recipe: Recipe = None,
    settings: Settings = None,
    mitigation: MitigationSpecs = None,
    signal: SignalSpecs = None,
    nearest: Annotated[
        str | None, typer.Option("--nearest", metavar="TRAIN", help="Training images, for mitigations that look there.")
    ] = None,
    n: Annotated[int | None, typer.Option("-n", min=1, help="How many images.")] = None,
    prompt: Annotated[str | None, typer.Option("--prompt", metavar="TEXT", help="The prompt of all images.")] = None,
    prompts: Annotated[
        Path | None, typer.Option("--prompts", metavar="FILE", help="Prompts, one a line; else training captions.")
    ] = None,
    seed: Annotated[int | None, typer.Option("--seed", min=0, help="Seed of prompts and noise.")] = None,
    trust_parts: TrustParts = False,
    dry_run: DryRun = False,
    as_json: AsJson = False,
) -> None:
    """Make images with a trained model, a corpus that `audit` takes; stopped and started again, it goes on."""
    need_torch("Generating")
    from copyscope.diffusion.generate import SampleRecipe
    from copyscope.diffusion.generate import generate as run
    from copyscope.nearest_image import nearest as find_nearest
    from copyscope.recipes import as_dict

    if prompt is not None and prompts is not None:
        raise InputError("--prompt and --prompts cannot both be.\nLeave one out")
    resolved = mitigated(recipe_of(SampleRecipe, recipe, settings, "sample", {}, trust_parts), mitigation)
    resolved = dataclasses.replace(resolved, signals=resolved.signals + tuple(signal or ()))
    asked: dict[str, Any] = {"n_images": n, "seed": seed, "prompts": str(prompts) if prompts else None}
    if prompt is not None:
        asked["prompts"] = f"text:{prompt}"
    resolved = dataclasses.replace(resolved, **{name: value for name, value in asked.items() if value is not None})
    if dry_run:
        show_json(as_dict(resolved))
        return
    check_out(out)
    with progress_bar() as progress:
        find = find_nearest(nearest) if nearest else None
        made = run(model, out, resolved, nearest=find, trust_parts=trust_parts, progress=progress)
    if as_json:
        show_json({"schema": "copyscope.generated/1", "path": str(out), "n": len(made), "recipe": as_dict(resolved)})
        return
    print(f"{len(made)} images in {out}")
    note(f"To see what they copy: copyscope audit {out} TRAIN --held-out DIR")


@experiment.command("run")
def run_experiment(
    toml: TomlFile,
    out: ArmsOut = None,
    settings: Settings = None,
    trust_parts: TrustParts = False,
    dry_run: DryRun = False,
    as_json: AsJson = False,
) -> None:
    """Run every arm that is not finished; run again, it goes on. -o gets report.html, summary.json and tables."""
    need_torch("An experiment")
    from copyscope.experiment import run as experiments
    from copyscope.experiment.plan import plan

    planned = plan(toml, out, settings or (), trust_parts=trust_parts)
    if dry_run:
        show_json({"out": str(planned.out), "arms": [{"arm": arm.slug} | arm.recipe for arm in planned.arms]})
        return
    check_out(planned.out)
    with progress_bar() as progress:
        result = experiments.run(toml, out, settings=settings or (), trust_parts=trust_parts, progress=progress)
    _show_experiment(result, planned.out, as_json)


@experiment.command("status")
def experiment_status(
    toml: TomlFile,
    out: ArmsOut = None,
    settings: Settings = None,
    trust_parts: TrustParts = False,
    as_json: AsJson = False,
) -> None:
    """Say which arms are done, failed, under way and to do."""
    import pyarrow as pa

    need_torch("An experiment")
    from copyscope.experiment.run import status

    rows = status(toml, out, settings=settings or (), trust_parts=trust_parts)
    if as_json:
        show_json(rows)
        return
    show_table(pa.Table.from_pylist(rows), "arms")
    print(f"{sum(row['state'] == 'done' for row in rows)} of {len(rows)} arms are done.")


@experiment.command("report")
def experiment_report(
    toml: TomlFile,
    out: ArmsOut = None,
    settings: Settings = None,
    trust_parts: TrustParts = False,
    as_json: AsJson = False,
) -> None:
    """Make tables and report of the arms that are finished so far."""
    need_torch("An experiment")
    from copyscope.experiment.plan import plan
    from copyscope.experiment.run import collect

    planned = plan(toml, out, settings or (), trust_parts=trust_parts)
    check_out(planned.out)
    result = collect(planned)
    result.save(planned.out)
    _show_experiment(result, planned.out, as_json)


def _show_experiment(result: Experiment, out: Path, as_json: bool) -> None:
    import pyarrow as pa

    from copyscope.report.terminal import estimate

    summary = result.summary
    if as_json:
        show_json(summary)
        return
    shown = {"copies": "replication_rate", "of duplicated": "replication_rate_duplicated"}
    shown |= {"of others": "replication_rate_others", "own image": "own_rate"}
    rows = [
        {"arm": row["arm"]}
        | {name: estimate(row["estimates"][key], percent=True) for name, key in shown.items()}
        | ({"error": row["error"]} if summary["n_failed"] else {})
        for row in summary["arms"]
    ]
    show_table(pa.Table.from_pylist(rows), summary["name"])
    print(summary["sentence"])
    print(f"Report: {out / 'report.html'}")


def recipe_of(
    cls: type[T],
    source: str | None,
    settings: Sequence[str] | None,
    table: str,
    presets: Mapping[str, Any] = {},
    trust_parts: bool = False,
) -> T:
    """Recipe of a preset, or of a TOML file (its table of that name, else all of it), then the settings.

    Args:
        cls: class of the recipe.
        source: preset or path of the file; None = the defaults.
        settings: `key=value` each.
        table: name of the recipe's table in a file.
        presets: name -> recipe.
        trust_parts: take parts that the file, not a setting, asks for from outside the shelves.

    Raises:
        InputError: the file or a setting does not fit.
        PartError: the file asks for parts that are not trusted.
    """
    from copyscope.recipes import changed, from_dict, read_toml
    from copyscope.trust import check_specs

    values: Mapping[str, Any] = {}
    if source and source in presets:
        values = presets[source]
    elif source:
        if not Path(source).is_file():
            raise InputError(
                f"{source!r} is no TOML file and no preset.\nThe presets are: {', '.join(presets) or 'none'}"
            )
        values = read_toml(source)
        values = values.get(table, values)
        if not trust_parts:
            check_specs({table: values}, source)
    return changed(from_dict(cls, values), settings or ())
