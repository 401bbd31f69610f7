"""How pdq.json was made: the library pdqhash 0.2.8 (Meta's C++ code) on pictures made by integers alone.

Run `python tests/golden/make_pdq.py` where pdqhash is installed to make it again. `pictures` gives the same bytes on
every machine: no float, no drawing library.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

Image = NDArray[np.uint8]

SIZES = [
    (1, 1), (1, 9), (4, 300), (3000, 4), (5, 5), (5, 3000), (3000, 5), (6, 64), (17, 33), (31, 31), (40, 900), (63, 65),
    (64, 64), (64, 128), (96, 96), (127, 129), (128, 128), (129, 257), (150, 100), (200, 300), (256, 256), (333, 77),
    (400, 130), (511, 350), (512, 512), (90, 3000),
]  # fmt: skip
"""Height and width, in pixels."""


def pictures() -> Iterator[tuple[str, Image]]:
    """Names and pictures: each kind at each size."""
    for kind in (noise, photograph, grey, drawing, gradient, stripes, flat, nearly_flat):
        for number, (height, width) in enumerate(SIZES):
            rng = np.random.default_rng([number, *kind.__name__.encode()])
            yield f"{kind.__name__} {height} x {width}", kind(rng, height, width)


def noise(rng: np.random.Generator, height: int, width: int) -> Image:
    return rng.integers(0, 256, (height, width, 3), dtype=np.uint8)


def photograph(rng: np.random.Generator, height: int, width: int) -> Image:
    """Soft shapes of several sizes under a little noise."""
    total = rng.integers(0, 12, (height, width, 3))
    for cells in (2, 5, 11, 23):
        coarse = rng.integers(0, 60, (cells, cells, 3))
        total += blur(coarse[steps(height, cells)][:, steps(width, cells)], max(1, min(height, width) // cells))
    return np.clip(total, 0, 255).astype(np.uint8)


def grey(rng: np.random.Generator, height: int, width: int) -> Image:
    return np.repeat(photograph(rng, height, width)[..., :1], 3, axis=2)


def drawing(rng: np.random.Generator, height: int, width: int) -> Image:
    """Discs and boxes of one colour each on white, as emoji are."""
    image = np.full((height, width, 3), 255, np.uint8)
    y, x = np.arange(height)[:, None], np.arange(width)
    for _ in range(7):
        top, left, size = rng.integers(height), rng.integers(width), 1 + rng.integers(1 + max(height, width) // 3)
        disc = (y - top) ** 2 + (x - left) ** 2 < size**2
        box = (abs(y - top) < size) & (abs(x - left) < size // 2 + 1)
        image[disc if rng.integers(2) else box] = rng.integers(0, 256, 3)
    return image


def gradient(rng: np.random.Generator, height: int, width: int) -> Image:
    """From side to side, from top to bottom, or both."""
    down = 255 * np.arange(height)[:, None] // height
    across = 255 * np.arange(width)[None] // width
    ramps = [down + 0 * across, across + 0 * down, (down + across) // 2]
    return np.stack([ramps[i] for i in rng.integers(0, 3, 3)], axis=-1).astype(np.uint8)


def stripes(rng: np.random.Generator, height: int, width: int) -> Image:
    y, x, period = np.arange(height)[:, None], np.arange(width), 2 + int(rng.integers(30))
    mask = ((y // period + x // (period + 3)) % 2).astype(bool)
    return np.where(mask[..., None], *rng.integers(0, 256, (2, 3))).astype(np.uint8)


def flat(rng: np.random.Generator, height: int, width: int) -> Image:
    return np.broadcast_to(rng.integers(0, 256, 3).astype(np.uint8), (height, width, 3)).copy()


def nearly_flat(rng: np.random.Generator, height: int, width: int) -> Image:
    image = flat(rng, height, width)
    image[rng.integers(height), rng.integers(width)] ^= 1
    return image


def steps(length: int, cells: int) -> NDArray[np.int64]:
    """Cell of each of `length` places."""
    return np.arange(length) * cells // length


def blur(values: NDArray[np.int64], window: int) -> NDArray[np.int64]:
    """Integer means over a square window that stops at the far edges."""
    for axis in (0, 1):
        sums = np.cumsum(np.pad(values, [(1, 0) if i == axis else (0, 0) for i in range(3)]), axis=axis)
        ends = np.minimum(np.arange(values.shape[axis]) + window, values.shape[axis])
        found = np.take(sums, ends, axis) - np.take(sums, np.arange(values.shape[axis]), axis)
        counts = ends - np.arange(values.shape[axis])
        values = found // counts.reshape([-1 if i == axis else 1 for i in range(3)])
    return values


def digest(image: Image) -> str:
    return hashlib.sha256(image.tobytes()).hexdigest()[:12]


if __name__ == "__main__":
    import pdqhash

    found = {}
    for name, image in pictures():
        bits = pdqhash.compute(image)[0]
        found[name] = {"picture": digest(image), "hash": np.packbits(bits.astype(np.uint8)).tobytes().hex()}
    rows = ",\n".join(f"  {json.dumps(name)}: {json.dumps(row)}" for name, row in found.items())
    (Path(__file__).parent / "pdq.json").write_text("{\n" + rows + "\n}\n")
