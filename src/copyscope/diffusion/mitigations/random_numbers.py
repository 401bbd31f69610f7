"""Insert random numbers into prompts (RNA of Somepalli et al. 2023)."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np

from copyscope.diffusion.text.vocabulary import inserted

from . import SAMPLING, OnCaption


@dataclasses.dataclass(frozen=True)
class RandomNumbers(OnCaption):
    """With `probability`, insert `n` random numbers into the prompt, each at a gap between words or at an end.

    All numbers from 0 to `below` - 1 are equally likely, and all gaps.

    Source: RNA of Somepalli et al. 2023, section 6; the authors' code inserts 2 or 4 numbers below 100000. A number is
    as many tokens as the tokenizer makes of it (CLIP: one a digit).

    Cost: no model call.

    Args:
        n: 0 (changes nothing) or more.
        probability: 0 (changes nothing) to 1.
        below: 1 or more.
    """

    n: int = 2
    probability: float = 1.0
    below: int = 100_000
    stages = (SAMPLING,)

    def __post_init__(self) -> None:
        if not isinstance(self.n, int) or self.n < 0:
            raise ValueError("n must be a whole number of 0 or more")
        if not 0 <= self.probability <= 1:
            raise ValueError("probability must be from 0 to 1")
        if not isinstance(self.below, int) or not 1 <= self.below < 2**63:
            raise ValueError("below must be a whole number from 1 to 2**63 - 1")

    def rewrite(self, captions: Sequence[str], rng: np.random.Generator) -> str:
        """Insert numbers; see `OnCaption.rewrite`."""
        if self.n == 0 or rng.random() >= self.probability:
            return captions[0]
        return inserted(captions[0], [str(number) for number in rng.integers(self.below, size=self.n)], rng)
