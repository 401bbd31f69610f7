"""Thresholds of signals at a false-positive rate, fitted on ordinary prompts."""

from __future__ import annotations

import dataclasses
import json
import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import numpy as np

from copyscope.documents import read_json
from copyscope.errors import InputError
from copyscope.files import replace_file
from copyscope.stats import Floats
from copyscope.trust import check_specs

SCHEMA = "copyscope.thresholds/1"


@dataclasses.dataclass(frozen=True)
class Threshold:
    """Line of a signal: a score above `value` is flagged.

    Attributes:
        value: the line.
        rate: share of ordinary prompts that is flagged, at most.
        n: ordinary prompts that drew the line.
        n_missing: those of them without a score.
    """

    value: Annotated[float, "a score above it is flagged"]
    rate: Annotated[float, "at most this share of ordinary prompts is, at most the rate that was asked for"]
    n: Annotated[int, "prompts it was drawn by: of a signal that learned of some, the others"]
    n_missing: Annotated[int, "of these, prompts without a score, counted as the highest"]


@dataclasses.dataclass(frozen=True)
class Thresholds:
    """Thresholds of signals, which hold for one model and one way of making images alone.

    Args:
        model: fingerprint of its weights.
        settings: how its images are made, in a line.
        signals: spec -> threshold.
    """

    model: Annotated[str, "sha256 of the model's weights; the thresholds hold for no other"]
    settings: Annotated[str, "how images are made, in a line; nor for images made otherwise"]
    signals: Annotated[Mapping[str, Threshold], "from the spec of a signal, with what it learned, to the following"]

    def flagged(self, scores: Mapping[str, Floats]) -> dict[str, Any]:
        """Flag scores above the line of their signal; a missing score is flagged.

        Args:
            scores: spec -> scores [n]; NaN = missing.

        Returns:
            spec -> bool [n].
        """
        return {spec: ~(np.asarray(values) <= self.signals[spec].value) for spec, values in scores.items()}

    def as_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return {"schema": SCHEMA} | dataclasses.asdict(self)

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the thresholds as JSON.

        Args:
            path: the file.

        Raises:
            InputError: it cannot be written.
        """
        text = json.dumps(self.as_dict(), indent=1, ensure_ascii=False) + "\n"
        try:
            replace_file(Path(path), lambda part: part.write_text(text, encoding="utf-8"))
        except OSError as error:
            raise InputError(f"Cannot write {path}: {error.strerror or error}.\nName another file") from None

    @staticmethod
    def load(path: str | os.PathLike[str], model: str, settings: str, *, trust_parts: bool = False) -> Thresholds:
        """Load thresholds for a model and how its images are made.

        Args:
            path: the file.
            model: fingerprint of the model's weights.
            settings: how its images are made, in a line.
            trust_parts: take signals from outside the shelf too, which runs code of whoever made the file.

        Returns:
            The thresholds.

        Raises:
            InputError: the file cannot be read, or is of another model or other settings.
            PartError: a signal is not trusted.
        """
        try:
            found = read_json(path)
            if found["schema"] != SCHEMA:
                raise ValueError
            signals = {spec: Threshold(**each) for spec, each in found["signals"].items()}
            kept = Thresholds(found["model"], found["settings"], signals)
        except (InputError, ValueError, KeyError, TypeError, AttributeError):
            raise InputError(f"{path} holds no thresholds.\nMake them with: copyscope guard calibrate") from None
        if not trust_parts:
            check_specs({"signals": list(signals)}, str(path))
        if kept.model != model:
            raise InputError(f"The thresholds in {path} are of another model.\nCalibrate this one: guard calibrate")
        if kept.settings != settings:
            raise InputError(
                f"The thresholds in {path} are of images made with {kept.settings}, these are made with {settings}.\n"
                "Make them alike, or calibrate anew: guard calibrate"
            )
        return kept


def calibrate(scores: Mapping[str, Floats], model: str, settings: str, rate: float = 0.01) -> Thresholds:
    """Fit thresholds at a false-positive rate by scores of ordinary prompts.

    The conformal quantile (Vovk et al. 2005): a score is flagged where its `stats.conformal_p_values` is at most the
    rate, that is, above the k-th highest of the n, k the largest with k / (n + 1) at most the rate. So a new ordinary
    prompt is flagged with a probability of at most k / (n + 1), which is what `rate` says in the result, averaged over
    draws of the n. Missing scores count as the highest.

    Args:
        scores: spec -> scores [n]; NaN = missing.
        model: fingerprint of the model's weights.
        settings: how its images are made, in a line.
        rate: in (0, 1).

    Raises:
        InputError: n is too small for any line.
    """
    if not 0 < rate < 1:
        raise InputError(f"The false-positive rate must lie between 0 and 1, not {rate}.\nTake 0.01, say")
    found = {}
    for spec, values in scores.items():
        values = np.asarray(values, dtype=np.float64)
        n, missing = len(values), int(np.isnan(values).sum())
        # The tolerance keeps 0.01 * 100 a whole 1.
        k = math.floor(rate * (n + 1) * (1 + 1e-12))
        if k < 1:
            needed = math.ceil(1 / rate * (1 - 1e-12)) - 1
            raise InputError(f"{n} prompts draw no line at a rate of {rate}.\nGive {needed} or more, or a higher rate")
        highest = np.sort(np.where(np.isnan(values), np.inf, values))[::-1]
        found[spec] = Threshold(float(highest[k - 1]), k / (n + 1), n, missing)
        if not math.isfinite(found[spec].value):
            raise InputError(f"{spec} has no score of {missing} of {n} prompts.\nLeave it out, or sample more steps")
    return Thresholds(model, settings, found)
