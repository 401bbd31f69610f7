"""Search by cells and near-duplicate groups of very many vectors: time, memory, recall, beside exact search and faiss.

    python benchmarks/large.py --n 1000000                    # some minutes, 4 GB of disk
    python benchmarks/large.py --n 10000000 --no-faiss        # an hour or two, 35 GB of disk

Vectors lie in clusters of 250, alike to one another by 0.5. One row in fifty is planted as a near-duplicate of another
(similarity 0.9), and a thousand rows are one and the same. Half of the 10,000 queries are copies at a similarity of 0.6
to 0.9, half are fresh. `copies_found`: the planted source is the first of 50. `planted_pairs_found`: both in one group.
`sample`: 100,000 of the rows, grouped by all pairs and by cells; of the pairs that all pairs put together, the share
that cells do. faiss: an inverted file with the same cells and probes, all of it in memory. Memory is what the process
takes above the maps; to see that the maps need none, run it where a control group allows no more than it should need.
"""

from __future__ import annotations

import argparse
import resource
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

from copyscope import stats
from copyscope.detection.dedup.components import components
from copyscope.detection.dedup.ivf_components import ivf_components
from copyscope.detection.search import ivf as cells_module
from copyscope.detection.search import ivf_files
from copyscope.detection.search.exact import search
from copyscope.detection.search.ivf import IVF
from measured import MB, Watched
from record import record
from search import THREADS
from vectors import BLOCK, DIM, SAME, clustered, made, near

QUERIES, K, SAMPLE = 10_000, 50, 100_000
DUPLICATES = 0.75


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--n", type=int, nargs="+", default=[1_000_000])
    arguments.add_argument("--no-faiss", action="store_true", help="where its index would not fit into memory")
    arguments.add_argument("--name", default="large", help="of the result")
    options = arguments.parse_args()
    record(
        options.name, {"dim": DIM, "threads": THREADS, "sizes": [measure(n, not options.no_faiss) for n in options.n]}
    )


def measure(n: int, beside: bool) -> dict[str, Any]:
    rng = np.random.default_rng(0)
    with tempfile.TemporaryDirectory() as folder:
        vectors, twins = made(rng, Path(folder) / "vectors.npy", n)
        source = np.sort(rng.integers(0, n, QUERIES // 2))
        centres = rng.standard_normal((64, DIM), dtype=np.float32)
        queries = np.concatenate([near(rng, vectors[source], rng.uniform(0.6, 0.9, len(source))),
                                  clustered(rng, centres, QUERIES // 2)]).astype(np.float32)  # fmt: skip
        found: dict[str, Any] = {"n": n}
        made_cells, found["build"] = timed(lambda: IVF.build(vectors, workers=THREADS))
        found["cells"] = len(made_cells.centres)
        nearest, found["search"] = timed(lambda: made_cells.nearest(queries, K, workers=THREADS))
        found["copies_found"] = share(nearest.index[: len(source), 0] == source)
        recall, found["recall"] = timed(lambda: made_cells.recall(queries, workers=THREADS))
        found["recall"] |= recall.as_dict()
        _, found["exact_200_queries"] = timed(lambda: search(queries[::50], vectors, K, workers=THREADS))
        label, found["groups"] = timed(lambda: ivf_components(made_cells, DUPLICATES, workers=THREADS)[0])
        found["groups"] |= {
            "planted_pairs_found": share(label[twins[:, 0]] == label[twins[:, 1]]),
            "largest": int(np.bincount(label).max()),
            "same_rows_in_one_group": int(len(np.unique(label[-SAME:])) == 1),
        }
        if beside:
            found["faiss"] = inverted_file(vectors, queries, source, len(made_cells.centres))
    with tempfile.TemporaryDirectory() as folder:
        found["sample"] = sampled(np.random.default_rng(1), Path(folder) / "vectors.npy")
    found["peak_resident_gb"] = round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20, 2)
    return found


def sampled(rng: np.random.Generator, path: Path) -> dict[str, Any]:
    vectors, _ = made(rng, path, SAMPLE)
    held = np.ascontiguousarray(vectors)
    all_pairs, exact = timed(lambda: components(held, DUPLICATES, workers=THREADS))
    built, building = timed(lambda: IVF.build(held, workers=THREADS))
    by_cells, quick = timed(lambda: ivf_components(built, DUPLICATES, workers=THREADS)[0])
    # One pair a row: with the first of its group.
    _, first, inverse = np.unique(all_pairs, return_index=True, return_inverse=True)
    other = first[inverse]
    paired = other != np.arange(len(held))
    together = by_cells[other[paired]] == by_cells[np.flatnonzero(paired)]
    return {
        "n": SAMPLE,
        "all_pairs": exact,
        "cells": {"seconds": building["seconds"] + quick["seconds"]},
        "pairs_found": share(together),
    }


def inverted_file(vectors: np.ndarray, queries: np.ndarray, source: np.ndarray, count: int) -> dict[str, Any]:
    import faiss

    faiss.omp_set_num_threads(THREADS)
    index = faiss.IndexIVFFlat(faiss.IndexFlatIP(DIM), DIM, count, faiss.METRIC_INNER_PRODUCT)
    index.cp.niter, index.cp.max_points_per_centroid = ivf_files.ROUNDS, ivf_files.SAMPLED_PER_CELL

    def build() -> None:
        index.train(np.ascontiguousarray(vectors[:: max(1, len(vectors) // (count * ivf_files.SAMPLED_PER_CELL))]))
        for start in range(0, len(vectors), BLOCK):
            index.add(np.ascontiguousarray(vectors[start : start + BLOCK]))

    _, building = timed(build)
    index.nprobe = max(1, count // cells_module.PROBE_FRACTION)
    (_, rows), searching = timed(lambda: index.search(queries, K))
    return {
        "version": faiss.__version__,
        "build": building,
        "search": searching,
        "copies_found": share(rows[: len(source), 0] == source),
    }


def timed(call: Any) -> tuple[Any, dict[str, float]]:
    """What a call gives, and its seconds, seconds of processor, and peak memory above the maps in MB."""
    began, spent = time.perf_counter(), time.process_time()
    with Watched() as memory:
        found = call()
    return found, {
        "seconds": round(time.perf_counter() - began, 2),
        "cpu_seconds": round(time.process_time() - spent, 2),
        "peak_mb": round((memory.peak - memory.start) / MB),
    }


def share(those: np.ndarray) -> dict[str, Any]:
    return stats.proportion(int(those.sum()), len(those)).as_dict()


if __name__ == "__main__":
    main()
