"""Parquet and WebDataset: ids, captions, offsets, and damage that costs only what is damaged."""

from __future__ import annotations

import io
import json
import tarfile
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from copyscope.data import corpus as corpus_module
from copyscope.data import shards
from copyscope.data.corpus import Corpus
from copyscope.errors import ImageError, InputError
from tests.pictures import fill, picture, write


def write_tar(path: Path, members: dict[str, bytes]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as tar:
        for name, data in members.items():
            member = tarfile.TarInfo(name)
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))
    return path


def parquet(path: Path, columns: dict[str, object], rows: int = 1000) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table(columns), path, row_group_size=rows)
    return path


def structs(*cells: dict[str, object] | None) -> pa.Array:
    return pa.array(list(cells), pa.struct({"bytes": pa.binary(), "path": pa.string()}))


@pytest.mark.parametrize("name", ["image", "img", "jpg", "png", "webp", "image_bytes", "bytes", "something"])
@pytest.mark.parametrize("kind", [pa.binary(), pa.large_binary()])
def test_parquet_with_bytes(tmp_path, name: str, kind: pa.DataType) -> None:
    data = pa.array([picture(1), None, b"", picture(3)], kind)
    columns = {"prompt": ["a", "b", "c", None], name: data, "score": [1.5, 2, 3, 4], "nested": [[1]] * 4}
    corpus = Corpus.open(parquet(tmp_path / "a.parquet", columns))
    assert corpus.kind == "parquet"
    assert corpus.ids == [f"a.parquet:{row}" for row in range(4)]
    assert corpus.captions == [["a"], ["b"], ["c"], []]
    assert corpus.table["score"].to_pylist() == [1.5, 2, 3, 4]
    assert "nested" not in corpus.table.column_names
    assert [str(data) if isinstance(data, ImageError) else data for _, data in corpus.stream()] == [
        picture(1),
        "no image bytes in this row",
        "no image bytes in this row",
        picture(3),
    ]
    with pytest.raises(ImageError, match="no image bytes"):
        corpus.read(1)


def test_parquet_with_image_structs(tmp_path) -> None:
    fill(tmp_path, "beside/c.png")
    cells = structs(
        {"bytes": picture(5), "path": "a.png"},
        {"bytes": None, "path": "beside/c.png"},
        {"bytes": None, "path": "gone.png"},
    )
    corpus = Corpus.open(parquet(tmp_path / "x.parquet", {"image": cells, "caption": [["p", "q"], [], None]}))
    assert corpus.ids == ["a.png", "beside/c.png", "gone.png"]
    assert corpus.captions == [["p", "q"], [], []]
    assert [str(data) if isinstance(data, ImageError) else data for _, data in corpus.stream()] == [
        picture(5),
        picture(0),
        "no such file",
    ]


def test_ids_are_a_column_only_if_it_is_unique(tmp_path) -> None:
    for name, start in (("data/0.parquet", 0), ("data/1.parquet", 10)):
        data = [picture(start), picture(start + 1)]
        columns = {"image": data, "id": [0, 1], "key": [f"k{start}", f"k{start + 1}"], "text": ["t", "u"]}
        parquet(tmp_path / name, columns)
    corpus = Corpus.open(tmp_path)
    assert corpus.ids == ["k0", "k1", "k10", "k11"]
    assert [data for _, data in corpus.stream([3, 0])] == [picture(0), picture(11)]
    same = {"image": [picture(1)] * 2, "id": [1, 1]}
    assert Corpus.open(parquet(tmp_path / "b.parquet", same)).ids == ["b.parquet:0", "b.parquet:1"]


def test_a_damaged_parquet_file_is_one_row(tmp_path) -> None:
    parquet(tmp_path / "a.parquet", {"image": [picture(1)], "key": ["k"]})
    write(tmp_path, {"b.parquet": b"PAR1 and nothing else" * 20})
    corpus = Corpus.open(tmp_path)
    assert corpus.ids == ["k", "b.parquet"]
    assert corpus.table["error"].to_pylist()[0] is None
    assert "damaged Parquet" in corpus.table["error"].to_pylist()[1]
    with pytest.raises(ImageError, match="damaged"):
        corpus.read(1)


@given(st.lists(st.integers(0, 39), max_size=60), st.integers(1, 50))
@settings(max_examples=25, deadline=None)
def test_streaming_parquet_reads_the_rows_asked_for(tmp_path_factory, rows: list[int], group: int) -> None:
    path = tmp_path_factory.getbasetemp() / f"stream{group}.parquet"
    if not path.exists():
        parquet(path, {"image": [picture(number) for number in range(40)]}, rows=group)
    corpus = Corpus.open(path)
    assert list(corpus.stream(rows)) == [(row, picture(row)) for row in sorted(rows)]


def test_many_rows_are_read_in_lots_in_their_order(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(corpus_module, "_LOT", 7)
    path = parquet(tmp_path / "a.parquet", {"image": [picture(number) for number in range(40)]}, rows=9)
    rows = np.random.default_rng(0).permutation(40)
    assert list(Corpus.open(path).stream(rows)) == [(row, picture(row)) for row in range(40)]


def test_large_row_groups_are_not_kept_whole(tmp_path, monkeypatch) -> None:
    corpus = Corpus.open(parquet(tmp_path / "a.parquet", {"image": [picture(number) for number in range(50)]}))
    monkeypatch.setattr(shards, "_CACHED_BYTES", 10)
    assert [corpus.read(row) for row in (49, 3, 17, 16)] == [picture(49), picture(3), picture(17), picture(16)]
    assert len(corpus._table_images._cached[2]) == 16


def test_parquet_without_images_in_a_folder_of_images(tmp_path) -> None:
    # img2dataset's "files" output leaves a Parquet of its own beside the folder of images.
    fill(tmp_path, "00000/000000000.jpg")
    parquet(tmp_path / "00000.parquet", {"url": ["x" * 100] * 1000, "key": ["000000000"] * 1000})
    assert Corpus.open(tmp_path).ids == ["00000/000000000.jpg"]


def test_webdataset_as_img2dataset_writes_it(tmp_path) -> None:
    record = {"caption": "a dog", "url": "http://x", "key": "000000000", "width": 5, "exif": {"a": 1}, "seed": 3}
    members = {
        "000000000.jpg": picture(1, "JPEG"),
        "000000000.txt": b"a dog",
        "000000000.json": json.dumps(record).encode(),
        "000000001.webp": picture(2, "WEBP"),
        "000000001.txt": b"a cat\n",
        "000000001.cls": b"7",
    }
    write_tar(tmp_path / "00000.tar", members)
    write_tar(tmp_path / "00001.tar", {"000000010.png": picture(3)})
    write(tmp_path, {"00000_stats.json": "{}"})
    parquet(tmp_path / "00000.parquet", {"key": ["000000000"]})
    corpus = Corpus.open(tmp_path)
    assert corpus.kind == "webdataset"
    assert corpus.ids == ["000000000", "000000001", "000000010"]
    assert corpus.captions == [["a dog"], ["a cat"], []]
    assert corpus.table["seed"].to_pylist() == [3, None, None]
    assert corpus.table["class"].to_pylist() == [None, "7", None]
    assert corpus.table["listed_width"].to_pylist() == [5, None, None]
    assert corpus.table["width"].null_count == 3
    assert not {"exif", "key"} & set(corpus.table.column_names)
    expected = [picture(1, "JPEG"), picture(2, "WEBP"), picture(3)]
    assert [data for _, data in corpus.stream()] == expected
    assert [corpus.read(row) for row in range(3)] == expected
    assert len(Corpus.open(tmp_path / "00001.tar")) == 1


def test_samples_that_lack_an_image_or_repeat_a_key(tmp_path) -> None:
    write_tar(
        tmp_path / "a.tar", {"x/1.txt": b"lost", "x/1.seg.npy": b"-", "y/1.png": picture(1), "y/1.mask.png": b"-"}
    )
    write_tar(tmp_path / "b.tar", {"y/1.png": picture(2), ".hidden.png": b"", "y/1.json": b"[broken"})
    corpus = Corpus.open(tmp_path)
    assert corpus.ids == ["x/1", "y/1", "y/1#2"]
    assert corpus.table["error"].to_pylist() == ["no image in this sample", None, None]
    assert corpus.captions[0] == ["lost"]
    assert [data for _, data in corpus.stream([1, 2])] == [picture(1), picture(2)]


@pytest.mark.parametrize("cut", [100, 512, 700, 1536, 1600, 3000, 5120, 5130])
def test_a_truncated_tar_gives_what_it_still_holds(tmp_path, cut: int) -> None:
    members = {f"{number}.png": bytes([number]) * 1000 for number in range(8)}
    whole = write_tar(tmp_path / "whole.tar", members).read_bytes()
    (tmp_path / "whole.tar").unlink()
    write_tar(tmp_path / "0.tar", {"whole.png": picture(1)})
    write(tmp_path, {"1.tar": whole[:cut]})
    corpus = Corpus.open(tmp_path)
    readable = sum(1 for number in range(8) if number * 1536 + 512 + 1000 <= cut)
    good = corpus.table.filter(pa.compute.is_null(corpus.table["error"]))
    assert good["id"].to_pylist() == ["whole", *map(str, range(readable))]
    assert corpus.ids[-1] == "1.tar"
    assert "damaged tar" in corpus.table["error"].to_pylist()[-1]
    for row, data in corpus.take(range(1, 1 + readable)).stream():
        assert data == bytes([row]) * 1000


def test_a_tar_cut_short_after_it_was_opened(tmp_path) -> None:
    path = write_tar(tmp_path / "a.tar", {"a.png": picture(1), "b.png": picture(2)})
    corpus = Corpus.open(path)
    path.write_bytes(path.read_bytes()[:1060])
    found = dict(corpus.stream())
    assert found[0] == picture(1)
    assert "truncated" in str(found[1])
    path.unlink()
    assert [str(data) for _, data in corpus.stream()] == ["no such file"] * 2


def test_a_front_picture_does_not_hide_the_shards(tmp_path) -> None:
    fill(tmp_path, "readme.png")
    parquet(tmp_path / "data" / "a.parquet", {"image": [picture(1)] * 2, "key": ["a", "b"]})
    assert Corpus.open(tmp_path).ids == ["a", "b"]


def test_nothing_but_damage_is_an_input_error(tmp_path) -> None:
    with pytest.raises(InputError, match="no image in this sample"):
        Corpus.open(write_tar(tmp_path / "a.tar", {"1.txt": b"x"}))
    with pytest.raises(InputError, match="lists no images"):
        Corpus.open(parquet(tmp_path / "b.parquet", {"file_name": pa.array([], pa.string())}))
