"""One process of benchmarks/growth.py: a part of the stages on vectors that lie in a folder, a line of JSON a stage.

python benchmarks/growth_stages.py make|ours|exact|all_pairs|faiss N FOLDER
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from copyscope import machine, stats
from growth import BLOCK, DUPLICATES, QUERIES, THREADS, K
from measured import MB, timed
from vectors import DIM, SAME, clustered, made, near


def main() -> None:
    part, n, folder = sys.argv[1], int(sys.argv[2]), Path(sys.argv[3])
    if part == "make":
        make(n, folder)
    else:
        STAGES[part](np.load(folder / "vectors.npy", mmap_mode="r"), dict(np.load(folder / "truth.npz")))


def make(n: int, folder: Path) -> None:
    """Vectors, and queries of which the first half are copies at a similarity of 0.6 to 0.9."""
    rng = np.random.default_rng(0)
    vectors, twins = made(rng, folder / "vectors.npy", n)
    source = np.sort(rng.integers(0, n, QUERIES // 2))
    centres = rng.standard_normal((64, DIM), dtype=np.float32)
    copies = near(rng, vectors[source], rng.uniform(0.6, 0.9, len(source)))
    queries = np.concatenate([copies, clustered(rng, centres, QUERIES // 2)]).astype(np.float32)
    np.savez(folder / "truth.npz", twins=twins, source=source, queries=queries)


def ours(vectors: np.ndarray, truth: dict[str, np.ndarray]) -> None:
    from copyscope.detection.dedup.ivf_components import ivf_components
    from copyscope.detection.search.ivf import IVF

    cells = tell("cells", lambda: IVF.build(vectors, workers=THREADS),
                 lambda cells: {"cells": len(cells.centres), "memory_mb": machine.memory() // MB})  # fmt: skip
    queries = truth["queries"]
    tell("search", lambda: cells.nearest(queries, K, workers=THREADS),
         lambda found: {"copies_found": copies(found.index, truth)})  # fmt: skip
    tell("recall", lambda: cells.recall(queries, workers=THREADS), lambda found: found.as_dict())
    tell("groups", lambda: ivf_components(cells, DUPLICATES, workers=THREADS)[0],
         lambda label: grouped(label, truth))  # fmt: skip


def exact(vectors: np.ndarray, truth: dict[str, np.ndarray]) -> None:
    from copyscope.detection.search.exact import search

    tell("exact", lambda: search(truth["queries"], vectors, K, workers=THREADS),
         lambda found: {"copies_found": copies(found.index, truth)})  # fmt: skip


def all_pairs(vectors: np.ndarray, truth: dict[str, np.ndarray]) -> None:
    from copyscope.detection.dedup.components import components

    tell("all_pairs", lambda: components(vectors, DUPLICATES, workers=THREADS), lambda label: grouped(label, truth))


def faiss(vectors: np.ndarray, truth: dict[str, np.ndarray]) -> None:
    import faiss

    from copyscope.detection.search import ivf as cells_module

    faiss.omp_set_num_threads(THREADS)
    n, queries = len(vectors), truth["queries"]
    # As many cells and probes as ours.
    count = cells_module.how_many(n)
    index = faiss.IndexIVFFlat(faiss.IndexFlatIP(DIM), DIM, count, faiss.METRIC_INNER_PRODUCT)
    index.cp.niter, index.cp.max_points_per_centroid = 8, 32

    def build() -> None:
        index.train(np.ascontiguousarray(vectors[:: max(1, n // (count * 32))]))
        for start in range(0, n, BLOCK):
            index.add(np.ascontiguousarray(vectors[start : start + BLOCK]))

    def pairs() -> np.ndarray:
        lots = []
        for start in range(0, n, QUERIES):
            some = np.ascontiguousarray(vectors[start : start + QUERIES])
            bounds, _, column = index.range_search(some, DUPLICATES)
            row = np.repeat(np.arange(start, start + len(some)), np.diff(bounds.astype(np.int64)))
            lots.append(np.stack([row, column], axis=1)[row < column])
        return np.concatenate(lots)

    tell("faiss", build, lambda _: {"cells": count, "version": faiss.__version__})
    index.nprobe = max(1, count // cells_module.PROBE_FRACTION)
    tell("faiss_search", lambda: index.search(queries, K)[1], lambda rows: {"copies_found": copies(rows, truth)})
    index.nprobe = min(cells_module.NEAR, count)
    tell("faiss_range", pairs, lambda found: {"planted_pairs_found": share(
        np.isin(truth["twins"][:, 0] * n + truth["twins"][:, 1], found[:, 0] * n + found[:, 1]))})  # fmt: skip


def tell(name: str, call: Callable[[], Any], more: Callable[[Any], dict[str, Any]]) -> Any:
    """Measure a stage, and print what it took and what it found."""
    found, took = timed(call)
    print(json.dumps({name: took | more(found)}), flush=True)
    return found


def copies(rows: np.ndarray, truth: dict[str, np.ndarray]) -> dict[str, Any]:
    return share(rows[: len(truth["source"]), 0] == truth["source"])


def grouped(label: np.ndarray, truth: dict[str, np.ndarray]) -> dict[str, Any]:
    one, other = truth["twins"].T
    return {"planted_pairs_found": share(label[one] == label[other]), "largest": int(np.bincount(label).max()),
            "same_rows_in_one_group": len(np.unique(label[-SAME:])) == 1}  # fmt: skip


def share(those: np.ndarray) -> dict[str, Any]:
    return stats.proportion(int(those.sum()), len(those)).as_dict()


STAGES = {"ours": ours, "exact": exact, "all_pairs": all_pairs, "faiss": faiss}

if __name__ == "__main__":
    main()
