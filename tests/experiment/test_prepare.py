"""Preparing images: who is chosen, that no two look alike, and that the same values give the same bytes."""

from __future__ import annotations

import json
import types

import numpy as np
import pytest

from copyscope.data import assets
from copyscope.data.corpus import Corpus
from copyscope.detection.embedding.embed import embed
from copyscope.errors import InputError
from copyscope.experiment.prepare import DataRecipe, _Distinct, prepare, source
from copyscope.imaging import images
from tests import worlds


@pytest.fixture(scope="module")
def families(tmp_path_factory):
    """24 pictures, each with a light copy of it beside: an imagefolder with captions and columns."""
    folder = worlds._Folder(tmp_path_factory.mktemp("families") / "all")
    for number in range(24):
        rng = np.random.default_rng([7, number])
        picture, caption = worlds.picture(rng)
        for member, image in enumerate((picture, worlds.light_copy(picture, rng))):
            kind = "even" if number % 2 == 0 else "odd"
            folder.add(image, captions=[caption, "another"], family=number, kind=kind, copy=member == 1)
    folder.close()
    return folder.path


def columns(corpus, name):
    return corpus.table[name].to_pylist()


def test_distinct_images_have_no_look_alike_on_either_side(families, tmp_path):
    values = {"train": str(families), "distinct": 0.7, "n_train": 8, "held_out": "rest", "size": 96}
    train, held_out = prepare(values, tmp_path / "data")
    both = columns(train, "family") + columns(held_out, "family")
    assert len(train) == 8
    assert len(held_out) >= 8
    assert len(set(both)) == len(both)
    chosen = [*columns(train, "original_id"), *columns(held_out, "original_id")]
    corpus = Corpus.open(families)
    vectors = embed(corpus.take([corpus.ids.index(name) for name in chosen]), "sscd_distilled").vectors
    alike = vectors @ vectors.T - 2 * np.eye(len(chosen))
    assert alike.max() <= 0.7


def test_without_distinct_families_are_split(families, tmp_path):
    train, held_out = prepare({"train": str(families), "n_train": 24, "held_out": "rest"}, tmp_path / "data")
    assert (len(train), len(held_out)) == (24, 24)
    assert set(columns(train, "family")) & set(columns(held_out, "family"))
    assert not set(columns(train, "original_id")) & set(columns(held_out, "original_id"))


def test_held_out_images_of_a_folder_are_kept_apart_too(families, tmp_path):
    values = {"train": str(families), "held_out": str(families), "distinct": 0.7, "n_train": 5, "n_held_out": 6}
    train, held_out = prepare(values, tmp_path / "data")
    assert (len(train), len(held_out)) == (5, 6)
    assert not set(columns(train, "family")) & set(columns(held_out, "family"))


def test_images_are_squares_on_white_with_all_their_columns(families, tmp_path):
    train, held_out = prepare({"train": str(families), "size": 32}, tmp_path / "data")
    assert held_out is None
    assert {images.decode(train.read(row)).shape for row in range(len(train))} == {(32, 32, 3)}
    assert [name.rpartition(".")[2] for name in train.ids] == ["png"] * 48
    before = Corpus.open(families)
    for row, origin in enumerate(columns(train, "original_id")):
        at = before.ids.index(origin)
        assert train.captions[row] == before.captions[at]
        assert columns(train, "kind")[row] == columns(before, "kind")[at]
        same = images.centre_crop(images.resize_short(images.decode(before.read(at)), 32, "bicubic"), 32)
        assert np.array_equal(images.decode(train.read(row)), same)


def test_rows_are_chosen_by_their_columns(families, tmp_path):
    train, _ = prepare({"train": str(families), "where": {"kind": "odd", "family": [1, 2, 3]}}, tmp_path / "one")
    assert sorted(columns(train, "family")) == [1, 1, 3, 3]
    with pytest.raises(InputError, match="no column 'colour'"):
        prepare({"train": str(families), "where": {"colour": "red"}}, tmp_path / "two")


def test_the_same_values_give_the_same_bytes_and_another_seed_others(families, tmp_path):
    values = {"train": str(families), "n_train": 6, "held_out": "rest", "size": 32}
    for name, seed in (("one", 0), ("two", 0), ("three", 1)):
        prepare(values | {"seed": seed}, tmp_path / name)
    one, two, three = (
        {path.relative_to(tmp_path / name): path.read_bytes() for path in (tmp_path / name).rglob("*.*")}
        for name in ("one", "two", "three")
    )
    assert one == two
    assert one.keys() != three.keys()


def test_what_is_made_is_kept_and_other_values_are_refused(families, tmp_path):
    values = {"train": str(families), "n_train": 6}
    train, _ = prepare(values, tmp_path / "data")
    file = tmp_path / "data" / "train" / train.ids[0]
    stamp = file.stat().st_mtime_ns
    prepare(DataRecipe(str(families), n_train=6), tmp_path / "data")
    assert file.stat().st_mtime_ns == stamp
    with pytest.raises(InputError, match="other values"):
        prepare(values | {"n_train": 7}, tmp_path / "data")


def test_what_was_broken_off_is_made_again_and_strangers_are_not_touched(families, tmp_path):
    values = {"train": str(families), "n_train": 6}
    prepare(values, tmp_path / "data")
    (tmp_path / "data" / "data.json").unlink()
    (tmp_path / "data" / "train" / "stray.png").write_bytes(b"")
    train, _ = prepare(values, tmp_path / "data")
    assert len(train) == 6
    assert "stray.png" not in train.ids
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("all of it")
    with pytest.raises(InputError, match="other things"):
        prepare(values, tmp_path / "mine")
    assert (tmp_path / "mine" / "thesis.txt").read_text() == "all of it"


def test_unreadable_images_are_passed_over_and_counted(families, tmp_path):
    folder = tmp_path / "sick"
    folder.mkdir()
    for number, path in enumerate(sorted(families.glob("*.png"))[:10]):
        (folder / path.name).write_bytes(b"" if number < 4 else path.read_bytes())
    train, _ = prepare({"train": str(folder)}, tmp_path / "data")
    summary = json.loads((tmp_path / "data" / "data.json").read_text())
    assert (len(train), summary["n_missing"], summary["n"]) == (6, 4, {"train": 6})
    assert summary["missing"]["0000.png"]
    with pytest.raises(InputError, match="6 readable train images of 8 wanted"):
        prepare({"train": str(folder), "n_train": 8}, tmp_path / "other")
    assert not (tmp_path / "other").exists()


def test_names_that_repeat_are_numbered(tmp_path):
    for folder in ("a", "b"):
        worlds._Folder(tmp_path / "all" / folder).add(worlds.picture(np.random.default_rng(1))[0])
    train, _ = prepare({"train": str(tmp_path / "all")}, tmp_path / "data")
    assert sorted(train.ids) == ["0000-2.png", "0000.png"]


def test_an_asset_must_have_been_fetched(tmp_path, monkeypatch):
    with pytest.raises(InputError, match="copyscope fetch fluent-emoji"):
        source("asset:fluent-emoji")
    worlds._Folder(tmp_path / "asset").add(worlds.picture(np.random.default_rng(1))[0])
    monkeypatch.setattr(assets, "is_fetched", lambda name: name == "fluent-emoji")
    monkeypatch.setattr(assets, "fetch", lambda name: tmp_path / "asset")
    assert source("asset:fluent-emoji").ids == ["0000.png"]


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"distinct": 1}, "distinct must be"),
        ({"n_train": -1}, "n_train must be 0 or more"),
        ({"held_out": "rest"}, "leaves nothing"),
        ({"trian": "x"}, "Did you mean 'train'"),
    ],
)
def test_values_are_checked(values, said, tmp_path):
    with pytest.raises(InputError, match=said):
        prepare({"train": "nowhere"} | values, tmp_path)


@pytest.mark.parametrize(("similarity", "joined"), [(0.75, [0, 1]), (np.nextafter(0.75, 1), [0])])
def test_two_images_as_alike_as_the_bar_are_both_kept(families, monkeypatch, similarity, joined):
    vectors = np.array([[1.0, 0.0], [similarity, 0.5]])
    described = types.SimpleNamespace(rows=np.arange(2), vectors=vectors)
    monkeypatch.setattr("copyscope.detection.embedding.embed.embed", lambda *given, **options: described)
    assert _Distinct(0.75).add(Corpus.open(families), [0, 1], 0, None) == joined
