"""The same picture, however altered, and not another one of the kind: pages, charts, drawings on transparency."""

from __future__ import annotations

import csv

import numpy as np
import pytest
from PIL import Image, ImageDraw

from copyscope.data.corpus import Corpus
from copyscope.detection.dedup import same_picture as module
from copyscope.detection.dedup.deduplicate import deduplicated, write_list
from copyscope.detection.dedup.groups import duplicates
from copyscope.detection.dedup.pixel_groups import join_turned
from copyscope.detection.dedup.same_picture import compare_pixels
from copyscope.detection.descriptors.sscd_distilled import SscdDistilled
from copyscope.detection.embedding.embed import embed
from copyscope.detection.matching.ncc import Verify
from copyscope.detection.matching.tile_comparison import (
    SMALL,
    Placement,
    agreement,
    overlay,
    refined,
    resampling,
    tiles_of,
)
from copyscope.imaging import images
from tests import worlds

WORDS = ["river", "stone", "window", "garden", "letter", "market", "candle", "engine", "forest", "island", "planet"]


def page(seed, size=(512, 680), step=22):
    rng = np.random.default_rng(seed)
    picture = Image.new("RGB", size, "white")
    draw = ImageDraw.Draw(picture)
    for y in range(30, size[1] - 30, step):
        draw.text((20, y), " ".join(rng.choice(WORDS, 7)), fill="black", font_size=15)
    return np.array(picture)


def sentence(seed):
    return page(seed, (600, 110), 90)


def chart(seed):
    rng = np.random.default_rng(seed)
    picture = Image.new("RGB", (480, 360), "white")
    draw = ImageDraw.Draw(picture)
    draw.line([40, 20, 40, 320, 460, 320], fill="black", width=2)
    for bar, height in enumerate(rng.integers(20, 280, 8).tolist()):
        draw.rectangle([60 + bar * 50, 320 - height, 95 + bar * 50, 320], fill=(60, 100, 200))
    return np.array(picture)


def form(seed):
    """The same labels and boxes, other entries."""
    rng = np.random.default_rng(seed)
    picture = Image.new("RGB", (560, 700), "white")
    draw = ImageDraw.Draw(picture)
    for row, label in enumerate(("Name", "Street", "Town", "Date", "Item", "Amount", "Signed")):
        draw.text((30, 60 + row * 86), label, fill="black", font_size=18)
        draw.rectangle([150, 50 + row * 86, 530, 90 + row * 86], outline="black")
        draw.text((164, 60 + row * 86), " ".join(rng.choice(WORDS, 3)), fill=(20, 20, 120), font_size=20)
    return np.array(picture)


def plate(seed):
    """The same frame, other letters; no letter is twice as dark as another."""
    picture = Image.new("RGB", (420, 120), (244, 244, 244))
    draw = ImageDraw.Draw(picture)
    draw.rectangle([0, 0, 419, 119], outline="black", width=6)
    draw.rectangle([6, 6, 50, 113], fill=(0, 50, 150))
    text = "".join(np.random.default_rng(seed).choice(list("ABDEGHKMNPQRSUWXZ235689"), 6))
    draw.text((235, 60), text, fill="black", font_size=76, anchor="mm")
    return np.array(picture)


def watermarked(picture):
    layer = Image.new("RGBA", picture.shape[1::-1])
    place = picture.shape[1] * 0.1, picture.shape[0] * 0.3
    ImageDraw.Draw(layer).text(place, "SAMPLE", fill=(255, 255, 255, 110), font_size=picture.shape[1] // 6)
    return np.array(Image.alpha_composite(Image.fromarray(picture).convert("RGBA"), layer).convert("RGB"))


def heart(colour):
    picture = Image.new("RGB", (200, 200), "white")
    draw = ImageDraw.Draw(picture)
    draw.polygon([(100, 180), (20, 80), (60, 30), (100, 60), (140, 30), (180, 80)], fill=colour)
    return np.array(picture)


def clock(hour):
    """A face with numbers' marks; one hand differs."""
    picture = Image.new("RGB", (240, 240), "white")
    draw = ImageDraw.Draw(picture)
    draw.ellipse([10, 10, 230, 230], fill=(235, 230, 225), outline=(90, 90, 95), width=22)
    for number in range(12):
        y, x = 120 + 80 * np.cos(number * np.pi / 6), 120 + 80 * np.sin(number * np.pi / 6)
        draw.ellipse([x - 8, y - 8, x + 8, y + 8], fill=(60, 60, 160 + 8 * number))
    draw.line([120, 120, 120, 60], fill=(240, 20, 70), width=12)
    angle = hour * np.pi / 6
    draw.line([120, 120, 120 + 50 * np.sin(angle), 120 - 50 * np.cos(angle)], fill=(20, 20, 60), width=12)
    return np.array(picture)


def scene(seed):
    return images.resize(worlds.picture(np.random.default_rng(seed))[0], (240, 240))


def smaller_and_recompressed(picture):
    height, width = picture.shape[:2]
    return images.decode(images.encode(images.resize(picture, (height * 3 // 4, width * 3 // 4)), "jpeg", 40))


def corpus_of(folder, pictures):
    for number, picture in enumerate(pictures):
        (folder / f"{number:02d}.png").write_bytes(images.encode(picture, "png"))
    return Corpus.open(folder)


def same(folder, pairs):
    """Whether each pair of pictures is the same."""
    corpus = corpus_of(folder, [picture for pair in pairs for picture in pair])
    places = np.arange(2 * len(pairs)).reshape(-1, 2)
    return compare_pixels(corpus, np.arange(len(corpus)), places, cache=folder / ".cache").same.tolist()


@pytest.mark.parametrize("make", [page, sentence, chart, form, plate])
def test_different_pictures_of_one_kind_are_told_apart_and_a_recompressed_one_is_the_same(make, tmp_path):
    pairs = [(make(0), make(1)), (make(2), make(3)), (make(0), smaller_and_recompressed(make(0)))]
    assert same(tmp_path, pairs) == [False, False, True]


ALTERED = {
    "jpeg": lambda picture: images.decode(images.encode(picture, "jpeg", 60)),
    "half": lambda picture: images.resize(picture, (120, 120)),
    "squeezed": lambda picture: images.resize(picture, (160, 240)),
    "crop": lambda picture: np.ascontiguousarray(picture[10:202, 40:232]),
    "mirror": lambda picture: np.ascontiguousarray(picture[:, ::-1]),
    "quarter": lambda picture: np.ascontiguousarray(np.rot90(picture)),
    "grey": lambda picture: np.repeat(images.luma(picture)[:, :, None], 3, axis=2),
    "brighter": lambda picture: np.clip(picture * 1.1 + 5, 0, 255).astype(np.uint8),
    "border": lambda picture: np.pad(picture, ((16, 16), (16, 16), (0, 0)), constant_values=255),
}


@pytest.mark.parametrize("kind", ALTERED)
def test_an_altered_picture_is_the_same_and_another_altered_so_is_not(kind, tmp_path):
    scenes = [scene(seed) for seed in range(3)]
    pairs = [(picture, ALTERED[kind](picture)) for picture in scenes]
    others = [(scenes[at - 1], ALTERED[kind](scenes[at])) for at in range(3)]
    assert same(tmp_path, pairs + others) == [True] * 3 + [False] * 3


def test_a_picture_in_a_border_is_found_step_by_step(tmp_path):
    picture = images.resize(scene(0), (320, 320))
    assert same(tmp_path, [(picture, np.pad(picture, ((24, 24), (24, 24), (0, 0)), constant_values=255))]) == [True]


def test_a_red_heart_is_not_a_blue_one_and_a_grey_copy_is_the_same(tmp_path):
    """Both of one brightness."""
    red, blue, pale = heart((220, 30, 40)), heart((40, 100, 150)), heart((235, 90, 90))
    assert same(tmp_path, [(red, blue), (red, ALTERED["grey"](red)), (red, pale)]) == [False, True, True]


def test_a_picture_under_a_watermark_is_the_same_and_one_of_other_letters_is_not(tmp_path):
    """Both differ in a few tiles: what lies over a picture adds to it, other letters add and take away."""
    plates = [plate(seed) for seed in range(4)]
    pairs = [(picture, watermarked(picture)) for picture in (scene(0), scene(1), scene(2))]
    others = [(watermarked(plates[at - 1]), plates[at]) for at in range(4)]
    assert same(tmp_path, pairs + others) == [True] * 3 + [False] * 4


@pytest.mark.parametrize("hours", [(2, 5), (3, 4), (7, 8)])
def test_a_clock_at_another_hour_is_another_picture(hours, tmp_path):
    """Also where the pictures are too small for a closer look."""
    one, other = map(clock, hours)
    small = [images.resize(picture, (120, 120)) for picture in (one, other)]
    pairs = [
        (one, other),
        (one, smaller_and_recompressed(one)),
        (*small,),
        (small[0], smaller_and_recompressed(small[0])),
    ]
    assert same(tmp_path, pairs) == [False, True, False, True]


def test_blank_pictures_are_the_same_as_none(tmp_path):
    blank = np.full((64, 64, 3), 90, np.uint8)
    assert same(tmp_path, [(blank, blank), (blank, scene(0))]) == [False, False]


def test_a_picture_without_edges_is_compared_by_its_levels(tmp_path):
    ramp = np.broadcast_to(np.linspace(60, 110, 96)[None, :, None], (96, 96, 3)).astype(np.uint8)
    steeper = np.broadcast_to(np.linspace(20, 140, 96)[:, None, None], (96, 96, 3)).astype(np.uint8)
    assert same(tmp_path, [(ramp, ramp.copy()), (ramp, steeper)]) == [True, False]


def drawing(folder, name, seed, colour="white", dot=False):
    """A few lines on transparency."""
    rng = np.random.default_rng(seed)
    picture = Image.new("RGBA", (128, 128), (0, 0, 0, 0))
    draw = ImageDraw.Draw(picture)
    for _ in range(5):
        draw.line(rng.integers(5, 123, 4).tolist(), fill=colour, width=6)
    if dot:
        draw.ellipse([100, 100, 120, 120], fill=(200, 0, 0))
    picture.save(folder / f"{name}.png")


@pytest.mark.parametrize("dot", [False, True])
def test_white_drawings_on_transparency_are_different_and_a_copy_is_exact(dot, tmp_path):
    for seed in range(5):
        drawing(tmp_path, f"{seed}", seed, dot=dot)
    drawing(tmp_path, "copy", 0, dot=dot)
    groups = duplicates(embed(Corpus.open(tmp_path), SscdDistilled()), 0.75)
    table = groups.table()
    assert sorted(table["id"].to_pylist()) == ["0.png", "copy.png"]
    assert table["exact"].to_pylist() == [2, 2]


def test_a_family_of_pages_falls_apart_into_its_real_duplicates(tmp_path):
    pages = [page(seed) for seed in range(6)]
    corpus = corpus_of(tmp_path, [*pages, smaller_and_recompressed(pages[2]), smaller_and_recompressed(pages[4])])
    described = embed(corpus, SscdDistilled())
    before, after = duplicates(described, 0.75, verify=None), duplicates(described, 0.75)
    assert before.sizes.tolist() == [8]
    assert after.table()["id"].to_pylist() == ["02.png", "06.png", "04.png", "07.png"]
    assert (after.n_look_alikes, after.confirmed, before.n_look_alikes, before.confirmed) == (4, True, 0, False)


@pytest.mark.parametrize("make", [chart, form])
def test_every_copy_in_a_family_of_look_alikes_finds_its_source(make, tmp_path):
    pictures = [make(seed) for seed in range(8)]
    corpus = corpus_of(tmp_path, [*pictures, *map(smaller_and_recompressed, pictures)])
    groups = duplicates(embed(corpus, SscdDistilled()), 0.75)
    assert groups.sizes.tolist() == [2] * 8
    np.testing.assert_array_equal(groups.label[:8], groups.label[8:])


def test_turned_pictures_are_grouped_with_their_source(tmp_path):
    scenes = [scene(seed) for seed in range(3)]
    corpus = corpus_of(tmp_path, [np.rot90(picture, k).copy() for picture in scenes for k in range(4)])
    groups = duplicates(embed(corpus, SscdDistilled()), 0.75)
    assert groups.label.reshape(3, 4).tolist() == [[number] * 4 for number in range(3)]


def plain(seed):
    """A wall in soft light, and a disc in front of it."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[0:160, 0:160] / 160
    way, (top, left), size = rng.uniform(0, 2 * np.pi), rng.uniform(0, 1, 2), rng.uniform(0.15, 0.4)
    wall = 150 + 70 * (np.cos(way) * (x - 0.5) + np.sin(way) * (y - 0.5))
    disc = np.hypot(y - top, (x - left) * rng.uniform(0.5, 2)) < size
    return np.repeat((wall - 60 * disc + rng.normal(0, 1, wall.shape)).clip(0, 255)[..., None], 3, 2).astype(np.uint8)


def test_plain_pictures_of_which_few_tiles_agree_once_turned_or_cropped_are_not_one(tmp_path):
    corpus = corpus_of(tmp_path, [plain(seed) for seed in range(24)])
    alone = np.arange(24)
    assert join_turned(embed(corpus, SscdDistilled()), alone, Verify()).tolist() == alone.tolist()
    assert not compare_pixels(corpus, alone, np.array([(0, 7), (3, 11)])).same.any()


def test_no_more_than_a_few_pairs_are_in_memory_at_once_and_that_changes_nothing(tmp_path, monkeypatch):
    pictures = [page(0), page(1), smaller_and_recompressed(page(0)), smaller_and_recompressed(page(1))]
    corpus = corpus_of(tmp_path, pictures)
    pairs = np.array([(one, other) for one in range(4) for other in range(one)])
    whole = compare_pixels(corpus, np.arange(4), pairs)
    monkeypatch.setattr(module, "PAIRS", 2)
    monkeypatch.setattr(module, "FINE_PAIRS", 1)
    pieces = compare_pixels(corpus, np.arange(4), pairs)
    np.testing.assert_array_equal(whole.same, [False, True, False, False, True, False])
    np.testing.assert_array_equal(whole.same, pieces.same)
    np.testing.assert_allclose(whole.score, pieces.score, atol=1e-5)


def test_a_stretch_is_resampled_as_pillow_resizes_it():
    rng = np.random.default_rng(0)
    row = rng.uniform(0, 255, (1, 96)).astype(np.float32)
    expected = np.asarray(Image.fromarray(row).resize((40, 1), Image.BILINEAR))
    np.testing.assert_allclose(row @ resampling(96, 0, 1, 40).T, expected, atol=0.01)
    np.testing.assert_allclose(row @ resampling(96, 0.25, 0.5, 48).T, row[:, 24:72], atol=1e-3)


def test_a_shift_is_found_by_the_moves_of_tiles_and_taken_back():
    rng = np.random.default_rng(1)
    large = np.repeat(np.repeat(rng.uniform(0, 255, (26, 26)), 4, axis=0), 4, axis=1).astype(np.float32)
    one, other = large[:SMALL, :SMALL], large[2 : SMALL + 2, 1 : SMALL + 1]
    start = Placement(0, False, 1, 1, 0, 0, 0)
    tiles = tiles_of(*overlay(one, other, start, (SMALL, SMALL)), 12, 2)
    moved = refined(start, tiles, (SMALL, SMALL))
    assert (moved.top, moved.left) == pytest.approx((2 / SMALL, 1 / SMALL), abs=0.2 / SMALL)
    assert (moved.height, moved.width) == pytest.approx((1, 1), abs=0.01)
    score, is_same, symmetry = agreement((one, None), (other, None), ((SMALL, SMALL), (SMALL, SMALL)), False)
    assert is_same
    assert (score > 0.95, symmetry) == (True, 0)


def test_curate_drops_what_is_the_same_as_the_kept_image_and_lists_it(tmp_path):
    scenes, pages = [scene(seed) for seed in range(3)], [page(seed) for seed in range(4)]
    folder = tmp_path / "images"
    folder.mkdir()
    corpus = corpus_of(
        folder, [*scenes, *pages, images.resize(scenes[1], (180, 180)), images.resize(pages[3], (510, 384))]
    )
    made, dropped = deduplicated(corpus, "keep-one", "sscd-distilled", cache=tmp_path / "cache")
    assert made.ids == [f"{number:02d}.png" for number in range(7)]
    assert [(row["id"], row["kept_id"]) for row in dropped] == [("07.png", "01.png"), ("08.png", "06.png")]
    assert all(row["score"] > 0.75 and row["pixels"] > 0.8 for row in dropped)
    write_list(dropped, tmp_path / "dropped.csv")
    with (tmp_path / "dropped.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [row["kept_id"] for row in rows] == ["01.png", "06.png"]
    assert [row["kept_because"] for row in rows] == ["it has more pixels", "it has more pixels"]
    assert all(row["reason"].startswith("the same picture by score") for row in rows)
    removed, listed = deduplicated(corpus, "remove", "sscd-distilled", cache=tmp_path / "cache")
    assert removed.ids == ["00.png", "02.png", "03.png", "04.png", "05.png"]
    assert [row["kept_id"] for row in listed] == [""] * 4
    assert all("one of 2 near-duplicates" in row["reason"] for row in listed)
    weighted, none = deduplicated(corpus, "down-weight", "sscd-distilled", cache=tmp_path / "cache")
    assert none == []
    assert weighted.table["weight"].to_pylist() == [1, 0.5, 1, 1, 1, 1, 0.5, 0.5, 0.5]


def test_a_score_below_the_bar_is_told_why_the_image_was_dropped(tmp_path):
    first = scene(2)
    folder = tmp_path / "images"
    folder.mkdir()
    corpus = corpus_of(folder, [first, np.ascontiguousarray(np.rot90(first)), scene(1)])
    _, dropped = deduplicated(corpus, "keep-one", "sscd-distilled", cache=tmp_path / "cache")
    # Of as many pixels the one in fewer bytes goes.
    smaller = min(("00.png", "01.png"), key=lambda name: (folder / name).stat().st_size)
    assert [row["id"] for row in dropped] == [smaller]
    assert dropped[0]["score"] < 0.75
    assert "by pixels; its score alone, below 0.75" in dropped[0]["reason"]
