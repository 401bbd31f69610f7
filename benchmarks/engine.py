"""What an engine costs: `embed` of one corpus by threads, by processes and by a local Ray, on the same two cores.

    python benchmarks/engine.py            # about 3 minutes on two cores

Each round describes all images anew, in turn by each way. "first_seconds" has the start of processes, or of Ray, in
it; "seconds" are of rounds after that, when they are there. "ratio_median" is of a round's seconds to those of threads
in the same round, which a busy machine moves less. An engine gains nothing on one machine: this says what it takes.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

import worlds
from copyscope.data.corpus import Corpus
from copyscope.detection.embedding import parquet
from copyscope.detection.embedding.embed import embed
from copyscope.engine import Processes
from copyscope.imaging import images
from copyscope.ray_engine import Ray
from record import record


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("--n", type=int, default=600, help="images")
    arguments.add_argument("--side", type=int, default=512, help="pixels of a side")
    arguments.add_argument("--workers", type=int, default=2)
    arguments.add_argument("--rounds", type=int, default=3, help="after the first")
    options = arguments.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name) / "images"
        folder.mkdir()
        rng = np.random.default_rng(0)
        for number in range(options.n):
            picture = images.resize(worlds.picture(rng)[0], (options.side, options.side))
            (folder / f"{number:05d}.jpg").write_bytes(images.encode(picture, "jpeg", quality=90))
        ways: dict[str, Any] = {"threads": None, "processes": Processes(options.workers), "ray": Ray("local")}
        seconds: dict[str, list[float]] = {way: [] for way in ways}
        vectors: dict[str, bytes] = {}
        for turn in range(options.rounds + 1):
            for way, engine in ways.items():
                cache = Path(name) / f"cache-{way}-{turn}"
                began = time.perf_counter()
                found = embed(folder, "sscd-distilled", cache=cache, workers=options.workers, engine=engine)
                seconds[way].append(time.perf_counter() - began)
                vectors[way] = found.vectors.tobytes()
        assert len(set(vectors.values())) == 1, "the same to the bit"
        again = Path(name) / "parts"
        began = time.perf_counter()
        parquet.write(Corpus.open(folder), again, "sscd-distilled", engine=ways["processes"])
        written = time.perf_counter() - began
        began = time.perf_counter()
        parquet.write(Corpus.open(folder), again, "sscd-distilled", engine=ways["processes"])
        resumed = time.perf_counter() - began
    asked = {key: getattr(options, key) for key in ("n", "side", "workers", "rounds")}
    result = {
        way: {
            "first_seconds": round(all_[0], 2),
            "seconds": [round(each, 2) for each in all_[1:]],
            "images_per_second_median": round(options.n / statistics.median(all_[1:]), 1),
            "ratio_median": round(
                statistics.median(own / plain for own, plain in zip(all_[1:], seconds["threads"][1:], strict=True)), 2
            ),
        }
        for way, all_ in seconds.items()
    }
    parts = {"processes_seconds": round(written, 2), "nothing_new_seconds": round(resumed, 2)}
    record("engine", asked | result | {"parts": parts})


if __name__ == "__main__":
    main()
