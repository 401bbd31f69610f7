"""Pictures looked up in an index, kept and shown: what is in the folder, what comes first, what cannot be read."""

from __future__ import annotations

import json
import shutil

import numpy as np
import pyarrow.parquet as pq
import pytest
from typer.testing import CliRunner

from copyscope import Corpus, Index, stats
from copyscope.cli import main
from copyscope.detection import lookup as module
from copyscope.detection.index.hits import Hit
from copyscope.detection.lookup import Lookup, lookup
from copyscope.errors import InputError
from copyscope.imaging import images
from tests import worlds
from tests.report.test_report import embedded

FAST = "sscd-distilled"


@pytest.fixture(scope="module")
def index(world, tmp_path_factory):
    """30 training images, calibrated on 25. Not to be changed."""
    train, held = (Corpus.open(path) for path in (world.train, world.held_out))
    folder = tmp_path_factory.mktemp("lookup") / "index"
    return Index.build(train.take(range(30)), folder, FAST, held_out=held.take(range(25)))


@pytest.fixture
def asked(world, tmp_path):
    """A picture of nothing known, one with an inset of training image 15 in its upper left, a file that is no image."""
    rng = np.random.default_rng(7)
    folder = tmp_path / "asked"
    folder.mkdir()
    plain, busy = (images.resize(worlds.picture(rng)[0], (100, 150)) for _ in range(2))
    busy[:75, :75] = images.resize(images.decode(Corpus.open(world.train).read(15)), (75, 75))
    (folder / "a.png").write_bytes(images.encode(plain, "png"))
    (folder / "b.png").write_bytes(b"no picture")
    (folder / "c.png").write_bytes(images.encode(busy, "png"))
    return folder


def test_a_lookup_has_the_answers_of_the_index_the_errors_and_small_pictures(index, asked):
    found = lookup(index, [asked], 4)
    rows = found.tables["matches"].to_pylist()
    answers = index.match(asked, 4)
    assert [row["reference_id"] for row in rows] == [hit.id for hits in answers for hit in hits]
    assert [row["query_id"] for row in rows] == ["a.png"] * 4 + ["c.png"] * 4
    assert rows[4]["reference_id"] == index.ids[15]
    assert rows[4]["box"] == pytest.approx([0, 0, 0.5, 0.75], abs=0.15)
    (failed,) = found.tables["failures"].to_pylist()
    assert (failed["corpus"], failed["id"]) == ("pictures", "b.png")
    assert failed["error"].startswith("not an image")
    assert (found.summary["n"], found.summary["n_missing"], found.summary["n_index"]) == (3, 1, 30)
    assert found.summary["flagged"] is None, "25 calibration images give no p-value of 0.01"
    assert "25 calibration images" in found.summary["sentence"]
    shots = {(row["corpus"], row["id"]): row for row in found.tables["thumbnails"].to_pylist()}
    mine = shots["pictures", "c.png"]
    assert (mine["width"], mine["height"]) == (150, 100)
    assert images.decode(mine["image"]).shape == (100, 150, 3)
    theirs = shots["train", index.ids[15]]
    assert images.decode(theirs["image"]).shape == (32, 32, 3)
    assert {name for corpus, name in shots if corpus == "train"} == {
        row["reference_id"] for row in rows if row["rank"] < 4
    }


def test_what_is_counted_counts_unreadable_images_against_us(index, asked, monkeypatch):
    monkeypatch.setattr(module, "LEVEL", 0.1)
    found = lookup(index, [asked], 1).summary
    assert (found["flagged"]["value"], found["flagged"]["n"]) == (0.5, 2)
    assert found["flagged"] == stats.proportion(1, 2, missing=1).as_dict()
    assert (
        found["sentence"]
        == "1 of 2 readable images matches a training image (a p-value of 0.1 or less). This is the share flagged; of "
        "unseen images 10 % would be flagged by chance."
    )


def test_a_lookup_is_saved_loaded_and_its_report_made_again(index, asked, tmp_path):
    out = tmp_path / "out"
    run = CliRunner().invoke(main.app, ["match", str(asked), "--index", str(index.folder), "-k", "3", "-o", str(out)])
    assert run.exit_code == 0, run.output
    assert f"Report: {out / 'report.html'}" in run.output.replace("\n", "")
    page = (out / "report.html").read_text()
    first, second, last = embedded(page, "data")["pictures"]["id"]
    assert (first, second, last) == ("c.png", "a.png", "b.png")
    kept = Lookup.load(out)
    assert kept.tables["matches"].equals(pq.read_table(out / "matches.parquet"))
    assert json.loads((out / "summary.json").read_text()) == kept.summary
    (out / "report.html").unlink()
    again = CliRunner().invoke(main.app, ["report", str(out)])
    assert again.exit_code == 0, again.output
    assert (out / "report.html").read_text() == page


def test_only_the_likeliest_copies_have_small_pictures(index, asked, monkeypatch):
    monkeypatch.setattr(module, "ROWS", 1)
    shots = lookup(index, [asked], 2).tables["thumbnails"].to_pylist()
    assert [row["id"] for row in shots if row["corpus"] == "pictures"] == ["c.png"]
    assert sum(row["corpus"] == "train" for row in shots) == 2


def test_a_picture_named_twice_is_looked_up_once_and_two_of_one_name_are_refused(index, asked, tmp_path):
    assert lookup(index, [asked, asked], 1).summary["n"] == 3
    shutil.copytree(asked, tmp_path / "other")
    with pytest.raises(InputError, match=r"Two of the images asked about are called 'a\.png'"):
        lookup(index, [asked, tmp_path / "other"], 1)


def test_the_index_shows_the_middle_square_of_what_is_in_it(index, world, tmp_path):
    mine = Index.open(shutil.copytree(index.folder, tmp_path / "index"))
    mine.remove(index.ids[:1])
    found = mine.thumbnails([index.ids[2], index.ids[0], "nowhere"])
    assert list(found) == [index.ids[2]]
    square, width, height = found[index.ids[2]]
    picture = images.decode(Corpus.open(world.train).read(2))
    assert (height, width) == picture.shape[:2]
    middle = images.resize(images.centre_crop(picture, min(picture.shape[:2])), (32, 32))
    np.testing.assert_array_equal(square, middle)
    mine.compact()
    assert mine.thumbnails([index.ids[2]])[index.ids[2]][1:] == (width, height)


@pytest.mark.parametrize(("p_value", "copies"), [(0.01, 1), (0.0101, 0), (None, 0)])
def test_a_p_value_at_the_level_is_a_copy(index, asked, monkeypatch, p_value, copies):
    hit = Hit("t.png", 0.9, 0.8, 0.85, p_value, None, None, "t")
    monkeypatch.setattr(Index, "match_corpus", lambda self, corpus, k, **options: (corpus, [[hit], [], []]))
    assert lookup(index, [asked], 1).summary["n_flagged"] == copies


@pytest.mark.parametrize(("n", "known"), [(98, False), (99, True)])
def test_99_calibration_images_are_enough_to_count(index, asked, monkeypatch, n, known):
    about = index.summary()
    monkeypatch.setattr(Index, "summary", lambda self: about | {"calibration": about["calibration"] | {"n": n}})
    assert (lookup(index, [asked], 1).summary["flagged"] is not None) is known


def test_training_images_that_are_given_are_shown_whole_and_others_as_the_index_has_them(index, asked, world, tmp_path):
    shutil.copytree(world.train, tmp_path / "train")
    (first, *_) = (hit.id for hits in index.match(asked, 2) for hit in hits if hit.id != index.ids[15])
    (tmp_path / "train" / first).write_bytes(b"torn")
    found = lookup(index, [asked], 2, train=tmp_path / "train")
    shots = {row["id"]: row for row in found.tables["thumbnails"].to_pylist() if row["corpus"] == "train"}
    shown = {name: images.decode(row["image"]) for name, row in shots.items()}
    assert max(shown[index.ids[15]].shape) == min(
        192, max(shots[index.ids[15]]["width"], shots[index.ids[15]]["height"])
    )
    assert not shots[index.ids[15]]["square"]
    assert (shown[first].shape, shots[first]["square"]) == ((32, 32, 3), True)
    assert found.summary["recipe"]["train"] == str(tmp_path / "train")
    page = found.page()
    hits = {hit["id"]: hit for each in embedded(page, "data")["pictures"]["hits"] for hit in each}
    row = shots[index.ids[15]]
    assert hits[index.ids[15]]["size"] == [row["width"], row["height"]]
    assert hits[first]["size"] is None
    assert "as the index has it" not in page
    assert "as the index has it" in lookup(index, [asked], 2).page()
