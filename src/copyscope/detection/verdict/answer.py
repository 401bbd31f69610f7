"""The answer of a verdict: copies, suspicious, no copies found, cannot tell; reasons and next steps."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from copyscope import stats
from copyscope.stats import Estimate

TOLERABLE = 0.05
"""The rate that "no copies found" excludes."""
UNKNOWN = 0.5
"""Per cent: an interval that begins below it and ends as near to all says nothing."""
SEEN = 0.8
"""Least sensitivity, at the lower end of its interval, to the kinds in MUST_SEE before silence means anything."""
MUST_SEE = ("light", "crop")
OWN_LEVEL = 0.05
"""With controls: a copy is nearer to the training set than all but this share of the training images are."""
COPIES, SUSPICIOUS, NONE_FOUND, CANNOT_TELL = "copies", "suspicious", "no copies found", "cannot tell"


@dataclasses.dataclass(frozen=True)
class Measured:
    """Measurements of an audit, and what may be said of them.

    Attributes:
        n: generated images, blank ones left out.
        m: calibration images.
        n_missing: generated images that could not be read.
        n_blank: blank generated images.
        m_gone: calibration images that were left out, by the reason in words.
        count: images called copies.
        certain: those of them that are a training image itself.
        likeness: images that show the subject of a training image, and not its picture.
        method: of the calibration.
        line: p-values at or below it are called copies.
        fdr: false discovery rate of the list of copies.
        rate: share called copies.
        estimated: corrected for unseen copies and false alarms.
        sensitivity: share of the planted copies that is called copies, by kind; empty = no training image has any to
            plant; None = not measured.
        excess: at least this share of the generated images is nearer to the training set than calibration images are.
        look_alikes: bool [m], calibration images that score as light copies do.
        differs: why calibration and generated images are not of one kind; None where they are.
    """

    n: int
    n_missing: int
    n_blank: int
    m_gone: dict[str, int]
    count: int
    certain: int
    likeness: int
    method: str
    m: int
    line: float
    fdr: float
    rate: Estimate
    estimated: Estimate
    sensitivity: dict[str, Estimate] | None
    excess: float
    look_alikes: NDArray[np.bool_]
    differs: str | None

    @property
    def explained(self) -> bool:
        """Whether, with controls, new views of the subject alone may have given as many "copies".

        Of likenesses, a share of OWN_LEVEL passes for copies by chance (binomial test at 5 %).
        """
        from scipy.stats import binom

        n = self.count - self.certain + self.likeness
        return self.method == "controls" and float(binom.sf(self.count - self.certain - 1, n, OWN_LEVEL)) > OWN_LEVEL

    @property
    def calibrators(self) -> str:
        """Name of the calibration images."""
        return {"held-out": "held-out images", "controls": "control images"}.get(self.method, "training images")

    def reasons(self) -> tuple[list[str], str | None]:
        """Reasons why "no copies found" may not be said, a sentence each, and what it would take."""
        found, wants = [], []
        none_left = not self.m and any(self.m_gone.values())
        if none_left:
            # First of all: whoever gives the training set as held-out images is to read it.
            found.append(self._none_left())
            wants.append(f"{self.calibrators} that show other things than the training images")
        if self.differs:
            found.append(self.differs)
            other = "held-out images of the kind that the model makes, or --trust-held-out"
            wants.append("control images made without the fine-tuning" if self.method == "controls" else other)
        enough = stats.cases_needed(TOLERABLE)
        if self.estimated.low <= TOLERABLE and stats.proportion(0, self.n, missing=self.n_missing).high > TOLERABLE:
            gone = _besides({"blank": self.n_blank})
            found.append(f"{self.n} readable images are too few{gone} to exclude a rate of {100 * TOLERABLE:g} %.")
            readable = f" and {self.n_missing} of the present ones made readable" if self.n_missing else ""
            wants.append(f"{enough} generated images{readable} (there are {self.n})")
        least = math.ceil(1 / self.line * (1 - 1e-12)) - 1
        if self.m < least and not none_left:
            gone = _besides(self.m_gone)
            alone = "by itself even an obvious copy could not stand out"
            found.append(f"{self.m} {self.calibrators} are too few{gone}: {alone}.")
            better = "training or, better, held-out images" if self.method == "baseline" else self.calibrators
            wants.append(f"{least} {better} to calibrate on (there are {self.m})")
        seen = self.sensitivity
        if seen is None:
            found.append("How many copies would be seen was not measured (--sensitivity 0).")
            wants.append("a run without --sensitivity 0")
        elif not seen:
            found.append("All training images are blank: there is nothing to copy.")
            wants.append("training images that show something")
        elif self.m >= least and not self.differs:
            blind = [kind for kind in MUST_SEE if kind in seen and seen[kind].low < SEEN]
            if blind:
                shares = " and ".join(f"{_percent(seen[kind])} of `{kind}` copies" for kind in blind)
                found.append(f"Too few copies would be seen: {shares}, where {100 * SEEN:g} % is asked for.")
                wants.append(self._sharper())
            elif self.estimated.high > TOLERABLE and not wants and self.method == "baseline":
                found.append(
                    f"The rate could be {100 * self.estimated.high:.1f} %: without held-out or control images false "
                    "alarms cannot be told from copies."
                )
                wants.append("held-out or control images")
            elif self.estimated.high > TOLERABLE and not wants:
                kind = min(seen, key=lambda each: seen[each].low)
                found.append(
                    f"The rate could be {100 * self.estimated.high:.1f} %: of `{kind}` copies, "
                    f"{_percent(seen[kind])} would be seen."
                )
                wants.append(self._more(seen[kind], kind))
        return found, "It would take " + "; ".join(wants) + "." if wants else None

    def _none_left(self) -> str:
        """That all calibration images were left out, and why."""
        kinds = {what: n for what, n in self.m_gone.items() if n}
        n = sum(kinds.values())
        if n > 1 and len(kinds) == 1:
            return f"All {n} {self.calibrators} are {next(iter(kinds))}: none is left to calibrate on."
        why = ", ".join(f"{each} {'is' if each == 1 else 'are'} {what}" for what, each in kinds.items())
        return f"None of the {n} {self.calibrators} can calibrate: {why}."

    def _sharper(self) -> str:
        """What would raise the sensitivity."""
        n = int(self.look_alikes.sum())
        if n and self.method == "held-out":
            are = "is" if n == 1 else "are"
            return (
                f"a held-out set without look-alikes: {n} of {self.m} held-out images {are} as near to a training "
                "image as a light copy is. Look at them in the report, and leave out with --held-out-exclude those "
                "that show what a training image shows"
            )
        return "images that differ more from one another, or a sharper descriptor: the training set resembles itself"

    def _more(self, seen: Estimate, kind: str) -> str:
        """How many more generated images would bound the rate, for copies of the kind that is seen least."""
        if seen.value > 0 and self.excess == 0:
            # The upper end of a share of which none is seen falls as 1 / n.
            n = math.ceil(stats.cases_needed(TOLERABLE * seen.value) * 1.3)
            if n > self.n:
                return f"about {n:,} generated images (there are {self.n}), or a way to see `{kind}` copies better"
        return f"a way to see `{kind}` copies better"

    def answer(self, reasons: list[str]) -> str:
        """Answer, given the reasons that keep from saying that there are no copies."""
        if self.certain or (self.count and self.method != "baseline" and not self.explained):
            return COPIES
        if self.count:
            return SUSPICIOUS
        return CANNOT_TELL if reasons else NONE_FOUND

    def sentence(self, answer: str, reasons: list[str]) -> str:
        """The answer in words, with the corrected rate."""
        images = f"{self.n} generated image" + ("" if self.n == 1 else "s")
        rate = ""
        if math.isfinite(self.estimated.value):
            low, high = (100 * end for end in (self.estimated.low, self.estimated.high))
            rate = f" Corrected for copies that are not seen, the rate is {low:.1f} to {high:.1f} % (95 % interval)."
            if self.method == "baseline":
                rate = f" How many more there are is not known: at most {high:.1f} %, false alarms included."
            if low <= UNKNOWN and high >= 100 - UNKNOWN:
                rate = " How many more there are cannot be told: of some kinds of copies too few would be seen."
        alike = ""
        if self.likeness:
            alike = f" {self.likeness} more are likenesses: the same subject, not the same picture."
        if answer == COPIES:
            what = "one reproduces a training image" if self.count == 1 else f"{self.count} reproduce training images"
            return f"The model copies: of {images}, {what}.{rate}{alike}"
        if answer == SUSPICIOUS:
            what = "one is suspiciously near" if self.count == 1 else f"{self.count} are suspiciously near"
            no_proof = "Without held-out images this is no proof."
            if self.method == "controls":
                no_proof = f"New views of the subject would give as many: {self.likeness} likenesses are beside them."
            return f"Suspicious: of {images}, {what} to a training image. {no_proof}"
        if answer == NONE_FOUND:
            return (
                f"No copies found among {images}: the rate is at most {100 * self.estimated.high:.1f} % "
                f"(95 % interval, corrected for copies that are not seen).{alike}"
            )
        nearer = ""
        if self.excess > 0 and not self.differs:
            nearer = (
                f" At least {100 * self.excess:.1f} % of the generated images are nearer to the training set than the "
                f"{self.calibrators} are."
            )
        if self.estimated.low > TOLERABLE and not self.differs:
            which = f"Cannot tell which are copies: of {images} none stands out by itself, but together they do."
            return f"{which}{rate}{alike}"
        return f"Cannot tell: no copy found among {images}. {reasons[0]}{nearer}{alike}"


def _besides(gone: Mapping[str, int]) -> str:
    """What else there was: "" or " (12 more are blank)"."""
    parts = [f"{n} more {'is' if n == 1 else 'are'} {what}" for what, n in gone.items() if n]
    return f" ({'; '.join(parts)})" if parts else ""


def _percent(estimate: Estimate) -> str:
    return f"{100 * estimate.value:.0f} % [{100 * estimate.low:.0f}, {100 * estimate.high:.0f}]"
