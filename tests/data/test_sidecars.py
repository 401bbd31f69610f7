"""Captions and columns from metadata tables, captions JSON and text files."""

from __future__ import annotations

import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from copyscope.data.corpus import Corpus
from copyscope.errors import InputError
from tests.pictures import fill, write


def lines(*records: dict[str, object]) -> str:
    return "\n".join(map(json.dumps, records)) + "\n\n"


def test_metadata_jsonl(tmp_path) -> None:
    fill(tmp_path, "a.png", "b.png", "sub/c.png")
    records = lines(
        {"file_name": "a.png", "text": "one", "seed": 1, "weight": 2.5, "width": 9, "boxes": [1, 2]},
        {"file_name": "a.png", "text": "two", "seed": 99},
        {"file_name": "a.png", "text": "one"},
        {"file_name": "gone.png", "text": "lost"},
    )
    write(
        tmp_path,
        {"metadata.jsonl": "\ufeff" + records, "sub/metadata.jsonl": lines({"file": "c.png", "Caption": ["x"]})},
    )
    corpus = Corpus.open(tmp_path)
    assert corpus.kind == "imagefolder"
    assert corpus.ids == ["a.png", "b.png", "gone.png", "sub/c.png"]
    assert corpus.captions == [["one", "two"], [], ["lost"], ["x"]]
    assert corpus.table["seed"].to_pylist() == [1, None, None, None]
    assert corpus.table["weight"].to_pylist() == [2.5, 1, 1, 1]
    assert corpus.table["listed_width"].to_pylist() == [9, None, None, None]
    assert corpus.table["error"].to_pylist() == [None, None, "listed in metadata.jsonl, but not there", None]
    assert "boxes" not in corpus.table.column_names


@pytest.mark.parametrize("name", ["metadata.csv", "metadata.parquet"])
def test_metadata_tables(tmp_path, name: str) -> None:
    fill(tmp_path, "a.png", "b.png")
    if name.endswith(".csv"):
        text = 'file_name,text,seed,note\r\na.png,"a dog, wet",7,007\r\nb.png,"[""x"", ""y""]",,\r\n'
        write(tmp_path, {name: text})
        notes = ["007", None]
    else:
        columns = {"file_name": ["a.png", "b.png"], "text": [["a dog, wet"], ["x", "y"]], "seed": [7, None]}
        pq.write_table(pa.table(columns), tmp_path / name)
        notes = None
    for corpus in (Corpus.open(tmp_path), Corpus.open(tmp_path / name)):
        assert corpus.kind == "imagefolder"
        assert corpus.captions == [["a dog, wet"], ["x", "y"]]
        assert corpus.table["seed"].to_pylist() == [7, None]
        if notes:
            assert corpus.table["note"].to_pylist() == notes


def test_a_table_opened_by_itself_lists_the_images(tmp_path) -> None:
    fill(tmp_path, "a.png", "b.png", "out/c.png")
    write(tmp_path, {"some.jsonl": lines({"path": "b.png"}, {"path": str(tmp_path / "a.png")}, {"path": "x.png"})})
    corpus = Corpus.open(tmp_path / "some.jsonl")
    assert corpus.ids == ["a.png", "b.png", "x.png"]
    write(tmp_path, {"out/list.tsv": "file_name\ttext\n../a.png\tup\nc.png\t1984\n"})
    corpus = Corpus.open(tmp_path / "out" / "list.tsv")
    assert corpus.ids == ["../a.png", "c.png"]
    assert corpus.captions == [["up"], ["1984"]]
    assert corpus.read(0) == (tmp_path / "a.png").read_bytes()


def test_prompt_is_a_caption_only_where_there_is_no_caption_column(tmp_path) -> None:
    fill(tmp_path, "a.png", "b.png")
    corpus = Corpus.open(write(tmp_path, {"metadata.csv": "file_name,prompt\na.png,p\nb.png,q\n"}))
    assert corpus.captions == [["p"], ["q"]]
    assert corpus.table["prompt"].to_pylist() == ["p", "q"]
    corpus = Corpus.open(write(tmp_path, {"metadata.csv": "file_name,prompt,text\na.png,p,t\nb.png,q,\n"}))
    assert corpus.captions == [["t"], []]
    assert corpus.prompts == ["p", "q"]


def test_columns_of_mixed_or_odd_values(tmp_path) -> None:
    fill(tmp_path, *"abc")
    records = [
        {"file_name": "a", "mixed": 1, "number": 1, "big": 2**70, "yes": True, "odd": "\ud800"},
        {"file_name": "b", "mixed": "x", "number": 1.5, "big": 1, "yes": False},
        {"file_name": "c", "mixed": True, "yes": None, "text": "lone \ud800"},
    ]
    table = Corpus.open(write(tmp_path, {"metadata.jsonl": lines(*records)})).table
    assert table["mixed"].to_pylist() == ["1", "x", "True"]
    assert table["number"].to_pylist() == [1.0, 1.5, None]
    assert table["big"].to_pylist() == [str(2**70), "1", None]
    assert table["yes"].to_pylist() == [True, False, None]
    assert table["odd"].to_pylist() == ["?", None, None]
    assert table["captions"].to_pylist()[2] == ["lone ?"]


@pytest.mark.parametrize(
    ("name", "text", "said"),
    [
        ("metadata.jsonl", '{"file_name": "a.png"}\n{"file_name": ', "metadata.jsonl, line 2: not JSON"),
        ("metadata.jsonl", "\n[1]", "line 2: not a JSON object"),
        ("metadata.jsonl", '{"text": "x"}', "line 1: no file name"),
        ("metadata.csv", "text\nx\n", "line 2: no file name"),
        ("metadata.csv", "file_name,text\na.png," + "x" * 200_000, "field larger than field limit"),
        ("metadata.parquet", "junk", "metadata.parquet"),
        ("captions.json", "{", "captions.json"),
    ],
)
def test_a_table_that_is_broken_names_file_and_line(tmp_path, name: str, text: str, said: str) -> None:
    fill(tmp_path, "a.png")
    with pytest.raises(InputError) as caught:
        Corpus.open(write(tmp_path, {name: text}))
    assert said in str(caught.value)
    assert str(caught.value).count("\n") == 1


def test_captions_json_of_another_machine(tmp_path) -> None:
    fill(tmp_path, "n01/0001.jpg", "n01/0002.jpg", "n02/0001.jpg", "n02/0003.jpg")
    listed = {
        "./data/train/n01/0001.jpg": ["a", "b"],
        "./data/train/n02/0001.jpg": "c",
        "D:\\data\\n01\\0002.jpg": ["d"],
        "./data/train/n03/0003.jpg": ["e"],
        "./data/train/n02/0003.jpg": ["f"],
        "./data/train/n04/0002.jpg": ["not of n01"],
        "elsewhere/0001.jpg": ["g"],
        "gone.jpg": ["h"],
    }
    corpus = Corpus.open(write(tmp_path, {"train.json": json.dumps(listed), "other.json": '{"model": "x", "n": "y"}'}))
    assert corpus.kind == "captions json"
    found = dict(zip(corpus.ids, corpus.captions, strict=True))
    errors = dict(zip(corpus.ids, corpus.table["error"].to_pylist(), strict=True))
    assert {key: value for key, value in found.items() if errors[key] is None} == {
        "n01/0001.jpg": ["a", "b"],
        "n01/0002.jpg": ["d"],
        "n02/0001.jpg": ["c"],
        "n02/0003.jpg": ["f"],
    }
    assert {key: value for key, value in errors.items() if value} == {
        "data/train/n03/0003.jpg": "listed in train.json, but not there",
        "data/train/n04/0002.jpg": "listed in train.json, but not there",
        "elsewhere/0001.jpg": "listed in train.json, but several images have that name",
        "gone.jpg": "listed in train.json, but not there",
    }
    classes = dict(zip(corpus.ids, corpus.table["class"].to_pylist(), strict=True))
    assert classes["n01/0001.jpg"] == "n01"
    assert classes["gone.jpg"] is None


def test_captions_json_opened_by_itself_lists_the_images(tmp_path) -> None:
    fill(tmp_path, "images/1.png", "images/2.png")
    corpus = Corpus.open(write(tmp_path, {"captions.json": '{"images/2.png": ["x"]}'}) / "captions.json")
    assert corpus.ids == ["images/2.png"]
    assert corpus.captions == [["x"]]


def test_captions_json_beside_the_folder_speaks_only_of_it(tmp_path) -> None:
    fill(tmp_path / "train", "1.png", "2.png")
    fill(tmp_path / "generated", "1.png", "2.png")
    listed = {"./x/train/1.png": ["one"], "./x/train/3.png": ["three"], "./x/valid/2.png": ["two"]}
    write(tmp_path, {"my_captions.json": json.dumps(listed)})
    train = Corpus.open(tmp_path / "train")
    assert dict(zip(train.ids, train.captions, strict=True)) == {
        "1.png": ["one"],
        "2.png": [],
        "x/train/3.png": ["three"],
    }
    generated = Corpus.open(tmp_path / "generated")
    assert generated.ids == ["1.png", "2.png"]
    assert generated.captions == [[], []]
    assert generated.kind == "folder"
    write(tmp_path, {"my_captions.json": json.dumps({"1.png": ["bare"], "2.png": ["bare"]})})
    assert Corpus.open(tmp_path / "train").captions == [["bare"], ["bare"]]


def test_text_files_beside_images(tmp_path) -> None:
    fill(tmp_path, "a.png", "b.png", "c.png", "a.jpg")
    write(
        tmp_path,
        {"a.txt": "first line\r\n\n  second  \n", "b.caption": b"caf\xe9", "README.txt": "x", "d.txt": "alone"},
    )
    corpus = Corpus.open(tmp_path)
    assert corpus.kind == "captions txt"
    both = ["first line", "second"]
    assert dict(zip(corpus.ids, corpus.captions, strict=True)) == {
        "a.jpg": both,
        "a.png": both,
        "b.png": ["caf\ufffd"],
        "c.png": [],
    }


def test_all_sidecars_add_up_and_say_a_thing_once(tmp_path) -> None:
    fill(tmp_path, "a.png")
    write(tmp_path, {"a.txt": "same\nmore", "metadata.csv": "file_name,text\na.png,same\n"})
    corpus = Corpus.open(write(tmp_path, {"captions.json": '{"a.png": ["same", "third"]}'}))
    assert corpus.captions == [["same", "third", "more"]]
    assert corpus.kind == "imagefolder"


def test_class_is_the_first_folder_of_an_image_folder_tree(tmp_path) -> None:
    fill(tmp_path, "dog/1.png", "cat/x/2.png")
    assert Corpus.open(tmp_path).table["class"].to_pylist() == ["cat", "dog"]
    fill(tmp_path, "top.png")
    assert "class" not in Corpus.open(tmp_path).table.column_names


def test_a_text_file_of_more_than_captions_is_the_error_of_its_image(tmp_path) -> None:
    fill(tmp_path, "a.png", "b.png")
    write(tmp_path, {"a.txt": "a dog\n" * (1 << 18), "b.txt": "a cat"})
    corpus = Corpus.open(tmp_path)
    assert corpus.captions == [[], ["a cat"]]
    assert corpus.table["error"].to_pylist() == ["too large: a.txt has more than 1,048,576 bytes", None]


def test_of_two_keys_that_fit_an_image_as_well_the_first_names_it(tmp_path) -> None:
    fill(tmp_path, "n01/1.jpg")
    listed = {"one/n01/1.jpg": ["first"], "two/n01/1.jpg": ["second"]}
    corpus = Corpus.open(write(tmp_path, {"train.json": json.dumps(listed)}))
    errors = dict(zip(corpus.ids, corpus.table["error"].to_pylist(), strict=True))
    assert errors == {"n01/1.jpg": None, "two/n01/1.jpg": "listed in train.json, but not there"}
    assert dict(zip(corpus.ids, corpus.captions, strict=True))["n01/1.jpg"] == ["first"]
