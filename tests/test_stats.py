"""Estimates, conformal p-values, false discovery rate, bootstrap: against scipy, brute force and simulation."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from copyscope import stats
from copyscope.stats import Estimate

unit = st.floats(0, 1, allow_nan=False)
finite = st.floats(-1e3, 1e3, allow_nan=False, width=32)


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(np.random.SeedSequence(11))


def test_estimate_prints_and_serialises() -> None:
    assert str(Estimate(0.412, 0.39, 0.43, 4000)) == "0.412 [0.39, 0.43] n=4000"
    assert json.dumps(Estimate(math.nan, 0.0, math.inf, 0).as_dict(), allow_nan=False) == (
        '{"value": null, "low": 0.0, "high": null, "n": 0}'
    )


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 60), st.integers(1, 60), st.floats(0.5, 0.99))
def test_proportion_is_the_exact_interval_of_scipy(count: int, n: int, level: float) -> None:
    from scipy.stats import binomtest

    count = min(count, n)
    expected = binomtest(count, n).proportion_ci(level, method="exact")
    found = stats.proportion(count, n, level=level)
    assert (found.low, found.high) == pytest.approx((expected.low, expected.high), abs=1e-9)
    assert found.value == count / n
    assert found.n == n


@settings(deadline=None)
@given(st.integers(0, 30), st.integers(0, 30), st.integers(0, 30))
def test_missing_cases_count_against_us(count: int, n: int, missing: int) -> None:
    """The interval is the hull of what would be known had the missing cases been none, or all, hits."""
    count = min(count, n)
    found = stats.proportion(count, n, missing=missing)
    if n + missing:
        assert found.low == pytest.approx(stats.proportion(count, n + missing).low)
        assert found.high == pytest.approx(stats.proportion(count + missing, n + missing).high)
    else:
        assert (found.low, found.high) == (0, 1)
    assert found.n == n


def test_an_impossible_proportion_is_refused() -> None:
    for count, n, missing in ((3, 2, 0), (-1, 2, 0), (1, 2, -1)):
        with pytest.raises(ValueError, match="needs 0 <= count"):
            stats.proportion(count, n, missing=missing)


@settings(deadline=None)
@given(st.floats(0.001, 0.9))
def test_cases_needed_is_the_smallest_n_that_does(rate: float) -> None:
    n = stats.cases_needed(rate)
    assert stats.proportion(0, n).high <= rate * (1 + 1e-9)
    assert n == 1 or stats.proportion(0, n - 1).high > rate * (1 - 1e-9)


@pytest.mark.parametrize("rate", [0.0, 1.0, -0.1])
def test_cases_needed_refuses_a_rate_that_no_n_reaches(rate: float) -> None:
    with pytest.raises(ValueError, match="between 0 and 1"):
        stats.cases_needed(rate)


@settings(deadline=None)
@given(st.lists(st.integers(-3, 3), max_size=12), st.lists(st.integers(-3, 3), max_size=12))
def test_conformal_p_values_count_ties_for_the_calibration(scores: list[int], calibration: list[int]) -> None:
    found = stats.conformal_p_values(np.array(scores, dtype=float), np.array(calibration, dtype=float))
    expected = [(1 + sum(c >= s for c in calibration)) / (len(calibration) + 1) for s in scores]
    assert found.tolist() == pytest.approx(expected)


def test_a_score_that_is_missing_is_no_discovery() -> None:
    p_values = stats.conformal_p_values(np.array([math.nan, 0.9, 0.1]), np.linspace(0, 0.5, 200))
    assert math.isnan(p_values[0])
    assert stats.benjamini_hochberg(p_values).tolist() == [False, True, False]


def test_conformal_p_values_are_valid(rng: np.random.Generator) -> None:
    p_values = np.array([stats.conformal_p_values(rng.normal(size=1), rng.normal(size=19))[0] for _ in range(3000)])
    for level in (0.05, 0.1, 0.5):
        assert (p_values <= level + 1e-12).mean() == pytest.approx(level, abs=0.03)


@settings(deadline=None)
@given(st.lists(unit, max_size=40), st.floats(0.01, 0.5))
def test_benjamini_hochberg_is_that_of_scipy(p_values: list[float], rate: float) -> None:
    from scipy.stats import false_discovery_control

    found = stats.benjamini_hochberg(np.array(p_values), rate)
    adjusted = false_discovery_control(np.array(p_values)) if p_values else np.zeros(0)
    clear = np.abs(adjusted - rate) > 1e-9
    np.testing.assert_array_equal(found[clear], (adjusted <= rate)[clear])


def test_a_p_value_on_the_line_is_a_discovery() -> None:
    assert stats.benjamini_hochberg(np.array([0.05 * 3 / 3] * 3), 0.05).all()
    for n in range(1, 60):  # 0.05 * 43 / 43 is below 0.05 in floating point
        assert stats.benjamini_hochberg(np.full(n, 0.05), 0.05).all()


def test_false_discoveries_stay_at_their_rate(rng: np.random.Generator) -> None:
    shares = []
    for _ in range(300):
        p_values = np.concatenate([rng.uniform(size=80), rng.uniform(0, 1e-4, size=20)])
        found = stats.benjamini_hochberg(p_values, 0.1)
        shares.append(found[:80].sum() / max(1, found.sum()))
    assert np.mean(shares) == pytest.approx(0.08, abs=0.015)


def test_bootstrap_of_a_mean_is_near_its_normal_interval(rng: np.random.Generator) -> None:
    values = rng.normal(size=400)
    found = stats.bootstrap(lambda x: float(x.mean()), values)
    reach = 1.96 * values.std() / 20
    assert found.value == values.mean()
    assert (found.low, found.high) == pytest.approx((values.mean() - reach, values.mean() + reach), abs=0.02)
    assert found == stats.bootstrap(lambda x: float(x.mean()), values)
    assert found != stats.bootstrap(lambda x: float(x.mean()), values, seed=1)


def test_bootstrap_is_that_of_scipy(rng: np.random.Generator) -> None:
    from scipy.stats import bootstrap

    values = rng.gamma(1.0, size=200)
    expected = bootstrap((values,), np.median, n_resamples=4000, method="percentile", rng=1).confidence_interval
    found = stats.bootstrap(lambda x: float(np.median(x)), values, resamples=4000)
    assert (found.low, found.high) == pytest.approx((expected.low, expected.high), abs=0.02)


def test_bootstrap_keeps_rows_and_clusters_together(rng: np.random.Generator) -> None:
    values = rng.normal(size=30)
    clusters = np.repeat(["a", "b", "c", "d", "e"], 6)

    def check(x: np.ndarray, twin: np.ndarray, of: np.ndarray) -> float:
        np.testing.assert_array_equal(x, twin)
        _, counts = np.unique(of, return_counts=True)
        assert (counts % 6 == 0).all()
        return float(x.mean())

    stats.bootstrap(check, values, values.copy(), clusters.copy(), clusters=clusters, resamples=50)


def test_clustered_rows_have_the_wider_interval(rng: np.random.Generator) -> None:
    """100 rows in 10 clusters that agree say as much as 10 rows."""
    means = rng.normal(size=10)
    values, clusters = np.repeat(means, 10), np.repeat(np.arange(10), 10)
    rows, whole = (stats.bootstrap(lambda x: float(x.mean()), values, clusters=by) for by in (None, clusters))
    few = stats.bootstrap(lambda x: float(x.mean()), means)
    assert whole.high - whole.low == pytest.approx(few.high - few.low, rel=0.1)
    assert rows.high - rows.low < 0.5 * (whole.high - whole.low)


def test_bootstrap_without_anything_to_resample() -> None:
    assert math.isnan(stats.bootstrap(lambda x: float(x.mean()), np.zeros(0)).value)
    one = stats.bootstrap(lambda x: float(x.mean()), np.ones(1))
    assert (one.value, one.n) == (1.0, 1)
    assert math.isnan(one.low)
    never = stats.bootstrap(lambda x: math.nan, np.arange(5.0), resamples=5)
    assert math.isnan(never.high)
    at_times = stats.bootstrap(lambda x: float(x.mean()) if 0 in x else math.nan, np.arange(5.0))
    assert 0 < at_times.low < at_times.high < 4


def test_a_single_cluster_has_no_interval() -> None:
    found = stats.bootstrap(lambda x: float(x.mean()), np.arange(5.0), clusters=np.zeros(5))
    assert found.value == 2
    assert math.isnan(found.low)
    assert math.isnan(found.high)


@pytest.mark.parametrize(("n", "q"), [(30, 0.5), (100, 0.95), (40, 0.1), (20, 0.95)])
def test_the_interval_of_a_quantile_covers_it(n: int, q: float) -> None:
    """Exact coverage of an order-statistic interval [i, j] is P(i <= Binomial(n, q) < j); without an end, one side."""
    from scipy.stats import binom

    found = stats.quantile(np.arange(n, dtype=float), q)
    assert found.value == pytest.approx(np.quantile(np.arange(n), q))
    below = 0.0 if math.isnan(found.low) else binom.cdf(found.low, n, q)
    above = 0.0 if math.isnan(found.high) else binom.sf(found.high, n, q)
    assert below <= 0.025
    assert above <= 0.025
    # No narrower one would do.
    if not math.isnan(found.low):
        assert binom.cdf(found.low + 1, n, q) > 0.025
    if not math.isnan(found.high):
        assert binom.sf(found.high - 1, n, q) > 0.025


def test_a_quantile_out_of_reach_of_the_sample_has_an_open_end() -> None:
    assert math.isnan(stats.quantile(np.arange(71.0), 0.95).high)
    assert stats.quantile(np.arange(72.0), 0.95).high == 71
    assert math.isnan(stats.quantile(np.zeros(0), 0.5).value)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(finite, finite), min_size=4, max_size=30), st.sampled_from(["pearson", "spearman"]))
def test_correlation_is_symmetric_and_inside_its_interval(rows: list[tuple[float, float]], method: str) -> None:
    x, y = np.array(rows).T
    found, swapped = stats.correlation(x, y, method), stats.correlation(y, x, method)
    if math.isnan(found.estimate.value):
        assert np.ptp(x) < 1e-9 * (1 + np.abs(x).max()) or np.ptp(y) < 1e-9 * (1 + np.abs(y).max())
        return
    assert found.estimate.value == pytest.approx(swapped.estimate.value, abs=1e-9)
    assert -1 - 1e-12 <= found.estimate.low <= found.estimate.value <= found.estimate.high <= 1 + 1e-12
    assert 0 <= found.p_value <= 1


def test_correlation_against_scipy_and_plain_arithmetic(rng: np.random.Generator) -> None:
    from scipy.stats import pearsonr, rankdata

    x = rng.normal(size=80)
    y = 0.5 * x + rng.normal(size=80)
    found, expected = stats.correlation(x, y), pearsonr(x, y)
    interval = expected.confidence_interval(0.95)
    assert found.estimate.value == pytest.approx(np.corrcoef(x, y)[0, 1])
    assert (found.estimate.low, found.estimate.high) == pytest.approx((interval.low, interval.high), abs=1e-9)
    assert found.p_value == pytest.approx(expected.pvalue)
    ranked = stats.correlation(x, y, "spearman").estimate
    assert ranked.value == pytest.approx(np.corrcoef(rankdata(x), rankdata(y))[0, 1])
    half = 1.959964 * math.sqrt((1 + ranked.value**2 / 2) / 77)
    assert math.atanh(ranked.high) == pytest.approx(math.atanh(ranked.value) + half, abs=1e-6)


def test_correlation_without_variation_or_rows_is_nan_and_warns_nobody() -> None:
    x = np.arange(6.0)
    for y in (np.ones(6), 1e9 + 1e-6 * x, np.r_[1.0, 2.0, 3.0, np.full(3, np.nan)]):
        assert math.isnan(stats.correlation(x, y).estimate.value)
    assert stats.correlation(np.r_[x, math.nan], np.r_[x, 3.0]).estimate.n == 6
    assert stats.correlation(x, x).estimate.high == pytest.approx(1)
