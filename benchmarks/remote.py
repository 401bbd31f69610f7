"""Images a second from an object store: one after the other, as before, and read ahead by many threads, as now.

    python benchmarks/remote.py            # about 3 minutes on two cores

A real S3 server on loopback (moto), which waits before each answer, and for each byte of it, as a distant one does.
Server and reader share this machine's cores: from a distant one the gain is larger. Four corpora of the same images: a
folder of files, one large tar, one large Parquet file, and three tars of which one has nearly all. "before" is one
reader (READERS = 1); "images_per_second" counts reading alone, as `Corpus.stream` hands out bytes.
"""

from __future__ import annotations

import argparse
import io
import statistics
import sys
import tarfile
import tempfile
import time
from pathlib import Path
from typing import Any

import fsspec.config
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from copyscope.data import storage
from copyscope.data.corpus import Corpus
from record import record

sys.path.insert(0, str(Path(__file__).parent.parent))
from tests.object_store import ObjectStore


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("--n", type=int, default=240, help="images of a corpus")
    arguments.add_argument("--kilobytes", type=int, default=100, help="size of an image")
    arguments.add_argument("--delay", type=float, default=0.05, help="seconds before each answer")
    arguments.add_argument("--megabytes", type=float, default=40.0, help="megabytes a second of one connection")
    arguments.add_argument("--rounds", type=int, default=3)
    options = arguments.parse_args()
    rng = np.random.default_rng(0)
    images = [b"\xff\xd8\xff" + rng.bytes(options.kilobytes << 10) for _ in range(options.n)]
    few = options.n // 40
    found: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as name, ObjectStore() as store:
        fsspec.config.conf["s3"] = store.options()
        root = Path(name)
        for number, image in enumerate(images):
            (root / "folder").mkdir(exist_ok=True)
            (root / "folder" / f"{number:05d}.jpg").write_bytes(image)
        write_tar(root / "tar" / "0.tar", images)
        (root / "parquet").mkdir()
        pq.write_table(pa.table({"image": images}), root / "parquet" / "0.parquet", row_group_size=32)
        for shard, part in enumerate((images[:few], images[few:-few], images[-few:])):
            write_tar(root / "uneven" / f"{shard}.tar", part)
        for layout in ("folder", "tar", "parquet", "uneven"):
            url = store.upload(root / layout, layout)
            store.delay, store.pace = options.delay, 1e-6 / options.megabytes
            found[layout] = measured(url, store, options.n, options.rounds)
            store.delay = store.pace = 0.0
    asked = ("n", "kilobytes", "delay", "megabytes")
    record("remote", {name: getattr(options, name) for name in asked} | found)


def measured(url: str, store: ObjectStore, n: int, rounds: int) -> dict[str, Any]:
    """Rates of both ways in turn, and their ratio, which a busy machine moves less than the rates."""
    corpus = Corpus.open(url)
    now = storage.READERS
    rates: dict[int, list[float]] = {1: [], now: []}
    for _ in range(rounds):
        for readers, found in rates.items():
            storage.READERS = readers
            store.forget()
            began = time.perf_counter()
            read = sum(isinstance(data, bytes) for _, data in corpus.stream())
            found.append(n / (time.perf_counter() - began))
            assert read == n
    storage.READERS = now
    ratios = [after / before for before, after in zip(rates[1], rates[now], strict=True)]
    return {
        "requests": len(store.asked),
        "images_per_second_before": [round(rate, 1) for rate in rates[1]],
        "images_per_second": [round(rate, 1) for rate in rates[now]],
        "ratio_median": round(statistics.median(ratios), 2),
    }


def write_tar(path: Path, images: list[bytes]) -> None:
    path.parent.mkdir(exist_ok=True)
    with tarfile.open(path, "w") as tar:
        for number, image in enumerate(images):
            member = tarfile.TarInfo(f"{path.stem}-{number:05d}.jpg")
            member.size = len(image)
            tar.addfile(member, io.BytesIO(image))


if __name__ == "__main__":
    main()
