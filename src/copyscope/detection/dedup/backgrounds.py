"""Transparent training images, composited over several backgrounds as additional rows.

Whoever prepares images for training composites them over white or over black, or drops the transparency, and the
colours that lay under it are seen. Over white alone a copy of the picture over black is another picture to any
descriptor.
"""

from __future__ import annotations

import dataclasses
from typing import Unpack

import numpy as np
from numpy.typing import NDArray

from copyscope.detection.descriptors import Descriptor
from copyscope.detection.embedding.compute import compute
from copyscope.detection.embedding.embed import embed
from copyscope.detection.embedding.embeddings import Embeddings
from copyscope.detection.embedding.fill import Feature
from copyscope.engine import CacheOptions, Engine, EngineOptions
from copyscope.imaging import images
from copyscope.imaging.images import Image

from .groups import Groups
from .near_pairs import merged

DIFFERENT = 2.0
"""Grey levels by which white and black as a background must differ on average: an edge alone is no transparency."""
ALIKE = 0.995
"""Similarity from which on two backgrounds of an image need one row: its hidden colours are black as a rule."""
SUFFIX = " ({} background)"
"""What the ids of the further rows of a transparent image end with: one of images.BACKGROUNDS in the braces."""


def over_all(
    train: Embeddings, descriptor: Descriptor, *, engine: Engine | str | None = None, **options: Unpack[CacheOptions]
) -> tuple[Embeddings, NDArray[np.int64]]:
    """Training images, and those that are transparent again over other backgrounds.

    Args:
        train: the training images as they are described, all that can be read.
        descriptor: what described them.
        engine: describes the further rows; None = this process.
        options: `cache`, `workers` and `progress` of `embed`.

    Returns:
        Embeddings of [m] rows of a longer corpus, those of `train` [n] first, and for each the position among `train`
        of the image that it shows, int64 [m]. `train` itself where nothing is transparent.
    """
    settings: EngineOptions = {**options, "engine": engine}
    filled, rows, values = compute(train.corpus, transparency_work(), rows=train.rows, **settings)
    rows, every = rows[values[:, 0] > 0], np.arange(len(train.rows))
    if not len(rows):
        return train, every
    position = np.searchsorted(train.rows, rows)
    further = embed(filled.over_backgrounds(rows, SUFFIX), descriptor, **settings)
    new = _are_new(train, further, position)
    if not new.any():
        return train, every
    both = embed(filled.followed_by(further.corpus.take(further.rows[new])), descriptor, **settings)
    return both, np.concatenate([every, position[further.rows[new] % len(position)]])


def _are_new(train: Embeddings, further: Embeddings, position: NDArray[np.intp]) -> NDArray[np.bool_]:
    """Which of the further rows [r] are unlike the rows before them of the same image."""
    new = np.ones(len(further.rows), bool)
    background, image = np.divmod(further.rows, len(position))
    before = [np.asarray(train.vectors[position])]
    for number in range(len(images.BACKGROUNDS)):
        some = np.flatnonzero(background == number)
        vectors = np.zeros_like(before[0])
        vectors[image[some]] = further.vectors[some]
        alike = np.max([np.einsum("nd,nd->n", each, vectors) for each in before], axis=0)
        new[some] = alike[image[some]] < ALIKE
        before.append(vectors)
    return new


def plain_id(name: str) -> str:
    """Id of a training image without the suffix of its further rows."""
    for background in images.BACKGROUNDS:
        name = name.removesuffix(SUFFIX.format(background))
    return name


def grouped_with_source(groups: Groups, both: Embeddings, source: NDArray[np.int64]) -> Groups:
    """Groups of training images, with their further rows in the group of the first ones.

    Args:
        groups: of the training images.
        both: they and their further rows [m], as `over_all` gives them.
        source: [m], as `over_all` gives it.

    Returns:
        Groups of [m] rows.
    """
    if len(source) == len(groups.label):
        return groups
    return dataclasses.replace(
        groups, corpus=both.corpus, rows=both.rows, label=groups.label[source], exact=groups.exact[source], closest=None
    )


def joined_by_source(groups: Groups, source: NDArray[np.int64]) -> Groups:
    """Join all rows of one image into one group.

    Args:
        groups: of the rows.
        source: [n], which image each row shows.
    """
    _, first, image = np.unique(source, return_index=True, return_inverse=True)
    pairs = np.stack([groups.label, groups.label[first[image]]], axis=1)
    pairs = pairs[pairs[:, 0] != pairs[:, 1]]
    return dataclasses.replace(groups, label=merged(groups.label, pairs)) if len(pairs) else groups


def transparency_work() -> Feature:
    """Feature of transparency: 1 for a transparent image, else 0."""
    return Feature("backgrounds", f"mean difference of {DIFFERENT}", 1, np.uint8, _differ, layers=True)


def _differ(layers: list[tuple[Image, Image | None]]) -> NDArray[np.uint8]:
    found = [
        behind is not None and float(np.abs(image.astype(np.int16) - behind).mean()) > DIFFERENT
        for image, behind in layers
    ]
    return np.array(found, np.uint8)[:, None]
