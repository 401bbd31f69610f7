"""The perfect copier against the posterior of a normal mixture written out with full covariance matrices."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from copyscope import parts
from copyscope.diffusion import sampling
from copyscope.diffusion.generate import SampleRecipe, sample
from copyscope.diffusion.models.empirical import Empirical
from copyscope.errors import InputError, PartError
from copyscope.imaging import images
from tests import worlds

SIDE = 2
WEIGHTS = [1.0, 1.0, 2.0, 4.0, 0.0]
CAPTIONS = [["a red disc", "disc"], ["disc"], ["a blue bar"], [], ["a red disc"]]


@pytest.fixture(scope="module")
def pictures():
    rng = np.random.default_rng(5)
    return rng.integers(0, 256, (len(WEIGHTS), SIDE, SIDE, 3), dtype=np.uint8)


@pytest.fixture(scope="module")
def folder(tmp_path_factory, pictures):
    """Five images, one of weight 0, and two that cannot be read."""
    path = tmp_path_factory.mktemp("corpus")
    rows = []
    for number, (picture, weight, captions) in enumerate(zip(pictures, WEIGHTS, CAPTIONS, strict=True)):
        (path / f"{number}.png").write_bytes(images.encode(picture, "png"))
        rows.append({"file_name": f"{number}.png", "captions": captions, "weight": weight})
    (path / "5.png").write_bytes(b"no image")
    rows += [{"file_name": f"{number}.png", "captions": ["disc"], "weight": 9.0} for number in (5, 6)]
    worlds.write_metadata(path, rows)
    return str(path)


def posterior_mean(points, weights, bandwidth, x, sigma):
    """E[x0 | x] for the mixture that `Empirical` says it is, by linear algebra on whole covariance matrices."""
    weights = np.array(weights) / np.sum(weights)
    mean = weights @ points
    covariance = (points - mean).T @ np.diag(weights) @ (points - mean)
    of_part = bandwidth**2 * covariance
    whole = of_part + sigma**2 * np.eye(len(x))
    logs, means = [], []
    for weight, point in zip(weights, points, strict=True):
        centre = mean + np.sqrt(1 - bandwidth**2) * (point - mean)
        away = np.linalg.solve(whole, x - centre)
        logs.append(np.log(weight) - (x - centre) @ away / 2)
        means.append(centre + of_part @ away)
    share = np.exp(np.array(logs) - max(logs))
    return share @ np.array(means) / share.sum()


def points(pictures):
    return pictures.transpose(0, 3, 1, 2).reshape(len(pictures), -1) / 127.5 - 1


@pytest.mark.parametrize("bandwidth", [0.0, 0.3, 1.0])
@pytest.mark.parametrize("sigma", [0.05, 0.7, 40.0])
def test_it_is_the_posterior_mean_of_its_mixture(folder, pictures, bandwidth, sigma):
    model = Empirical(folder, SIDE, bandwidth)
    known = points(pictures)[:4]
    x = known[[0, 3, 2]] + sigma * np.random.default_rng(1).normal(size=(3, 12))
    found = model(torch.tensor(x).view(3, 3, SIDE, SIDE), torch.full((3,), sigma), model.condition([""] * 3))
    expected = [posterior_mean(known, WEIGHTS[:4], bandwidth, each, sigma) for each in x]
    np.testing.assert_allclose(found.reshape(3, -1), expected, atol=1e-6)


def made(model, captions, seed=0):
    return np.stack(sample(model, model.condition(captions), range(seed, seed + len(captions)), SampleRecipe(steps=18)))


def places(found, pictures):
    """The training image that each sample equals to the last pixel."""
    same = (found[:, None] == pictures[None]).all((2, 3, 4))
    assert (same.sum(1) == 1).all(), "a sample is one of the training images, pixel for pixel"
    return same.argmax(1)


def test_samples_are_the_training_images_as_often_as_their_weight_says(folder, pictures):
    count = np.bincount(places(made(Empirical(folder, SIDE), [""] * 800), pictures), minlength=5)
    assert count[4] == 0
    expected = 800 * np.array([1, 1, 2, 4]) / 8
    assert (np.abs(count[:4] - expected) < 4 * np.sqrt(expected)).all()


def test_a_prompt_means_the_images_that_bear_it_and_an_unknown_one_all(folder, pictures):
    model = Empirical(folder, SIDE)
    assert set(places(made(model, ["a red disc"] * 30), pictures)) == {0}
    assert set(places(made(model, ["disc"] * 60), pictures)) == {0, 1}
    assert set(places(made(model, ["a blue bar"] * 30), pictures)) == {2}
    unknown = made(model, ["a dog"] * 60)
    assert np.array_equal(unknown, made(model, [""] * 60))
    assert set(places(unknown, pictures)) == {0, 1, 2, 3}


def test_specificity_weighs_the_prompt_against_the_weights(folder, pictures):
    deaf = Empirical(folder, SIDE, specificity=0.0)
    assert np.array_equal(made(deaf, ["a blue bar"] * 20), made(deaf, [""] * 20))
    # In pure noise only the prior counts: the blue bar weighs 2 e^1 against 6 of the others.
    model = Empirical(folder, SIDE, specificity=1.0)
    x, sigma = torch.zeros(1, 3, SIDE, SIDE), torch.tensor([1e6])
    share = np.array([1, 1, 2 * np.e, 4])
    expected = share / share.sum() @ points(pictures)[:4]
    np.testing.assert_allclose(model(x, sigma, model.condition(["a blue bar"])).reshape(-1), expected, atol=1e-5)


def test_the_mask_leaves_a_prompt_out(folder):
    model = Empirical(folder, SIDE)
    told = model.condition(["disc"])
    masked = type(told)(told.text, ~told.mask)
    x, sigma = torch.ones(1, 3, SIDE, SIDE), torch.tensor([5.0])
    assert torch.equal(model(x, sigma, masked), model(x, sigma, model.condition([""])))
    assert not torch.equal(model(x, sigma, told), model(x, sigma, masked))


@pytest.mark.parametrize("bandwidth", [0.5, 1.0])
def test_a_bandwidth_moves_samples_off_the_images_and_keeps_mean_and_covariance(folder, pictures, bandwidth):
    model = Empirical(folder, SIDE, bandwidth)
    n = 2000
    x = sampling.noise(range(n), model.shape) * model.sigmas[1]
    told = model.condition([""] * n)
    levels = sampling.noise_levels(40, *model.sigmas)
    found = sampling.heun(lambda x, sigma, i: model(x, sigma, told), x, levels).reshape(n, -1).double().numpy()
    known, weights = points(pictures)[:4], np.array(WEIGHTS[:4]) / 8
    nearest = np.linalg.norm(found[:, None] - known[None], axis=2).min(1)
    assert np.mean(nearest < 0.1) < 0.05, "hardly any is a copy"
    np.testing.assert_allclose(found.mean(0), weights @ known, atol=0.06)
    np.testing.assert_allclose(np.cov(found.T), np.cov(known.T, aweights=weights, ddof=0), atol=0.06)


def test_identical_images_share_their_weight(tmp_path, pictures):
    for number in range(3):
        (tmp_path / f"{number}.png").write_bytes(images.encode(pictures[min(number, 1)], "png"))
    model = Empirical(str(tmp_path), SIDE)
    x, sigma = torch.zeros(1, 3, SIDE, SIDE), torch.tensor([1e6])
    expected = points(pictures)[[0, 1, 1]].mean(0)
    np.testing.assert_allclose(model(x, sigma, model.condition([""])).reshape(-1), expected, atol=1e-5)


def test_pictures_of_any_size_are_brought_to_the_squares_it_makes(tmp_path):
    wide = worlds.picture(np.random.default_rng(0))[0]
    (tmp_path / "wide.png").write_bytes(images.encode(wide, "png"))
    found = made(Empirical(str(tmp_path), size=16), [""])[0]
    assert np.array_equal(found, images.centre_crop(images.resize_short(wide, 16), 16))


def test_what_cannot_be(tmp_path, folder):
    (tmp_path / "x.png").write_bytes(b"no image")
    with pytest.raises(InputError, match="None of 1 images"):
        Empirical(str(tmp_path)).condition([""])
    (tmp_path / "y.png").write_bytes(images.encode(np.zeros((4, 4, 3), np.uint8), "png"))
    worlds.write_metadata(tmp_path, [{"file_name": name, "weight": 0.0} for name in ("x.png", "y.png")])
    with pytest.raises(InputError, match="None of 2 images"):
        Empirical(str(tmp_path)).condition([""])
    for spec in ("size=0", "bandwidth=1.5", "bandwidth=-0.1", "specificity=-1.0"):
        with pytest.raises(PartError, match="does not fit"):
            parts.load("models", f"empirical({folder!r}, {spec})")
