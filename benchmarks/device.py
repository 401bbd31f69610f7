"""Share of its time that a fast device is busy while images are read and decoded for it: `python benchmarks/device.py`.

A descriptor stands in for a GPU of 2,000 images a second: it takes a batch, waits for n / 2,000 s outside of Python,
and takes the next. Rival in the same run: the same images and the same descriptor without decoding ahead, as on a
processor.
"""

from __future__ import annotations

import tempfile
import threading
import time
from pathlib import Path

import numpy as np
from PIL import Image

from copyscope.data.corpus import Corpus
from copyscope.detection.descriptors import Descriptor
from copyscope.detection.embedding.embed import embed

N, SIDE, RATE = 8_000, 64, 2_000


class Simulated(Descriptor):
    """A device of RATE images a second, which runs one batch at a time."""

    dim = 8

    def __init__(self, device: str) -> None:
        self._device, self._turn = device, threading.Lock()

    def __str__(self) -> str:
        return "simulated"

    @property
    def device(self) -> str:
        return self._device

    def describe(self, images: list[np.ndarray]) -> np.ndarray:
        with self._turn:
            time.sleep(len(images) / RATE)
        return np.ones((len(images), self.dim), np.float32)


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        train = Path(folder) / "train"
        train.mkdir()
        rng = np.random.default_rng(0)
        for number in range(N):
            small = Image.fromarray(rng.integers(0, 256, (8, 8, 3), dtype=np.uint8))
            small.resize((SIDE, SIDE), Image.Resampling.BICUBIC).save(train / f"{number}.jpg", quality=90)
        corpus = Corpus.open(train)
        for turn in range(3):
            for device in ("cpu", "cuda:0"):
                began = time.perf_counter()
                embed(corpus, Simulated(device), cache=Path(folder) / f"cache-{turn}-{device}")
                seconds = time.perf_counter() - began
                print(f"{device:7} {N / seconds:5.0f} images/s, device busy {N / RATE / seconds:.0%}")


if __name__ == "__main__":
    main()
