"""Findings: association of properties with copying, a joint regression, and advice per image."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from copyscope import parts, stats
from copyscope.stats import Correlation, Estimate, Floats

from .firth import Effect, effect, firth, worth

__all__ = [
    "Findings",
    "Joint",
    "MeasureCorrelation",
    "explain",
    "lint_action",
    "risk_action",
]

MEASURES = (
    "entropy",
    "jpeg_size",
    "total_variation",
    "mixed",
    "caption_uniqueness",
    "caption_length",
    "group_size",
)
"""What is correlated with similarity, where the table has it."""
# `mixed` is a product of two others and would only blur them. In the order of preference where some say the same.
COVARIATES = (
    "log_group_size",
    "full_duplication",
    "caption_uniqueness",
    "caption_length",
    "entropy",
    "jpeg_size",
    "total_variation",
)
_UNITS = {"group_size": "images", "log_group_size": "ln images", "full_duplication": "0/1"}
DUPLICATION = ("log_group_size", "full_duplication")
"""Covariates of a near-duplicate group that go with how often it was the prompt."""
MIN_CASES = 10
"""Fewest copied groups, and fewest not copied, that the joint model is fitted on."""
COPIED_OFTEN = 3
"""Copies of one image from which on dropping it is advised, where nothing milder applies."""
RARE_CAPTION = 2
"""A caption that at most so many other images share or nearly share is a key to its image."""
NOT_KNOWN = (
    "How often each training image was the prompt is not known, so duplication and exposure cannot be told apart: "
    "the joint model says nothing of duplication. Generate from training captions, with the prompts beside the images."
)
SIMPLE = 4.0
"""A picture whose mixed measure (nats x sqrt(KiB)) is lower counts as simple: letters and icons measure up to 0.9, bar
charts up to 2.7, and no photograph of `assets.fetch("photographs")` less than 5.4."""


@dataclasses.dataclass(frozen=True)
class MeasureCorrelation:
    """Correlation of one measure of the matched training image with the similarity, over generated images."""

    measure: str
    unit: str
    pearson: Correlation
    spearman: Correlation

    def as_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        found: dict[str, Any] = {"measure": self.measure, "unit": self.unit, "target": "similarity"}
        for name, (estimate, p_value) in (("pearson", self.pearson), ("spearman", self.spearman)):
            found |= {name: estimate.as_dict(), f"{name}_p": _finite(p_value)}
        return found


@dataclasses.dataclass(frozen=True)
class Joint:
    """One model of "is copied" on all causes at once: an effect is what is left of a cause with the others held.

    Attributes:
        n: near-duplicate groups.
        n_copied: those of them that are copied.
        n_images: generated images whose prompt is a caption of the group, over all groups; None where the exposure is
            not known.
        n_copies: copies among them; None likewise.
        correlation: of "is a copy" between such images of one group, 0..1; None where not known.
        note: for people.
        model: the model in words.
    """

    n: int
    n_copied: int
    n_images: int | None
    n_copies: int | None
    correlation: float | None
    effects: tuple[tuple[str, str, Effect], ...]
    """(covariate, what 1 SD of it is, effect of 1 SD)"""
    note: str
    model: str = "Firth-penalised logistic regression, profile likelihood intervals, odds ratio per 1 SD"

    @property
    def outcome(self) -> str:
        """The outcome whose odds are modelled, in words."""
        if self.n_images is None:
            return "a training image (near-duplicate group) is copied by any generated image"
        return "a generated image copies the training image (near-duplicate group) that its prompt is a caption of"

    def as_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        effects = [
            {"name": name, "unit": unit, "odds_ratio": found.odds_ratio.as_dict(), "p_value": _finite(found.p_value)}
            for name, unit, found in self.effects
        ]
        keys = ("outcome", "n", "n_copied", "n_images", "n_copies", "correlation", "model", "note")
        return {key: getattr(self, key) for key in keys} | {"effects": effects}


@dataclasses.dataclass(frozen=True)
class Findings:
    """What goes with copying.

    Attributes:
        correlations: measure by measure.
        joint: the joint model; None where there are too few cases, and `notes` says so.
        notes: sentences for people.
    """

    correlations: tuple[MeasureCorrelation, ...]
    joint: Joint | None
    notes: tuple[str, ...]

    def as_dict(self) -> dict[str, Any]:
        """The `findings` of an audit's summary, JSON-safe."""
        return {
            "correlations": [found.as_dict() for found in self.correlations],
            "joint": None if self.joint is None else self.joint.as_dict(),
            "notes": list(self.notes),
        }


def explain(images: pa.Table, generated: pa.Table, *, seed: int = 0) -> Findings:
    """Correlate the measures with similarity, and model "is copied" on all of them.

    With columns `n_images` (generated images whose prompt is a caption of the group, 1 or more) and `n_copies` (those
    that copy the group), the odds are those of one such image, and `copied` is not read. Without them the exposure is
    not known: a group that was the prompt more often is copied more often, and what is duplicated mostly is, so that
    DUPLICATION is held and no effect of it reported.

    Args:
        images: a row a distinct training image (near-duplicate group), with `copied` and any of COVARIATES: all copied
            ones and a random sample of the others. Sampling by outcome leaves odds ratios as they are (Prentice & Pyke
            1979) and makes the intercept meaningless, so it is not reported. NaN or null = not measured.
        generated: a row a readable generated image, with `score` (similarity), `match` (id of the training image) and
            any of MEASURES of that image.
        seed: of the bootstrap.
    """
    notes: list[str] = []
    correlations = _correlations(generated, seed, notes)
    return Findings(correlations, _joint(images, notes), tuple(notes))


def risk_action(
    times_copied: int,
    group_size: int,
    duplication: str | None,
    shared: int,
    near_shared: int,
    n_captions: int = 1,
    proven: bool = True,
) -> tuple[str, str]:
    """Action and reason for a training image after an audit.

    The first that applies: never copied -> keep; in a near-duplicate group -> deduplicate; with a caption that at most
    RARE_CAPTION other images share or nearly share -> recaption; copied COPIED_OFTEN times or more -> drop; else
    review. The milder remedy goes first: repetition is the strongest known cause and its removal loses no picture.

    Args:
        times_copied: generated images that copy it.
        group_size: of its near-duplicate group.
        duplication: kind of the group, as `Groups.kind`.
        shared: other images that share a caption.
        near_shared: further images that nearly do.
        n_captions: captions of the image.
        proven: the verdict calls the generated images copies; else they are suspicious, and nobody is advised to lose a
            picture for that.

    Returns:
        ("deduplicate", "recaption", "drop", "review" or "keep"; the reason in one sentence).
    """
    if times_copied == 0:
        return "keep", "No generated image copies it."
    said = "Copied once" if times_copied == 1 else f"Copied {times_copied} times"
    if not proven:
        said = f"Suspiciously near to {times_copied} generated image{'s' if times_copied > 1 else ''}"
    if group_size > 1:
        return "deduplicate", f"{said}, and {_group(group_size, duplication)}: keep one of them."
    others = shared + near_shared
    if n_captions and others <= RARE_CAPTION:
        return "recaption", f"{said}, and {_rare(others, n_captions)}: give it several, more general captions."
    known = f"its caption is common ({others} other images)" if n_captions else "it has no caption"
    if proven and times_copied >= COPIED_OFTEN:
        return "drop", f"{said} although it has no near-duplicates and {known}: leave it out."
    return "review", (
        f"{said} although it has no near-duplicates and {known}: compare the pictures, and leave it out if no picture "
        "may be copied."
    )


def lint_action(
    group_size: int,
    duplication: str | None,
    shared: int,
    near_shared: int,
    n_captions: int = 1,
    mixed: float | None = None,
) -> tuple[str, str]:
    """Action and reason for a training image before training.

    In a near-duplicate group -> deduplicate; a simple picture (below SIMPLE) under a caption of its own ->
    recaption; else keep. A rare caption alone is no reason: nearly every caption of a good data set is.

    Args:
        group_size: of its near-duplicate group.
        duplication: kind of the group, as `Groups.kind`.
        shared: other images that share a caption.
        near_shared: further images that nearly do.
        n_captions: captions of the image.
        mixed: the measure of that name, of the picture; None = unknown.

    Returns:
        ("deduplicate", "recaption" or "keep"; the reason in one sentence).
    """
    if group_size > 1:
        return "deduplicate", f"It is {_group(group_size, duplication)}: keep one of them."
    others = shared + near_shared
    if n_captions and others <= RARE_CAPTION and mixed is not None and mixed < SIMPLE:
        return "recaption", (
            f"It is a simple picture (complexity {mixed:.1f}; from {SIMPLE:g} on it would be none) and "
            f"{_rare(others, n_captions)}: give it several, more general captions."
        )
    return "keep", "It has no near-duplicates, and nothing else about it invites copying."


def _group(size: int, duplication: str | None) -> str:
    how = {"full": " among which captions repeat", "partial": " under different captions"}.get(duplication or "", "")
    return f"one of {size} near-duplicates{how}"


def _rare(others: int, n_captions: int) -> str:
    which = "its caption" if n_captions == 1 else f"one of its {n_captions} captions"
    if others == 0:
        return f"no other image has {which} or one like it"
    return (
        f"only {others} other image{'s' if others > 1 else ''} {'have' if others > 1 else 'has'} {which} or one like it"
    )


def _correlations(generated: pa.Table, seed: int, notes: list[str]) -> tuple[MeasureCorrelation, ...]:
    score = _floats(generated, "score")
    matches = _codes(generated["match"]) if "match" in generated.column_names else np.arange(len(score))
    distinct = len(np.unique(matches[np.isfinite(score)]))
    repeated = distinct < np.isfinite(score).sum()
    if repeated:
        notes.append(
            f"The {np.isfinite(score).sum()} generated images match {distinct} training images, so they are not "
            f"independent: intervals and p-values of the correlations are from a bootstrap over those {distinct}."
        )
    found = []
    for name in MEASURES:
        if name not in generated.column_names:
            continue
        values = _floats(generated, name)
        pair = [
            clustered_correlation(values, score, matches, method, seed=seed)
            if repeated
            else stats.correlation(values, score, method)
            for method in ("pearson", "spearman")
        ]
        found.append(MeasureCorrelation(name, _unit(name), *pair))
    return tuple(found)


def clustered_correlation(
    x: Floats, y: Floats, clusters: NDArray[Any], method: str = "pearson", *, seed: int = 0, level: float = 0.95
) -> Correlation:
    """Correlation as `stats.correlation`, where rows of one cluster are not independent.

    Whole clusters are drawn again (percentile bootstrap, as `stats.bootstrap(clusters=)`, all resamples at a time: a
    row drawn twice weighs twice). The p-value is of the coefficient's Fisher z over its bootstrap standard error.

    Args:
        x: [n].
        y: [n].
        clusters: labels [n].
        method: "pearson" or "spearman".
        seed: of the resamples.
        level: of the interval, in (0, 1).
    """
    from scipy.stats import norm

    keep = np.isfinite(x) & np.isfinite(y)
    x, y = x[keep], y[keep]
    plain = stats.correlation(x, y, method).estimate
    _, codes = np.unique(clusters[keep], return_inverse=True)
    count, n = int(codes.max(initial=-1)) + 1, len(x)
    if math.isnan(plain.value) or count < 3:
        return Correlation(Estimate(plain.value, math.nan, math.nan, n), math.nan)
    x, y = _standardised(x), _standardised(y)
    rng = np.random.default_rng(np.random.SeedSequence(seed))
    resamples = int(np.clip(20_000_000 // n, 200, 1000))
    found = []
    for start in range(0, resamples, step := max(1, 500_000 // n)):
        size = min(step, resamples - start)
        weights = rng.multinomial(count, np.full(count, 1 / count), size=size)[:, codes].astype(np.float64)
        columns = (x, y) if method == "pearson" else (_midranks(x, weights), _midranks(y, weights))
        found.append(_weighted_pearson(*columns, weights))
    r = np.concatenate(found)
    r = r[np.isfinite(r)]
    if len(r) < 2:
        return Correlation(Estimate(plain.value, math.nan, math.nan, n), math.nan)
    low, high = np.quantile(r, [(1 - level) / 2, (1 + level) / 2])
    z = np.arctanh(np.clip([plain.value, *r], -1 + 1e-12, 1 - 1e-12))
    spread = float(z[1:].std(ddof=1))
    p_value = 2 * float(norm.sf(abs(z[0]) / spread)) if spread > 0 else math.nan
    return Correlation(Estimate(plain.value, float(low), float(high), n), p_value)


def _midranks(values: Floats, weights: Floats) -> Floats:
    """Ranks [b n], ties at their mean, of values [n] in each of b resamples where row i stands weights[:, i] times."""
    _, level = np.unique(values, return_inverse=True)
    order = np.argsort(level, kind="stable")
    starts = np.flatnonzero(np.r_[True, np.diff(level[order]) > 0])
    mass = np.add.reduceat(weights[:, order], starts, axis=1)
    ranks: Floats = (np.cumsum(mass, axis=1) - (mass - 1) / 2)[:, level]
    return ranks


def _weighted_pearson(x: Floats, y: Floats, weights: Floats) -> Floats:
    """Pearson correlations [b] of x and y, [n] or [b n], under weights [b n]; NaN where one is constant."""
    total = weights.sum(axis=1, keepdims=True)
    x = x - (weights * x).sum(axis=1, keepdims=True) / total
    y = y - (weights * y).sum(axis=1, keepdims=True) / total
    xx, yy, xy = ((weights * u * v).sum(axis=1) for u, v in ((x, x), (y, y), (x, y)))
    flat = (xx <= 1e-20 * total[:, 0]) | (yy <= 1e-20 * total[:, 0])
    found: Floats = np.where(flat, np.nan, xy / np.sqrt(np.where(flat, 1.0, xx * yy)))
    return found


def _joint(images: pa.Table, notes: list[str]) -> Joint | None:
    exposed = "n_images" in images.column_names
    trials = _floats(images, "n_images") if exposed else np.ones(len(images))
    successes = _floats(images, "n_copies" if exposed else "copied")
    columns = {name: _floats(images, name) for name in COVARIATES if name in images.column_names}
    said: list[str] = []
    # A covariate that most rows lack would take the rows with it.
    for name in [name for name, values in columns.items() if 2 * np.isfinite(values).sum() < len(values)]:
        said.append(f"{name} left out: not measured for most training images.")
        del columns[name]
    keep: NDArray[np.bool_] = np.all(np.isfinite(np.column_stack([successes, *columns.values()])), axis=1)
    if not keep.all():
        said.append(f"{(~keep).sum()} of {len(keep)} training images left out: not measured in full.")
    successes, trials = successes[keep], trials[keep]
    n, n_copied = len(successes), int((successes > 0).sum())
    if min(n_copied, n - n_copied) < MIN_CASES:
        prompted = " of those whose caption was a prompt" if exposed else ""
        notes.append(
            f"No joint model of the causes: it needs {MIN_CASES} distinct training images that are copied and "
            f"{MIN_CASES} that are not, and there are {n_copied} and {n - n_copied}{prompted}."
        )
        return None
    kept, x = _independent({name: values[keep] for name, values in columns.items()}, said)
    reported = [name for name in kept if exposed or name not in DUPLICATION]
    if not exposed and any(name in columns for name in DUPLICATION):
        notes.append(NOT_KNOWN)
    if not kept:
        notes.append("No joint model of the causes: " + " ".join(said or ["no cause was measured."]))
    if not reported:
        return None
    if min(n_copied, n - n_copied) < 5 * len(kept):
        said.append(f"{min(n_copied, n - n_copied)} cases for {len(kept)} covariates: expect wide intervals.")
    weights, correlation = worth(successes, trials) if exposed else (trials, None)
    y = successes / trials
    fit = firth(x, y, trials=weights)
    effects = tuple(
        (name, f"1 SD = {columns[name][keep].std():.3g} {_unit(name)}", effect(x, y, place, fit, trials=weights))
        for place, name in enumerate(kept, start=1)
        if name in reported
    )
    n_images, n_copies = (int(trials.sum()), int(successes.sum())) if exposed else (None, None)
    return Joint(n, n_copied, n_images, n_copies, correlation, effects, " ".join(said))


def _independent(columns: dict[str, Floats], said: list[str]) -> tuple[list[str], Floats]:
    """The columns that say something of their own, and the design [n 1+k]: ones, then each column standardised."""
    kept: list[str] = []
    first = next(iter(columns.values()), np.zeros(0))
    x = np.ones((len(first), 1))
    for name, values in columns.items():
        if values.std() <= 1e-9 * np.abs(values).max(initial=0.0):
            said.append(f"{name} left out: the same for all training images.")
            continue
        z = _standardised(values)
        if _unexplained(z, x) < 1e-6:
            said.append(f"{name} left out: the other covariates determine it.")
            continue
        kept.append(name)
        x = np.column_stack([x, z])
    # Variance inflation above 10 is the usual line (Marquardt 1970).
    entangled = [
        name for place, name in enumerate(kept, start=1) if _unexplained(x[:, place], np.delete(x, place, axis=1)) < 0.1
    ]
    if entangled:
        said.append(f"{', '.join(entangled)} go together so closely that their effects are hard to tell apart.")
    return kept, x


def _unexplained(values: Floats, x: Floats) -> float:
    """Share of the variance of standardised `values` [n] that the columns of x [n k] leave unexplained."""
    rest = values - x @ np.linalg.lstsq(x, values, rcond=None)[0]
    return float(rest @ rest / len(rest))


def _standardised(values: Floats) -> Floats:
    z: Floats = (values - values.mean()) / values.std()
    return z


def _unit(name: str) -> str:
    return _UNITS[name] if name in _UNITS else str(parts.part_class("measures", name).unit)  # type: ignore[attr-defined]


def _floats(table: pa.Table, name: str) -> Floats:
    """A column as float64, null as NaN."""
    column = (
        table[name].cast(pa.float64()) if not pa.types.is_boolean(table[name].type) else table[name].cast(pa.int8())
    )
    return np.asarray(column.to_numpy(), dtype=np.float64)


def _codes(column: pa.ChunkedArray) -> NDArray[np.int64]:
    """A number for each distinct value; every null its own, since nothing says that two of them agree."""
    encoded = column.combine_chunks().dictionary_encode().indices
    codes = np.asarray(encoded.to_numpy(zero_copy_only=False), dtype=np.float64)
    missing = np.isnan(codes)
    codes[missing] = len(codes) + np.arange(missing.sum())
    return codes.astype(np.int64)


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None
