"""The training image most like a picture, for mitigations and guards that ask while an image is being made.

`diffusion` knows nothing of descriptors, `copying` nothing of models: here a callable is made of the one for the other.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from . import images
from .copying.embed import embed
from .copying.protocols import protocol as named_protocol
from .copying.search import search
from .corpus import Corpus
from .errors import InputError

if TYPE_CHECKING:
    from .diffusion.denoiser import NearestImage

KEPT_PICTURES = 4096

Finder = Callable[[Sequence[NDArray[np.uint8]]], "list[NearestImage]"]
"""Pictures [n], uint8 [h w 3] each -> the nearest training image of each [n]."""


def nearest(train: Corpus | str | Path, protocol: str = "sscd_distilled", **options: Any) -> Finder:
    """A function that finds the most similar training image of each picture, exactly, by the protocol's descriptor.

    The training set is described once, at the first call. options: `cache` and `workers` of `embed`, `progress`. Raises
    InputError, at the first call, where none of its images can be read.
    """
    descriptor = named_protocol(protocol).load()

    @functools.cache
    def known() -> tuple[Any, list[str]]:
        described = embed(train, descriptor, **options)
        if not len(described.rows):
            raise InputError(
                f"None of the {len(described.corpus)} training images in {described.corpus.origin} can be read.\n"
                "Name the folder of images that the model was trained on"
            )
        return described, [(captions or [""])[0] for captions in described.corpus.captions]

    @functools.lru_cache(KEPT_PICTURES)
    def picture(row: int) -> NDArray[np.uint8]:
        return images.decode(known()[0].corpus.read(row))

    def find(pictures: Sequence[NDArray[np.uint8]]) -> list[NearestImage]:
        from .diffusion.denoiser import NearestImage

        if not pictures:
            return []
        described, captions = known()
        found = search(descriptor.describe(list(pictures)), described.vectors, 1)
        rows = described.rows[found.index[:, 0]].tolist()
        scores = found.score[:, 0].tolist()
        return [NearestImage(score, captions[row], picture(row)) for row, score in zip(rows, scores, strict=True)]

    return find
