"""Registration: a copy agrees everywhere once in register; the same motif by another hand does not."""

from __future__ import annotations

import numpy as np
import pytest
from skimage.transform import AffineTransform, warp

from copyscope.data.corpus import Corpus
from copyscope.detection.matching import registration
from copyscope.detection.matching.ncc import Verify
from copyscope.detection.matching.registration import Register, worst_place
from copyscope.imaging import images
from tests import worlds

SIZE = Register().size


def thumbnails(pictures):
    return Verify(size=SIZE).shrink(pictures)


@pytest.fixture(scope="module")
def pictures():
    rng = np.random.default_rng(0)
    return [worlds.picture(rng)[0] for _ in range(12)]


def scores(queries, references):
    """Score of each query with the reference of the same row."""
    rows = np.arange(len(queries), dtype=np.int64)[:, None]
    return Register().compare(thumbnails(queries), thumbnails(references), rows, workers=1)[:, 0]


def test_same_pixels_score_one(pictures):
    np.testing.assert_allclose(scores(pictures, pictures), 1, atol=1e-4)


@pytest.mark.parametrize("kind", ["light_copy", "jpeg", "blur", "noise", "shift"])
def test_light_copies_score_above_every_other_picture(pictures, kind):
    rng = np.random.default_rng(1)
    copies = scores([worlds.alter(picture, kind, rng) for picture in pictures], pictures)
    assert copies.min() > 0.8
    assert copies.min() > scores(pictures, pictures[1:] + pictures[:1]).max() + 0.3


def test_crops_score_as_copies(pictures):
    rng = np.random.default_rng(2)
    copies = scores([worlds.alter(picture, "crop", rng) for picture in pictures], pictures)
    assert np.median(copies) > 0.9


def test_crop_and_whole_may_change_places(pictures):
    rng = np.random.default_rng(2)
    crops = [worlds.alter(picture, "crop", rng) for picture in pictures]
    np.testing.assert_allclose(np.median(scores(pictures, crops)), np.median(scores(crops, pictures)), atol=0.1)


def test_affine_map_is_found(pictures):
    """Pictures mapped by scikit-image: the map that comes out is the one that went in."""
    turn, zoom, shift = 0.1, 0.9, (0.08, -0.05)
    linear = zoom * np.array([[np.cos(turn), -np.sin(turn)], [np.sin(turn), np.cos(turn)]])
    expected = np.column_stack([linear, shift])
    half = SIZE / 2
    to_pixels = np.array([[half, 0, half - 0.5], [0, half, half - 0.5], [0, 0, 1]])
    # scikit-image maps (x, y), we (y, x).
    swapped = np.vstack([expected[::-1][:, [1, 0, 2]], [0, 0, 1]])
    transform = AffineTransform(matrix=to_pixels @ swapped @ np.linalg.inv(to_pixels))
    thumbs = thumbnails(pictures)
    mapped = np.stack([warp(thumb, transform, order=1, mode="edge", preserve_range=True) for thumb in thumbs])
    grid = registration.GRID
    fixed = registration._blur(registration._shrink(mapped.astype(np.float32).transpose(0, 3, 1, 2), grid), 0.7)
    moving = registration._blur(registration._shrink(thumbs.astype(np.float32).transpose(0, 3, 1, 2), grid), 0.7)
    start = np.tile(np.eye(2, 3), (len(thumbs), 1, 1))
    found = registration._refine(fixed, np.ascontiguousarray(moving.transpose(0, 2, 3, 1)), start, 20)
    assert np.median(np.abs(found - expected).max(axis=(1, 2))) < 0.01


def test_one_changed_detail_is_not_a_copy(pictures):
    """A patch of 1 / 64 of the area in another colour: a mean over the picture would hide it."""
    changed = []
    for picture in pictures:
        height, width = picture.shape[:2]
        patched = picture.copy()
        patched[height // 2 : height * 5 // 8, width // 2 : width * 5 // 8] = 255 - picture.mean(axis=(0, 1))
        changed.append(patched)
    rng = np.random.default_rng(1)
    copies = scores([worlds.alter(picture, "light_copy", rng) for picture in pictures], pictures)
    assert np.median(scores(changed, pictures)) < copies.min()


def test_recoloured_twin_scores_below_copies(pictures):
    """The same lines with the colours of one part exchanged, as skin tones are."""
    twins = []
    for picture in pictures:
        twin = picture.copy()
        twin[:, : picture.shape[1] // 2] = twin[:, : picture.shape[1] // 2, ::-1]
        twins.append(twin)
    assert np.median(scores(twins, pictures)) < 0


def test_flat_pictures_score_zero(pictures):
    flat = [np.full((80, 80, 3), 130, np.uint8), np.zeros((80, 80, 3), np.uint8)]
    assert scores(flat, flat).tolist() == [0, 0]
    assert scores(flat, pictures[:2]).max() <= 0


def test_no_candidate_is_nan_and_places_are_kept(pictures):
    thumbs = thumbnails(pictures)
    candidates = np.array([[3, -1], [-1, 1], [2, 0]], np.int64)
    found = Register().compare(thumbs[:3], thumbs, candidates, workers=1)
    assert np.isnan(found).tolist() == [[False, True], [True, False], [False, False]]
    assert found[1, 1] == pytest.approx(1, abs=1e-4)
    assert found[2, 0] == pytest.approx(1, abs=1e-4)
    assert found[0, 0] < 0.9


def test_scores_do_not_depend_on_what_else_is_compared(pictures, monkeypatch):
    thumbs = thumbnails(pictures)
    candidates = (np.arange(12)[:, None] + np.arange(3)) % 12
    whole = Register().compare(thumbs, thumbs, candidates, workers=2)
    monkeypatch.setattr(registration, "CHUNK", 5)
    np.testing.assert_allclose(Register().compare(thumbs, thumbs, candidates, workers=1), whole, atol=1e-4)


def test_no_pairs():
    thumbs = np.zeros((0, SIZE, SIZE, 3), np.uint8)
    assert Register().compare(thumbs, thumbs, np.zeros((0, 4), np.int64)).shape == (0, 4)


def test_thumbnails_of_a_corpus(tmp_path, pictures):
    for index, picture in enumerate(pictures[:3]):
        (tmp_path / f"{index}.png").write_bytes(images.encode(picture, "png"))
    corpus = Corpus.open(tmp_path)
    found = Register().thumbnails(corpus, np.arange(3), cache=tmp_path / "cache", workers=1)
    np.testing.assert_array_equal(found, thumbnails(pictures[:3]))


def test_spec_names_every_value():
    assert str(Register(steps=5)) == "registered(top=4, size=64, steps=5)"


def test_the_worst_place_tells_a_small_difference_from_a_shift_and_a_change_of_contrast(pictures):
    for picture in pictures[:6]:
        luma = images.luma(images.resize(picture, (SIZE, SIZE))).astype(np.float32)
        shifted = 0.8 * np.roll(luma, 1, axis=1) + 20
        other = luma.copy()
        other[24:40, 30:34] += np.where(other[24:40, 30:34] > 128, -100, 100)
        same, different = worst_place(luma, shifted), worst_place(luma, other)
        assert same > 0.95
        assert different < same - 0.05
    flat = np.full((SIZE, SIZE), 9, np.float32)
    assert worst_place(flat, flat) == 0
