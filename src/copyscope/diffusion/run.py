"""Run: a finished training on disk: recipe, model, history."""

from __future__ import annotations

import dataclasses
import functools
import os
from pathlib import Path
from typing import Any

import pyarrow as pa

from copyscope import parts, recipes
from copyscope.data.parquet_pages import read_table
from copyscope.documents import read_json
from copyscope.errors import InputError
from copyscope.files import as_damaged
from copyscope.trust import check_specs

from .models import Trainable
from .recipe import TrainRecipe


@dataclasses.dataclass(frozen=True)
class Run:
    """A finished training on disk.

    Args:
        folder: of the run.
        recipe: how it was trained.
        summary: steps, seconds, n, n_missing, replication, ...
    """

    folder: Path
    recipe: TrainRecipe
    summary: dict[str, Any]

    @staticmethod
    def open(folder: str | os.PathLike[str], *, trust_parts: bool = False) -> Run:
        """Open the finished run in a folder.

        Args:
            folder: of the run.
            trust_parts: load the model that its recipe names, whatever it is; else it must be one of the shelf, since
                loading another would run code of whoever made the run.

        Returns:
            The run; its model loads on first use.

        Raises:
            InputError: there is no finished run.
            PartError: the model is not trusted.
        """
        folder = Path(folder)
        if not all((folder / name).exists() for name in ("summary.json", "recipe.json")):
            raise InputError(f"{folder} holds no finished training.\nTrain with: copyscope train")
        summary, saved = read_json(folder / "summary.json"), read_json(folder / "recipe.json")
        with as_damaged(folder / "recipe.json"):
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
        """History of the training by step: loss, learning_rate, images_per_second; replication if watched."""
        return read_table(self.folder / "history.parquet")
