"""Multiple captions: another of the image's captions at every draw (MC of Somepalli et al. 2023)."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np

from . import TRAINING, OnCaption
from ._checks import check_probability


@dataclasses.dataclass(frozen=True)
class MultipleCaptions(OnCaption):
    """With `probability`, draw any of the image's captions, all equally likely; else keep the caption drawn.

    Source: MC of Somepalli et al. 2023, section 6: twenty captions an image by BLIP (`curate` adds captions), drawn
    from at every step.

    Cost: no model call.

    Args:
        probability: 0 (changes nothing) to 1; an image with one caption keeps it.
    """

    probability: float = 1.0
    stages = (TRAINING,)

    def __post_init__(self) -> None:
        check_probability(self.probability)

    def rewrite(self, captions: Sequence[str], rng: np.random.Generator) -> str:
        """Draw one of the captions; see `OnCaption.rewrite`."""
        if rng.random() >= self.probability:
            return captions[0]
        return captions[int(rng.integers(len(captions)))]
