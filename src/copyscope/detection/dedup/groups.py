"""Groups: near-duplicate groups of a corpus, and whether captions repeat with them."""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import math
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Annotated, Any, TypedDict

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from copyscope.curation.curate import kept_rows
from copyscope.curation.decisions import Decisions, Honoured
from copyscope.data.corpus import Corpus
from copyscope.detection.embedding.compute import compute
from copyscope.detection.embedding.embeddings import Embeddings
from copyscope.detection.embedding.fill import Feature
from copyscope.detection.matching.ncc import Verify
from copyscope.detection.search.exact import Nearest
from copyscope.detection.search.ivf import IVF, with_ivf
from copyscope.engine import CacheOptions, Engine
from copyscope.errors import InputError
from copyscope.imaging.images import Image
from copyscope.machine import Progress, drop_pages

from .caption_overlap import normalise
from .components import components, components_and_nearest
from .decided import as_decided
from .ivf_components import ivf_components
from .near_pairs import ROUNDING, merged
from .pixel_groups import join_turned, same_picture_groups

BLOCK, PIECE = 1024, 16384
STARS = 64
"""So many stars are taken from a whole component before its cells are gone through one by one."""
# A pair below the threshold is one picture all the same when the descriptor gives it FLOOR and the pixels, laid over
# each other, SAME: hard recompression moves SSCD far and such thumbnails hardly. A descriptor of few numbers must give
# it more: similarities of strangers spread by 1 / sqrt(numbers), and 64 bits give many of a large set FLOOR by chance.
FLOOR, SPREADS, SAME, LOOKED_AT = 0.5, 5.5, 0.97, 2


class GroupsSummary(TypedDict):
    """Counts of near-duplicate groups."""

    n_groups: Annotated[int, "groups"]
    n_images_in_groups: Annotated[int, "images in them"]
    n_exact_groups: Annotated[int, "groups in which images have the very same pixels"]
    full: Annotated[int, "groups in which a caption repeats with the image"]
    partial: Annotated[int, "groups with captions of which none repeats"]
    uncaptioned: Annotated[int, "groups without captions"]
    largest: Annotated[int, "images in the largest group, 1 where there are only single images"]
    n_look_alikes: Annotated[int, "images that the descriptor tied to others and the pixels did not confirm"]
    confirmed: Annotated[bool, "whether the pixels were asked"]
    threshold: Annotated[float, "similarity from which two images are tied"]
    chains: Annotated[str, "whether loose chains were split"]


@dataclasses.dataclass(frozen=True)
class Groups:
    """Near-duplicate groups of the readable rows of a corpus.

    Args:
        corpus: the corpus.
        rows: [n], corpus rows.
        label: [n], group of each; groups are numbered by size, the largest first.
        exact: [n], how many images of the corpus have the very same pixels, itself counted; 1 outside groups of two or
            more.
        kind: [g], "full" (a caption repeats with the image), "partial" (the captions vary), "uncaptioned", or "none"
            for a group of one.
        threshold: similarity from which images are near-duplicates.
        n_chained: connected components that were loose chains and were split.
        n_look_alikes: images that the descriptor took for near-duplicates and the pixels do not.
        confirmed: every image of a group is the same picture as another of it by its pixels (`compare_pixels`); else
            the descriptor alone says so.
        closest: the few other rows nearest to each row by the descriptor; None where not all rows were compared with
            all.
        honoured: what decisions of people changed; None = there were none.
    """

    corpus: Corpus
    rows: NDArray[np.intp]
    label: NDArray[np.int64]
    exact: NDArray[np.int64]
    kind: list[str]
    threshold: float
    n_chained: int
    n_look_alikes: int = 0
    confirmed: bool = False
    honoured: Honoured | None = None
    closest: Nearest | None = dataclasses.field(default=None, repr=False, compare=False)

    @property
    def sizes(self) -> NDArray[np.int64]:
        """Number of images of each group [g]."""
        return np.bincount(self.label, minlength=len(self.kind))

    @functools.cached_property
    def kept(self) -> NDArray[np.int64]:
        """Position of the image to keep of each group of two or more [g]; which one, `curate.kept_rows` says."""
        grouped = _of_groups(self.label, 2)
        chosen = kept_rows(self.corpus, self.rows[grouped], self.label[grouped])
        found = np.full(int((self.sizes > 1).sum()), -1, np.int64)
        at = np.searchsorted(self.rows, [chosen[int(row)] for row in self.rows[grouped]])
        found[self.label[grouped]] = at
        return found

    def table(self) -> pa.Table:
        """Table with a row an image of a group of two or more, the one to keep first.

        Columns: id, group, size, exact, duplication, captions, kept.
        """
        order = _of_groups(self.label, 2)
        order = order[np.lexsort((order, order != self.kept[self.label[order]], self.label[order]))]
        label = self.label[order]
        rows = self.rows[order]
        return pa.table(
            {
                "id": self.corpus.pick("id", rows),
                "group": pa.array(label),
                "size": pa.array(self.sizes[label]),
                "exact": pa.array(self.exact[order]),
                "duplication": pa.array([self.kind[group] for group in label], pa.string()),
                "captions": self.corpus.pick("captions", rows),
                "kept": pa.array(order == self.kept[label]),
            }
        )

    def summary(self) -> GroupsSummary:
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
            "n_look_alikes": self.n_look_alikes,
            "confirmed": self.confirmed,
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
    decisions: Decisions | None = None,
    cache: str | Path | None = None,
    workers: int | None = None,
    engine: Engine | str | None = None,
    progress: Progress | None = None,
) -> Groups:
    """Group near-duplicates: images whose similarity reaches `threshold` and whose pixels agree.

    The groups are the connected components of the graph of all pairs at or above the threshold. In a component of
    look-alikes the first and last of a chain may be nothing alike, and a hub ties strangers together; so a component
    with a member below the threshold to its centre is split into stars, each a centre and the members that reach the
    threshold to it. An image left without near-duplicates then joins those that re-ranking by pixels finds to be the
    same picture. Look-alikes, pages of text for one, are as near to each other as near-duplicates; so all that is
    joined must be the same picture by its pixels too, and blank images are in no group; then groups are joined that are
    one picture turned by quarters. Exact duplicates are told by decoded pixels, over two backgrounds where they are
    transparent, not by file. Where the embeddings have an IVF index, some pairs are missed, turned ones all.

    Args:
        embeddings: of the corpus.
        threshold: similarity in [-1, 1].
        split_chains: split loose components into stars; False keeps them as they are.
        verify: the pixel comparison; None = the descriptor alone decides.
        decisions: of people, which have the last word; None = there are none.
        cache: folder of the cache; None = the user's.
        workers: threads; None = one a core.
        engine: finds the pairs of an IVF index; its machines share the cache. None = this process.
        progress: called with a label, the number done and the total.

    Returns:
        The groups, those of one image included.

    Raises:
        InputError: the threshold is no similarity.
    """
    if not -1 <= threshold <= 1:
        raise InputError(f"The threshold of near-duplicates is a similarity between -1 and 1, not {threshold:g}")
    embeddings = with_ivf(embeddings, cache=cache, workers=workers, progress=progress)
    vectors, cells = embeddings.vectors, embeddings.cells
    floor = max(FLOOR, SPREADS / math.sqrt(vectors.shape[1]))
    again = verify is not None and threshold > floor
    options: CacheOptions = {"cache": cache, "workers": workers, "progress": progress}
    # Connected components of all pairs that reach the threshold.
    closest: Nearest | None = None
    if cells is None and again:
        label, closest = components_and_nearest(vectors, threshold, LOOKED_AT, workers=workers, progress=progress)
    elif cells is None:
        label = components(vectors, threshold, workers=workers, progress=progress)
    else:
        k, least = (LOOKED_AT, floor) if again else (0, 1.0)
        label, closest = ivf_components(
            cells, threshold, k=k, floor=least, workers=workers, engine=engine, progress=progress
        )
    # Loose chains split into stars.
    n_chained = 0
    if split_chains:
        label, n_chained = _stars(embeddings, label, threshold)
    # By pixels: strays joined to what shows the same picture, look-alikes parted, turned groups joined.
    if verify is not None and closest is not None:
        label = _join_same_pictures(embeddings, label, closest, floor, verify, options)
    n_look_alikes = 0
    if verify is not None:
        alike = len(_of_groups(label, 2))
        label = same_picture_groups(embeddings, label, **options)
        n_look_alikes = alike - len(_of_groups(label, 2))
        if cells is None:
            label = join_turned(embeddings, label, verify, **options)
    honoured = None
    if decisions is not None:
        label, honoured = as_decided(embeddings, label, decisions)
    # What is said of each group.
    label = _by_size(label)
    exact = _count_exact(embeddings, label, cache, workers, progress)
    kind = _kinds(embeddings, label)
    return Groups(
        embeddings.corpus,
        embeddings.rows,
        label,
        exact,
        kind,
        threshold,
        n_chained,
        n_look_alikes,
        confirmed=verify is not None,
        honoured=honoured,
        closest=closest if cells is None else None,
    )


@dataclasses.dataclass(frozen=True)
class _Rows:
    """Unit vectors in which the centres of groups are sought.

    Attributes:
        vectors: [n d]; with `cells` in half precision and in the order of the cells.
        cells: the IVF index that holds the vectors; None = the vectors are in full precision and in no cells.
    """

    vectors: NDArray[Any]
    cells: IVF | None = None

    def star(self, rows: NDArray[np.int64], threshold: float) -> NDArray[np.bool_]:
        """Which of the rows [m] reach the threshold to their centre, itself among them [m].

        The centre is the member nearest to the mean of all vectors.
        """
        pieces = [rows[start : start + PIECE] for start in range(0, len(rows), PIECE)]
        held = [self._read(rows)] if len(pieces) == 1 else None

        def blocks() -> Iterable[NDArray[np.float32]]:
            return held or map(self._read, pieces)

        # Mean and centre.
        mean = held[0].mean(axis=0) if held else np.sum([each.sum(axis=0) for each in blocks()], axis=0) / len(rows)
        centre = int(np.argmax(np.concatenate([block @ mean for block in blocks()])))
        # Similarity to the centre, in full precision where the halves cannot tell.
        towards = self._read(rows[centre])
        scores = np.concatenate([block @ towards for block in blocks()])
        near = scores >= threshold
        if self.cells is not None and len(unsure := np.flatnonzero(np.abs(scores - threshold) < ROUNDING)):
            exact = self._exact(self.cells, rows[unsure], np.repeat(rows[centre], len(unsure)))
            near[unsure] = exact >= threshold
        near[centre] = True
        return near

    def by_cell(self, rows: NDArray[np.int64]) -> list[NDArray[np.int64]]:
        """Split the rows [m], ascending, by cell; all rows are one piece where there are no cells."""
        if self.cells is None:
            return [rows]
        return np.split(rows, np.flatnonzero(np.diff(np.searchsorted(self.cells.starts, rows, side="right"))) + 1)

    def _read(self, rows: NDArray[np.int64]) -> NDArray[np.float32]:
        return self.vectors[rows].astype(np.float32)

    @staticmethod
    def _exact(cells: IVF, one: NDArray[np.int64], other: NDArray[np.int64]) -> NDArray[np.float32]:
        """Similarities of rows [e] and rows [e] in full precision."""
        vectors = (cells.vectors[cells.rows[rows]] for rows in (one, other))
        scores: NDArray[np.float32] = np.einsum("ed,ed->e", *vectors)
        return scores


def _stars(embeddings: Embeddings, label: NDArray[np.int64], threshold: float) -> tuple[NDArray[np.int64], int]:
    """Split every component that is not a star around its centre (the member nearest to the mean of its vectors)."""
    cells = embeddings.cells
    if cells is None:
        return _split(_Rows(embeddings.vectors), label, threshold)
    # In the order of the cells: members of a group lie side by side there.
    split, n_chained = _split(_Rows(cells.halves, cells), label[cells.rows], threshold)
    found = np.empty_like(label)
    found[cells.rows] = split
    return found, n_chained


def _split(rows: _Rows, label: NDArray[np.int64], threshold: float) -> tuple[NDArray[np.int64], int]:
    """Split components into stars.

    After STARS stars of a component, what is left of it in each IVF cell is split by itself: a chain of a million rows
    would otherwise be gone through a hundred thousand times.

    Args:
        rows: the vectors.
        label: [n], component of each row.
        threshold: similarity of a star's members to its centre.

    Returns:
        (labels [n], how many components were split).
    """
    label = label.copy()
    fresh, n_chained = int(label.max(initial=-1)) + 1, 0
    for number, members in enumerate(_members(label, 3)):
        parts, taken = [members], 0
        while parts:
            left = parts.pop()
            near = rows.star(left, threshold)
            if near.all() and not taken:
                break
            label[left[near]] = fresh
            fresh, taken, rest = fresh + 1, taken + 1, left[~near]
            if len(rest):
                parts += rows.by_cell(rest) if taken == STARS else [rest]
        n_chained += taken > 0
        if number % BLOCK == 0:
            drop_pages(rows.vectors)
    return label, n_chained


def _members(label: NDArray[np.int64], least: int) -> Iterator[NDArray[np.int64]]:
    """The rows of each group of so many or more, ascending; groups in the order of their first row."""
    rows = _of_groups(label, least)
    rows = rows[np.argsort(label[rows], kind="stable")]
    _, begins, sizes = np.unique(label[rows], return_index=True, return_counts=True)
    for group in np.argsort(rows[begins]):
        yield rows[begins[group] : begins[group] + sizes[group]]


def _join_same_pictures(
    embeddings: Embeddings,
    label: NDArray[np.int64],
    closest: Nearest,
    floor: float,
    verify: Verify,
    options: CacheOptions,
) -> NDArray[np.int64]:
    """Join an image without near-duplicates to the group of its nearest few that the pixels say is the same picture.

    Whole groups are not joined to each other: one pair of look-alikes would chain two families.

    Args:
        embeddings: of the corpus.
        label: [n].
        closest: the nearest of all rows.
        floor: lowest descriptor similarity of images whose pixels are compared.
        verify: whose thumbnails.
        options: `cache`, `workers` and `progress` of `embed`.

    Returns:
        Labels [n].
    """
    is_stray = np.ones(len(label), bool)
    is_stray[_of_groups(label, 2)] = False
    strays = np.flatnonzero(is_stray)
    strays = strays[closest.score[strays, 0] >= floor]
    near = closest.score[strays] >= floor
    query, other = strays[np.nonzero(near)[0]], closest.index[strays][near]
    # Two strays that are near each other are one pair, not two.
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
    progress = options["progress"]
    scores = verify.compare(thumbnails[queries], thumbnails, slots, workers=options["workers"], progress=progress)
    return merged(label, label[pairs[scores[row, at] >= SAME]])


def _by_size(label: NDArray[np.int64]) -> NDArray[np.int64]:
    """Renumber groups: the largest first, equal sizes by their first image."""
    rows = _of_groups(label, 2)
    _, first, inverse, counts = np.unique(label[rows], return_index=True, return_inverse=True, return_counts=True)
    rank = np.empty(len(counts), dtype=np.int64)
    rank[np.lexsort((first, -counts))] = np.arange(len(counts))
    alone = np.ones(len(label), bool)
    alone[rows] = False
    found = np.cumsum(alone) + (len(counts) - 1)
    found[rows] = rank[inverse]
    return found


def _of_groups(label: NDArray[np.int64], least: int) -> NDArray[np.intp]:
    """The rows that are in groups of so many or more."""
    return np.flatnonzero((np.bincount(label) >= least)[label])


def _count_exact(
    embeddings: Embeddings,
    label: NDArray[np.int64],
    cache: str | Path | None,
    workers: int | None,
    progress: Progress | None,
) -> NDArray[np.int64]:
    grouped = _of_groups(label, 2)
    exact = np.ones(len(label), dtype=np.int64)
    if len(grouped) == 0:
        return exact
    few = embeddings.corpus.take(embeddings.rows[grouped])
    _, read, digests = compute(few, pixels_work(), cache=cache, workers=workers, progress=progress)
    _, inverse, counts = np.unique(digests, axis=0, return_inverse=True, return_counts=True)
    exact[grouped[read]] = counts[inverse.ravel()]
    return exact


def pixels_work() -> Feature:
    """Feature of an image's decoded pixels, a digest: equal for exact duplicates, whatever their files."""
    key = "sha256 of height, width and RGB values, over both backgrounds"
    return Feature("pixels", key, 32, np.uint8, _pixel_digests, layers=True)


def _pixel_digests(pictures: list[tuple[Image, Image | None]]) -> NDArray[np.uint8]:
    digests = []
    for image, behind in pictures:
        content = repr(image.shape).encode() + image.tobytes() + (b"" if behind is None else behind.tobytes())
        digests.append(hashlib.sha256(content).digest())
    return np.frombuffer(b"".join(digests), dtype=np.uint8).reshape(-1, 32)


def _kinds(embeddings: Embeddings, label: NDArray[np.int64]) -> list[str]:
    sizes = np.bincount(label)
    kinds = ["none"] * len(sizes)
    grouped = _of_groups(label, 2)
    grouped = grouped[np.argsort(label[grouped], kind="stable")]
    captions = embeddings.corpus.pick("captions", embeddings.rows[grouped]).to_pylist()
    ends = np.cumsum(sizes[sizes > 1]).tolist()
    start = 0
    # The groups of two or more have the lowest numbers, for they are numbered by size.
    for group, end in enumerate(ends):
        kinds[group] = _kind(captions[start:end])
        start = end
    return kinds


def _kind(captions: list[list[str]]) -> str:
    """Kind of duplication: full when some caption stands at two or more images of the group.

    Then image and caption repeat together.
    """
    if not any(captions):
        return "uncaptioned"
    seen: set[str] = set()
    for own in captions:
        plain = {normalise(caption) for caption in own} - {""}
        if seen & plain:
            return "full"
        seen |= plain
    return "partial"


def representatives(groups: Groups) -> NDArray[np.int64]:
    """Position of the first image of each near-duplicate group [g]."""
    first = np.empty(int(groups.label.max(initial=-1)) + 1, np.int64)
    # Of those that go to one place the last stays.
    first[groups.label[::-1]] = np.arange(len(groups.label))[::-1]
    return first
