"""Planted copies: the same again, from the cache, one image a group, and nothing is said without them."""

from __future__ import annotations

import shutil

import numpy as np
import pytest

from copyscope.data.corpus import Corpus
from copyscope.detection.dedup.groups import duplicates
from copyscope.detection.descriptors.phash import Phash
from copyscope.detection.embedding.embed import embed
from copyscope.detection.matching.ncc import Verify
from copyscope.detection.matching.registration import Register
from copyscope.detection.verdict import sensitivity
from copyscope.detection.verdict.alterations import KINDS
from copyscope.detection.verdict.answer import MUST_SEE
from copyscope.detection.verdict.sensitivity import LEAST, SHARE, planted_copies
from copyscope.detection.verdict.verdict import Calibration, Planted, verdict
from copyscope.errors import InputError
from copyscope.imaging import images
from tests import worlds


def described(folder, cache):
    train = embed(Corpus.open(folder), Phash(), cache=cache)
    return train, duplicates(train, 0.9, cache=cache)


def planted(train, groups, cache, **options):
    return planted_copies(train, groups, Phash(), Verify(), cache=cache, **options)


@pytest.fixture(scope="module")
def large(tmp_path_factory):
    """90 images of which 10 are in three groups, and a cache of its own."""
    folder = tmp_path_factory.mktemp("large")
    world = worlds.world(folder / "world", 90, 1, 1, seed=4)
    cache = folder / "cache"
    return (*described(world.train, cache), cache)


@pytest.fixture(scope="module")
def found(large):
    train, groups, cache = large
    return planted(train, groups, cache)


def test_every_kind_is_planted_and_found_in_the_training_set(large, found):
    train, groups, _ = large
    assert list(found) == list(KINDS)
    for copies in found.values():
        assert len(copies.sources) == len(copies.matches) == len(copies.evidence) == len(copies.pixels)
        assert np.isfinite(copies.evidence).all()
    group = dict(zip(train.ids, groups.label.tolist(), strict=True))
    light = found["light"]
    right = [group[mine] == group[source] for mine, source in zip(light.matches, light.sources, strict=True)]
    assert np.mean(right) > 0.95
    assert light.pixels.min() > 0.8


def test_one_image_a_group_is_planted_and_other_kinds_take_turns(large, found):
    train, groups, _ = large
    label = dict(zip(train.ids, groups.label.tolist(), strict=True))
    n = len(np.unique(groups.label))
    assert LEAST < n < len(train.rows)
    for kind, copies in found.items():
        assert len(copies.sources) == len({label[name] for name in copies.sources})
        expected = SHARE * n if kind in MUST_SEE else n / 5
        assert len(copies.sources) == pytest.approx(expected, abs=1)
    assert len({label[name] for copies in found.values() for name in copies.sources}) == n


def test_no_more_groups_than_asked_are_planted(large):
    train, groups, cache = large
    few = planted(train, groups, cache, n_groups=LEAST + 10)
    assert len({name for copies in few.values() for name in copies.sources}) == LEAST + 10
    one = planted(train, groups, cache, n_groups=1)
    assert [len(copies.sources) for copies in one.values()] == [1] * len(one)


def same(copies, others):
    return copies.sources == others.sources and np.array_equal(copies.evidence, others.evidence)


def test_the_same_seed_plants_the_same_copies_and_another_one_others(large, found, tmp_path):
    train, groups, cache = large
    again = planted(train, groups, tmp_path)
    assert all(same(again[kind], copies) for kind, copies in found.items())
    assert not same(planted(train, groups, cache, seed=1)["crop"], found["crop"])


def test_a_second_call_decodes_and_compares_nothing(large, found, monkeypatch):
    train, groups, cache = large
    for owner, name in ((images, "decode"), (images, "encode"), (sensitivity, "match")):
        monkeypatch.setattr(owner, name, lambda *given, **options: pytest.fail("a copy was made or matched again"))
    again = planted(train, groups, cache)
    assert all(same(again[kind], copies) for kind, copies in found.items())


def test_what_is_cached_is_of_this_content_descriptor_and_strength(large, found, monkeypatch, tmp_path):
    train, groups, cache = large

    class MadeAnew(Exception):
        pass

    def raising(*given, **options):
        raise MadeAnew

    monkeypatch.setattr(sensitivity, "_pictures", raising)
    planted(train, groups, cache)
    for name, value in (("VERSION", -1), ("LEAST", LEAST + 1), ("SHARE", 0.7)):
        with monkeypatch.context() as patch:
            patch.setattr(sensitivity, name, value)
            with pytest.raises(MadeAnew):
                planted(train, groups, cache)
    with pytest.raises(MadeAnew):
        planted_copies(train, groups, Phash(), Verify(top=2), cache=cache)
    with pytest.raises(MadeAnew):
        planted(train, groups, cache, register=Register())
    # The copies are matched against the whole set: another image in it, and what was found no longer holds.
    shutil.copytree(train.corpus.origin, tmp_path / "more")
    shutil.copy(tmp_path / "more" / train.ids[0], tmp_path / "more" / "zz.png")
    with pytest.raises(MadeAnew):
        planted(*described(tmp_path / "more", cache), cache)


def test_small_sets_get_several_copies_an_image(tmp_path):
    world = worlds.world(tmp_path / "world", 7, 1, 1, duplicates=(), seed=5)
    train, groups = described(world.train, tmp_path / "cache")
    for copies in planted(train, groups, tmp_path / "cache").values():
        assert len(copies.sources) >= LEAST
        assert {copies.sources.count(name) for name in copies.sources} == {-(-LEAST // 7)}


def test_an_image_that_is_gone_or_torn_since_is_left_out(tmp_path):
    world = worlds.world(tmp_path / "world", 6, 1, 1, duplicates=(), seed=6)
    train, groups = described(world.train, tmp_path / "cache")
    (world.train / "0002.png").unlink()
    (world.train / "0003.png").write_bytes(b"torn")
    found = planted(train, groups, tmp_path / "cache")
    assert set(found["light"].sources) == {f"000{number}.png" for number in (0, 1, 4, 5)}
    shutil.rmtree(world.train)
    with pytest.raises(InputError, match="can be read again"):
        planted(train, groups, tmp_path / "cache", seed=9)


def test_no_groups_are_refused(large):
    train, groups, cache = large
    with pytest.raises(InputError, match="at least one training group"):
        planted(train, groups, cache, n_groups=0)


def test_silence_is_worth_something_only_where_it_was_measured():
    rng = np.random.default_rng(0)
    calibration = Calibration("held-out", rng.normal(0.4, 0.05, (800, 2)), 0, "")
    scores = rng.normal(0.3, 0.05, (400, 2))
    seen = {kind: Planted(np.full((200, 2), 0.99)) for kind in KINDS}
    assert verdict(scores, calibration, planted=seen).answer == "no copies found"
    for unmeasured, why in ((None, "--sensitivity 0"), ({}, "training images are blank")):
        found = verdict(scores, calibration, planted=unmeasured)
        assert found.answer == "cannot tell"
        assert any(why in reason for reason in found.reasons)
        assert found.sensitivity == {}
    for kind in MUST_SEE:
        blind = seen | {kind: Planted(np.full((200, 2), -0.5))}
        assert verdict(scores, calibration, planted=blind).answer == "cannot tell"


def test_an_audit_without_sensitivity_never_says_no_copies_found(tmp_path):
    import copyscope

    world = worlds.world(tmp_path, 20, 80, 130, copies=0.0, duplicates=(), seed=7)
    found = copyscope.audit(world.generated, world.train, world.held_out, "phash", sensitivity=0).summary
    assert found["verdict"]["answer"] == "cannot tell"
    assert found["sensitivity"] is None
    assert found["estimated_rate"]["value"] is None
