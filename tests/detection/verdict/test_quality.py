"""Quality against independent code (golden: tests/golden/make_quality.py; live: scipy, scikit-learn)."""

from __future__ import annotations

import json
import math
import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from copyscope.detection.verdict import quality as q

GOLDEN: dict[str, Any] = json.loads((Path(__file__).parents[2] / "golden" / "quality.json").read_text(encoding="utf-8"))


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(np.random.SeedSequence(5))


@pytest.mark.parametrize("name", GOLDEN)
def test_golden(name: str) -> None:
    case = GOLDEN[name]
    real, generated = np.array(case["real"]), np.array(case["generated"])
    few = min(len(real), len(generated))
    found = q.precision_recall(real, generated)
    assert q.frechet_distance(real, generated) == pytest.approx(case["frechet_distance"], abs=1e-4)
    assert found.precision == pytest.approx(case["precision"], abs=1e-4)
    assert found.recall == pytest.approx(case["recall"], abs=1e-4)
    assert q.diversity(real) == pytest.approx(case["diversity_real"], abs=1e-4)
    assert q.diversity(generated) == pytest.approx(case["diversity_generated"], abs=1e-4)
    assert q.alignment(generated[:few], real[:few]) == pytest.approx(case["alignment"], abs=1e-4)


def test_frechet_distance_is_that_of_sqrtm(rng: np.random.Generator) -> None:
    from scipy import linalg

    x, y = rng.normal(size=(300, 24)), rng.normal(size=(200, 24)) * 1.5 + 0.2
    a, b = np.cov(x, rowvar=False), np.cov(y, rowvar=False)
    expected = ((x.mean(0) - y.mean(0)) ** 2).sum() + np.trace(a + b - 2 * linalg.sqrtm(a @ b).real)
    assert q.frechet_distance(x, y) == pytest.approx(expected, rel=1e-6)
    assert q.frechet_distance(x.astype(np.float32), y.astype(np.float32)) == pytest.approx(expected, abs=1e-4)


def test_frechet_distance_in_one_dimension_is_the_closed_form(rng: np.random.Generator) -> None:
    x, y = rng.normal(size=(50, 1)), 3 * rng.normal(size=(70, 1)) + 1
    expected = (x.mean() - y.mean()) ** 2 + (x.std(ddof=1) - y.std(ddof=1)) ** 2
    assert q.frechet_distance(x, y) == pytest.approx(expected, rel=1e-9)


@settings(max_examples=30, deadline=None)
@given(st.integers(2, 15), st.integers(2, 15), st.integers(1, 10), st.integers(0, 2**32 - 1))
def test_frechet_distance_is_symmetric_and_blind_to_rotation(n: int, m: int, d: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    x, y = rng.normal(size=(n, d)), rng.normal(size=(m, d))
    turn = np.linalg.qr(rng.normal(size=(d, d)))[0]
    value = q.frechet_distance(x, y)
    assert value >= 0
    assert q.frechet_distance(y, x) == pytest.approx(value, abs=1e-8)
    assert q.frechet_distance(x @ turn + 3, y @ turn + 3) == pytest.approx(value, abs=1e-8)
    assert q.frechet_distance(x, x) == pytest.approx(0, abs=1e-8)


def test_both_roots_of_a_covariance_agree(rng: np.random.Generator, monkeypatch: pytest.MonkeyPatch) -> None:
    """Many small blocks give what one block gives."""
    x, y = rng.normal(size=(101, 7)), rng.normal(size=(93, 7)) * 0.7
    whole = q.frechet_distance(x, y), q.precision_recall(x, y), q.diversity(x)
    monkeypatch.setattr(q, "_BLOCK", 64)
    pieces = q.frechet_distance(x, y), q.precision_recall(x, y), q.diversity(x)
    assert pieces[0] == pytest.approx(whole[0], rel=1e-9)
    assert pieces[2] == pytest.approx(whole[2], rel=1e-9)
    np.testing.assert_array_equal(pieces[1].generated_inside, whole[1].generated_inside)
    np.testing.assert_array_equal(pieces[1].real_inside, whole[1].real_inside)


@settings(max_examples=30, deadline=None)
@given(st.integers(5, 30), st.integers(5, 30), st.integers(1, 8), st.integers(1, 4), st.integers(0, 2**32 - 1))
def test_precision_and_recall_are_those_of_nearest_neighbours(n: int, m: int, d: int, k: int, seed: int) -> None:
    from sklearn.metrics import pairwise_distances
    from sklearn.neighbors import NearestNeighbors

    rng = np.random.default_rng(seed)
    real, generated = rng.normal(size=(n, d)), rng.normal(size=(m, d)) + 0.5
    reach_real = NearestNeighbors(n_neighbors=k, algorithm="brute").fit(real).kneighbors()[0][:, -1]
    reach_generated = NearestNeighbors(n_neighbors=k, algorithm="brute").fit(generated).kneighbors()[0][:, -1]
    between = pairwise_distances(generated, real)
    found = q.precision_recall(real, generated, k)
    np.testing.assert_array_equal(found.generated_inside, (between <= reach_real).any(axis=1))
    np.testing.assert_array_equal(found.real_inside, (between <= reach_generated[:, None]).any(axis=0))


@pytest.mark.parametrize(("n", "d"), [(4, 48), (4, 50), (4, 512), (37, 48)])
def test_copies_of_duplicated_images_are_inside(n: int, d: int) -> None:
    """Where a real image stands four times its ball has radius zero: a copy of it lies on the edge, and that counts.

    Matrix products round differently for few rows and for many, so that the distance may come out above the radius.
    """
    for seed in range(4):
        real = np.random.default_rng(np.random.SeedSequence(seed)).normal(size=(61, d))
        real /= np.linalg.norm(real, axis=1, keepdims=True)
        real = np.repeat(real, 4, axis=0)
        assert q.precision_recall(real, real[::4][:n].copy()).precision == 1.0


def test_precision_and_recall_fall_apart_for_mode_collapse(rng: np.random.Generator) -> None:
    real = rng.normal(size=(300, 4))
    found = q.precision_recall(real, real[:1] + 1e-3 * rng.normal(size=(300, 4)))
    assert found.precision > 0.95
    assert found.recall < 0.05


def test_memory_of_precision_and_recall_stays_below_a_distance_matrix(rng: np.random.Generator) -> None:
    n = 6000
    real, generated = rng.normal(size=(n, 4)).astype(np.float32), rng.normal(size=(n, 4)).astype(np.float32)
    before, q._BLOCK = q._BLOCK, 500_000
    tracemalloc.start()
    try:
        q.precision_recall(real, generated)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
        q._BLOCK = before
    assert peak < 8 * n * n / 8


def test_diversity_is_the_mean_over_pairs(rng: np.random.Generator) -> None:
    from sklearn.metrics.pairwise import cosine_distances

    x = rng.normal(size=(57, 9)) + 0.4
    assert q.diversity(x) == pytest.approx(cosine_distances(x)[np.triu_indices(57, 1)].mean(), rel=1e-9)
    assert q.diversity(np.ones((5, 3))) == pytest.approx(0, abs=1e-12)
    assert q.diversity(np.array([[1.0, 0], [-1, 0]])) == pytest.approx(2)


def test_alignment(rng: np.random.Generator) -> None:
    x = rng.normal(size=(8, 5))
    assert q.alignment(x, 3 * x) == pytest.approx(1)
    assert q.alignment(x, -x) == pytest.approx(-1)
    assert math.isnan(q.alignment(x[:0], x[:0]))
    with pytest.raises(ValueError, match="as many"):
        q.alignment(x, x[:3])


def test_vectors_of_different_length_are_refused(rng: np.random.Generator) -> None:
    for function in (q.frechet_distance, q.precision_recall):
        with pytest.raises(ValueError, match="one length"):
            function(rng.normal(size=(5, 3)), rng.normal(size=(5, 4)))


def test_too_few_images_give_nan_and_say_so(rng: np.random.Generator) -> None:
    found = q.quality(rng.normal(size=(1, 3)), rng.normal(size=(50, 3)), "sscd")
    for name in ("frechet_distance", "precision", "recall", "diversity_generated"):
        assert math.isnan(getattr(found, name).value)
    assert found.diversity_train.value > 0
    assert len(found.notes) == 2
    json.dumps(found.as_dict(), allow_nan=False)
    assert math.isnan(q.frechet_distance(rng.normal(size=(1, 3)), rng.normal(size=(5, 3))))
    assert math.isnan(q.diversity(np.ones((1, 3))))
    assert math.isnan(q.quality(np.zeros((0, 3)), np.zeros((0, 3)), "sscd").frechet_distance.value)


def test_quality_puts_it_together(rng: np.random.Generator) -> None:
    train, generated = rng.normal(size=(400, 6)), rng.normal(size=(150, 6)) * 0.8
    texts = generated + rng.normal(size=(150, 6))
    found = q.quality(generated, train, "sscd(size=288)", text=(generated, texts), seed=3)
    assert found.frechet_distance.value == pytest.approx(q.frechet_distance(generated, train))
    assert found.diversity_generated.value == pytest.approx(q.diversity(generated))
    assert found.diversity_train.value == pytest.approx(q.diversity(train))
    assert found.text_image_alignment is not None
    assert found.text_image_alignment.value == pytest.approx(q.alignment(generated, texts))
    assert found.precision.n == found.recall.n == 150
    for name in ("frechet_distance", "precision", "recall", "diversity_generated", "diversity_train"):
        estimate = getattr(found, name)
        assert estimate.low <= estimate.value <= estimate.high
        assert estimate.low < estimate.high
    assert found == q.quality(generated, train, "sscd(size=288)", text=(generated, texts), seed=3)
    assert found.precision != q.quality(generated, train, "sscd(size=288)", seed=4).precision
    plain = found.as_dict()
    assert list(plain) == [
        "space",
        "frechet_distance",
        "precision",
        "recall",
        "diversity_generated",
        "diversity_train",
        "text_image_alignment",
        "notes",
    ]
    assert plain["space"] == "sscd(size=288)"
    assert set(plain["precision"]) == {"value", "low", "high", "n"}
    assert any("150 random images a side" in note for note in plain["notes"])
    assert any("two random sets of 150" in note for note in plain["notes"])
    assert "FID" not in json.dumps(plain, allow_nan=False)


def test_few_images_for_many_dimensions_are_noted(rng: np.random.Generator) -> None:
    found = q.quality(rng.normal(size=(30, 64)), rng.normal(size=(30, 64)), "sscd")
    assert any("biased upwards" in note for note in found.notes)
    assert found.text_image_alignment is None
    assert found.as_dict()["text_image_alignment"] is None


def test_the_intervals_are_as_wide_as_fresh_samples_differ(rng: np.random.Generator) -> None:
    """The half width of an interval, over t, is near the standard deviation over fresh generated images."""
    train = rng.normal(size=(500, 5)) + 0.5
    found = [q.quality(rng.normal(size=(200, 5)) * 0.7 + 0.3, train, "sscd") for _ in range(40)]
    for name, t in (("frechet_distance", 2.262), ("diversity_generated", 1.96)):
        estimates = [getattr(one, name) for one in found]
        spread = np.std([estimate.value for estimate in estimates], ddof=1)
        said = np.median([(estimate.high - estimate.low) / 2 / t for estimate in estimates])
        assert 0.6 < said / spread < 1.6, name
