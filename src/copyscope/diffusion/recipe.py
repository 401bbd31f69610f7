"""TrainRecipe: how a model is trained, every value checked; presets."""

from __future__ import annotations

import dataclasses
import typing
from typing import Any, Literal

from copyscope.curation import captions as wording
from copyscope.curation import curate
from copyscope.errors import InputError


@dataclasses.dataclass(frozen=True)
class TrainRecipe:
    """Recipe of a training: how a model is trained. The model's page says what fields left to the model mean.

    Args:
        model: a spec of the shelf.
        conditioning: a style of `captions.conditioned`.
        class_column: column of the class names, for `conditioning="class"`.
        duplication: style of `curate.duplicate`.
        duplication_rate: share of the images that are duplicated.
        duplication_factor: weight of a duplicated image.
        steps: optimizer steps.
        batch_size: images a step over all processes and accumulations.
        gradient_accumulation: parts that a batch is computed in.
        learning_rate: highest.
        schedule: of the learning rate after the warm-up; it falls over the last `decay` share of the steps.
        warmup_steps: until the highest learning rate.
        decay: share of the steps, 0 to 1.
        betas: of Adam.
        weight_decay: of AdamW.
        epsilon: of Adam.
        max_grad_norm: gradients are clipped to this norm.
        ema: weight of the past in the averaged weights, which are the result; 0 = no average.
        min_snr: gamma of Min-SNR weighting (Hang et al. 2023); 0 = off.
        caption_dropout: share of draws without a caption, which guidance needs.
        flip: mirror half of the draws.
        random_crop: crop at a random place instead of the middle.
        mixed_precision: of accelerate.
        gradient_checkpointing: less memory, more time.
        cache_latents: keep latents in memory.
        cache_text: keep text states in memory.
        checkpoint_every: steps.
        keep_checkpoints: how many; older ones are removed.
        sample_every: steps between sample grids; 0 = none.
        sample_images: of a grid, and of what a watch is shown at each checkpoint.
        sample_steps: of these samples.
        guidance: of these samples; 1 = none.
        stop_at_replication: end once the watch is sure of a rate above it; 0 = never.
        mitigations: specs of the shelf, in the order they act.
        tracker: of accelerate.
        seed: of all that is drawn, first weights included.

    Raises:
        InputError: a value is out of range; the message names the field.
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
