"""WeightedSampler and CaptionPolicy: which image is drawn with which caption."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence

import numpy as np
from numpy.typing import NDArray
from torch.utils.data import Sampler

from copyscope.data.corpus import Corpus
from copyscope.errors import InputError

# Streams of random numbers of one seed: which rows, which captions, crops and flips, noise, which rows to sample.
ROWS, CAPTIONS, CROPS, NOISE, SAMPLES = range(5)


def stream(seed: int, kind: int, *place: int) -> np.random.Generator:
    """Generator of one kind of draws at one place: a step, or an epoch and a row."""
    return np.random.default_rng(np.random.SeedSequence([seed, kind, *place]))


@dataclasses.dataclass(frozen=True, eq=False)
class CaptionPolicy:
    """Caption of a draw: the first of the image's, or any of them, anew each time.

    Args:
        captions: of each row [n], at least one each.
        fresh: bool [n], draw any; true for partially duplicated images, whose picture repeats while its caption varies
            (Somepalli et al. 2023, section 4).
    """

    captions: Sequence[Sequence[str]]
    fresh: NDArray[np.bool_]

    @staticmethod
    def from_corpus(corpus: Corpus) -> CaptionPolicy:
        """Policy by the column `duplication`, which `curate.duplicate` adds; without it the first caption always.

        Args:
            corpus: the images.

        Returns:
            The policy.
        """
        kinds = corpus.table["duplication"].to_pylist() if "duplication" in corpus.table.column_names else [""]
        fresh = np.broadcast_to(np.array([kind == "partial" for kind in kinds]), len(corpus))
        return CaptionPolicy([captions or [""] for captions in corpus.captions], fresh)

    def __call__(self, row: int, rng: np.random.Generator) -> str:
        """Caption of one draw.

        Args:
            row: of the image.
            rng: draws.

        Returns:
            The caption.
        """
        captions = self.captions[row]
        return captions[int(rng.integers(len(captions)))] if self.fresh[row] else captions[0]

    def all_of(self, row: int) -> Sequence[str]:
        """Captions that a draw of a row can give.

        Args:
            row: of the image.

        Returns:
            The captions.
        """
        return self.captions[row] if self.fresh[row] else self.captions[row][:1]


class WeightedSampler(Sampler[int]):
    """Sampler of rows with replacement, each in proportion to its weight: for `DataLoader(sampler=...)`.

    With replacement in every case, equal weights included, so that arms of an experiment differ in weight alone. Each
    iteration is the next epoch, and `set_epoch` says which comes next. `rows` are those that can be drawn.

    Args:
        weights: [n], at least 0, some above.
        n_draws: draws an epoch; None = n.
        seed: of the draws.

    Raises:
        InputError: the weights are no such numbers.
    """

    def __init__(
        self, weights: Sequence[float] | NDArray[np.float64], n_draws: int | None = None, *, seed: int = 0
    ) -> None:
        given = np.asarray(weights, dtype=np.float64)
        if given.ndim != 1 or not np.isfinite(given).all() or (given < 0).any() or not given.sum() > 0:
            raise InputError("Weights must be numbers of 0 or more, some above 0.\nSee the column `weight`")
        # Rows of weight 0 are left out: a uniform number at the very end of the range must not find one.
        self.rows = np.flatnonzero(given)
        self._ends = np.cumsum(given[self.rows]) / given.sum()
        self.n_draws, self.seed, self.epoch = n_draws or len(given), seed, 0

    @staticmethod
    def from_corpus(corpus: Corpus, n_draws: int | None = None, *, seed: int = 0) -> WeightedSampler:
        """Sampler by the column `weight`; rows with an `error` are never drawn.

        Args:
            corpus: the images.
            n_draws: draws an epoch; None = one a row.
            seed: of the draws.

        Returns:
            The sampler.

        Raises:
            InputError: no row can be drawn.
        """
        readable = [error is None for error in corpus.table["error"].to_pylist()]
        if not any(readable):
            raise InputError(f"No image of {corpus.origin} can be read.\nIts column `error` says why")
        weights = np.array(corpus.table["weight"].to_pylist(), dtype=np.float64)
        return WeightedSampler(weights * np.array(readable), n_draws, seed=seed)

    def set_epoch(self, epoch: int) -> None:
        """Set the epoch of the next iteration.

        Args:
            epoch: from 0.
        """
        self.epoch = epoch

    def __len__(self) -> int:
        return self.n_draws

    def __iter__(self) -> Iterator[int]:
        self.epoch += 1
        return iter(self.draw(self.epoch - 1, self.n_draws).tolist())

    def draw(self, step: int, n: int) -> NDArray[np.int64]:
        """Rows of a step or an epoch; the same each time it is asked.

        Args:
            step: number of the step or epoch.
            n: how many.

        Returns:
            [n].
        """
        found = np.searchsorted(self._ends, stream(self.seed, ROWS, step).random(n), side="right")
        return self.rows[np.minimum(found, len(self.rows) - 1)]
