"""Insert random tokens into captions (RT of Somepalli et al. 2023)."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np

from copyscope.diffusion.text.vocabulary import drawn, inserted, vocabulary

from . import OnCaption
from ._checks import check_probability, check_whole


@dataclasses.dataclass(frozen=True)
class RandomTokens(OnCaption):
    """With `probability`, insert `n` random words of one token each, each at a gap between words or at an end.

    All gaps are equally likely.

    Source: RT of Somepalli et al. 2023, section 6; the authors' code inserts 2 with probability 0.1 in training, and 2
    or 4 always in sampling. It draws from ids that include pieces of words, which become other tokens in the caption;
    here every word is one that the tokenizer keeps whole.

    Cost: no model call.

    Args:
        n: 0 (changes nothing) or more.
        probability: 0 (changes nothing) to 1.
        replace: they take the places of `n` of the caption's words (of all, where there are fewer) instead.
        tokenizer: of transformers, or its folder; "" = the model's.
    """

    n: int = 2
    probability: float = 0.1
    replace: bool = False
    # Tokenizers need not be hashable, parts are.
    tokenizer: Any = dataclasses.field(default="", hash=False)

    def __post_init__(self) -> None:
        check_whole("n", self.n)
        check_probability(self.probability)

    def rewrite(self, captions: Sequence[str], rng: np.random.Generator) -> str:
        """Insert words, or put them in the place of others; see `OnCaption.rewrite`."""
        if self.n == 0 or rng.random() >= self.probability:
            return captions[0]
        words = drawn(vocabulary(self.tokenizer), self.n, rng)
        if not self.replace:
            return inserted(captions[0], words, rng)
        there = captions[0].split()
        for place, word in zip(rng.permutation(len(there)), words, strict=False):
            there[place] = word
        return " ".join(there)
