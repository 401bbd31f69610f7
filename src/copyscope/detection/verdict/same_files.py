"""Refuse two corpora that hold the same image files."""

from __future__ import annotations

import functools
import itertools
import os
from collections.abc import Iterator

import numpy as np
import pyarrow as pa
import pyarrow.compute

from copyscope.data.corpus import Corpus
from copyscope.errors import InputError

PIECE = 65_536


_WHAT = {
    "train": "Give the folder of images the model made, then the folder it was trained on",
    "held-out": "Held-out images are images that the model was not trained on and did not make",
    "control": "Controls are images that the base model made",
}
"""What the second of two sets should hold."""


def refuse_same_files(corpora: dict[str, Corpus]) -> None:
    """Refuse two corpora that hold the same image files: a slip that would come out as "everything is a copy".

    Raises:
        InputError: one image file is in two of them; the message names it.
    """
    for (name, mine), (other, theirs) in itertools.combinations(corpora.items(), 2):
        shared, n, n_theirs = _shared(mine, theirs)
        if shared:
            where = dict.fromkeys((mine.origin, theirs.origin))
            who = "The" if shared == n == n_theirs else f"{shared} of the"
            raise InputError(
                f"{who} {name} and the {other} images are the same: {' and '.join(where)}.\n"
                f"{_WHAT.get(other, _WHAT['train'])}"
            )


def _shared(mine: Corpus, theirs: Corpus) -> tuple[int, int, int]:
    """How many of my images are theirs too, of how many, and how many they have.

    The smaller set is held, the larger streamed.
    """
    held, streamed = sorted((mine, theirs), key=len)
    places = pa.concat_arrays([pa.array([], pa.string()), *_places(held)])
    found, n, n_found = np.zeros(len(places), dtype=bool), 0, 0
    for piece in _places(streamed):
        n += len(piece)
        n_found += pa.compute.sum(pa.compute.is_in(piece, value_set=places)).as_py() or 0
        found |= pa.compute.is_in(places, value_set=piece).to_numpy(zero_copy_only=False)
    if held is mine:
        return int(found.sum()), len(places), n
    return n_found, n, len(places)


def _places(corpus: Corpus) -> Iterator[pa.Array]:
    """Where each image is that may be readable, whatever links lead there; piece by piece."""
    scheme, remote, _ = corpus.origin.rpartition("://")
    real = functools.lru_cache(PIECE)(os.path.realpath)

    def place(path: str) -> str:
        if remote and scheme != "file":
            return f"{scheme}://{path}"
        folder, name = os.path.split(path)
        return os.path.join(real(folder), name)

    for batch in corpus.table.select(["image", "error"]).to_batches(PIECE):
        found = batch["image"].filter(pa.compute.is_null(batch["error"])).to_pylist()
        yield pa.array(map(place, found), pa.string(), size=len(found))
