"""Files of ours that are there whole or not at all, and what to say where they cannot be written."""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .errors import InputError


def write_file(path: Path, write: Callable[[Path], object]) -> None:
    """Write under a temporary name, then rename: readers see the old file or the whole new one.

    Makes the folder. Raises InputError where nothing can be written there.
    """
    try:
        replace_file(path, write)
    except OSError as error:
        raise unwritable(path.parent, error) from None


def replace_file(path: Path, write: Callable[[Path], object]) -> None:
    """As `write_file`, raising what the system says."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        write(temporary)
        os.replace(temporary, path)
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink()


def save_array(path: Path, array: NDArray[Any]) -> None:
    """Write an array as `.npy`, under the very name given."""
    with path.open("wb") as file:
        np.save(file, array, allow_pickle=False)


_FORMULA = re.compile(r"'*[=+\-@\t\r\n]")


def safe_cell(value: Any) -> Any:
    """A value for CSV. A text that a spreadsheet would run as a formula gets an apostrophe before it; `plain_cell`
    takes that away again."""
    return f"'{value}" if isinstance(value, str) and _FORMULA.match(value) else value


def plain_cell(text: str) -> str:
    """The text that `safe_cell` was given."""
    return text[1:] if text.startswith("'") and _FORMULA.match(text) else text


def sweep(path: Path) -> None:
    """Take away what processes that were killed in `replace_file` have left of it. Nobody else may write it now."""
    for left in path.parent.glob(f".{path.name}.*.tmp"):
        left.unlink()


def unwritable(folder: Path, error: OSError) -> InputError:
    """What to say where results cannot be written."""
    return InputError(f"Cannot write results to {folder}: {error.strerror or error}.\nGive another folder with -o")


@contextlib.contextmanager
def told(cache: Path) -> Iterator[None]:
    """What the system says of a cache that cannot be written, for people."""
    try:
        yield
    except OSError as error:
        raise InputError(
            f"Cannot write the cache in {cache}: {error.strerror or error}.\n"
            "Set COPYSCOPE_CACHE to a folder that can be written"
        ) from None
