"""Splits: never merged unasked, chosen by name."""

from __future__ import annotations

import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from typer.testing import CliRunner

from copyscope.cli import main
from copyscope.data.corpus import Corpus
from copyscope.data.folders import splits
from copyscope.errors import InputError
from tests.data.test_shards import write_tar
from tests.pictures import fill, picture, write


def parquet(path, n, first=0):
    path.parent.mkdir(parents=True, exist_ok=True)
    kind = pa.struct({"bytes": pa.binary(), "path": pa.string()})
    cells = [{"bytes": picture(first + number), "path": f"{first + number}.png"} for number in range(n)]
    pq.write_table(pa.table({"image": pa.array(cells, kind), "text": [f"t{first + each}" for each in range(n)]}), path)


def hub(folder):
    for number, (split, n) in enumerate([("train", 3), ("validation", 2), ("test", 1)]):
        parquet(folder / "data" / f"{split}-00000-of-00001.parquet", n, 10 * number)
    return folder


def test_several_splits_without_a_choice_are_listed_with_what_to_type(tmp_path):
    with pytest.raises(InputError) as caught:
        Corpus.open(hub(tmp_path))
    first, then = str(caught.value).split("\n")
    assert first.endswith("several splits: train (1 files), validation (1 files), test (1 files).")
    for typed in (f"{tmp_path}@train", "--split train", "split='train'", f"{tmp_path}@all"):
        assert typed in then


@pytest.mark.parametrize(
    ("asked", "n", "split"), [("train", 3, "train"), ("val", 2, "validation"), ("test", 1, "test")]
)
def test_a_split_is_chosen_by_path_or_argument(tmp_path, asked, n, split):
    hub(tmp_path)
    for corpus in (Corpus.open(f"{tmp_path}@{asked}"), Corpus.open(tmp_path, split=asked)):
        assert len(corpus) == n
        assert corpus.table["split"].to_pylist() == [split] * n
        assert (corpus.account.split, corpus.origin) == (split, str(tmp_path))
        assert sum(isinstance(content, bytes) for _, content in corpus.stream()) == n


def test_all_splits_are_read_when_asked_for_and_stay_told_apart(tmp_path):
    corpus = Corpus.open(f"{hub(tmp_path)}@all")
    assert sorted(corpus.table["split"].to_pylist()) == ["test", "train", "train", "train", "validation", "validation"]


@pytest.mark.parametrize(
    "names",
    [
        ["train/a.png", "test/b.png", "test/c.png"],
        ["data/train/a.png", "data/test/b.png", "data/test/c.png"],
        ["train2017/a.png", "test2017/b.png", "test2017/c.png"],
        ["images/train/a.png", "images/test/b.png", "images/test/c.png"],
        ["train/images/a.png", "test/images/b.png", "test/images/c.png"],
    ],
)
def test_folders_are_splits_and_no_classes(tmp_path, names):
    fill(tmp_path, *names)
    with pytest.raises(InputError, match=r"train \(1 images\), test \(2 images\)"):
        Corpus.open(tmp_path)
    corpus = Corpus.open(f"{tmp_path}@test")
    assert corpus.ids == names[1:]
    inside = "images" if names[0].startswith("train/images") else None
    found = corpus.table["class"].to_pylist() if "class" in corpus.table.column_names else [None, None]
    assert found == [inside] * 2


def test_classes_within_splits_are_classes(tmp_path):
    fill(tmp_path, "train/cat/a.png", "train/dog/b.png", "val/cat/c.png")
    assert Corpus.open(f"{tmp_path}@train").table["class"].to_pylist() == ["cat", "dog"]


@pytest.mark.parametrize("names", [["train/a.png", "car/b.png", "bus/c.png"], ["test_a/a.png", "test_b/b.png"]])
def test_a_class_named_like_a_split_is_a_class(tmp_path, names):
    corpus = Corpus.open(fill(tmp_path, *names))
    assert corpus.ids == sorted(names)
    if "train/a.png" in names:
        assert corpus.table["class"].to_pylist() == ["bus", "car", "train"]
        assert "split" not in corpus.table.column_names


def test_one_split_needs_no_choice(tmp_path):
    parquet(tmp_path / "train-00000-of-00001.parquet", 2)
    assert Corpus.open(tmp_path).table["split"].to_pylist() == ["train"] * 2
    assert len(Corpus.open(f"{tmp_path}@train")) == 2
    fill(tmp_path / "plain", "a.png")
    with pytest.raises(InputError, match=r"no split 'train'\.\nIt has no splits"):
        Corpus.open(f"{tmp_path / 'plain'}@train")
    with pytest.raises(InputError, match=r"no split 'tset'\.\nThere are: train"):
        Corpus.open(f"{tmp_path}@tset")


def test_tars_have_splits_too(tmp_path):
    write_tar(tmp_path / "cc-train-0000.tar", {"a.png": picture(1)})
    write_tar(tmp_path / "cc-validation-0000.tar", {"b.png": picture(2)})
    with pytest.raises(InputError, match="several splits"):
        Corpus.open(tmp_path)
    corpus = Corpus.open(f"{tmp_path}@validation")
    assert corpus.ids == ["b"]
    assert corpus.account.unused["of the split 'train'"].names == ["cc-train-0000.tar"]


def test_a_column_of_splits_and_tables_named_for_them_are_splits(tmp_path):
    rows = [
        {"file_name": f"{name}.png", "split": split} for name, split in [("a", "train"), ("b", "val"), ("c", "train")]
    ]
    fill(tmp_path, "a.png", "b.png", "c.png", "d.png")
    write(tmp_path, {"metadata.jsonl": "".join(json.dumps(row) + "\n" for row in rows)})
    with pytest.raises(InputError, match=r"train \(2 images\), val \(1 images\)"):
        Corpus.open(tmp_path)
    corpus = Corpus.open(f"{tmp_path}@train")
    assert corpus.ids == ["a.png", "c.png"]
    assert "images in no split, which are not read: 1" in corpus.account.line()
    (tmp_path / "metadata.jsonl").unlink()
    write(tmp_path, {"train.csv": "image,text\na.png,x\nb.png,y\n", "test.csv": "image,text\nc.png,z\n"})
    assert Corpus.open(f"{tmp_path}@test").captions == [["z"]]
    assert Corpus.open(f"{tmp_path}@train").captions == [["x"], ["y"]]


def test_what_is_listed_and_absent_is_an_error_in_every_split(tmp_path):
    fill(tmp_path, "train/a.png", "test/b.png")
    write(tmp_path, {"metadata.csv": "file_name\ntrain/a.png\ntrain/gone.png\ntest/lost.png\nnowhere.png\n"})
    assert Corpus.open(f"{tmp_path}@train").ids == ["nowhere.png", "train/a.png", "train/gone.png"]


def test_an_at_in_a_path_is_part_of_it_where_there_is_such_a_path(tmp_path):
    fill(tmp_path / "set@train", "a.png")
    assert Corpus.open(tmp_path / "set@train").ids == ["a.png"]


@pytest.mark.parametrize(
    ("name", "split"),
    [
        ("train-00000-of-00001.parquet", "train"),
        ("dev.tar", "validation"),
        ("imagefolder-test-00000-of-00002.arrow", "test"),
        ("data/in_domain-00000-of-00003.parquet", "in_domain"),
        ("data-00000-of-00001.arrow", None),
        ("trainer.tar", None),
        ("00000.tar", None),
        ("my_train_set.csv", "train"),
    ],
)
def test_the_split_of_a_file(name, split):
    assert splits.of_file(name) == split


def test_the_command_says_which_split_it_reads(tmp_path):
    run = CliRunner().invoke
    found = run(main.app, ["duplicates", str(hub(tmp_path)), "-p", "phash", "--json"])
    assert isinstance(found.exception, InputError)
    found = run(main.app, ["duplicates", str(tmp_path), "--split", "train", "-p", "phash", "--json"])
    assert found.exit_code == 0
    assert "3 images of the split 'train'" in found.stderr


def test_a_column_of_splits_in_a_file_named_for_one_is_told_apart_too(tmp_path):
    columns = {"image": [picture(1), picture(2)], "split": ["train", "test"], "text": ["a", "b"]}
    pq.write_table(pa.table(columns), tmp_path / "train-00000.parquet")
    with pytest.raises(InputError, match="several splits"):
        Corpus.open(tmp_path)
    assert Corpus.open(f"{tmp_path}@test").captions == [["b"]]
    assert len(Corpus.open(f"{tmp_path}@all")) == 2
