"""Parse an experiment file into arms; every value is checked before anything runs.

`[data]` holds the values of `prepare.DataRecipe`, `[train]`, `[sample]` and `[audit]` those of their recipes, `[grid]`
lists under keys such as "train.duplication"; `seeds` are of training and sampling. `arms` lists tables of such keys
with one value each, and of `name` and `seeds`: arms that differ in more than a grid can say, mitigations above all. The
first of them is what the others are compared with. Each arm listed, each combination of the grid's values and each seed
is an arm with a folder of its own; arms of one training share its run.
"""

from __future__ import annotations

import collections
import contextlib
import dataclasses
import functools
import hashlib
import itertools
import json
import math
import os
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from copyscope import recipes
from copyscope.errors import CopyscopeError, InputError
from copyscope.trust import check_specs

from .prepare import DataRecipe

if TYPE_CHECKING:
    from copyscope.diffusion.generate import SampleRecipe
    from copyscope.diffusion.recipe import TrainRecipe

T = TypeVar("T")

#: Tables that the grid and the arms may vary.
VARIED = ("data", "train", "sample")
LONGEST_NAME = 100
MOST_ARMS = 2000
NOISE = "gaussian_noise(scale=0.1)"
"""What a recheck puts on the prompt's embedding."""


@dataclasses.dataclass(frozen=True)
class AuditRecipe:
    """How the images of an arm are judged.

    Args:
        protocol: as in `copyscope.audit`.
        fdr: as in `copyscope.audit`.
        clip: a local folder of a CLIP model; "" = none.
        general: how many images an arm makes of captions of held-out images as well.
        recheck: for how many prompts, at most, whose image the first of the listed arms copied and an arm did not, it
            is tried to bring the copy back.
        attempts: images of each kind of try.
        seed: as in `copyscope.audit`.

    Raises:
        InputError: a value is out of range; the message names it.
    """

    protocol: str = "sscd-288"
    fdr: float = 0.05
    clip: str = ""
    general: int = 0
    recheck: int = 0
    attempts: int = 2
    seed: int = 0

    def __post_init__(self) -> None:
        for name, least in (("general", 0), ("recheck", 0), ("attempts", 1), ("seed", 0)):
            if getattr(self, name) < least:
                raise InputError(f"{name} must be at least {least}, not {getattr(self, name)}.\nCorrect the recipe")


@dataclasses.dataclass(frozen=True)
class ExperimentRecipe:
    """A TOML file of an experiment as it stands, with its settings.

    Args:
        name: of the experiment; its folder is `runs/NAME` unless another is given.
        data: values of a DataRecipe.
        about: for people.
        seeds: one run of each arm a seed.
        train: values of a TrainRecipe, for all arms.
        sample: values of a SampleRecipe, for all arms.
        audit: values of an AuditRecipe.
        grid: dotted key -> list of values; arms are all combinations.
        arms: tables of arms that are listed one by one.

    Raises:
        InputError: a value is out of range; the message names it.
    """

    name: str
    data: dict[str, Any]
    about: str = ""
    seeds: tuple[int, ...] = (0,)
    train: dict[str, Any] = dataclasses.field(default_factory=dict)
    sample: dict[str, Any] = dataclasses.field(default_factory=dict)
    audit: dict[str, Any] = dataclasses.field(default_factory=dict)
    grid: dict[str, Any] = dataclasses.field(default_factory=dict)
    arms: tuple[dict[str, Any], ...] = ()

    def __post_init__(self) -> None:
        _check_seeds("seeds", self.seeds)
        for key, values in _flat(self.grid).items():
            if key.partition(".")[0] not in VARIED or "." not in key:
                raise InputError(f"The grid cannot vary {key!r}.\nIts keys begin with {', '.join(VARIED)} and a dot")
            if not isinstance(values, list) or not values or len(values) > MOST_ARMS or _repeat(values):
                shown = repr(values)
                shown = shown if len(shown) <= 200 else f"{shown[:200]}..."
                raise InputError(f"grid.{key} must be a list of different values, not {shown}.\nWrite it as [1, 2]")


@dataclasses.dataclass(frozen=True)
class Listed:
    """One table of `arms`.

    Attributes:
        name: for people.
        values: by dotted key.
        seeds: of its runs.
    """

    name: str
    values: dict[str, Any]
    seeds: tuple[int, ...]


@dataclasses.dataclass(frozen=True)
class Arm:
    """One listed arm at one cell of the grid under one seed, with all recipes resolved.

    Attributes:
        name: of the listed arm; "" where none are listed.
        listed: values by dotted key, of the list.
        cell: values by dotted key, of the grid.
        seed: of the run.
        data: which images.
        train: how the model is trained.
        sample: how images are made.
        audit: how they are judged.
        folder: its own.
        run: folder of its training, which arms that differ in sampling only share.
        images: folder of its data.
        first: folder of the arm it is compared with, which is that of the first listed arm with the same cell and seed;
            None for that arm itself.
    """

    name: str
    listed: dict[str, Any]
    cell: dict[str, Any]
    seed: int
    data: DataRecipe
    train: TrainRecipe
    sample: SampleRecipe
    audit: AuditRecipe
    folder: Path
    run: Path
    images: Path
    first: Path | None = None

    @property
    def slug(self) -> str:
        """Name of the arm's folder."""
        return self.folder.name

    @property
    def values(self) -> dict[str, Any]:
        """All its values by dotted key."""
        return self.listed | self.cell

    @property
    def label(self) -> str:
        """Label for people: name and the grid's values, without the seed."""
        return self.without("") or "the only arm"

    def value_of(self, key: str) -> str:
        """Value of a grid key for people; of the key "arm", its name."""
        return self.name if key == "arm" else _said(key, self.cell[key])

    def without(self, key: str) -> str:
        """Label for people as `label`, without the value of one key."""
        name = [self.name] if self.name and key != "arm" else []
        return " · ".join([*name, *(self.value_of(each) for each in self.cell if each != key)])

    @property
    def recipe(self) -> dict[str, Any]:
        """All that decides its numbers, as plain values."""
        return {name: recipes.as_dict(getattr(self, name)) for name in (*VARIED, "audit")}


@dataclasses.dataclass(frozen=True)
class Plan:
    """An experiment that can be run.

    Attributes:
        recipe: the file's.
        out: folder of the experiment.
        arms: all of them.
        grid: dotted key -> values.
    """

    recipe: ExperimentRecipe
    out: Path
    arms: tuple[Arm, ...]
    grid: dict[str, list[Any]]


def plan(
    toml: str | os.PathLike[str],
    out: str | Path | None = None,
    settings: Sequence[str] = (),
    *,
    trust_parts: bool = False,
) -> Plan:
    """Plan an experiment from its TOML file: every value checked and nothing run.

    Args:
        toml: the file.
        out: folder of the experiment; None = `runs/NAME`.
        settings: such as `train.steps=500`, `seeds=[0,1]` or `grid.train.steps=[500, 1000]`.
        trust_parts: take protocols, models, mitigations and signals from outside the shelves that the file asks for,
            and weights by path: this runs code of whoever wrote it; those of `settings` are taken in any case.

    Raises:
        InputError: a value does not fit; names the arm where it is of one, the table and the field.
        PartError: a part is unknown or not trusted.
    """
    from copyscope.detection.embedding.protocols import protocol

    tables = recipes.read_toml(toml)
    if not trust_parts:
        check_specs(tables, os.fspath(toml))
    recipe = recipes.from_dict(ExperimentRecipe, recipes.override(tables, settings))
    folder = Path(out) if out is not None else Path("runs") / recipe.name
    grid = _flat(recipe.grid)
    audit = _table("audit", AuditRecipe, recipe.audit)
    protocol(audit.protocol)
    listed = _listed(recipe, grid)
    if audit.recheck and not recipe.arms:
        raise InputError("[audit] recheck compares with the first of `arms`, and none are listed.\nList them, or set 0")
    n_arms = math.prod(map(len, grid.values())) * sum(len(one.seeds) for one in listed)
    if n_arms > MOST_ARMS:
        raise InputError(
            f"The grid, the arms and their seeds make {n_arms:,} arms, and {MOST_ARMS:,} are the most.\n"
            "List fewer values"
        )
    cells = [dict(zip(grid, combination, strict=True)) for combination in itertools.product(*grid.values())]
    arms: list[Arm] = []
    for one in listed:
        with _naming(one.name):
            arms += [_arm(recipe, audit, folder, one, cell, seed) for cell in cells for seed in one.seeds]
    if recipe.arms:
        arms = list(_compared(arms))
    _check_parts(arms)
    slugs = collections.Counter(arm.slug for arm in arms)
    if twice := next((slug for slug, n in slugs.items() if n > 1), ""):
        raise InputError(f"Two arms would have the folder {twice}.\nGive the listed arms other names")
    return Plan(recipe, folder, tuple(arms), grid)


def _listed(recipe: ExperimentRecipe, grid: Mapping[str, Any]) -> list[Listed]:
    """The tables of `arms`; without any the one arm that is the file as it stands. Raises InputError."""
    if not recipe.arms:
        return [Listed("", {}, recipe.seeds)]
    found: list[Listed] = []
    for place, table in enumerate(recipe.arms, 1):
        values = _flat({key: value for key, value in table.items() if key not in ("name", "seeds")})
        name = table.get("name", " · ".join(_said(key, value) for key, value in values.items()) or "as given")
        if not isinstance(name, str) or not name.strip():
            raise InputError(f"The name of arm {place} must be text, not {name!r}.\nWrite it as name = 'plain'")
        with _naming(name):
            for key in values:
                if key.partition(".")[0] not in VARIED or "." not in key:
                    raise InputError(f"an arm cannot set {key!r}.\nIts keys begin with {', '.join(VARIED)} and a dot")
                if key in grid:
                    raise InputError(f"{key} is in the grid as well.\nSet it in one of the two")
            seeds = table.get("seeds", list(recipe.seeds))
            if not isinstance(seeds, list) or any(type(seed) is not int for seed in seeds):
                raise InputError(f"seeds must be a list of whole numbers, not {seeds!r}.\nUse seeds = [0]")
            _check_seeds("seeds", seeds)
            if name in (one.name for one in found):
                raise InputError("two arms have this name.\nGive each its own: name = '...'")
        found.append(Listed(name, values, tuple(seeds)))
    return found


def _arm(
    recipe: ExperimentRecipe, audit: AuditRecipe, folder: Path, one: Listed, cell: dict[str, Any], seed: int
) -> Arm:
    from copyscope.diffusion.generate import SampleRecipe
    from copyscope.diffusion.recipe import TrainRecipe

    values = one.values | cell
    tables = {name: dict(getattr(recipe, name)) for name in VARIED}
    for key, value in ({"train.seed": seed, "sample.seed": seed} | values).items():
        table, _, field = key.partition(".")
        tables[table][field] = value
    data, train = _table("data", DataRecipe, tables["data"]), _table("train", TrainRecipe, tables["train"])
    if audit.general and not data.held_out:
        raise InputError(
            "[audit] general needs held-out images, for their captions.\nSet data.held_out, or general = 0"
        )
    if audit.general > data.n_held_out > 0:
        many = f"{audit.general} held-out captions, of {data.n_held_out} images"
        raise InputError(f"[audit] general asks for {many}.\nAsk for fewer, or raise data.n_held_out")
    varied = {key: value for key, value in values.items() if key.startswith("data.")}
    words = [one.name] if one.name else []
    return Arm(
        one.name,
        one.values,
        cell,
        seed,
        data,
        train,
        _table("sample", SampleRecipe, tables["sample"]),
        audit,
        folder / "arms" / _slug([*words, *(_said(key, value) for key, value in cell.items()), f"seed{seed}"]),
        folder / "runs" / _run_slug(train, data),
        folder / _slug(["data", *(_said(key, value) for key, value in varied.items())]),
    )


def _compared(arms: Sequence[Arm]) -> Iterator[Arm]:
    """The arms, each with the folder of the first listed one at the same cell and seed."""
    for arm in arms:
        same = [each for each in arms if each.cell == arm.cell and each.seed == arm.seed]
        first = next((each.folder for each in same if each.name == arms[0].name), None)
        yield arm if arm.name == arms[0].name else dataclasses.replace(arm, first=first)


def _check_parts(arms: Sequence[Arm]) -> None:
    """Raises PartError or InputError for an unknown model, mitigation or signal, or one that has no use where it is."""
    from copyscope import parts
    from copyscope.diffusion import applied, observed
    from copyscope.diffusion.mitigations import NEAREST, PROMPTS, SAMPLING, TRAINING

    # Once each: some mitigations want the model's tokenizer, which is read from disk.
    load = functools.cache(functools.partial(parts.load, "models"))
    for arm in arms:
        with _naming(arm.name):
            model, sampling = load(arm.train.model), arm.sample.mitigations
            if arm.audit.recheck and arm.first:
                sampling = (NOISE, *sampling)
            for specs, stage in ((arm.train.mitigations, TRAINING), (sampling, SAMPLING)):
                applied.load(specs, stage, model, guidance=arm.sample.guidance, has=(PROMPTS, NEAREST))
            observed.load(arm.sample.signals, model, guidance=arm.sample.guidance)


@contextlib.contextmanager
def _naming(name: str) -> Iterator[None]:
    """Puts the name of a listed arm before the errors of a block."""
    try:
        yield
    except CopyscopeError as error:
        if name:
            error.args = (f"Arm {name!r}: {error}",)
        raise


def _check_seeds(name: str, seeds: Sequence[int]) -> None:
    if not seeds or len(set(seeds)) < len(seeds) or min(seeds) < 0:
        raise InputError(f"{name} must be different numbers of 0 or more, not {list(seeds)}.\nUse seeds = [0]")


def _table(name: str, cls: type[T], values: Mapping[str, Any]) -> T:
    try:
        return recipes.from_dict(cls, values)
    except InputError as error:
        raise InputError(f"[{name}] {error}") from None


def _repeat(values: Sequence[Any]) -> bool:
    return any(values.count(value) > 1 for value in values)


def _flat(tables: Mapping[str, Any]) -> dict[str, Any]:
    """Values under dotted keys, whether they were written `"train.steps" = 1` or `train.steps = 1`."""
    found: dict[str, Any] = {}
    for key, value in tables.items():
        if isinstance(value, Mapping) and "." not in key:
            found |= {f"{key}.{field}": inner for field, inner in value.items()}
        else:
            found[key] = value
    return found


def _said(key: str, value: Any) -> str:
    """A value for people: text as it is, specs with the stage they act in, all else with the name of its field."""
    table, _, field = key.rpartition(".")
    if isinstance(value, list) and value and all(isinstance(each, str) for each in value):
        return f"{table} {' + '.join(value)}" if field == "mitigations" else f"{field}={' + '.join(value)}"
    return value if isinstance(value, str) and value else f"{field}={str(value).lower() if value != '' else '-'}"


def _run_slug(train: TrainRecipe, data: DataRecipe) -> str:
    """Name of the folder of a training: alike for all arms with these recipes, and for no others."""
    words = [train.model.partition("(")[0], train.conditioning, train.duplication, f"steps{train.steps}"]
    words += [spec.partition("(")[0] for spec in train.mitigations]
    decides = json.dumps([recipes.as_dict(train), recipes.as_dict(data)], sort_keys=True, default=str)
    digest = hashlib.sha256(decides.encode()).hexdigest()[:12]
    plain = re.sub(r"[^A-Za-z0-9._=+-]+", "_", "-".join([*words, f"seed{train.seed}"]))[:LONGEST_NAME]
    return f"{plain}-{digest}"


def _slug(pieces: Iterable[str]) -> str:
    """The pieces as a folder's name; with a digest where that is not all they say."""
    whole = "-".join(pieces)
    plain = re.sub(r"[^A-Za-z0-9._=+-]+", "_", whole)[:LONGEST_NAME]
    return plain if plain == whole else f"{plain}-{hashlib.sha256(whole.encode()).hexdigest()[:8]}"
