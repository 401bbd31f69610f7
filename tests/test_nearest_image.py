"""The service that finds the training image most like a picture."""

from __future__ import annotations

import json
import shutil
import sys

import numpy as np
import pytest

pytest.importorskip("torch")
import copyscope
from copyscope import Corpus, nearest_image
from copyscope.errors import InputError
from copyscope.imaging import images
from tests import worlds


def test_each_picture_finds_its_own_image_and_caption(world):
    train = Corpus.open(world.train)
    rows = [0, 7, 31]
    pictures = [images.decode(train.read(row)) for row in rows]
    found = nearest_image.nearest(world.train)([*pictures[:2], images.resize(pictures[2], (96, 96))])
    for one, picture in zip(found, pictures, strict=True):
        # The exact duplicates of a world are as near as the image itself.
        assert np.array_equal(one.picture, picture) or one.similarity > 0.95
    assert [one.similarity for one in found[:2]] == pytest.approx([1, 1], abs=1e-5)
    assert found[2].similarity > 0.7
    assert found[0].caption in {caption for captions in train.captions for caption in captions}


def test_a_picture_that_is_of_no_image_is_less_like_it(world):
    held = Corpus.open(world.held_out)
    find = nearest_image.nearest(world.train)
    assert max(one.similarity for one in find([images.decode(held.read(row)) for row in range(5)])) < 0.95


def test_the_training_set_is_described_once_and_not_before_it_is_asked_for(world, monkeypatch):
    calls, plain = [], nearest_image.embed
    monkeypatch.setattr(nearest_image, "embed", lambda *a, **o: calls.append(a) or plain(*a, **o))
    find = nearest_image.nearest(world.train)
    assert not calls
    assert find([]) == []
    picture = images.decode(Corpus.open(world.train).read(3))
    assert find([picture])[0].similarity == find([picture])[0].similarity
    assert len(calls) == 1


def test_the_fingerprint_is_of_what_is_found_and_how(world, tmp_path):
    def of(caption=None, picture=None, last=None, protocol="phash"):
        folder = tmp_path / str(len(list(tmp_path.iterdir())))
        shutil.copytree(world.train, folder)
        rows = [json.loads(line) for line in (folder / "metadata.jsonl").read_text().splitlines()]
        rows[3]["captions"] = [caption] if caption else rows[3]["captions"]
        if picture:
            (folder / rows[3]["file_name"]).write_bytes((folder / rows[picture]["file_name"]).read_bytes())
        for row in rows[last:] if last else []:
            (folder / row["file_name"]).unlink()
        worlds.write_metadata(folder, rows[:last])
        return nearest_image.nearest(folder, protocol).fingerprint

    found = [of(), of(caption="something else"), of(picture=8), of(last=-1), of(protocol="sscd_distilled")]
    assert of() == found[0], "whatever the folder is called"
    assert len({*found}) == 5
    assert all(isinstance(each, str) for each in found)


def test_pictures_are_kept_up_to_so_many_bytes(tmp_path, monkeypatch):
    rng = np.random.default_rng(0)
    pictures = [images.resize(worlds.picture(rng)[0], (64, 64)) for _ in range(3)]
    for number, picture in enumerate(pictures):
        (tmp_path / f"{number}.png").write_bytes(images.encode(picture, "png"))
    find, decoded, plain = nearest_image.nearest(tmp_path, "phash"), [], images.decode
    assert find.fingerprint  # Described, without a picture kept.
    monkeypatch.setattr(nearest_image.images, "decode", lambda data: decoded.append(1) or plain(data))

    def asked(row):
        decoded.clear()
        assert np.array_equal(find([pictures[row]])[0].picture, pictures[row])
        return len(decoded)

    monkeypatch.setattr(nearest_image, "KEPT_BYTES", 2 * pictures[0].nbytes)
    # What was looked at least recently makes way.
    assert [asked(row) for row in (0, 1, 0, 2, 0, 1)] == [1, 1, 0, 1, 0, 1]
    monkeypatch.setattr(nearest_image, "KEPT_BYTES", 0)
    assert [asked(row) for row in (2, 2)] == [1, 1]


def test_nothing_to_find_is_said(tmp_path):
    (tmp_path / "broken.png").write_bytes(b"no picture")
    with pytest.raises(InputError, match="None of the 1 training images"):
        nearest_image.nearest(tmp_path)([np.zeros((8, 8, 3), np.uint8)])


def test_the_public_name_is_the_function_whatever_was_imported():
    assert "copyscope.nearest_image" in sys.modules
    assert copyscope.nearest is nearest_image.nearest
