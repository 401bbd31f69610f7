"""A TOML file -> the arms of an experiment, every value checked before anything runs.

`[data]` holds the values of `prepare.DataRecipe`, `[train]`, `[sample]` and `[audit]` those of their recipes, `[grid]`
lists under keys such as "train.duplication"; `seeds` are of training and sampling. Each combination of values and each
seed is an arm with a folder of its own.
"""

from __future__ import annotations

import dataclasses
import hashlib
import itertools
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from . import recipes
from .errors import InputError
from .prepare import DataRecipe

if TYPE_CHECKING:
    from .diffusion.generate import SampleRecipe
    from .diffusion.train import TrainRecipe

T = TypeVar("T")

#: Tables that the grid may vary.
VARIED = ("data", "train", "sample")
LONGEST_NAME = 100


@dataclasses.dataclass(frozen=True)
class AuditRecipe:
    """How the images of an arm are judged: as in `copyscope.copying.audit.audit`; clip is a local folder, or ""."""

    protocol: str = "sscd-288"
    fdr: float = 0.05
    clip: str = ""
    seed: int = 0


@dataclasses.dataclass(frozen=True)
class ExperimentRecipe:
    """A TOML file as it stands, with its settings."""

    name: str
    data: dict[str, Any]
    about: str = ""
    seeds: tuple[int, ...] = (0,)
    train: dict[str, Any] = dataclasses.field(default_factory=dict)
    sample: dict[str, Any] = dataclasses.field(default_factory=dict)
    audit: dict[str, Any] = dataclasses.field(default_factory=dict)
    grid: dict[str, Any] = dataclasses.field(default_factory=dict)

    def __post_init__(self) -> None:
        if not self.seeds or len(set(self.seeds)) < len(self.seeds) or min(self.seeds) < 0:
            raise InputError(f"seeds must be different numbers of 0 or more, not {list(self.seeds)}.\nUse seeds = [0]")
        for key, values in _flat(self.grid).items():
            if key.partition(".")[0] not in VARIED or "." not in key:
                raise InputError(f"The grid cannot vary {key!r}.\nIts keys begin with {', '.join(VARIED)} and a dot")
            if not isinstance(values, list) or not values or any(values.count(value) > 1 for value in values):
                raise InputError(f"grid.{key} must be a list of different values, not {values!r}.\nWrite it as [1, 2]")


@dataclasses.dataclass(frozen=True)
class Arm:
    """One cell of the grid under one seed: `values` of the grid's keys, and all recipes resolved."""

    values: dict[str, Any]
    seed: int
    data: DataRecipe
    train: TrainRecipe
    sample: SampleRecipe
    audit: AuditRecipe
    folder: Path
    images: Path

    @property
    def slug(self) -> str:
        """Name of its folder."""
        return self.folder.name

    @property
    def label(self) -> str:
        """Its values for people, without the seed."""
        return self.without("") or "the only arm"

    def said(self, key: str) -> str:
        """Its value of a grid key for people."""
        return _said(key, self.values[key])

    def without(self, key: str) -> str:
        """Its values for people but that of one key."""
        return " · ".join(self.said(each) for each in self.values if each != key)

    @property
    def recipe(self) -> dict[str, Any]:
        """Everything that decides its numbers, as plain values."""
        return {name: recipes.as_dict(getattr(self, name)) for name in (*VARIED, "audit")}


@dataclasses.dataclass(frozen=True)
class Plan:
    """An experiment that can be run: its recipe, where it goes, its arms, and the grid's values by dotted key."""

    recipe: ExperimentRecipe
    out: Path
    arms: tuple[Arm, ...]
    grid: dict[str, list[Any]]


def plan(toml: str | os.PathLike[str], out: str | Path | None = None, settings: Sequence[str] = ()) -> Plan:
    """What the file asks for, every value checked and nothing run. out: `runs/NAME` unless given.

    settings: such as `train.steps=500`, `seeds=[0,1]` or `grid.train.steps=[500, 1000]`. Raises InputError, which names
    the table and the field, and PartError for an unknown protocol or model.
    """
    from . import parts
    from .copying.protocols import protocol
    from .diffusion.generate import SampleRecipe
    from .diffusion.train import TrainRecipe

    recipe = recipes.from_dict(ExperimentRecipe, recipes.override(recipes.read_toml(toml), settings))
    folder = Path(out) if out is not None else Path("runs") / recipe.name
    grid = _flat(recipe.grid)
    audit = _table("audit", AuditRecipe, recipe.audit)
    protocol(audit.protocol)
    arms = []
    for combination, seed in itertools.product(itertools.product(*grid.values()), recipe.seeds):
        values = dict(zip(grid, combination, strict=True))
        seeded = {"train.seed": seed, "sample.seed": seed}
        tables = {name: dict(getattr(recipe, name)) for name in VARIED}
        for key, value in (seeded | values).items():
            table, _, field = key.partition(".")
            tables[table][field] = value
        data = {key: value for key, value in values.items() if key.startswith("data.")}
        arms.append(
            Arm(
                values,
                seed,
                _table("data", DataRecipe, tables["data"]),
                _table("train", TrainRecipe, tables["train"]),
                _table("sample", SampleRecipe, tables["sample"]),
                audit,
                folder / "arms" / _slug([*(_said(key, value) for key, value in values.items()), f"seed{seed}"]),
                folder / "data" / _slug([_said(key, value) for key, value in data.items()])
                if data
                else folder / "data",
            )
        )
    for spec in {arm.train.model for arm in arms}:
        parts.load("models", spec)
    return Plan(recipe, folder, tuple(arms), grid)


def _table(name: str, cls: type[T], values: Mapping[str, Any]) -> T:
    try:
        return recipes.from_dict(cls, values)
    except InputError as error:
        raise InputError(f"[{name}] {error}") from None


def _flat(grid: Mapping[str, Any]) -> dict[str, Any]:
    """The grid under dotted keys, whether it was written `"train.steps" = [1]` or `train.steps = [1]`."""
    found: dict[str, Any] = {}
    for key, value in grid.items():
        if isinstance(value, Mapping):
            found |= {f"{key}.{field}": inner for field, inner in _flat(value).items()}
        else:
            found[key] = value
    return found


def _said(key: str, value: Any) -> str:
    """A value for people: text as it is, all else with the name of its field."""
    field = key.rpartition(".")[2]
    return value if isinstance(value, str) and value else f"{field}={str(value).lower() if value != '' else '-'}"


def _slug(pieces: Iterable[str]) -> str:
    """The pieces as a folder's name; with a digest where that is not all they say."""
    whole = "-".join(pieces)
    plain = re.sub(r"[^A-Za-z0-9._=+-]+", "_", whole)[:LONGEST_NAME]
    return plain if plain == whole else f"{plain}-{hashlib.sha256(whole.encode()).hexdigest()[:8]}"
