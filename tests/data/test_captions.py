"""Caption files of all forms that people have beside their images."""

from __future__ import annotations

import json
import unicodedata

import pytest

from copyscope.data.captions.tables import encoding_of
from copyscope.data.corpus import Corpus
from copyscope.errors import InputError
from tests.pictures import fill, write


def read(path):
    corpus = Corpus.open(path)
    assert corpus.table["error"].to_pylist() == [None] * len(corpus)
    return dict(zip(corpus.ids, corpus.captions, strict=True))


@pytest.mark.parametrize(
    ("name", "text", "captions"),
    [
        ("a.TXT", "fox", ["fox"]),
        ("A.txt", "fox", ["fox"]),
        ("a.png.txt", "fox\nhen", ["fox", "hen"]),
        ("a.png.caption", "fox", ["fox"]),
        ("a.caption.txt", "fox", ["fox"]),
        ("a.captions", "fox", ["fox"]),
        ("a.prompt", "fox", ["fox"]),
        ("a.captions.json", '["fox", "hen"]', ["fox", "hen"]),
        ("a.json", '"fox"', ["fox"]),
        ("a.json", '{"caption": "fox"}', ["fox"]),
        ("a.json", '{"prompt": "fox", "model": "m"}', ["fox"]),
        ("a.json", '[{"caption": "fox"}, {"text": "hen"}]', ["fox", "hen"]),
        ("a.json", '{"caption": NaN, "url": "u"}', []),
        ("captions/a.txt", "fox", ["fox"]),
        ("a.txt", "fox".encode("utf-16"), ["fox"]),
        ("a.txt", "füchse".encode("utf-16-le"), ["füchse"]),
        ("a.txt", "fox".encode("utf-16-be"), ["fox"]),
        ("a.txt", "fox".encode("utf-8-sig"), ["fox"]),
        ("a.txt", "fox".encode("utf-32"), ["fox"]),
    ],
)
def test_a_file_beside_one_image(tmp_path, name, text, captions):
    write(fill(tmp_path, "a.png", "other.png"), {name: text})
    assert read(tmp_path) == {"a.png": captions, "other.png": []}


ROWS = {"a.png": "fox", "b.png": "hen"}


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("captions.json", json.dumps([{"image": key, "caption": text} for key, text in ROWS.items()])),
        ("list.json", json.dumps([{"file_name": key, "text": text} for key, text in ROWS.items()])),
        ("list.json", json.dumps({"data": [{"path": f"/x/{key}", "caption": text} for key, text in ROWS.items()]})),
        ("captions.json", '{"a": "fox", "b": ["hen", null, NaN]}'),
        ("captions.json", '{"a.png": "fox", "b.png": "hen", "c.png": NaN}'.replace(', "c.png": NaN', "")),
        ("meta_cap.json", '{"/x/a.png": {"caption": "fox"}, "/x/b.png": {"caption": "hen"}}'),
        ("meta_lat.json", '{"a": {"caption": "fox", "train_resolution": [8, 8]}, "b": {"tags": "hen"}}'),
        ("captions.csv", "image,caption\na.png,fox\nb.png,hen\n"),
        ("captions.csv", "filename;caption\na.png;fox\nb.png;hen\n"),
        ("captions.tsv", "file_name\ttext\na.png\tfox\nb.png\then\n".encode("utf-16")),
        ("results.csv", "image_name| comment_number| comment\na.png| 0| fox\nb.png| 0| hen\n"),
        ("captions.txt", "image,caption\na.png,fox\nb.png,hen\n"),
        ("Flickr.token.txt", "a.png#0\tfox\nb.png#0\then\n"),
        ("train.jsonl", '{"file_name": "a.png", "text": "fox"}\n{"file_name": "b.png", "text": "hen"}\n'),
        ("METADATA.CSV", "file_name,text\na.png,fox\nb.png,hen\n"),
        ("Metadata.jsonl", '{"file_name": "A.PNG", "text": "fox"}\n{"File_Name": "b.png", "Text": "hen"}\n'),
        ("dataset.json", json.dumps({"images": [
            {"filename": "a.png", "sentences": [{"raw": "fox"}]}, {"filename": "b.png", "sentences": [{"raw": "hen"}]},
        ]})),
    ],
)  # fmt: skip
def test_a_file_that_lists_images(tmp_path, name, text):
    write(fill(tmp_path, "a.png", "b.png"), {name: text})
    assert read(tmp_path) == {"a.png": ["fox"], "b.png": ["hen"]}
    if not name.endswith("token.txt") and not name.startswith("results"):
        assert read(tmp_path / name) == {"a.png": ["fox"], "b.png": ["hen"]}


def coco(*names):
    images = [{"id": 7 + number, "file_name": name} for number, name in enumerate(names)]
    notes = [{"id": n, "image_id": 7 + n // 2, "caption": f"{names[n // 2]} {n % 2}"} for n in range(2 * len(names))]
    return json.dumps({"images": images, "annotations": notes})


def test_coco_is_read_from_above_beside_and_by_name(tmp_path):
    fill(tmp_path, "train2017/01.jpg", "train2017/02.jpg")
    write(tmp_path, {"annotations/captions_train2017.json": coco("01.jpg", "02.jpg")})
    write(tmp_path, {"annotations/instances_train2017.json": '{"images": [], "annotations": [{"bbox": [1]}]}'})
    right = [["01.jpg 0", "01.jpg 1"], ["02.jpg 0", "02.jpg 1"]]
    for path in (tmp_path, tmp_path / "train2017", tmp_path / "annotations" / "captions_train2017.json"):
        assert list(read(path).values()) == right


def test_a_list_with_a_split_in_its_name_speaks_of_that_split(tmp_path):
    fill(tmp_path, "train/1.jpg", "val/1.jpg")
    for name, split in (("train", "train"), ("val", "validation")):
        text = coco("1.jpg").replace("1.jpg 0", f"of {name}").replace("1.jpg 1", f"of {name}")
        write(
            tmp_path, {f"annotations/captions_{name}.json": text, f"list_{split}.csv": f"image,caption\n1.jpg,{name}\n"}
        )
        write(tmp_path, {"annotations/captions_test.json": coco("1.jpg")})
    for name in ("train", "val"):
        assert Corpus.open(tmp_path, split=name).captions == [[name, f"of {name}"]]
    corpus = Corpus.open(tmp_path, split="all")
    assert corpus.captions == [["train", "of train"], ["val", "of val"]]
    assert corpus.account.unused["its name is that of another split"].names == ["annotations/captions_test.json"]
    corpus = Corpus.open(tmp_path / "train")
    assert corpus.captions == [["of train"]]
    others = corpus.account.unused["its name is that of another split"].names
    assert sorted(others) == [f"../annotations/captions_{name}.json" for name in ("test", "val")]
    assert read(tmp_path / "list_train.csv") == {"train/1.jpg": ["train"]}
    assert read(tmp_path / "annotations" / "captions_val.json") == {"val/1.jpg": ["of val"]}
    corpus = Corpus.open(tmp_path / "annotations" / "captions_test.json")
    assert corpus.account.errors == {"listed, but not there": 1}


@pytest.mark.parametrize(
    "pairs",
    [
        {"train/images/1.jpg": "train/captions/1.txt", "val/images/1.jpg": "val/captions/1.txt"},
        {"images/train/1.jpg": "captions/train/1.txt", "images/val/1.jpg": "captions/val/1.txt"},
        {"train/1.jpg": "captions/train/1.txt", "val/1.jpg": "val/captions/1.txt"},
        {"images/cat/1.jpg": "captions/cat/1.txt", "images/dog/1.jpg": "captions/Dog/1.caption.txt"},
        {"x/1.jpg": "captions/x/1.txt", "y/z/1.jpg": "y/captions/z/1.txt", "y/z/2.jpg": "captions/deep/2.txt"},
    ],
)
def test_a_folder_of_texts_mirrors_that_of_its_images(tmp_path, pairs):
    fill(tmp_path, *pairs)
    write(tmp_path, {path: image for image, path in pairs.items()})
    corpus = Corpus.open(tmp_path, split="all")
    assert dict(zip(corpus.ids, corpus.captions, strict=True)) == {image: [image] for image in pairs}


def test_a_text_of_one_split_is_not_of_an_image_of_another(tmp_path):
    fill(tmp_path, "train/images/1.jpg")
    assert Corpus.open(write(tmp_path, {"val/captions/1.txt": "x"})).captions == [[]]


@pytest.mark.parametrize("name", ["metadata.csv", "list.csv"])
def test_a_row_of_more_cells_than_the_header(tmp_path, name):
    fill(tmp_path, "a.png", "b.png", "c.png")
    write(tmp_path, {name: 'file_name,text\na.png,a cat, on a mat\nb.png,"two\nlines"\nc.png,hen,,\n'})
    assert read(tmp_path) == {"a.png": ["a cat, on a mat"], "b.png": ["two\nlines"], "c.png": ["hen"]}
    write(tmp_path, {name: "file_name,text,seed\na.png,a cat, on a mat,3\nb.png,hen,4\nz, z.png,b,c\n"})
    for path in (tmp_path, tmp_path / name):
        corpus = Corpus.open(path)
        errors = dict(zip(corpus.ids, corpus.table["error"].to_pylist(), strict=True))
        why = f"more cells than the header has: {name}, line 2; put text with ',' in quotes"
        lost = why.replace("line 2", "line 4")
        assert {key: error for key, error in errors.items() if error} == {"a.png": why, f"{name}#line 4": lost}


@pytest.mark.parametrize("rest", ["b.png,hen\nc.png,x\n", 'b.png,"hen"\nc.png,x\n', "b.png,hen\n" * 20_000])
def test_a_quote_that_is_not_closed_is_an_error_of_its_line(tmp_path, rest):
    fill(tmp_path, "a.png", "b.png")
    write(tmp_path, {"metadata.csv": f'file_name,text\n\na.png,"a cat\n{rest}'})
    with pytest.raises(InputError, match=r"metadata\.csv, line 3: a quote that is not closed\.\n"):
        Corpus.open(tmp_path)


@pytest.mark.parametrize("extra", [{"license": "CC-BY"}, {"info": {"by": "x"}}, {"version": 2, "tags": ["u", "v"]}])
def test_keys_of_a_captions_json_that_name_no_image_are_no_rows(tmp_path, extra):
    fill(tmp_path, "a.png")
    write(tmp_path, {"captions.json": json.dumps({**extra, "a.png": "A", "z.png": "Z"})})
    for path in (tmp_path, tmp_path / "captions.json"):
        corpus = Corpus.open(path)
        assert dict(zip(corpus.ids, corpus.captions, strict=True)) == {"a.png": ["A"], "z.png": ["Z"]}
        assert corpus.account.errors == {"listed, but not there": 1}
        assert (
            f"captions.json has {len(extra)} keys that name no image here ({', '.join(extra)})" in corpus.account.line()
        )


def test_of_a_list_of_many_more_images_than_are_here_only_these_are_rows(tmp_path):
    fill(tmp_path, "01.jpg")
    corpus = Corpus.open(write(tmp_path, {"captions_all.json": coco("01.jpg", "02.jpg", "03.jpg")}))
    assert corpus.ids == ["01.jpg"]
    assert "captions_all.json also names 2 images" in corpus.account.line()


def test_tags_and_caption_of_kohya_are_one_text_as_it_is_trained_on(tmp_path):
    fill(tmp_path, "a.png", "b.png")
    write(tmp_path, {"meta_cap.json": '{"a": {"caption": "fox", "tags": "red, wet"}, "b": {"tags": "blue"}}'})
    assert read(tmp_path) == {"a.png": ["fox, red, wet"], "b.png": ["blue"]}


def test_names_that_differ_in_the_form_of_accents_are_one(tmp_path):
    name = unicodedata.normalize("NFD", "café.png")
    fill(tmp_path, name)
    for file, text in (("metadata.csv", "file_name,text\ncafé.png,x\n"), ("captions.json", '{"café.png": "x"}')):
        write(tmp_path, {file: text})
        assert read(tmp_path) == {name: ["x"]}
        (tmp_path / file).unlink()
    write(tmp_path, {"café.txt": "x"})
    assert read(tmp_path) == {name: ["x"]}


@pytest.mark.parametrize("listed", ["set/a.png", "a.png", "./a.png", "set\\a.png"])
def test_file_names_may_be_relative_to_the_parent(tmp_path, listed):
    fill(tmp_path, "set/a.png")
    write(tmp_path, {"set/metadata.jsonl": json.dumps({"file_name": listed, "text": "x"}) + "\n"})
    assert read(tmp_path / "set") == {"a.png": ["x"]}
    assert read(tmp_path) == {"set/a.png": ["x"]}


def test_a_name_is_that_of_a_file_of_its_own_folder_first(tmp_path):
    fill(tmp_path, "x/1.png", "y/1.png", "y/2.png", "1.png")
    write(tmp_path, {"x/captions.json": '{"1": "of x"}', "y/list.csv": "image,caption\n1.png,of y\n3.png,gone\n"})
    write(tmp_path, {"captions.json": '{"1.png": "of all"}'})
    corpus = Corpus.open(tmp_path)
    found = dict(zip(corpus.ids, corpus.captions, strict=True))
    assert found == {"x/1.png": ["of x"], "y/1.png": ["of y"], "1.png": ["of all"], "y/2.png": [], "y/3.png": ["gone"]}


def test_what_lists_other_images_or_is_no_list_stops_nothing(tmp_path):
    fill(tmp_path, "a.png")
    write(tmp_path, {"other.csv": "image,caption\nz.png,x\n", "broken.jsonl": "{", "c.csv": "x;y\n1;2\n", "e.tsv": ""})
    write(tmp_path, {"captions.json": '{"z.png": "x"}', "labels.json": '{"a": 3}', "boxes.json": "[[1, 2]]"})
    corpus = Corpus.open(tmp_path)
    assert corpus.ids == ["a.png"]
    reasons = {name: why for why, entry in corpus.account.unused.items() for name in entry.names}
    assert reasons == {
        "other.csv": "names none of the images here",
        "captions.json": "names none of the images here",
        "broken.jsonl": reasons["broken.jsonl"],
        "c.csv": "no column names an image",
        "e.tsv": "it is empty",
        "labels.json": "no captions in it",
        "boxes.json": "no captions in it",
    }
    assert "not JSON" in reasons["broken.jsonl"]


def test_labels_beside_images_are_no_captions_and_no_error(tmp_path):
    fill(tmp_path, "images/a.png", "b.png")
    write(tmp_path, {"labels/a.txt": "0 0.5 0.5 0.1 0.1", "b.json": json.dumps({"imageData": "x" * 200_000})})
    assert list(read(tmp_path).values()) == [[], []]


def test_encodings():
    assert encoding_of("plain ü".encode()) == "utf-8"
    assert encoding_of(b"") == "utf-8"
    assert encoding_of("ab".encode("utf-16-be")) == "utf-16-be"


def test_a_json_by_name_that_has_no_captions_says_what_it_should_be(tmp_path):
    write(fill(tmp_path, "a.png"), {"x.json": '{"a": 1}'})
    with pytest.raises(InputError, match=r"lists no captions\.\nIt should be"):
        Corpus.open(tmp_path / "x.json")
