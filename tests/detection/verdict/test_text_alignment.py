"""Text-image agreement: on vectors whose relation is planted, and against fits done the long way."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.linear_model import Ridge

from copyscope.detection.verdict import text_alignment as agreements
from copyscope.detection.verdict.text_alignment import agreement, fit


def planted(seed, n=240, e=24, d=16, noise=0.3):
    """Text [n e] and image [n d] vectors: the images are a linear function of the texts, and noise, off the origin."""
    rng = np.random.default_rng(seed)
    text = rng.normal(size=(n, e)) + 3
    image = text @ rng.normal(size=(e, d)) + noise * rng.normal(size=(n, d)) + 5
    return text, image


def test_the_right_caption_comes_first_of_all():
    text, image = planted(0)
    head = fit(text[:200], image[:200])
    texts, images = text[200:], image[200:]
    every = np.array([agreement(head, texts, np.repeat(one[None], len(texts), axis=0)) for one in images])
    assert (every.argmax(axis=1) == np.arange(len(images))).all()
    assert agreement(head, texts, images).mean() > 0.95


def test_shuffled_pairs_agree_as_little_as_none():
    text, image = planted(1)
    head = fit(text[:200], image[:200])
    wrong = agreement(head, text[200:], np.roll(image[200:], 1, axis=0))
    assert abs(wrong.mean()) < 4 * wrong.std() / np.sqrt(len(wrong))


def test_a_head_fitted_on_shuffled_pairs_knows_nothing():
    text, image = planted(2)
    order = np.random.default_rng(0).permutation(200)
    blind, head = fit(text[:200], image[:200][order]), fit(text[:200], image[:200])
    assert abs(agreement(blind, text[200:], image[200:]).mean()) < 0.25
    assert blind.ridge > head.ridge


def test_the_ridge_is_the_one_that_predicts_an_image_left_out_best():
    text, image = planted(3, n=12, e=5, d=3, noise=2.0)
    scale = np.linalg.svd(text - text.mean(axis=0), compute_uv=False) ** 2

    def error(ridge):
        found = 0.0
        for out in range(len(text)):
            rest = np.arange(len(text)) != out
            model = Ridge(alpha=ridge).fit(text[rest], image[rest])
            found += ((model.predict(text[[out]]) - image[out]) ** 2).sum() / len(text)
        return found

    errors = {multiple: error(multiple * scale.mean()) for multiple in agreements.RIDGES}
    best = min(errors, key=errors.get)
    head = fit(text, image)
    assert head.ridge == pytest.approx(best * scale.mean())
    assert head.error == pytest.approx(errors[best])
    model = Ridge(alpha=head.ridge).fit(text, image)
    np.testing.assert_allclose(head.predict(text) + head.image_mean, model.predict(text))


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 2**32 - 1), st.integers(2, 30), st.integers(1, 12), st.integers(1, 8))
def test_cosines_are_cosines_and_follow_the_rows(seed, n, e, d):
    text, image = planted(seed, n, e, d)
    head = fit(text, image)
    found = agreement(head, text, image)
    assert found.shape == (n,)
    assert (np.abs(found) <= 1 + 1e-9).all()
    order = np.random.default_rng(seed).permutation(n)
    np.testing.assert_allclose(agreement(head, text[order], image[order]), found[order], atol=1e-9)
    moved = fit(text + 7, image - 2)
    np.testing.assert_allclose(agreement(moved, text + 7, image - 2), found, atol=1e-5)


def test_texts_that_are_all_alike_say_nothing():
    _, image = planted(4, n=20)
    same = np.full((20, 6), 0.1)
    assert not agreement(fit(same, image), same, image).any()


@pytest.mark.parametrize("shapes", [((3, 4), (2, 4)), ((1, 4), (1, 4)), ((4,), (4, 2))])
def test_rows_that_do_not_pair_are_refused(shapes):
    with pytest.raises(ValueError, match="a head needs"):
        fit(*(np.zeros(shape) for shape in shapes))
    with pytest.raises(ValueError, match="must pair"):
        agreement(fit(*planted(0, 10)), *(part[:n] for part, n in zip(planted(0, 10), (3, 2), strict=True)))
