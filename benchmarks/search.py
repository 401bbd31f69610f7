"""Exact top-10 search against faiss's IndexFlatIP on the same two threads, and the memory it takes above the map.

    python benchmarks/search.py            # 10,000 x 1,000,000 x 512: about 6 minutes and 5 GB of memory for faiss
    python benchmarks/search.py --n 200000 --queries 2000

Expect a ratio of time (ours / faiss) at or below 1.1, equal scores, and less than 1.5 GB above the map.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from pathlib import Path

import numpy as np

from copyscope.detection.search.exact import search
from measured import MB, Watched
from record import record
from vectors import DIM, clustered

K, THREADS = 10, 2


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("--n", type=int, default=1_000_000)
    arguments.add_argument("--queries", type=int, default=10_000)
    arguments.add_argument("--pairs", type=int, default=3, help="how often the two are timed in turn")
    options = arguments.parse_args()
    rng = np.random.default_rng(0)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "vectors.npy"
        references = np.lib.format.open_memmap(path, "w+", np.float32, (options.n, DIM))
        centres = rng.standard_normal((4000, DIM), dtype=np.float32)
        for start in range(0, options.n, 50_000):
            references[start : start + 50_000] = clustered(rng, centres, min(50_000, options.n - start))
        references.flush()
        del references
        references = np.load(path, mmap_mode="r")
        queries = clustered(rng, centres, options.queries)
        with Watched() as memory:
            found = search(queries, references, K, workers=THREADS)
        ours, theirs = [], []
        import faiss

        faiss.omp_set_num_threads(THREADS)
        index = faiss.IndexFlatIP(DIM)
        index.add(np.asarray(references))
        for _ in range(options.pairs):
            began = time.perf_counter()
            scores, _ = index.search(queries, K)
            middle = time.perf_counter()
            found = search(queries, references, K, workers=THREADS)
            ours.append(time.perf_counter() - middle)
            theirs.append(middle - began)
        record(
            "search",
            {
                "queries": options.queries,
                "references": options.n,
                "dim": DIM,
                "k": K,
                "threads": THREADS,
                "seconds": ours,
                "faiss_seconds": theirs,
                "ratio_median": float(np.median(np.array(ours) / np.array(theirs))),
                "largest_score_difference": float(np.abs(found.score - scores).max()),
                "peak_mb_above_map": round((memory.peak - memory.start) / MB, 1),
                "faiss": faiss.__version__,
            },
        )


if __name__ == "__main__":
    main()
