"""Calibration: look-alikes leave the held-out set by their own rule, and a group does not calibrate itself."""

from __future__ import annotations

import dataclasses
import shutil
from types import SimpleNamespace

import numpy as np
import pytest

from copyscope.data.corpus import Corpus
from copyscope.detection.dedup.groups import duplicates
from copyscope.detection.descriptors.pdq import Pdq
from copyscope.detection.descriptors.sscd_distilled import SscdDistilled
from copyscope.detection.embedding.embed import embed
from copyscope.detection.embedding.embeddings import Embeddings
from copyscope.detection.matching.ncc import Verify
from copyscope.detection.verdict import calibration
from copyscope.imaging import images
from tests import worlds


@pytest.fixture(scope="module")
def described(world, tmp_path_factory):
    """The world's training set, and its held-out set with two copies of training images slipped in."""
    held_out = tmp_path_factory.mktemp("held")
    shutil.copytree(world.held_out, held_out / "h")
    names = sorted(path.name for path in world.train.glob("*.png"))
    shutil.copy(world.train / names[-1], held_out / "h" / "!bytes.png")
    copy = worlds.alter(images.decode(world.train / names[-2]), "jpeg", np.random.default_rng(0))
    (held_out / "h" / "!light.png").write_bytes(images.encode(copy, "png"))
    cache = tmp_path_factory.mktemp("cache")
    train, held = (embed(Corpus.open(path), SscdDistilled(), cache=cache) for path in (world.train, held_out / "h"))
    return train, held, duplicates(train, 0.75, cache=cache), cache


def test_look_alikes_are_removed_and_counted(described):
    train, held, groups, cache = described
    found, matches, alike = calibration.held_out(held, train, groups, Verify(), cache=cache)
    assert {"!bytes.png", "!light.png"} <= set(calibration.removed_ids(held, alike))
    assert found.n_removed == alike.sum() < 5
    assert len(found.scores) == len(held.rows) - found.n_removed == len(matches.queries.rows)
    # The vectors are still those of the rows: the removed stand first in the folder.
    assert matches.queries.ids == [name for name, gone in zip(held.ids, alike, strict=True) if not gone]
    np.testing.assert_array_equal(matches.queries.vectors, held.vectors[~alike])
    top = (held.vectors[~alike] @ train.vectors.T).max(axis=1)
    np.testing.assert_allclose(matches.similarity, top, atol=1e-6)
    # Left in, the two would put the bar at the score of a copy.
    assert found.scores.max() < 0.9


def test_the_baseline_leaves_out_an_images_own_group(described):
    train, _, groups, cache = described
    baseline = calibration.baseline(train, groups, Verify(), cache=cache)
    found, scores = baseline.calibration, baseline.similarity
    similarity = train.vectors @ train.vectors.T
    similarity[groups.label[:, None] == groups.label[None, :]] = -2
    np.testing.assert_allclose(scores, similarity.max(axis=1), atol=1e-6)
    assert len(found.scores) == len(groups.kind)
    assert found.method == "baseline"


def test_the_baseline_is_sampled_by_seed(described, monkeypatch):
    train, _, groups, cache = described
    monkeypatch.setattr(calibration, "BASELINE_SAMPLE", 20)
    draws = [
        np.sort(calibration.baseline(train, groups, Verify(), seed=seed, cache=cache).calibration.scores, axis=0)
        for seed in (0, 0, 1)
    ]
    assert len(draws[0]) == 20
    np.testing.assert_array_equal(draws[0], draws[1])
    assert not np.array_equal(draws[0], draws[2])


def test_a_training_set_of_one_picture_calibrates_nothing(tmp_path):
    (tmp_path / "a.png").write_bytes(images.encode(worlds.picture(np.random.default_rng(0))[0], "png"))
    train = embed(Corpus.open(tmp_path), SscdDistilled())
    baseline = calibration.baseline(train, duplicates(train, 0.75), Verify())
    assert len(baseline.calibration.scores) == len(baseline.own) == 0
    assert np.isnan(baseline.similarity).all()


def test_a_look_alike_is_within_31_bits_and_no_further(monkeypatch, tmp_path):
    for number in range(4):
        (tmp_path / f"{number}.png").write_bytes(images.encode(np.full((4, 5, 3), number, np.uint8), "png"))
    corpus = embed(Corpus.open(tmp_path), Pdq()).corpus
    hashes = np.full((4, 256), 1 / 16, np.float32)
    for row, bits in enumerate((0, 31, 32)):
        hashes[1 + row, :bits] *= -1
    described = [Embeddings(corpus.take(rows), np.arange(len(rows)), hashes[rows], "", "") for rows in ([0], [1, 2, 3])]
    by_size = {1: described[0], 3: described[1]}
    monkeypatch.setattr(calibration, "embed", lambda corpus, part, **rest: by_size[len(corpus)])
    kept = []
    monkeypatch.setattr(calibration, "match", lambda clean, *rest, **options: kept.append(clean) or stop())

    def stop():
        raise StopIteration

    with pytest.raises(StopIteration):
        calibration.held_out(described[1], described[0], SimpleNamespace(label=None), Verify())
    # The first is another file than the training image, of the same hash.
    assert kept[0].ids == ["3.png"]


def test_a_held_out_image_that_is_gone_since_is_left_out_rather_than_mixed_up(described, tmp_path):
    train, held, groups, _ = described
    shutil.copytree(held.corpus.origin, tmp_path / "h")
    again = embed(Corpus.open(tmp_path / "h"), SscdDistilled(), cache=tmp_path / "cache")
    gone = again.ids[5]
    (tmp_path / "h" / gone).unlink()
    found, matches, alike = calibration.held_out(again, train, groups, Verify(), cache=tmp_path / "cache")
    assert gone in calibration.removed_ids(again, alike)
    assert gone not in matches.queries.ids
    assert len(found.scores) == len(again.rows) - alike.sum()


def test_the_baselines_sample_is_one_image_a_picture_under_its_own_label(described, monkeypatch):
    train, _, groups, cache = described
    # Pictures anywhere in the corpus: labels do not run with the positions.
    label = groups.label[np.random.default_rng(0).permutation(len(train.rows))]
    monkeypatch.setattr(calibration, "_pictures", lambda *given: label)
    seen = []
    plain = calibration.match
    monkeypatch.setattr(
        calibration,
        "match",
        lambda sample, *rest, **options: seen.append((sample, options)) or plain(sample, *rest, **options),
    )
    calibration.baseline(train, groups, Verify(), cache=cache)
    sample, options = seen[0]
    position = np.searchsorted(train.rows, sample.rows)
    np.testing.assert_array_equal(options["own"], label[position])
    assert sorted(options["own"]) == sorted(set(label))
    np.testing.assert_array_equal(sample.vectors, train.vectors[position])


def test_pictures_are_told_by_hash_and_within_a_group_by_a_wider_bound(described, monkeypatch):
    train, *_ = described
    few = dataclasses.replace(train, rows=train.rows[:5], vectors=train.vectors[:5])
    hashes = np.full((5, 256), 1 / 16, np.float32)
    for row, bits in enumerate((0, 31, 100, 164, 229)):
        hashes[row, :bits] *= -1
    monkeypatch.setattr(
        calibration, "embed", lambda corpus, part, **rest: SimpleNamespace(rows=np.arange(5), vectors=hashes)
    )
    options = {"workers": 1}

    def pictures(label):
        found = calibration._pictures(few, SimpleNamespace(label=np.array(label)), options)
        return [found.tolist().index(each) for each in found]

    # 31 bits apart are one picture in any group; 64 in one group; 65 in none.
    assert pictures([0, 1, 2, 3, 4]) == [0, 0, 2, 3, 4]
    assert pictures([0, 1, 2, 2, 2]) == [0, 0, 2, 2, 4]


def vectors(seed, n, centre):
    """Unit vectors [n 16] around a centre."""
    found = np.random.default_rng(seed).normal(0, 0.4, (n, 16)) + np.eye(16)[centre]
    return (found / np.linalg.norm(found, axis=1, keepdims=True)).astype(np.float32)


@pytest.mark.parametrize("copies", [0, 30, 99])
def test_held_out_images_of_one_kind_do_not_differ_however_much_is_copied(copies):
    train, held = vectors(0, 300, 0), vectors(1, 200, 0)
    generated = vectors(2, 100, 0)
    generated[:copies] = train[:copies]
    assert calibration.differs(held, generated, train) is None


def test_held_out_images_of_another_kind_are_told_with_both_medians():
    train, held, generated = vectors(0, 300, 0), vectors(1, 200, 1), vectors(2, 100, 0)
    said = calibration.differs(held, generated, train)
    for one, other in ((held, train), (generated, train), (generated, held)):
        assert f"{np.median(np.median(one @ other.T, axis=1)):.3f}" in said
    assert calibration.differs(held, vectors(2, 100, 1), train) is None
    assert calibration.differs(held[:1], generated, train) is None


@pytest.mark.parametrize(("n", "told"), [(16, False), (400, True)])
def test_a_handful_of_images_does_not_tell_another_kind(n, told):
    train, held = vectors(0, 300, 0), vectors(1, 200, 1)
    # One in eight is of the held-out images' kind: 94 % of the pairs have the generated image nearer.
    generated = np.concatenate([vectors(2, n - n // 8, 0), vectors(3, n // 8, 1)])
    assert (calibration.differs(held, generated, train) is not None) == told


def test_with_controls_a_copy_is_beyond_what_training_images_are_to_one_another(described):
    train, held, groups, cache = described
    baseline = calibration.baseline(train, groups, Verify(), cache=cache)
    found, matches = calibration.controls(held, train, groups, Verify(), cache=cache)
    beyond = baseline.beyond(matches.evidence, matches.pixels, found.scores)
    names = held.ids
    assert beyond[names.index("!bytes.png")]
    assert beyond[names.index("!light.png")]
    assert beyond.mean() < 0.1
    assert found.method == "controls"
    assert len(found.scores) == len(held.rows)
    # Near by the descriptor and not by pixels, or the other way round, is not beyond.
    for column in range(2):
        own = baseline.own.copy()
        own[:, column] = 2
        given = matches.evidence, matches.pixels, found.scores
        assert not dataclasses.replace(baseline, own=own).beyond(*given).any()


def test_pairs_of_one_prompt_and_seed_tell_how_often_the_tuned_model_is_nearer(described):
    train, held, groups, cache = described
    _, matches = calibration.controls(held, train, groups, Verify(), cache=cache)
    n = len(held.rows)

    def with_keys(prompts, seeds):
        corpus = matches.queries.corpus.with_column("prompt", prompts).with_column("seed", seeds)
        return dataclasses.replace(matches, queries=dataclasses.replace(matches.queries, corpus=corpus))

    prompts = [f"prompt {row % 7}" for row in range(len(held.corpus))]
    mine, theirs = with_keys(prompts, range(len(held.corpus))), with_keys(prompts, [*range(len(held.corpus))][::-1])
    assert calibration.nearer_than_control(matches, theirs) is None
    assert calibration.nearer_than_control(mine, with_keys(prompts, [0] * len(held.corpus))) is None
    same = calibration.nearer_than_control(mine, mine)
    assert (same.value, same.n) == (1, n)
    combined = matches.combined.max(axis=1)
    pairs = [(a, n - 1 - a) for a in range(n) if prompts[a] == prompts[n - 1 - a]]
    found = calibration.nearer_than_control(mine, theirs)
    assert found.n == len(pairs)
    assert found.value == pytest.approx(np.mean([combined[a] >= combined[b] for a, b in pairs]))


def test_baseline_compares_only_what_the_groups_do_not_know(world, tmp_path, monkeypatch):
    train = embed(Corpus.open(world.train), SscdDistilled(), cache=tmp_path)
    groups = duplicates(train, 0.75, cache=tmp_path)
    wanted = calibration.baseline(train, dataclasses.replace(groups, closest=None), Verify(), cache=tmp_path)
    np.testing.assert_array_equal(
        calibration.baseline(train, groups, Verify(), cache=tmp_path).similarity, wanted.similarity
    )
    asked = []
    real = calibration.nearest_by
    monkeypatch.setattr(calibration, "REFERENCE_BLOCK", 10)
    monkeypatch.setattr(
        calibration, "nearest_by", lambda *given, **more: asked.append(len(given[1])) or real(*given, **more)
    )
    found = calibration.baseline(train, groups, Verify(), cache=tmp_path)
    np.testing.assert_allclose(found.similarity, wanted.similarity, atol=1e-6)
    many = int((groups.sizes[groups.label] > 2).sum())
    assert 0 < sum(asked) <= many < len(train.rows) / 2


def test_baseline_similarity_is_that_of_a_sample_where_nothing_is_known(world, tmp_path, monkeypatch):
    monkeypatch.setattr(calibration, "SIMILARITY_SAMPLE", 20)
    train = embed(Corpus.open(world.train), SscdDistilled(), cache=tmp_path)
    groups = duplicates(train, 0.75, cache=tmp_path)
    known = calibration.baseline(train, groups, Verify(), cache=tmp_path).similarity
    assert np.isfinite(known).all(), "what the groups know costs nothing"
    some = calibration.baseline(train, dataclasses.replace(groups, closest=None), Verify(), cache=tmp_path).similarity
    assert np.isfinite(some).sum() == 20
    np.testing.assert_allclose(some[np.isfinite(some)], known[np.isfinite(some)], atol=1e-6)
