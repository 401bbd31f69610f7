"""A lint and an audit of very many training images, start to end: time and memory by stage, where vectors are no work.

    python benchmarks/whole.py --n 1000000                                     # about ten minutes, 6 GB of disk
    python benchmarks/whole.py --n 10000000 --folder DIR --stage lint          # hours, 70 GB of disk

The training set is a table: identifiers, paths, captions, a sha256 of its own for every row. Vectors are those of a
made-up descriptor and lie in the content store as if they had been computed: clusters of 250, alike to one another by
`--within`, one row in fifty planted as a near-duplicate of the row before it (0.9). Images are real files, POOL small
PNGs that the rows share, so that whatever is asked of pixels reads, decodes and measures; what is computed of them is
kept by content, so the cost of measuring is that of POOL files, and `n_exact_groups` says nothing. Captions are words
of a Zipf law: one row in ten has one of a thousand captions, one in twenty such a caption with a word changed, one in
ten has two captions, one in fifty none. Half of the 2,000 generated images are copies (0.6 to 0.9, and the same file).

Every stage is a process of its own. `anon_mb`: peak of its anonymous memory (RssAnon); `peak_mb`: of all that was
resident (VmHWM), the mapped files that the system leaves while there is room among it. To see what is needed, run it
where a control group allows no more. `steps`: the same between two names that the progress tells; a step that tells
nothing is part of the one before it. The table is mapped from disk and no part of `anon_mb`.
"""

from __future__ import annotations

import argparse
import dataclasses
import hashlib
import json
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from copyscope.data.corpus import Corpus
from copyscope.data.table import SCHEMA
from copyscope.detection.descriptors import Descriptor
from copyscope.detection.embedding.cache import KEY
from copyscope.detection.embedding.embed import embed
from copyscope.detection.embedding.fill import Feature
from copyscope.detection.search import ivf
from copyscope.imaging import images
from vectors import near

DIM, CLUSTER, PLANTED, GENERATED, BLOCK, POOL = 512, 250, 50, 2000, 50_000, 400
SPEC = "whole:Simulated"
STAGES = ("embed", "duplicates", "lint", "audit")


@dataclasses.dataclass(frozen=True)
class Simulated(Descriptor):
    """Vectors that `prepare` has put into the store; nothing is described."""

    @property
    def dim(self) -> int:
        return DIM

    def describe(self, images: list[Any]) -> Any:
        raise AssertionError("the store has the vector of every row")


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--n", type=int, default=1_000_000)
    arguments.add_argument("--stage", choices=("prepare", *STAGES), nargs="+", default=list(STAGES))
    arguments.add_argument("--within", type=float, default=0.35, help="similarity within a cluster")
    arguments.add_argument("--folder", type=Path, help="where the set is kept, and used again (a temporary one)")
    arguments.add_argument("--exact", type=int, default=ivf.EXACT_ROWS, help="rows up to which all are compared")
    arguments.add_argument("--name", default="whole", help="of the result")
    arguments.add_argument("--one", action="store_true", help=argparse.SUPPRESS)
    options = arguments.parse_args()
    if options.one:
        print(json.dumps(run(options.stage[0], options)))
        return
    from record import record

    with tempfile.TemporaryDirectory() as temporary:
        folder = options.folder or Path(temporary)
        stages = [stage for stage in options.stage if stage != "prepare"]
        if not (folder / "ready").is_file():
            stages.insert(0, "prepare")
        command = [sys.executable, __file__, "--one", "--folder", folder, "--n", options.n]
        command += ["--within", options.within, "--exact", options.exact]
        found = {}
        for stage in stages:
            told = subprocess.run([*map(str, command), "--stage", stage], check=True, stdout=subprocess.PIPE)
            found[stage] = json.loads(told.stdout)
            print(stage, json.dumps(found[stage]), file=sys.stderr)
    record(options.name, {"n": options.n, "dim": DIM, "within": options.within, "stages": found})


def run(stage: str, options: argparse.Namespace) -> dict[str, Any]:
    folder: Path = options.folder
    ivf.EXACT_ROWS = options.exact
    with Watch() as watch:
        if stage == "prepare":
            prepare(folder, options.n, options.within)
            said: dict[str, Any] = {}
        else:
            train, generated = corpus(folder, "train"), corpus(folder, "generated")
            watch.step("corpus")
            said = work(stage, train, generated, {"cache": folder / "cache", "progress": watch.progress})
    return watch.found() | {"found": said}


def work(stage: str, train: Corpus, generated: Corpus, options: dict[str, Any]) -> dict[str, Any]:
    import copyscope
    from copyscope.detection.dedup.groups import duplicates

    if stage in ("embed", "duplicates"):
        described = embed(train, SPEC, **options)
        if stage == "embed":
            return {"n": len(described.rows)}
        return duplicates(ivf.with_ivf(described, **options), 0.75, **options).summary()
    if stage == "lint":
        lint = copyscope.lint(train, SPEC, **options)
        kept = ("sentence", "captions", "actions", "search")
        return {name: lint.summary[name] for name in kept} | {"cards": len(lint.tables["risk"])}
    audit = copyscope.audit(generated, train, protocol=SPEC, **options)
    return {name: audit.summary[name] for name in ("verdict", "duplicates", "search")}


def corpus(folder: Path, name: str) -> Corpus:
    table = pa.ipc.open_file(pa.memory_map(str(folder / f"{name}.arrow"))).read_all()
    return Corpus(table, str(folder / name), "folder")


def prepare(folder: Path, n: int, within: float) -> None:
    """Write pictures, the two tables, and the vectors into the store."""
    rng = np.random.default_rng(0)
    for name in ("train", "generated"):
        (folder / name).mkdir(parents=True, exist_ok=True)
    pool = [images.encode(rng.integers(0, 256, (24, 24, 3), dtype=np.uint8), "png") for _ in range(POOL)]
    for number, content in enumerate(pool):
        (folder / "train" / f"{number:03d}.png").write_bytes(content)
    store = Feature(SPEC.replace(":", "."), f"{SPEC}\n", DIM, np.float32, list).store(folder / "cache")
    source = np.sort(rng.choice(n, min(n, GENERATED) // 2, replace=False))
    copied = np.empty((len(source), DIM), np.float32)
    centres = rng.standard_normal((max(1, n // CLUSTER), DIM), dtype=np.float32)
    words = Words(rng)
    paths = [str(folder / "train" / f"{number:03d}.png") for number in range(POOL)]

    def pieces(write: Any) -> Iterator[np.ndarray]:
        for start in range(0, n, BLOCK):
            vectors = clustered(rng, centres, min(BLOCK, n - start), within)
            place = np.arange(0, len(vectors) - 1, PLANTED)
            vectors[place + 1] = near(rng, vectors[place], np.full(len(place), 0.9))
            those = slice(*np.searchsorted(source, [start, start + len(vectors)]))
            copied[those] = vectors[source[those] - start]
            captions = words.captions(len(vectors))
            for twin in place[::2].tolist():
                captions[twin + 1] = captions[twin]
            rows = range(start, start + len(vectors))
            ids = [f"{row // 10_000:05d}/{row:09d}.jpg" for row in rows]
            write(ids, [paths[row % POOL] for row in rows], captions, [digest("train", row) for row in rows])
            yield vectors

    known = np.zeros(n, KEY)
    for start in range(0, n, BLOCK):
        known[start : start + BLOCK] = keys([digest("train", row) for row in range(start, min(start + BLOCK, n))])
    with table_file(folder, "train") as write:
        store.write(known, pieces(write))
    fresh = clustered(rng, centres, min(n, GENERATED) - len(source), within)
    vectors = np.concatenate([near(rng, copied, rng.uniform(0.6, 0.9, len(source))), fresh])
    places = []
    for number in range(len(vectors)):
        places.append(folder / "generated" / f"{number:04d}.png")
        own = images.encode(rng.integers(0, 256, (24, 24, 3), dtype=np.uint8), "png")
        places[-1].write_bytes(pool[source[number] % POOL] if number < len(source) else own)
    digests = [digest("generated", row) for row in range(len(vectors))]
    store.add(keys(digests), vectors)
    with table_file(folder, "generated") as write:
        write([place.name for place in places], list(map(str, places)), words.captions(len(places)), digests)
    (folder / "ready").touch()


class table_file:
    """Rows written to NAME.arrow, a batch at a time."""

    def __init__(self, folder: Path, name: str) -> None:
        self._file = pa.OSFile(str(folder / f"{name}.arrow"), "wb")
        self._writer = pa.ipc.new_file(self._file, SCHEMA)

    def __enter__(self) -> Any:
        return self._write

    def __exit__(self, *_: object) -> None:
        self._writer.close()
        self._file.close()

    def _write(self, ids: list[str], paths: list[str], captions: list[list[str]], digests: list[bytes]) -> None:
        n = len(ids)
        columns = [ids, paths, captions, np.ones(n), [each.hex() for each in digests], [24] * n, [24] * n, [None] * n]
        arrays = [pa.array(values, kind.type) for values, kind in zip(columns, SCHEMA, strict=True)]
        self._writer.write_batch(pa.record_batch(arrays, schema=SCHEMA))


class Words:
    """Captions of 4 to 20 words, rank r of the words as often as 1 / r."""

    def __init__(self, rng: np.random.Generator, size: int = 300_000) -> None:
        self._rng = rng
        letters = np.array(list("etaoinshrdlucmfwypvbgk"))
        lengths = rng.integers(3, 10, size)
        self._words = np.array(["".join(rng.choice(letters, length)) for length in lengths], dtype=object)
        share = 1 / np.arange(1, size + 1)
        self._upto = np.cumsum(share / share.sum())
        self._known = self._drawn(1000, 10)

    def _drawn(self, n: int, least: int = 4) -> list[str]:
        lengths = self._rng.integers(least, 21, n)
        words = self._words[np.searchsorted(self._upto, self._rng.random(lengths.sum()) * self._upto[-1])]
        ends = np.cumsum(lengths)
        return [" ".join(words[end - length : end]) for end, length in zip(ends, lengths, strict=True)]

    def captions(self, n: int) -> list[list[str]]:
        found = [[caption] for caption in self._drawn(n)]
        kind = self._rng.random(n)
        for row in np.flatnonzero(kind < 0.15).tolist():
            caption = self._known[int(1000 * self._rng.random() ** 3)]
            if kind[row] < 0.05:
                some = caption.split()
                some[int(self._rng.integers(len(some)))] = str(self._words[self._rng.integers(len(self._words))])
                caption = " ".join(some)
            found[row] = [caption]
        second = np.flatnonzero((kind >= 0.15) & (kind < 0.25))
        for row, caption in zip(second.tolist(), self._drawn(len(second)), strict=True):
            found[row].append(caption)
        for row in np.flatnonzero(kind > 0.98).tolist():
            found[row] = []
        return found


def digest(name: str, row: int) -> bytes:
    return hashlib.sha256(f"{name} {row}".encode()).digest()


def keys(digests: list[bytes]) -> np.ndarray:
    return np.array([(digest, 24, 24) for digest in digests], dtype=KEY)


def clustered(rng: np.random.Generator, centres: np.ndarray, n: int, within: float) -> np.ndarray:
    """Unit vectors [n d] around centres drawn at random, alike by `within` where they have one in common."""
    away = rng.standard_normal((n, DIM), dtype=np.float32)
    weight = np.float32(np.sqrt(within / (1 - within)))
    vectors = weight * centres[rng.integers(0, len(centres), n)] + away
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


class Watch:
    """Seconds, seconds of processor and peak anonymous memory of a process, whole and by step."""

    def __enter__(self) -> Watch:
        self._lock = threading.Lock()
        self._steps: dict[str, list[float]] = {}
        self._name, self._peak, self._base = "start", 0.0, status("RssAnon")
        self._began = self._since = (time.perf_counter(), time.process_time())
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._watch)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.step("end")
        self._stop.set()
        self._thread.join()

    def progress(self, label: str, done: int, total: int) -> None:
        """As `Progress`."""
        if label != self._name:
            self.step(label)

    def step(self, name: str) -> None:
        """What was done until now belongs to the step before, what comes to `name`."""
        with self._lock:
            now = time.perf_counter(), time.process_time()
            step = self._steps.setdefault(self._name, [0.0, 0.0, 0.0])
            step[0] += now[0] - self._since[0]
            step[1] += now[1] - self._since[1]
            step[2] = max(step[2], self._peak, status("RssAnon"))
            self._name, self._since, self._peak = name, now, 0.0

    def found(self) -> dict[str, Any]:
        spent = time.perf_counter() - self._began[0], time.process_time() - self._began[1]
        return {
            "seconds": round(spent[0], 1),
            "cpu_seconds": round(spent[1], 1),
            "anon_mb": round(max(step[2] for step in self._steps.values())),
            "start_mb": round(self._base),
            "peak_mb": round(status("VmHWM")),
            "steps": {
                name: {"seconds": round(wall, 1), "cpu_seconds": round(cpu, 1), "anon_mb": round(anon)}
                for name, (wall, cpu, anon) in self._steps.items()
            },
        }

    def _watch(self) -> None:
        while not self._stop.wait(0.02):
            with self._lock:
                self._peak = max(self._peak, status("RssAnon"))


def status(name: str) -> float:
    """A size in /proc/self/status, MB."""
    lines: Iterator[str] = (line for line in Path("/proc/self/status").read_text().splitlines())
    return next(int(line.split()[1]) / 1024 for line in lines if line.startswith(name))


if __name__ == "__main__":
    # The class that the part is an instance of is that of the module of this name.
    sys.modules.setdefault("whole", sys.modules["__main__"])
    Simulated.__module__ = "whole"
    main()
