"""Verdict: p-values, false discovery rate, replication rate, estimated rate.

The answer rests on four measurements: calibration images that are no copies, planted copies (how many of them would
have been seen), the number of generated images, and whether calibration and generated images are of one kind.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from copyscope import stats
from copyscope.stats import Estimate

from .answer import CANNOT_TELL, COPIES, MUST_SEE, TOLERABLE, Measured

Floats = NDArray[np.floating[Any]]

FDR = 0.05
ROUNDING = 0.003
"""Scores differ by so much from rounding and recompression alone: no score is closer to 1 than this."""
MOST_ALARMS = 0.1
"""The corrected rate is read off where at most this share of unseen images would be counted. Further out it is the kind
of the images that is compared, and held-out images are seldom of the very kind of the generated ones."""
TELLING = 0.8
"""A score tells light copies where so many pairs of a copy and a calibration image have the copy score higher."""


def similarity(scores: Floats, threshold: float) -> dict[str, Estimate]:
    """Similarity statistics of DCR: mean, std, 75th, 90th and 95th percentile, share above `threshold`.

    Intervals at 95 %: bootstrap for mean and deviation, order statistics for the percentiles, Clopper-Pearson for the
    share.

    Args:
        scores: [n].
        threshold: of the share.
    """
    scores = np.asarray(scores, dtype=np.float64)
    found = {"mean": stats.bootstrap(_mean, scores), "std": stats.bootstrap(_std, scores)}
    found |= {f"p{percent}": stats.quantile(scores, percent / 100) for percent in (75, 90, 95)}
    found["above_threshold"] = stats.proportion(int((scores > threshold).sum()), len(scores))
    return found


def dataset_similarity(statistics: Mapping[str, Mapping[str, Estimate]], answer: str) -> dict[str, Any]:
    """The paper's own reading beside ours: the 95th percentile of similarity against its background.

    Somepalli et al. 2023 (section 4) take the 95th percentile of the generated images' similarity to the training set,
    and compare it with that of training images to one another. Here "above" means that the intervals are apart.

    Args:
        statistics: of "generated", "baseline" and perhaps "held-out" or "control", as `similarity` gives them.
        answer: the verdict's.
    """
    p95 = {name: each["p95"] for name, each in statistics.items()}
    others = [each for name, each in p95.items() if name != "generated"]
    # Below 72 images a percentile has no upper end, and then nothing is above it.
    known = all(math.isfinite(each.high) for each in others)
    above = known and bool(others) and p95["generated"].low > max(each.high for each in others)
    agrees = not known or above == (answer == COPIES)
    said = "is above its background" if above else "is not above its background"
    if not known:
        said = "cannot be compared with its background, of which there are too few images"
    values = ", ".join(f"{name} {each.value:.3f}" for name, each in p95.items())
    sentence = f"The 95th percentile of similarity {said} ({values})."
    if not agrees:
        sentence += (
            " The verdict differs: it judges each image, by pixels too; a percentile moves with the kind of images and "
            "not with a few copies."
            if answer == COPIES
            else " The verdict differs: images may be near to the training set without one of them being a copy that "
            "can be told from look-alikes."
        )
    return {
        "p95": {name: each.as_dict() for name, each in p95.items()},
        "above": above,
        "agrees": agrees,
        "sentence": sentence,
    }


@dataclasses.dataclass(frozen=True)
class Calibration:
    """Scores of real images that are no copies, against which each generated image is judged.

    Attributes:
        method: "held-out", "controls" (images of the base model) or "baseline" (the training images themselves).
        scores: float [m d], the columns of `Matches.evidence`; or [m], one score an image.
        n_removed: look-alikes of training images that `rule` took out before.
        rule: what the look-alikes were recognised by.
        n_excluded: images that a person took out (`--held-out-exclude`).
        n_blank: images of one colour, which were left out.
    """

    method: str
    scores: Floats
    n_removed: int
    rule: str
    n_excluded: int = 0
    n_blank: int = 0

    def sentence(self, fdr: float = FDR) -> str:
        """Sentence on what the p-values rest on, for the report.

        Args:
            fdr: false discovery rate of the list of copies.
        """
        n = len(self.scores)
        level = f"at a false discovery rate of {100 * fdr:g} %"
        excluded = f", {self.n_excluded} excluded by hand" if self.n_excluded else ""
        if self.method == "held-out":
            removed = f"{self.n_removed} look-alikes of training images removed first{excluded}"
            return f"Calibrated {level} on {n} held-out real images ({removed})."
        if self.method == "controls":
            return f"Calibrated {level} on {n} control images that the base model made{excluded}."
        return (
            f"Not calibrated: {n} training images, each against the others, stand in for held-out images. Flagged "
            f"images are suspicious, not proven copies; more than {100 * fdr:g} % of them may be false alarms. Give "
            "--held-out or --control."
        )


@dataclasses.dataclass(frozen=True)
class Verdict:
    """Which generated images are copies, how many there are, and what may be said of it.

    Attributes:
        copied: bool [n], of each readable generated image.
        p_values: float64 [n]; NaN for blank images.
        likeness: bool [n], nearer to the training set than the controls but no nearer than training images are to one
            another; all False without controls.
        rate: share of images called copies (Clopper-Pearson), blank ones left out.
        estimated_rate: share of copies, corrected for those that are not seen and for false alarms; value NaN where the
            sensitivity was not measured.
        sensitivity: of each kind of planted copy, the share that is called a copy at `line`.
        line: p-values at or below it are called copies, or would be if one generated image in twenty were a copy.
        excess: at least this share of the generated images is nearer to the training set than calibration images are.
        answer: "copies", "suspicious", "no copies found" or "cannot tell".
        sentence: the answer for people.
        reasons: why it cannot tell, a sentence each.
        needed: what it would take to tell; None where it can.
        look_alikes: bool [m], calibration images that score as light copies do.
    """

    copied: NDArray[np.bool_]
    p_values: Floats
    likeness: NDArray[np.bool_]
    rate: Estimate
    estimated_rate: Estimate
    sensitivity: dict[str, Estimate]
    line: float
    excess: float
    answer: str
    sentence: str
    reasons: list[str]
    needed: str | None
    look_alikes: NDArray[np.bool_]


@dataclasses.dataclass(frozen=True)
class Planted:
    """Planted copies of one kind: altered training images, scored as generated images are.

    Attributes:
        scores: float [a d], columns as in `Calibration.scores`.
        beyond_own: bool [a], with controls: as in `verdict`; None without.
    """

    scores: Floats
    beyond_own: NDArray[np.bool_] | None = None


def verdict(
    scores: Floats,
    calibration: Calibration,
    *,
    planted: Mapping[str, Planted] | None = None,
    identical: NDArray[np.bool_] | None = None,
    blank: NDArray[np.bool_] | None = None,
    beyond_own: NDArray[np.bool_] | None = None,
    differs: str | None = None,
    n_missing: int = 0,
    fdr: float = FDR,
) -> Verdict:
    """Judge generated images: conformal p-values, Benjamini-Hochberg over the set, and what silence is worth.

    Args:
        scores: of the readable generated images, float [n d] or [n], columns as in `calibration`.
        calibration: scores of images that are no copies.
        planted: planted copies by kind; None = sensitivity was not measured, and then the answer is never "no copies
            found".
        identical: bool [n], images that are a training image itself: copies whatever there is to calibrate on.
        blank: bool [n], images of one colour: no copies, and in no rate.
        beyond_own: bool [n], with controls: images that are nearer to the training set than training images are to one
            another; a copy must be.
        differs: why calibration and generated images are not of one kind; None where they are.
        n_missing: unreadable images; in the upper ends they count as copies.
        fdr: false discovery rate of the list of copies, in (0, 1).
    """
    scores, known = _columns(scores), _columns(calibration.scores)
    there = np.ones(len(scores), dtype=bool) if blank is None else ~blank
    same = np.zeros(len(scores), dtype=bool) if identical is None else identical & there
    n = int(there.sum())
    p_values = stats.conformal_p_values(scores, known)
    p_values[~there] = np.nan
    flagged = np.zeros(len(scores), dtype=bool)
    if len(known) and differs is None:
        flagged[there] = stats.benjamini_hochberg(p_values[there], fdr)
    line = fdr * max(int(flagged.sum()), math.ceil(TOLERABLE * n), 1) / max(n, 1)
    likeness = np.zeros(len(scores), dtype=bool)
    if beyond_own is not None:
        likeness = flagged & ~beyond_own & ~same
        flagged &= beyond_own
    copied = flagged | same
    tests = {kind: _p_of_planted(each, known) for kind, each in (planted or {}).items()}
    of_set = p_values[there] if beyond_own is None else np.where(beyond_own, p_values, 1.0)[there]
    seen = {kind: stats.proportion(int((each <= line * (1 + 1e-12)).sum()), len(each)) for kind, each in tests.items()}
    bound = 0.0
    if len(known):
        level = 1 - 0.05 / known.shape[1]
        bound = max(stats.excess(scores[there, j], known[:, j], level)[0] for j in range(known.shape[1]))
    found = Measured(
        n=n,
        n_missing=n_missing,
        n_blank=len(scores) - n,
        m_gone={"training images or look like one": calibration.n_removed, "blank": calibration.n_blank},
        count=int(copied.sum()),
        certain=int(same.sum()),
        likeness=int(likeness.sum()),
        method=calibration.method,
        m=len(known),
        line=line,
        fdr=fdr,
        rate=stats.proportion(int(copied.sum()), n, missing=n_missing),
        estimated=_estimated_rate(
            of_set, int(same.sum()), len(known), tests, n_missing, calibration.method != "baseline"
        ),
        sensitivity=None if planted is None else seen,
        excess=bound,
        look_alikes=_look_alikes(known, planted),
        differs=differs,
    )
    reasons, needed = found.reasons()
    answer = found.answer(reasons)
    return Verdict(
        copied=copied,
        p_values=p_values,
        likeness=likeness,
        rate=found.rate,
        estimated_rate=found.estimated,
        sensitivity=seen,
        line=line,
        excess=bound,
        answer=answer,
        sentence=found.sentence(answer, reasons),
        reasons=reasons if answer == CANNOT_TELL else [],
        needed=needed if answer == CANNOT_TELL else None,
        look_alikes=found.look_alikes,
    )


def _columns(scores: Floats) -> Floats:
    """Scores [n d]; what was not compared (NaN, -inf) is as unlike as can be.

    On the scale of what is missing, -log(1 - score): near 1, where copies are, .99 is to .97 what .97 is to .91.
    """
    found = np.asarray(scores, dtype=np.float64)
    found = found[:, None] if found.ndim == 1 else found
    return np.asarray(-np.log(np.maximum(1 - np.where(np.isfinite(found), found, -1.0), 0) + ROUNDING))


def _p_of_planted(planted: Planted, known: Floats) -> Floats:
    """P-values of planted copies [a]; 1 for those that the rule for controls would call a likeness."""
    p_values = stats.conformal_p_values(_columns(planted.scores), known)
    return p_values if planted.beyond_own is None else np.where(planted.beyond_own, p_values, 1.0)


def _estimated_rate(
    p_values: Floats, certain: int, m: int, tests: Mapping[str, Floats], n_missing: int, trusted: bool
) -> Estimate:
    """Share of copies, whichever of the planted kinds they are of, corrected for unseen copies and false alarms.

    Rogan and Gladen's estimate, at p-values that the generated images do not decide. The lower end is that of the kind
    which is seen best, where the interval of the first kind would be narrowest without any copy or at the largest of
    the p-values, whichever is lower: images come in families, and a single one may fill a narrow tail. The upper end is
    that of the kind which is seen least, where it would be lowest without any copy. So each end holds for any mixture
    of the kinds, at the 2.5 % of its side. Neither end says more than so many images could say if all were seen: where
    generated images are less like the training set than calibration images, fewer false alarms are counted than
    expected, which says nothing of copies.

    Args:
        p_values: of the generated images [n].
        certain: images that are a training image itself.
        m: calibration images.
        tests: p-values of planted copies by kind.
        n_missing: unreadable images.
        trusted: calibration images are like unseen ones. Else false alarms may be anything up to what was counted: the
            lower end has only images that are a training image itself, the upper end no false alarms.
    """
    n = len(p_values)
    sure = stats.proportion(certain, n)
    if not tests or not n or not m:
        return stats.Estimate(math.nan, sure.low if n else 0.0, 1.0, n)

    def corrected(rank: int, count: int | None = None) -> list[Estimate]:
        """Estimate at p = rank / (m + 1), by kind, of a `count` of images at or below it; None = the generated ones."""
        line = rank / (m + 1) * (1 + 1e-12)
        count = int((p_values <= line).sum()) if count is None else count
        seen = [(int((each <= line).sum()), len(each)) for each in tests.values()]
        return [stats.corrected_proportion(count, n, each, (rank - 1 if trusted else 0, m)) for each in seen]

    def without_copies(rank: int) -> list[Estimate]:
        return corrected(rank, round(n * rank / (m + 1)))

    ranks = [2**power for power in range(m.bit_length()) if 2**power <= max(1, MOST_ALARMS * (m + 1))]
    by_kind = corrected(min(ranks, key=lambda rank: without_copies(rank)[0].high))
    low = sure.low
    if trusted:
        low = max(low, min(each.low for each in [*by_kind, *corrected(ranks[-1])]))
    high = max(_highest(corrected(min(ranks, key=lambda rank: _highest(without_copies(rank))))), low, sure.high)
    value = by_kind[0].value if math.isfinite(by_kind[0].value) else (low + high) / 2
    # Unreadable images: all of them copies in the upper end, none in the lower one.
    total = n + n_missing
    return Estimate(min(max(value, low), high), low * n / total, (high * n + n_missing) / total, n)


def _highest(by_kind: Iterable[Estimate]) -> float:
    return max(each.high for each in by_kind)


def _look_alikes(known: Floats, planted: Mapping[str, Planted] | None) -> NDArray[np.bool_]:
    """Which calibration images [m] score as high as the median light copy, in a score that tells such copies at all."""
    if not planted or MUST_SEE[0] not in planted or not len(known):
        return np.zeros(len(known), dtype=bool)
    light = _columns(planted[MUST_SEE[0]].scores)
    # How often a light copy scores higher than a calibration image: a half where the score has nothing to say of it.
    ordered = np.sort(known, axis=0)
    columns = range(known.shape[1])
    higher = [np.searchsorted(ordered[:, j], light[:, j], side="left").mean() / len(known) for j in columns]
    telling = np.array(higher) >= TELLING
    return np.asarray((known >= np.median(light, axis=0))[:, telling].any(axis=1), dtype=bool)


def _mean(values: Floats) -> float:
    return float(values.mean())


def _std(values: Floats) -> float:
    return float(values.std())
