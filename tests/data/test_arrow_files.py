"""Arrow files of `datasets`, lists of images in Parquet, the cache of the Hub."""

from __future__ import annotations

import os

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from copyscope.data.corpus import Corpus
from copyscope.errors import InputError
from tests.pictures import fill, picture, write

STRUCT = pa.struct({"bytes": pa.binary(), "path": pa.string()})


def table(n, first=0, path=True):
    cells = [{"bytes": picture(first + each), "path": f"{first + each}.png" if path else None} for each in range(n)]
    return pa.table({"image": pa.array(cells, STRUCT), "text": [f"t{first + each}" for each in range(n)]})


def arrow(path, content, **options):
    path.parent.mkdir(parents=True, exist_ok=True)
    with pa.OSFile(str(path), "wb") as file, pa.ipc.new_stream(file, content.schema, **options) as out:
        out.write_table(content, 2)


def test_a_saved_data_set_is_read(tmp_path):
    arrow(tmp_path / "data-00000-of-00002.arrow", table(3))
    arrow(tmp_path / "data-00001-of-00002.arrow", table(2, 3))
    write(tmp_path, {"state.json": "{}", "dataset_info.json": "{}"})
    arrow(tmp_path / "cache-1234.arrow", table(3, 50))
    corpus = Corpus.open(tmp_path)
    assert (corpus.kind, corpus.captions) == ("arrow", [[f"t{number}"] for number in range(5)])
    assert corpus.ids == [f"{number}.png" for number in range(5)]
    assert [content for _, content in corpus.stream()] == [picture(number) for number in range(5)]
    assert corpus.read(4) == picture(4)
    one = Corpus.open(tmp_path / "data-00001-of-00002.arrow")
    assert dict(one.stream([1])) == {1: picture(4)}
    assert "cache-1234.arrow" in corpus.account.unused["lies beside shards, which are read"].names


def test_a_saved_dictionary_of_data_sets_has_splits(tmp_path):
    arrow(tmp_path / "train" / "data-00000-of-00001.arrow", table(2))
    arrow(tmp_path / "test" / "data-00000-of-00001.arrow", table(1, 5))
    write(tmp_path, {"dataset_dict.json": '{"splits": ["train", "test"]}'})
    with pytest.raises(InputError, match="several splits"):
        Corpus.open(tmp_path)
    assert Corpus.open(f"{tmp_path}@test").captions == [["t5"]]


def test_datasets_itself_writes_what_is_read(tmp_path):
    datasets = pytest.importorskip("datasets")
    made = datasets.Dataset.from_list(table(3).to_pylist()).cast_column("image", datasets.Image())
    made.save_to_disk(str(tmp_path / "set"))
    corpus = Corpus.open(tmp_path / "set")
    assert corpus.captions == [["t0"], ["t1"], ["t2"]]
    assert [content for _, content in corpus.stream()] == [picture(number) for number in range(3)]


def test_a_store_gives_the_same(tmp_path):
    import fsspec

    arrow(tmp_path / "a.arrow", table(3))
    fsspec.filesystem("memory").pipe("/arrows/a.arrow", (tmp_path / "a.arrow").read_bytes())
    corpus = Corpus.open("memory://arrows")
    assert [content for _, content in corpus.stream()] == [picture(number) for number in range(3)]


@pytest.mark.parametrize("damage", ["empty", "cut", "noise", "compressed", "no images", "lengths"])
def test_an_arrow_file_that_is_none_is_an_error_of_two_lines(tmp_path, damage):
    path = tmp_path / "a.arrow"
    arrow(path, table(3), options=pa.ipc.IpcWriteOptions(compression="zstd" if damage == "compressed" else None))
    whole = path.read_bytes()
    if damage == "no images":
        arrow(path, pa.table({"x": [1]}))
    elif damage != "compressed":
        path.write_bytes(
            {"empty": b"", "cut": whole[:200], "noise": os.urandom(500), "lengths": whole[:4] + b"\xff" * 8}[damage]
        )
    with pytest.raises(InputError) as caught:
        Corpus.open(path)
    assert str(caught.value).count("\n") == 1


def test_a_cut_arrow_file_gives_the_batches_before(tmp_path):
    arrow(tmp_path / "a.arrow", table(5))
    whole = (tmp_path / "a.arrow").read_bytes()
    (tmp_path / "a.arrow").write_bytes(whole[: len(whole) * 7 // 10])
    corpus = Corpus.open(tmp_path)
    errors = corpus.table["error"].to_pylist()
    assert errors[:2] == [None, None]
    assert errors[-1].startswith("damaged Arrow")


# Lists of images


@pytest.mark.parametrize("kind", ["parquet", "arrow"])
@pytest.mark.parametrize("struct", [True, False])
def test_each_image_of_a_list_is_a_row(tmp_path, kind, struct):
    lists = [[picture(0), picture(1)], [], [picture(2)], None]
    cells = [each and [{"bytes": one, "path": None} for one in each] for each in lists] if struct else lists
    column = pa.array([[] if each == [] else each for each in cells], pa.list_(STRUCT if struct else pa.binary()))
    content = pa.table({"images": column, "text": list("abcd"), "key": list("wxyz")})
    if kind == "parquet":
        pq.write_table(content, tmp_path / "a.parquet", row_group_size=3)
    else:
        arrow(tmp_path / "a.arrow", content)
    corpus = Corpus.open(tmp_path)
    assert corpus.captions == [["a"], ["a"], ["b"], ["c"], ["d"]]
    assert [bool(error) for error in corpus.table["error"].to_pylist()] == [False, False, True, False, True]
    found = dict(corpus.stream())
    assert [found[row] for row in (0, 1, 3)] == [picture(0), picture(1), picture(2)]
    assert [corpus.read(row) for row in (3, 1, 0)] == [picture(2), picture(1), picture(0)]


# The cache of the Hub


def test_of_the_cache_of_the_hub_one_snapshot_is_read_and_no_blob(tmp_path):
    fill(tmp_path, "blobs/aaa", "blobs/bbb", "snapshots/old/a.png")
    (tmp_path / "snapshots" / "new").mkdir()
    for name, blob in (("a.png", "aaa"), ("b.png", "bbb")):
        os.symlink(f"../../blobs/{blob}", tmp_path / "snapshots" / "new" / name)
    write(tmp_path, {"refs/main": "new"})
    corpus = Corpus.open(tmp_path)
    assert corpus.ids == ["snapshots/new/a.png", "snapshots/new/b.png"]
    assert corpus.n_outside == 0
    assert [content for _, content in corpus.stream()] == [picture(0), picture(1)]
    write(tmp_path, {"refs/main": "old"})
    assert Corpus.open(tmp_path).ids == ["snapshots/old/a.png"]
