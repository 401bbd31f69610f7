"""Rates of one thread, and what cells and short vectors lose: what benchmarks/scale.py needs beside the other results.

    copyscope fetch photographs
    python benchmarks/scale_rates.py       # about a minute on two cores

Processor time, so that other work on the machine counts little. The vectors whose precision is measured are those of
tiles of photographs by SSCD's student; those that cells are measured on are drawn: clusters without a common direction.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray
from threadpoolctl import threadpool_limits

from copyscope.data import assets
from copyscope.detection.dedup.components import components
from copyscope.detection.dedup.near_pairs import merged
from copyscope.detection.descriptors.sscd_distilled import SscdDistilled
from copyscope.detection.matching.ncc import Verify
from copyscope.imaging import images
from record import record
from vectors import DIM, clustered

Vectors = NDArray[np.float32]

ROUNDS = 3
TILES, TILE = 400, 256
COMPARED, LOOKED_AT, CANDIDATES, EDGES, DIGESTS = 16_384, 512, 8, 2_000_000, 1_000_000
ROWS, CELLS, PAIRS, SWEEPS = 60_000, 512, 2_000, 6
SIMILARITIES, COPIES = (0.75, 0.85, 0.95), (0, 1, 2, 4, 8)
COPIED, PROBES = (0.5, 0.65, 0.8), (1, 4, 16, 64)


def main() -> None:
    rng = np.random.default_rng(0)
    with threadpool_limits(1):
        found = {
            "dim": DIM,
            "pairs_flops": pairs(rng),
            "second_looks_per_second": second_looks(rng),
            "candidates": CANDIDATES,
            "edges_per_second": edges(rng),
            "digests_per_second": digests(rng),
            "error_of_similarity": precision(rng),
        } | cells(rng)
    record("scale-rates", found)


def best(work: Callable[[], object]) -> float:
    """Processor seconds of the fastest of ROUNDS."""
    times = []
    for _ in range(ROUNDS):
        began = time.process_time()
        work()
        times.append(time.process_time() - began)
    return min(times)


def pairs(rng: np.random.Generator) -> float:
    """Multiplications and additions a second of `components`, which compares all pairs and merges what it finds."""
    vectors = clustered(rng, rng.standard_normal((4000, DIM), dtype=np.float32), COMPARED)
    return 2 * DIM * COMPARED**2 / 2 / best(lambda: components(vectors, 0.75, workers=1))


def second_looks(rng: np.random.Generator) -> float:
    """Pictures a second whose CANDIDATES candidates are compared pixel by pixel."""
    verify = Verify()
    pictures = rng.integers(0, 256, (LOOKED_AT, verify.size, verify.size, 3), np.uint8)
    candidates = rng.integers(0, LOOKED_AT, (LOOKED_AT, CANDIDATES))
    return LOOKED_AT / best(lambda: verify.compare(pictures, pictures, candidates, workers=1))


def edges(rng: np.random.Generator) -> float:
    """Edges a second made into components, half as many images as edges."""
    label = np.arange(EDGES // 2, dtype=np.int64)
    found = rng.integers(0, len(label), (EDGES, 2))
    return EDGES / best(lambda: merged(label, found))


def digests(rng: np.random.Generator) -> float:
    """sha256 digests a second of which the equal ones are found."""
    rows = rng.integers(1, 256, (DIGESTS, 32), np.uint8).view("S32").ravel()
    return DIGESTS / best(lambda: np.unique(rows, return_inverse=True))


def precision(rng: np.random.Generator) -> dict[str, Any]:
    """How far the similarity of two images is moved when both vectors are kept in fewer bytes."""
    photographs = [images.decode(path) for path in sorted(assets.fetch("photographs").rglob("*.jpg"))]
    tiles = []
    for number in range(TILES):
        photograph = photographs[number % len(photographs)]
        top, left = (int(rng.integers(0, side - TILE + 1)) for side in photograph.shape[:2])
        tiles.append(np.ascontiguousarray(photograph[top : top + TILE, left : left + TILE]))
    describe = SscdDistilled().describe
    vectors = np.concatenate([describe(tiles[start : start + 8]) for start in range(0, TILES, 8)])
    true = (vectors @ vectors.T)[np.triu_indices(TILES, 1)]
    found: dict[str, Any] = {"images": TILES, "pairs": len(true)}
    for name, short in (("fp16", vectors.astype(np.float16).astype(np.float32)), ("int8", in_bytes(vectors))):
        moved = np.abs((short @ short.T)[np.triu_indices(TILES, 1)] - true)
        found[name] = {"mean": float(moved.mean()), "largest": float(moved.max())}
    return found


def in_bytes(vectors: Vectors) -> Vectors:
    """Vectors [n d] as bytes and one scale a vector, and back."""
    scale = np.abs(vectors).max(axis=1, keepdims=True) / 127
    return (np.rint(vectors / scale).astype(np.int8) * scale).astype(np.float32)


def cells(rng: np.random.Generator) -> dict[str, Any]:
    """What searching in cells finds: of pairs, when each row is compared in its own cell and some more; of copies.

    A pair meets when one of the two lies in a cell that the other is compared in. A copy of some similarity to its
    training image is found when that lies in one of the cells looked into.
    """
    vectors = clustered(rng, rng.standard_normal((4000, DIM), dtype=np.float32), ROWS)
    centres = k_means(rng, vectors)
    of = {"rows": ROWS, "cells": CELLS, "pairs": PAIRS}
    met: dict[str, Any] = dict(of)
    copies: dict[str, Any] = dict(of)
    first = vectors[rng.permutation(ROWS)[:PAIRS]]
    own = nearest(first, centres, 1)
    for similarity in SIMILARITIES:
        second = at(rng, first, similarity)
        met[f"{similarity:g}"] = {
            str(more): float(
                (
                    (nearest(first, centres, more + 1) == nearest(second, centres, 1)).any(axis=1)
                    | (nearest(second, centres, more + 1) == own).any(axis=1)
                ).mean()
            )
            for more in COPIES
        }
    for similarity in COPIED:
        query = at(rng, first, similarity)
        copies[f"{similarity:g}"] = {
            str(probes): float((nearest(query, centres, probes) == own).any(axis=1).mean()) for probes in PROBES
        }
    return {"share_of_pairs_that_meet": met, "share_of_copies_found": copies}


def at(rng: np.random.Generator, vectors: Vectors, similarity: float) -> Vectors:
    """A vector at this similarity to each of the vectors [n d]."""
    noise = rng.standard_normal(vectors.shape, dtype=np.float32)
    noise -= (noise * vectors).sum(axis=1, keepdims=True) * vectors
    noise /= np.linalg.norm(noise, axis=1, keepdims=True)
    return (similarity * vectors + np.sqrt(1 - similarity**2) * noise).astype(np.float32)


def nearest(vectors: Vectors, centres: Vectors, k: int) -> NDArray[np.intp]:
    """The k cells [n k] whose centres are nearest."""
    return np.argsort(-(vectors @ centres.T), axis=1)[:, :k]


def k_means(rng: np.random.Generator, vectors: Vectors) -> Vectors:
    centres = vectors[rng.permutation(len(vectors))[:CELLS]]
    for _ in range(SWEEPS):
        own = (vectors @ centres.T).argmax(axis=1)
        sums = np.zeros_like(centres)
        np.add.at(sums, own, vectors)
        # A cell that nothing fell into keeps its centre.
        sums = np.where(np.bincount(own, minlength=CELLS)[:, None] > 0, sums, centres)
        centres = sums / np.linalg.norm(sums, axis=1, keepdims=True)
    return centres


if __name__ == "__main__":
    main()
