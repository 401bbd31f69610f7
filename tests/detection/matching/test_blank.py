"""Blank images: what is one colour to within noise, and that they are counted and never a copy."""

from __future__ import annotations

import io
import json

import numpy as np
import pytest
from PIL import Image, ImageDraw
from typer.testing import CliRunner

from copyscope import Corpus, Index
from copyscope.cli import main
from copyscope.detection.embedding.embed import embed
from copyscope.detection.lookup import lookup
from copyscope.detection.matching import blank as blank_module
from copyscope.detection.matching.blank import blank_rows
from copyscope.imaging import images
from copyscope.imaging.blank import is_blank, may_be_blank
from copyscope.serve import check
from tests import worlds

FAST = "sscd-distilled"


def recompressed(image, quality):
    file = io.BytesIO()
    Image.fromarray(image).save(file, "JPEG", quality=quality)
    return images.decode(file.getvalue())


def noisy(size, colour, deviation, seed=0):
    noise = np.random.default_rng(seed).normal(0, deviation, (*size, 3))
    return np.clip(np.rint(np.array(colour) + noise), 0, 255).astype(np.uint8)


@pytest.mark.parametrize("colour", [(0, 0, 0), (255, 255, 255), (128, 128, 128), (200, 30, 90)])
@pytest.mark.parametrize("size", [(1, 1), (2, 3), (31, 17), (300, 300), (1, 500), (512, 512)])
def test_one_colour_to_within_noise_is_blank(size, colour):
    for deviation in (0, 1, 4):
        image = noisy(size, colour, deviation)
        assert is_blank(image)
        assert is_blank(recompressed(image, 75))


def test_correlated_noise_of_a_sensor_is_blank():
    noise = np.random.default_rng(0).normal(0, 3, (256, 256, 3))
    mosaic = sum(np.roll(noise, (y, x), (0, 1)) for y in (0, 1) for x in (0, 1)) / 2
    assert is_blank(np.clip(np.rint(120 + mosaic), 0, 255).astype(np.uint8))


@pytest.mark.parametrize("side", [64, 512, 1500])
def test_a_page_with_little_on_it_is_not_blank(side):
    def page(draw, paper=255):
        sheet = Image.new("RGB", (side, side), (paper,) * 3)
        draw(ImageDraw.Draw(sheet))
        return np.array(sheet)

    for ink in (0, 150, 225):
        line = page(lambda pen, ink=ink: pen.line((10, 10, 40, 16), fill=(ink,) * 3))
        assert not is_blank(line)
        assert not is_blank(recompressed(line, 85))
    assert not is_blank(page(lambda pen: pen.ellipse((20, 20, 26, 26), outline=(60,) * 3)))
    assert not is_blank(page(lambda pen: pen.text((5, 5), "a word", fill=(200,) * 3)))
    assert not is_blank(page(lambda pen: pen.text((5, 5), "a word", fill=(40,) * 3), paper=0))


def test_a_faint_sky_and_a_night_are_not_blank():
    for side in (64, 400):
        sky = np.linspace(200, 215, side)[:, None, None]
        assert not is_blank(np.broadcast_to(np.rint(sky), (side, side, 3)).astype(np.uint8))
    picture = worlds.picture(np.random.default_rng(1))[0].astype(np.float32)
    assert not is_blank(np.rint(picture * 0.1).astype(np.uint8))


def test_structure_that_noise_hides_in_single_pixels_is_seen_in_cells():
    image = noisy((256, 256), (120, 120, 120), 4).astype(np.float32)
    assert is_blank(image.astype(np.uint8))
    image[64:192, 64:192] += 8
    assert not is_blank(np.clip(np.rint(image), 0, 255).astype(np.uint8))


def test_what_cannot_be_blank_by_its_thumbnail_is_not():
    rng = np.random.default_rng(0)
    for _ in range(40):
        image = noisy((80, 120), rng.integers(0, 256, 3), rng.uniform(0, 5), int(rng.integers(99)))
        small = images.resize(images.centre_crop(image, 80), (32, 32))
        assert may_be_blank(small) >= is_blank(image)


@pytest.fixture(scope="module")
def folder(tmp_path_factory, world):
    """Eight training images, and three blank ones: of them one JPEG with noise."""
    out = tmp_path_factory.mktemp("blank") / "train"
    out.mkdir()
    train = Corpus.open(world.train)
    for row in range(8):
        (out / f"a{row}.png").write_bytes(train.read(row))
    for name, image in (("black", noisy((64, 64), (0,) * 3, 0)), ("dot", noisy((1, 1), (9,) * 3, 0))):
        (out / f"{name}.png").write_bytes(images.encode(image, "png"))
    (out / "grey.jpg").write_bytes(images.encode(noisy((90, 70), (128,) * 3, 3), "jpeg", 80))
    (out / "broken.png").write_bytes(b"no picture")
    return out


@pytest.fixture(scope="module")
def index(folder, world, tmp_path_factory):
    held = tmp_path_factory.mktemp("held")
    unseen = Corpus.open(world.held_out)
    for row in range(6):
        (held / f"{row}.png").write_bytes(unseen.read(row))
    for row in range(3):
        (held / f"black{row}.png").write_bytes(images.encode(noisy((50 + row, 50), (0,) * 3, 0), "png"))
    return Index.build(folder, tmp_path_factory.mktemp("blank-index") / "index", FAST, held_out=held)


def test_blank_rows_are_those_of_the_corpus_and_kept(folder, tmp_path, monkeypatch):
    described = embed(Corpus.open(folder), FAST, cache=tmp_path)
    found = blank_rows(described, cache=tmp_path)
    assert [name for name, blank in zip(described.ids, found, strict=True) if blank] == [
        "black.png",
        "dot.png",
        "grey.jpg",
    ]
    monkeypatch.setattr(blank_module, "is_blank", lambda image: pytest.fail("looked at again"))
    np.testing.assert_array_equal(blank_rows(described, cache=tmp_path), found)


def test_an_index_leaves_blank_images_out_and_counts_them(index, folder):
    about = index.summary()
    assert (about["n"], about["n_blank"], about["n_missing"]) == (8, 3, 1)
    assert sorted(index.ids) == [f"a{row}.png" for row in range(8)]
    assert (about["calibration"]["n"], about["calibration"]["n_blank"]) == (6, 3)


def test_a_blank_picture_has_no_hits(index, folder):
    black = noisy((300, 300), (0,) * 3, 0)
    for local in (True, False):
        assert index.match([black, images.decode(folder / "a0.png")], 2, local=local)[0] == []
        assert len(index.match(folder / "a0.png", 2, local=local)[0]) == 2
    corpus, hits = index.match_corpus(Corpus.open(folder), 1)
    assert [
        name
        for name, error, found in zip(corpus.ids, corpus.table["error"].to_pylist(), hits, strict=True)
        if not found and not error
    ] == ["black.png", "dot.png", "grey.jpg"]
    answer = check.answer(index, images.encode(black, "png"), 10**6, 3, True, 0.0001)
    assert (answer.copy, answer.blank, answer.identical, answer.matches) == (False, True, False, [])


def test_a_look_up_counts_blank_pictures_apart(index, folder, tmp_path):
    found = lookup(index, [folder], 2)
    about = found.summary
    assert (about["n"], about["n_missing"], about["n_blank"], about["n_identical"], about["n_flagged"]) == (
        12,
        1,
        3,
        8,
        8,
    )
    assert found.tables["blank"]["id"].to_pylist() == ["black.png", "dot.png", "grey.jpg"]
    assert about["sentence"].startswith("8 of 8 readable images match a training image (the same image).")
    assert about["sentence"].endswith("3 blank images were left out.")
    found.save(tmp_path / "out")
    assert "it copies nothing" in (tmp_path / "out" / "report.html").read_text()


def test_match_of_two_folders_sets_blank_images_apart(folder):
    found = CliRunner().invoke(main.app, ["match", str(folder), str(folder), "-p", FAST, "-k", "2", "--json"])
    said = json.loads(found.stdout)
    assert (said["n_blank"], said["n_missing"], said["n_identical"]) == ([3, 3], [1, 1], 8)
    assert not {"black.png", "dot.png", "grey.jpg"} & {
        row[key] for row in said["matches"] for key in ("query_id", "reference_id")
    }
