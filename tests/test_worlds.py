from __future__ import annotations

import hashlib
import json
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from copyscope.imaging import images
from tests import worlds


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> worlds.World:
    return worlds.world(tmp_path_factory.mktemp("world") / "w", n_train=24, n_generated=20, n_held_out=8)


def rows(folder: Path) -> dict[str, dict[str, Any]]:
    lines = (folder / "metadata.jsonl").read_text(encoding="utf-8").splitlines()
    return {row.pop("file_name"): row for row in map(json.loads, lines)}


def bytes_of(folder: Path) -> dict[str, str]:
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def alikeness(a: images.Image, b: images.Image) -> float:
    """Correlation of 24 px grey thumbnails."""
    left, right = (images.luma(images.resize(image, (24, 24))).ravel() for image in (a, b))
    return float(np.corrcoef(left, right)[0, 1])


def test_a_world_has_the_images_it_was_asked_for(world: worlds.World) -> None:
    for folder, n in ((world.train, 24), (world.generated, 20), (world.held_out, 8)):
        found = rows(folder)
        assert len(found) == n
        assert set(found) == {path.name for path in folder.glob("*.png")}
        for name in found:
            height, width, channels = images.decode(folder / name).shape
            assert 96 <= height <= 160
            assert 96 <= width <= 160
            assert channels == 3
    assert all(len(row["captions"]) == 2 for row in rows(world.train).values())
    assert all(row["prompt"] for row in rows(world.generated).values())


def test_truth_covers_every_generated_image(world: worlds.World) -> None:
    assert set(world.truth) == set(world.kinds) == set(rows(world.generated))
    copies = {name: source for name, source in world.truth.items() if source is not None}
    assert len(copies) == 8
    assert set(copies.values()) <= set(rows(world.train))
    assert all((world.kinds[name] == "") == (source is None) for name, source in world.truth.items())
    assert {world.group[source] for source in copies.values() if source in world.group} == {0, 1, 2}
    assert set(world.kinds.values()) == {"", "exact", "light_copy", "blur", "jpeg", "shift"}


def test_copies_look_like_their_source_and_nothing_else_does(world: worlds.World) -> None:
    train = {name: images.decode(world.train / name) for name in rows(world.train)}
    for name, source in world.truth.items():
        image = images.decode(world.generated / name)
        alike = {other: alikeness(image, candidate) for other, candidate in train.items()}
        best = max(alike, key=lambda other: alike[other])
        if source is None:
            assert alike[best] < 0.85
        else:
            assert alike[source] > 0.9
            assert best == source or world.group[best] == world.group[source]
        if world.kinds[name] == "exact":
            assert source is not None
            assert np.array_equal(image, train[source])


def test_training_images_repeat_only_inside_their_group(world: worlds.World) -> None:
    train = {name: images.decode(world.train / name) for name in rows(world.train)}
    names = sorted(train)
    for index, a in enumerate(names):
        for b in names[index + 1 :]:
            together = a in world.group and world.group.get(a) == world.group.get(b)
            assert (alikeness(train[a], train[b]) > 0.85) == together, (a, b)


def test_groups_have_their_sizes_captions_and_one_exact_pair(world: worlds.World) -> None:
    assert Counter(world.group.values()) == {0: 2, 1: 3, 2: 5}
    assert world.duplication == {0: "full", 1: "partial", 2: "full"}
    captions = rows(world.train)
    for group, kind in world.duplication.items():
        members = [name for name, of in world.group.items() if of == group]
        said = {tuple(captions[name]["captions"]) for name in members}
        assert len(said) == (1 if kind == "full" else len(members))
        pixels = Counter(hashlib.sha256((world.train / name).read_bytes()).hexdigest() for name in members)
        assert sorted(pixels.values(), reverse=True) == [2] + [1] * (len(members) - 2)


def test_other_images_have_captions_of_their_own(world: worlds.World) -> None:
    alone = [row["captions"][0] for name, row in rows(world.train).items() if name not in world.group]
    assert len({caption.rpartition("number ")[2] for caption in alone}) == len(alone)


def test_a_seed_decides_every_byte(tmp_path: Path) -> None:
    sizes = {"n_train": 12, "n_generated": 6, "n_held_out": 2}
    first = worlds.world(tmp_path / "a", **sizes, seed=3)
    again = worlds.world(tmp_path / "b", **sizes, seed=3)
    other = worlds.world(tmp_path / "c", **sizes, seed=4)
    assert bytes_of(first.folder) == bytes_of(again.folder)
    assert first.truth == again.truth
    assert not set(bytes_of(first.folder).values()) & set(bytes_of(other.folder).values())


def test_a_world_may_be_plain(tmp_path: Path) -> None:
    world = worlds.world(tmp_path / "w", 4, 3, 0, copies=0, duplicates=())
    assert world.group == {}
    assert set(world.truth.values()) == {None}
    assert rows(world.held_out) == {}


@pytest.mark.parametrize("duplicates", [[(30, "full")], [(1, "full")], [(2, "some")]])
def test_impossible_duplicates_are_refused(tmp_path: Path, duplicates: list[tuple[int, str]]) -> None:
    with pytest.raises(ValueError, match="duplicates are"):
        worlds.world(tmp_path / "w", n_train=20, duplicates=duplicates)
    assert not (tmp_path / "w").exists()


@pytest.mark.parametrize("kind", worlds.ALTERATIONS)
@settings(max_examples=15, deadline=None)
@given(height=st.integers(1, 60), width=st.integers(1, 60), seed=st.integers(0, 2**32))
def test_an_alteration_keeps_the_size_and_the_original(kind: str, height: int, width: int, seed: int) -> None:
    image = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    before = image.copy()
    altered = worlds.alter(image, kind, np.random.default_rng(seed))
    assert altered.shape == image.shape
    assert altered.dtype == np.uint8
    assert np.array_equal(image, before)
    assert np.array_equal(altered, worlds.alter(image, kind, np.random.default_rng(seed)))


@pytest.mark.parametrize("kind", worlds.ALTERATIONS)
def test_an_alteration_changes_the_picture(kind: str) -> None:
    image, _ = worlds.picture(np.random.default_rng(5))
    assert not np.array_equal(worlds.alter(image, kind, np.random.default_rng(0)), image)


def test_light_alterations_stay_close() -> None:
    image, _ = worlds.picture(np.random.default_rng(5))
    for kind in ("jpeg", "blur", "noise", "shift", "light_copy"):
        altered = worlds.alter(image, kind, np.random.default_rng(1))
        assert alikeness(image, altered) > 0.9, kind
    noise = worlds.alter(np.full((64, 64, 3), 128, np.uint8), "noise", np.random.default_rng(1))
    assert 4.5 < noise.std() < 5.5


def test_flip_swaps_left_and_right() -> None:
    image, _ = worlds.picture(np.random.default_rng(6))
    assert np.array_equal(worlds.alter(image, "flip", np.random.default_rng(0))[:, ::-1], image)


def test_shift_is_by_one_to_four_pixels() -> None:
    image = np.zeros((21, 21, 3), np.uint8)
    image[10, 10] = 255
    for seed in range(20):
        row, column = (
            int(place[0]) for place in np.nonzero(worlds.alter(image, "shift", np.random.default_rng(seed))[:, :, 0])
        )
        assert 1 <= abs(row - 10) <= 4
        assert 1 <= abs(column - 10) <= 4


def test_inset_is_in_the_background() -> None:
    image, background = np.full((100, 100, 3), 200, np.uint8), np.full((30, 50, 3), 10, np.uint8)
    altered = worlds.alter(image, "inset", np.random.default_rng(0), background=background)
    assert (altered == 200).all(axis=2).sum() == 60 * 60
    assert (altered == 10).all(axis=2).sum() == 100 * 100 - 60 * 60


def test_crop_keeps_seventy_percent() -> None:
    ramp = np.repeat(np.repeat(np.arange(100, dtype=np.uint8)[None, :, None], 100, axis=0), 3, axis=2)
    altered = worlds.alter(ramp, "crop", np.random.default_rng(0))
    assert 67 <= int(altered.max()) - int(altered.min()) <= 72


def test_unknown_alteration_lists_them() -> None:
    with pytest.raises(ValueError, match="there are: jpeg, crop"):
        worlds.alter(np.zeros((4, 4, 3), np.uint8), "melt", np.random.default_rng(0))
