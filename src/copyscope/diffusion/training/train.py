"""`train`: train a model on a corpus under a recipe; resumable."""

from __future__ import annotations

import datetime
import functools
import hashlib
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from copyscope import parts, recipes
from copyscope.curation import captions as wording
from copyscope.curation import curate
from copyscope.data.corpus import Corpus
from copyscope.diffusion import applied
from copyscope.diffusion.mitigations import TRAINING
from copyscope.diffusion.models import Trainable
from copyscope.diffusion.recipe import TrainRecipe
from copyscope.diffusion.run import Run
from copyscope.documents import read_json
from copyscope.errors import InputError, MissingExtra
from copyscope.files import as_damaged, is_bare, write_json, write_table
from copyscope.machine import Progress

from . import checkpoints
from .data import LatentCache
from .loop import SCHEMA, Loop, ReplicationCallback


def train(
    train_set: Corpus | str | os.PathLike[str],
    out: str | os.PathLike[str],
    recipe: TrainRecipe | None = None,
    *,
    watch: ReplicationCallback | None = None,
    progress: Progress | None = None,
) -> Run:
    """Train `recipe.model` on a corpus; the same call again goes on where a killed one stopped.

    On one CPU the weights of a resumed run are those of an undisturbed one to the bit. More `steps` than a run in the
    folder has had are trained on top of these, at the learning rate of the longer training. A start that is refused
    leaves nothing behind. Images that cannot be read are rows with an `error` in `train.parquet`, never drawn and
    counted.

    Args:
        train_set: the training images; a Corpus or what `Corpus.open` takes.
        out: folder of the run.
        recipe: how; None = the defaults.
        watch: shown samples at each checkpoint; None = nobody watches.
        progress: called with a label, the number done and the total.

    Returns:
        The finished run.

    Raises:
        InputError: the folder holds another run, or nothing can be read.
        PartError: there is no such model or mitigation.
        MissingExtra: the tracker is not installed.
        TrainingError: training cannot go on; checkpoints before that are kept.
    """
    recipe, out = recipe or TrainRecipe(), Path(out)
    corpus = train_set if isinstance(train_set, Corpus) else Corpus.open(train_set)
    for spec in recipe.mitigations:
        applied.named(spec, TRAINING)
    accelerator = _accelerator(recipe, out)
    try:
        with checkpoints.writing(f"The run {out}"):
            identity, saved = _identity(recipe, corpus), _saved(out)
            goes_on = saved is not None and _goes_on(out, saved, identity)
            # No process may find what another has begun to write.
            accelerator.wait_for_everyone()
            if goes_on or not (out / "summary.json").is_file():
                begin = functools.partial(_begin, out, identity, goes_on or saved is None)
                shown = progress if accelerator.is_main_process else None
                _train(corpus, out, recipe, accelerator, watch, begin, shown)
                accelerator.wait_for_everyone()
    finally:
        # Not `end_training`: it ends the process group too, and a training after this one would wait for it for ever.
        for tracker in accelerator.trackers:
            tracker.finish()
    return Run.open(out, trust_parts=True)  # it is the recipe of this call


def _train(
    corpus: Corpus,
    out: Path,
    recipe: TrainRecipe,
    accelerator: Any,
    watch: ReplicationCallback | None,
    begin: Callable[[], None],
    progress: Progress | None,
) -> None:
    """Train once all that could be refused has been loaded; `begin` writes the first file into the folder."""
    model: Trainable = parts.load("models", recipe.model).seeded(recipe.seed)
    pictures = LatentCache(corpus, model, recipe, progress)
    # After all images were read: only those that can be are planted as duplicates or need a caption.
    spoken = wording.conditioned(
        pictures.corpus, recipe.conditioning, seed=recipe.seed, class_column=recipe.class_column
    )
    corpus = curate.duplicate(
        spoken, recipe.duplication, rate=recipe.duplication_rate, factor=recipe.duplication_factor, seed=recipe.seed
    )
    loop = Loop(model, pictures, corpus, recipe, out, accelerator, watch, progress)
    if accelerator.is_main_process:
        begin()
        kept = [name for name in corpus.table.column_names if name != "image"]
        write_table(corpus.table.select(kept), out / "train.parquet")
    if recipe.tracker != "none":
        values = recipes.as_dict(recipe)
        plain = {name: value if isinstance(value, (int, float)) else str(value) for name, value in values.items()}
        accelerator.init_trackers("copyscope", config=plain)
    loop.run()


def _identity(recipe: TrainRecipe, corpus: Corpus) -> dict[str, Any]:
    """What a training is: two calls of one identity are one run."""
    columns = [
        name for name in corpus.table.column_names if name not in ("image", "sha256", "width", "height", "error")
    ]
    rows = json.dumps(corpus.table.select(columns).to_pylist(), default=str)
    values: dict[str, Any] = {"schema": SCHEMA, "recipe": recipes.as_dict(recipe), "n": len(corpus)}
    return values | {"corpus": hashlib.sha256(rows.encode()).hexdigest()}


def _saved(out: Path) -> dict[str, Any] | None:
    """The identity of the run in a folder; None where there is no run.

    Raises InputError where there is anything else.
    """
    path = out / "recipe.json"
    if not path.exists():
        if out.exists() and not is_bare(out):
            raise InputError(f"{out} is not empty and holds no training.\nName another folder")
        return None
    saved = read_json(path, "Name another folder")
    with as_damaged(path):
        # Runs from before there were mitigations have none.
        return saved | {"recipe": {"mitigations": []} | saved.get("recipe", {})}


def _goes_on(out: Path, saved: dict[str, Any], identity: dict[str, Any]) -> bool:
    """Whether the run of a folder is to be trained for more steps than it was begun for.

    Raises InputError where it is another run.
    """
    before, now = saved["recipe"], identity["recipe"]
    other = [name for name, value in now.items() if before.get(name) != value]
    same = all(saved.get(name) == identity[name] for name in identity if name != "recipe")
    if same and not other:
        return False
    steps = before.get("steps")
    if same and other == ["steps"] and isinstance(steps, int) and now["steps"] > steps:
        return True
    differs = ", ".join(other if same else [*other, "its images"])
    hint = "More steps go on from there, fewer cannot. " if other == ["steps"] and same else ""
    raise InputError(
        f"{out} holds a training that differs in {differs}.\n{hint}Name another folder, or remove this one"
    )


def _begin(out: Path, identity: dict[str, Any], writes: bool) -> None:
    """Write down which run this is. Without the summary it is one that is not finished."""
    (out / "summary.json").unlink(missing_ok=True)
    if writes:
        out.mkdir(parents=True, exist_ok=True)
        write_json(identity | recipes.provenance(), out / "recipe.json")


def _accelerator(recipe: TrainRecipe, out: Path) -> Any:
    """What carries the training: this process, or those of `accelerate launch`, on the model's kind of device."""
    from accelerate import Accelerator, InitProcessGroupKwargs
    from accelerate.state import AcceleratorState
    from accelerate.tracking import get_available_trackers

    model = parts.load("models", recipe.model)
    if not isinstance(model, Trainable):
        raise InputError(f"{recipe.model} is no model that can be trained.\nUse small_unet or stable_diffusion")
    tracker = None if recipe.tracker == "none" else recipe.tracker
    if tracker and tracker not in {each.value for each in get_available_trackers()}:
        raise MissingExtra(f"The tracker {tracker!r}", tracker, "diffusion")
    on_cpu = model.device.type == "cpu"
    if on_cpu and recipe.mixed_precision == "fp16":
        raise InputError("mixed_precision fp16 needs a GPU.\nUse bf16 or no")
    # It remembers device and precision for the whole process; another training may want others.
    AcceleratorState._reset_state(reset_partial_state=True)
    try:
        # The processes wait for the main one while it makes and judges samples.
        patient = InitProcessGroupKwargs(timeout=datetime.timedelta(days=1))
        found = Accelerator(
            cpu=on_cpu,
            mixed_precision=recipe.mixed_precision,
            log_with=tracker,
            project_dir=out / "logs",
            kwargs_handlers=[patient],
        )
    except ValueError as error:
        raise InputError(f"mixed_precision {recipe.mixed_precision} is not to be had here: {error}\nUse no") from None
    if recipe.batch_size % (recipe.gradient_accumulation * found.num_processes):
        raise InputError(
            f"batch_size {recipe.batch_size} cannot be shared by {found.num_processes} processes with "
            f"gradient_accumulation {recipe.gradient_accumulation}.\nMake it a multiple of their product"
        )
    return found
