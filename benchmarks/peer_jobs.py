"""One rival of benchmarks/peers.py, run by the Python it is installed in: near-duplicates of vectors or of files.

    python benchmarks/peer_jobs.py NAME FOLDER

FOLDER has `vectors.npy` or `images/`; what was found is written there as `NAME.npy`: a group for each row [n], or pairs
of rows [p 2]. The last line on stdout says how long it took. Only numpy may be imported above: peers live in
environments of their own, without Copyscope.
"""

from __future__ import annotations

import dataclasses
import importlib.metadata
import importlib.util
import json
import os
import re
import sys
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np

THRESHOLD = 0.75
NEIGHBOURS, BLOCK = 16, 10_000
THREADS = int(os.environ.get("OMP_NUM_THREADS", "2"))

Found = np.ndarray
Ready = Callable[[], Found]


@dataclasses.dataclass(frozen=True)
class Rival:
    """needs: the distribution it is of. ready: given the folder, imports what it needs and gives the work to be timed.
    square: bytes that it takes for each pair of rows, by its code; what exceeds the limit is not run."""

    name: str
    needs: str
    ready: Callable[[Path], Ready]
    square: float = 0.0


def load(folder: Path, **options: Any) -> np.ndarray:
    return np.load(folder / "vectors.npy", **options)


# Groups from vectors


def ours(by_cells: bool) -> Callable[[Path], Ready]:
    def ready(folder: Path) -> Ready:
        from copyscope.detection.dedup.components import components
        from copyscope.detection.dedup.ivf_components import ivf_components
        from copyscope.detection.search.ivf import IVF

        def work() -> Found:
            vectors = load(folder, mmap_mode="r")
            if by_cells:
                return ivf_components(IVF.build(vectors, workers=THREADS), THRESHOLD, workers=THREADS)[0]
            return components(vectors, THRESHOLD, workers=THREADS)

        return work

    return ready


def faiss_index(kind: str) -> Callable[[Path], Ready]:
    def ready(folder: Path) -> Ready:
        import faiss

        faiss.omp_set_num_threads(THREADS)

        def work() -> Found:
            vectors = load(folder)
            n, d = vectors.shape
            if kind == "flat":
                index = faiss.IndexFlatIP(d)
            elif kind == "ivf":
                # As many cells, probes and sampled rows as ours.
                from copyscope.detection.search.ivf import NEAR, how_many

                index = faiss.IndexIVFFlat(faiss.IndexFlatIP(d), d, how_many(n), faiss.METRIC_INNER_PRODUCT)
                index.nprobe, index.cp.niter, index.cp.max_points_per_centroid = NEAR, 8, 32
                index.train(vectors)
            else:
                index = faiss.IndexHNSWFlat(d, 32, faiss.METRIC_INNER_PRODUCT)
                index.hnsw.efSearch = 64
            index.add(vectors)
            lots = []
            for start in range(0, n, BLOCK):
                some = vectors[start : start + BLOCK]
                if kind == "hnsw":
                    score, column = index.search(some, NEIGHBOURS)
                    lots.append(of_neighbours(start, score, column))
                else:
                    bounds, _, column = index.range_search(some, THRESHOLD)
                    row = np.repeat(np.arange(start, start + len(some)), np.diff(bounds.astype(np.int64)))
                    lots.append(once(row, column))
            return np.concatenate(lots)

        return work

    return ready


def hnswlib_index(folder: Path) -> Ready:
    import hnswlib

    def work() -> Found:
        vectors = load(folder)
        index = hnswlib.Index(space="ip", dim=vectors.shape[1])
        index.init_index(max_elements=len(vectors), M=16, ef_construction=200)
        index.set_num_threads(THREADS)
        index.add_items(vectors)
        index.set_ef(64)
        column, distance = index.knn_query(vectors, k=NEIGHBOURS)
        return of_neighbours(0, 1 - distance, column.astype(np.int64))

    return work


def usearch_index(folder: Path) -> Ready:
    from usearch.index import Index

    def work() -> Found:
        vectors = load(folder)
        # The fastest of its kinds of number here.
        index = Index(ndim=vectors.shape[1], metric="ip", dtype="bf16")
        index.add(np.arange(len(vectors)), vectors, threads=THREADS)
        found = index.search(vectors, NEIGHBOURS, threads=THREADS)
        return of_neighbours(0, 1 - found.distances, found.keys.astype(np.int64))

    return work


def sklearn_radius(folder: Path) -> Ready:
    from sklearn.neighbors import NearestNeighbors

    def work() -> Found:
        vectors = load(folder)
        # Of unit vectors the distance says the same as the inner product, and this is the faster of its two ways.
        index = NearestNeighbors(radius=float(np.sqrt(2 - 2 * THRESHOLD)), algorithm="brute").fit(vectors)
        column = index.radius_neighbors(vectors, return_distance=False)
        row = np.repeat(np.arange(len(vectors)), [len(each) for each in column])
        return once(row, np.concatenate(column))

    return work


def dense(folder: Path) -> Ready:
    """As DCR compares training images: the matrix of all similarities at once (its argsort left out)."""
    import torch

    torch.set_num_threads(THREADS)

    def work() -> Found:
        vectors = torch.from_numpy(load(folder))
        row, column = torch.nonzero(torch.mm(vectors, vectors.T) >= THRESHOLD, as_tuple=True)
        return once(row.numpy(), column.numpy())

    return work


def imagededup_cnn(folder: Path) -> Ready:
    _without_operators()
    import torch
    from imagededup.methods import CNN
    from imagededup.utils import CustomModel

    # Its own network must be downloaded; the vectors are given to it, so that any model will do.
    method = CNN(False, CustomModel("none", torch.nn.Identity(), lambda picture: picture))

    def work() -> Found:
        vectors = load(folder)
        named = {f"{number:09d}": vector for number, vector in enumerate(vectors)}
        return of_names(method.find_duplicates(encoding_map=named, min_similarity_threshold=THRESHOLD))

    return work


# Groups from files, named by their number


def ours_of_files(protocol: str, threshold: float | None = None) -> Callable[[Path], Ready]:
    def ready(folder: Path) -> Ready:
        from copyscope.data.corpus import Corpus
        from copyscope.detection.dedup.groups import duplicates
        from copyscope.detection.embedding.embed import embed
        from copyscope.detection.embedding.protocols import protocol as named

        def work() -> Found:
            rules = named(protocol)
            corpus = Corpus.open(folder / "images")
            described = embed(corpus, rules.load(), workers=THREADS)
            groups = duplicates(described, rules.duplicates if threshold is None else threshold, workers=THREADS)
            label = np.arange(len(corpus)) + len(corpus)
            label[groups.rows] = groups.label
            # A corpus is in the order of its ids, and those are the names of the files.
            return label

        return work

    return ready


def imagededup_hash(method: str, bits: int) -> Callable[[Path], Ready]:
    def ready(folder: Path) -> Ready:
        _without_operators()
        from imagededup import methods

        made = getattr(methods, method)(verbose=False)
        return lambda: of_names(made.find_duplicates(image_dir=str(folder / "images"), max_distance_threshold=bits))

    return ready


def cleanvision_hash(folder: Path) -> Ready:
    from cleanvision import Imagelab

    def work() -> Found:
        lab = Imagelab(data_path=str(folder / "images"))
        lab.find_issues({"near_duplicates": {}, "exact_duplicates": {}}, n_jobs=THREADS, verbose=False)
        return of_sets([*lab.info["near_duplicates"]["sets"], *lab.info["exact_duplicates"]["sets"]])

    return work


def fastdup_components(folder: Path) -> Ready:
    os.environ["SENTRY_OPT_OUT"] = "1"
    import fastdup

    def work() -> Found:
        found = fastdup.create(work_dir=str(folder / "fastdup"), input_dir=str(folder / "images"))
        found.run(num_threads=THREADS, overwrite=True, verbose=False)
        table = found.connected_components()[0]
        return of_sets(table.groupby("component_id")["filename"].apply(list))

    return work


def difpy_search(folder: Path) -> Ready:
    import difPy

    def work() -> Found:
        built = difPy.build(str(folder / "images"), show_progress=False, processes=THREADS)
        found = difPy.search(built, similarity="similar", same_dim=False, show_progress=False, processes=THREADS)
        return of_names({name: [match[0] for match in matches] for name, matches in found.result.items()})

    return work


# What peers give, as pairs of rows


def once(row: np.ndarray, column: np.ndarray) -> np.ndarray:
    """Pairs [p 2] of which the first is below the second."""
    below = row < column
    return np.stack([row[below], column[below]], axis=1)


def of_neighbours(start: int, score: np.ndarray, column: np.ndarray) -> np.ndarray:
    """Pairs out of the nearest of rows from `start` on."""
    row, place = np.nonzero((score >= THRESHOLD) & (column >= 0))
    pairs = np.stack([row + start, column[row, place]], axis=1)
    return np.sort(pairs[pairs[:, 0] != pairs[:, 1]], axis=1)


def number(name: str) -> int:
    return int(Path(name).stem)


def of_names(found: dict[str, Iterable[str]]) -> np.ndarray:
    pairs = [(number(name), number(other)) for name, others in found.items() for other in others]
    return np.sort(np.array(pairs, np.int64).reshape(-1, 2), axis=1)


def of_sets(sets: Iterable[Iterable[str]]) -> np.ndarray:
    """All pairs of each set."""
    pairs = []
    for each in sets:
        rows = np.array(sorted(number(name) for name in each), np.int64)
        one, other = np.triu_indices(len(rows), 1)
        pairs.append(np.stack([rows[one], rows[other]], axis=1))
    return np.concatenate([np.zeros((0, 2), np.int64), *pairs])


def _without_operators() -> None:
    """Lets torchvision be imported beside a torch for processors alone, without its compiled operators.

    The one in the index is compiled for CUDA and does not load there; imagededup uses none of its operators.
    """
    import torch

    folder = Path(str(importlib.util.find_spec("torchvision").origin)).parent  # type: ignore[union-attr]
    names = re.findall(r'register_fake\("torchvision::(\w+)"\)', (folder / "_meta_registrations.py").read_text())
    if hasattr(torch.ops.torchvision, "nms"):
        return
    # Kept, or they would go with it.
    _without_operators.kept = torch.library.Library("torchvision", "DEF")  # type: ignore[attr-defined]
    for name in sorted(set(names)):
        _without_operators.kept.define(f"{name}(Tensor a) -> Tensor")  # type: ignore[attr-defined]


VECTORS = [
    Rival("Copyscope, all pairs", "copyscope", ours(by_cells=False)),
    Rival("Copyscope, cells", "copyscope", ours(by_cells=True)),
    Rival("faiss flat, range search", "faiss-cpu", faiss_index("flat")),
    Rival("faiss IVF, range search", "faiss-cpu", faiss_index("ivf")),
    Rival("faiss HNSW", "faiss-cpu", faiss_index("hnsw")),
    Rival("hnswlib", "hnswlib", hnswlib_index),
    Rival("usearch", "usearch", usearch_index),
    Rival("scikit-learn, radius", "scikit-learn", sklearn_radius),
    # Blocks in half precision, all of them stacked, and what it masks: as measured at 30,000 rows.
    Rival("imagededup CNN, given vectors", "imagededup", imagededup_cnn, square=6.5),
    # The matrix in single precision, and which of it reach the threshold.
    Rival("DCR's dense matrix", "torch", dense, square=5),
]
FILES = [
    Rival("Copyscope, phash", "copyscope", ours_of_files("phash")),
    # 64 bits of which ten may differ: what imagededup takes unless told otherwise.
    Rival("Copyscope, phash, 10 bits", "copyscope", ours_of_files("phash", 1 - 2 * 10 / 64)),
    Rival("Copyscope, pdq", "copyscope", ours_of_files("pdq")),
    Rival("Copyscope, sscd-distilled", "copyscope", ours_of_files("sscd-distilled")),
    Rival("Copyscope, sscd-288", "copyscope", ours_of_files("sscd-288")),
    Rival("imagededup PHash, 3 bits", "imagededup", imagededup_hash("PHash", 3)),
    Rival("imagededup PHash, 10 bits", "imagededup", imagededup_hash("PHash", 10)),
    Rival("imagededup DHash, 10 bits", "imagededup", imagededup_hash("DHash", 10)),
    Rival("cleanvision", "cleanvision", cleanvision_hash),
    Rival("fastdup", "fastdup", fastdup_components),
    Rival("difPy, similar", "difPy", difpy_search),
]
RIVALS = {rival.name: rival for rival in (*VECTORS, *FILES)}


def main() -> None:
    rival, folder = RIVALS[sys.argv[1]], Path(sys.argv[2])
    work = rival.ready(folder)
    began, spent = time.perf_counter(), sum(os.times()[:4])
    found = work()
    seconds, cpu = time.perf_counter() - began, sum(os.times()[:4]) - spent
    np.save(folder / "found.npy", found)
    version = importlib.metadata.version(rival.needs)
    print("\n" + json.dumps({"version": version, "seconds": round(seconds, 2), "cpu_seconds": round(cpu, 2)}))


if __name__ == "__main__":
    main()
