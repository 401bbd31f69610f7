"""The second look: the same picture, moved, zoomed or mirrored, scores near 1; another picture does not."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image
from skimage.feature import match_template
from skimage.util import view_as_windows

from copyscope.data.corpus import Corpus
from copyscope.detection.matching import ncc as verify_module
from copyscope.detection.matching.ncc import Verify
from copyscope.detection.matching.templates import SYMMETRIES, turned
from copyscope.imaging import images
from tests import worlds


def brute(verify, query, reference):
    """The score by an independent library, channel-wise correlations weighed together by explicit windows."""
    best = -1.0
    for picture in (query, query[:, ::-1]) if verify.flip else (query,):
        for small, large in ((picture, reference), (reference, picture)):
            margin = round(verify.size * (1 - verify.core) / 2)
            templates = [small[margin : verify.size - margin, margin : verify.size - margin].astype(np.float64)]
            for zoom in verify.zooms:
                side = round(zoom * verify.size)
                planes = [
                    Image.fromarray(small[:, :, channel].astype(np.float32)).resize((side, side), Image.BILINEAR)
                    for channel in range(3)
                ]
                templates.append(np.stack([np.asarray(plane) for plane in planes], axis=2))
            for template in templates:
                windows = view_as_windows(large.astype(np.float64), template.shape)[:, :, 0]
                a = template - template.mean(axis=(0, 1))
                b = windows - windows.mean(axis=(2, 3), keepdims=True)
                norms = np.sqrt((a * a).sum() * (b * b).sum(axis=(2, 3, 4)))
                best = max(best, ((a * b).sum(axis=(2, 3, 4)) / norms).max())
    return best


@pytest.mark.parametrize("flip", [True, False])
def test_scores_are_those_of_explicit_windows(flip):
    verify = Verify(size=20, zooms=(0.8, 0.6), flip=flip)
    rng = np.random.default_rng(0)
    queries = rng.integers(0, 256, (3, 20, 20, 3), dtype=np.uint8)
    references = np.concatenate([queries[:1, :, ::-1], rng.integers(0, 256, (2, 20, 20, 3), dtype=np.uint8)])
    found = verify.compare(queries, references, np.tile(np.arange(3), (3, 1)))
    expected = [[brute(verify, query, reference) for reference in references] for query in queries]
    np.testing.assert_allclose(found, expected, atol=1e-4)


def test_one_channel_is_scikit_images_template_matching():
    rng = np.random.default_rng(0)
    grey = np.repeat(rng.integers(0, 256, (2, 24, 24, 1), dtype=np.uint8), 3, axis=3)
    verify = Verify(size=24, zooms=(), flip=False)
    found = verify.compare(grey[:1], grey[1:], np.zeros((1, 1), np.int64))[0, 0]
    margin = round(24 * (1 - verify.core) / 2)
    cores = [picture[margin : 24 - margin, margin : 24 - margin, 0].astype(float) for picture in grey]
    expected = [match_template(grey[1 - at, :, :, 0].astype(float), cores[at]).max() for at in range(2)]
    assert found == pytest.approx(max(expected), abs=1e-5)


@pytest.mark.parametrize("kind", ["exact", "jpeg", "flip", "shift", "blur", "noise", "crop", "inset"])
def test_an_altered_copy_scores_above_every_other_picture(kind):
    verify, rng = Verify(), np.random.default_rng(1)
    pictures = [worlds.picture(rng)[0] for _ in range(8)]
    copies = [image if kind == "exact" else worlds.alter(image, kind, rng) for image in pictures]
    candidates = np.tile(np.arange(8), (8, 1))
    scores = verify.compare(verify.shrink(copies), verify.shrink(pictures), candidates, workers=2)
    own, other = np.diag(scores), scores[~np.eye(8, dtype=bool)]
    assert own.min() > 0.88
    assert own.min() > other.max()


def test_a_zoomed_copy_lies_over_its_source_at_the_zooms_given():
    rng = np.random.default_rng(2)
    picture = images.resize(worlds.picture(rng)[0], (200, 200))
    zoomed = images.resize(images.centre_crop(picture, 160), (200, 200))
    with_zoom, without = Verify(), Verify(zooms=())
    for first, second in ((picture, zoomed), (zoomed, picture)):
        scores = [
            verify.compare(verify.shrink([first]), verify.shrink([second]), np.zeros((1, 1), np.int64))[0, 0]
            for verify in (with_zoom, without)
        ]
        assert scores[0] > 0.97
        assert scores[0] > scores[1]


def test_a_flat_picture_scores_nothing_and_a_missing_candidate_is_nan():
    verify = Verify()
    flat = np.full((1, verify.size, verify.size, 3), 200, np.uint8)
    scores = verify.compare(flat, flat, np.array([[0, -1]]))
    assert scores[0, 0] == 0
    assert np.isnan(scores[0, 1])


def test_chunks_change_nothing(monkeypatch):
    verify, rng = Verify(size=16), np.random.default_rng(4)
    queries, references = rng.integers(0, 256, (2, 7, 16, 16, 3), dtype=np.uint8)
    candidates = rng.integers(-1, 7, (7, 3))
    whole = verify.compare(queries, references, candidates)
    monkeypatch.setattr(verify_module, "CHUNK", 2)
    told = []
    chunks = verify.compare(queries, references, candidates, progress=lambda *values: told.append(values))
    np.testing.assert_allclose(chunks, whole, atol=1e-6)
    np.testing.assert_array_equal(np.isnan(chunks), candidates < 0)
    assert told == [("verify", done, 7) for done in (2, 4, 6, 7)]


def test_less_than_a_grey_level_of_contrast_is_nothing_to_align():
    verify = Verify()
    rng = np.random.default_rng(5)
    faint = np.full((1, 32, 32, 3), 200, np.uint8)
    faint[0, rng.integers(8, 24, 20), rng.integers(8, 24, 20)] += 1
    assert verify.compare(faint, faint, np.zeros((1, 1), np.int64))[0, 0] == 0


def test_an_image_gone_since_it_was_described_is_black_and_the_others_keep_their_places(tmp_path):
    rng = np.random.default_rng(6)
    pictures = [worlds.picture(rng)[0] for _ in range(3)]
    for number, picture in enumerate(pictures):
        (tmp_path / f"{number}.png").write_bytes(images.encode(picture, "png"))
    corpus = Corpus.open(tmp_path)
    (tmp_path / "1.png").unlink()
    found = Verify().thumbnails(corpus, np.array([0, 1, 2]), cache=tmp_path / "cache")
    np.testing.assert_array_equal(found[[0, 2]], Verify().shrink([pictures[0], pictures[2]]))
    assert not found[1].any()


def test_a_picture_turned_by_any_symmetry_scores_as_upright():
    verify, rng = Verify(), np.random.default_rng(7)
    pictures = verify.shrink([worlds.picture(rng)[0] for _ in range(6)])
    own = np.arange(6)[:, None]
    for symmetry in range(SYMMETRIES):
        copies = turned(pictures.transpose(0, 3, 1, 2), symmetry).transpose(0, 2, 3, 1)
        assert verify.compare(copies, pictures, own).min() > 0.999
        unturned = Verify(turn=False).compare(copies, pictures, own)
        assert (unturned.min() > 0.999) == (symmetry in (0, 1))
        # Without mirror images, the two quarter turns and the half turn are left.
        rotated = Verify(flip=False).compare(copies, pictures, own)
        assert (rotated.min() > 0.999) == (symmetry in (0, 3, 5, 6))


def test_scores_of_pictures_that_are_not_turned_stay_to_the_bit():
    rng = np.random.default_rng(8)
    pictures = Verify().shrink([worlds.picture(rng)[0] for _ in range(12)])
    candidates = np.tile(np.arange(12), (12, 1))
    turning, upright = (Verify(turn=turn).compare(pictures, pictures, candidates) for turn in (True, False))
    raised = turning != upright
    assert (turning[raised] >= verify_module.TURNED).all()
    assert (turning >= upright).all()
    assert raised.mean() < 0.1
