"""Nearest-neighbour memorization tests of the literature, and each by near-duplicate group.

All look at the distance d of unit vectors, sqrt(2 - 2 * similarity), in the descriptor's space; their authors look at
pixels or at features of their own. As stated they go blind on exactly the images that are duplicated: the
second-nearest neighbour of a copy is then the duplicate of its source.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from copyscope import stats
from copyscope.detection.dedup.groups import Groups
from copyscope.detection.matching.match import Matches
from copyscope.detection.search.ivf import nearest
from copyscope.stats import Floats


def distance(score: Floats) -> Floats:
    """Euclidean distance of unit vectors from their inner product."""
    return np.sqrt(np.maximum(2 - 2 * np.asarray(score, dtype=np.float64), 0))


def ratio_test(first: Floats, second: Floats, bound: float = 1 / 3) -> NDArray[np.bool_]:
    """Ratio test d1 / d2 < 1/3: nearest against second-nearest training image (Yoon et al. 2023; Gu et al. 2023).

    Blind where the second is a duplicate of the first.

    Args:
        first: similarity [n] to the nearest.
        second: similarity [n] to the second-nearest.
        bound: of the ratio.
    """
    return distance(first) < bound * distance(second)


def authenticity_test(first: Floats, match_neighbour: Floats) -> NDArray[np.bool_]:
    """Authenticity test: nearer to its training image than that is to any other training image (Alaa et al. 2022).

    Args:
        first: similarity [n] to the match.
        match_neighbour: similarity [n] of the match to its own nearest neighbour.
    """
    return distance(first) < distance(match_neighbour)


def neighbourhood_test(scores: Floats, alpha: float = 0.5) -> NDArray[np.bool_]:
    """Calibrated l2 test of Carlini et al. 2023: d1 < alpha * mean distance to the n nearest (n = 50 in the paper).

    Blind where the image stands in the set more than k times.

    Args:
        scores: similarities [n k] to the k nearest, best first.
        alpha: bound of the ratio.
    """
    found = distance(scores)
    flagged: NDArray[np.bool_] = found[:, 0] < alpha * found.mean(axis=1)
    return flagged


@dataclasses.dataclass(frozen=True)
class ClassicalTest:
    """One classical test on the generated images.

    Attributes:
        name: of the test.
        reference: the paper.
        flagged: bool [n], as stated in the paper.
        flagged_by_group: bool [n], with near-duplicate groups in the place of images; None where there is no such form.
    """

    name: str
    reference: str
    flagged: NDArray[np.bool_]
    flagged_by_group: NDArray[np.bool_] | None

    def summary(self, copied: NDArray[np.bool_], group_size: NDArray[np.int64]) -> dict[str, Any]:
        """Summary: share flagged, and how many of our copies it sees by the size of the copied image's group.

        Args:
            copied: bool [n], our copies.
            group_size: [n], of each query's match.
        """
        by_size = []
        for name, inside in SIZES.items():
            those = copied & inside(group_size)
            by_group = None if self.flagged_by_group is None else int((self.flagged_by_group & those).sum())
            by_size.append(
                {
                    "size": name,
                    "n_copies": int(those.sum()),
                    "seen": int((self.flagged & those).sum()),
                    "seen_group_aware": by_group,
                }
            )
        n = len(copied)
        aware = self.flagged_by_group
        return {
            "name": self.name,
            "reference": self.reference,
            "flagged": stats.proportion(int(self.flagged.sum()), n).as_dict(),
            "flagged_group_aware": None if aware is None else stats.proportion(int(aware.sum()), n).as_dict(),
            "by_group_size": by_size,
            "note": "",
        }


Sizes = NDArray[np.int64]
SIZES: dict[str, Callable[[Sizes], NDArray[np.bool_]]] = {
    "1": lambda size: size == 1,
    "2": lambda size: size == 2,
    "3-5": lambda size: (size >= 3) & (size <= 5),
    "6+": lambda size: size >= 6,
}


def classical_tests(matches: Matches, groups: Groups) -> list[ClassicalTest]:
    """Nearest-neighbour memorization tests of the literature on every readable query, as stated and by group.

    Yoon et al. 2023, Alaa et al. 2022 and Carlini et al. 2023; none where the training set is too small for a second
    neighbour.
    """
    index, scores = matches.by_descriptor.index, matches.by_descriptor.score
    if len(index) == 0 or index.shape[1] < 2 or (index[:, 1] < 0).any():
        return []
    reached = int((index >= 0).sum(axis=1).min())
    train, cells = matches.references.vectors, matches.references.cells
    distinct, inverse = np.unique(index[:, 0], return_inverse=True)

    def neighbour(labels: NDArray[np.int64]) -> Floats:
        """Similarity of each match to its own nearest neighbour of another label; -1 where there is none."""
        found = nearest(train[distinct], train, 1, cells, query_labels=labels[distinct], reference_labels=labels)
        scores: Floats = np.maximum(found.score[inverse, 0], -1)
        return scores

    alone = np.arange(len(train), dtype=np.int64)
    own = groups.label[index[:, 0]]
    queries = matches.queries.vectors
    other = nearest(queries, train, 1, cells, query_labels=own, reference_labels=groups.label).score[:, 0]
    other = np.maximum(other, -1)
    return [
        ClassicalTest(
            "ratio d1/d2 < 1/3",
            "Yoon et al. 2023; Gu et al. 2023",
            ratio_test(scores[:, 0], scores[:, 1]),
            ratio_test(scores[:, 0], other),
        ),
        ClassicalTest(
            "not authentic",
            "Alaa et al. 2022",
            authenticity_test(scores[:, 0], neighbour(alone)),
            authenticity_test(scores[:, 0], neighbour(groups.label)),
        ),
        ClassicalTest(
            f"neighbourhood l2 (n={reached}, a=0.5)",
            "Carlini et al. 2023",
            neighbourhood_test(scores[:, :reached]),
            None,
        ),
    ]
