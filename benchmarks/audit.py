"""The whole audit of 1,000 x 10,000 images with a warm cache, and how memory grows with the training set.

    copyscope fetch photographs
    python benchmarks/audit.py             # about 12 minutes on two cores, most of it to warm the cache

Times `copyscope audit` as a user runs it, report included. Memory: peak of the process over audits of 1,000, 10,000 and
100,000 tiny training images by a cheap 512-dimensional descriptor, anonymous memory and all of it.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

from copyscope.data import assets
from copyscope.detection.descriptors import Descriptor, Image
from copyscope.imaging import images

SIDE = 256


@dataclasses.dataclass(frozen=True)
class Cheap(Descriptor):
    """A random projection of a thumbnail: 512 dimensions at next to no cost."""

    @property
    def dim(self) -> int:
        return 512

    def describe(self, pictures: list[Image]) -> np.ndarray:
        small = np.stack([images.resize(picture, (8, 8)).ravel() for picture in pictures]).astype(np.float32) - 127
        # Row by row: a vector must not depend on what else is in the call.
        vectors = np.stack(
            [row @ np.random.default_rng(0).standard_normal((192, 512), dtype=np.float32) for row in small]
        )
        return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


def main() -> None:
    from record import record

    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("--generated", type=int, default=1000)
    arguments.add_argument("--train", type=int, default=10_000)
    arguments.add_argument("--runs", type=int, default=3)
    arguments.add_argument("--rows", type=int, nargs="*", default=[1000, 10_000, 100_000])
    options = arguments.parse_args()
    with tempfile.TemporaryDirectory() as name:
        root = Path(name)
        seconds = whole(root, options.generated, options.train, options.runs)
        memory = [grown(root, rows) for rows in options.rows]
        record(
            "audit", {"generated": options.generated, "train": options.train, "seconds_warm": seconds, "memory": memory}
        )


def whole(root: Path, generated: int, train: int, runs: int) -> list[float]:
    """Seconds of `copyscope audit` once its cache is warm."""
    photographs = [images.decode(path) for path in sorted(assets.fetch("photographs").rglob("*.jpg"))]
    for name, n, seed in (("generated", generated, 0), ("train", train, 1)):
        rng = np.random.default_rng(seed)
        (root / name).mkdir()
        for index in range(n):
            photograph = photographs[index % len(photographs)]
            top, left = (int(rng.integers(0, side - SIDE + 1)) for side in photograph.shape[:2])
            crop = np.ascontiguousarray(photograph[top : top + SIDE, left : left + SIDE])
            (root / name / f"{index:05d}.jpg").write_bytes(images.encode(crop, "jpeg", 90))
    command = [sys.executable, "-m", "copyscope", "audit", root / "generated", root / "train", "-o", root / "out"]
    environment = os.environ | {"COPYSCOPE_CACHE": str(root / "cache")}
    found = []
    for run in range(runs + 1):
        began = time.perf_counter()
        subprocess.run(command, env=environment, check=True, stdout=subprocess.DEVNULL)
        if run:
            found.append(round(time.perf_counter() - began, 2))
    return found


MEASURE = """
import json, sys, threading, time
import psutil
import copyscope
process, peak = psutil.Process(), {"anonymous_mb": 0.0, "resident_mb": 0.0}
def watch():
    while True:
        info = process.memory_info()
        for name, value in (("anonymous_mb", info.rss - info.shared), ("resident_mb", info.rss)):
            peak[name] = max(peak[name], round(value / 2**20, 1))
        time.sleep(0.02)
threading.Thread(target=watch, daemon=True).start()
copyscope.audit(sys.argv[1], sys.argv[2], protocol="audit:Cheap").save(sys.argv[3])
print(json.dumps(peak))
"""


def grown(root: Path, rows: int) -> dict[str, float]:
    """Peak memory of an audit of 200 images against `rows`, everything computed anew."""
    folder = root / f"rows{rows}"
    rng = np.random.default_rng(rows)
    for name, n in (("generated", 200), ("train", rows)):
        (folder / name).mkdir(parents=True)
        for index in range(n):
            picture = rng.integers(0, 256, (12, 12, 3), dtype=np.uint8)
            (folder / name / f"{index:06d}.png").write_bytes(images.encode(picture, "png"))
    command = [sys.executable, "-c", MEASURE, folder / "generated", folder / "train", folder / "out"]
    environment = os.environ | {"COPYSCOPE_CACHE": str(folder / "cache"), "PYTHONPATH": str(Path(__file__).parent)}
    began = time.perf_counter()
    printed = subprocess.run(command, env=environment, check=True, capture_output=True, text=True).stdout
    return {"rows": rows, "seconds": round(time.perf_counter() - began, 1), **json.loads(printed)}


if __name__ == "__main__":
    main()
