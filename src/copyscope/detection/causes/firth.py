"""Firth's penalised logistic regression: odds ratios that stay finite with few or separated cases."""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from copyscope.stats import Estimate, Floats

_STEP = 5.0  # largest change of a coefficient in one Newton step, as in R's logistf
_ITERATIONS = 200
_ROUNDS = 20  # of share and correlation
_CHEAP = 6  # steps before the exact curvature, which costs k times as much: mostly they are enough


@dataclasses.dataclass(frozen=True, eq=False)
class Fit:
    """Fit of a penalised logistic regression.

    Attributes:
        coefficients: [k], where the penalised log-likelihood is largest.
        log_likelihood: its value there.
        covariance: [k k].
    """

    coefficients: Floats
    log_likelihood: float
    covariance: Floats


@dataclasses.dataclass(frozen=True)
class Effect:
    """Odds ratio of one more unit of a covariate, and the two-sided p-value of no effect."""

    odds_ratio: Estimate
    p_value: float


def firth(
    x: Floats,  # covariates [n k], with a column of ones if there is to be an intercept
    y: NDArray[Any],  # outcome [n], 0 or 1; with trials the share of them that succeed
    fixed: dict[int, float] | None = None,  # coefficients held at a value, by column
    start: Floats | None = None,  # coefficients to start from; None = zeros
    trials: Floats | None = None,  # trials of each row [n], above 0, not only whole numbers; None = 1 each
) -> Fit:
    """Fit a logistic regression by Firth's penalised likelihood: maximise l(b) + log det I(b) / 2 (Firth 1993).

    I(b) = X' W X with W = diag(m p (1 - p)) for m trials. Newton steps on the modified score X' (m (y - p) + h (1/2 -
    p)), where h is the diagonal of the hat matrix (Heinze & Schemper 2002), halved until the penalised likelihood
    rises. The first few steps take the information for the curvature, the others the exact one where it is that of a
    top: under separation the information alone crawls. With `fixed` coefficients the determinant is still that of all.

    Args:
        x: covariates [n k], with a column of ones for the intercept.
        y: share of successes of each row [n], 0..1.
        fixed: column -> coefficient that is held; None = none.
        start: coefficients [k] to begin with; None = zeros.
        trials: of each row [n]; None = one each.

    Raises:
        numpy.linalg.LinAlgError: columns of x are collinear.
    """
    x, y = np.asarray(x, dtype=np.float64), np.asarray(y, dtype=np.float64)
    m = np.ones(len(y)) if trials is None else np.asarray(trials, dtype=np.float64)
    held = dict(fixed or {})
    beta = np.zeros(x.shape[1]) if start is None else np.array(start, dtype=np.float64)
    beta[list(held)] = list(held.values())
    free = np.array([column for column in range(x.shape[1]) if column not in held], dtype=np.intp)
    value, information, p = _penalised(x, y, m, beta)
    for iteration in range(_ITERATIONS):
        if len(free) == 0:
            break
        leverage = np.einsum("nk,kn->n", x, np.linalg.solve(information, x.T))  # hat diagonal / weight
        score = (x.T @ (m * (y - p + p * (1 - p) * leverage * (0.5 - p))))[free]
        curvature = information if iteration < _CHEAP else _curvature(x, m, p, information, leverage)
        step = _newton(score, curvature[np.ix_(free, free)])
        if step is None:
            step = np.linalg.solve(information[np.ix_(free, free)], score)
        if score @ step < 1e-14:  # squared length of the step in standard errors
            break
        step *= min(1.0, _STEP / float(np.abs(step).max()))
        for _ in range(25):
            trial = beta.copy()
            trial[free] += step
            found = _penalised(x, y, m, trial)
            if found[0] >= value:
                break
            step = step / 2
        else:
            break  # no rise that floating point can tell: this is the top
        beta, (value, information, p) = trial, found
    return Fit(beta, value, np.linalg.inv(information))


def effect(
    x: Floats, y: NDArray[Any], column: int, fit: Fit, level: float = 0.95, trials: Floats | None = None
) -> Effect:
    """Odds ratio exp(b) of one column with its profile penalised-likelihood interval and likelihood-ratio p-value.

    The interval is where 2 (l* - l*(b)) stays below the chi-square quantile with one degree of freedom, l*(b) being the
    largest penalised log-likelihood with this coefficient held at b (Heinze & Schemper 2002). An end that is not found
    within 60 standard errors is 0 or infinity.

    Args:
        x: covariates [n k].
        y: share of successes of each row [n].
        column: the covariate.
        fit: of all coefficients, by `firth`.
        level: of the interval, in (0, 1).
        trials: of each row [n]; None = one each.
    """
    from scipy.stats import chi2

    at = float(fit.coefficients[column])
    drop = 0.5 * float(chi2.ppf(level, 1))
    known, several = {at: fit}, False

    @functools.cache
    def above(value: float) -> float:
        """How far the profile at `value` lies above the line that bounds the interval."""
        nonlocal several
        # From next door along the profile's tangent mostly one or two steps are left. Under separation the likelihood
        # has several tops: beyond what is known the way from the estimate is tried as well, and between where it led
        # elsewhere.
        near = min(known, key=lambda other: abs(other - value))
        inside = min(known) < value < max(known)
        found = []
        for start in {near} if inside and not several else {near, at}:
            slope = known[start].covariance[:, column] / known[start].covariance[column, column]
            found.append(firth(x, y, {column: value}, known[start].coefficients + (value - start) * slope, trials))
        best = known[value] = max(found, key=lambda each: each.log_likelihood)
        several |= any(best.log_likelihood - each.log_likelihood > 1e-9 for each in found)
        return best.log_likelihood - fit.log_likelihood + drop

    reach = math.sqrt(float(fit.covariance[column, column]))
    low, high = _crossing(above, at, -reach), _crossing(above, at, reach)
    ratio = max(0.0, 2 * (drop - above(0.0)))
    return Effect(Estimate(_exp(at), _exp(low), _exp(high), len(y)), float(chi2.sf(ratio, 1)))


def worth(successes: NDArray[Any], trials: NDArray[Any]) -> tuple[Floats, float]:
    """Effective number of trials of each row, where trials of one row are correlated.

    m trials are worth m / (1 + (m - 1) rho): the quasi-likelihood of Williams (1982), which is GEE with exchangeable
    correlation where the covariates are of the row (Liang & Zeger 1986). rho is the moment estimate over pairs of
    trials of one row about the share of all, each row weighing as its trials. What covariates would explain counts as
    correlation, and so does one more row that had all its trials succeed, beside the k of two or more trials that had
    any: few rows are no proof of independence.

    Args:
        successes: whole numbers [n].
        trials: whole numbers above 0 [n].

    Returns:
        (effective trials [n], correlation rho).
    """
    m = np.asarray(trials, dtype=np.float64)
    y = np.asarray(successes, dtype=np.float64) / m
    many = m > 1
    k, rho = int((y[many] > 0).sum()), 0.0
    found: Floats = m
    for _ in range(_ROUNDS):
        found = m / (1 + (m - 1) * rho)
        p = float(found @ y / found.sum())
        # Sum over the ordered pairs i, j of a row of (y_i - p) (y_j - p).
        pairs = (m * (y - p)) ** 2 - m * (y * (1 - p) ** 2 + (1 - y) * p**2)
        chance = float(m[many].sum() * p * (1 - p))
        plain = float(np.clip((pairs[many] / (m[many] - 1)).sum() / chance, 0, 1)) if chance > 0 else 0.0
        last, rho = rho, (k * plain + 1) / (k + 1)
        if abs(rho - last) < 1e-4:
            break
    return found, rho


def _penalised(x: Floats, y: Floats, m: Floats, beta: Floats) -> tuple[float, Floats, Floats]:
    """Penalised log-likelihood at beta [k], the information matrix [k k], and the probabilities [n]."""
    eta = x @ beta
    p = 0.5 * (1 + np.tanh(eta / 2))
    information = (x * (m * p * (1 - p))[:, None]).T @ x
    sign, log_det = np.linalg.slogdet(information)
    value = float(m @ (y * eta - np.logaddexp(0, eta)) + 0.5 * log_det) if sign > 0 else -math.inf
    return value, information, p


def _curvature(x: Floats, m: Floats, p: Floats, information: Floats, leverage: Floats) -> Floats:
    """Minus the second derivatives [k k] of the penalised likelihood: I - (tr I^-1 I_ab - tr I^-1 I_a I^-1 I_b) / 2."""
    weight = p * (1 - p)
    second = (x * (m * weight * (1 - 6 * weight) * leverage)[:, None]).T @ x
    slope = m * weight * (1 - 2 * p)
    ratios = [np.linalg.solve(information, (x * (slope * column)[:, None]).T @ x) for column in x.T]
    first = np.einsum("aij,bji->ab", ratios, ratios)
    curvature: Floats = information - (second - first) / 2
    return curvature


def _newton(score: Floats, curvature: Floats) -> Floats | None:
    """The Newton step, or None where the curvature is not that of a top."""
    try:
        np.linalg.cholesky(curvature)
    except np.linalg.LinAlgError:
        return None
    step: Floats = np.linalg.solve(curvature, score)
    return step


def _crossing(above: Callable[[float], float], at: float, reach: float) -> float:
    """Where `above` turns negative on the way from `at`, in the direction and by steps of `reach`."""
    from scipy.optimize import brentq

    inside = at
    for steps in (1, 2, 3, 4, 6, 8, 12, 20, 35, 60):
        outside = at + steps * reach
        if above(outside) < 0:
            return float(brentq(above, inside, outside, xtol=1e-7 * abs(reach), rtol=1e-10))
        inside = outside
    return math.copysign(math.inf, reach)


def _exp(value: float) -> float:
    return math.exp(min(value, 700.0)) if value < math.inf else math.inf
