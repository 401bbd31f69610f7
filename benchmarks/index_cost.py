"""What an index costs by its rows and the precision of its vectors, and what precision changes: bytes, seconds, errors.

    copyscope fetch fluent-emoji
    python benchmarks/index_cost.py                      # some twenty minutes, 9 GB of disk
    python benchmarks/index_cost.py --sizes 100000 --precisions int8      # the other rows of the results stay

Embedding and small pictures are simulated: clustered vectors, and noise, are drawn as they are asked for. All else is
`Index.build`, in a process of its own, with calibration on HELD_OUT real pictures, their look-alikes not looked for.
Above SPARSE_ABOVE rows the file of thumbnails has a length and no content: it would not fit the disk. Look-ups are all
of one but the embedding (a picture and nine windows, both second looks, ids and captions), each of another picture, in
another process. Memory is the process's own (anonymous), and all that is resident, mapped files too.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

import worlds
from copyscope import Corpus, Index, embed
from copyscope.data import assets
from copyscope.detection.embedding.embeddings import Embeddings
from copyscope.detection.embedding.protocols import protocol
from copyscope.detection.index import calibration, segments
from copyscope.detection.index import index as index_module
from copyscope.detection.index import manifest as files
from copyscope.detection.index.index import _answers
from copyscope.detection.matching.ncc import Verify
from copyscope.detection.matching.partial_copies import Padded
from copyscope.detection.matching.windows import QueryFeatures
from copyscope.detection.search.exact import search
from copyscope.detection.search.quantized import PRECISIONS, Stored, kinds, shorten
from index import near
from measured import MB, Watched
from record import RESULTS, record
from search import DIM, THREADS, clustered

PROTOCOL, HELD_OUT, LOOKUPS, SPARSE_ABOVE = "sscd-distilled", 20, 15, 1_000_000
SIMILARITIES, QUERIES, AMONG = (0.35, 0.5, 0.7), 500, 200_000
SIZES = {100_000: PRECISIONS, 1_000_000: PRECISIONS, 10_000_000: ("int8",)}


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("--sizes", type=int, nargs="+", default=list(SIZES))
    arguments.add_argument(
        "--precisions", nargs="+", choices=PRECISIONS, help="those that fit into 9 GB of disk, or these"
    )
    arguments.add_argument("--child", nargs=4, help=argparse.SUPPRESS)
    options = arguments.parse_args()
    if options.child:
        what, folder, n, precision = options.child
        print(json.dumps({"build": build, "use": use}[what](Path(folder), int(n), precision)))
        return
    found: dict[str, Any] = {"dim": DIM, "threads": THREADS, "error": errors(), "cost": kept()}
    for n in options.sizes:
        for precision in options.precisions or SIZES.get(n, PRECISIONS):
            with tempfile.TemporaryDirectory(prefix="idx-") as folder:
                row = {"rows": n, "precision": precision, "load_average": round(os.getloadavg()[0], 1)}
                for what in ("build", "use"):
                    command = [sys.executable, __file__, "--child", what, folder, str(n), precision]
                    row |= json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE).stdout)
                print(row, file=sys.stderr, flush=True)
            others = [each for each in found["cost"] if (each["rows"], each["precision"]) != (n, precision)]
            found["cost"] = sorted([*others, row], key=lambda each: (each["rows"], PRECISIONS.index(each["precision"])))
            record("index-cost", found)


def kept() -> list[dict[str, Any]]:
    """What was measured before, of other sizes too: each row says what else the machine did."""
    path = RESULTS / "benchmark-index-cost.json"
    return list(json.loads(path.read_text())["cost"]) if path.is_file() else []


class Drawn:
    """Rows [n ...] that are drawn when they are asked for, the same ones each time: a slice within COPY_ROWS."""

    def __init__(self, n: int, width: tuple[int, ...], dtype: type) -> None:
        self.shape, self.dtype = (n, *width), np.dtype(dtype)
        self.centres = np.random.default_rng(0).standard_normal((4000, DIM), dtype=np.float32)

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, rows: slice) -> np.ndarray:
        number, first = divmod(rows.start, files.COPY_ROWS)
        many = min(files.COPY_ROWS, len(self) - number * files.COPY_ROWS)
        rng = np.random.default_rng([1, number])
        if self.dtype == np.float32:
            block = clustered(rng, self.centres, many)
        else:
            block = np.frombuffer(rng.bytes(many * int(np.prod(self.shape[1:]))), np.uint8).reshape(-1, *self.shape[1:])
        return block[first : first + rows.stop - rows.start]


def corpus_of(n: int) -> Corpus:
    """The table of a corpus that was described: about 200 bytes a row."""
    numbers = pc.utf8_lpad(pc.cast(pa.array(np.arange(n)), pa.string()), 8, "0")
    digits = np.frombuffer(b"0123456789abcdef", np.uint8)
    digests = np.concatenate(
        [
            digits[np.random.default_rng([2, at]).integers(0, 16, (min(2**16, n - at), 64), np.uint8)]
            for at in range(0, n, 2**16)
        ]
    )
    offsets = pa.py_buffer(np.arange(0, 64 * n + 1, 64, dtype=np.int32))
    captions = pc.binary_join_element_wise(pa.scalar("a photograph of subject number"), numbers, " ")
    size = pa.array(np.full(n, 640, np.int64))
    table = pa.table(
        {
            "id": pc.binary_join_element_wise(numbers, pa.scalar(".jpg"), ""),
            "image": pc.binary_join_element_wise(pa.scalar("train/"), numbers, ""),
            "captions": pa.ListArray.from_arrays(pa.array(np.arange(n + 1, dtype=np.int32)), captions),
            "weight": pa.array(np.ones(n)),
            "sha256": pa.StringArray.from_buffers(n, offsets, pa.py_buffer(digests)),
            "width": size,
            "height": size,
            "error": pa.nulls(n, pa.string()),
        }
    )
    return Corpus(table, "drawn", "folder")


def build(folder: Path, n: int, precision: str) -> dict[str, Any]:
    """Write an index of n rows into the folder; how long it took, and what of memory."""
    descriptor = protocol(PROTOCOL).load()
    drawn, shades, rows = Drawn(n, (DIM,), np.float32), Drawn(n, (32, 32, 3), np.uint8), np.arange(n)
    real, seconds, write = Verify.thumbnails, {}, files.write_array
    corpus = corpus_of(n)
    held = worlds.world(folder / "world", 2, 2, HELD_OUT, duplicates=()).held_out

    def timed(name: str, function: Any) -> Any:
        def run(*given: Any) -> Any:
            began = time.perf_counter()
            function(*given)
            seconds[name] = round(time.perf_counter() - began, 1)

        return run

    def sparse(folder: Path, name: str, *arrays: Any, **options: Any) -> dict[str, Any]:
        if n <= SPARSE_ABOVE or arrays[0] is not shades:
            return write(folder, name, *arrays, **options)
        entry = write(folder, name, np.zeros((0, *shades.shape[1:]), np.uint8))
        path = folder / f"{name}.npy"
        header = {"descr": "|u1", "fortran_order": False, "shape": shades.shape}
        with path.open("wb") as file:
            np.lib.format.write_array_header_1_0(file, header)
            file.truncate(file.tell() + int(np.prod(shades.shape)))
        return {f"{name}.npy": entry[f"{name}.npy"] | {"bytes": path.stat().st_size}}

    def described(*_: Any) -> Embeddings:
        return Embeddings(corpus, rows, drawn, str(descriptor), descriptor.fingerprint())  # type: ignore[arg-type]

    index_module._described = described
    index_module.write_segment = timed("write_seconds", segments.write_segment)
    index_module.calibrate = timed("calibrate_seconds", calibration.calibrate)
    calibration.look_alikes = lambda images, train, **_: np.zeros(len(images.rows), bool)
    Verify.thumbnails = lambda self, which, *given, **options: (  # type: ignore[method-assign]
        shades if which is corpus else real(self, which, *given, **options)
    )
    files.write_array = sparse
    with Watched() as memory:
        index = Index.build("drawn", folder / "index", PROTOCOL, held_out=held, precision=precision, workers=THREADS)
    manifest = files.read_manifest(folder / "index")
    kept, name = manifest["files"], manifest["segments"][0]["name"]
    return {
        **seconds,
        "bytes": index.summary()["bytes"],
        "vectors_bytes": sum(kept[f"{name}.{kind}.npy"]["bytes"] for kind in kinds(precision)),
        "thumbnails": "drawn" if n <= SPARSE_ABOVE else "a file without content",
        "build_memory": taken(memory),
    }


def use(folder: Path, n: int, precision: str) -> dict[str, Any]:
    """Open the index and look pictures up in it."""
    rng, drawn = np.random.default_rng(3), Drawn(n, (DIM,), np.float32)
    asked = []
    for _ in range(LOOKUPS + 1):
        start = int(rng.integers(n // files.COPY_ROWS)) * files.COPY_ROWS
        vectors = near(rng, drawn[slice(start, start + 10)], 0.5)
        pixels = rng.integers(0, 256, (1, 64, 64, 3), np.uint8)
        small = rng.integers(0, 256, (1, 32, 32, 3), np.uint8)
        asked.append((start, QueryFeatures(vectors[None], small, Padded.of(pixels, np.array([[64, 64]])))))
    with Watched() as memory:
        began = time.perf_counter()
        index = Index.open(folder / "index")
        opened = time.perf_counter() - began
        spent, right = [], 0
        for start, looks in asked:
            began = time.perf_counter()
            (hits,) = _answers(looks, index._fresh(), 10, True, {"workers": THREADS})
            spent.append(time.perf_counter() - began)
            right += any(hit.id == f"{start:08d}.jpg" for hit in hits)
    with Watched() as exact_memory:
        began = time.perf_counter()
        _answers(asked[0][1], index._fresh(), 10, True, {"workers": THREADS, "exact": True})
        exact = time.perf_counter() - began
    return {
        "open_ms": round(1000 * opened, 1),
        "first_ms": round(1000 * spent[0], 1),
        "lookup_ms": round(1000 * float(np.median(spent[1:])), 1),
        "exact_ms": round(1000 * exact, 1),
        "source_named": f"{right} of {len(asked)}",
        "lookup_memory": taken(memory),
        "exact_memory": taken(exact_memory),
    }


def errors() -> dict[str, Any]:
    """How far a similarity is moved when one of the two vectors is kept in fewer bytes, and how often the first row of
    exact search is another: of drawn vectors, and of the emoji, each against all others."""
    rng = np.random.default_rng(0)
    centres = rng.standard_normal((4000, DIM), dtype=np.float32)
    vectors = clustered(rng, centres, AMONG)
    emoji = np.asarray(embed(Corpus.open(assets.fetch("fluent-emoji")), PROTOCOL).vectors)
    own = {"query_labels": np.arange(len(emoji)), "reference_labels": np.arange(len(emoji))}
    found: dict[str, Any] = {"drawn": {"rows": AMONG, "queries": QUERIES}, "emoji": {"rows": len(emoji)}}
    asked = {each: near(rng, vectors[rng.integers(0, AMONG, QUERIES)], each) for each in SIMILARITIES}
    for precision in PRECISIONS[1:]:
        kept, small = (Stored(*shorten(each, precision)) for each in (vectors, emoji))
        moved = np.abs(asked[0.7] @ (kept[:20_000] - vectors[:20_000]).T)
        changed = {f"{each:g}": another(queries, vectors, kept) for each, queries in asked.items()}
        found["drawn"][precision] = _spread(moved) | {"first_row_is_another": changed}
        moved = np.abs(emoji @ (small[:] - emoji).T)
        found["emoji"][precision] = _spread(moved) | {"first_row_is_another": another(emoji, emoji, small, **own)}
        found["emoji"][precision]["to_itself"] = float(np.diag(moved).max())
    return found


def another(queries: np.ndarray, vectors: np.ndarray, kept: Stored, **labels: Any) -> dict[str, Any]:
    """How many queries have another first row among the vectors as they are kept, and how much less alike it is."""
    one, other = (search(queries, each, 1, workers=THREADS, **labels).index[:, 0] for each in (vectors, kept))  # type: ignore[arg-type]
    differ = np.flatnonzero(one != other)
    scores = [np.einsum("qd,qd->q", queries[differ], vectors[each[differ]]) for each in (one, other)]
    worse = float((scores[0] - scores[1]).max(initial=0))
    return {"of": len(queries), "changed": len(differ), "less_alike_at_most": worse}


def _spread(moved: np.ndarray) -> dict[str, Any]:
    return {
        "pairs": moved.size,
        "mean": float(moved.mean()),
        "p99.9": float(np.quantile(moved, 0.999)),
        "largest": float(moved.max()),
    }


def taken(memory: Watched) -> dict[str, int]:
    """The most memory while a block ran, MiB: of the process's own, and in all with the files it has mapped."""
    return {"anonymous_mb": memory.peak // MB, "resident_mb": memory.resident // MB}


if __name__ == "__main__":
    main()
