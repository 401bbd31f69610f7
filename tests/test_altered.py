from __future__ import annotations

import hashlib
import json
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from copyscope.errors import InputError
from copyscope.imaging import images
from tests import worlds

sys.path.insert(0, str(Path(__file__).parents[1] / "benchmarks"))

import altered

TONES = ("", "light", "dark")


def picture(seed: int, tone: int) -> images.Image:
    """A coloured figure on white; the tone changes its colour a little."""
    rng = np.random.default_rng(seed)
    blocks = (rng.random((6, 6, 1)) < 0.5) * (255 - rng.integers(0, 200, 3))
    small = np.clip(255 - blocks + 12 * tone, 0, 255).astype(np.uint8)
    return images.resize(small, (64, 64), "nearest")


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small set in the layout of `fetch("fluent-emoji")`: 120 families, every fourth in three tones."""
    folder = tmp_path_factory.mktemp("source")
    (folder / "images").mkdir()
    rows: list[dict[str, object]] = []
    for family in range(120):
        for tone in range(3 if family % 4 == 0 else 1):
            # Family 1 is drawn as family 0 is: two families that make one crowd.
            image, name = picture(0 if family == 1 else family, tone), f"images/{family:03d}-{tone}.png"
            (folder / name).write_bytes(images.encode(image, "png") + b"after the end")
            caption = f"thing {family}" + (f": {TONES[tone]}" if tone else "")
            rows.append({"file_name": name, "captions": [caption, f"a {caption}"], "base": f"thing {family}"})
    worlds.write_metadata(folder, rows)
    return folder


SIZES: dict[str, Any] = {"n_train": 60, "n_held_out": 20, "n_generated": 36}


@pytest.fixture(scope="module")
def made(source: Path, tmp_path_factory: pytest.TempPathFactory) -> altered.Altered:
    return altered.build(tmp_path_factory.mktemp("altered") / "d", source, **SIZES)


def rows(folder: Path) -> dict[str, dict[str, Any]]:
    lines = (folder / "metadata.jsonl").read_text(encoding="utf-8").splitlines()
    return {row.pop("file_name"): row for row in map(json.loads, lines)}


def bytes_of(folder: Path) -> dict[str, str]:
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def test_three_imagefolders_and_their_truth(made: altered.Altered, source: Path) -> None:
    for folder, n in ((made.train, 60), (made.held_out, 20), (made.generated, 36)):
        found = rows(folder)
        assert len(found) == n
        assert {path.relative_to(folder).as_posix() for path in folder.rglob("*.png")} == set(found)
    original = rows(source)
    for folder in (made.train, made.held_out):
        for name, row in rows(folder).items():
            assert row == original[name]
            assert (folder / name).read_bytes() == (source / name).read_bytes(), "originals are kept as they are"
    assert set(made.source) == set(made.kind) == set(rows(made.generated))
    assert set(made.family) == set(rows(made.train))
    assert altered.Altered.load(made.folder) == made


def test_copies_are_of_every_kind_and_of_training_images(made: altered.Altered) -> None:
    assert Counter(made.kind.values()) == {"": 18} | dict.fromkeys(altered.KINDS, 3)
    copied = [origin for origin in made.source.values() if origin is not None]
    assert len(set(copied)) == len(copied) == 18
    assert set(copied) <= set(made.family)
    assert all((origin is None) == (made.kind[name] == "") for name, origin in made.source.items())
    captions, prompts = rows(made.train), rows(made.generated)
    for name, origin in made.source.items():
        if origin is not None:
            assert prompts[name]["prompt"] == captions[origin]["captions"][0]
    order = [made.kind[name] == "" for name in sorted(made.kind)]
    assert order != sorted(order), "copies and unseen images are mixed"


def test_a_flipped_copy_is_its_source_flipped(made: altered.Altered) -> None:
    for name in (name for name, kind in made.kind.items() if kind == "flip"):
        image = images.decode(made.generated / name)
        assert np.array_equal(image[:, ::-1], images.decode(made.train / str(made.source[name])))


def test_no_family_is_on_two_sides(made: altered.Altered, source: Path) -> None:
    by_caption = {row["captions"][0]: row["base"] for row in rows(source).values()}
    train = {row["base"] for row in rows(made.train).values()}
    held_out = [row["base"] for row in rows(made.held_out).values()]
    prompts = rows(made.generated)
    unseen = [by_caption[prompts[name]["prompt"]] for name, origin in made.source.items() if origin is None]
    assert len(set(held_out)) == len(held_out), "a held-out image stands for its family alone"
    assert len(set(unseen)) == len(unseen)
    assert not train & set(held_out)
    assert not train & set(unseen)
    assert not set(held_out) & set(unseen)
    assert max(Counter(made.family.values()).values()) == 3, "the near-duplicates of training images stay"


@pytest.mark.parametrize("seed", range(6))
def test_families_that_look_alike_go_to_one_side(source: Path, tmp_path: Path, seed: int) -> None:
    made = altered.build(tmp_path / "d", source, **SIZES, seed=seed)
    sides = [
        {row["base"] for row in rows(made.train).values()},
        {row["base"] for row in rows(made.held_out).values()},
        {rows(made.generated)[name]["prompt"].partition(":")[0] for name in made.source if made.source[name] is None},
    ]
    assert sum(bool(side & {"thing 0", "thing 1"}) for side in sides) <= 1


def test_a_large_crowd_is_cut(source: Path, tmp_path: Path) -> None:
    made = altered.build(tmp_path / "d", source, **SIZES, largest_crowd=2)
    assert max(Counter(made.family.values()).values()) == 2


def test_the_same_arguments_give_the_same_bytes(made: altered.Altered, source: Path, tmp_path: Path) -> None:
    again = altered.build(tmp_path / "again", source, **SIZES)
    assert bytes_of(again.folder) == bytes_of(made.folder)
    other = altered.build(tmp_path / "other", source, **SIZES, seed=1)
    assert other.source != made.source
    assert other.family != made.family, "the seed decides what is trained on, too"


def test_a_set_is_kept_or_made_anew(source: Path, tmp_path: Path) -> None:
    made = altered.build(tmp_path / "d", source, **SIZES)
    (made.train / "mark").touch()
    assert altered.build(tmp_path / "d", source, **SIZES) == made
    assert (made.train / "mark").exists(), "the same arguments: nothing was written"
    (tmp_path / "d" / "report.html").touch()
    other = altered.build(tmp_path / "d", source, **SIZES, seed=1)
    assert other != made
    assert not (other.train / "mark").exists()
    assert (tmp_path / "d" / "report.html").exists(), "what is not the set's stays"
    assert not list(tmp_path.glob(".d.*")), "no temporary folder is left"


def test_a_small_source_shrinks_the_set(source: Path, tmp_path: Path) -> None:
    made = altered.build(tmp_path / "d", source, n_train=8000, n_held_out=3000, n_generated=2400)
    held_out = len(rows(made.held_out))
    unseen = sum(origin is None for origin in made.source.values())
    assert 0 < unseen < held_out
    assert len(made.family) > held_out


def test_a_foreign_folder_is_left_alone(source: Path, tmp_path: Path) -> None:
    (tmp_path / "thesis.doc").write_text("years of work")
    with pytest.raises(InputError, match="is not empty and holds no such set"):
        altered.build(tmp_path, source, **SIZES)
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.doc"]


def test_a_source_that_is_none(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="copyscope fetch fluent-emoji"):
        altered.build(tmp_path / "d", tmp_path / "nowhere")
    worlds.write_metadata(tmp_path, [])
    with pytest.raises(InputError, match="has no pictures"):
        altered.build(tmp_path / "d", tmp_path)
    (tmp_path / "0.png").write_bytes(images.encode(picture(0, 0), "png"))
    worlds.write_metadata(tmp_path, [{"file_name": "0.png", "captions": ["one"], "base": "one"}])
    with pytest.raises(InputError, match="too few"):
        altered.build(tmp_path / "d", tmp_path)
    with pytest.raises(InputError, match="was not made here"):
        altered.Altered.load(tmp_path / "d")


def copies(flagged: dict[str, str]) -> dict[str, Any]:
    return {"copies": [{"id": name, "match": match} for name, match in flagged.items()]}


def test_a_perfect_audit_scores_one(made: altered.Altered) -> None:
    found = altered.score(made, copies({name: origin for name, origin in made.source.items() if origin is not None}))
    assert (found["precision"].value, found["precision"].n) == (1, 18)
    assert (found["recall"].value, found["recall"].n) == (1, 18)
    assert set(found["recall_by_kind"]) == set(altered.KINDS)
    assert all((estimate.value, estimate.n) == (1, 3) for estimate in found["recall_by_kind"].values())
    assert (found["false_alarms"].value, found["false_alarms"].n) == (0, 18)
    assert found["misattributed"].value == 0


def test_a_blind_audit_scores_zero(made: altered.Altered) -> None:
    found = altered.score(made, copies({}))
    assert np.isnan(found["precision"].value)
    assert found["recall"].value == 0
    assert found["precision"].n == 0


def test_score_by_hand() -> None:
    """Five generated images: two copies found (one by a member of its family), one matched wrongly, a false alarm."""
    made = altered.Altered(
        Path("set"),
        source={"0": "a1", "1": "b", "2": "c", "3": None, "4": None},
        kind={"0": "crop", "1": "flip", "2": "flip", "3": "", "4": ""},
        family={"a1": "a", "a2": "a", "b": "b", "c": "c"},
    )
    found = altered.score(made, copies({"0": "a2", "1": "b", "2": "a1", "3": "c"}))
    assert (found["precision"].value, found["precision"].n) == (2 / 4, 4)
    assert (found["recall"].value, found["recall"].n) == (2 / 3, 3)
    assert found["recall_by_kind"]["crop"].value == 1
    assert (found["recall_by_kind"]["flip"].value, found["recall_by_kind"]["flip"].n) == (1 / 2, 2)
    assert (found["false_alarms"].value, found["false_alarms"].n) == (1 / 2, 2)
    assert (found["misattributed"].value, found["misattributed"].n) == (1 / 3, 3)


def test_score_refuses_another_audit(made: altered.Altered) -> None:
    with pytest.raises(InputError, match="not of this set"):
        altered.score(made, copies({"elsewhere.png": "a"}))
