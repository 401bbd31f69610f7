"""The service that finds the training image most like a picture."""

from __future__ import annotations

import sys

import numpy as np
import pytest

pytest.importorskip("torch")
import copyscope
from copyscope import Corpus, finding, images
from copyscope.errors import InputError


def test_each_picture_finds_its_own_image_and_caption(world):
    train = Corpus.open(world.train)
    rows = [0, 7, 31]
    pictures = [images.decode(train.read(row)) for row in rows]
    found = finding.nearest(world.train)([*pictures[:2], images.resize(pictures[2], (96, 96))])
    for one, picture in zip(found, pictures, strict=True):
        # The exact duplicates of a world are as near as the image itself.
        assert np.array_equal(one.picture, picture) or one.similarity > 0.95
    assert [one.similarity for one in found[:2]] == pytest.approx([1, 1], abs=1e-5)
    assert found[2].similarity > 0.7
    assert found[0].caption in {caption for captions in train.captions for caption in captions}


def test_a_picture_that_is_of_no_image_is_less_like_it(world):
    held = Corpus.open(world.held_out)
    find = finding.nearest(world.train)
    assert max(one.similarity for one in find([images.decode(held.read(row)) for row in range(5)])) < 0.95


def test_the_training_set_is_described_once_and_not_before_it_is_asked_for(world, monkeypatch):
    calls, plain = [], finding.embed
    monkeypatch.setattr(finding, "embed", lambda *a, **o: calls.append(a) or plain(*a, **o))
    find = finding.nearest(world.train)
    assert not calls
    assert find([]) == []
    picture = images.decode(Corpus.open(world.train).read(3))
    assert find([picture])[0].similarity == find([picture])[0].similarity
    assert len(calls) == 1


def test_nothing_to_find_is_said(tmp_path):
    (tmp_path / "broken.png").write_bytes(b"no picture")
    with pytest.raises(InputError, match="None of the 1 training images"):
        finding.nearest(tmp_path)([np.zeros((8, 8, 3), np.uint8)])


def test_the_public_name_is_the_function_whatever_was_imported():
    assert "copyscope.finding" in sys.modules
    assert copyscope.nearest is finding.nearest
