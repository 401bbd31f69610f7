"""Whether several scores, weighed as the verdict weighs them, find more copies than one score alone.

    python benchmarks/validity_scores.py /tmp/validity       after validity.py, which computes the pools

The corpora and draws are those of benchmarks/validity.py. A set has 20 copies of each kind of alteration among as many
unseen pictures; called are those that Benjamini and Hochberg's rule at 5 % rejects. The rules: the p-values of the
similarity score alone, of the combined score alone, twice the smaller of these two (Bonferroni), and the verdict's.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

import validity
import validity_draws as draws
import validity_pools as pools
from copyscope import stats
from copyscope.detection.verdict.verdict import FDR, _columns
from record import record

EACH = 20

Floats = NDArray[np.float64]


def rules(known: Floats) -> dict[str, Callable[[Floats], Floats]]:
    """Name -> function from scores [n d] to p-values [n] against calibration scores [m d]."""

    def alone(column: int) -> Callable[[Floats], Floats]:
        return lambda scores: stats.conformal_p_values(scores[:, column], known[:, column])

    similarity, combined = alone(0), alone(1)
    return {
        "similarity": similarity,
        "combined": combined,
        "smaller of two": lambda scores: np.minimum(1, 2 * np.minimum(similarity(scores), combined(scores))),
        "verdict": lambda scores: stats.conformal_p_values(scores, known),
    }


def counts(one: draws.Draw) -> dict[str, list[float]]:
    """By rule: copies called of each kind, then the share of the calls that is wrong."""
    rng = np.random.default_rng([one.seed, 3])
    known = _columns(one.held_out[~one.held_out_alike])
    copies = [_columns(scores[rng.permutation(len(scores))[:EACH]]) for scores in one.copies.values()]
    unseen = _columns(one.unseen[~one.unseen_alike])
    n = sum(len(each) for each in copies)
    scores = np.concatenate([*copies, unseen[rng.permutation(len(unseen))[:n]]])
    found = {}
    for name, rule in rules(known).items():
        called = stats.benjamini_hochberg(rule(scores), FDR)
        by_kind = np.split(called[:n], np.cumsum([len(each) for each in copies])[:-1])
        found[name] = [*(float(each.sum()) for each in by_kind), float(called[n:].sum() / max(1, called.sum()))]
    return found


def rows(corpus: str, protocol: str, split: str, found: list[dict[str, list[float]]]) -> list[dict[str, Any]]:
    """A row a rule: means over the draws with intervals, and how far each kind is from the similarity score alone."""
    alone = np.array([each["similarity"] for each in found])
    made = []
    for name in found[0]:
        values = np.array([each[name] for each in found])
        made.append(
            {
                "corpus": corpus,
                "protocol": protocol,
                "split": split,
                "rule": name,
                "called": stats.bootstrap(_mean, values[:, :-1].sum(axis=1)).as_dict(),
                "of": EACH * len(pools.KINDS),
                "fdr": stats.bootstrap(_mean, values[:, -1]).as_dict(),
                "by_kind": dict(zip(pools.KINDS, values[:, :-1].mean(axis=0).round(2).tolist(), strict=True)),
                "more_than_similarity": {
                    kind: stats.bootstrap(_mean, values[:, j] - alone[:, j]).as_dict()
                    for j, kind in enumerate(pools.KINDS)
                },
            }
        )
    return made


def _mean(values: Floats) -> float:
    return float(values.mean())


def main() -> None:
    """Runs every corpus and records what was found."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("work", type=Path, help="folder that validity.py was given")
    parser.add_argument("--only", nargs="+", default=list(validity.RUNS), metavar="CORPUS:PROTOCOL")
    asked = parser.parse_args()
    table = []
    for spec in asked.only:
        corpus, _, protocol = spec.partition(":")
        pool = pools.load(corpus, protocol, asked.work)
        for split in draws.splits(pool):
            found = [counts(draws.draw(pool, split, seed)) for seed in range(validity.RUNS[spec])]
            table += rows(corpus, protocol, split, found)
            print(f"{spec} {split}: {len(found)} draws", flush=True)
        pool.keep()
    record("validity-scores", {"draws": validity.RUNS, "rows": table})


if __name__ == "__main__":
    main()
