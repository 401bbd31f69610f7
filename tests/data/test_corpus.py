"""Corpus: its columns, reading and streaming, from any file system, and what it refuses to open."""

from __future__ import annotations

import os
import shutil
import threading
from pathlib import Path

import fsspec
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from copyscope.data import corpus as corpus_module
from copyscope.data.corpus import Corpus
from copyscope.data.table import SCHEMA
from copyscope.errors import ImageError, InputError
from copyscope.imaging import images
from tests.pictures import fill, picture, write


def test_a_folder_is_read_recursively_and_sorted(tmp_path) -> None:
    fill(tmp_path, "b.png", "a/10.jpg", "a/2.jpg", "a/deep/er/x.webp", ".hidden.png", ".git/c.png", "__MACOSX/b.png")
    write(tmp_path, {"notes.md": "x", "README": "x", "a/weights.safetensors": b"x"})
    corpus = Corpus.open(tmp_path)
    assert corpus.ids == ["a/10.jpg", "a/2.jpg", "a/deep/er/x.webp", "b.png"]
    assert (corpus.kind, corpus.origin, len(corpus)) == ("folder", str(tmp_path), 4)
    assert corpus.table.schema.names == SCHEMA.names
    assert corpus.table.schema == SCHEMA
    assert corpus.table["weight"].to_pylist() == [1.0] * 4
    for name in ("sha256", "width", "height", "error"):
        assert corpus.table[name].null_count == 4
    assert corpus.captions == [[]] * 4
    assert corpus.prompts == [""] * 4
    assert [corpus.read(row) for row in range(4)] == [picture(1), picture(2), picture(3), picture(0)]
    assert list(corpus.stream()) == [(0, picture(1)), (1, picture(2)), (2, picture(3)), (3, picture(0))]


def test_what_is_no_image_is_a_row_that_fails_when_read(tmp_path) -> None:
    write(
        tmp_path, {"a.png": picture(1), "empty.jpg": b"", "no_suffix": picture(2), "page.jpg": "<html>", "x.mp4": b"\0"}
    )
    os.symlink(tmp_path / "nowhere.png", tmp_path / "dangling.png")
    os.mkfifo(tmp_path / "pipe.png")
    corpus = Corpus.open(tmp_path)
    assert corpus.ids == ["a.png", "dangling.png", "empty.jpg", "no_suffix", "page.jpg", "pipe.png", "x.mp4"]
    found = {}
    for row, data in corpus.stream():
        try:
            found[corpus.ids[row]] = images.decode(data).shape if isinstance(data, bytes) else str(data)
        except ImageError as error:
            found[corpus.ids[row]] = str(error)
    assert found == {
        "a.png": (4, 5, 3),
        "dangling.png": "no such file",
        "empty.jpg": "empty file",
        "no_suffix": (4, 5, 3),
        "page.jpg": "not an image: starts with b'<html>'",
        "pipe.png": "not a regular file",
        "x.mp4": "not an image: starts with b'\\x00'",
    }


def test_links_are_followed_but_not_round_in_loops(tmp_path) -> None:
    fill(tmp_path, "in/a.png", "other/b.png")
    os.symlink(tmp_path / "in", tmp_path / "in" / "loop")
    os.symlink(tmp_path, tmp_path / "in" / "up")
    os.symlink(tmp_path / "other", tmp_path / "in" / "linked")
    assert Corpus.open(tmp_path / "in").ids == ["a.png", "linked/b.png"]


def test_a_file_that_becomes_unreadable(tmp_path, monkeypatch) -> None:
    fill(tmp_path, "a.png", "b.png", "c.png")
    corpus = Corpus.open(tmp_path)
    (tmp_path / "a.png").unlink()
    (tmp_path / "b.png").unlink()
    (tmp_path / "b.png").mkdir()
    assert [str(data) for _, data in corpus.stream([0, 1])] == ["no such file", "not a regular file"]

    def refuse(*_: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("copyscope.data.storage.Storage.open", refuse)  # root may read anything
    with pytest.raises(ImageError, match="no permission"):
        corpus.read(2)


def test_names_that_are_not_utf8(tmp_path) -> None:
    fill(tmp_path, "a.png")
    with open(os.fsencode(tmp_path) + b"/\xff.png", "wb") as file:
        file.write(picture(7))
    corpus = Corpus.open(tmp_path)
    assert corpus.ids == ["a.png", "\ufffd.png"]
    assert corpus.read(1) == picture(7)


def test_names_with_anything_in_them(tmp_path) -> None:
    names = ["a#row=3.png", "a::b.png", "sp ace.png", "x#bytes=1+2", "ä ☃.png", "%bytes:41.png", "new\nline.png"]
    fill(tmp_path / "f::g", *names)
    corpus = Corpus.open(tmp_path / "f::g")
    assert {corpus.ids[row]: data for row, data in corpus.stream()} == {
        name: picture(number) for number, name in enumerate(names)
    }


@pytest.fixture
def as_url(tmp_path):
    """A folder on disk -> the same files under the URL of another file system."""

    def convert(folder: Path, kind: str) -> str:
        if kind == "zip":
            shutil.make_archive(str(tmp_path / "packed"), "zip", folder)
            return f"zip://::{tmp_path / 'packed.zip'}"
        if kind == "file":
            return f"file://{folder}"
        memory = fsspec.filesystem("memory")
        for path in filter(Path.is_file, folder.rglob("*")):
            memory.pipe(f"/corpora/{folder.name}/{path.relative_to(folder).as_posix()}", path.read_bytes())
        return f"memory://corpora/{folder.name}"

    yield convert
    memory = fsspec.filesystem("memory")
    if memory.exists("/corpora"):
        memory.rm("/corpora", recursive=True)


@pytest.mark.parametrize("kind", ["memory", "zip", "file"])
@pytest.mark.parametrize("layout", ["folder", "imagefolder", "captions json", "captions txt", "parquet", "webdataset"])
def test_any_file_system_gives_the_same_rows(tmp_path, as_url, kind: str, layout: str) -> None:
    from tests.data.test_shards import write_tar

    folder = tmp_path / "data"
    if layout == "parquet":
        table = pa.table({"image": [picture(1), picture(2)], "text": ["a", "b"], "key": ["x", "y"]})
        folder.mkdir()
        pq.write_table(table, folder / "a.parquet")
    elif layout == "webdataset":
        write_tar(folder / "0.tar", {"x.png": picture(1), "x.txt": b"a", "y.png": picture(2), "y.txt": b"b"})
    else:
        fill(folder, "sub/x.png", "sub/y.png")
    if layout == "imagefolder":
        write(folder, {"metadata.jsonl": '{"file_name": "sub/x.png", "text": "a"}\n'})
    elif layout == "captions json":
        write(folder, {"captions.json": '{"./far/sub/x.png": ["a", "b"]}'})
    elif layout == "captions txt":
        write(folder, {"sub/x.txt": "a\n"})
    local = Corpus.open(folder)
    remote = Corpus.open(as_url(folder, kind))
    assert remote.kind == local.kind == layout
    assert remote.table.drop_columns("image").equals(local.table.drop_columns("image"))
    assert [data for _, data in remote.stream()] == [data for _, data in local.stream()]
    assert [remote.read(row) for row in range(2)] == [local.read(row) for row in range(2)]
    assert len(set(map(len, (remote.ids, remote.captions, remote.prompts)))) == 1


def test_an_archive_is_read_by_one_thread(tmp_path) -> None:
    # Its members share one file, and threads would take each other's place in it.
    fill(tmp_path / "data", *(f"{number}.png" for number in range(40)))
    shutil.make_archive(str(tmp_path / "packed"), "zip", tmp_path / "data")
    corpus = Corpus.open(f"zip://::{tmp_path / 'packed.zip'}")
    before = threading.active_count()
    for row, data in corpus.stream():
        assert data == picture(int(corpus.ids[row].removesuffix(".png")))
        assert threading.active_count() == before


def test_prompts(tmp_path) -> None:
    fill(tmp_path, "a.png", "b.png", "c.png")
    lines = [
        '{"file_name": "a.png", "text": "caption a", "prompt": "prompt a"}',
        '{"file_name": "b.png", "text": ["first", "second"]}',
    ]
    corpus = Corpus.open(write(tmp_path, {"metadata.jsonl": "\n".join(lines)}))
    assert corpus.prompts == ["prompt a", "first", ""]
    assert corpus.captions == [["caption a"], ["first", "second"], []]


def test_take_and_with_column(tmp_path) -> None:
    corpus = Corpus.open(fill(tmp_path, *(f"{number}.png" for number in range(5))))
    taken = corpus.take([3, 1])
    assert taken.ids == ["3.png", "1.png"]
    assert [data for _, data in taken.stream([1, 0])] == [picture(1), picture(3)]
    filled = taken.with_column("width", [5, None]).with_column("error", [None, "burnt"]).with_column("seed", [7, 8])
    assert filled.table["width"].type == pa.int32()
    assert filled.table["seed"].to_pylist() == [7, 8]
    assert taken.table["width"].null_count == 2
    with pytest.raises(ImageError, match="burnt"):
        filled.read(1)
    assert filled.with_column("height", pa.array([4, 4], pa.int64())).table["height"].type == pa.int32()
    assert filled.table.schema.names == [*SCHEMA.names, "seed"]
    with pytest.raises(ValueError, match="2 values for 5"):
        corpus.with_column("width", [1, 2])
    with pytest.raises(ValueError, match="unique"):
        taken.with_column("id", ["x", "x"])


def test_a_saved_table_is_a_corpus_again(tmp_path, monkeypatch) -> None:
    fill(tmp_path / "data", "a.png", "b.png")
    monkeypatch.chdir(tmp_path)
    corpus = Corpus.open("data")
    pq.write_table(corpus.table, tmp_path / "rows.parquet")
    monkeypatch.chdir("/")
    again = Corpus(pq.read_table(tmp_path / "rows.parquet"), corpus.origin, corpus.kind)
    assert [again.read(row) for row in range(2)] == [picture(0), picture(1)]


@given(st.lists(st.integers(0, 9), max_size=20))
@settings(max_examples=30, deadline=None)
def test_stream_gives_the_rows_asked_for(tmp_path_factory, rows: list[int]) -> None:
    folder = tmp_path_factory.getbasetemp() / "ten"
    if not folder.exists():
        fill(folder, *(f"{number}.png" for number in range(10)))
    assert list(Corpus.open(folder).stream(rows)) == [(row, picture(row)) for row in rows]


def test_reading_from_many_threads(tmp_path) -> None:
    table = pa.table({"image": [picture(number) for number in range(60)]})
    pq.write_table(table, tmp_path / "a.parquet", row_group_size=7)
    corpus = Corpus.open(tmp_path)
    wrong = []

    def work(start: int) -> None:
        wrong.extend(row for row in range(start, 60, 4) if corpus.read(row) != picture(row))

    threads = [threading.Thread(target=work, args=(start,)) for start in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []


def test_one_image(tmp_path) -> None:
    corpus = Corpus.open(fill(tmp_path, "a.png") / "a.png")
    assert corpus.ids == ["a.png"]
    assert corpus.read(0) == picture(0)


@pytest.mark.parametrize(
    ("asked", "said", "advice"),
    [
        ("trian", "no such file or folder", "Did you mean '.*/train'"),
        ("", "no such file or folder", "Check the path"),
        ("void", "the folder is empty", "holds images"),
        ("texts", "no images in it, only 3 other files (.docx, .md, .txt)", ".jpg"),
        ("train/notes.docx", "a .docx file is no corpus", "folder of images"),
        ("packed.zip", "a .zip file is no corpus", "zip://::"),
        ("bad.parquet", "Parquet", "damaged"),
        ("bad.tar", "damaged tar", "No image could be found"),
        ("bad.json", "lists no captions", "list of captions"),
        ("nosuchprotocol://x", "Protocol not known", "Check the path or URL"),
        ("memory://nothing/here", "no such file or folder", "Check the path"),
    ],
)
def test_what_cannot_be_opened_is_told_in_two_lines(tmp_path, monkeypatch, asked: str, said: str, advice: str) -> None:
    fill(tmp_path, "train/a.png")
    write(tmp_path, {"train/notes.docx": "x", "packed.zip": "x", "bad.parquet": "x", "bad.tar": b"x" * 2000})
    write(tmp_path, {"bad.json": '{"a": {"b": 1}}', "texts/a.txt": "x", "texts/b.md": "x", "texts/c.docx": "x"})
    (tmp_path / "void").mkdir()
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError) as caught:
        Corpus.open(asked)
    first, second = str(caught.value).split("\n")
    assert said in first
    assert asked in first
    with pytest.raises(AssertionError, match=advice):
        raise AssertionError(second)


def test_a_folder_of_images_without_suffix_is_found(tmp_path) -> None:
    assert Corpus.open(write(tmp_path, {"0001": picture(1), "0002": "x"})).ids == ["0001", "0002"]


def chunked(*sizes: int) -> Corpus:
    """Rows r0, r1, ... in pieces of these sizes."""
    n = sum(sizes)
    table = pa.table(
        {"id": [f"r{row}" for row in range(n)], "captions": pa.array([[f"c{row}"] * (row % 3) for row in range(n)])}
    )
    starts = [sum(sizes[:piece]) for piece in range(len(sizes))]
    pieces = [table.slice(start, size).combine_chunks() for start, size in zip(starts, sizes, strict=True)]
    return Corpus(pa.concat_tables(pieces), "none", "folder")


@pytest.mark.parametrize("rows", [[], [0], [6, 5, 6, 0, 3], [0, 1, 2, 3], list(range(8)), [7, 2]])
@pytest.mark.parametrize("sizes", [(8,), (3, 1, 4), (0, 2, 0, 6)])
def test_rows_are_picked_in_the_order_asked_for_whatever_the_pieces(rows: list[int], sizes: tuple[int, ...]) -> None:
    corpus = chunked(*sizes)
    for name in ("id", "captions"):
        assert corpus.pick(name, np.array(rows, np.int64)).to_pylist() == [
            corpus.table[name][row].as_py() for row in rows
        ]
    taken = corpus.take(rows)
    assert taken.ids == [f"r{row}" for row in rows]
    assert taken.table.schema == corpus.table.schema
    assert [corpus.id_of(row) for row in rows] == taken.ids


def test_of_very_many_images_the_table_is_in_a_file_and_the_same(tmp_path, monkeypatch):
    write(tmp_path / "set", {f"{number:02d}.png": b"no image" for number in range(30)} | {"03.txt": "a caption"})
    plain = Corpus.open(tmp_path / "set")
    monkeypatch.setattr(corpus_module, "ONE_PIECE", 10)
    monkeypatch.setattr(corpus_module, "ROWS_A_PIECE", 7)
    before = pa.total_allocated_bytes()
    mapped = Corpus.open(tmp_path / "set")
    assert pa.total_allocated_bytes() - before < plain.table.nbytes
    assert mapped.table.equals(plain.table)
    assert mapped.table["id"].num_chunks == 5
    assert mapped.captions[3] == ["a caption"]
    assert mapped.take([29, 3]).ids == ["29.png", "03.png"]
    assert isinstance(next(iter(mapped.stream([4])))[1], bytes)
