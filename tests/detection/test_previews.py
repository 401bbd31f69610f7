"""Which pictures a report gets, how large they are, and that one gone since is left out."""

from __future__ import annotations

import dataclasses
import io
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from PIL import Image

from copyscope.data.corpus import Corpus
from copyscope.detection import previews as module
from copyscope.detection.embedding.embeddings import Embeddings
from copyscope.detection.previews import gallery
from copyscope.imaging import images

TRAIN = 40


@pytest.fixture
def described(tmp_path):
    """Eight generated and forty training images, a grey of its own each; the first of each cannot be read."""

    def folder(name, n):
        (tmp_path / name).mkdir()
        for number in range(n):
            picture = np.full((300, 220, 3), 6 * number, np.uint8)
            (tmp_path / name / f"{number:02d}.png").write_bytes(images.encode(picture, "png") if number else b"")
        corpus = Corpus.open(tmp_path / name)
        rows = np.arange(1, n)
        return Embeddings(corpus, rows, np.zeros((n - 1, 1), np.float32), "by hand", "")

    return {"generated": folder("generated", 8), "train": folder("train", TRAIN)}


def tables(generated=(), groups=(), risk=()):
    """generated: (id, match, next, combined); groups: (id, group); risk: ids."""
    columns = list(zip(*generated, strict=True)) or [(), (), (), ()]
    names = {"id": pa.string(), "match": pa.string(), "next_match": pa.string(), "combined": pa.float32()}
    return {
        "generated": pa.table(
            {name: pa.array(values, kind) for (name, kind), values in zip(names.items(), columns, strict=True)}
        ),
        "groups": pa.table(
            {
                "id": pa.array([name for name, _ in groups], pa.string()),
                "group": pa.array([group for _, group in groups], pa.int64()),
            }
        ),
        "risk": pa.table({"id": pa.array(risk, pa.string())}),
    }


def shown(table):
    return list(zip(table["corpus"].to_pylist(), table["id"].to_pylist(), strict=True))


def test_the_highest_scores_come_first_each_with_its_match_and_next_best(described, monkeypatch):
    monkeypatch.setattr(module, "ROWS", 2)
    given = tables(
        [
            ("01.png", "11.png", "12.png", 0.5),
            ("02.png", "13.png", None, 0.9),
            ("03.png", "13.png", "14.png", 0.7),
            ("00.png", None, None, None),
        ]
    )
    assert shown(gallery(described, given)) == [
        ("generated", "02.png"),
        ("train", "13.png"),
        ("generated", "03.png"),
        ("train", "14.png"),
    ]


def test_equal_scores_are_taken_in_the_order_of_the_ids(described, monkeypatch):
    monkeypatch.setattr(module, "ROWS", 1)
    given = tables([("02.png", "11.png", None, 0.9), ("01.png", "12.png", None, 0.9)])
    assert shown(gallery(described, given)) == [("generated", "01.png"), ("train", "12.png")]


def test_groups_and_cards_show_their_first_images(described, monkeypatch):
    monkeypatch.setattr(module, "GROUPS", 2)
    monkeypatch.setattr(module, "OF_A_GROUP", 3)
    monkeypatch.setattr(module, "CARDS", 2)
    groups = [*((f"{number:02d}.png", 0) for number in range(1, 6)), ("06.png", 1), ("07.png", 1), ("08.png", 2)]
    found = gallery(described, tables(groups=groups, risk=["06.png", "20.png", "21.png"]))
    names = ["01.png", "02.png", "03.png", "06.png", "07.png", "20.png"]
    assert shown(found) == [("train", name) for name in names]


def test_a_lint_has_no_generated_images(described):
    given = tables(risk=["01.png"])
    del given["generated"]
    assert shown(gallery({"train": described["train"]}, given)) == [("train", "01.png")]


def test_an_image_that_is_gone_or_torn_since_is_left_out(described):
    folder = Path(described["train"].corpus.origin)
    (folder / "11.png").unlink()
    (folder / "12.png").write_bytes(b"torn")
    given = tables([("01.png", "11.png", "12.png", 0.5)], risk=["13.png"])
    assert shown(gallery(described, given)) == [("generated", "01.png"), ("train", "13.png")]


def test_pictures_are_webp_of_at_most_192_pixels_and_the_right_ones(described):
    given = tables([("07.png", "31.png", None, 0.5)])
    found = gallery(described, given)
    for data, grey in zip(found["image"].to_pylist(), (6 * 7, 6 * 31), strict=True):
        picture = Image.open(io.BytesIO(data))
        assert picture.format == "WEBP"
        assert max(picture.size) == 192
        decoded = images.decode(data)
        assert decoded.shape == (192, 141, 3)
        assert np.abs(decoded.astype(int) - grey).max() <= 3


PAIRS = [("01.png", "11.png", None, 0.5), ("02.png", "12.png", None, 0.9), ("03.png", "13.png", None, 0.7)]


def large(table):
    return {name: data for name, data in zip(table["id"].to_pylist(), table["large"].to_pylist(), strict=True) if data}


def test_the_worst_pairs_are_there_large_flagged_ones_first(described, monkeypatch):
    monkeypatch.setattr(module, "LARGE_PAIRS", 2)
    monkeypatch.setattr(module, "LARGE_SIDE", 250)
    given = tables(PAIRS)
    assert set(large(gallery(described, given))) == {"02.png", "12.png", "03.png", "13.png"}
    given["generated"] = given["generated"].append_column("copied", pa.array([True, False, False]))
    found = large(gallery(described, given))
    assert set(found) == {"01.png", "11.png", "02.png", "12.png"}
    assert max(Image.open(io.BytesIO(found["11.png"])).size) == 250
    assert large(gallery(described, given, embed="small")) == {}


def test_full_takes_the_files_of_flagged_pairs_as_they_are_up_to_a_bound(described, monkeypatch):
    monkeypatch.setattr(module, "LARGE_PAIRS", 1)
    given = tables(PAIRS)
    given["generated"] = given["generated"].append_column("copied", pa.array([True, False, True]))
    files = {name: Path(described[corpus].corpus.origin, name).read_bytes() for corpus, name in
             [("generated", "01.png"), ("generated", "03.png"), ("train", "11.png"), ("train", "13.png")]}  # fmt: skip
    assert large(gallery(described, given, embed="full")) == files
    monkeypatch.setattr(module, "ORIGINAL_BYTES", len(files["03.png"]))
    found = large(gallery(described, given, embed="full"))
    assert found["03.png"] == files["03.png"]
    assert found["13.png"].startswith(b"RIFF"), "what is over the bound is shown at 768 pixels"
    assert set(found) == {"03.png", "13.png"}


def test_digests_are_those_of_the_files(described):
    train = described["train"]
    table = train.corpus.table
    place = table.column_names.index("sha256")
    table = table.set_column(place, "sha256", pa.array([f"{row:064d}" for row in range(TRAIN)]))
    known = dataclasses.replace(train, corpus=dataclasses.replace(train.corpus, table=table))
    found = gallery({"train": known, "generated": described["generated"]}, tables(risk=["05.png"]))
    assert found["sha256"].to_pylist() == [f"{5:064d}"]


def test_nothing_to_show_is_an_empty_table_of_the_same_columns(described):
    found = gallery(described, tables())
    assert found.num_rows == 0
    assert found.schema == gallery(described, tables(risk=["01.png"])).schema


def test_ids_are_found_in_every_piece_of_the_table(described):
    train = described["train"]
    table = pa.concat_tables([train.corpus.table.slice(0, 15), train.corpus.table.slice(15)])
    assert table["id"].num_chunks == 2
    pieces = dataclasses.replace(train, corpus=dataclasses.replace(train.corpus, table=table))
    given = tables(risk=["03.png", "15.png", "31.png"])
    del given["generated"]
    assert gallery({"train": pieces}, given).equals(gallery({"train": train}, given))


def look_alikes(*pairs):
    return {
        "look_alikes": pa.table(
            {
                "id": pa.array([one for one, _ in pairs], pa.string()),
                "match": pa.array([match for _, match in pairs], pa.string()),
            }
        )
    }


@pytest.mark.parametrize("calibrator", ["held-out", "control"])
def test_look_alikes_are_shown_beside_their_training_image_up_to_a_bound(described, monkeypatch, calibrator):
    monkeypatch.setattr(module, "LOOK_ALIKES", 2)
    pairs = [("07.png", "31.png"), ("01.png", "11.png"), ("02.png", "12.png")]
    found = gallery(
        described | {calibrator: described["generated"]},
        tables([("03.png", "13.png", None, 0.5)]) | look_alikes(*pairs),
    )
    assert shown(found) == [
        ("generated", "03.png"),
        ("train", "13.png"),
        (calibrator, "07.png"),
        ("train", "31.png"),
        (calibrator, "01.png"),
        ("train", "11.png"),
    ]


def test_look_alikes_without_calibration_images_are_none(described):
    assert shown(gallery(described, tables() | look_alikes())) == []


def test_repeated_outputs_show_their_first_images(described, monkeypatch):
    monkeypatch.setattr(module, "GROUPS", 2)
    monkeypatch.setattr(module, "OF_A_GROUP", 2)
    found = gallery(described, tables(), [["01.png", "02.png", "03.png"], ["04.png"], ["05.png"]])
    assert shown(found) == [("generated", name) for name in ("01.png", "02.png", "04.png")]
