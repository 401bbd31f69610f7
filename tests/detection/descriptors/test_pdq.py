"""PDQ against Meta's own code (golden: tests/golden/make_pdq.py)."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from copyscope.detection.descriptors.pdq import Pdq
from tests.golden import make_pdq

GOLDEN = json.loads((Path(__file__).parents[2] / "golden" / "pdq.json").read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def pictures():
    return dict(make_pdq.pictures())


@pytest.fixture(scope="module")
def hashes():
    """Bits [n 256] that the library gave."""
    rows = [np.frombuffer(bytes.fromhex(each["hash"]), np.uint8) for each in GOLDEN.values()]
    return np.unpackbits(np.stack(rows), axis=1).astype(bool)


@pytest.fixture(scope="module")
def vectors(pictures):
    return Pdq().describe(list(pictures.values()))


def test_the_pictures_are_those_that_the_library_hashed(pictures):
    assert {name: make_pdq.digest(image) for name, image in pictures.items()} == {
        name: each["picture"] for name, each in GOLDEN.items()
    }
    assert len(pictures) > 200


def test_every_bit_is_that_of_the_library(vectors, hashes):
    wrong = dict(zip(GOLDEN, ((vectors > 0) != hashes).sum(axis=1), strict=True))
    assert {name: bits for name, bits in wrong.items() if bits} == {}


def test_inner_product_is_one_minus_hamming_over_128(vectors, hashes):
    some, bits = vectors[::4], hashes[::4]
    expected = 1 - 2 * (bits[:, None] != bits).mean(axis=2)
    np.testing.assert_allclose(some @ some.T, expected, atol=1e-6)
    assert Pdq().dim == vectors.shape[1] == 256
    assert vectors.dtype == np.float32
    np.testing.assert_array_equal(np.linalg.norm(vectors, axis=1), 1)


def test_an_image_alone_has_the_vector_that_it_has_among_others(pictures, vectors):
    for image, vector in list(zip(pictures.values(), vectors, strict=True))[::5]:
        np.testing.assert_array_equal(Pdq().describe([image])[0], vector)
        np.testing.assert_array_equal(Pdq().describe([image] * 3), [vector] * 3)


def test_images_of_one_shape_are_filtered_in_shares(pictures, monkeypatch):
    images = [image for image in pictures.values() if image.shape == (256, 256, 3)]
    whole = Pdq().describe(images)
    monkeypatch.setattr("copyscope.detection.descriptors.pdq._PIXELS", 2 * 256**2)
    np.testing.assert_array_equal(Pdq().describe(images), whole)


def test_a_view_that_is_not_contiguous_is_read(pictures):
    image = pictures["photograph 200 x 300"]
    turned = image[:, ::-1]
    np.testing.assert_array_equal(Pdq().describe([turned]), Pdq().describe([np.ascontiguousarray(turned)]))
