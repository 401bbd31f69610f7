"""Replace captions by random words (RC of Somepalli et al. 2023)."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np

from copyscope.diffusion.text.vocabulary import drawn, vocabulary

from . import TRAINING, OnCaption
from ._checks import check_probability, check_whole


@dataclasses.dataclass(frozen=True)
class RandomCaption(OnCaption):
    """With `probability`, replace the whole caption by `tokens` random words, each one token.

    Source: RC of Somepalli et al. 2023, section 6, with the defaults of the authors' code. That draws from ids that
    include pieces of words, and decodes all of them at once, so that they may become one word and other tokens; here
    every word is one that the tokenizer keeps whole.

    Cost: no model call.

    Args:
        probability: 0 (changes nothing) to 1.
        tokens: 1 or more.
        tokenizer: of transformers, or its folder; "" = the model's.
    """

    probability: float = 0.1
    tokens: int = 4
    # Tokenizers need not be hashable, parts are.
    tokenizer: Any = dataclasses.field(default="", hash=False)
    stages = (TRAINING,)

    def __post_init__(self) -> None:
        check_probability(self.probability)
        check_whole("tokens", self.tokens, 1)

    def rewrite(self, captions: Sequence[str], rng: np.random.Generator) -> str:
        """Draw random words; see `OnCaption.rewrite`."""
        if rng.random() >= self.probability:
            return captions[0]
        return " ".join(drawn(vocabulary(self.tokenizer), self.tokens, rng))
