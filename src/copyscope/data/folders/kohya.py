"""Folders of kohya's scripts: `20_sks dog` holds images that are drawn 20 times an epoch as "sks dog"."""

from __future__ import annotations

import posixpath
import re
from collections.abc import Iterable

_REPEATS = re.compile(r"([1-9][0-9]{0,2})_(.*\S.*)")
"""Repeats from 1 to 999: longer numbers are years and dates, those with zeros before them count classes."""
_HELD_OUT = frozenset(("reg", "regularization", "regularisation", "reg_images"))


def repeats_of(images: Iterable[str]) -> dict[str, tuple[int, str]]:
    """(repeats, class words) of each folder with images; {} where the folders are not named so.

    All folders that hold images must be. Where three or more are numbered one after the other from 0 or 1, the numbers
    are those of classes.
    """
    found: dict[str, tuple[int, str]] = {}
    for folder in {posixpath.dirname(path) for path in images} - {""}:
        match = _REPEATS.fullmatch(posixpath.basename(folder))
        if match is None:
            return {}
        found[folder] = (int(match[1]), match[2].strip())
    numbers = sorted(repeats for repeats, _ in found.values())
    if len(numbers) > 2 and numbers == list(range(numbers[0], numbers[0] + len(numbers))) and numbers[0] < 2:
        return {}
    return found


def is_regularisation(path: str) -> bool:
    """Whether an image lies in a folder of regularisation images, as kohya's GUI has it beside `img`."""
    return any(part.lower() in _HELD_OUT for part in path.split("/")[:-2])
