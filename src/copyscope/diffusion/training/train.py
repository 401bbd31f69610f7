"""Train a model on a corpus under one condition of duplication and captions: `train(corpus, folder, recipe) -> Run`."""

from __future__ import annotations

import dataclasses
import datetime
import functools
import hashlib
import json
import os
import typing
from pathlib import Path
from typing import Any, Literal

import pyarrow as pa

from copyscope import parts, recipes
from copyscope.curation import captions as wording
from copyscope.curation import curate
from copyscope.data.corpus import Corpus
from copyscope.data.parquet_pages import read_table
from copyscope.diffusion import applied
from copyscope.diffusion.mitigations import TRAINING
from copyscope.diffusion.models import Trainable
from copyscope.documents import read_json
from copyscope.errors import InputError, MissingExtra
from copyscope.files import is_bare, whole
from copyscope.machine import Progress
from copyscope.trust import check_specs

from . import checkpoints
from .data import Pictures
from .loop import SCHEMA, Loop, Watch


@dataclasses.dataclass(frozen=True)
class TrainRecipe:
    """How a model is trained; what a field leaves to the model is said in the model's file.

    model: a spec of the shelf. conditioning: a style of `captions.conditioned`. duplication, duplication_rate,
    duplication_factor: as `curate.duplicate` takes them. batch_size: images a step over all processes and
    accumulations. schedule: of the learning rate after `warmup_steps`; it falls over the last `decay` share of them.
    ema: weight of the past in the averaged weights, which are the result (0 = none). min_snr: gamma of Hang et al. 2023
    (0 = off). caption_dropout: share of draws told nothing, which guidance needs. sample_every, sample_images,
    sample_steps, guidance: sample grids, and what a watch is shown at each checkpoint. stop_at_replication: end once
    the watch is sure of a rate above it (0 = never). mitigations: specs of the shelf, in the order they
    act. tracker: of accelerate. seed: of all that is drawn, first weights included.
    """

    model: str = "small_unet"
    conditioning: str = "instance"
    class_column: str = "class"
    duplication: str = "none"
    duplication_rate: float = 0.05
    duplication_factor: float = 5.0
    steps: int = 600
    batch_size: int = 32
    gradient_accumulation: int = 1
    learning_rate: float = 2e-3
    schedule: Literal["constant", "linear", "cosine"] = "linear"
    warmup_steps: int = 100
    decay: float = 0.4
    betas: tuple[float, float] = (0.9, 0.99)
    weight_decay: float = 0.01
    epsilon: float = 1e-8
    max_grad_norm: float = 1.0
    ema: float = 0.995
    min_snr: float = 0.0
    caption_dropout: float = 0.0
    flip: bool = False
    random_crop: bool = False
    mixed_precision: Literal["no", "bf16", "fp16"] = "no"
    gradient_checkpointing: bool = False
    cache_latents: bool = True
    cache_text: bool = True
    checkpoint_every: int = 500
    keep_checkpoints: int = 2
    sample_every: int = 0
    sample_images: int = 16
    sample_steps: int = 25
    guidance: float = 1.0
    stop_at_replication: float = 0.0
    mitigations: tuple[str, ...] = ()
    tracker: Literal["none", "tensorboard", "wandb", "trackio"] = "tensorboard"
    seed: int = 0

    def __post_init__(self) -> None:
        hints = typing.get_type_hints(type(self))
        offered = {name: typing.get_args(hint) for name, hint in hints.items() if typing.get_origin(hint) is Literal}
        offered |= {"conditioning": wording.STYLES, "duplication": curate.DUPLICATIONS}
        for name, values in offered.items():
            if getattr(self, name) not in values:
                raise InputError(f"{name} must be one of {', '.join(values)}, not {getattr(self, name)!r}.\n{_CORRECT}")
        for names, low, high in _RANGES:
            for name in names.split():
                value = getattr(self, name)
                if not all(low <= each <= high for each in (value if isinstance(value, tuple) else (value,))):
                    upper = f" and at most {high:g}" if high < _MOST else ""
                    raise InputError(f"{name} must be at least {low:g}{upper}, not {value}.\n{_CORRECT}")
        if self.batch_size % self.gradient_accumulation:
            raise InputError("batch_size must be a multiple of gradient_accumulation.\nIt counts all images of a step")


_MOST = 1e12
_CORRECT = "Correct the recipe"
_RANGES = (
    ("steps batch_size gradient_accumulation checkpoint_every keep_checkpoints sample_images sample_steps", 1, _MOST),
    ("learning_rate epsilon", 1e-30, _MOST),
    ("warmup_steps weight_decay max_grad_norm min_snr sample_every guidance seed", 0, _MOST),
    ("duplication_rate decay caption_dropout stop_at_replication", 0, 1),
    ("ema betas", 0, 1 - 1e-12),
    ("duplication_factor", 1, _MOST),
)  # fmt: skip

PRESETS: dict[str, dict[str, Any]] = {
    # The README of the paper's code; see also the model's `resolution`.
    "dcr-2023": {
        "conditioning": "instance", "steps": 100_000, "batch_size": 16, "learning_rate": 5e-6, "schedule": "constant",
        "warmup_steps": 5_000, "betas": (0.9, 0.999), "weight_decay": 0.01, "epsilon": 1e-8, "max_grad_norm": 1.0,
        "ema": 0.0, "flip": True, "checkpoint_every": 20_000, "sample_every": 10_000, "sample_steps": 50,
    },
}  # fmt: skip
"""Recipes by name: the values that differ from the defaults."""


@dataclasses.dataclass(frozen=True)
class Run:
    """A finished training: its folder and its recipe. `summary`: steps, seconds, n, n_missing, replication, ..."""

    folder: Path
    recipe: TrainRecipe
    summary: dict[str, Any]

    @staticmethod
    def open(folder: str | os.PathLike[str], *, trust_parts: bool = False) -> Run:
        """The finished run in a folder. Raises InputError if there is none.

        trust_parts: load the model that its recipe names, whatever it is; else PartError is raised where that is no
        model of the shelf, since loading it would run code of whoever made the run.
        """
        folder = Path(folder)
        if not all((folder / name).exists() for name in ("summary.json", "recipe.json")):
            raise InputError(f"{folder} holds no finished training.\nTrain with: copyscope train")
        summary, saved = read_json(folder / "summary.json"), read_json(folder / "recipe.json")
        with whole(folder / "recipe.json"):
            recipe = recipes.from_dict(TrainRecipe, saved["recipe"])
        if not trust_parts:
            check_specs({"model": recipe.model}, f"The run {folder}")
        return Run(folder, recipe, summary)

    @functools.cached_property
    def model(self) -> Trainable:
        """The trained model, with the averaged weights if there are such."""
        model: Trainable = parts.load("models", self.recipe.model)
        return model.with_weights(self.folder / "model")

    @functools.cached_property
    def table(self) -> pa.Table:
        """The training images as they were drawn: `id`, `captions`, `weight`, `duplicated`, `duplication`, `error`."""
        return read_table(self.folder / "train.parquet")

    @property
    def history(self) -> pa.Table:
        """`step, loss, learning_rate, images_per_second`; `replication`, its `_low`, `_high`, `_n` where watched."""
        return read_table(self.folder / "history.parquet")


def train(
    train_set: Corpus | str | os.PathLike[str],
    out: str | os.PathLike[str],
    recipe: TrainRecipe | None = None,
    *,
    watch: Watch | None = None,
    progress: Progress | None = None,
) -> Run:
    """Trains `recipe.model` on a corpus, in the folder `out`; the same call again goes on where a killed one stopped.

    On one CPU the weights of a resumed run are those of an undisturbed one to the bit. Images that cannot be read are
    rows with an `error` in `train.parquet`, never drawn and counted. watch: shown samples at each checkpoint. Raises
    InputError where the folder holds another run or nothing can be read, TrainingError where training cannot go on;
    checkpoints before that are kept.
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
    corpus: Corpus, out: Path, recipe: TrainRecipe, accelerator: Any, watch: Watch | None, progress: Progress | None
) -> None:
    model: Trainable = parts.load("models", recipe.model).seeded(recipe.seed)
    pictures = Pictures(corpus, model, recipe, progress)
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
        checkpoints.write_table(corpus.table.select(kept), out / "train.parquet")
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
    with whole(path):
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
        checkpoints.write_json(values | recipes.provenance(), path)
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
