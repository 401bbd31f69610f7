"""Firth against scipy and scikit-learn, causes told apart, advice."""

from __future__ import annotations

import json
import math
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from copyscope import stats
from copyscope.detection.causes import firth as logistic
from copyscope.detection.causes.findings import _midranks, clustered_correlation, explain, lint_action, risk_action
from copyscope.detection.causes.firth import Effect, effect, firth, worth

# --- Firth


def penalised(x: np.ndarray, y: np.ndarray, beta: np.ndarray) -> float:
    eta = x @ beta
    p = 1 / (1 + np.exp(-eta))
    return float(y @ eta - np.logaddexp(0, eta).sum() + np.linalg.slogdet(x.T @ (x * (p * (1 - p))[:, None]))[1] / 2)


def simulate(n: int, seed: int, slopes: tuple[float, ...] = (0.8, 0.0, -0.5)) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(np.random.SeedSequence(seed))
    x = np.column_stack([np.ones(n), rng.normal(size=(n, len(slopes)))])
    chance = 1 / (1 + np.exp(0.7 - x[:, 1:] @ np.array(slopes)))
    return x, (rng.random(n) < chance).astype(float)


@pytest.mark.parametrize("n", [25, 200])
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_firth_is_the_maximum_that_scipy_finds(n: int, seed: int) -> None:
    from scipy.optimize import minimize

    x, y = simulate(n, seed)
    found = firth(x, y)
    expected = minimize(
        lambda beta: -penalised(x, y, beta),
        np.zeros(4),
        method="Nelder-Mead",
        options={"maxiter": 20_000, "maxfev": 20_000, "xatol": 1e-8, "fatol": 1e-12},
    )
    assert found.coefficients == pytest.approx(expected.x, abs=1e-4)
    assert found.log_likelihood == pytest.approx(-expected.fun, abs=1e-8)


@pytest.mark.parametrize(("a", "b", "c", "d"), [(7, 3, 2, 9), (5, 0, 4, 6), (1, 0, 0, 1)])
def test_firth_of_a_two_by_two_table_adds_half_to_each_cell(a: int, b: int, c: int, d: int) -> None:
    """A saturated model under Jeffreys' prior is the log odds ratio, 1/2 added everywhere (Firth 1993)."""
    y = np.repeat([1.0, 0, 1, 0], [a, b, c, d])
    x = np.column_stack([np.ones(len(y)), np.repeat([1.0, 1, 0, 0], [a, b, c, d])])
    found = firth(x, y)
    assert found.coefficients[1] == pytest.approx(math.log((a + 0.5) * (d + 0.5) / (b + 0.5) / (c + 0.5)), abs=1e-6)
    assert found.coefficients[0] == pytest.approx(math.log((c + 0.5) / (d + 0.5)), abs=1e-6)


def test_firth_nears_plain_logistic_regression_as_n_grows() -> None:
    from sklearn.linear_model import LogisticRegression

    x, y = simulate(60_000, 4)
    plain = LogisticRegression(C=np.inf, tol=1e-10, max_iter=1000).fit(x[:, 1:], y)
    found = firth(x, y)
    assert found.coefficients == pytest.approx([plain.intercept_[0], *plain.coef_[0]], abs=1e-4)


def test_firth_is_finite_under_separation() -> None:
    x, _ = simulate(60, 5)
    y = (x[:, 1] > 0.2).astype(float)
    fit = firth(x, y)
    assert np.isfinite(fit.coefficients).all()
    found = effect(x, y, 1, fit)
    assert found.odds_ratio.low > 1
    assert found.p_value < 1e-6


def test_firth_finds_the_top_from_far_off() -> None:
    x, y = simulate(80, 7)
    near = firth(x, y)
    for start in ([6.0, -6, 6, -6], [-9.0, 9, 9, 9]):
        far = firth(x, y, start=np.array(start))
        assert far.coefficients == pytest.approx(near.coefficients, abs=1e-6)


def test_the_exact_curvature_is_that_of_finite_differences() -> None:
    x, y = simulate(30, 8)
    beta, h = np.array([0.3, -0.6, 0.2, 1.1]), 1e-4

    def slope(at: np.ndarray) -> np.ndarray:
        return np.array([penalised(x, y, at + h * e) - penalised(x, y, at - h * e) for e in np.eye(4)]) / (2 * h)

    expected = -np.array([slope(beta + h * e) - slope(beta - h * e) for e in np.eye(4)]) / (2 * h)
    _, information, p = logistic._penalised(x, y, np.ones(30), beta)
    leverage = np.einsum("nk,kn->n", x, np.linalg.solve(information, x.T))
    np.testing.assert_allclose(logistic._curvature(x, np.ones(30), p, information, leverage), expected, atol=1e-4)


def test_profile_fits_start_next_to_their_top(monkeypatch: pytest.MonkeyPatch) -> None:
    x, y = simulate(400, 3)
    fit, evaluations, plain = firth(x, y), [], logistic._penalised
    monkeypatch.setattr(logistic, "_penalised", lambda *given: evaluations.append(1) or plain(*given))
    effect(x, y, 1, fit)
    assert len(evaluations) < 80


@pytest.mark.parametrize("n", [30, 300])
def test_the_profile_interval_is_that_of_scipy(n: int) -> None:
    """The other coefficients maximised by scipy at each end: the likelihood is there 1.92 below its top."""
    from scipy.optimize import minimize
    from scipy.stats import chi2

    x, y = simulate(n, 6)
    fit = firth(x, y)
    top = penalised(x, y, fit.coefficients)

    def profile(value: float) -> float:
        found = minimize(
            lambda rest: -penalised(x, y, np.insert(rest, 1, value)),
            np.delete(fit.coefficients, 1),
            method="Nelder-Mead",
            options={"maxiter": 20_000, "maxfev": 20_000, "xatol": 1e-8, "fatol": 1e-12},
        )
        return 2 * (top + float(found.fun))

    found = effect(x, y, 1, fit)
    for end in (found.odds_ratio.low, found.odds_ratio.high):
        assert profile(math.log(end)) == pytest.approx(chi2.ppf(0.95, 1), abs=1e-4)
    assert found.p_value == pytest.approx(chi2.sf(profile(0.0), 1), abs=1e-4)
    assert found.odds_ratio.value == pytest.approx(math.exp(fit.coefficients[1]))


def test_counts_of_trials_are_fitted_as_their_trials_one_by_one() -> None:
    x, _ = simulate(40, 9)
    rng = np.random.default_rng(np.random.SeedSequence(9))
    trials = rng.integers(1, 8, size=40)
    successes = rng.binomial(trials, 0.3)
    outcome = np.concatenate([np.arange(m) < t for m, t in zip(trials, successes, strict=True)]).astype(float)
    each = np.repeat(x, trials, axis=0)
    one, many = firth(each, outcome), firth(x, successes / trials, trials=trials)
    assert many.coefficients == pytest.approx(one.coefficients, abs=1e-6)
    assert many.covariance == pytest.approx(one.covariance, abs=1e-6)
    assert (many.log_likelihood, penalised(each, outcome, many.coefficients)) == pytest.approx([one.log_likelihood] * 2)
    expected, found = effect(each, outcome, 1, one), effect(x, successes / trials, 1, many, trials=trials)
    for name in ("value", "low", "high"):
        assert getattr(found.odds_ratio, name) == pytest.approx(getattr(expected.odds_ratio, name), rel=1e-4)
    assert found.p_value == pytest.approx(expected.p_value, abs=1e-6)


def test_the_correlation_of_trials_is_that_of_all_pairs() -> None:
    """Beta-binomial rows of two trials, where the moment estimate is Pearson's correlation of the pair."""
    rng = np.random.default_rng(np.random.SeedSequence(11))
    pair = rng.random((20_000, 2)) < rng.beta(0.6, 1.4, size=20_000)[:, None]
    both = np.concatenate([pair, pair[:, ::-1]]).astype(float)
    found, rho = worth(pair.sum(axis=1), np.full(20_000, 2))
    assert rho == pytest.approx(np.corrcoef(both.T)[0, 1], abs=1e-3)
    assert rho == pytest.approx(1 / 3, abs=0.02)
    assert found == pytest.approx(np.full(20_000, 2 / (1 + rho)), rel=1e-3)


def test_trials_that_all_go_together_are_worth_one() -> None:
    trials = np.array([1, 30, 7, 1, 12, 2])
    found, rho = worth(np.where([1, 0, 1, 0, 1, 0], trials, 0), trials)
    assert rho > 0.9
    assert found == pytest.approx(np.ones(6), abs=0.1)
    # No row with two trials has a success: nothing shows that its trials are independent.
    assert worth(np.array([1, 0, 0, 0]), np.array([1, 1, 30, 4]))[1] == 1
    assert worth(np.array([1, 0, 0]), np.ones(3))[0].tolist() == [1, 1, 1]


def test_profile_intervals_cover_and_p_values_are_uniform() -> None:
    covered, rejected = [], []
    for seed in range(120):
        x, y = simulate(60, 1000 + seed, (0.8, 0.0))
        fit = firth(x, y)
        driver, idle = effect(x, y, 1, fit), effect(x, y, 2, fit)
        covered.append(driver.odds_ratio.low <= math.exp(0.8) <= driver.odds_ratio.high)
        rejected.append(idle.p_value < 0.05)
    assert 0.9 <= np.mean(covered) <= 0.99
    assert 0.01 <= np.mean(rejected) <= 0.1


# --- explain


def corpus(n: int = 1500, seed: int = 0, **replaced: np.ndarray) -> pa.Table:
    """Images of which the duplicated are copied; duplicated ones are simpler, but simplicity itself does nothing."""
    rng = np.random.default_rng(np.random.SeedSequence(seed))
    log_group_size = np.log(rng.choice([1, 1, 1, 2, 4, 8], size=n))
    entropy = 5 - 0.4 * log_group_size + 0.4 * rng.normal(size=n)
    chance = 1 / (1 + np.exp(3 - 1.8 * log_group_size))
    columns = {
        "copied": rng.random(n) < chance,
        "log_group_size": log_group_size,
        "full_duplication": ((log_group_size > 0) & (rng.random(n) < 0.5)).astype(float),
        "caption_uniqueness": 1 / rng.integers(1, 6, size=n),
        "caption_length": rng.integers(2, 12, size=n).astype(float),
        "entropy": entropy,
        "jpeg_size": rng.gamma(4, 5, size=n),
        "total_variation": rng.gamma(4, 50, size=n),
    }
    columns |= replaced
    # Each was the prompt once.
    return pa.table(columns | {"n_images": np.ones(n, np.int64), "n_copies": np.asarray(columns["copied"]).astype(int)})


def generations(n: int = 300, matches: int = 300, seed: int = 0) -> pa.Table:
    rng = np.random.default_rng(np.random.SeedSequence(seed))
    match = rng.permutation(np.arange(n) % matches)
    per_match = rng.normal(size=(2, matches))
    score = 0.4 + 0.1 * per_match[0][match] + 0.02 * rng.normal(size=n)
    return pa.table(
        {
            "score": score,
            "copied": score > 0.5,
            "match": [f"{index}.png" for index in match],
            "entropy": (4 - 0.5 * per_match[0] + 0.5 * per_match[1])[match],
            "group_size": np.ones(n, dtype=np.int64),
        }
    )


def test_confounded_causes_are_told_apart() -> None:
    images = corpus()
    alone = stats.correlation(np.array(images["entropy"]), np.array(images["copied"]).astype(float))
    assert alone.estimate.high < -0.1  # on its own, simplicity looks like a cause
    joint = explain(images, generations()).joint
    assert joint is not None
    effects = {name: found for name, _, found in joint.effects}
    assert effects["log_group_size"].odds_ratio.low > 2
    assert effects["log_group_size"].p_value < 1e-6
    for name in ("entropy", "jpeg_size", "caption_uniqueness", "full_duplication"):
        assert effects[name].odds_ratio.low < 1 < effects[name].odds_ratio.high
        assert effects[name].p_value > 0.05


def prompted(seed: int, slope: float = 0.0, spread: float = 0.0, known: bool = True) -> pa.Table:
    """Groups of 1 to 60 images, each caption of which was a prompt once; `slope` of the log odds of one generated image
    copying the group per unit of log_group_size, `spread` of those log odds from group to group."""
    rng = np.random.default_rng(np.random.SeedSequence([seed, 5]))
    size = np.concatenate([np.ones(300, np.int64), rng.integers(2, 61, 60)])
    log_odds = math.log(0.05 / 0.95) + slope * np.log(size) + spread * rng.normal(size=360)
    copies = rng.binomial(size, 1 / (1 + np.exp(-log_odds)))
    columns = {"copied": copies > 0, "log_group_size": np.log(size), "entropy": rng.normal(size=360)}
    return pa.table(columns | ({"n_images": size, "n_copies": copies} if known else {}))


def duplication(table: pa.Table) -> Effect:
    joint = explain(table, generations()).joint
    assert joint is not None
    return {name: found for name, _, found in joint.effects}["log_group_size"]


def test_exposure_alone_is_no_effect_of_duplication() -> None:
    """What is duplicated is the prompt more often; each time it is copied no more than others. A model of "copied at
    all" takes the chances for the cause."""
    naive, rejected, varied = [], [], []
    for seed in range(40):
        table = prompted(seed)
        x = np.column_stack([np.ones(360), np.array(table["log_group_size"])])
        copied = np.array(table["copied"])
        naive.append(effect(x, copied, 1, firth(x, copied)).p_value < 0.05)
        rejected.append(duplication(table).p_value < 0.05)
        varied.append(duplication(prompted(seed, spread=1.5)).p_value < 0.05)
    assert np.mean(naive) == 1
    assert np.mean(rejected) <= 0.07
    assert np.mean(varied) <= 0.12


def test_an_effect_of_duplication_on_each_prompt_is_found() -> None:
    found = [duplication(prompted(seed, slope=0.3)) for seed in range(20)]
    truth = math.exp(0.3 * np.std(np.array(prompted(0)["log_group_size"])))
    assert np.mean([one.p_value < 0.05 for one in found]) >= 0.9
    assert np.median([one.odds_ratio.value for one in found]) == pytest.approx(truth, rel=0.1)


def test_without_the_exposure_nothing_is_said_of_duplication() -> None:
    found = explain(prompted(0, known=False), generations())
    assert found.joint is not None
    assert [name for name, _, _ in found.joint.effects] == ["entropy"]
    assert (found.joint.n_images, found.joint.n_copies, found.joint.correlation) == (None, None, None)
    assert "duplication and exposure cannot be told apart" in " ".join(found.notes)
    assert "by any generated image" in found.joint.outcome
    known = explain(prompted(0), generations())
    assert known.joint is not None
    table = prompted(0)
    assert known.joint.n_images == sum(table["n_images"].to_pylist())
    assert known.joint.n_copies == sum(table["n_copies"].to_pylist())
    assert "its prompt" in known.joint.outcome
    assert not any("exposure" in note for note in known.notes)
    # Duplication alone is no model then.
    alone = explain(prompted(0, known=False).select(["copied", "log_group_size"]), generations())
    assert alone.joint is None
    assert any("cannot be told apart" in note for note in alone.notes)


def test_sampling_by_outcome_leaves_the_odds_ratios() -> None:
    whole = corpus(20_000, seed=1)
    copied = np.array(whole["copied"])
    rng = np.random.default_rng(np.random.SeedSequence(1))
    sample = np.sort(np.concatenate([np.flatnonzero(copied), rng.permutation(np.flatnonzero(~copied))[: copied.sum()]]))
    x = np.column_stack([np.ones(len(copied)), np.array(whole["log_group_size"]), np.array(whole["entropy"])])
    full, part = firth(x, copied), firth(x[sample], copied[sample])
    assert full.coefficients[1] == pytest.approx(1.8, abs=0.1)
    assert part.coefficients[1] == pytest.approx(1.8, abs=0.15)


def test_the_effects_are_per_standard_deviation() -> None:
    images = corpus(seed=2)
    joint = explain(images, generations()).joint
    assert joint is not None
    scaled = images.set_column(5, "entropy", pa.array(1000 * np.array(images["entropy"]) - 7))
    again = explain(scaled, generations()).joint
    assert again is not None
    for (name, unit, one), (_, other_unit, two) in zip(joint.effects, again.effects, strict=True):
        assert one.odds_ratio.value == pytest.approx(two.odds_ratio.value, rel=1e-6)
        assert one.odds_ratio.low == pytest.approx(two.odds_ratio.low, rel=1e-4)
        assert (unit == other_unit) is (name != "entropy")
    assert {name: unit for name, unit, _ in joint.effects}["entropy"] == (
        f"1 SD = {np.std(np.array(images['entropy'])):.3g} nats"
    )


def test_constant_collinear_and_missing_covariates_are_left_out_and_named() -> None:
    base = corpus(seed=3)
    n = base.num_rows
    entropy = np.array(base["entropy"]).copy()
    entropy[:40] = math.nan
    images = corpus(
        seed=3,
        entropy=entropy,
        caption_length=np.full(n, 5.0),
        total_variation=3 * np.array(base["jpeg_size"]) + 1,
        caption_uniqueness=np.where(np.arange(n) < 0.7 * n, math.nan, 1.0),
    )
    joint = explain(images, generations()).joint
    assert joint is not None
    assert [name for name, _, _ in joint.effects] == ["log_group_size", "full_duplication", "entropy", "jpeg_size"]
    assert joint.n == n - 40
    assert "caption_length left out: the same" in joint.note
    assert "total_variation left out: the other covariates determine it" in joint.note
    assert "caption_uniqueness left out: not measured" in joint.note
    assert f"40 of {n} training images left out" in joint.note


def test_entangled_covariates_are_kept_and_named() -> None:
    base = corpus(seed=4)
    jpeg_size = np.array(base["jpeg_size"])
    rng = np.random.default_rng(np.random.SeedSequence(4))
    joint = explain(corpus(seed=4, total_variation=jpeg_size + rng.normal(size=len(jpeg_size))), generations()).joint
    assert joint is not None
    assert "jpeg_size, total_variation go together" in joint.note


@pytest.mark.parametrize("copied", [9, 1491])
def test_too_few_cases_give_no_joint_model(copied: int) -> None:
    found = explain(corpus(copied=np.arange(1500) < copied), generations())
    assert found.joint is None
    assert any(f"there are {copied} and {1500 - copied}" in note for note in found.notes)
    enough = explain(corpus(copied=np.arange(1500) < (10 if copied == 9 else 1490)), generations())
    assert enough.joint is not None
    assert "expect wide intervals" in enough.joint.note


def test_no_cause_measured_gives_no_joint_model() -> None:
    found = explain(corpus().select(["copied"]), generations())
    assert found.joint is None
    assert any("no cause was measured" in note for note in found.notes)


def test_a_covariate_that_separates_is_an_effect_with_an_interval() -> None:
    base = corpus(300, seed=5)
    joint = explain(corpus(300, seed=5, copied=np.array(base["log_group_size"]) > 0), generations()).joint
    assert joint is not None
    name, _, found = joint.effects[0]
    assert name == "log_group_size"
    assert math.isfinite(found.odds_ratio.value)
    assert found.odds_ratio.low > 10


def test_correlations_without_repeats_are_those_of_stats() -> None:
    table = generations()
    found = explain(corpus(), table)
    assert [one.measure for one in found.correlations] == ["entropy", "group_size"]
    assert found.notes == ()
    expected = stats.correlation(np.array(table["entropy"]), np.array(table["score"]))
    assert found.correlations[0].pearson == expected
    assert found.correlations[0].unit == "nats"
    assert math.isnan(found.correlations[1].spearman.estimate.value)


def test_correlations_over_repeated_matches_use_the_clusters() -> None:
    table = generations(600, 20)
    found = explain(corpus(), table)
    naive = stats.correlation(np.array(table["entropy"]), np.array(table["score"])).estimate
    pearson = found.correlations[0].pearson.estimate
    assert pearson.value == pytest.approx(naive.value)
    assert pearson.high - pearson.low > 2 * (naive.high - naive.low)
    assert "The 600 generated images match 20 training images" in found.notes[0]
    assert found == explain(corpus(), table)


@pytest.mark.parametrize("method", ["pearson", "spearman"])
def test_the_cluster_bootstrap_is_that_of_stats(method: str) -> None:
    """The same interval as resampling rows one draw at a time and asking scipy, up to the draw."""
    from scipy.stats import pearsonr, spearmanr

    rng = np.random.default_rng(np.random.SeedSequence(9))
    clusters = rng.integers(0, 40, size=200)
    x = np.round(rng.normal(size=40)[clusters] + 0.3 * rng.normal(size=200), 1)
    y = 0.4 * x + rng.normal(size=40)[clusters]
    found = clustered_correlation(x, y, clusters, method).estimate
    function = pearsonr if method == "pearson" else spearmanr
    expected = stats.bootstrap(lambda a, b: float(function(a, b)[0]), x, y, clusters=clusters, seed=1)
    assert found.value == pytest.approx(expected.value)
    assert (found.low, found.high) == pytest.approx((expected.low, expected.high), abs=0.05)


@settings(max_examples=50, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 4), st.integers(0, 3)), min_size=1, max_size=12))
def test_ranks_under_weights_are_those_of_the_repeated_rows(rows: list[tuple[int, int]]) -> None:
    from scipy.stats import rankdata

    values, weights = np.array(rows, dtype=float).T
    ranks = _midranks(values, weights[None])[0]
    times = weights.astype(int)
    np.testing.assert_allclose(np.repeat(ranks, times), rankdata(np.repeat(values, times)))


def test_clustered_p_values_do_not_cry_wolf() -> None:
    """Ten generations a match and no relation: the p-value of independent rows would call most of them significant."""
    rng = np.random.default_rng(np.random.SeedSequence(10))
    clustered, naive = [], []
    clusters = np.repeat(np.arange(30), 10)
    for _ in range(100):
        x, y = np.repeat(rng.normal(size=(2, 30)), 10, axis=1)
        clustered.append(clustered_correlation(x, y, clusters).p_value < 0.05)
        naive.append(stats.correlation(x, y).p_value < 0.05)
    assert np.mean(clustered) < 0.15
    assert np.mean(naive) > 0.3


def test_two_matches_tell_nothing() -> None:
    found = clustered_correlation(np.arange(10.0), np.arange(10.0) % 4, np.arange(10) % 2)
    assert math.isfinite(found.estimate.value)
    assert math.isnan(found.estimate.low)
    assert math.isnan(found.p_value)


def test_findings_are_the_contract() -> None:
    plain = explain(corpus(), generations(600, 20)).as_dict()
    json.dumps(plain, allow_nan=False)
    assert list(plain) == ["correlations", "joint", "notes"]
    assert set(plain["correlations"][0]) == {
        "measure",
        "unit",
        "target",
        "pearson",
        "pearson_p",
        "spearman",
        "spearman_p",
    }
    keys = {"outcome", "n", "n_copied", "n_images", "n_copies", "correlation", "model", "effects", "note"}
    assert set(plain["joint"]) == keys
    assert set(plain["joint"]["effects"][0]) == {"name", "unit", "odds_ratio", "p_value"}
    assert set(plain["joint"]["effects"][0]["odds_ratio"]) == {"value", "low", "high", "n"}
    assert plain["correlations"][1]["pearson"]["value"] is None


def test_empty_and_null_tables_are_findings_too() -> None:
    empty = explain(corpus().slice(0, 0), generations().slice(0, 0))
    assert empty.joint is None
    assert all(math.isnan(found.pearson.estimate.value) for found in empty.correlations)
    rows = 20
    nulls = pa.table(
        {
            "score": pa.array([0.1 * row for row in range(rows)]),
            "match": pa.array([None] * rows, pa.string()),
            "entropy": pa.nulls(rows, pa.float64()),
            "caption_length": pa.array([None, *(float(row % 5) for row in range(1, rows))]),
        }
    )
    found = explain(corpus().slice(0, 0), nulls).correlations
    assert math.isnan(found[0].pearson.estimate.value)
    assert found[1].pearson.estimate.n == rows - 1
    assert math.isfinite(found[1].pearson.estimate.low)  # unknown matches are not one and the same match


# --- advice


@pytest.mark.parametrize(
    ("arguments", "action", "said"),
    [
        ((0, 5, "full", 9, 0), "keep", "No generated image"),
        (
            (3, 5, "full", 9, 0),
            "deduplicate",
            "Copied 3 times, and one of 5 near-duplicates among which captions repeat",
        ),
        ((1, 2, "partial", 0, 0), "deduplicate", "Copied once, and one of 2 near-duplicates under different captions"),
        ((4, 2, "uncaptioned", 0, 0, 0), "deduplicate", "one of 2 near-duplicates: keep one"),
        ((2, 1, None, 0, 0), "recaption", "no other image has its caption or one like it"),
        ((2, 1, None, 1, 1, 4), "recaption", "only 2 other images have one of its 4 captions or one like it"),
        ((2, 1, None, 1, 0), "recaption", "only 1 other image has its caption"),
        (
            (3, 1, None, 40, 2),
            "drop",
            "Copied 3 times although it has no near-duplicates and its caption is common (42",
        ),
        ((2, 1, None, 40, 2), "review", "Copied 2 times although"),
        ((1, 1, None, 0, 0, 0), "review", "it has no caption: compare the pictures"),
        ((3, 1, None, 40, 2, 1, False), "review", "Suspiciously near to 3 generated images although"),
        ((1, 5, "full", 9, 0, 1, False), "deduplicate", "Suspiciously near to 1 generated image, and one of 5"),
        ((3, 1, None, 0, 0, 0), "drop", "it has no caption"),
    ],
)
def test_risk_action(arguments: tuple[Any, ...], action: str, said: str) -> None:
    found, reason = risk_action(*arguments)
    assert found == action
    assert said in reason
    assert reason.endswith(".")


@pytest.mark.parametrize(
    ("arguments", "action", "said"),
    [
        ((3, "full", 2, 0), "deduplicate", "one of 3 near-duplicates among which captions repeat"),
        ((1, None, 0, 0, 1, 0.5), "recaption", "complexity 0.5; from 4 on"),
        ((1, None, 0, 0, 1, 12.0), "keep", "no near-duplicates"),
        ((1, None, 0, 0, 1, 3.999), "recaption", "complexity 4.0; from 4 on"),
        ((1, None, 0, 0, 1, 4.0), "keep", "no near-duplicates"),
        ((1, None, 0, 0), "keep", "no near-duplicates"),
        ((1, None, 50, 0, 1, 0.5), "keep", "no near-duplicates"),
    ],
)
def test_lint_action(arguments: tuple[Any, ...], action: str, said: str) -> None:
    found, reason = lint_action(*arguments)
    assert found == action
    assert said in reason
