"""Nearest training image of a picture in the making, for mitigations and guards.

`diffusion` knows nothing of descriptors, `detection` nothing of models: a callable is made here of one for the other.
"""

from __future__ import annotations

import functools
import hashlib
import json
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from copyscope.data.corpus import Corpus
from copyscope.detection.embedding.embed import embed
from copyscope.detection.embedding.embeddings import Embeddings
from copyscope.detection.embedding.protocols import protocol as named_protocol
from copyscope.detection.search.exact import search

from .errors import InputError
from .imaging import images

if TYPE_CHECKING:
    from copyscope.detection.descriptors import Descriptor

    from .diffusion.denoiser import NearestImage

KEPT_BYTES = 256 * 2**20


def nearest(train: Corpus | str | Path, protocol: str = "sscd_distilled", **options: Any) -> Finder:
    """Find the most similar training image of each picture, exactly: a function for mitigations and guards.

    The training set is described once, at the first call, which raises InputError where no image can be read.

    Args:
        train: anything `Corpus.open` takes, or a Corpus.
        protocol: a name in `PROTOCOLS` or a descriptor spec.
        options: `cache`, `workers` and `progress` of `embed`.

    Returns:
        A function from pictures [n], uint8 [h w 3] each, to the nearest training image of each [n].

    Raises:
        PartError: the protocol or spec names no descriptor.
    """
    return Finder(train, named_protocol(protocol).load(), options)


class Finder:
    """Pictures [n], uint8 [h w 3] each -> the nearest training image of each [n]."""

    def __init__(self, train: Corpus | str | Path, descriptor: Descriptor, options: dict[str, Any]) -> None:
        self._train, self._descriptor, self._options = train, descriptor, options
        self._pictures: dict[int, NDArray[np.uint8]] = {}
        self._bytes, self._lock = 0, threading.Lock()

    def __call__(self, pictures: Sequence[NDArray[np.uint8]]) -> list[NearestImage]:
        """Nearest training image of each picture [n], uint8 [h w 3] each."""
        from .diffusion.denoiser import NearestImage

        if not pictures:
            return []
        described, captions = self._known
        found = search(self._descriptor.describe(list(pictures)), described.vectors, 1)
        rows = described.rows[found.index[:, 0]].tolist()
        scores = found.score[:, 0].tolist()
        return [NearestImage(score, captions[row], self._picture(row)) for row, score in zip(rows, scores, strict=True)]

    @functools.cached_property
    def fingerprint(self) -> str:
        """Hex sha256 of all that decides the result: descriptor, images and captions. Describes the images."""
        described, captions = self._known
        digests = described.corpus.table["sha256"].to_pylist()
        known = [(digests[row], captions[row]) for row in described.rows.tolist()]
        return hashlib.sha256(json.dumps([described.descriptor, described.fingerprint, known]).encode()).hexdigest()

    @functools.cached_property
    def _known(self) -> tuple[Embeddings, list[str]]:
        described = embed(self._train, self._descriptor, **self._options)
        if not len(described.rows):
            raise InputError(
                f"None of the {len(described.corpus)} training images in {described.corpus.origin} can be read.\n"
                "Name the folder of images that the model was trained on"
            )
        return described, [(captions or [""])[0] for captions in described.corpus.captions]

    def _picture(self, row: int) -> NDArray[np.uint8]:
        """The image of a row; of those looked at last, KEPT_BYTES are kept."""
        with self._lock:
            picture = self._pictures.pop(row, None)
            if picture is None:
                picture = images.decode(self._known[0].corpus.read(row))
                self._bytes += picture.nbytes
            self._pictures[row] = picture
            while self._bytes > KEPT_BYTES:
                self._bytes -= self._pictures.pop(next(iter(self._pictures))).nbytes
            return picture
