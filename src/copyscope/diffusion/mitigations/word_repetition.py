"""Repeat words of the caption at random places (CWR of Somepalli et al. 2023)."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np

from copyscope.diffusion.text.vocabulary import drawn, inserted

from . import OnCaption
from ._checks import check_probability, check_whole


@dataclasses.dataclass(frozen=True)
class WordRepetition(OnCaption):
    """With `probability`, insert `n` of the caption's own words again, each at a gap between words or at an end.

    All words are equally likely, and all gaps. A caption without words stays as it is.

    Source: CWR of Somepalli et al. 2023, section 6; the authors' code inserts 2 with probability 0.1 in training, and 2
    or 4 always in sampling.

    Cost: no model call.

    Args:
        n: 0 (changes nothing) or more.
        probability: 0 (changes nothing) to 1.
    """

    n: int = 2
    probability: float = 0.1

    def __post_init__(self) -> None:
        check_whole("n", self.n)
        check_probability(self.probability)

    def rewrite(self, captions: Sequence[str], rng: np.random.Generator) -> str:
        """Repeat words; see `OnCaption.rewrite`."""
        own = captions[0].split()
        if self.n == 0 or not own or rng.random() >= self.probability:
            return captions[0]
        return inserted(captions[0], drawn(own, self.n, rng), rng)
