"""Hostile folders: pipes, devices, links, lists that point elsewhere, trees without an end."""

from __future__ import annotations

import json
import os
import socket
import zipfile

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from typer.testing import CliRunner

from copyscope.cli import main
from copyscope.data import storage
from copyscope.data.corpus import Corpus
from copyscope.data.storage import OUTSIDE
from copyscope.detection.embedding.embed import embed
from copyscope.errors import InputError
from copyscope.files import NOT_REGULAR
from tests.pictures import fill, write

SECRET = b"root:x:0:0:secret"


def errors_of(corpus):
    return dict(zip(corpus.ids, corpus.table["error"].to_pylist(), strict=True))


def listed(*names):
    return "".join(json.dumps({"file_name": str(name)}) + "\n" for name in names)


@pytest.fixture
def watched(monkeypatch):
    """The paths of everything that is not a regular file and was opened all the same."""
    plain, found = os.open, []

    def opening(path, *arguments, **options):
        if os.path.exists(path) and not os.path.isfile(path) and not os.path.isdir(path):
            found.append(path)
            raise AssertionError(f"{path} was opened")
        return plain(path, *arguments, **options)

    monkeypatch.setattr(os, "open", opening)
    return found


def special(folder):
    """A pipe, a socket and a link to a device, with the name of an image each."""
    os.mkfifo(folder / "pipe.png")
    os.symlink("/dev/zero", folder / "zero.png")
    with socket.socket(socket.AF_UNIX) as made:
        made.bind(str(folder / "socket.png"))


def test_pipes_sockets_and_devices_are_rows_and_never_opened(tmp_path, watched):
    fill(tmp_path, "a.png")
    special(tmp_path)
    names = {"pipe.png": NOT_REGULAR, "socket.png": NOT_REGULAR, "zero.png": NOT_REGULAR}
    described = embed(Corpus.open(tmp_path), "phash", cache=tmp_path / ".cache")
    assert errors_of(described.corpus) == {"a.png": None} | names
    (tmp_path / "metadata.jsonl").write_text(listed("a.png", *names, "/dev/zero"))
    for corpus in (Corpus.open(tmp_path), Corpus.open(tmp_path / "metadata.jsonl")):
        assert errors_of(corpus) == {"a.png": None, "/dev/zero": NOT_REGULAR} | names
    assert not watched


SIDECARS = ["metadata.jsonl", "metadata.csv", "captions.json", "a.txt", "a.caption", "shard.tar", "shard.parquet"]


@pytest.mark.parametrize("name", [*SIDECARS, "../captions.json"])
@pytest.mark.parametrize("kind", ["pipe", "folder", "device"])
def test_a_pipe_or_a_folder_named_like_a_sidecar_stops_nothing(name, kind, tmp_path, watched):
    fill(tmp_path, "in/a.png")
    place = tmp_path / "in" / name
    if kind == "folder":
        place.mkdir()
    elif kind == "pipe":
        os.mkfifo(place)
    else:
        os.symlink("/dev/zero", place)
    said = {name: NOT_REGULAR} if kind != "folder" and ".." not in name else {}
    assert errors_of(Corpus.open(tmp_path / "in")) == {"a.png": None} | said
    assert not watched


@pytest.mark.parametrize("name", ["x.tar", "x.parquet", "x.json", "x.csv", "x.png"])
def test_a_pipe_that_is_named_is_told_in_two_lines(name, tmp_path, watched):
    os.mkfifo(tmp_path / name)
    with pytest.raises(InputError, match=rf"{name}': {NOT_REGULAR}\.\n.+"):
        Corpus.open(tmp_path / name)
    assert not watched


def test_what_becomes_a_pipe_after_it_was_looked_at_is_not_waited_for(tmp_path, monkeypatch):
    fill(tmp_path, "a.png")
    corpus = Corpus.open(tmp_path)
    regular = os.stat(tmp_path / "a.png")
    (tmp_path / "a.png").unlink()
    os.mkfifo(tmp_path / "a.png")
    monkeypatch.setattr(storage.os, "stat", lambda path: regular)
    ((_, found),) = corpus.stream()
    assert str(found) == NOT_REGULAR


@pytest.fixture
def pointing(tmp_path):
    """A folder whose list names files elsewhere: two images, a secret, a folder, nothing; and one by way of `..`."""
    fill(tmp_path, "set/a.png", "other/b.png", "other/c.png")
    write(tmp_path, {"secret": SECRET, "other/cut.png": b"\x89PNG\r\n\x1a\n" + SECRET, "other/p.ppm": b"P6 " + SECRET})
    other = tmp_path / "other"
    names = [tmp_path / "secret", other, other / "gone.png", other / "cut.png", other / "p.ppm"]
    names += ["../other/b.png", other / "c.png", "../set/a.png"]
    (tmp_path / "set" / "metadata.jsonl").write_text(listed(*names))
    return tmp_path / "set"


def test_lists_may_point_at_regular_files_elsewhere_which_are_counted_and_of_which_no_byte_is_told(pointing, tmp_path):
    corpus = Corpus.open(pointing)
    assert corpus.n_outside == 5
    other = str(tmp_path / "other")
    described = embed(corpus, "phash", cache=tmp_path / ".cache")
    assert errors_of(described.corpus) == {
        "a.png": None,
        "../other/b.png": None,
        f"{other}/c.png": None,
        f"{tmp_path}/secret": "not an image",
        f"{other}/cut.png": "truncated or corrupt PNG",
        f"{other}/p.ppm": "corrupt PPM",
        other: NOT_REGULAR,
        f"{other}/gone.png": "listed in metadata.jsonl, but not there",
    }


def test_inside_only_refuses_what_lies_elsewhere(pointing, tmp_path):
    corpus = Corpus.open(pointing, inside_only=True)
    found = errors_of(corpus)
    assert corpus.n_outside == 0
    assert found.pop("a.png") is None
    assert set(found.values()) == {OUTSIDE}


def test_links_that_lead_out_are_counted_refused_when_asked_and_of_their_files_no_byte_is_told(tmp_path):
    fill(tmp_path, "set/a.png", "other/b.png")
    write(tmp_path, {"secret": SECRET})
    os.symlink(tmp_path / "other", tmp_path / "set" / "linked")
    os.symlink(tmp_path / "secret", tmp_path / "set" / "secret.png")
    os.symlink("a.png", tmp_path / "set" / "same.png")
    corpus = Corpus.open(tmp_path / "set")
    described = embed(corpus, "phash", cache=tmp_path / ".cache")
    assert corpus.n_outside == 2
    assert errors_of(described.corpus) == {
        "a.png": None, "same.png": None, "linked/b.png": None, "secret.png": "not an image",
    }  # fmt: skip
    (tmp_path / "set" / "list.csv").write_text("file_name\na.png\nlinked/b.png\nsecret.png\n")
    for path in (tmp_path / "set", tmp_path / "set" / "list.csv"):
        found = errors_of(Corpus.open(path, inside_only=True))
        assert (found["a.png"], found["linked/b.png"], found["secret.png"]) == (None, OUTSIDE, OUTSIDE)


def test_an_archive_and_a_url_point_at_nothing_elsewhere(tmp_path):
    fill(tmp_path, "set/a.png", "b.png")
    write(tmp_path, {"set/metadata.jsonl": listed("a.png", "../b.png", tmp_path / "b.png", "/etc/passwd")})
    with zipfile.ZipFile(tmp_path / "set.zip", "w") as archive:
        for name in ("a.png", "metadata.jsonl"):
            archive.write(tmp_path / "set" / name, f"in/{name}")
        archive.write(tmp_path / "b.png", "b.png")
    import fsspec

    memory = fsspec.filesystem("memory")
    memory.put(str(tmp_path / "set"), "/hostile/set", recursive=True)
    memory.pipe("/hostile/b.png", (tmp_path / "b.png").read_bytes())
    for url in (f"zip://in::{tmp_path}/set.zip", "memory://hostile/set"):
        found = errors_of(Corpus.open(url))
        assert found.pop("a.png") is None
        assert len(found) == 3
        assert all(error.startswith(OUTSIDE) for error in found.values())


def test_a_parquet_file_of_images_points_at_nothing_elsewhere(tmp_path):
    fill(tmp_path, "set/a.png")
    write(tmp_path, {"secret": SECRET})
    os.symlink(tmp_path / "secret", tmp_path / "set" / "linked.png")
    paths = ["a.png", "../secret", str(tmp_path / "secret"), "linked.png"]
    cells = pa.array(
        [{"bytes": None, "path": path} for path in paths], pa.struct({"bytes": pa.binary(), "path": pa.string()})
    )
    pq.write_table(pa.table({"image": cells}), tmp_path / "set" / "x.parquet")
    found = dict(Corpus.open(tmp_path / "set" / "x.parquet").stream())
    assert isinstance(found[0], bytes)
    assert [str(found[row]) for row in (1, 2, 3)] == [OUTSIDE] * 3


# Trees without an end


def test_folders_that_link_to_each_other_are_listed_once_each(tmp_path):
    names = [f"{number:02}" for number in range(12)]
    for name in names:
        fill(tmp_path, f"{name}/{name}.png")
        for other in names:
            os.symlink(tmp_path / other, tmp_path / name / f"to-{other}")
    os.symlink("/", tmp_path / "root")
    os.symlink(tmp_path.parent, tmp_path / "up")
    corpus = Corpus.open(tmp_path)
    assert len(names) <= len(corpus) <= 4 * len(names)
    assert set(names) == {name.rpartition("/")[2].removesuffix(".png") for name in corpus.ids}


class Endless:
    """A file system in which each folder holds an image and two more folders."""

    protocol, async_impl = "endless", False

    def ls(self, path, detail):
        return [{"name": f"{path}/{name}", "type": kind, "size": 1} for name, kind in
                (("a.png", "file"), ("x", "directory"), ("y", "directory"))]  # fmt: skip


def test_a_tree_without_an_end_is_listed_to_a_bound(monkeypatch):
    monkeypatch.setattr(storage, "MAX_FOLDERS", 500)
    found = storage.Storage(Endless(), False).list_files("top")
    assert 200 <= len(found.files) <= 500
    assert any("more than 500 folders" in why for why in found.unreadable.values())
    monkeypatch.setattr(storage, "MAX_DEPTH", 5)
    found = storage.Storage(Endless(), False).list_files("top")
    assert len(found.files) == 2**5 - 1
    assert set(found.unreadable.values()) == {"not looked into: more than 5 folders deep"}


# What is said of it


def test_a_command_says_how_many_lie_elsewhere_and_refuses_them_when_asked(pointing):
    run = CliRunner().invoke
    found = run(main.app, ["lint", str(pointing), "-p", "phash", "--json"])
    assert (json.loads(found.stdout)["n_outside"], json.loads(found.stdout)["n_missing"]) == (5, 5)
    assert f"5 images lie outside the folder {pointing}" in found.stderr
    assert "secret" not in found.stdout
    assert "5 images lie outside" in run(main.app, ["lint", str(pointing), "-p", "phash"]).stdout
    found = run(main.app, ["lint", str(pointing), "-p", "phash", "--json", "--inside-only"])
    assert (json.loads(found.stdout)["n_outside"], json.loads(found.stdout)["n_missing"]) == (0, 7)
