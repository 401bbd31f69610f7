"""One picture in an index: how fast it is answered beside faiss's flat index, what sign bits lose, what windows find.

    python benchmarks/index.py             # 1,000,000 x 512: some minutes, 6 GB of disk, 3 GB of memory for faiss
    python benchmarks/index.py --n 100000

Wall time depends on what else the machine does, so processor time stands beside it; on idle cores the wall time is half
of it. `picture` is all of a look-up but the embedding: ten searches by the descriptor, two by coarse pixels, the second
look at the whole and at parts. The coarse vectors are drawn from a normal law with the mean and covariance of those of
emoji. The insets are training pictures at half their side, a quarter of the picture, anywhere on another one that is in
no set; pictures come from `copyscope fetch fluent-emoji` and `copyscope fetch photographs` (tiles of these). Recall:
the right family was named with p <= 0.01.
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
from copyscope import Corpus, Index, assets, images, stats, worlds
from copyscope.copying.coarse import coarse_vectors
from copyscope.copying.codes import Block, Rows, encode, rotation
from copyscope.copying.insets import Canvases
from copyscope.copying.locate import locate
from copyscope.copying.verify import Verify
from copyscope.copying.windows import Looks
from duplication import photographs
from record import record
from search import DIM, THREADS, clustered

SIMILARITIES, QUERIES = (0.35, 0.5, 0.7), 64
LEVEL = 0.01


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("--n", type=int, default=1_000_000)
    arguments.add_argument("--pairs", type=int, default=7, help="how often the two are timed in turn")
    arguments.add_argument("--insets", nargs="*", default=["emoji", "photographs"], choices=["emoji", "photographs"])
    options = arguments.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        fast = speed(Path(folder), options.n, options.pairs)
    found: dict[str, Any] = {"search": fast, "insets": []}
    for kind in options.insets:
        for protocol in ("sscd-distilled", "sscd-288"):
            with tempfile.TemporaryDirectory() as folder:
                found["insets"].append({"pictures": kind} | insets(Path(folder), kind, protocol))
    record("index", found)


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
    looks = Looks(ten[None], thumbnails[:1] // 2 + thumbnails[1:2] // 2, Canvases.of(pixels, np.array([[64, 64]])))
    calls: dict[str, Callable[[], object]] = {
        "one": lambda: rows.nearest(one, 10, workers=THREADS),
        "faiss_one": lambda: flat.search(one, 10),
        "ten": lambda: rows.nearest(ten, 10, workers=THREADS),
        "faiss_ten": lambda: flat.search(ten, 10),
        "picture": lambda: locate(looks, rows, coarse, None, Verify(), 10, workers=THREADS),
    }
    wall: dict[str, list[float]] = {name: [] for name in calls}
    cpu: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(pairs):
        for name, call in calls.items():
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


def rows_of(vectors: np.ndarray, thumbnails: np.ndarray) -> Rows:
    directions = rotation(vectors.shape[1])
    return Rows([Block(vectors, encode(vectors, directions), thumbnails, np.zeros(len(vectors), bool))], directions)


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


def coarsely(rng: np.random.Generator, rows: Rows, similarity: float) -> dict[str, float]:
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


def insets(folder: Path, kind: str, protocol: str) -> dict[str, Any]:
    """Recall and false alarms on planted insets of the whole-picture match and of the one with windows."""
    rng = np.random.default_rng(0)
    if kind == "emoji":
        crowds = altered._crowds(altered._read(assets.fetch(altered.SOURCE)))
        train, held, unseen, rest = altered._split(crowds, (600, 200, 200), 300, rng)
    else:
        tiles = [altered._Picture(path, {"file_name": path.name, "base": path.name}) for path in photographs(folder)]
        # As many each of held-out and unseen tiles, and of those that insets lie on, as there are for training.
        train, held, unseen, rest = (tiles[start::4] for start in range(4))
    for name, pictures in (("train", train), ("held-out", held), ("unseen", unseen)):
        altered._copy_files(folder / name, pictures)
    family = {picture.id: picture.family for picture in train}
    truth = {}
    (folder / "planted").mkdir()
    for number, at in enumerate(rng.permutation(len(train))[:150]):
        picture = images.decode(train[at].file)
        height, width = picture.shape[:2]
        whole = images.resize(images.decode(rest[int(rng.integers(len(rest)))].file), (height, width))
        small = images.resize(picture, (height // 2, width // 2))
        top, left = int(rng.integers(height - height // 2 + 1)), int(rng.integers(width - width // 2 + 1))
        whole[top : top + height // 2, left : left + width // 2] = small
        name = f"{number:04d}.png"
        (folder / "planted" / name).write_bytes(images.encode(whole, "png"))
        truth[name] = (train[at].id, (left / width, top / height, 0.5, 0.5))
    worlds.write_metadata(folder / "planted", [{"file_name": name} for name in truth])
    index = Index.build(folder / "train", folder / "index", protocol, held_out=folder / "held-out")
    result: dict[str, Any] = {"protocol": protocol, "n_train": len(train), "area": 0.25, "level": LEVEL}
    for name, local in (("whole", False), ("with_windows", True)):
        planted = [hits[0] for hits in index.match(folder / "planted", local=local)]
        others = [hits[0] for hits in index.match(folder / "unseen", local=local)]
        named = [family[hit.id] == family[source] for hit, (source, _) in zip(planted, truth.values(), strict=True)]
        sure = [right and hit.p_value <= LEVEL for right, hit in zip(named, planted, strict=True)]
        # What was found in the whole picture counts as a box of all of it.
        overlaps = [
            overlap(hit.box or (0, 0, 1, 1), box)
            for right, hit, (_, box) in zip(named, planted, truth.values(), strict=True)
            if right
        ]
        result[name] = {
            "recall": stats.proportion(sum(sure), len(sure)).as_dict(),
            "named": stats.proportion(sum(named), len(named)).as_dict(),
            "false_alarms": stats.proportion(sum(hit.p_value <= LEVEL for hit in others), len(others)).as_dict(),
            "mean_overlap_of_boxes": round(float(np.mean(overlaps)), 3) if overlaps else None,
        }
    return result | {"calibration": index.summary()["calibration"]}


def overlap(one: tuple[float, ...], other: tuple[float, ...]) -> float:
    """Intersection over union of two boxes x, y, width, height."""
    across = min(one[0] + one[2], other[0] + other[2]) - max(one[0], other[0])
    down = min(one[1] + one[3], other[1] + other[3]) - max(one[1], other[1])
    shared = max(across, 0) * max(down, 0)
    return shared / (one[2] * one[3] + other[2] * other[3] - shared)


if __name__ == "__main__":
    main()
