import numpy as np
import pytest

from copyscope.detection.verdict.alterations import KINDS, LONGEST, alter
from copyscope.imaging import images
from tests.worlds import picture


def scene(seed):
    return picture(np.random.default_rng(seed))[0]


@pytest.mark.parametrize("kind", KINDS)
def test_alteration_is_deterministic_and_changes_the_image(kind):
    image, other = scene(0), scene(1)
    before = image.copy()
    first, again = (alter(image, kind, np.random.default_rng(3), other) for _ in range(2))
    assert (first == again).all()
    assert first.dtype == np.uint8
    assert first.ndim == 3
    assert first.shape[2] == 3
    assert first.shape != image.shape or (first != image).any()
    assert (image == before).all()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("shape", [(1, 1), (1, 7), (9, 2), (3, 400)])
def test_alteration_takes_images_of_any_shape(kind, shape):
    image = np.random.default_rng(0).integers(0, 256, (*shape, 3)).astype(np.uint8)
    for seed in range(6):
        assert 0 not in alter(image, kind, np.random.default_rng(seed), scene(1)).shape


def test_alteration_of_a_large_image_has_the_size_that_models_make():
    image = images.resize(scene(0), (900, 1800))
    assert max(alter(image, "light", np.random.default_rng(0), image).shape[:2]) == LONGEST


def test_crop_keeps_60_to_75_percent_of_each_side():
    image = images.resize(scene(0), (200, 300))
    shares = [alter(image, "crop", np.random.default_rng(seed), image).shape[0] / 200 for seed in range(40)]
    assert 0.595 <= min(shares) < 0.63
    assert 0.72 < max(shares) <= 0.755


def test_overlay_covers_a_fifth():
    image = images.resize(scene(0), (200, 300))
    for seed in range(20):
        changed = (alter(image, "overlay", np.random.default_rng(seed), image) != image).any(axis=2)
        assert changed.mean() == pytest.approx(0.2, abs=0.02)


def test_part_shows_the_image_on_a_quarter_of_the_background():
    image, other = np.full((100, 160, 3), 255, np.uint8), np.zeros((40, 40, 3), np.uint8)
    assert (alter(image, "part", np.random.default_rng(0), other) == 255).mean() == 0.25


def test_rotate_turns_by_ten_degrees_or_by_a_quarter():
    image = images.resize(scene(0), (100, 160))
    shapes = [alter(image, "rotate", np.random.default_rng(seed), image).shape[:2] for seed in range(20)]
    assert set(shapes) == {(100, 160), (160, 100)}


def test_light_copies_of_photograph_like_pictures_stay_near():
    image = images.resize(scene(0), (256, 256))
    found = alter(image, "light", np.random.default_rng(0), image).astype(float)
    assert np.corrcoef(found.ravel(), image.astype(float).ravel())[0, 1] > 0.95


def test_unknown_alteration_names_the_known_ones():
    with pytest.raises(ValueError, match="light, crop, mirror"):
        alter(scene(0), "melt", np.random.default_rng(0), scene(1))
