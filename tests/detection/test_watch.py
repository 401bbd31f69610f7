"""The watch says what an audit would, and looks at the training set once."""

from __future__ import annotations

import pytest

import copyscope
from copyscope import stats
from copyscope.detection import watch
from copyscope.errors import InputError

FAST = "sscd-distilled"


@pytest.mark.parametrize("held", [True, False])
def test_it_says_what_an_audit_says(world, held):
    held_out = world.held_out if held else None
    seen = watch.make_watch(world.train, held_out, FAST)(world.generated, [], 500)
    audited = copyscope.audit(world.generated, world.train, held_out, FAST, parts="off", sensitivity=0)
    assert seen.as_dict() == audited.summary["replication_rate"]
    assert seen.value > 0


def test_the_training_set_is_grouped_and_calibrated_on_once(world, tmp_path, monkeypatch):
    calls = []
    for name in ("duplicates", "embed"):
        plain = getattr(watch, name)
        monkeypatch.setattr(watch, name, lambda *a, name=name, plain=plain, **o: calls.append(name) or plain(*a, **o))
    look = watch.make_watch(world.train, world.held_out, FAST)
    assert not calls
    (tmp_path / "own.png").write_bytes((world.held_out / "0000.png").read_bytes())
    (tmp_path / "broken.png").write_bytes(b"")
    first = look(world.generated, [], 100)
    second = look(tmp_path, ["a caption"], 200)
    assert calls == ["embed", "duplicates", "embed", "embed", "embed"]
    assert first.n == 40
    assert second == stats.proportion(0, 1, missing=1)


def test_a_training_image_itself_is_a_copy_however_little_there_is_to_calibrate_on(world, tmp_path):
    (tmp_path / "held").mkdir()
    (tmp_path / "made").mkdir()
    (tmp_path / "held" / "a.png").write_bytes((world.held_out / "0000.png").read_bytes())
    (tmp_path / "made" / "copy.png").write_bytes((world.train / "0000.png").read_bytes())
    assert watch.make_watch(world.train, tmp_path / "held", FAST)(tmp_path / "made", [], 1).value == 1


def test_a_training_set_without_images_is_told(world, tmp_path):
    (tmp_path / "broken.png").write_bytes(b"")
    with pytest.raises(InputError, match="None of the 1 training images"):
        watch.make_watch(tmp_path, None, FAST)(world.generated, [], 1)
