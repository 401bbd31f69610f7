"""Estimates, conformal p-values, false discovery rate, bootstrap: against scipy, brute force and simulation."""

from __future__ import annotations

import copy
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


def test_estimates_are_equal_where_their_numbers_are_nan_beside_nan_too() -> None:
    nan = float("nan")
    assert Estimate(nan, 0.0, 1.0, 0) == Estimate(math.nan, 0.0, 1.0, 0)
    assert Estimate(nan, nan, nan, 0) == copy.deepcopy(Estimate(nan, nan, nan, 0))
    assert len({Estimate(nan, nan, nan, 0), Estimate(math.nan, float("nan"), math.nan, 0)}) == 1
    assert Estimate(0.5, 0.2, 0.9, 4) == Estimate(0.5, 0.2, 0.9, 4)
    for other in (Estimate(nan, 0.0, math.inf, 0), Estimate(0.0, 0.0, 1.0, 0), Estimate(nan, 0.0, 1.0, 1), None, 0.5):
        assert Estimate(nan, 0.0, 1.0, 0) != other


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
def test_benjamini_hochberg_rejects_up_to_the_last_p_value_below_its_line(p_values: list[float], rate: float) -> None:
    n = len(p_values)
    below = [p for k, p in enumerate(sorted(p_values), 1) if p * n <= rate * k * (1 + 1e-12)]
    found = stats.benjamini_hochberg(np.array(p_values, dtype=float), rate)
    assert found.tolist() == [p <= max(below, default=-1) for p in p_values]


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


# P-values of several scores


def p_values_by_definition(scores: np.ndarray, calibration: np.ndarray) -> list[float]:
    """The docstring of `conformal_p_values`, image by image, with the quantiles of the whole."""
    m, d = calibration.shape
    found = []
    for one in scores:
        whole = np.sort(np.vstack([calibration, one]), axis=0)
        ranks = [min(math.ceil(share * (m + 1)), m) for share in (0.9, 0.95)]
        low, high = (whole[rank - 1] for rank in ranks)
        scale = np.maximum(high - low, stats._LEAST_SCALE)

        def highest(image: np.ndarray, low: np.ndarray = low, scale: np.ndarray = scale) -> float:
            return max((image[column] - low[column]) / scale[column] for column in range(d))

        def rank(image: np.ndarray, whole: np.ndarray = whole) -> int:
            # The image itself is among the whole.
            return min(int((whole[:, column] >= image[column]).sum()) - 1 for column in range(d))

        mine = (rank(one), -highest(one))
        at_least = sum((rank(each), -highest(each)) <= mine for each in calibration)
        found.append((1 + at_least) / (m + 1))
    return found


grid = st.integers(-40, 40).map(lambda number: number / 8)  # exact in binary, so that ties are ties both ways


@settings(max_examples=150, deadline=None)
@given(st.data(), st.integers(2, 3), st.integers(1, 30), st.integers(0, 6))
def test_p_values_of_several_scores_are_those_of_the_definition(data: st.DataObject, d: int, m: int, n: int) -> None:
    def rows(count: int) -> np.ndarray:
        drawn = data.draw(st.lists(grid, min_size=count * d, max_size=count * d))
        return np.array(drawn, dtype=float).reshape(count, d)

    scores, calibration = rows(n), rows(m)
    expected = p_values_by_definition(scores, calibration)
    assert stats.conformal_p_values(scores, calibration).tolist() == pytest.approx(expected)


@settings(deadline=None)
@given(st.lists(st.integers(-3, 3), max_size=12), st.lists(st.integers(-3, 3), max_size=12))
def test_p_values_of_one_column_are_those_of_a_plain_list(scores: list[int], calibration: list[int]) -> None:
    mine, known = np.array(scores, dtype=float), np.array(calibration, dtype=float)
    found = stats.conformal_p_values(mine[:, None], known[:, None])
    assert found.tolist() == stats.conformal_p_values(mine, known).tolist()


def test_a_score_twice_is_worth_as_much_as_once(rng: np.random.Generator) -> None:
    mine, known = rng.normal(size=(50, 1)), rng.normal(size=(80, 1))
    found = stats.conformal_p_values(np.repeat(mine, 3, axis=1), np.repeat(known, 3, axis=1))
    assert found.tolist() == stats.conformal_p_values(mine, known).tolist()


def test_a_second_score_costs_nothing_where_it_tells_nothing(rng: np.random.Generator) -> None:
    """A copy stands out in one column, and its p-value stays at its least whatever the other holds; Bonferroni's rule
    would double it."""
    known = rng.normal(size=(199, 2))
    found = stats.conformal_p_values(np.array([[9.0, 0.0], [0.0, 9.0], [9.0, 9.0], [0.0, 0.0]]), known)
    assert found[:3].tolist() == [1 / 200] * 3
    assert found[3] > 0.2


def test_an_image_with_a_missing_column_has_no_p_value_and_blocks_do_not_matter(
    rng: np.random.Generator, monkeypatch: pytest.MonkeyPatch
) -> None:
    mine, known = rng.normal(size=(40, 2)), rng.normal(size=(30, 2))
    mine[3, 1] = math.nan
    whole = stats.conformal_p_values(mine, known)
    assert np.flatnonzero(np.isnan(whole)).tolist() == [3]
    monkeypatch.setattr(stats, "_BLOCK", 7 * known.size)
    np.testing.assert_array_equal(stats.conformal_p_values(mine, known), whole)
    empty = stats.conformal_p_values(mine[:5], np.zeros((0, 2)))
    assert np.isnan(empty).tolist() == [False, False, False, True, False]
    assert set(empty[~np.isnan(empty)]) == {1.0}


LAWS = {
    "normal": lambda rng, size: rng.normal(size=size),
    "heavy": lambda rng, size: rng.standard_t(2, size=size),
    "tied": lambda rng, size: np.round(rng.normal(size=size), 0),
    "skewed": lambda rng, size: rng.exponential(size=size) ** 3,
}


@pytest.mark.parametrize("law", LAWS)
@pytest.mark.parametrize("d", [1, 2, 3])
@pytest.mark.parametrize("m", [1, 2, 20, 100])
def test_p_values_of_several_scores_are_valid_at_any_size(law: str, d: int, m: int, rng: np.random.Generator) -> None:
    """P(p <= a) <= a for an image drawn as the calibration images are, with columns that go together and differ in
    scale. 4 deviations of slack: a test of 48 laws fails by chance once in a thousand runs at most, and the seed is
    fixed."""
    mixing, draws = np.eye(d) + 0.7, 4000
    p_values = np.empty(draws)
    for turn in range(draws):
        whole = (LAWS[law](rng, (m + 1, d)) @ mixing) * np.array([1, 100, 0.01])[:d]
        p_values[turn] = stats.conformal_p_values(whole[:1], whole[1:])[0]
    for level in (0.01, 0.05, 0.1, 0.5):
        assert (p_values <= level + 1e-12).mean() <= level + 4 * math.sqrt(level * (1 - level) / draws), level


# Corrected proportions


def corrected_by_hand(count: int, n: int, seen: tuple[int, int], false: tuple[int, int]) -> tuple[float, float, float]:
    """Rogan & Gladen's estimate and the interval of Lang & Reiczigel (2014, eqs. 6-8), in their symbols."""
    z = 1.959963984540054
    value = (count / n + (1 - false[0] / false[1]) - 1) / (seen[0] / seen[1] + (1 - false[0] / false[1]) - 1)
    n_, se_n, sp_n = n + z**2, seen[1] + 2, false[1] + 2
    p = (n * (count / n) + z**2 / 2) / n_
    se = (seen[0] + 1) / se_n
    sp = (false[1] - false[0] + 1) / sp_n
    theta = (p + sp - 1) / (se + sp - 1)
    shift = 2 * z**2 * (theta * se * (1 - se) / se_n - (1 - theta) * sp * (1 - sp) / sp_n)
    deviation = (
        math.sqrt(p * (1 - p) / n_ + theta**2 * se * (1 - se) / se_n + (1 - theta) ** 2 * sp * (1 - sp) / sp_n)
    ) / (se + sp - 1)
    cut = [min(max(each, 0.0), 1.0) for each in (value, theta + shift - z * deviation, theta + shift + z * deviation)]
    return cut[0], min(cut[1], cut[0]), max(cut[2], cut[0])


@pytest.mark.parametrize(
    ("count", "n", "seen", "false"),
    [
        (30, 100, (90, 100), (5, 100)),
        (0, 60, (50, 57), (1, 250)),
        (60, 60, (57, 57), (0, 400)),
        (3, 500, (20, 60), (3, 99)),
    ],
)
def test_a_corrected_proportion_is_that_of_its_formulas(
    count: int, n: int, seen: tuple[int, int], false: tuple[int, int]
) -> None:
    found = stats.corrected_proportion(count, n, seen, false)
    assert (found.value, found.low, found.high) == pytest.approx(corrected_by_hand(count, n, seen, false), abs=1e-12)
    assert found.n == n


def test_a_corrected_proportion_of_a_hand_worked_case() -> None:
    # Of 100, 30 positive; 90 % of the true ones are, and 5 % of the others: (.30 - .05) / (.90 - .05).
    found = stats.corrected_proportion(30, 100, (90, 100), (5, 100))
    assert found.value == pytest.approx(0.25 / 0.85)
    assert stats.corrected_proportion(30, 100, (100, 100), (0, 100)).value == pytest.approx(0.3)


@pytest.mark.parametrize("share", [0.0, 0.02, 0.05, 0.3, 0.9])
@pytest.mark.parametrize(("sensitivity", "alarms"), [(0.98, 0.01), (0.8, 0.05), (0.5, 0.02)])
@pytest.mark.parametrize(("n", "m"), [(100, 100), (400, 300)])
def test_the_interval_of_a_corrected_proportion_covers_the_true_share(
    share: float, sensitivity: float, alarms: float, n: int, m: int, rng: np.random.Generator
) -> None:
    draws, covered = 1500, 0
    for _ in range(draws):
        cases = rng.binomial(n, share)
        count = rng.binomial(cases, sensitivity) + rng.binomial(n - cases, alarms)
        found = stats.corrected_proportion(
            int(count), n, (int(rng.binomial(120, sensitivity)), 120), (int(rng.binomial(m, alarms)), m)
        )
        covered += found.low - 1e-12 <= share <= found.high + 1e-12
    assert covered / draws >= 0.93


@settings(max_examples=150, deadline=None)
@given(st.integers(1, 80), st.integers(1, 80), st.integers(1, 80), st.data())
def test_a_corrected_proportion_grows_with_its_count(n: int, tried: int, clean: int, data: st.DataObject) -> None:
    seen, false = data.draw(st.integers(0, tried)), data.draw(st.integers(0, clean))
    found = [stats.corrected_proportion(count, n, (seen, tried), (false, clean)) for count in range(n + 1)]
    for one in found:
        assert 0 <= one.low <= one.high <= 1
        assert math.isnan(one.value) or one.low <= one.value <= one.high
    if not math.isnan(found[0].value):
        values = [one.value for one in found]
        assert values == sorted(values)


@pytest.mark.parametrize(
    ("n", "seen", "false"),
    [(0, (5, 5), (0, 5)), (9, (0, 0), (0, 5)), (9, (5, 5), (0, 0)), (9, (1, 10), (1, 10)), (9, (1, 10), (9, 10))],
)
def test_a_test_that_tells_nothing_bounds_nothing(n: int, seen: tuple[int, int], false: tuple[int, int]) -> None:
    found = stats.corrected_proportion(0, n, seen, false)
    assert math.isnan(found.value)
    assert (found.low, found.high, found.n) == (0.0, 1.0, n)


@pytest.mark.parametrize(
    ("count", "seen", "false"), [(10, (1, 2), (0, 2)), (-1, (1, 2), (0, 2)), (1, (3, 2), (0, 2)), (1, (1, 2), (-1, 2))]
)
def test_impossible_counts_are_refused(count: int, seen: tuple[int, int], false: tuple[int, int]) -> None:
    with pytest.raises(ValueError, match="counts must lie between"):
        stats.corrected_proportion(count, 9, seen, false)


# Excess


def true_excess(line: float, share: float, far: float) -> float:
    """How much more of (1 - share) N(0, 1) + share N(far, 1) lies above a line than of N(0, 1)."""
    from scipy.stats import norm

    return share * float(norm.sf(line - far) - norm.sf(line))


@pytest.mark.parametrize(("n", "m"), [(50, 100), (200, 400)])
def test_equal_laws_have_no_excess(n: int, m: int, rng: np.random.Generator) -> None:
    bounds = [stats.excess(rng.normal(size=n), rng.normal(size=m))[0] for _ in range(600)]
    assert np.mean(np.array(bounds) > 0) <= 0.05


@pytest.mark.parametrize(("share", "far"), [(0.3, 1.0), (0.3, 6.0), (0.05, 6.0)])
def test_the_bound_of_an_excess_holds_at_its_line(share: float, far: float, rng: np.random.Generator) -> None:
    wrong = 0
    for _ in range(400):
        copies = rng.random(150) < share
        bound, line = stats.excess(rng.normal(size=150) + far * copies, rng.normal(size=300))
        assert math.isnan(line) == (bound == 0)
        wrong += bound > 0 and bound > true_excess(line, share, far)
    assert wrong / 400 <= 0.05


def test_an_excess_survives_contamination_that_no_single_image_does(rng: np.random.Generator) -> None:
    """Look-alikes among the others keep every single image from standing out; the whole still does."""
    others = np.concatenate([rng.normal(size=391), np.full(6, 6.0)])
    scores = np.concatenate([rng.normal(size=131), np.full(56, 5.9)])
    assert not stats.benjamini_hochberg(stats.conformal_p_values(scores, others)).any()
    bound, line = stats.excess(scores, others)
    assert 0.1 < bound < 56 / 187
    assert line < 5.9


def test_an_excess_of_nothing_is_none() -> None:
    for scores, others in (([], [1.0]), ([1.0], []), ([math.nan], [math.nan]), ([0.0], [1.0]), ([1.0] * 9, [1.0] * 9)):
        bound, line = stats.excess(np.array(scores), np.array(others))
        assert bound == 0
        assert math.isnan(line)
