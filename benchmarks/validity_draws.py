"""Draws of benchmarks/validity.py: who is trained on, held out and unseen, and what each scores."""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import inspect
from collections import defaultdict
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from copyscope.detection.dedup.groups import duplicates
from copyscope.detection.embedding.embeddings import Embeddings
from copyscope.detection.embedding.protocols import protocol
from copyscope.detection.matching import edges, match, ncc, part_search, registration
from copyscope.detection.matching.edges import Edges
from copyscope.detection.matching.match import combine
from copyscope.detection.matching.ncc import Verify
from copyscope.detection.matching.registration import Register
from copyscope.detection.verdict import alterations, calibration
from copyscope.detection.verdict.calibration import alike_by_hash
from validity_pools import KINDS, Pool, _write_arrays

HELD_OUT, UNSEEN = 400, 210
COLUMNS = ("similarity", "combined", "registered", "edges", "part")
SPLITS = ("random", "family")

Rows = NDArray[np.int64]
Scores = NDArray[np.float32]


@dataclasses.dataclass(frozen=True)
class Draw:
    """One training set with everything that is judged against it; each score array is [n d], d as COLUMNS.

    train: rows of the pool [t]. held_out, unseen: scores of real images that were not trained on; look_alike: which of
    either the PDQ rule takes for one of the training set. copies, sensitivity: kind -> scores of altered training
    images, one row an image [c], two independent alterations of the same ones. rows: of the pool, of each of these.
    of_train, rows_of_train: training images against the others, and their rows of the pool, see `baseline`.
    """

    corpus: str
    split: str
    seed: int
    train: Rows
    held_out: Scores
    unseen: Scores
    held_out_alike: NDArray[np.bool_]
    unseen_alike: NDArray[np.bool_]
    copies: dict[str, Scores]
    sensitivity: dict[str, Scores]
    rows: dict[str, Rows]
    of_train: Scores
    rows_of_train: Rows


def splits(pool: Pool) -> tuple[str, ...]:
    """The splits that are two: where each picture is a family of its own, one is."""
    return SPLITS if len(set(pool.family.tolist())) < len(pool.family) else SPLITS[:1]


def draw(pool: Pool, split: str, seed: int) -> Draw:
    """The draw of a seed, kept in the pool's folder for as long as the sources that make it read as they do.

    split: "random", look-alikes as they fall; or "family", none of whose members is on two sides.
    """
    file = pool.folder / f"draw-{split}-{seed}-{_sources()}.npz"
    if not file.exists():
        _write_arrays(file, _to_arrays(_drawn(pool, split, seed)))
    with np.load(file) as known:
        return _from_arrays(pool, split, seed, known)


@functools.cache
def _sources() -> str:
    """Digest of what makes a draw."""
    modules = [alterations, calibration, edges, match, part_search, registration, ncc]
    sources = [*map(inspect.getsource, modules), Path(__file__).read_text(encoding="utf-8")]
    return hashlib.sha256("".join(sources).encode()).hexdigest()[:12]


def _to_arrays(one: Draw) -> dict[str, NDArray[Any]]:
    """What of a draw is worth keeping."""
    found = {field.name: getattr(one, field.name) for field in dataclasses.fields(one)}
    arrays = {name: value for name, value in found.items() if isinstance(value, np.ndarray)}
    for name in ("copies", "sensitivity", "rows"):
        arrays |= {f"{name}/{kind}": values for kind, values in found[name].items()}
    return arrays


def _from_arrays(pool: Pool, split: str, seed: int, arrays: Mapping[str, NDArray[Any]]) -> Draw:
    plain = {name: arrays[name] for name in arrays if "/" not in name}
    for group in ("copies", "sensitivity", "rows"):
        names = [name for name in arrays if name.startswith(f"{group}/")]
        plain[group] = {name.partition("/")[2]: arrays[name] for name in names}
    return Draw(pool.name, split, seed, **plain)


def _drawn(pool: Pool, split: str, seed: int) -> Draw:
    rng = np.random.default_rng([seed, SPLITS.index(split)])
    n = len(pool.files)
    order = rng.permutation(n) if split == "random" else _families_together(pool, rng)
    held_out, unseen, train = (np.sort(part) for part in np.split(order, [HELD_OUT, HELD_OUT + UNSEEN]))
    if split == "family":
        # A family that a border cuts through stays on the side before it.
        train = train[~np.isin(pool.family[train], pool.family[np.concatenate([held_out, unseen])])]
        unseen = unseen[~np.isin(pool.family[unseen], pool.family[held_out])]
    which = np.flatnonzero(np.isin(pool.altered, train))
    rows = [held_out, unseen, *(pool.copy(which, kind, version) for version in range(2) for kind in KINDS)]
    # At once and in order of rows: copies of one picture are compared with the same candidates.
    every, places = np.unique(np.concatenate(rows), return_inverse=True)
    scores = score(pool, every, train)
    found = [scores[part] for part in np.split(places, np.cumsum([len(part) for part in rows])[:-1])]
    alike = alike_by_hash(pool.pdq[np.concatenate([held_out, unseen])], pool.pdq[train], 1)
    of_train, rows_of_train = baseline(pool, train)
    return Draw(
        corpus=pool.name,
        split=split,
        seed=seed,
        train=train,
        held_out=found[0],
        unseen=found[1],
        held_out_alike=alike[: len(held_out)],
        unseen_alike=alike[len(held_out) :],
        copies=dict(zip(KINDS, found[2:], strict=False)),
        sensitivity=dict(zip(KINDS, found[2 + len(KINDS) :], strict=True)),
        rows=dict(zip(("held-out", "unseen", *KINDS), rows, strict=False)),
        of_train=of_train,
        rows_of_train=rows_of_train,
    )


def score(pool: Pool, rows: Rows, train: Rows, own: Rows | None = None, labels: Rows | None = None) -> Scores:
    """Scores [n d] of rows of the pool against the training images [t]; own [n], labels [t]: groups of either, those of
    an image's own group do not count for it. None = all count."""
    allowed = None if own is None or labels is None else own[:, None] != labels[None, :]
    similarity = pool.similarity[np.ix_(rows, train)]
    if allowed is not None:
        similarity = np.where(allowed, similarity, np.float32(-2))
    top = np.argsort(-similarity, axis=1, kind="stable")[:, : Verify().top]
    thumbnails = pool.thumbnails["pixels"]
    by_edges, edged = Edges().nearest(thumbnails[rows], thumbnails[train], own, labels, 1)
    # The nearest by edges is compared as well, unless it is among the others already.
    repeated = (top == by_edges[:, None]).any(axis=1) | (by_edges < 0)
    top = np.concatenate([top, by_edges[:, None]], axis=1)
    of_top = np.take_along_axis(similarity, top, axis=1)
    of_top[repeated, -1] = -2
    pixels = pool.compare("pixels", rows, train[top])
    combined = np.where(of_top < -1.5, -np.inf, combine(of_top, pixels))
    order = np.argsort(-combined, axis=1, kind="stable")[:, : Register().top]
    registered = pool.compare("registered", rows, train[np.take_along_axis(top, order, axis=1)])
    # What does not count, a member of its own group, must not by registration either.
    registered = np.where(np.isneginf(np.take_along_axis(combined, order, axis=1)), -1, registered)
    columns = of_top[:, 0], combined.max(axis=1), registered.max(axis=1), edged, pool.parts.score(rows, train, allowed)
    return np.stack(columns, axis=1).astype(np.float32)


def _families_together(pool: Pool, rng: np.random.Generator) -> Rows:
    members: dict[str, list[int]] = defaultdict(list)
    for row, family in enumerate(pool.family):
        members[family].append(row)
    names = sorted(members)
    return np.array([row for place in rng.permutation(len(names)) for row in members[names[place]]])


def baseline(pool: Pool, rows_of_train: Rows) -> tuple[Scores, Rows]:
    """Scores [g d] of training images against the others, as `calibrate.baseline` has them, one image a picture; and
    their rows of the pool [g]."""
    corpus = pool.corpus.take(rows_of_train)
    rows = np.arange(len(rows_of_train))
    vectors = pool.vectors[rows_of_train]
    train, options = (
        Embeddings(corpus, rows, vectors, pool.protocol, ""),
        {"cache": pool.folder / "cache", "workers": 1},
    )
    groups = duplicates(train, protocol(pool.protocol).duplicates, **options)
    picture = calibration._pictures(train, groups, options)
    _, some = np.unique(picture, return_index=True)
    return score(pool, rows_of_train[some], rows_of_train, picture[some], picture), rows_of_train[some]
