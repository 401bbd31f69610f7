"""The search for parts (copyscope.detection.matching.part_search) over a pool of benchmarks/validity.py.

An audit lays its training images over every picture. Here training sets are drawn from one pool again and again, so
that what a training image scores in a picture is computed once, for the draws in which it is among the candidates.
"""

from __future__ import annotations

import dataclasses
import hashlib
import inspect
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from copyscope.detection.descriptors import Descriptor
from copyscope.detection.embedding.embeddings import Embeddings
from copyscope.detection.matching import part_search
from copyscope.detection.matching.match import combine
from copyscope.detection.matching.ncc import Verify
from copyscope.detection.matching.part_search import PartSearch
from copyscope.imaging.images import Image

BATCH = 32
CHANNELS = 3


class Parts:
    """What templates of the pool's pictures score in parts of its pictures and of their altered copies.

    best [n T]: coarse score of every template where it fits best. fit, score, similarity [n T], place [n T 4]: of pairs
    that were looked at closely, NaN where not yet; similarity of those that won.
    """

    def __init__(
        self, pool: Embeddings, n: int, picture: Callable[[int], Image], descriptor: Descriptor, folder: Path
    ) -> None:
        """pool: the pictures [N]. n: rows, pictures and altered copies. picture: the picture of a row."""
        self.descriptor, self.vectors = descriptor, pool.vectors
        search = PartSearch(pool, descriptor, Verify(), cache=folder / "cache", workers=1)
        self.templates = part_search._Templates.of(search)
        source = hashlib.sha256(inspect.getsource(part_search).encode()).hexdigest()[:12]
        self.file = folder / f"parts-{source}.npz"
        self.pictures = _Pictures(folder / "pictures.bin", n, picture)
        self.canvases = [part_search._canvas(each) for each in self.pictures]
        n_templates = len(self.templates.owner)
        if self.file.exists():
            with np.load(self.file) as known:
                self.values = {name: known[name] for name in known.files}
        else:
            self.values = {
                name: np.full((n, n_templates), np.nan, np.float32) for name in ("fit", "score", "similarity")
            }
            self.values["place"] = np.zeros((n, n_templates, 4), np.int16)
            self.values["best"] = np.stack([self.templates.best(each) for each in self.canvases])
            # What the templates correlate by chance is told by squares of training pictures.
            squares = self.templates.squares
            self.values["by_chance"] = np.stack([self.templates.best(each) for each in squares])
            self.keep()

    def keep(self) -> None:
        """Write what is known, for the next run."""
        with open(partial := self.file.with_suffix(".tmp"), "wb") as target:
            np.savez(target, **self.values)
        os.replace(partial, self.file)

    def score(self, rows: NDArray[np.int64], train: NDArray[np.int64], allowed: NDArray[np.bool_] | None) -> Any:
        """Scores [n] of the best part of rows [n] against training images `train` [t] of the pool, as
        `part_search.Parts.score`; allowed [n t]: which of them count, None = all."""
        templates, values = self.templates, self.values
        some = train[np.linspace(0, len(train) - 1, min(part_search.STRANGERS, len(train))).round().astype(int)]
        chance = np.minimum(np.median(values["by_chance"][some], axis=0), np.float32(0.99)).astype(np.float32)
        drawn = dataclasses.replace(templates, chance=chance)
        winner = np.full(len(rows), -1, np.int64)
        for place, row in enumerate(rows.tolist()):
            excluded = np.ones(len(templates.squares), bool)
            excluded[train if allowed is None else train[allowed[place]]] = False
            found = drawn.candidates(values["best"][row], excluded)
            lacking = found[np.isnan(values["fit"][row, found])]
            if len(lacking):
                looked = part_search._fit(self.canvases[row], templates.pixels(lacking))
                for name, each in zip(("score", "place", "fit"), looked, strict=True):
                    values[name][row, lacking] = each
            if len(found):
                winner[place] = found[values["fit"][row, found].argmax()]
        there = winner >= 0
        self._describe(rows[there], winner[there])
        scores = np.full(len(rows), -1, np.float32)
        pairs = rows[there], winner[there]
        scores[there] = combine(values["similarity"][pairs], values["score"][pairs])
        return scores

    def _describe(self, rows: NDArray[np.int64], winner: NDArray[np.int64]) -> None:
        """Similarity of the parts in which templates `winner` [n] won, where not known yet."""
        values, owner = self.values, self.templates.owner
        lacking = np.flatnonzero(np.isnan(values["similarity"][rows, winner]))
        for start in range(0, len(lacking), BATCH):
            some = lacking[start : start + BATCH]
            parts = []
            for row, template in zip(rows[some].tolist(), winner[some].tolist(), strict=True):
                place = values["place"][row, template].astype(np.int64)
                part = part_search._cut(self.pictures[row], part_search._box(place, self.canvases[row].shape))
                parts.append(np.ascontiguousarray(part[:, ::-1]) if place[3] else part)
            theirs = self.vectors[owner[winner[some]]]
            found = np.einsum("nd,nd->n", self.descriptor.describe(parts), theirs)
            values["similarity"][rows[some], winner[some]] = found


class _Pictures:
    """Pictures [n] of any size in one file, written once."""

    def __init__(self, file: Path, n: int, picture: Callable[[int], Image]) -> None:
        shapes = file.with_suffix(".npy")
        if not shapes.exists():
            sizes = np.zeros((n, 2), np.int64)
            with open(file, "wb") as target:
                for row in range(n):
                    made = picture(row)
                    sizes[row] = made.shape[:2]
                    target.write(made.tobytes())
            np.save(shapes, sizes)
        self.sizes = np.load(shapes)
        self.ends = np.cumsum(self.sizes.prod(axis=1) * CHANNELS)
        self.bytes = np.memmap(file, np.uint8, mode="r")

    def __getitem__(self, row: int) -> Image:
        if row >= len(self.sizes):
            raise IndexError(row)
        height, width = self.sizes[row].tolist()
        end = int(self.ends[row])
        return np.array(self.bytes[end - height * width * CHANNELS : end]).reshape(height, width, CHANNELS)
