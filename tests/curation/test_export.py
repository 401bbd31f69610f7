"""Export: what is written is read back equal, by Copyscope and by the loaders that trainers use."""

from __future__ import annotations

import errno
import json
import math
import os
import re
import tarfile
import unicodedata
from io import BytesIO
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image

from copyscope.curation import export
from copyscope.curation.curate import duplicate
from copyscope.data.corpus import Corpus
from copyscope.errors import InputError
from copyscope.imaging import images
from copyscope.imaging.images import decode
from tests.cli.test_main import run
from tests.pictures import fill, picture, write

LAYOUTS = sorted(export.LAYOUTS)


@pytest.fixture
def corpus(tmp_path):
    """Five images in two folders: none, one or two captions, weights, and a column of each type."""
    folder = fill(tmp_path / "data", "cat/a.png", "cat/b.png", "dog/c.d.png", "dog/é e.png")
    write(folder, {"dog/f.jpg": picture(9, "JPEG")})
    corpus = Corpus.open(folder).with_column("captions", [["a cat", "één kat"], [], ["line\nbreak"], ["f"], ['"q"']])
    corpus = corpus.with_column("n", [1, 2, None, 4, 5]).with_column("score", [0.5, None, 1.0, 1e-9, 2.5])
    corpus = corpus.with_column("ok", [True, False, None, True, True]).with_column("weight", [1, 2.5, 0, 1, 1])
    return duplicate(corpus, "partial", rate=0.4)


def facts(corpus, id_column="id", one_line=False):
    """All that is known of each image, by id, and its bytes. one_line: captions with spaces for line breaks."""
    names = [
        name for name in corpus.table.column_names if name not in ("image", "id", "sha256", "width", "height", "split")
    ]
    rows = corpus.table.select([name for name in names if name != "original_id"]).to_pylist()
    data = dict(corpus.stream())
    ids = corpus.table[id_column].to_pylist()
    said = [[text.replace("\n", " ") if one_line else text for text in row["captions"] or []] for row in rows]
    return {id: (row | {"captions": said[n]}, data[n]) for n, (id, row) in enumerate(zip(ids, rows, strict=True))}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_what_is_written_is_read_back(corpus, tmp_path, layout):
    found = export.write(corpus, tmp_path / "out", layout)
    assert found.kind == ("imagefolder" if layout == "kohya" else layout)
    # A key of a tar has no suffix, and kohya's folders are flat, so there the ids change.
    renamed, one_line = layout in ("kohya", "webdataset"), layout == "kohya"
    assert facts(found, "original_id" if renamed else "id") == facts(corpus, one_line=one_line)
    assert ("original_id" in found.table.column_names) == renamed
    assert not list(tmp_path.glob(".out*"))
    assert not (tmp_path / "out" / "skipped.jsonl").exists()


@pytest.mark.parametrize("first", LAYOUTS)
@pytest.mark.parametrize("second", LAYOUTS)
def test_from_any_layout_to_any(corpus, tmp_path, first, second):
    before = export.write(corpus, tmp_path / "first", first)
    after = export.write(before, tmp_path / "second", second)
    named = "original_id" if "original_id" in after.table.column_names else "id"
    assert facts(after, named) == facts(corpus, one_line="kohya" in (first, second))


@pytest.mark.parametrize("layout", LAYOUTS)
def test_chosen_rows_are_written_in_any_order(corpus, tmp_path, layout):
    whole = export.write(corpus, tmp_path / "whole", layout)
    found = export.write(whole.take([4, 0, 2]), tmp_path / "out", layout)
    named = "original_id" if layout == "kohya" else "id"
    assert facts(found, named) == facts(whole.take([4, 0, 2]), named)


HOSTILE = [
    *("../../x.png", "/etc/y.png", ".hidden.png", "a:b?.png", "A" * 300, "no suffix", "no suffix.png", "..", "a//b"),
    *("x.tar.gz", "back\\slash", "data.parquet:0", "twice", "twice#2", "new\nline", "k/..png", "metadata.jsonl"),
    "skipped.jsonl",
]


@pytest.mark.parametrize("layout", LAYOUTS)
def test_any_id_finds_a_place_inside_the_folder_and_is_kept(tmp_path, layout):
    corpus = Corpus.open(fill(tmp_path / "data", *(f"{number:02d}.png" for number in range(len(HOSTILE)))))
    corpus = corpus.with_column("id", HOSTILE)
    found = export.write(corpus, tmp_path / "out", layout)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["data", "out"]
    if layout == "parquet":
        assert found.ids == HOSTILE
        return
    old = [old or id for old, id in zip(found.table["original_id"].to_pylist(), found.ids, strict=True)]
    assert sorted(old) == sorted(HOSTILE)
    assert {id: found.read(row) for row, id in enumerate(old)} == {
        id: corpus.read(row) for row, id in enumerate(HOSTILE)
    }


def test_an_original_id_of_the_data_stays(corpus, tmp_path):
    corpus = corpus.with_column("original_id", list("abcde"))
    found = export.write(corpus, tmp_path / "out", "webdataset")
    assert sorted(found.table["original_id"].to_pylist()) == list("abcde")


@pytest.mark.parametrize("layout", LAYOUTS)
def test_unreadable_images_are_left_out_and_listed(tmp_path, layout):
    folder = fill(tmp_path / "data", "a.png", "b.png", "gone.png", "known.png")
    write(folder, {"cut.png": picture(1)[:40], "web.jpg": b"<!DOCTYPE html>"})
    corpus = Corpus.open(folder)
    corpus = corpus.with_column("error", ["too large" if id == "known.png" else None for id in corpus.ids])
    (folder / "gone.png").unlink()
    found = export.write(corpus, tmp_path / "out", layout)
    assert len(found) == 2
    listed = [json.loads(line) for line in (tmp_path / "out" / "skipped.jsonl").read_text().splitlines()]
    errors = {record["id"]: record["error"] for record in listed}
    assert errors.keys() == {"cut.png", "gone.png", "known.png", "web.jpg"}
    assert (errors["known.png"], errors["gone.png"]) == ("too large", "no such file")
    assert errors["cut.png"].startswith("truncated")
    assert errors["web.jpg"].startswith("not an image")


@pytest.mark.parametrize("layout", LAYOUTS)
def test_nothing_is_left_where_no_image_can_be_read(tmp_path, layout):
    corpus = Corpus.open(write(tmp_path / "data", {"a.png": b"", "b.png": b""}))
    with pytest.raises(InputError, match=r"None of 2 images in .*data can be read: empty file"):
        export.write(corpus, tmp_path / "out", layout)
    assert [path.name for path in tmp_path.iterdir()] == ["data"]


def test_a_folder_with_something_in_it_is_refused_and_an_empty_one_taken(corpus, tmp_path):
    for out in (write(tmp_path / "full", {"mine.txt": "x"}), tmp_path / "data" / "cat" / "a.png"):
        with pytest.raises(InputError, match="is not empty"):
            export.write(corpus, out)
    (tmp_path / "empty").mkdir()
    assert len(export.write(corpus, tmp_path / "empty")) == 5
    with pytest.raises(InputError, match=r"'tfrecord'.\nThere are: imagefolder, kohya, parquet, webdataset"):
        export.write(corpus, tmp_path / "out", "tfrecord")


def test_a_full_disk_leaves_nothing(corpus, tmp_path, monkeypatch):
    def full(path, data):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(InputError, match=r"Cannot write into .*out: no space left on device.\nMake room"):
        export.write(corpus, tmp_path / "out")
    assert [path.name for path in tmp_path.iterdir()] == ["data"]


@pytest.mark.parametrize(
    ("layout", "pattern"), [("parquet", r"train-0000\d-of-00003.parquet"), ("webdataset", r"0000\d.tar")]
)
def test_shards_are_bounded(tmp_path, layout, pattern):
    corpus = Corpus.open(fill(tmp_path / "data", *(f"{number:02d}.png" for number in range(12))))
    size = max(len(picture(number)) for number in range(12))
    found = export.write(corpus, tmp_path / "out", layout, shard_bytes=5 * size + 1)
    shards = sorted((tmp_path / "out").iterdir())
    assert len(shards) == 3
    assert all(re.fullmatch(pattern, path.name) for path in shards)
    assert [len(Corpus.open(path)) for path in shards] == [5, 5, 2]
    assert {data for _, data in found.stream()} == {data for _, data in corpus.stream()}
    export.write(corpus, tmp_path / "tiny", layout, shard_bytes=1)
    assert len(list((tmp_path / "tiny").iterdir())) == 12


def test_row_groups_are_bounded(tmp_path, monkeypatch):
    monkeypatch.setattr(export, "ROW_GROUP_BYTES", 2 * len(picture(0)))
    corpus = Corpus.open(fill(tmp_path / "data", *(f"{number}.png" for number in range(5))))
    export.write(corpus, tmp_path / "out", "parquet")
    assert pq.ParquetFile(next((tmp_path / "out").iterdir())).num_row_groups == 3


def test_progress_reaches_the_end(corpus, tmp_path, monkeypatch):
    monkeypatch.setattr(export, "BATCH", 2)
    told = []
    export.write(corpus, tmp_path / "out", progress=lambda *step: told.append(step))
    assert told == [("write", 2, 5), ("write", 4, 5), ("write", 5, 5)]


def test_json_is_standard_and_captions_come_from_captions_only(tmp_path):
    corpus = Corpus.open(fill(tmp_path / "data", "a.png")).with_column("captions", [["a caption"]])
    corpus = corpus.with_column("score", [math.nan]).with_column("Text", ["an alt text"])
    found = export.write(corpus, tmp_path / "out")
    assert "NaN" not in (tmp_path / "out" / "metadata.jsonl").read_text()
    assert found.captions == [["a caption"]]
    assert found.table["listed_Text"].to_pylist() == ["an alt text"]


def test_suffixes_tell_what_an_image_is(tmp_path):
    named = {"JPEG": "jpg", "PNG": "png", "WEBP": "webp", "GIF": "gif", "BMP": "bmp", "TIFF": "tif", "PPM": "ppm"}
    files = {suffix: picture(3, name) for name, suffix in named.items()} | {"avif": picture(3, "AVIF")}
    files["other.avif"] = files["avif"].replace(b"ftypavif", b"ftypmif1")
    big = BytesIO()
    Image.new("RGB", (5, 4)).save(big, "TIFF", big_tiff=True)
    files["big.tif"] = big.getvalue()
    # Names without a suffix: each file is called as it should be called at the end.
    folder = write(tmp_path / "data", {name.replace(".", "-"): data for name, data in files.items()})
    found = export.write(Corpus.open(folder), tmp_path / "out")
    assert sorted(found.ids) == sorted(f"{name.replace('.', '-')}.{name.rpartition('.')[2]}" for name in files)


def test_tars_follow_the_webdataset_convention(corpus, tmp_path):
    """Grouped as the library webdataset does: members in a row with the same path up to the first dot of the name."""
    export.write(corpus, tmp_path / "out", "webdataset")
    samples: list[tuple[str, dict[str, bytes]]] = []
    with tarfile.open(tmp_path / "out" / "00000.tar") as tar:
        for member in tar:
            key, suffix = re.fullmatch(r"((?:.*/|)[^.]+)[.]([^/]*)", member.name).groups()
            if not samples or samples[-1][0] != key:
                samples.append((key, {}))
            samples[-1][1][suffix] = tar.extractfile(member).read()
    assert [key for key, _ in samples] == ["cat/a", "cat/b", "dog/c_d", "dog/f", "dog/é e"]
    assert [set(sample) - {"txt", "json"} for _, sample in samples] == [{"png"}, {"png"}, {"png"}, {"jpg"}, {"png"}]
    assert [sample["txt"].decode() for _, sample in samples] == ["a cat", "", "line\nbreak", "f", '"q"']
    assert json.loads(samples[0][1]["json"])["captions"] == ["a cat", "één kat"]


def test_kohya_folders_have_repeats_a_class_and_captions(tmp_path):
    folder = fill(tmp_path / "data", "cat/a.png", "cat/b.png", "dog/d.png", "dog/x/c.png", "dog/x_c.png")
    corpus = Corpus.open(folder).with_column("captions", [["a cat", "one cat"], ["b\ncat", "two"], ["x"], [], ["c"]])
    corpus = corpus.with_column("weight", [1.0, 2.5, 0.5, 0.5, 0])
    corpus = corpus.with_column("duplication", ["", "partial", "", "", ""])
    export.write(corpus, tmp_path / "out", "kohya")
    out = tmp_path / "out"
    names = sorted(path.relative_to(out).as_posix() for path in out.rglob("*") if path.is_file())
    assert names == [
        *("0_dog/x_c.png", "0_dog/x_c.txt", "1_dog/c.png", "1_dog/d.png", "1_dog/d.txt"),
        *("2_cat/a.png", "2_cat/a.txt", "5_cat/b.png", "5_cat/b.txt", "metadata.jsonl"),
    ]
    # The scripts take the first line; with enable_wildcard any, which is what partial duplication is.
    assert (out / "2_cat/a.txt").read_text() == "a cat\n"
    assert (out / "5_cat/b.txt").read_text() == "b cat\ntwo\n"
    found = Corpus.open(out)
    assert sorted(found.table["weight"].to_pylist()) == [0, 0.5, 0.5, 1, 2.5]


@pytest.mark.parametrize(
    ("weights", "expected"),
    [
        ([1, 1], [1, 1]),
        ([1, 5], [1, 5]),
        ([0.5, 2.5, 1], [1, 5, 2]),
        ([1 / 3, 1], [1, 3]),
        ([0.2, 0.0], [1, 0]),
        ([1.0, 0.001], [100, 1]),
        ([0.0], [0]),
    ],
)
def test_repeats_are_the_smallest_whole_numbers_in_proportion(weights, expected):
    assert export.repeats(weights) == expected


@pytest.mark.parametrize("layout", LAYOUTS)
def test_ids_that_are_one_file_on_some_disks_are_all_written(tmp_path, layout):
    ids = ["a.png", "a.png/b", "A.PNG", "a.png/B", "caf\u00e9.png", "cafe\u0301.png", "x/y", "x", "X/Y.png"]
    corpus = Corpus.open(fill(tmp_path / "data", *(f"{number}.png" for number in range(len(ids)))))
    found = export.write(corpus.with_column("id", ids), tmp_path / "out", layout)
    assert sorted(found.read(row) for row in range(len(found))) == sorted(data for _, data in corpus.stream())
    old = found.table["original_id"].to_pylist() if layout != "parquet" else found.ids
    assert sorted(name or id for name, id in zip(old, found.ids, strict=True)) == sorted(ids)
    names = [path.relative_to(tmp_path / "out").as_posix() for path in (tmp_path / "out").rglob("*.*")]
    assert len({unicodedata.normalize("NFC", name).casefold() for name in names}) == len(names)


@pytest.mark.parametrize("layout", [layout for layout in LAYOUTS if layout != "kohya"])
def test_hugging_face_datasets_shows_images_and_captions(corpus, tmp_path, monkeypatch, layout):
    datasets = pytest.importorskip("datasets")
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    datasets.disable_progress_bars()
    out = tmp_path / "out"
    errors = ["empty file" if id == "dog/f.jpg" else None for id in corpus.ids]
    written = export.write(corpus.with_column("error", errors), out, layout)
    assert (out / "skipped.jsonl").exists()
    where = {"data_files": str(out / "*.tar")} if layout == "webdataset" else {"data_dir": str(out)}
    found = datasets.load_dataset(layout, split="train", cache_dir=str(tmp_path / "cache"), **where)
    image, text = ("png", "txt") if layout == "webdataset" else ("image", "text")
    assert isinstance(found.features[image], datasets.Image)
    expected = {caption: picture(number) for number, caption in enumerate(["a cat", "", "line\nbreak", '"q"'])}
    rows = {row[text]: row for row in found}
    assert rows.keys() == expected.keys()
    for caption, data in expected.items():
        assert np.array_equal(np.array(rows[caption][image].convert("RGB")), decode(data))
    known = {row["captions"][0] if row["captions"] else "": row for row in written.table.to_pylist()}
    for caption, row in rows.items():
        told = row["json"] if layout == "webdataset" else row
        for name in ("captions", "weight", "duplicated", "duplication", "n", "score", "ok"):
            assert told[name] == known[caption][name], name


@pytest.mark.parametrize("layout", export.LAYOUTS)
def test_a_set_of_several_splits_is_written_and_read_back(layout, tmp_path):
    for number, split in enumerate(("train", "train", "test")):
        path = tmp_path / "set" / split / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(images.encode(np.full((8, 8, 3), 50 * number, np.uint8), "png"))
    written = export.write(Corpus.open(tmp_path / "set", split="all"), tmp_path / "out", layout)
    assert len(written) == 3


def test_regularisation_images_are_not_trained_in_a_kohya_export(tmp_path):
    for folder in ("img/3_sks man", "reg/1_man"):
        (tmp_path / "set" / folder).mkdir(parents=True)
        content = images.encode(np.full((8, 8, 3), len(folder), np.uint8), "png")
        (tmp_path / "set" / folder / "a.png").write_bytes(content)
    export.write(Corpus.open(tmp_path / "set", split="all"), tmp_path / "out", "kohya")
    found = sorted(path.relative_to(tmp_path / "out").as_posix() for path in (tmp_path / "out").rglob("*.png"))
    assert found == ["img/3_sks man/a.png", "reg/1_man/a.png"]


def test_curate_refuses_a_folder_that_is_not_empty_before_the_work(tmp_path, monkeypatch):
    (tmp_path / "set").mkdir()
    (tmp_path / "set" / "a.png").write_bytes(images.encode(np.zeros((8, 8, 3), np.uint8), "png"))
    monkeypatch.setattr("copyscope.cli.curate.opened", lambda *_: pytest.fail("the set was opened"))
    with pytest.raises(InputError, match="is not empty"):
        run("curate", tmp_path / "set", "-o", tmp_path / "set")
