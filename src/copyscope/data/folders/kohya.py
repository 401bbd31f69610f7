"""Folders of kohya's scripts: `20_sks dog` holds images that are drawn 20 times an epoch as "sks dog"."""

from __future__ import annotations

import collections
import posixpath
import re
from collections.abc import Container, Iterable, Mapping

_REPEATS = re.compile(r"([1-9][0-9]{0,2})_(.*\S.*)")
"""Repeats from 1 to 999: longer numbers are years and dates, those with zeros before them count classes."""
_NUMBERED = re.compile(r"[0-9]+_")
UNREAD = "sd-scripts reads only the images that lie in folders named REPEATS_WORDS"
"""Why an image in another folder beside or in these is no row."""
_HELD_OUT = frozenset(("reg", "regularization", "regularisation", "reg_images"))


def repeats_of(
    images: Iterable[str], by_folder: Mapping[str, str]
) -> tuple[dict[str, tuple[int, str]], frozenset[str]]:
    """(repeats, class words) of each of kohya's folders, and the folders with images that sd-scripts does not read.

    Both are empty where the folders are not kohya's. Where three or more are numbered one after the other from 0 or 1,
    the numbers are those of classes. Folders of other splits and folders inside kohya's may be there. Other folders may
    be where kohya's are clearly meant: one is named "token class", with a space, or lies in `img`, and no other is
    numbered. What is not read may not be more than what is, but for what lies outside `img`, as samples of training do.

    Args:
        images: their paths.
        by_folder: the split of each image by its folders.
    """
    sizes = collections.Counter(folder for path in images if (folder := posixpath.dirname(path)))
    matches = {folder: _REPEATS.fullmatch(posixpath.basename(folder)) for folder in sizes}
    found = {folder: (int(match[1]), match[2].strip()) for folder, match in matches.items() if match}
    numbers = sorted(repeats for repeats, _ in found.values())
    if len(numbers) > 2 and numbers == list(range(numbers[0], numbers[0] + len(numbers))) and numbers[0] < 2:
        return {}, frozenset()
    split_of = {posixpath.dirname(path): split for path, split in by_folder.items()}
    own = {None, *(split_of.get(folder) for folder in found)}
    others = frozenset(folder for folder in sizes if folder not in found and split_of.get(folder) in own)
    beside = [folder for folder in others if not _is_inside(folder, found)]
    gui = tuple({posixpath.dirname(folder) + "/" for folder in found if _is_of_gui(folder)})
    clear = gui or any(" " in words for _, words in found.values())
    numbered = any(_NUMBERED.match(posixpath.basename(folder)) for folder in beside)
    n_others = sum(sizes[folder] for folder in others if not gui or folder.startswith(gui))
    if (beside and (numbered or not clear)) or n_others > sum(sizes[folder] for folder in found):
        return {}, frozenset()
    return found, others


def _is_inside(folder: str, found: Container[str]) -> bool:
    while folder := posixpath.dirname(folder):
        if folder in found:
            return True
    return False


def _is_of_gui(folder: str) -> bool:
    """Whether a folder lies in `img`, as kohya's GUI makes it."""
    return posixpath.basename(posixpath.dirname(folder)).lower() == "img"


def is_regularisation(path: str) -> bool:
    """Whether an image lies in a folder of regularisation images, as kohya's GUI has it beside `img`."""
    return any(part.lower() in _HELD_OUT for part in path.split("/")[:-2])
