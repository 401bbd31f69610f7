"""Corpus edits: plant duplicates, add captions, down-weight or drop images, take a subset.

Nothing here decides by position: the same seed chooses the same images in any order of the rows.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Iterable, Sequence

import numpy as np
from numpy.typing import NDArray

from copyscope.data.corpus import Corpus
from copyscope.data.table import distinct
from copyscope.errors import ImageError, InputError

DUPLICATIONS = ("none", "full", "partial")
Rows = Sequence[int] | NDArray[np.intp]
Labels = Sequence[int] | NDArray[np.int64]


def duplicate(corpus: Corpus, style: str = "none", *, rate: float = 0.05, factor: float = 5.0, seed: int = 0) -> Corpus:
    """Plant duplicates, as sampling weight and never as files (Somepalli et al. 2023, section 4).

    floor(rate * n) of the n readable images, drawn by `seed` without replacement, get `factor` times their weight. Two
    columns say which: `duplicated`, and `duplication`, the style for these and "" for all others. Of one seed, both
    styles take the same images, and a higher rate takes those of a lower one and more.

    Args:
        corpus: the images.
        style: "full", an image repeats with its first caption; "partial", with one drawn afresh from its list each
            time, which whoever draws captions sees to; "none" changes no weight.
        rate: share of the images, 0 to 1.
        factor: of the weight, 1 or more.
        seed: of the draw.

    Returns:
        The corpus with weights and columns.

    Raises:
        InputError: a style, rate or factor cannot be.
    """
    if style not in DUPLICATIONS:
        raise InputError(f"No duplication style {style!r}.\nThere are: {', '.join(DUPLICATIONS)}")
    if not 0 <= rate <= 1:
        raise InputError(f"rate must be a share from 0 to 1, not {rate}.\nThe paper uses 0.05")
    if not 1 <= factor < math.inf:
        raise InputError(f"factor must be 1 or more, not {factor}.\nThe paper uses 5")
    readable = _readable(corpus)
    # A share such as 0.29 of 100 is 28.999999999999996 in floating point.
    n = 0 if style == "none" else math.floor(rate * len(readable) + 1e-9)
    chosen = np.zeros(len(corpus), dtype=bool)
    chosen[_rng(seed).permutation(readable)[:n]] = True
    weight = np.array(corpus.table["weight"].to_pylist(), dtype=np.float64)
    corpus = corpus.with_column("weight", np.where(chosen, weight * factor, weight).tolist())
    corpus = corpus.with_column("duplicated", chosen.tolist())
    return corpus.with_column("duplication", [style if row else "" for row in chosen])


def add_captions(
    corpus: Corpus, make: Callable[[int, list[str], np.random.Generator], Iterable[str]], *, seed: int
) -> Corpus:
    """Append captions to each readable row's own; those a row has already, and empty ones, are left out.

    Where `make` raises ImageError, the row gets that as its `error`.

    Args:
        corpus: the images.
        make: (row, captions, rng) -> further captions.
        seed: each image has a generator of its own, by seed and id.

    Returns:
        The corpus with these captions.
    """
    captions = [list(some) for some in corpus.captions]
    errors = corpus.table["error"].to_pylist()
    for row in _readable(corpus):
        own = captions[row]
        try:
            made = make(row, list(own), _rng(seed, corpus.ids[row]))
            captions[row] = distinct([*own, *(text for text in made if text.strip())])
        except ImageError as error:
            errors[row] = corpus.discreet(row, str(error))
    return corpus.with_column("captions", captions).with_column("error", errors)


def remove(corpus: Corpus, rows: Rows) -> Corpus:
    """Remove rows.

    Args:
        corpus: the images.
        rows: which.

    Returns:
        The corpus without them.
    """
    dropped = {int(row) for row in rows}
    return corpus.take([row for row in range(len(corpus)) if row not in dropped])


def keep_one(corpus: Corpus, rows: Rows, label: Labels) -> Corpus:
    """Keep one image of each near-duplicate group: captioned ones first, then that with most pixels, then the first.

    Args:
        corpus: the images.
        rows: [m], rows that were grouped; others, such as unreadable ones, stay.
        label: [m], group of each.

    Returns:
        The corpus with one image a group.
    """
    return remove(corpus, [row for row, kept in kept_rows(corpus, rows, label).items() if row != kept])


def kept_rows(corpus: Corpus, rows: Rows, label: Labels) -> dict[int, int]:
    """Row that `keep_one` keeps of each row's group; itself for those that stay.

    Args:
        corpus: the images.
        rows: as in `keep_one`.
        label: as in `keep_one`.

    Returns:
        Row -> row kept.
    """
    worth = _worth(corpus)
    kept: dict[int, int] = {}
    for row, group in sorted(zip(map(int, rows), map(int, label), strict=True)):
        best = kept.setdefault(group, row)
        if worth[row] > worth[best]:
            kept[group] = row
    return {int(row): kept[int(group)] for row, group in zip(rows, label, strict=True)}


def kept_because(corpus: Corpus, pairs: Iterable[tuple[int, int]]) -> list[str]:
    """Reasons why `keep_one` prefers the second row of each pair to the first, in words.

    Args:
        corpus: the images.
        pairs: (row, row preferred).

    Returns:
        A reason each.
    """
    worth = _worth(corpus)
    said = []
    for row, kept in pairs:
        captioned, larger = (ours > theirs for ours, theirs in zip(worth[kept], worth[row], strict=True))
        said.append("it has a caption" if captioned else "it has more pixels" if larger else "it comes first")
    return said


def _worth(corpus: Corpus) -> list[tuple[bool, int]]:
    """Of each row, whether it has a caption, and its number of pixels: what `keep_one` goes by, in this order."""
    width, height = (corpus.table[name].to_pylist() for name in ("width", "height"))
    return [
        (any(text.strip() for text in captions), (w or 0) * (h or 0))
        for captions, w, h in zip(corpus.captions, width, height, strict=True)
    ]


def down_weight(corpus: Corpus, rows: Rows, label: Labels) -> Corpus:
    """Divide each weight by the size of the near-duplicate group, so that a group is drawn as often as one image.

    Args:
        corpus: the images.
        rows: as in `keep_one`.
        label: as in `keep_one`.

    Returns:
        The corpus with these weights.
    """
    _, group, size = np.unique(np.asarray(label), return_inverse=True, return_counts=True)
    weight = np.array(corpus.table["weight"].to_pylist(), dtype=np.float64)
    weight[np.asarray(rows, dtype=np.intp)] /= size[group]
    return corpus.with_column("weight", weight.tolist())


def subset(corpus: Corpus, n: int, *, seed: int, by: str | None = None) -> Corpus:
    """Draw readable images at random, in the order they had; of one seed, a smaller subset is part of a larger one.

    Args:
        corpus: the images.
        n: how many.
        seed: of the draw.
        by: column of which each value keeps its share, to about an image; None = none does.

    Returns:
        The corpus of these.

    Raises:
        InputError: there are fewer than `n` readable images, or no such column.
    """
    readable = _readable(corpus)
    if not 0 < n <= len(readable):
        raise InputError(f"{n} images cannot be drawn from the {len(readable)} readable ones.\nAsk for 1 to that many")
    if by is not None and by not in corpus.table.column_names:
        there = ", ".join(corpus.table.column_names)
        raise InputError(f"{corpus.origin} has no column {by!r} to keep shares of.\nThere are: {there}")
    values = corpus.table[by].to_pylist() if by else [""] * len(corpus)
    strata: dict[str, list[int]] = {}
    for row in readable:
        strata.setdefault(repr(values[row]), []).append(row)
    # Systematic sampling: the images of a stratum are spread evenly over 0..1, and the first n of all are taken.
    places = []
    for value, rows in sorted(strata.items()):
        rng = _rng(seed, value)
        places += [((turn + rng.random()) / len(rows), row) for turn, row in enumerate(rng.permutation(rows).tolist())]
    return corpus.take(sorted(row for _, row in sorted(places)[:n]))


def _readable(corpus: Corpus) -> list[int]:
    """Rows without an error, in the order of their ids."""
    errors = corpus.table["error"].to_pylist()
    return sorted((row for row in range(len(corpus)) if errors[row] is None), key=corpus.ids.__getitem__)


def _rng(seed: int, name: str = "") -> np.random.Generator:
    digest = hashlib.sha256(name.encode()).digest()
    return np.random.default_rng(np.random.SeedSequence([seed, int.from_bytes(digest)]))
