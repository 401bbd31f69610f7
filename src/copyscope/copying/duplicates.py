"""Near-duplicate groups of one corpus: which images are the same picture, and do their captions repeat with them."""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from copyscope.corpus import Corpus
from copyscope.errors import InputError
from copyscope.machine import Progress, cores

from .cells import NEAR, Cells, nearest
from .embed import Embeddings, Work, compute
from .search import one_blas_thread
from .sharing import normalise
from .verify import Verify

BLOCK = 1024
CELLS = 16
# A pair below the threshold is one picture all the same when the descriptor gives it FLOOR and the pixels, laid over
# each other, SAME: hard recompression moves SSCD far and such thumbnails hardly.
FLOOR, SAME, LOOKED_AT = 0.5, 0.97, 2


@dataclasses.dataclass(frozen=True)
class Groups:
    """Near-duplicate groups of the readable rows of a corpus.

    rows: corpus rows [n]. label: group of each [n]; groups are numbered by size, the largest first.
    exact: how many images of the corpus have the very same pixels, itself counted [n]; 1 outside groups of two or more.
    kind: of each group [g]: "full" (a caption repeats with the image), "partial" (the captions vary), "uncaptioned", or
    "none" for a group of one. n_chained: connected components that were loose chains and were split.
    """

    corpus: Corpus
    rows: NDArray[np.intp]
    label: NDArray[np.int64]
    exact: NDArray[np.int64]
    kind: list[str]
    threshold: float
    n_chained: int

    @property
    def sizes(self) -> NDArray[np.int64]:
        """Number of images of each group [g]."""
        return np.bincount(self.label, minlength=len(self.kind))

    def table(self) -> pa.Table:
        """One row an image of a group of two or more: id, group, size, exact, duplication, captions."""
        order = np.argsort(self.label, kind="stable")
        order = order[self.sizes[self.label[order]] > 1]
        label = self.label[order]
        rows = pa.array(self.rows[order])
        return pa.table(
            {
                "id": self.corpus.table["id"].take(rows),
                "group": pa.array(label),
                "size": pa.array(self.sizes[label]),
                "exact": pa.array(self.exact[order]),
                "duplication": pa.array([self.kind[group] for group in label], pa.string()),
                "captions": self.corpus.table["captions"].take(rows),
            }
        )

    def summary(self) -> dict[str, Any]:
        """Counts for people and JSON."""
        sizes, grouped = self.sizes, self.sizes > 1
        kinds = [kind for kind, many in zip(self.kind, grouped, strict=True) if many]
        return {
            "n_groups": int(grouped.sum()),
            "n_images_in_groups": int(sizes[grouped].sum()),
            "n_exact_groups": len(set(self.label[self.exact > 1].tolist())),
            "full": kinds.count("full"),
            "partial": kinds.count("partial"),
            "uncaptioned": kinds.count("uncaptioned"),
            "largest": int(sizes.max(initial=0)),
            "threshold": self.threshold,
            "chains": (
                f"loose chains split: {self.n_chained}; every image is at least {self.threshold:g} alike to the centre "
                "of its group, or the same picture by its pixels"
                if self.n_chained
                else "no loose chains"
            ),
        }


def duplicates(
    embeddings: Embeddings,
    threshold: float,
    *,
    split_chains: bool = True,
    verify: Verify | None = Verify(),
    cache: Path | None = None,
    workers: int | None = None,
    progress: Progress | None = None,
) -> Groups:
    """Group the images whose similarity reaches `threshold`.

    The groups are the connected components of the graph of all pairs at or above the threshold. In a component of
    look-alikes the first and last of a chain may be nothing alike, and a hub ties strangers together; so a component
    with a member below the threshold to its centre is split into stars, each a centre and the members that reach the
    threshold to it (`split_chains=False` keeps the components as they are). An image left without near-duplicates then
    joins those that the second look finds to be the same picture (`verify=None` leaves that out). Exact duplicates are
    told by decoded pixels, not by file. Of embeddings that lie in cells pairs are looked
    for within those, and some are missed.
    """
    if not -1 <= threshold <= 1:
        raise InputError(f"The threshold of near-duplicates is a similarity between -1 and 1, not {threshold:g}")
    vectors = embeddings.vectors
    label = components(vectors, threshold, cells=embeddings.cells, workers=workers, progress=progress)
    n_chained = 0
    if split_chains:
        label, n_chained = _stars(vectors, label, threshold)
    if verify is not None:
        options = {"cache": cache, "workers": workers, "progress": progress}
        label = _join_same_pictures(embeddings, label, threshold, verify, options)
    label = _by_size(label)
    exact = _exact(embeddings, label, cache, workers, progress)
    captions = embeddings.corpus.table["captions"].take(pa.array(embeddings.rows)).to_pylist()
    kind = _kinds(label, captions)
    return Groups(embeddings.corpus, embeddings.rows, label, exact, kind, threshold, n_chained)


def components(
    vectors: NDArray[np.float32],
    threshold: float,
    *,
    cells: Cells | None = None,
    workers: int | None = None,
    progress: Progress | None = None,
) -> NDArray[np.int64]:
    """Connected components [n] of the graph of pairs with inner product >= threshold, in blocks of bounded memory.

    cells: of the vectors; only pairs that these find are then in the graph.
    """
    n = len(vectors)
    label = np.arange(n, dtype=np.int64)
    workers = workers or cores()

    def pairs_of(first: int, start: int) -> Iterator[tuple[NDArray[np.int64], NDArray[np.int64]]]:
        row, column = np.nonzero(vectors[first : first + BLOCK] @ vectors[start : start + BLOCK].T >= threshold)
        yield row + first, column + start

    def edges(lots: Iterator[tuple[NDArray[np.int64], NDArray[np.int64]]]) -> NDArray[np.int64]:
        found = [np.zeros((0, 2), np.int64)]
        for one, other in lots:
            # Merged labels first: a thousand copies of one image then give one edge, not a million.
            pairs = np.stack([label[one], label[other]], axis=1)
            found.append(np.unique(np.sort(pairs[pairs[:, 0] != pairs[:, 1]], axis=1), axis=0))
        return np.unique(np.concatenate(found), axis=0)

    # What is merged at once: a block of rows against all later ones, or some cells.
    size, end = (BLOCK, n) if cells is None else (CELLS, len(cells.centres))
    with one_blas_thread(), ThreadPoolExecutor(workers) as pool:
        for first in range(0, end, size):
            if cells is None:
                lots = [pairs_of(first, start) for start in range(first, n, BLOCK)]
            else:
                lots = [cells.pairs(cell, threshold) for cell in range(first, min(first + size, end))]
            found = np.concatenate(list(pool.map(edges, lots)))
            if len(found):
                label = _merge(label, found)
            if progress:
                progress("duplicates", min(first + size, end), end)
    return label


def _stars(vectors: NDArray[np.float32], label: NDArray[np.int64], threshold: float) -> tuple[NDArray[np.int64], int]:
    """Split every component that is not a star around its centre (the member nearest to the mean of its vectors)."""
    label = np.unique(label, return_inverse=True)[1].astype(np.int64)
    counts = np.bincount(label)
    order = np.argsort(label, kind="stable")
    starts = np.cumsum(counts) - counts
    fresh, n_chained = len(counts), 0
    for group in np.flatnonzero(counts > 2):
        left = order[starts[group] : starts[group] + counts[group]]
        split = False
        while True:
            mine = vectors[left]
            centre = int(np.argmax(mine @ mine.mean(axis=0)))
            near = mine @ mine[centre] >= threshold
            near[centre] = True
            if near.all():
                break
            split = True
            label[left[near]] = fresh
            fresh += 1
            left = left[~near]
        n_chained += split
    return label, n_chained


def _join_same_pictures(
    embeddings: Embeddings, label: NDArray[np.int64], threshold: float, verify: Verify, options: dict[str, Any]
) -> NDArray[np.int64]:
    """Join an image without near-duplicates to the group of its nearest few that the pixels say is the same picture.

    Whole groups are not joined to each other: one pair of look-alikes would chain two families.
    """
    vectors, progress = embeddings.vectors, options["progress"]
    strays = np.flatnonzero(np.bincount(label)[label] == 1)
    if threshold <= FLOOR or len(strays) == 0:
        return label
    found = nearest(
        vectors[strays],
        vectors,
        LOOKED_AT,
        embeddings.cells,
        probes=NEAR,
        query_labels=label[strays],
        reference_labels=label,
        workers=options["workers"],
        progress=progress,
    )
    near = found.score >= FLOOR
    query, other = strays[np.nonzero(near)[0]], found.index[near]
    # Two strays that are near each other are one pair, not two.
    is_stray = np.zeros(len(label), dtype=bool)
    is_stray[strays] = True
    pairs = np.stack([query, other], axis=1)
    pairs = np.unique(np.where(is_stray[other][:, None], np.sort(pairs, axis=1), pairs), axis=0)
    if len(pairs) == 0:
        return label
    used, places = np.unique(pairs, return_inverse=True)
    places = places.reshape(pairs.shape)
    thumbnails = verify.thumbnails(embeddings.corpus, embeddings.rows[used], **options)
    # One row a query, its candidates side by side: what is prepared of a query serves all of them.
    queries, row, count = np.unique(places[:, 0], return_inverse=True, return_counts=True)
    slots = np.full((len(queries), count.max()), -1, dtype=np.int64)
    at = np.arange(len(pairs)) - (np.cumsum(count) - count)[row]
    slots[row, at] = places[:, 1]
    scores = verify.compare(thumbnails[queries], thumbnails, slots, workers=options["workers"], progress=progress)
    return _merge(label, label[pairs[scores[row, at] >= SAME]])


def _merge(label: NDArray[np.int64], pairs: NDArray[np.int64]) -> NDArray[np.int64]:
    """Labels [n] with the labels of each pair [p 2] made one."""
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components

    size = int(label.max(initial=-1)) + 1
    graph = coo_array((np.ones(len(pairs), bool), (pairs[:, 0], pairs[:, 1])), shape=(size, size))
    _, merged = connected_components(graph, directed=False)
    joined: NDArray[np.int64] = merged.astype(np.int64)[label]
    return joined


def _by_size(label: NDArray[np.int64]) -> NDArray[np.int64]:
    """Renumber groups: the largest first, equal sizes by their first image."""
    _, first, inverse, counts = np.unique(label, return_index=True, return_inverse=True, return_counts=True)
    rank = np.empty(len(counts), dtype=np.int64)
    rank[np.lexsort((first, -counts))] = np.arange(len(counts))
    return rank[inverse]


def _exact(
    embeddings: Embeddings,
    label: NDArray[np.int64],
    cache: Path | None,
    workers: int | None,
    progress: Progress | None,
) -> NDArray[np.int64]:
    grouped = np.flatnonzero(np.bincount(label)[label] > 1) if len(label) else np.zeros(0, np.intp)
    exact = np.ones(len(label), dtype=np.int64)
    if len(grouped) == 0:
        return exact
    work = Work("pixels", "sha256 of height, width and RGB values", 32, np.uint8, _pixel_digests)
    _, rows, digests = compute(
        embeddings.corpus, work, rows=embeddings.rows[grouped], cache=cache, workers=workers, progress=progress
    )
    _, inverse, counts = np.unique(digests, axis=0, return_inverse=True, return_counts=True)
    exact[np.searchsorted(embeddings.rows, rows)] = counts[inverse.ravel()]
    return exact


def _pixel_digests(images: list[NDArray[np.uint8]]) -> NDArray[np.uint8]:
    digests = [hashlib.sha256(repr(image.shape).encode() + image.tobytes()).digest() for image in images]
    return np.frombuffer(b"".join(digests), dtype=np.uint8).reshape(-1, 32)


def _kinds(label: NDArray[np.int64], captions: list[list[str]]) -> list[str]:
    members: list[list[int]] = [[] for _ in range(int(label.max(initial=-1)) + 1)]
    for position, group in enumerate(label):
        members[group].append(position)
    return [_kind([captions[position] for position in positions]) for positions in members]


def _kind(captions: list[list[str]]) -> str:
    """ "full" when some caption stands at two or more images of the group: then image and caption repeat together."""
    if len(captions) == 1:
        return "none"
    if not any(captions):
        return "uncaptioned"
    seen: set[str] = set()
    for own in captions:
        plain = {normalise(caption) for caption in own} - {""}
        if seen & plain:
            return "full"
        seen |= plain
    return "partial"
