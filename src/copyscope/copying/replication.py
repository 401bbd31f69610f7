"""Scores -> how much is copied: similarity statistics and the calibrated verdict."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from copyscope import stats
from copyscope.stats import Estimate

Floats = NDArray[np.floating[Any]]

FDR = 0.05
TOLERABLE = 0.05


def similarity(scores: Floats, threshold: float) -> dict[str, Estimate]:
    """DCR's statistics of the similarity scores [n]: mean, std, 75th, 90th and 95th percentile, share above
    `threshold`.

    Intervals at 95 %: bootstrap for mean and deviation, order statistics for the percentiles, Clopper-Pearson for the
    share.
    """
    scores = np.asarray(scores, dtype=np.float64)
    found = {"mean": stats.bootstrap(_mean, scores), "std": stats.bootstrap(_std, scores)}
    found |= {f"p{percent}": stats.quantile(scores, percent / 100) for percent in (75, 90, 95)}
    found["above_threshold"] = stats.proportion(int((scores > threshold).sum()), len(scores))
    return found


@dataclasses.dataclass(frozen=True)
class Calibration:
    """The scores of real images that are no copies, against which each generated image is judged.

    method: "held-out" or "baseline". scores: combined scores [n]. n_removed: look-alikes that `rule` took out before.
    """

    method: str
    scores: Floats
    n_removed: int
    rule: str

    def sentence(self, fdr: float = FDR) -> str:
        """What the p-values rest on, for the report."""
        n = len(self.scores)
        level = f"at a false discovery rate of {100 * fdr:g} %"
        if self.method == "held-out":
            removed = f"{self.n_removed} look-alikes of training images removed first"
            return f"Calibrated {level} on {n} held-out real images ({removed})."
        return (
            f"Calibrated {level} on {n} training images against those outside their own near-duplicate group, for want "
            "of held-out images (--held-out): a stand-in, less sure than images the model never saw."
        )


@dataclasses.dataclass(frozen=True)
class Verdict:
    """Which generated images are copies, how many that is, and what may be said of it.

    copied [n], p_values [n]: of each readable generated image. cut: lowest combined score called a copy, NaN if none.
    answer: "copies", "no copies found" or "cannot tell". needed: what it would take to tell.
    """

    copied: NDArray[np.bool_]
    p_values: Floats
    rate: Estimate
    cut: float
    answer: str
    sentence: str
    needed: str | None


def verdict(
    scores: Floats,
    calibration: Calibration,
    *,
    identical: NDArray[np.bool_] | None = None,
    n_missing: int = 0,
    fdr: float = FDR,
) -> Verdict:
    """Judge combined scores [n] of generated images: conformal p-values, then Benjamini-Hochberg at `fdr` over the set.

    identical [n]: images that are a training image itself; they are copies whatever there is to calibrate on.
    The replication rate is the share called copies with its Clopper-Pearson interval, in whose upper end the unreadable
    images count as copies. "cannot tell" is the answer when nothing is found and a rate of 5 % could have gone unseen:
    too few generated images to bound the rate, or too few calibration images for so rare a copy to stand out.
    """
    scores = np.asarray(scores, dtype=np.float64)
    n, m = len(scores), len(calibration.scores)
    p_values = stats.conformal_p_values(scores, calibration.scores)
    copied = stats.benjamini_hochberg(p_values, fdr) if m else np.zeros(n, dtype=bool)
    if identical is not None:
        copied = copied | identical
    count = int(copied.sum())
    rate = stats.proportion(count, n, missing=n_missing)
    cut = float(scores[copied].min()) if count else math.nan
    images = f"{n} generated image" + ("" if n == 1 else "s")
    if count:
        what = "one reproduces a training image" if count == 1 else f"{count} reproduce training images"
        return Verdict(copied, p_values, rate, cut, "copies", f"The model copies: of {images}, {what}.", None)
    needed = _needed(scores, calibration, n, n_missing, fdr)
    if needed:
        unseen = f"a rate of {100 * TOLERABLE:g} % could have gone unseen"
        sentence = f"Cannot tell: no copy found among {images}, but {unseen}."
        return Verdict(copied, p_values, rate, cut, "cannot tell", sentence, needed)
    bound = f"the rate is at most {100 * rate.high:.1f} % (95 % interval)"
    sentence = f"No copies found among {images}: {bound}."
    return Verdict(copied, p_values, rate, cut, "no copies found", sentence, None)


def _needed(scores: Floats, calibration: Calibration, n: int, n_missing: int, fdr: float) -> str | None:
    """What would be needed before "no copies found" could be said; None when it can be."""
    m = len(calibration.scores)
    wants = []
    enough = stats.cases_needed(TOLERABLE)
    if stats.proportion(0, n, missing=n_missing).high > TOLERABLE:
        readable = f" and {n_missing} of the present ones made readable" if n_missing else ""
        wants.append(f"{enough} generated images{readable} (there are {n})")
    # The images beyond all calibration scores have p = 1/(m+1), and k of n are called copies when p <= fdr * k / n.
    beyond = int((scores > calibration.scores.max(initial=-math.inf)).sum())
    k = max(beyond, math.ceil(TOLERABLE * n), 1)
    least = math.ceil(max(n, 1) / (fdr * k) * (1 - 1e-12)) - 1
    if m < least:
        kind = "held-out" if calibration.method == "held-out" else "training or, better, held-out"
        wants.append(f"{least} {kind} images to calibrate on (there are {m})")
    return "It would take " + " and ".join(wants) + "." if wants else None


def _mean(values: Floats) -> float:
    return float(values.mean())


def _std(values: Floats) -> float:
    return float(values.std())
