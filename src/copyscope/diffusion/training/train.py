"""`train`: train a model on a corpus under a recipe; resumable."""

from __future__ import annotations

import datetime
import hashlib
import json
import os
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

    On one CPU the weights of a resumed run are those of an undisturbed one to the bit. Images that cannot be read are
    rows with an `error` in `train.parquet`, never drawn and counted.

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
            if not _finished(out, recipe, corpus, accelerator):
                _train(corpus, out, recipe, accelerator, watch, progress if accelerator.is_main_process else None)
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
    progress: Progress | None,
) -> None:
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
        kept = [name for name in corpus.table.column_names if name != "image"]
        write_table(corpus.table.select(kept), out / "train.parquet")
    if recipe.tracker != "none":
        values = recipes.as_dict(recipe)
        plain = {name: value if isinstance(value, (int, float)) else str(value) for name, value in values.items()}
        accelerator.init_trackers("copyscope", config=plain)
    loop.run()


def _finished(out: Path, recipe: TrainRecipe, corpus: Corpus, accelerator: Any) -> bool:
    """Begins a run, or checks that the one in the folder is the same; whether that is finished already."""
    columns = [
        name for name in corpus.table.column_names if name not in ("image", "sha256", "width", "height", "error")
    ]
    rows = json.dumps(corpus.table.select(columns).to_pylist(), default=str)
    values: dict[str, Any] = {"schema": SCHEMA, "recipe": recipes.as_dict(recipe), "n": len(corpus)}
    values |= {"corpus": hashlib.sha256(rows.encode()).hexdigest()}
    path = out / "recipe.json"
    saved = read_json(path, "Name another folder") if path.exists() else None
    if saved is None and out.exists() and not is_bare(out):
        raise InputError(f"{out} is not empty and holds no training.\nName another folder")
    with as_damaged(path):
        # Runs from before there were mitigations have none.
        before = {"mitigations": []} | (saved or {}).get("recipe", {})
    if saved is not None and {name: saved.get(name) for name in values} | {"recipe": before} != values:
        other = [name for name, value in values["recipe"].items() if before.get(name) != value]
        raise InputError(
            f"{out} holds a training that differs in {', '.join(other) or 'its images'}.\n"
            "Name another folder, or remove this one"
        )
    # No process may find what another has begun to write.
    accelerator.wait_for_everyone()
    if saved is None and accelerator.is_main_process:
        out.mkdir(parents=True, exist_ok=True)
        write_json(values | recipes.provenance(), path)
    return (out / "summary.json").is_file()


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
