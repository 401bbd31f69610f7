"""The drawn vectors that benchmarks of search and of grouping share: unit length, in clusters, with planted twins."""

from __future__ import annotations

from pathlib import Path

import numpy as np

DIM = 512
CLUSTER, PLANTED, SAME, BLOCK = 250, 50, 1000, 50_000
TWIN = 0.9
"""How alike the two of a planted pair are."""


def made(rng: np.random.Generator, path: Path, n: int) -> tuple[np.ndarray, np.ndarray]:
    """Vectors [n d] on disk, and the rows [m 2] of each planted pair.

    They lie in clusters of CLUSTER, alike to one another by 0.5. One row in PLANTED is the twin of the row before, and
    the last SAME rows are one and the same.
    """
    vectors = np.lib.format.open_memmap(path, "w+", np.float32, (n, DIM))
    centres = rng.standard_normal((max(1, n // CLUSTER), DIM), dtype=np.float32)
    twins = []
    for start in range(0, n, BLOCK):
        some = clustered(rng, centres, min(BLOCK, n - start))
        place = np.arange(0, len(some) - 1, PLANTED)
        some[place + 1] = near(rng, some[place], np.full(len(place), TWIN))
        twins.append(start + np.stack([place, place + 1], axis=1))
        vectors[start : start + len(some)] = some
    vectors[-SAME:] = vectors[-1]
    pairs = np.concatenate(twins)
    return vectors, pairs[pairs[:, 1] < n - SAME]


def clustered(rng: np.random.Generator, centres: np.ndarray, n: int) -> np.ndarray:
    """Unit vectors [n d], each around one of the centres [c d]."""
    vectors = centres[rng.integers(0, len(centres), n)] + rng.standard_normal((n, DIM), dtype=np.float32)
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


def near(rng: np.random.Generator, vectors: np.ndarray, similarity: np.ndarray) -> np.ndarray:
    """Unit vectors [n d] at `similarity` [n] to `vectors` [n d]."""
    away = rng.standard_normal(vectors.shape, dtype=np.float32)
    away -= (away * vectors).sum(axis=1, keepdims=True) * vectors
    away /= np.linalg.norm(away, axis=1, keepdims=True)
    at = similarity[:, None].astype(np.float32)
    return at * vectors + np.sqrt(1 - at**2) * away
