"""Planted copies: the same again, from the cache, one image a group, and nothing is said without them."""

from __future__ import annotations

import shutil

import numpy as np
import pytest

from copyscope import images, worlds
from copyscope.copying import sensitivity
from copyscope.copying.alterations import KINDS
from copyscope.copying.answer import MUST_SEE
from copyscope.copying.descriptors.phash import Phash
from copyscope.copying.duplicates import duplicates
from copyscope.copying.embed import embed
from copyscope.copying.replication import Calibration, Planted, verdict
from copyscope.copying.sensitivity import LEAST, planted_copies
from copyscope.copying.verify import Verify
from copyscope.corpus import Corpus
from copyscope.errors import InputError


def described(folder, cache):
    train = embed(Corpus.open(folder), Phash(), cache=cache)
    return train, duplicates(train, 0.9, cache=cache)


def planted(train, groups, cache, **options):
    return planted_copies(train, groups, Phash(), Verify(), cache=cache, **options)


def sources(matches):
    return matches.queries.corpus.table["source"].to_pylist()


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
    for matches in found.values():
        assert matches.references is train
        assert matches.queries.fingerprint == train.fingerprint
        assert np.isfinite(matches.evidence).all()
    light = found["light"]
    own = [train.corpus.id_of(train.rows[place]) for place in light.match]
    group = dict(zip(train.ids, groups.label.tolist(), strict=True))
    right = [group[mine] == group[source] for mine, source in zip(own, sources(light), strict=True)]
    assert np.mean(right) > 0.95


def test_one_image_a_group_is_planted_and_of_other_kinds_every_second(large, found):
    train, groups, _ = large
    label = dict(zip(train.ids, groups.label.tolist(), strict=True))
    n = len(np.unique(groups.label))
    assert LEAST < n < len(train.rows)
    for kind, matches in found.items():
        names = sources(matches)
        assert len(names) == len({label[name] for name in names}) == (n if kind in MUST_SEE else -(-n // 2))


def test_no_more_groups_than_asked_are_planted(large):
    train, groups, cache = large
    few = planted(train, groups, cache, n_groups=LEAST + 10)
    assert len(few["light"].queries.rows) == LEAST + 10
    assert set(sources(few["light"])) < set(sources(planted(train, groups, cache, n_groups=10**6)["light"]))


def test_the_same_seed_plants_the_same_copies_and_another_one_others(large, found, tmp_path):
    train, groups, cache = large
    again = planted(train, groups, tmp_path)
    other = planted(train, groups, cache, seed=1)
    for kind, matches in found.items():
        np.testing.assert_array_equal(again[kind].queries.vectors, matches.queries.vectors)
        np.testing.assert_array_equal(again[kind].evidence, matches.evidence)
    assert not np.array_equal(other["crop"].queries.vectors, found["crop"].queries.vectors)


def test_a_second_call_decodes_nothing(large, found, monkeypatch):
    train, groups, cache = large
    for name in ("decode", "encode"):
        monkeypatch.setattr(images, name, lambda *given, **options: pytest.fail("a picture was decoded again"))
    again = planted(train, groups, cache)
    for kind, matches in found.items():
        np.testing.assert_array_equal(again[kind].evidence, matches.evidence)


def test_what_is_cached_is_of_this_content_descriptor_and_strength(large, found, monkeypatch):
    train, groups, cache = large
    made = []
    monkeypatch.setattr(sensitivity, "_made", lambda *given, **options: made.append(1) or pytest.skip.Exception)
    monkeypatch.setattr(sensitivity.pq, "write_table", lambda *given: None)
    monkeypatch.setattr(sensitivity, "write_file", lambda *given: (_ for _ in ()).throw(KeyError("made anew")))
    planted(train, groups, cache)
    for name, value in (("VERSION", -1), ("LEAST", LEAST + 1)):
        with monkeypatch.context() as patch:
            patch.setattr(sensitivity, name, value)
            with pytest.raises(KeyError, match="made anew"):
                planted(train, groups, cache)
    with pytest.raises(KeyError, match="made anew"):
        planted_copies(train, groups, Phash(), Verify(top=2), cache=cache)
    assert len(made) == 3


def test_small_sets_get_several_copies_an_image(tmp_path):
    world = worlds.world(tmp_path / "world", 7, 1, 1, duplicates=(), seed=5)
    train, groups = described(world.train, tmp_path / "cache")
    copies = planted(train, groups, tmp_path / "cache")
    for matches in copies.values():
        names = sources(matches)
        assert len(names) >= LEAST
        assert {names.count(name) for name in names} == {-(-LEAST // 7)}
        assert len(set(matches.queries.ids)) == len(names), "each copy is another one"


def test_an_image_that_is_gone_or_torn_since_is_left_out(tmp_path):
    world = worlds.world(tmp_path / "world", 6, 1, 1, duplicates=(), seed=6)
    train, groups = described(world.train, tmp_path / "cache")
    (world.train / "0002.png").unlink()
    (world.train / "0003.png").write_bytes(b"torn")
    found = planted(train, groups, tmp_path / "cache")
    assert set(sources(found["light"])) == {f"000{number}.png" for number in (0, 1, 4, 5)}
    shutil.rmtree(world.train)
    with pytest.raises(InputError, match="can be read again"):
        planted(train, groups, tmp_path / "cache", seed=9)


def test_no_groups_are_refused(large):
    train, groups, cache = large
    with pytest.raises(InputError, match="at least one training group"):
        planted(train, groups, cache, n_groups=0)


def test_silence_is_worth_something_only_where_it_was_measured():
    rng = np.random.default_rng(0)
    calibration = Calibration("held-out", rng.normal(size=(800, 2)), 0, "")
    scores = rng.normal(size=(400, 2)) - 1
    seen = {kind: Planted(np.full((200, 2), 9.0)) for kind in KINDS}
    assert verdict(scores, calibration, planted=seen).answer == "no copies found"
    for unmeasured in (None, {}):
        found = verdict(scores, calibration, planted=unmeasured)
        assert found.answer == "cannot tell"
        assert any("--sensitivity 0" in reason for reason in found.reasons)
        assert found.sensitivity == {}
    for kind in MUST_SEE:
        blind = seen | {kind: Planted(np.full((200, 2), -9.0))}
        assert verdict(scores, calibration, planted=blind).answer == "cannot tell"


def test_an_audit_without_sensitivity_never_says_no_copies_found(tmp_path):
    import copyscope

    world = worlds.world(tmp_path, 20, 80, 130, copies=0.0, duplicates=(), seed=7)
    found = copyscope.audit(world.generated, world.train, world.held_out, "phash", sensitivity=0).summary
    assert found["verdict"]["answer"] == "cannot tell"
    assert found["sensitivity"] is None
    assert found["estimated_rate"]["value"] is None
