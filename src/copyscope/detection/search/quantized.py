"""Vectors in half precision or int8, read back as float32.

How far that moves a similarity is measured by benchmarks/index_cost.py, and stated in docs/indexes.md.
"""

from __future__ import annotations

import dataclasses
import difflib
from typing import Any

import numpy as np
from numpy.typing import NDArray

from copyscope.errors import InputError
from copyscope.machine import drop_pages

Vectors = NDArray[np.float32]

PRECISIONS = ("float32", "float16", "int8")
LEVELS = 127
RELEASED_ABOVE = 2**30
"""A mapped file of more bytes is let go of while it is read from end to end: what is behind need not stay in memory."""


def checked(precision: str) -> str:
    """Check the name of a precision and return it.

    Raises:
        InputError: there is none of that name.
    """
    if precision not in PRECISIONS:
        near = difflib.get_close_matches(precision, PRECISIONS, 1)
        hint = f"Did you mean {near[0]}? " if near else ""
        raise InputError(f"There is no precision {precision!r}.\n{hint}Give one of: {', '.join(PRECISIONS)}")
    return precision


def kinds(precision: str) -> tuple[str, ...]:
    """Kinds of files that `shorten` gives for a precision, in its order."""
    return ("vectors", "scales") if precision == "int8" else ("vectors",)


def shorten(vectors: Vectors, precision: str) -> tuple[NDArray[Any], ...]:
    """Quantize vectors for storage: float16, or int8 with a scale a row.

    int8: values = round(vector / scale), scale = largest magnitude / 127, so that none is moved by more than half a
    scale.

    Args:
        vectors: float32 [n d].
        precision: "float32", "float16" or "int8".

    Returns:
        Values [n d] and, of int8 alone, the scale of each row, float32 [n].
    """
    if precision != "int8":
        return (vectors.astype(precision, copy=False),)
    scale = np.abs(vectors).max(axis=1, initial=0) / np.float32(LEVELS)
    # A row of zeros has no scale and stays zeros.
    values = np.rint(vectors / np.where(scale > 0, scale, np.float32(1))[:, None])
    return values.astype(np.int8), scale.astype(np.float32)


@dataclasses.dataclass(frozen=True, eq=False)
class Stored:
    """Stored vectors [n d], read like an array: rows of it are float32.

    Attributes:
        values: float32, float16 or int8 [n d], perhaps mapped.
        scale: float32 [n], of int8 alone; None for the others.
    """

    values: NDArray[Any]
    scale: Vectors | None = None

    def __len__(self) -> int:
        return len(self.values)

    @property
    def shape(self) -> tuple[int, ...]:
        """Rows and dimensions."""
        return self.values.shape

    def __getitem__(self, rows: slice | NDArray[np.int64]) -> Vectors:
        if isinstance(rows, slice) and self.values.nbytes > RELEASED_ABOVE:
            drop_pages(self.values)
        found = self.values[rows]
        if self.scale is None:
            return np.asarray(found, np.float32)
        scaled: Vectors = np.multiply(found, self.scale[rows, None], dtype=np.float32)
        return scaled
