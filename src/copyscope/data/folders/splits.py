"""Splits of a data set (train, validation, test) by the names of folders, shards and tables, as the Hub has them."""

from __future__ import annotations

import posixpath
import re
from collections.abc import Iterable, Mapping

import pyarrow as pa
import pyarrow.compute as pc

from copyscope.errors import InputError

_KEYWORDS = {
    "train": ("train", "training"),
    "validation": ("validation", "valid", "val", "dev"),
    "test": ("test", "testing", "eval", "evaluation"),
}
_SPLITS = {word: split for split, words in _KEYWORDS.items() for word in words}
_WORD = "|".join(sorted(_SPLITS, key=len, reverse=True))
_FOLDER = re.compile(rf"(?:({_WORD})(?:[-._ 0-9].*)?|.*[-._ 0-9]({_WORD}))", re.IGNORECASE)
_FILE = re.compile(rf"(?:.*[-._ 0-9])?({_WORD})(?:[-._ 0-9].*)?", re.IGNORECASE)
_SHARD = re.compile(r"(\w+(?:\.\w+)*)-[0-9]{5}-of-[0-9]{5}.*")
ALL = "all"
"""What is asked for where all splits are wanted."""
REGULARISATION = "reg"
"""The split of kohya's regularisation images."""
NONE = "in no split"


def canonical(name: str) -> str:
    """One name for all that a split is called: "val" and "dev" are "validation"."""
    return _SPLITS.get(name.strip().lower(), name.strip().lower())


def is_split(name: str) -> bool:
    """Whether a word is one of those that splits are called by."""
    return canonical(name) in (*_KEYWORDS, REGULARISATION)


def place_of(path: str) -> tuple[str, int] | None:
    """(split, place among the folders) of the first folder in a path that is named like a split."""
    for place, part in enumerate(path.split("/")[:-1]):
        if match := _FOLDER.fullmatch(part):
            return _SPLITS[(match[1] or match[2]).lower()], place
    return None


def of_file(path: str) -> str | None:
    """The split of a shard or a table by its name: `train-00000-of-00002.parquet`, `cc3m-validation-07.tar`."""
    name = posixpath.basename(path)
    stem = name.partition(".")[0] if not _SHARD.fullmatch(name) else name
    if match := _FILE.fullmatch(posixpath.splitext(stem)[0]):
        return _SPLITS[match[1].lower()]
    if posixpath.basename(posixpath.dirname(path)) == "data" and (match := _SHARD.fullmatch(name)):
        return match[1]
    return None


def of_folders(paths: Iterable[str]) -> dict[str, str]:
    """The split of each path by its folders; {} where they are no layout of splits but have such a name by chance."""
    paths = list(paths)
    found = {path: place[0] for path in paths if (place := place_of(path))}
    return _layout(found, len(paths))


def of_shards(paths: Iterable[str]) -> dict[str, str]:
    """The split of each shard by its folders or its name; {} where they have none."""
    paths = list(paths)
    found = of_folders(paths)
    for path in paths:
        if path not in found and (split := of_file(path)):
            found[path] = split
    return _layout(found, len(paths))


def class_of(path: str, by_folder: Mapping[str, str]) -> str:
    """The first folder of an image below that of its split; "" where there is none."""
    folders = path.split("/")[:-1]
    if by_folder and (place := place_of(path)):
        folders = folders[place[1] + 1 :]
    return folders[0] if folders else ""


def _layout(found: dict[str, str], n: int) -> dict[str, str]:
    """What is found, if every path has a split, or at least half have one of several."""
    if len(found) == n or (2 * len(found) >= n and len(set(found.values())) > 1):
        return found
    return {}


def known(counts: dict[str, int]) -> dict[str, int]:
    """The splits, if the words are names of such."""
    return counts if any(map(is_split, counts)) else {}


def chosen(counts: dict[str, int], asked: str | None, origin: str, what: str = "images") -> str | None:
    """The split to read, of those that are there with how much each has; None = all.

    Raises InputError where several are there and none is asked for, or one that is not there.
    """
    order = [*_KEYWORDS]
    counts = dict(sorted(counts.items(), key=lambda each: order.index(each[0]) if each[0] in order else len(order)))
    listed = ", ".join(f"{name} ({n:,} {what})" for name, n in list(counts.items())[:8])
    if asked is not None:
        by_name = {canonical(name): name for name in counts}
        if asked == ALL:
            return None
        if (name := by_name.get(canonical(asked))) is None:
            raise InputError(
                f"Cannot open {origin!r}: no split {asked!r}.\n"
                + (f"There are: {listed}" if counts else "It has no splits: leave the name of one out")
            )
        return name
    if len(counts) > 1:
        first = next(iter(counts))
        raise InputError(
            f"Cannot open {origin!r}: it holds several splits: {listed}.\n"
            f"Choose one: {origin}@{first}, or --split {first} (in Python: split={first!r}); {origin}@{ALL} reads all"
        )
    return next(iter(counts), None)


def column_counts(table: pa.Table) -> dict[str, int]:
    """How many rows each split has by the column `split`; {} where its values are no names of splits."""
    if "split" not in table.column_names:
        return {}
    counted = pc.value_counts(table["split"].combine_chunks()).to_pylist()
    counts = {each["values"]: each["counts"] for each in counted if isinstance(each["values"], str)}
    return known(counts)
