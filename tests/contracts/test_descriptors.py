"""What every descriptor must do; a new file on the shelf is tested by being there."""

from __future__ import annotations

import dataclasses
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from copyscope import parts
from copyscope.detection.descriptors import Descriptor
from copyscope.imaging import images
from tests.worlds import alter, picture

# Parts that need an argument to be built at all are given one by a fixture of tests/models.py.
NEEDS_MODEL = {"clip": "clip_folder"}


def check_descriptor(part: Descriptor) -> None:
    """Raises AssertionError where `part` breaks the contract of its shelf."""
    rng = np.random.default_rng(3)
    pictures = [picture(rng)[0] for _ in range(4)]
    odd = [np.zeros((1, 1, 3), np.uint8), np.full((7, 300, 3), 255, np.uint8), images.resize(pictures[0], (500, 64))]
    given = pictures + odd
    before = [image.copy() for image in given]
    vectors = part.describe(given)
    assert vectors.shape == (len(given), part.dim), "shape [n dim]"
    assert vectors.dtype == np.float32, "float32"
    assert np.isfinite(vectors).all(), "finite, for a single pixel, a strip and a blank too"
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-4, err_msg="unit length")
    for image, was in zip(given, before, strict=True):
        assert np.array_equal(image, was), "the images are left as they were"
    alone = np.concatenate([part.describe([image]) for image in given])
    assert np.array_equal(alone, vectors), "a vector depends on its image alone"
    with ThreadPoolExecutor(4) as pool:
        for again in pool.map(part.describe, [given] * 4):
            assert np.array_equal(again, vectors), "the same from several threads"
    assert parts.load("descriptors", str(part)) == part, "the spec rebuilds the part"
    light = part.describe([alter(image, "jpeg", rng) for image in pictures])
    same = np.einsum("nd,nd->n", light, vectors[:4])
    other = vectors[:4] @ vectors[:4].T
    assert (same > other[~np.eye(4, dtype=bool)].reshape(4, 3).max(axis=1)).all(), "nearer to its JPEG than to others"


@pytest.mark.parametrize("name", parts.names("descriptors"))
def test_every_descriptor_keeps_the_contract(name, request):
    if name in NEEDS_MODEL:
        check_descriptor(parts.load("descriptors", f"{name}({str(request.getfixturevalue(NEEDS_MODEL[name]))!r})"))
    else:
        check_descriptor(parts.load("descriptors", name))


@dataclasses.dataclass(frozen=True)
class Good(Descriptor):
    """A tiny descriptor that keeps the contract, for the broken ones to break."""

    @property
    def dim(self) -> int:
        return 48

    def describe(self, pictures):
        small = np.stack([images.resize(image, (4, 4)).ravel() for image in pictures]).astype(np.float32)
        small = small - small.mean(axis=1, keepdims=True) + 1e-3
        return small / np.linalg.norm(small, axis=1, keepdims=True)


def broken(change):
    @dataclasses.dataclass(frozen=True)
    class Broken(Descriptor):
        """Breaks one clause."""

        @property
        def dim(self):
            return 48

        def describe(self, pictures):
            return change(Good().describe(pictures), pictures)

    return Broken()


def scribble(vectors, pictures):
    pictures[0][:] = 0
    return vectors


BROKEN = {
    "shape": lambda vectors, pictures: vectors[:, :40],
    "float32": lambda vectors, pictures: vectors.astype(np.float64),
    "finite": lambda vectors, pictures: np.full_like(vectors, np.nan),
    "unit length": lambda vectors, pictures: vectors * np.float32(2),
    "left as they were": scribble,
    "alone": lambda vectors, pictures: np.roll(vectors, 1, axis=1) if len(pictures) > 1 else vectors,
    "rebuilds": lambda vectors, pictures: vectors,
}


@pytest.mark.parametrize("clause", BROKEN)
def test_a_broken_descriptor_is_rejected(clause):
    # "rebuilds": a class made in a function has no spec that could be loaded.
    with pytest.raises((AssertionError, Exception)) as caught:
        check_descriptor(broken(BROKEN[clause]))
    if clause != "rebuilds":
        assert clause in str(caught.value)


def test_the_descriptor_that_the_broken_ones_break_is_whole():
    check_descriptor(Good())
