"""Prepare the data of an experiment: training and held-out images at the model's resolution.

A collection made as a family (emoji, icons, products) is full of look-alikes, and then nobody can say whether a model
copied an image or its sister. So the images can be thinned until no two are more alike than a bar, and the held-out
images are those left over: of the same kind, and none of them a look-alike of a training image.
"""

from __future__ import annotations

import dataclasses
import json
import os
import re
import shutil
from collections.abc import Iterable, Mapping
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np

from copyscope import recipes
from copyscope.data import assets
from copyscope.data.corpus import Corpus
from copyscope.data.sidecars import write_metadata
from copyscope.data.table import SCHEMA
from copyscope.documents import read_json
from copyscope.errors import ImageError, InputError
from copyscope.files import remove_stale, sync, temporary_path
from copyscope.imaging import images
from copyscope.machine import Progress

DESCRIPTOR = "sscd_distilled"
REST = "rest"
ASSET = "asset:"


@dataclasses.dataclass(frozen=True)
class DataRecipe:
    """Which images an experiment trains on and holds out.

    Args:
        train: what `Corpus.open` takes, or `asset:NAME`.
        held_out: where held-out images come from, likewise; "" = none, "rest" = those of `train` that are left over.
        where: column -> the value it must have, or a list of such.
        distinct: no two chosen images have a similarity above this by `sscd_distilled`; 0 = all images are taken.
        n_train: how many, drawn by `seed`; 0 = all there are.
        n_held_out: how many, likewise.
        size: side in pixels of the square the images are cut and scaled to, on white; 0 = as they are.
        seed: of the draws.

    Raises:
        InputError: a value is out of range; the message names it.
    """

    train: str
    held_out: str = ""
    where: dict[str, Any] = dataclasses.field(default_factory=dict)
    distinct: float = 0.0
    n_train: int = 0
    n_held_out: int = 0
    size: int = 0
    seed: int = 0

    def __post_init__(self) -> None:
        if not 0 <= self.distinct < 1:
            raise InputError(f"distinct must be a similarity from 0 to below 1, not {self.distinct}.\n0.6 is usual")
        for name in ("n_train", "n_held_out", "size", "seed"):
            if getattr(self, name) < 0:
                raise InputError(f"{name} must be 0 or more, not {getattr(self, name)}.\n0 means all, or as it is")
        if self.held_out == REST and not self.n_train:
            raise InputError("held_out = 'rest' leaves nothing: all images are trained on.\nSay how many with n_train")


def prepare(
    data: Mapping[str, Any] | DataRecipe, out: Path, *, progress: Progress | None = None
) -> tuple[Corpus, Corpus | None]:
    """Prepare the training set and the held-out images of an experiment.

    Written into `out` as the imagefolders `train/` and `held-out/`, PNG with captions, weight and all other columns,
    the id they had as `original_id`, and, last, `data.json`. The same values give the same bytes and are kept. Images
    that cannot be read are passed over and counted in `data.json`.

    Args:
        data: which images.
        out: folder.
        progress: called with a label, the number done and the total.

    Returns:
        (training set, held-out images; None if none are asked for).

    Raises:
        InputError: the folder is of other values, or a source has too few images.
    """
    recipe = data if isinstance(data, DataRecipe) else recipes.from_dict(DataRecipe, data)
    made = _made(out)
    if made is None:
        _make(recipe, out, progress)
    elif made != recipes.as_dict(recipe):
        raise InputError(f"{out} holds images chosen by other values than these.\nName another folder")
    held_out = Corpus.open(out / "held-out") if recipe.held_out else None
    return Corpus.open(out / "train"), held_out


def source(name: str) -> Corpus:
    """Corpus at a path or URL, or that of `asset:NAME`, which must have been fetched before.

    Raises:
        InputError: there is none.
    """
    if not name.startswith(ASSET):
        return Corpus.open(name)
    asset = name.removeprefix(ASSET)
    if not assets.is_fetched(asset):
        raise InputError(f"The asset {asset!r} is not on this machine.\nGet it with: copyscope fetch {asset}")
    return Corpus.open(assets.fetch(asset))


def _made(out: Path) -> Any:
    """The values that the images in `out` were chosen by, None if there are none."""
    try:
        return read_json(out / "data.json")["recipe"]
    except (InputError, KeyError):
        return None


def _make(recipe: DataRecipe, out: Path, progress: Progress | None) -> None:
    if out.exists() and not {path.name for path in out.iterdir()} <= {"train", "held-out"}:
        raise InputError(f"{out} holds other things than prepared images.\nName another folder")
    corpus = source(recipe.train)
    candidates = _where(corpus, recipe.where)
    other = source(recipe.held_out) if recipe.held_out not in ("", REST) else None
    order = np.random.default_rng(np.random.SeedSequence(recipe.seed)).permutation(len(candidates))
    kept = [candidates[place] for place in order]
    others = list(range(len(other))) if other else []
    if recipe.distinct:
        kept, others = _distinct(corpus, kept, other, others, recipe, progress)
    out.parent.mkdir(parents=True, exist_ok=True)
    remove_stale(out.parent, out.name)
    with temporary_path(out, folder=True) as work:
        missing = dict[str, str]()
        rows = iter(kept)
        n = {"train": _write(work / "train", corpus, rows, recipe.n_train, recipe.size, missing)}
        if recipe.held_out:
            left, of = (rows, corpus) if other is None else (iter(others), other)
            n["held-out"] = _write(work / "held-out", of, left, recipe.n_held_out, recipe.size, missing)
        for name, wanted in (("train", recipe.n_train), ("held-out", recipe.n_held_out)):
            if name in n and (n[name] < wanted or not n[name]):
                few = f"{n[name]} readable {name} images of {wanted or 'any'} wanted"
                raise InputError(f"{recipe.train} is too small: {few}.\nAsk for fewer, or raise distinct")
        summary = {"recipe": recipes.as_dict(recipe), "n": n, "n_missing": len(missing), "missing": missing}
        text = json.dumps(summary, indent=1, ensure_ascii=False) + "\n"
        (work / "data.json").write_text(text, encoding="utf-8")
        sync(work)
        out.mkdir(exist_ok=True)
        for name in (*n, "data.json"):
            shutil.rmtree(out / name, ignore_errors=True)
            os.replace(work / name, out / name)


def _where(corpus: Corpus, where: Mapping[str, Any]) -> list[int]:
    """Rows whose columns have the values asked for."""
    keep = np.ones(len(corpus), dtype=bool)
    for name, wanted in where.items():
        if name not in corpus.table.column_names:
            there = ", ".join(corpus.table.column_names)
            raise InputError(f"{corpus.origin} has no column {name!r} to choose by.\nThere are: {there}")
        allowed = wanted if isinstance(wanted, list) else [wanted]
        keep &= [value in allowed for value in corpus.table[name].to_pylist()]
    return [int(row) for row in np.flatnonzero(keep)]


def _distinct(
    corpus: Corpus, rows: list[int], other: Corpus | None, others: list[int], recipe: DataRecipe,
    progress: Progress | None,
) -> tuple[list[int], list[int]]:  # fmt: skip
    """Of `rows`, and then of the rows `others` of `other`, those no more than `distinct` like one taken before.

    Greedy, in the order given. With a held-out corpus of its own the training rows stop at `n_train`, and only those
    count against it.
    """
    chosen = _Distinct(recipe.distinct)
    kept = chosen.add(corpus, rows, recipe.n_train if other else 0, progress)
    return kept, chosen.add(other, others, recipe.n_held_out, progress) if other else []


class _Distinct:
    """A growing set of vectors, no two of them more alike than `bar`."""

    def __init__(self, bar: float) -> None:
        self._bar = bar
        self._vectors: list[Any] = []

    def add(self, corpus: Corpus, rows: list[int], limit: int, progress: Progress | None) -> list[int]:
        """Those of `rows` that join the set, in order, at most `limit` of them (0 = all)."""
        from copyscope.detection.embedding.embed import embed

        described = embed(corpus.take(rows), DESCRIPTOR, progress=progress)
        joined: list[int] = []
        for place, vector in zip(described.rows, described.vectors, strict=True):
            if limit and len(joined) == limit:
                break
            if not self._vectors or (np.stack(self._vectors) @ vector).max() <= self._bar:
                self._vectors.append(vector)
                joined.append(rows[place])
        return joined


def _write(folder: Path, corpus: Corpus, rows: Iterable[int], limit: int, size: int, missing: dict[str, str]) -> int:
    """Writes the first `limit` readable ones of `rows` (0 = all) as an imagefolder; returns how many there were.

    `missing` is filled with the id and the error of those that cannot be read.
    """
    extras = [name for name in corpus.table.column_names if name not in SCHEMA.names and name != "file_name"]
    found: list[dict[str, object]] = []
    names: set[str] = set()
    folder.mkdir()
    for row in rows:
        try:
            picture = images.decode(corpus.read(row))
            if size:
                picture = images.centre_crop(images.resize_short(picture, size, "bicubic"), size)
            content = images.encode(picture, "png")
        except ImageError as error:
            missing[corpus.ids[row]] = corpus.discreet(row, str(error))
            continue
        name = _file_name(corpus.ids[row], names)
        (folder / name).write_bytes(content)
        values = corpus.table.slice(row, 1).select([*extras, "captions", "weight"]).to_pylist()[0]
        values = json.loads(json.dumps(values, default=str))
        found.append({"file_name": name, "original_id": corpus.ids[row], **values})
        if limit and len(found) == limit:
            break
    write_metadata(folder, found)
    return len(found)


def _file_name(id: str, taken: set[str]) -> str:
    """A plain file name that still tells the image: the last part of its id, numbered where that is taken."""
    stem = re.sub(r"[^A-Za-z0-9._-]+", "-", PurePosixPath(id).stem).strip("-.")[:80] or "image"
    name, number = stem, 1
    while name.lower() in taken:
        number += 1
        name = f"{stem}-{number}"
    taken.add(name.lower())
    return f"{name}.png"
