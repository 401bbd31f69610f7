"""Removal lists: what they name is left out, counted and said, on every command that takes a training set."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from typer.testing import CliRunner

from copyscope.cli import main
from copyscope.data import removals
from copyscope.data.corpus import Corpus
from copyscope.data.removals import ids_of, leave_out, read_list
from copyscope.detection.index.index import Index
from copyscope.errors import InputError
from tests.data.test_shards import write_tar
from tests.pictures import fill, picture, write


def digest(number: int) -> str:
    return hashlib.sha256(picture(number)).hexdigest()


def run(*arguments: object) -> tuple[dict, str]:
    found = CliRunner().invoke(main.app, [*map(str, arguments), "--json"], catch_exceptions=False)
    assert found.exit_code == 0, found.output
    return json.loads(found.stdout), found.stderr


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("list.txt", "\ufeffa.png\r\n\n  https://x/y#z?q=1,2  \n"),
        ("list", "a.png\nhttps://x/y#z?q=1,2"),
        ("list.csv", 'name,ID,url\nfirst,a.png,\nsecond,,"https://x/y#z?q=1,2"\n'),
        ("list.tsv", "key\nhttps://x/y#z?q=1,2\na.png\n"),
        ("list.jsonl", '{"sha256": "a.png"}\n{"file_name": "https://x/y#z?q=1,2"}\n'),
    ],
)
def test_lists_of_all_kinds(tmp_path, name: str, content: str) -> None:
    assert sorted(read_list(write(tmp_path, {name: content}) / name)) == ["a.png", "https://x/y#z?q=1,2"]


def test_a_list_as_parquet(tmp_path) -> None:
    pq.write_table(pa.table({"url": ["u", None], "id": pa.array([None, 7])}), tmp_path / "list.parquet")
    assert read_list(tmp_path / "list.parquet") == ["u", "7"]


def test_lists_that_cannot_be_used_are_told(tmp_path) -> None:
    write(tmp_path, {"list.csv": "name,reason\na.png,mine\n"})
    with pytest.raises(InputError, match=r"line 2: names no image.\nEach record has one of: id, sha256, url"):
        read_list(tmp_path / "list.csv")
    with pytest.raises(InputError, match=r"no such file or folder.\nDid you mean '.*list.csv'"):
        read_list(tmp_path / "lst.csv")


def test_by_id_and_by_the_sha256_of_the_file(tmp_path) -> None:
    fill(tmp_path, "a.png", "b.png", "c.png", "d.png")
    write(tmp_path, {"copy.png": picture(2), "broken.png": b""})
    corpus = Corpus.open(tmp_path)
    kept, removed = leave_out(corpus, ["a.png", digest(2).upper(), "nowhere.png", "f" * 64, "a.png"])
    assert kept.ids == ["b.png", "broken.png", "d.png"], "every file of that content goes, whatever its name"
    assert removed.summary() == {"n_listed": 4, "n_removed": 3, "n_unmatched": 2}
    assert removed.unmatched == {"nowhere.png", "f" * 64}
    assert kept.table["sha256"].to_pylist()[0] == digest(1)
    assert [kept.read(row) for row in (0, 2)] == [picture(1), picture(3)]


def test_files_are_read_only_where_a_sha256_is_listed(tmp_path, monkeypatch) -> None:
    corpus = Corpus.open(fill(tmp_path, "a.png", "b.png"))

    def read(*_: object) -> None:
        raise AssertionError("read")

    monkeypatch.setattr(Corpus, "stream", read)
    assert leave_out(corpus, ["b.png"])[0].ids == ["a.png"]
    known = corpus.with_column("sha256", [digest(0), digest(1)])
    with pytest.raises(AssertionError, match="read"):
        leave_out(corpus, [digest(0)])
    monkeypatch.setattr(Corpus, "stream", lambda self, rows: iter(list[None](rows)))
    assert leave_out(known, [digest(0)])[0].ids == ["b.png"]


def test_by_the_url_an_image_came_from(tmp_path) -> None:
    members = {}
    for number in range(3):
        members |= {
            f"{number}.png": picture(number),
            f"{number}.json": json.dumps({"url": f"https://x/{number}"}).encode(),
        }
    corpus = Corpus.open(write_tar(tmp_path / "a.tar", members))
    kept, removed = leave_out(corpus, ["https://x/1", "https://x/9"])
    assert kept.ids == ["0", "2"]
    assert (removed.n_removed, removed.unmatched) == (1, {"https://x/9"})


@pytest.mark.parametrize("entry", ["s3://bucket/set/b.png", "bucket/set/b.png", "set/b.png", "b.png"])
def test_by_url_and_key_in_a_store(entry: str) -> None:
    table = pa.table({"id": ["a.png", "b.png"], "image": ["bucket/set/a.png", "bucket/set/b.png"]})
    corpus = Corpus(table, "s3://bucket/set", "folder")
    assert leave_out(corpus, [entry])[0].ids == ["a.png"]
    assert ids_of(corpus.ids, [None, None], ["b.png"])[0] == ["b.png"]


def test_nothing_left_is_told(tmp_path) -> None:
    corpus = Corpus.open(fill(tmp_path, "a.png"))
    with pytest.raises(InputError, match="All 1 images"):
        leave_out(corpus, ["a.png"])
    assert leave_out(corpus, [])[1].summary() == {"n_listed": 0, "n_removed": 0, "n_unmatched": 0}


@pytest.fixture
def train(tmp_path) -> Path:
    fill(tmp_path / "train", *(f"{number}.png" for number in range(5)))
    write(tmp_path, {"list.txt": f"0.png\n{digest(3)}\ngone.png\n"})
    return tmp_path / "train"


@pytest.mark.parametrize("command", ["embed", "lint", "duplicates", "curate", "index build"])
def test_commands_leave_it_out_and_say_so(tmp_path, train: Path, command: str) -> None:
    protocol = () if command == "curate" else ("-p", "phash")
    out = tmp_path / "out"
    summary, said = run(*command.split(), train, "--without", tmp_path / "list.txt", "-o", out, *protocol)
    expected = {"list": str(tmp_path / "list.txt"), "n_listed": 3, "n_removed": 2, "n_unmatched": 1}
    assert summary["without"] == expected
    assert "2 images are left out" in said
    assert "1 of its 3 entries name no image, the first 'gone.png'" in said
    saved = {"embed": "embeddings.json", "lint": "summary.json"}.get(command)
    if saved:
        assert json.loads((out / saved).read_text())["without"] == expected
    n = {"lint": "n_train", "duplicates": "n_images"}.get(command, "n")
    assert summary.get(n, 3) == 3
    plain, _ = run(*command.split(), train, "-o", tmp_path / "plain", *protocol)
    assert "without" not in plain


def test_an_index_forgets_what_is_listed(tmp_path, train: Path) -> None:
    out = tmp_path / "index"
    run("index", "build", train, "-o", out, "-p", "phash")
    summary, said = run("index", "remove", out, "--list", tmp_path / "list.txt")
    assert sorted(Index.open(out).ids) == ["1.png", "2.png", "4.png"]
    assert summary["without"]["n_removed"] == summary["n_removed"] == 2
    assert summary["without"]["n_unmatched"] == 1
    assert "'gone.png'" in said
    again, _ = run("index", "remove", out, "--list", tmp_path / "list.txt")
    assert (again["without"]["n_removed"], again["without"]["n_unmatched"]) == (0, 3)


def test_images_added_to_an_index_obey_a_list(tmp_path, train: Path) -> None:
    out = tmp_path / "index"
    run("index", "build", train, "-o", out, "-p", "phash")
    write(tmp_path / "more", {"gone.png": picture(70), "8.png": picture(80)})
    summary, said = run("index", "add", out, tmp_path / "more", "--without", tmp_path / "list.txt")
    assert sorted(Index.open(out).ids) == ["0.png", "1.png", "2.png", "3.png", "4.png", "8.png"]
    assert summary["without"] == {"list": str(tmp_path / "list.txt"), "n_listed": 3, "n_removed": 1, "n_unmatched": 2}
    assert "2 of its 3 entries name no image" in said


def test_pieces_of_a_long_list_of_images_are_one_list(tmp_path, monkeypatch) -> None:
    fill(tmp_path, *(f"{number}.png" for number in range(7)))
    write(tmp_path, {"7.png": picture(2), "8.png": b""})
    corpus = Corpus.open(tmp_path).with_column("sha256", [digest(0), *[None] * 8])
    listed, empty = ["6.png", digest(2), digest(0), "none"], hashlib.sha256(b"").hexdigest()
    whole = leave_out(corpus, listed)
    assert whole[0].ids == ["1.png", "3.png", "4.png", "5.png", "8.png"]
    assert whole[0].table["sha256"].to_pylist() == [digest(1), digest(3), digest(4), digest(5), empty]
    monkeypatch.setattr(removals, "PIECE", 2)
    kept, removed = leave_out(corpus, listed)
    assert removed == whole[1]
    assert kept.table.equals(whole[0].table)
