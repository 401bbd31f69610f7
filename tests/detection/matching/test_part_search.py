"""Training images within pictures: found with their box by pixels, described once, kept by content."""

from __future__ import annotations

import dataclasses

import numpy as np
import pyarrow as pa
import pytest
from PIL import Image

from copyscope import parts
from copyscope.data.corpus import Corpus
from copyscope.detection.dedup.groups import duplicates
from copyscope.detection.embedding.embed import embed
from copyscope.detection.matching import part_search
from copyscope.detection.matching.match import match, rests_on_part
from copyscope.detection.matching.ncc import Verify
from copyscope.detection.matching.part_search import PartSearch
from copyscope.detection.verdict import sensitivity
from copyscope.detection.verdict.judge import judge
from copyscope.errors import InputError
from copyscope.imaging import images
from tests import worlds

DESCRIPTOR = parts.load("descriptors", "pdq")


def scenes(n, seed, size=(96, 96)):
    rng = np.random.default_rng(seed)
    return [images.resize(worlds.picture(rng)[0], size) for _ in range(n)]


def described(folder, pictures):
    folder.mkdir()
    for number, picture in enumerate(pictures):
        (folder / f"{number:03d}.png").write_bytes(images.encode(picture, "png"))
    return embed(Corpus.open(folder), DESCRIPTOR)


def placed(background, picture, left, top):
    whole = background.copy()
    whole[top : top + picture.shape[0], left : left + picture.shape[1]] = picture
    return whole


@pytest.fixture(scope="module")
def train(tmp_path_factory):
    # The last is oblong, as photographs are.
    return described(tmp_path_factory.mktemp("parts") / "train", [*scenes(12, 0), *scenes(1, 1, (96, 160))])


@pytest.fixture(scope="module")
def search(train):
    return PartSearch(train, DESCRIPTOR, Verify())


@pytest.fixture(scope="module")
def shown(train):
    return [images.decode(train.corpus.read(row)) for row in train.rows]


@pytest.mark.parametrize("share", [1 / 3, 0.4, 0.47, 0.55, 0.62, 0.7])
def test_an_inset_is_found_with_its_box(search, shown, share, tmp_path):
    side = round(share * 240)
    background = scenes(1, 5, (240, 300))[0]
    insets = [images.resize(shown[at], (side, side)) for at in (0, 4, 9)]
    found = search(described(tmp_path / "made", [placed(background, each, 37, 51) for each in insets]))
    assert found.match.tolist() == [0, 4, 9]
    assert (found.verified > 0.85).all()
    expected = [37 / 300, 51 / 240, side / 300, side / 240]
    np.testing.assert_allclose(found.box, np.tile(expected, (3, 1)), atol=0.06)


def test_a_grid_is_of_one_of_its_cells_and_a_mirrored_one_too(search, shown, tmp_path):
    for number, cells in enumerate(([2, 5, 7, 11], [0, 3, 6, 8])):
        pictures = [shown[at][:, ::-1] if number else shown[at] for at in cells]
        grid = np.concatenate([np.concatenate(pictures[:2], axis=1), np.concatenate(pictures[2:], axis=1)])
        found = search(described(tmp_path / f"made{number}", [grid]))
        assert found.match[0] in cells
        assert found.verified[0] > 0.95
        at = cells.index(found.match[0])
        np.testing.assert_allclose(found.box[0], [at % 2 / 2, at // 2 / 2, 0.5, 0.5], atol=0.06)
        # The part is described as the training image shows it, upright.
        assert found.similarity[0] > 0.6


def test_an_oblong_training_image_is_found_squeezed_and_cropped(search, shown, tmp_path):
    whole = shown[12]
    background = scenes(1, 6, (192, 192))[0]
    squeezed = images.resize(whole, (96, 96))
    as_it_is = images.resize(whole, (80, 133))
    found = search(
        described(tmp_path / "made", [placed(background, squeezed, 96, 0), placed(background, as_it_is, 30, 60)])
    )
    assert found.match.tolist() == [12, 12]
    assert (found.verified > 0.9).all()


def test_strangers_score_below_parts(search, shown, tmp_path):
    strangers = scenes(30, 7, (192, 192))
    insets = [
        placed(other, images.resize(shown[at], (96, 96)), 60, 20) for at, other in enumerate(scenes(12, 8, (192, 192)))
    ]
    found = search(described(tmp_path / "made", [*strangers, *insets]))
    assert np.median(found.score[30:]) > found.score[:30].max()


def test_blank_and_tiny_pictures_have_no_part(search, train, tmp_path):
    blank = np.full((80, 60, 3), 17, np.uint8)
    single = np.full((1, 1, 3), 200, np.uint8)
    strip = np.repeat(scenes(1, 9, (1, 500))[0], 1, axis=0)
    # Described by a spec that takes any picture: what is looked at is the search.
    found = search(described(tmp_path / "made", [blank, single, strip]))
    assert found.match[:2].tolist() == [-1, -1]
    assert found.score[:2].tolist() == [-1, -1]
    assert np.isfinite(found.score).all()


def test_training_images_of_one_colour_are_found_nowhere(tmp_path):
    flat = described(tmp_path / "train", [np.full((50, 50, 3), level, np.uint8) for level in (0, 255)])
    found = PartSearch(flat, DESCRIPTOR, Verify())(described(tmp_path / "made", scenes(2, 3)))
    assert found.match.tolist() == [-1, -1]


def test_the_coarse_search_is_that_of_every_template_at_every_place(search, shown):
    templates = part_search._Templates.of(search)
    picture = part_search._canvas(scenes(1, 10, (100, 140))[0])
    found = templates.best(picture)
    for at in range(len(templates.owner)):
        small = images.resize(templates.pixels(np.array([at]))[0], (part_search.SIDE, part_search.SIDE)).astype(float)
        best = 0.0
        for shorter in part_search.COARSE:
            size = (shorter, round(shorter * picture.shape[1] / picture.shape[0]))
            planes = [
                np.asarray(
                    Image.fromarray(picture[:, :, c].astype(np.float32)).resize(size[::-1], Image.BILINEAR), float
                )
                for c in range(3)
            ]
            for one in (small, small[:, ::-1]):
                best = max(best, _correlations(np.stack(planes, axis=2), one).max())
        assert found[at] == pytest.approx(best, abs=0.02)


def _correlations(picture, template):
    """Of all places, by explicit windows."""
    s = len(template)
    a = template - template.mean(axis=(0, 1))
    found = []
    for top in range(picture.shape[0] - s + 1):
        for left in range(picture.shape[1] - s + 1):
            b = picture[top : top + s, left : left + s]
            b = b - b.mean(axis=(0, 1))
            found.append((a * b).sum() / max(np.sqrt((a * a).sum() * (b * b).sum()), 1e-9))
    return np.array(found)


def test_the_second_call_decodes_nothing_and_gives_the_same(search, shown, tmp_path, monkeypatch):
    made = described(tmp_path / "made", [placed(other, shown[1], 20, 30) for other in scenes(3, 11, (200, 200))])
    first = search(made)
    monkeypatch.setattr(images, "decode", None)
    again = dataclasses.replace(search)(made)
    for field in dataclasses.fields(first):
        assert getattr(again, field.name).tobytes() == getattr(first, field.name).tobytes()


def test_another_cache_gives_the_same_bytes(search, shown, tmp_path):
    made = described(tmp_path / "made", [placed(other, shown[3], 50, 10) for other in scenes(9, 12, (180, 180))])
    first, again = search(made), dataclasses.replace(search, cache=tmp_path / "cache", workers=1)(made)
    assert first.score.tobytes() == again.score.tobytes()
    assert first.box.tobytes() == again.box.tobytes()


def test_what_is_found_depends_on_the_training_set(search, train, shown, tmp_path):
    fewer = dataclasses.replace(train, rows=train.rows[:6], vectors=train.vectors[:6])
    made = described(tmp_path / "made", [placed(scenes(1, 13, (192, 192))[0], shown[8], 50, 60)])
    assert search(made).match[0] == 8
    assert dataclasses.replace(search, train=fewer)(made).match[0] < 6


def test_images_of_the_pictures_own_group_do_not_count(shown, tmp_path):
    """A training image that shows two others: of its own group, one does not count, so that the other is its part."""
    background = scenes(1, 14, (192, 192))[0]
    both = placed(placed(background, shown[0], 0, 0), images.resize(shown[1], (80, 80)), 110, 100)
    train = described(tmp_path / "train", [*shown[:5], both])
    alone = PartSearch(train, DESCRIPTOR, Verify())(train).match[5]
    other = 1 - alone
    labels = np.array([0, 1, 2, 3, 4, alone])
    assert alone in (0, 1)
    found = PartSearch(train, DESCRIPTOR, Verify(), labels)(train)
    assert found.match[5] == other
    found = PartSearch(train, DESCRIPTOR, Verify(), np.zeros(6, np.int64))(train)
    assert found.match.tolist() == [-1] * 6


def test_a_picture_that_is_gone_has_no_part(search, shown, tmp_path):
    made = described(tmp_path / "made", [placed(other, shown[1], 20, 30) for other in scenes(2, 15, (200, 200))])
    (tmp_path / "made" / "000.png").unlink()
    unknown = dataclasses.replace(made, corpus=made.corpus.with_column("sha256", pa.array([None, None], pa.string())))
    found = search(unknown)
    assert found.match.tolist() == [-1, 1]
    assert found.score[0] == -1


def test_the_match_of_a_copied_part_is_the_parts(search, train, shown, tmp_path):
    made = described(
        tmp_path / "made", [*scenes(8, 16, (192, 192)), placed(scenes(1, 17, (192, 192))[0], shown[6], 90, 20)]
    )
    unseen = match(described(tmp_path / "held", scenes(30, 18, (192, 192))), train, parts=search)
    matches = match(made, train, parts=search)
    assert matches.evidence.shape == (9, 3)
    assert rests_on_part(matches.evidence, unseen.evidence)[8]
    copied = np.arange(9) == 8
    chosen = matches.choose(copied, unseen.evidence)
    assert chosen.match[8] == 6
    assert chosen.by_part.tolist() == copied.tolist()
    assert chosen.scores["combined"][8] == chosen.parts.score[8]
    assert chosen.scores["score"][:8].tolist() == matches.scores["score"][:8].tolist()


def test_a_verdict_flags_copied_parts_and_counts_planted_ones(train, shown, tmp_path, monkeypatch):
    monkeypatch.setattr(sensitivity, "LEAST", 4)
    made = described(
        tmp_path / "made", [placed(other, shown[at], 90, 20) for at, other in enumerate(scenes(6, 19, (192, 192)))]
    )
    held = described(tmp_path / "held", scenes(30, 20, (192, 192)))
    groups = duplicates(train, 0.75)
    found = {}
    for searched in (None, PartSearch(train, DESCRIPTOR, Verify())):
        options = {"sensitivity": 4, "parts": searched, "edges": None}
        found[searched is None] = judge(
            {"generated": made, "train": train, "held-out": held}, groups, DESCRIPTOR, Verify(), **options
        )
    assert found[False].verdict.copied.sum() >= 5 > found[True].verdict.copied.sum()
    assert found[False].verdict.sensitivity["part"].value > found[True].verdict.sensitivity["part"].value


@pytest.mark.parametrize(("wish", "most", "looks"), [("auto", 13, True), ("auto", 12, False), ("on", 12, True)])
def test_auto_looks_up_to_a_number_of_training_images(train, monkeypatch, wish, most, looks):
    monkeypatch.setattr(part_search, "MOST", most)
    found, why = PartSearch.for_audit(wish, train, DESCRIPTOR, Verify())
    assert (found is not None) is looks
    assert "13" in why


def test_parts_off_and_unknown(train):
    assert PartSearch.for_audit("off", train, DESCRIPTOR, Verify())[0] is None
    with pytest.raises(InputError, match="auto, on, off"):
        PartSearch.for_audit("yes", train, DESCRIPTOR, Verify())
