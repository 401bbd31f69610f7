"""One picture in an index: how fast it is answered, beside faiss's flat index, and what sign bits lose.

    python benchmarks/index.py             # 1,000,000 x 512: some minutes, 6 GB of disk, 3 GB of memory for faiss
    python benchmarks/index.py --n 100000

Wall time depends on what else the machine does, so processor time stands beside it. Each call is timed the second time
in a row, `picture_first` the first time, with the caches full of the rival's 2 GB. `picture` is all of a look-up but
the embedding: ten searches by the descriptor, two by coarse pixels, the second look at the whole and at parts. The
coarse vectors are drawn from a normal law with the mean and covariance of those of emoji, which come from `copyscope
fetch fluent-emoji`.
"""

from __future__ import annotations

import argparse
import os
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

import altered
from copyscope import Corpus, stats
from copyscope.data import assets
from copyscope.detection.matching.local_search import local_search
from copyscope.detection.matching.ncc import Verify
from copyscope.detection.matching.partial_copies import Padded
from copyscope.detection.matching.tiny_image import coarse_vectors
from copyscope.detection.matching.windows import QueryFeatures
from copyscope.detection.search.binary_codes import Block, VectorBlocks, encode, rotation
from record import record
from search import THREADS
from vectors import DIM, clustered

SIMILARITIES, QUERIES = (0.35, 0.5, 0.7), 64


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("--n", type=int, default=1_000_000)
    arguments.add_argument("--pairs", type=int, default=7, help="how often the two are timed in turn")
    options = arguments.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        fast = speed(Path(folder), options.n, options.pairs)
    record("index", fast)


def speed(folder: Path, n: int, pairs: int) -> dict[str, Any]:
    """One query, and the ten of a picture with its windows, against n clustered vectors."""
    import faiss

    rng = np.random.default_rng(0)
    vectors = np.lib.format.open_memmap(folder / "vectors.npy", "w+", np.float32, (n, DIM))
    centres = rng.standard_normal((4000, DIM), dtype=np.float32)
    for start in range(0, n, 50_000):
        vectors[start : start + 50_000] = clustered(rng, centres, min(50_000, n - start))
    thumbnails = np.lib.format.open_memmap(folder / "thumbnails.npy", "w+", np.uint8, (n, 32, 32, 3))
    for start in range(0, n, 50_000):
        thumbnails[start : start + 50_000] = rng.integers(0, 256, thumbnails[start : start + 50_000].shape, np.uint8)
    # Nothing is to be written back while the clock runs; an index is mapped read-only too.
    for each in (vectors, thumbnails):
        each.flush()
    vectors, thumbnails = (np.load(folder / f"{name}.npy", mmap_mode="r") for name in ("vectors", "thumbnails"))
    rows = rows_of(np.asarray(vectors), np.asarray(thumbnails))
    (block,) = rows.blocks
    coarse = rows_of(layouts(rng, n), np.asarray(thumbnails))
    kept = {f"{similarity:g}": coarsely(rng, coarse, similarity) for similarity in (0.9, 0.95)}
    recall = {}
    for similarity in SIMILARITIES:
        queries = near(rng, block.vectors[np.sort(rng.integers(0, n, QUERIES))], similarity)
        exact = rows.nearest(queries, 10, exact=True, workers=THREADS)
        found = rows.nearest(queries, 10, exact=False, workers=THREADS)
        recall[f"{similarity:g}"] = stats.proportion(int((found.index == exact.index)[:, 0].sum()), QUERIES).as_dict()
    faiss.omp_set_num_threads(THREADS)
    flat = faiss.IndexFlatIP(DIM)
    flat.add(block.vectors)
    one, ten = queries[:1], queries[:10]
    pixels = rng.integers(0, 256, (1, 64, 64, 3), np.uint8)
    looks = QueryFeatures(
        ten[None], thumbnails[:1] // 2 + thumbnails[1:2] // 2, Padded.of(pixels, np.array([[64, 64]]))
    )
    calls: dict[str, Callable[[], object]] = {
        "one": lambda: rows.nearest(one, 10, workers=THREADS),
        "faiss_one": lambda: flat.search(one, 10),
        "ten": lambda: rows.nearest(ten, 10, workers=THREADS),
        "faiss_ten": lambda: flat.search(ten, 10),
        "picture": lambda: local_search(looks, rows, coarse, None, Verify(), 10, workers=THREADS),
    }
    wall: dict[str, list[float]] = {name: [] for name in calls}
    cpu: dict[str, list[float]] = {name: [] for name in calls}
    first: list[float] = []
    for _ in range(pairs):
        for name, call in calls.items():
            began = time.perf_counter()
            call()
            if name == "picture":
                first.append(1000 * (time.perf_counter() - began))
            began, spent = time.perf_counter(), time.process_time()
            call()
            wall[name].append(1000 * (time.perf_counter() - began))
            cpu[name].append(1000 * (time.process_time() - spent))
    ratios = {
        f"{kind}_ratio_{name}": round(float(np.median(np.array(spent[name]) / np.array(spent[f"faiss_{name}"]))), 3)
        for name in ("one", "ten")
        for kind, spent in (("wall", wall), ("cpu", cpu))
    }
    medians = {
        kind: {name: round(float(np.median(each)), 1) for name, each in spent.items()}
        for kind, spent in (("wall_ms", wall), ("cpu_ms", cpu))
    }
    setting = {"references": n, "dim": DIM, "k": 10, "threads": THREADS, "faiss": faiss.__version__}
    medians["wall_ms"]["picture_first"] = round(float(np.median(first)), 1)
    load = {"load_average": round(os.getloadavg()[0], 1)}
    return (
        setting
        | load
        | medians
        | ratios
        | {
            "recall_at_1_by_similarity": recall,
            "coarse_rows_of_exact_top_8_by_similarity": kept,
        }
    )


def rows_of(vectors: np.ndarray, thumbnails: np.ndarray) -> VectorBlocks:
    directions = rotation(vectors.shape[1])
    return VectorBlocks(
        [Block(vectors, encode(vectors, directions), thumbnails, np.zeros(len(vectors), bool))], directions
    )


def layouts(rng: np.random.Generator, n: int) -> np.ndarray:
    """Coarse vectors [n 48] such as emoji have."""
    corpus = Corpus.open(assets.fetch(altered.SOURCE))
    real = coarse_vectors(Verify().thumbnails(corpus, np.arange(0, len(corpus), 3)))
    mean, spread = real.mean(axis=0), np.linalg.cholesky(np.cov(real.T) + 1e-7 * np.eye(real.shape[1]))
    drawn = np.empty((n, real.shape[1]), np.float32)
    for start in range(0, n, 50_000):
        some = mean + rng.standard_normal((min(50_000, n - start), real.shape[1])) @ spread.T
        drawn[start : start + len(some)] = some / np.linalg.norm(some, axis=1, keepdims=True)
    return drawn


def coarsely(rng: np.random.Generator, rows: VectorBlocks, similarity: float) -> dict[str, float]:
    """Of the eight nearest rows of exact search, how many sign bits find; how often the source is among either."""
    source = np.sort(rng.integers(0, len(rows), QUERIES))
    queries = near(rng, rows.blocks[0].vectors[source], similarity)
    exact, found = (rows.nearest(queries, 8, exact=each, workers=THREADS).index for each in (True, False))
    return {
        "found": float(np.mean([len(np.intersect1d(*pair)) / 8 for pair in zip(exact, found, strict=True)])),
        "source_in_exact": float((exact == source[:, None]).any(axis=1).mean()),
        "source_in_found": float((found == source[:, None]).any(axis=1).mean()),
    }


def near(rng: np.random.Generator, vectors: np.ndarray, similarity: float) -> np.ndarray:
    """Unit vectors [n d] at that similarity to `vectors` [n d], in a random direction from them."""
    away = rng.standard_normal(vectors.shape, dtype=np.float32)
    away -= (away * vectors).sum(axis=1, keepdims=True) * vectors
    away /= np.linalg.norm(away, axis=1, keepdims=True)
    return np.asarray(similarity * vectors + np.sqrt(1 - similarity**2) * away, np.float32)


if __name__ == "__main__":
    main()
