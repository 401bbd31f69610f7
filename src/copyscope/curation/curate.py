"""Corpus edits: plant duplicates, add captions, down-weight or drop images, take a subset.

Nothing here decides by position: the same seed chooses the same images in any order of the rows.
"""

from __future__ import annotations

import hashlib
import math
import os
import re
from collections.abc import Callable, Iterable, Sequence

import numpy as np
from numpy.typing import NDArray

from copyscope.data.corpus import Corpus
from copyscope.data.table import distinct
from copyscope.errors import ImageError, InputError

DUPLICATIONS = ("none", "full", "partial")
_FACTOR = "duplication_factor"
Rows = Sequence[int] | NDArray[np.intp]
Labels = Sequence[int] | NDArray[np.int64]


def duplicate(corpus: Corpus, style: str = "none", *, rate: float = 0.05, factor: float = 5.0, seed: int = 0) -> Corpus:
    """Plant duplicates, as sampling weight and never as files (Somepalli et al. 2023, section 4).

    floor(rate * n) of the n readable images, drawn by `seed` without replacement, get `factor` times their weight.
    Three columns say which: `duplicated`; `duplication`, the style for these and "" for all others; and
    `duplication_factor`, 1 for all others. Of one seed, both styles take the same images, and a higher rate takes those
    of a lower one and more. Where duplicates are planted already, "none" leaves them as they are, and the other styles
    take their place: planting twice does not multiply.

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
        InputError: a style, rate or factor cannot be, or duplicates are planted by a factor that is not known.
    """
    if style not in DUPLICATIONS:
        raise InputError(f"No duplication style {style!r}.\nThere are: {', '.join(DUPLICATIONS)}")
    if not 0 <= rate <= 1:
        raise InputError(f"rate must be a share from 0 to 1, not {rate}.\nThe paper uses 0.05")
    if not 1 <= factor < math.inf:
        raise InputError(f"factor must be 1 or more, not {factor}.\nThe paper uses 5")
    if style == "none":
        kinds = _planted(corpus)
        corpus = corpus.with_column("duplicated", [kind != "" for kind in kinds]).with_column("duplication", kinds)
        known = _FACTOR in corpus.table.column_names or any(kinds)
        return corpus if known else corpus.with_column(_FACTOR, [1.0] * len(corpus))
    readable = _readable(corpus)
    # A share such as 0.29 of 100 is 28.999999999999996 in floating point.
    many = math.floor(rate * len(readable) + 1e-9)
    chosen = np.zeros(len(corpus), dtype=bool)
    chosen[_rng(seed).permutation(readable)[:many]] = True
    weight = np.array(corpus.table["weight"].to_pylist(), dtype=np.float64) / _planted_factors(corpus)
    corpus = corpus.with_column("weight", np.where(chosen, weight * factor, weight).tolist())
    corpus = corpus.with_column("duplicated", chosen.tolist())
    corpus = corpus.with_column("duplication", [style if row else "" for row in chosen])
    return corpus.with_column(_FACTOR, np.where(chosen, factor, 1.0).tolist())


def _planted(corpus: Corpus) -> list[str]:
    """The style in which each row [n] is planted as a duplicate already, "" where it is not."""
    if "duplication" not in corpus.table.column_names:
        return [""] * len(corpus)
    return [kind if kind in DUPLICATIONS[1:] else "" for kind in corpus.table["duplication"].to_pylist()]


def _planted_factors(corpus: Corpus) -> NDArray[np.float64]:
    """What the weight of each row [n] was multiplied by when duplicates were planted, 1 for all others."""
    known = corpus.table[_FACTOR].to_pylist() if _FACTOR in corpus.table.column_names else [None] * len(corpus)
    planted = _planted(corpus)
    if any(kind and not factor for kind, factor in zip(planted, known, strict=True)):
        raise InputError(
            f"{corpus.origin} has planted duplicates, and does not say by which factor (column `{_FACTOR}`).\n"
            "Plant them in the images it was made of"
        )
    return np.array([factor if kind else 1.0 for kind, factor in zip(planted, known, strict=True)], dtype=np.float64)


def add_captions(
    corpus: Corpus,
    make: Callable[[int, list[str], np.random.Generator], Iterable[str]],
    *,
    seed: int,
    ids: Iterable[str] | None = None,
) -> Corpus:
    """Append captions to each readable row's own; those a row has already, and empty ones, are left out.

    Where `make` raises ImageError, the row gets that as its `error`.

    Args:
        corpus: the images.
        make: (row, captions, rng) -> further captions.
        seed: each image has a generator of its own, by seed and id.
        ids: of the images that get any, and before their own, since a trainer reads the first; None = all, behind.

    Returns:
        The corpus with these captions.
    """
    captions = [list(some) for some in corpus.captions]
    errors = corpus.table["error"].to_pylist()
    chosen = None if ids is None else set(ids)
    for row in _readable(corpus).tolist():
        if chosen is not None and corpus.ids[row] not in chosen:
            continue
        own = captions[row]
        try:
            made = make(row, list(own), _rng(seed, corpus.ids[row]))
            new = [text for text in made if text.strip()]
            captions[row] = distinct([*own, *new] if chosen is None else [*new, *own])
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
    """Keep one image of each near-duplicate group: that of `kept_rows`.

    Args:
        corpus: the images.
        rows: [m], rows that were grouped; others, such as unreadable ones, stay.
        label: [m], group of each.

    Returns:
        The corpus with one image a group.
    """
    return remove(corpus, [row for row, kept in kept_rows(corpus, rows, label).items() if row != kept])


def kept_rows(corpus: Corpus, rows: Rows, label: Labels) -> dict[int, int]:
    """Row to keep of each row's near-duplicate group; itself for those that stay.

    Of a group it is an image with a caption before one without, then the one with most pixels, then the one of most
    bytes, which is the least compressed, then the one with most words in its captions, then the first.

    Args:
        corpus: the images.
        rows: as in `keep_one`.
        label: as in `keep_one`.

    Returns:
        Row -> row kept.
    """
    worth = _worth(corpus, list(map(int, rows)))
    best_of: dict[int, int] = {}
    for row, group in sorted(zip(map(int, rows), map(int, label), strict=True)):
        best = best_of.setdefault(group, row)
        if worth[row] > worth[best]:
            best_of[group] = row
    return {int(row): best_of[int(group)] for row, group in zip(rows, label, strict=True)}


def kept_because(corpus: Corpus, pairs: Iterable[tuple[int, int]]) -> list[str]:
    """Reasons why `kept_rows` prefers the second row of each pair to the first, in words.

    Args:
        corpus: the images.
        pairs: (row, row preferred).

    Returns:
        A reason each.
    """
    pairs = [(int(row), int(kept)) for row, kept in pairs]
    worth = _worth(corpus, [row for pair in pairs for row in pair])
    said = []
    for row, kept in pairs:
        better = [name for name, ours, theirs in zip(_WORTH, worth[kept], worth[row], strict=True) if ours > theirs]
        said.append(better[0] if better else "it comes first")
    return said


_WORTH = ("it has a caption", "it has more pixels", "it is less compressed", "its captions say more")


def _worth(corpus: Corpus, rows: Sequence[int]) -> dict[int, tuple[bool, int, int, int]]:
    """What `kept_rows` goes by, in the order of _WORTH: whether there is a caption, pixels, bytes, words."""
    few = corpus.take(sorted(set(rows)))
    width, height = (few.table[name].to_pylist() for name in ("width", "height"))
    words = [sum(len(text.split()) for text in captions) for captions in few.captions]
    found = zip(sorted(set(rows)), width, height, _sizes(few), words, strict=True)
    return {row: (n_words > 0, (w or 0) * (h or 0), size, n_words) for row, w, h, size, n_words in found}


def _sizes(corpus: Corpus) -> list[int]:
    """Bytes of each image file, where they are known without reading any: of files on a disk, and in tars; else 0."""

    def size(path: str | None, place: str | None) -> int:
        if found := re.search(r"#bytes=\d+\+(\d+)$", place or ""):
            return int(found[1])
        try:
            return 0 if path is None or corpus.kind == "parquet" else os.stat(path).st_size
        except (OSError, ValueError):
            return 0

    return list(map(size, corpus.paths(), corpus.table["image"].to_pylist()))


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
    for row in readable.tolist():
        strata.setdefault(repr(values[row]), []).append(row)
    # Systematic sampling: the images of a stratum are spread evenly over 0..1, and the first n of all are taken.
    places = []
    for value, rows in sorted(strata.items()):
        rng = _rng(seed, value)
        places += [((turn + rng.random()) / len(rows), row) for turn, row in enumerate(rng.permutation(rows).tolist())]
    return corpus.take(sorted(row for _, row in sorted(places)[:n]))


def _readable(corpus: Corpus) -> NDArray[np.intp]:
    """Rows without an error, in the order of their ids."""
    errors = corpus.table["error"].to_pylist()
    found = sorted((row for row in range(len(corpus)) if errors[row] is None), key=corpus.ids.__getitem__)
    return np.array(found, dtype=np.intp)


def _rng(seed: int, name: str = "") -> np.random.Generator:
    digest = hashlib.sha256(name.encode()).digest()
    return np.random.default_rng(np.random.SeedSequence([seed, int.from_bytes(digest)]))
