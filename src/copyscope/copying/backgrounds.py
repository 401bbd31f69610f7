"""Transparent training images over the other background too: a model may have been shown either.

Whoever prepares images for training composites them over white or over black, or drops the transparency, which mostly
leaves black. Over white alone a copy of the picture over black is another picture to any descriptor.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
from numpy.typing import NDArray

from copyscope.engine import Engine
from copyscope.images import Image

from .components import merged
from .descriptors import Descriptor
from .duplicates import Groups
from .embed import Embeddings, Work, compute, embed

DIFFERENT = 2.0
"""Grey levels by which the two backgrounds must differ on average."""
SUFFIX = " (other background)"
"""What the id of the second row of a transparent image ends with."""


def over_both(
    train: Embeddings, descriptor: Descriptor, *, engine: Engine | str | None = None, **options: Any
) -> tuple[Embeddings, NDArray[np.int64]]:
    """Training images, and those that are transparent once more, over the other background.

    Args:
        train: the training images as they are described, all that can be read.
        descriptor: what described them.
        engine: describes the second rows; None = this process.
        options: `cache`, `workers` and `progress` of `embed`.

    Returns:
        Embeddings of [m] rows of a longer corpus, those of `train` [n] first, and for each the position among `train`
        of the image that it shows, int64 [m]. `train` itself where nothing is transparent.
    """
    work = Work("backgrounds", f"mean difference of {DIFFERENT}", 1, np.uint8, _differ, layers=True)
    filled, rows, values = compute(train.corpus, work, rows=train.rows, engine=engine, **options)
    rows = rows[values[:, 0] > 0]
    if not len(rows):
        return train, np.arange(len(train.rows))
    both = embed(filled.with_other_background(rows, SUFFIX), descriptor, engine=engine, **options)
    n = len(filled)
    origin = np.where(both.rows < n, both.rows, rows[np.maximum(both.rows - n, 0)])
    return both, np.searchsorted(train.rows, origin)


def grouped_with_source(groups: Groups, both: Embeddings, source: NDArray[np.int64]) -> Groups:
    """The groups of training images with their second rows in the group of the first ones."""
    return dataclasses.replace(
        groups, corpus=both.corpus, rows=both.rows, label=groups.label[source], exact=groups.exact[source]
    )


def joined_by_source(groups: Groups, source: NDArray[np.int64]) -> Groups:
    """The groups with all rows of one image in one: `source` [n] says which image each shows."""
    _, first, image = np.unique(source, return_index=True, return_inverse=True)
    pairs = np.stack([groups.label, groups.label[first[image]]], axis=1)
    pairs = pairs[pairs[:, 0] != pairs[:, 1]]
    return dataclasses.replace(groups, label=merged(groups.label, pairs)) if len(pairs) else groups


def _differ(layers: list[tuple[Image, Image | None]]) -> NDArray[np.uint8]:
    found = [
        behind is not None and float(np.abs(image.astype(np.int16) - behind).mean()) > DIFFERENT
        for image, behind in layers
    ]
    return np.array(found, np.uint8)[:, None]
