"""Coarse vectors: turned with the picture, and candidates found under all eight symmetries."""

from __future__ import annotations

import numpy as np
import pytest

from copyscope.data.corpus import Corpus
from copyscope.detection.matching import tiny_image as coarse_module
from copyscope.detection.matching.ncc import Verify
from copyscope.detection.matching.templates import SYMMETRIES, turned
from copyscope.detection.matching.tiny_image import (
    DIM,
    coarse_candidates,
    coarse_vectors,
    coarse_vectors_of,
    turned_vectors,
)
from copyscope.imaging import images
from tests import worlds


def turned_picture(picture, symmetry):
    return np.ascontiguousarray(turned(picture.transpose(2, 0, 1), symmetry).transpose(1, 2, 0))


def test_the_symmetries_are_the_eight_of_a_square():
    square = np.arange(9).reshape(3, 3)
    found = {turned(square, symmetry).tobytes() for symmetry in range(SYMMETRIES)}
    expected = {np.rot90(each, k).tobytes() for each in (square, square[:, ::-1]) for k in range(4)}
    assert found == expected


@pytest.mark.parametrize("symmetry", range(SYMMETRIES))
def test_vectors_of_a_turned_picture_are_the_turned_vectors(symmetry):
    rng = np.random.default_rng(0)
    thumbnails = rng.integers(0, 256, (3, 20, 20, 3), dtype=np.uint8)
    expected = coarse_vectors(np.stack([turned_picture(each, symmetry) for each in thumbnails]))
    np.testing.assert_allclose(turned_vectors(coarse_vectors(thumbnails), symmetry), expected, atol=1e-5)


def unit_vectors(rng, n):
    vectors = rng.standard_normal((n, DIM)).astype(np.float32)
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


def test_candidates_are_those_of_brute_force_over_all_symmetries(monkeypatch):
    rng = np.random.default_rng(1)
    queries, references = unit_vectors(rng, 9), unit_vectors(rng, 50)
    monkeypatch.setattr(coarse_module, "LOT", 4)
    own, theirs = rng.integers(0, 5, 9), rng.integers(0, 5, 50)
    found = coarse_candidates(queries, references, 6, query_labels=own, reference_labels=theirs)
    scores = np.max([turned_vectors(queries, each) @ references.T for each in range(SYMMETRIES)], axis=0)
    scores[own[:, None] == theirs] = -2
    np.testing.assert_array_equal(found.index, np.argsort(-scores, axis=1)[:, :6])
    np.testing.assert_allclose(found.score, -np.sort(-scores, axis=1)[:, :6], atol=1e-6)


def test_fewer_references_than_candidates_are_found_once_each():
    rng = np.random.default_rng(2)
    found = coarse_candidates(unit_vectors(rng, 2), unit_vectors(rng, 3), 5)
    assert [sorted(row) for row in found.index.tolist()] == [[-1, -1, 0, 1, 2]] * 2
    assert (found.index[:, 3:] == -1).all()
    assert coarse_candidates(unit_vectors(rng, 0), unit_vectors(rng, 3), 5).index.shape == (0, 5)


def test_every_turned_and_altered_picture_finds_its_source(tmp_path):
    rng = np.random.default_rng(3)
    pictures = [images.resize(worlds.picture(rng)[0], (64, 64)) for _ in range(16)]
    for number, picture in enumerate(pictures):
        (tmp_path / f"{number:02d}.png").write_bytes(images.encode(picture, "png"))
    corpus, verify = Corpus.open(tmp_path), Verify()
    references = coarse_vectors_of(corpus, np.arange(16), verify, cache=tmp_path / "cache")
    queries = [
        images.decode(images.encode(turned_picture(picture, number % SYMMETRIES), "jpeg", 40))
        for number, picture in enumerate(pictures)
    ]
    found = coarse_candidates(coarse_vectors(verify.shrink(queries)), references, 1)
    np.testing.assert_array_equal(found.index[:, 0], np.arange(16))
    upright = coarse_candidates(coarse_vectors(verify.shrink(queries)), references, 1, symmetries=[0])
    assert (upright.index[:, 0] != np.arange(16)).any()
