"""Exposure: how often the captions of a near-duplicate group were used as prompts.

A group of five images under five captions that were each a prompt once had five chances of being copied, an image that
stands alone one. Duplication and exposure can be told apart only where the prompts are known to be training captions.
"""

from __future__ import annotations

import dataclasses

import numpy as np
from numpy.typing import NDArray

from copyscope.detection.dedup.caption_overlap import normalise
from copyscope.detection.dedup.groups import Groups
from copyscope.detection.embedding.embeddings import Embeddings
from copyscope.detection.matching.match import Matches
from copyscope.machine import Progress

PIECE = 65_536
KNOWN = 0.5
"""Least share of the generated images whose prompt is a training caption, for the exposure to count as known."""


@dataclasses.dataclass(frozen=True, eq=False)
class Exposure:
    """How often each near-duplicate group was prompted, and how often that gave a copy.

    Attributes:
        images: [g], generated images whose prompt is a caption of the group.
        copies: [g], those of them that copy the group.
        n: readable generated images.
        n_matched: those whose prompt is a caption of any training image.
        n_other: copies of a group whose captions are not the prompt.
    """

    images: NDArray[np.int64]
    copies: NDArray[np.int64]
    n: int
    n_matched: int
    n_other: int

    @property
    def known(self) -> bool:
        """Whether enough prompts are training captions for the exposure to be known."""
        return self.n_matched > 0 and self.n_matched >= KNOWN * self.n

    def notes(self) -> list[str]:
        """Sentences on copies that the joint model does not see."""
        if not self.known or not self.n_other:
            return []
        copies, them = ("1 copy is", "it") if self.n_other == 1 else (f"{self.n_other} copies are", "them")
        return [f"{copies} of a training image whose caption was not the prompt: the joint model leaves {them} out."]

    def thinned(self, groups: int, rng: np.random.Generator) -> Exposure:
        """Keep all copies, and a random share of the other images.

        Each image is left out by chance alone, copies never: sampling by outcome, which leaves odds ratios of a
        logistic model as they are (Prentice & Pyke 1979).

        Args:
            groups: about so many groups without a copy are left.
            rng: draws.
        """
        others = self.images - self.copies
        free = others[(self.copies == 0) & (others > 0)]
        if len(free) <= groups:
            return self
        low, high = 0.0, 1.0
        for _ in range(50):
            share = (low + high) / 2
            low, high = (low, share) if (1 - (1 - share) ** free).sum() > groups else (share, high)
        return dataclasses.replace(self, images=self.copies + rng.binomial(others, low))


def exposure(matches: Matches, copied: NDArray[np.bool_], groups: Groups, progress: Progress | None = None) -> Exposure:
    """Count prompts by near-duplicate group; texts are compared as `caption_overlap.normalise` leaves them.

    A prompt that is a caption of several groups is a chance for each. All captions are read once, where there are
    prompts; only the prompts are held.

    Args:
        matches: of the generated images.
        copied: bool [n], which readable generated images are copies.
        groups: near-duplicate groups of the training images.
        progress: called with a label, the number done and the total.
    """
    prompts = matches.queries.corpus.prompts
    numbers: dict[str, int] = {}
    # Prompts of nothing but punctuation are none.
    prompt = np.array(
        [
            numbers.setdefault(text, len(numbers)) if (text := normalise(prompts[row])) else -1
            for row in matches.queries.rows
        ],
        np.int64,
    )
    times = np.bincount(prompt[prompt >= 0], minlength=len(numbers))
    width, n_groups = max(1, len(numbers)), len(groups.sizes)
    codes = _captioned(matches.references, groups, numbers, progress)
    group, caption = codes // width, codes % width
    images = np.bincount(group, times[caption], n_groups).astype(np.int64)
    own = np.flatnonzero(copied & (prompt >= 0))
    target = groups.label[matches.match[own]]
    target = target[np.isin(target * width + prompt[own], codes)]
    return Exposure(
        images,
        np.bincount(target, minlength=n_groups),
        len(prompt),
        int(times[np.unique(caption)].sum()),
        int(copied.sum()) - len(target),
    )


def _captioned(
    train: Embeddings, groups: Groups, numbers: dict[str, int], progress: Progress | None
) -> NDArray[np.int64]:
    """Group * len(numbers) + number, once for each group and each numbered text that is a caption of it."""
    found = [np.zeros(0, np.int64)]
    n = len(train.rows)
    if not numbers:
        return found[0]
    for start in range(0, n, PIECE):
        rows = train.corpus.pick("captions", train.rows[start : start + PIECE]).to_pylist()
        pairs = [
            (start + at, numbers[text])
            for at, row in enumerate(rows)
            for caption in row or ()
            if (text := normalise(caption)) in numbers
        ]
        image, number = np.array(pairs, np.int64).reshape(-1, 2).T
        found.append(np.unique(groups.label[image] * len(numbers) + number))
        if progress:
            progress("prompts", min(start + PIECE, n), n)
    return np.unique(np.concatenate(found))
