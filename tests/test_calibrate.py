"""Calibration: look-alikes leave the held-out set by their own rule, and a group does not calibrate itself."""

from __future__ import annotations

import shutil

import numpy as np
import pytest

from copyscope import images, worlds
from copyscope.copying import calibrate
from copyscope.copying.descriptors.sscd_distilled import SscdDistilled
from copyscope.copying.duplicates import duplicates
from copyscope.copying.embed import embed
from copyscope.copying.verify import Verify
from copyscope.corpus import Corpus


@pytest.fixture(scope="module")
def described(world, tmp_path_factory):
    """The world's training set, and its held-out set with two copies of training images slipped in."""
    held_out = tmp_path_factory.mktemp("held")
    shutil.copytree(world.held_out, held_out / "h")
    names = sorted(path.name for path in world.train.glob("*.png"))
    shutil.copy(world.train / names[-1], held_out / "h" / "zz-bytes.png")
    copy = worlds.alter(images.decode(world.train / names[-2]), "jpeg", np.random.default_rng(0))
    (held_out / "h" / "zz-light.png").write_bytes(images.encode(copy, "png"))
    cache = tmp_path_factory.mktemp("cache")
    train, held = (embed(Corpus.open(path), SscdDistilled(), cache=cache) for path in (world.train, held_out / "h"))
    return train, held, duplicates(train, 0.75, cache=cache), cache


def test_look_alikes_are_removed_and_counted(described):
    train, held, groups, cache = described
    found, matches, alike = calibrate.held_out(held, train, groups, Verify(), cache=cache)
    assert {"zz-bytes.png", "zz-light.png"} <= set(calibrate.removed_ids(held, alike))
    assert found.n_removed == alike.sum() < 5
    assert len(found.scores) == len(held.rows) - found.n_removed == len(matches.queries.rows)
    # Left in, the two would put the bar at the score of a copy.
    assert found.scores.max() < 0.9


def test_the_baseline_leaves_out_an_images_own_group(described):
    train, _, groups, cache = described
    found, scores = calibrate.baseline(train, groups, Verify(), cache=cache)
    similarity = train.vectors @ train.vectors.T
    similarity[groups.label[:, None] == groups.label[None, :]] = -2
    np.testing.assert_allclose(scores, similarity.max(axis=1), atol=1e-6)
    assert len(found.scores) == len(groups.kind)
    assert found.method == "baseline"


def test_the_baseline_is_sampled_by_seed(described, monkeypatch):
    train, _, groups, cache = described
    monkeypatch.setattr(calibrate, "BASELINE_SAMPLE", 20)
    draws = [
        np.sort(calibrate.baseline(train, groups, Verify(), seed=seed, cache=cache)[0].scores) for seed in (0, 0, 1)
    ]
    assert len(draws[0]) == 20
    np.testing.assert_array_equal(draws[0], draws[1])
    assert not np.array_equal(draws[0], draws[2])


def test_a_training_set_of_one_picture_calibrates_nothing(tmp_path):
    (tmp_path / "a.png").write_bytes(images.encode(worlds.picture(np.random.default_rng(0))[0], "png"))
    train = embed(Corpus.open(tmp_path), SscdDistilled())
    found, scores = calibrate.baseline(train, duplicates(train, 0.75), Verify())
    assert len(found.scores) == 0
    assert np.isnan(scores).all()
