"""The pictures that benchmarks train on."""

from __future__ import annotations

from pathlib import Path

import numpy as np

import worlds
from copyscope import Corpus
from copyscope.curation import captions
from copyscope.imaging import images


def corpus(folder: Path, n: int, paraphrases: int = 0) -> Corpus:
    """`n` random pictures of 64 pixels, each with a caption of its own and so many paraphrases of it."""
    rng = np.random.default_rng(0)
    folder.mkdir()
    rows: list[dict[str, object]] = []
    for index in range(n):
        image, caption = worlds.picture(rng)
        name = f"{index:04d}.png"
        (folder / name).write_bytes(images.encode(images.resize(image, (64, 64)), "png"))
        # Not even asked for where there are to be none: it would draw, and the next picture be another.
        others = captions.paraphrases(caption, paraphrases, rng) if paraphrases else []
        rows.append({"file_name": name, "captions": [caption, *others]})
    worlds.write_metadata(folder, rows)
    return Corpus.open(folder)
