"""Generalised captions: cut captions to their first words (after Li et al. 2023)."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np

from . import OnCaption

_PUNCTUATION = ",;:.!?&+-–—/|([{\"'“‘"
# Words that say nothing at the end of a phrase.
_OPEN = {
    "a", "an", "the", "this", "that", "these", "those", "its", "his", "her", "their", "some", "any", "each", "every",
    "and", "or", "but", "as", "than", "of", "in", "on", "at", "by", "to", "for", "from", "with", "without", "into",
    "onto", "over", "under", "near", "behind", "beside", "between", "through", "across", "around", "above", "below",
    "against", "along", "during", "is", "are", "was", "were", "being", "has", "have", "which", "who", "whose", "where",
    "while", "very",
}  # fmt: skip


@dataclasses.dataclass(frozen=True)
class GeneralisedCaptions(OnCaption):
    """With `probability`, cut a caption of more than `words` words to its first `words`.

    The comma, the article or the preposition that would then stand at its end goes too.

    Source: Li et al. 2023 (arXiv 2309.07254), who have a language model say each caption in few words, and report the
    most for five; cutting is what can be done without one, and fits captions that name the main thing first, as BLIP's
    do. Captions that only name the class are the recipe's `conditioning = "class"`.

    Cost: no model call.

    Args:
        words: 1 or more.
        probability: 0 (changes nothing) to 1.
    """

    words: int = 5
    probability: float = 1.0

    def __post_init__(self) -> None:
        if not isinstance(self.words, int) or self.words < 1:
            raise ValueError("words must be a whole number of 1 or more")
        if not 0 <= self.probability <= 1:
            raise ValueError("probability must be from 0 to 1")

    def rewrite(self, captions: Sequence[str], rng: np.random.Generator) -> str:
        """Cut the caption; see `OnCaption.rewrite`."""
        there = captions[0].split()
        if len(there) <= self.words or rng.random() >= self.probability:
            return captions[0]
        kept = there[: self.words]
        while kept and _says_nothing(kept[-1]):
            kept.pop()
        # Nothing but such words: better they than the empty caption, which stands for no text at all.
        *first, last = kept or there[: self.words]
        return " ".join([*first, last.rstrip(_PUNCTUATION) or last])


def _says_nothing(word: str) -> bool:
    bare = word.rstrip(_PUNCTUATION).lower()
    return not bare or bare in _OPEN
