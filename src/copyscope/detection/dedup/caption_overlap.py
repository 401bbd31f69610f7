"""Images that share a caption, or nearly share one (MinHash)."""

from __future__ import annotations

import dataclasses
import unicodedata
from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

NEAR = 0.8
"""Least Jaccard similarity of the word sets of two captions that nearly agree; `_near` counts in integers, as 4/5."""
NEAR_LIMIT = 100
"""A caption stops looking after this many distinct near ones, which bounds memory: counts beyond are lower bounds."""
_BLOCK = 4_000_000  # entries of a sparse product held at one time


@dataclasses.dataclass(frozen=True, eq=False)
class CaptionSharing:
    """For each image [n]: how many other images share one of its captions, and how many further ones nearly do."""

    shared: NDArray[np.int64]
    near_shared: NDArray[np.int64]


def normalise(caption: str) -> str:
    """`caption` as it is compared: NFKC, case folded, punctuation and white space runs to one space."""
    # Nearly all captions are plain: what they are folded to is known.
    folded = caption.lower() if caption.isascii() else _folded(caption)
    return " ".join(folded.translate(_spaced).split())


def _folded(caption: str) -> str:
    return unicodedata.normalize("NFKC", unicodedata.normalize("NFKC", caption).casefold())


def caption_sharing(captions: list[list[str]]) -> CaptionSharing:
    """How many other images share, or nearly share, a caption with each image; `captions` [n] lists of any length.

    Two images share a caption if one of the first's equals one of the second's once normalised; they nearly share one
    if two of theirs have word sets of Jaccard similarity >= 0.8. `near_shared` leaves out the images in `shared`.
    Captions of nothing but punctuation count as none. Words are split at white space, so that captions in scripts
    without it are shared only when equal. Identical captions are one node of the search, so a caption that all images
    have costs nothing; near ones are found by a prefix-filtered join (Bayardo, Ma & Srikant 2007) with the positional
    filter of Xiao et al. 2008, exact up to NEAR_LIMIT distinct near captions.
    """
    numbers: dict[str, int] = {}
    uses = [
        sorted({numbers.setdefault(text, len(numbers)) for caption in row if (text := normalise(caption))})
        for row in captions
    ]
    bags: dict[frozenset[str], int] = {}
    bag_of = np.array([bags.setdefault(frozenset(text.split()), len(bags)) for text in numbers], dtype=np.int64)
    from scipy import sparse

    same = incidence(uses, len(numbers))
    to_bag = sparse.csr_matrix(
        (np.ones(len(bag_of), dtype=bool), (np.arange(len(bag_of)), bag_of)), shape=(len(bag_of), len(bags))
    )
    shared = _others(same, None)
    return CaptionSharing(shared, _others(same @ to_bag, _near(list(bags))) - shared)


class _Spaced(dict[int, Any]):
    """Translation table filled on use: punctuation (Unicode category P) to a space, all else to itself."""

    def __missing__(self, code: int) -> Any:
        self[code] = " " if unicodedata.category(chr(code)).startswith("P") else code
        return self[code]


_spaced = _Spaced()


def incidence(rows: list[list[int]], width: int) -> Any:
    """Sparse 0/1 matrix [n width] with ones where `rows` says."""
    from scipy import sparse

    starts = np.concatenate([[0], np.cumsum([len(row) for row in rows], dtype=np.int64)])
    columns = np.fromiter((column for row in rows for column in row), dtype=np.int64, count=int(starts[-1]))
    return sparse.csr_matrix((np.ones(len(columns), dtype=bool), columns, starts), shape=(len(rows), width))


def _others(uses: Any, near: Any | None) -> NDArray[np.int64]:
    """For each image how many others it reaches over a caption: uses [n t], near [t t], None = only over its own.

    Images alike in all captions that lead anywhere are one class, counted with its size: no work is quadratic in them.
    """
    n = uses.shape[0]
    leads = np.bincount(uses.indices, minlength=uses.shape[1]) > 1
    if near is not None:
        leads |= np.diff(near.indptr) > 0
        near = near[leads][:, leads]
    uses = uses[:, np.flatnonzero(leads)].tocsr()
    of_image, first = alike(uses)
    there = uses[first]
    sizes = np.bincount(of_image, minlength=len(first)).astype(np.int64)
    return np.maximum(reached(there, there.T.tocsr(), sizes, n, near)[of_image] - 1, 0)


def alike(uses: Any) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """The class of each image [n] and the first image of each class [c]: images that use [n t] the same are one."""
    uses.sort_indices()
    classes: dict[bytes, int] = {}
    of_image = np.empty(uses.shape[0], dtype=np.int64)
    for image in range(len(of_image)):
        row = uses.indices[uses.indptr[image] : uses.indptr[image + 1]]
        of_image[image] = classes.setdefault(row.tobytes(), len(classes))
    return of_image, np.unique(of_image, return_index=True)[1].astype(np.int64)


def reached(uses: Any, back: Any, sizes: NDArray[np.int64], n: int, near: Any | None = None) -> NDArray[np.int64]:
    """How many of n images, those of classes of `sizes` [c], each of m rows reaches: over a caption that it uses [m t],
    or one near [t t] to that, which leads back [t c] to the classes."""
    # Entries that the product below would go through for each row, if none were met twice.
    work = np.diff(back.indptr).astype(np.int64)
    work = uses.astype(np.int64) @ (work if near is None else work + near.astype(np.int64) @ work)
    everyone = back.astype(np.int64) @ sizes == n
    found = np.zeros(uses.shape[0], dtype=np.int64)
    block = np.cumsum(work) // _BLOCK
    for rows in np.split(np.arange(len(found)), np.flatnonzero(np.diff(block)) + 1):
        to = uses[rows]
        to = to if near is None else to + to @ near
        all_in_one = (to @ everyone).astype(bool)  # one caption of all images: the answer is known
        found[rows[all_in_one]] = n
        found[rows[~all_in_one]] = (to[~all_in_one] @ back) @ sizes
    return found


def _near(bags: list[frozenset[str]]) -> Any:
    """Sparse 0/1 matrix [t t] of the word sets of Jaccard similarity >= 4/5, the diagonal left out."""
    from scipy import sparse

    count = len(bags)
    frequency: dict[str, int] = {}
    for bag in bags:
        for word in bag:
            frequency[word] = frequency.get(word, 0) + 1
    # Rarest first: a set's prefix then has its most telling words.
    rank = {word: place for place, word in enumerate(sorted(frequency, key=lambda word: (frequency[word], word)))}
    sizes = np.fromiter((len(bag) for bag in bags), dtype=np.int64, count=count)
    starts = np.concatenate([[0], np.cumsum(sizes)])
    words = np.concatenate([np.sort([rank[word] for word in bag]) for bag in bags] or [np.zeros(0)]).astype(np.int32)
    place = np.arange(len(words)) - np.repeat(starts[:-1], sizes)
    # Two sets of Jaccard >= 4/5 have a word in common among the first |s| - ceil(4|s|/5) + 1 of each.
    prefix = sizes - (4 * sizes + 4) // 5 + 1
    indexed = place < np.repeat(prefix, sizes)
    postings = np.flatnonzero(indexed)[np.argsort(words[indexed], kind="stable")]
    owner = np.repeat(np.arange(count), sizes)[postings]
    left = sizes[owner] - place[postings]  # words from this one on: no more than these can be in common
    ends = np.searchsorted(words[postings], np.arange(len(rank) + 1))
    mine = np.zeros(len(rank), dtype=bool)
    found: list[NDArray[np.int32]] = []
    for index in range(count):
        own = words[starts[index] : starts[index + 1]]
        mine[own] = True
        hits = np.zeros(0, dtype=np.int64)
        for position in range(prefix[index]):
            for piece in _pieces(ends[own[position]], ends[own[position] + 1]):
                others = owner[piece]
                least = (4 * (sizes[others] + len(own)) + 8) // 9  # overlap that makes the Jaccard similarity 4/5
                keep = (np.minimum(left[piece], len(own) - position) >= least) & (others != index)
                others, least = others[keep], least[keep]
                if len(others) == 0:
                    continue
                lengths = sizes[others]
                offsets = np.cumsum(lengths) - lengths
                flat = np.repeat(starts[others] - offsets, lengths) + np.arange(lengths.sum())
                overlap = np.add.reduceat(mine[words[flat]], offsets, dtype=np.int64)
                hits = np.union1d(hits, others[overlap >= least])
                if len(hits) >= NEAR_LIMIT:
                    break
            if len(hits) >= NEAR_LIMIT:
                break
        mine[own] = False
        found.append(hits[:NEAR_LIMIT].astype(np.int32))
    ends = np.concatenate([[0], np.cumsum([len(hits) for hits in found], dtype=np.int64)])
    columns = np.concatenate(found) if found else np.zeros(0, dtype=np.int64)
    return sparse.csr_matrix((np.ones(len(columns), dtype=bool), columns, ends), shape=(count, count))


def _pieces(first: int, last: int) -> Iterator[slice]:
    """first:last in pieces, small ones first: a word that nearly all captions have is left once enough is found.

    A word that one caption has leads to nobody else.
    """
    if last - first == 1:
        return
    size = 512
    while first < last:
        yield slice(first, min(first + size, last))
        first, size = first + size, size * 4
