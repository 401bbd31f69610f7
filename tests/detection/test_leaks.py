"""Leaks: images of one set that stand in another, and what is done with the list."""

from __future__ import annotations

import json
import shutil

import pyarrow.parquet as pq
import pytest
from PIL import Image

from copyscope import Corpus
from copyscope.data.joined import JoinedCorpus
from copyscope.detection.leaks import Leaks, leaks
from copyscope.errors import InputError
from tests.cli.test_main import FAST, run


@pytest.fixture(scope="module")
def sets(world, tmp_path_factory):
    """Three sets of different pictures; b has two of a (one file, one recompressed and resized), c has one of b; both
    have names that repeat."""
    folder = tmp_path_factory.mktemp("leaks")
    held = sorted(path for path in world.held_out.iterdir() if path.suffix == ".png")
    for name, some in (("a", held[:8]), ("b", held[8:16]), ("c", held[16:20])):
        (folder / name).mkdir()
        for number, path in enumerate(some):
            shutil.copy(path, folder / name / f"{number}.png")
    shutil.copy(held[0], folder / "b" / "copy.png")
    with Image.open(held[3]) as image:
        image.convert("RGB").resize((image.width * 2, image.height * 2)).save(folder / "b" / "again.jpg", quality=80)
    shutil.copy(held[8], folder / "c" / "of b.png")
    shutil.copy(held[16], folder / "c" / "twin.png")  # in c alone
    (folder / "b" / "broken.png").write_bytes(b"")
    return folder


def test_a_joined_corpus_reads_the_images_of_all(sets):
    parts = [Corpus.open(sets / name) for name in "ab"]
    joined = JoinedCorpus.of(parts)
    assert joined.ids[0] == f"{sets}/a/0.png"
    assert joined.table["set"].to_pylist() == [str(sets / "a")] * 8 + [str(sets / "b")] * 11
    some = joined.take([12, 0, 12, 8]).with_column("id", list("wxyz"))
    plain = dict(some.stream([3, 2, 1, 0]))
    assert set(plain) == {0, 1, 2, 3}
    assert all(plain[row] == some.read(row) for row in plain)
    assert plain[1] == parts[0].read(0)
    assert plain[3] == parts[1].read(0)
    assert some.paths()[1] == str(sets / "a" / "0.png")


def test_leaks_are_groups_across_sets_and_a_list_to_drop(sets, tmp_path):
    arguments = ["leaks", sets / "a", sets / "b", sets / "c", *FAST]
    code, stdout, _ = run(*arguments, "--json", "-o", tmp_path / "out")
    found = json.loads(stdout)
    assert code == 3
    across = {}
    for row in found["groups"]:
        across.setdefault(row["group"], set()).add((row["set"].rpartition("/")[2], row["id_in_set"]))
    assert sorted(map(sorted, across.values())) == [
        [("a", "0.png"), ("b", "copy.png")],
        [("a", "3.png"), ("b", "again.jpg")],
        [("b", "0.png"), ("c", "of b.png")],
    ]
    assert [row["id"] for row in found["drop"]] == ["0.png", "3.png"]
    assert (found["n_groups"], found["n_exact_groups"], found["n_leaked"], found["n_missing"]) == (3, 2, 2, 1)
    assert [each["n_leaked"] for each in found["sets"]] == [2, 3, 1]
    assert [each["n_missing"] for each in found["sets"]] == [0, 1, 0]
    assert found["sentence"] == f"2 of 8 images of {sets / 'a'} stand in another set too, in 3 groups."
    loaded = Leaks.load(tmp_path / "out")
    assert loaded.summary["sentence"] == found["sentence"]
    assert "again.jpg" in (tmp_path / "out" / "report.html").read_text()
    assert pq.read_table(tmp_path / "out" / "failures.parquet").to_pylist()[0]["corpus"] == str(sets / "b")
    # The list leaves them out, and then nothing leaks.
    code, _, _ = run("curate", sets / "a", "-o", tmp_path / "clean", "--without", tmp_path / "out" / "drop.csv")
    assert code == 0
    assert len(Corpus.open(tmp_path / "clean")) == 6
    code, stdout, _ = run("leaks", tmp_path / "clean", sets / "b", *FAST)
    assert code == 0
    assert f"No image of {tmp_path / 'clean'} was found in {sets / 'b'}." in stdout


def test_decisions_are_honoured(sets, tmp_path):
    path = tmp_path / "d.jsonl"
    run("decide", "different", "3.png", "again.jpg", "--of", sets / "a", "--of", sets / "b", "--decisions", path)
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    # 3.png is an id of both sets: each is named by its digest.
    assert [each["id"] for each in lines[0]["images"]] == ["3.png", "3.png", "again.jpg"]
    run("decide", "ignore", f"{sets}/b/3.png", "--of", sets / "a", "--of", sets / "b", "--decisions", tmp_path / "one")
    assert len(json.loads((tmp_path / "one").read_text())["images"]) == 1
    code, stdout, _ = run("leaks", sets / "a", sets / "b", *FAST, "--json", "--decisions", path)
    found = json.loads(stdout)
    assert code == 3
    assert [row["id"] for row in found["drop"]] == ["0.png"]
    assert found["sentence"].endswith("1 pair told apart.")
    # Where every image can be read, too.
    code, _, _ = run("leaks", sets / "a", sets / "c", *FAST, "--decisions", path)
    assert code == 0


def test_what_is_no_two_sets_is_refused(sets):
    with pytest.raises(InputError, match="there is one"):
        leaks([sets / "a"])
    with pytest.raises(InputError, match="named twice"):
        leaks([sets / "a", str(sets / "a") + "/"])


def test_splits_of_one_folder_are_two_sets(sets, tmp_path):
    for name, split in (("a", "train"), ("b", "test")):
        shutil.copytree(sets / name, tmp_path / "both" / split)
    code, stdout, _ = run("leaks", f"{tmp_path / 'both'}@train", f"{tmp_path / 'both'}@test", *FAST)
    assert code == 3
    assert f"2 of 8 images of {tmp_path / 'both'}@train" in stdout
