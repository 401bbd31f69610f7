"""Tables and summary of an audit, made of what it found."""

from __future__ import annotations

import dataclasses
import datetime
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute
from numpy.typing import NDArray

from copyscope._version import __version__
from copyscope.data.corpus import Corpus
from copyscope.detection.causes.causes import Causes
from copyscope.detection.dedup.groups import Groups
from copyscope.detection.embedding.embeddings import Embeddings
from copyscope.detection.embedding.protocols import Protocol
from copyscope.detection.matching.match import Matches
from copyscope.detection.matching.ncc import Verify
from copyscope.detection.verdict.baselines import classical_tests
from copyscope.detection.verdict.judge import Judgement
from copyscope.detection.verdict.repeated_outputs import Repeats
from copyscope.detection.verdict.verdict import dataset_similarity, similarity
from copyscope.imaging import images

from .results import accounts, failures, versions

SCHEMA = "copyscope.audit/1"
HISTOGRAM_ROWS = 20_000
MATCHES_KEPT = 10


@dataclasses.dataclass(frozen=True)
class AuditFindings:
    """What an audit found.

    Attributes:
        corpora: the sets as they were opened, by name: `generated`, `train`, and `held-out` or `control`.
        described: the same sets with their vectors.
        rules: the protocol.
        verify: the pixel comparison.
        groups: near-duplicate groups of the training images.
        judgement: verdict, matches and calibration.
        why: causes, advice and complexity.
        repeated: outputs that the model repeats.
        fdr: false discovery rate of the list of copies.
        seed: of the samples that are drawn.
    """

    corpora: dict[str, Corpus]
    described: dict[str, Embeddings]
    rules: Protocol
    verify: Verify
    groups: Groups
    judgement: Judgement
    why: Causes
    repeated: Repeats
    fdr: float
    seed: int

    @property
    def scores(self) -> dict[str, NDArray[np.float32] | None]:
        """Similarities of each series that a report draws; None where nothing calibrated."""
        calibrator = next((name for name in self.corpora if name not in ("generated", "train")), "held-out")
        compared = self.judgement.compared
        return {
            "generated": self.judgement.matches.similarity,
            "baseline": self.judgement.baseline.similarity,
            calibrator: compared.similarity if compared else None,
        }

    def tables(self) -> dict[str, pa.Table]:
        """The tables of the audit, but for its pictures."""
        return {
            "generated": _generated_table(self.judgement, self.groups, self.why),
            "matches": self.judgement.matches.table(MATCHES_KEPT),
            "groups": self.groups.table(),
            "risk": self.why.risk,
            "complexity": self.why.complexity,
            "histograms": _histograms(self.scores, self.seed),
            "failures": failures(self.described),
            "removed": pa.table({"id": pa.array(self.judgement.removed, pa.string())}),
            "look_alikes": self.judgement.look_alikes,
        }

    def summary(self, generated: pa.Table) -> dict[str, Any]:
        """The summary of the audit, but for what is measured besides: quality, search, recipe.

        Args:
            generated: the table of this name.
        """
        judged, matches, groups = self.judgement.verdict, self.judgement.matches, self.groups
        statistics = {
            name: similarity(scores[np.isfinite(scores)], self.rules.threshold)
            for name, scores in self.scores.items()
            if scores is not None
        }
        return {
            "schema": SCHEMA,
            "copyscope": __version__,
            "created": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
            "seconds": 0.0,
            # The verdict.
            "verdict": {key: getattr(judged, key) for key in ("answer", "sentence", "reasons", "needed")},
            "replication_rate": judged.rate.as_dict(),
            "estimated_rate": judged.estimated_rate.as_dict(),
            "sensitivity": {kind: each.as_dict() for kind, each in judged.sensitivity.items()} or None,
            "excess": judged.excess,
            "n_likeness": int(judged.likeness.sum()),
            "copies": _copies(generated),
            "calibration": _calibration_summary(self.judgement, self.fdr),
            # The images.
            "n_generated": len(self.corpora["generated"]),
            "n_train": len(self.corpora["train"]),
            "n_missing": self.described["generated"].n_missing,
            "n_missing_train": self.described["train"].n_missing,
            "n_blank": {
                name.replace("-", "_"): int(blank.sum()) if (blank := self.judgement.blank.get(name)) is not None else 0
                for name in ("generated", "held-out", "control")
            },
            "n_outside": sum(corpus.n_outside for corpus in self.corpora.values()),
            "accounts": accounts(self.corpora),
            "failures": {name: each.n_missing for name, each in self.described.items()},
            "frames": images.FRAMES,
            # What was measured of them.
            "similarity": _similarity_summary(statistics),
            "dataset_similarity": dataset_similarity(statistics, judged.answer),
            "repeated_outputs": self.repeated.as_dict(),
            "classical_tests": [
                test.summary(judged.copied, groups.sizes[groups.label[matches.match]])
                for test in classical_tests(matches, groups)
            ],
            "duplicates": groups.summary(),
            "findings": self.why.findings.as_dict(),
            # How.
            "protocol": {
                "name": self.rules.name,
                "descriptor": self.rules.descriptor,
                "threshold": self.rules.threshold,
                "duplicates": self.rules.duplicates,
                "verify": str(self.verify),
                "fingerprint": self.described["train"].fingerprint,
            },
        }

    def recipe(self, options: dict[str, Any]) -> dict[str, Any]:
        """What the audit was made of.

        Args:
            options: those that change the result.
        """
        origins = {name: corpus.origin for name, corpus in self.corpora.items()}
        return {
            "generated": origins["generated"],
            "train": origins["train"],
            "held_out": origins.get("held-out"),
            "control": origins.get("control"),
            "options": options,
            "versions": versions(),
            "seed": self.seed,
        }


def _generated_table(judgement: Judgement, groups: Groups, why: Causes) -> pa.Table:
    """One row an image of the generated corpus, unreadable ones included."""
    matches, judged = judgement.matches, judgement.verdict
    corpus, rows = matches.queries.corpus, matches.queries.rows
    position = np.full(len(corpus), -1, dtype=np.int64)
    position[rows] = np.arange(len(rows))
    unread = position < 0
    trained, at = matches.references, np.arange(len(rows))
    next_there = np.flatnonzero(matches.next_index >= 0)
    next_ids = trained.corpus.pick("id", trained.rows[matches.next_index[next_there]])
    next_at = np.zeros(len(rows), dtype=np.int64)
    next_at[next_there] = np.arange(len(next_there))

    def column(values: NDArray[Any], dtype: pa.DataType, absent: NDArray[np.bool_] | None = None) -> pa.Array:
        padded = np.zeros(len(corpus), dtype=values.dtype)
        padded[rows] = values
        mask = unread.copy()
        mask[rows] |= absent if absent is not None else np.zeros(len(rows), dtype=bool)
        if values.dtype.kind == "f":
            mask[rows] |= ~np.isfinite(values)
        return pa.array(padded, dtype, mask=mask)

    matched = trained.rows[matches.match]
    match_, next_ = column(at, pa.int64()), column(next_at, pa.int64(), matches.next_index < 0)
    prompts = corpus.prompts
    found = groups.sizes[groups.label[matches.match]] if len(rows) else np.zeros(0, np.int64)
    unknown = np.full(len(rows), np.nan, np.float32)
    registered, edged = (
        unknown if each is None else matches.of_best(each, unknown) for each in (matches.registered, matches.edged)
    )
    return pa.table(
        {
            "id": corpus.table["id"],
            "prompt": pa.array(prompts, pa.string()),
            "match": trained.corpus.pick("id", matched).take(match_),
            "match_captions": trained.corpus.pick("captions", matched).take(match_),
            **{name: column(values, pa.float32()) for name, values in matches.scores.items()},
            "registered": column(registered, pa.float32()),
            "edges": column(edged, pa.float32()),
            "similarity": column(matches.similarity, pa.float32()),
            "p_value": column(judged.p_values, pa.float64()),
            "copied": column(judged.copied, pa.bool_()),
            "likeness": column(judged.likeness, pa.bool_()),
            "blank": column(judgement.blank["generated"], pa.bool_()),
            "box": _boxes(matches, position),
            "group_size": column(found, pa.int64()),
            "next_match": next_ids.take(next_),
            "next_score": column(matches.next_score, pa.float32()),
            "why": pa.array([why.reasons.get(row) for row in position.tolist()], pa.string()),
            "error": corpus.table["error"],
        }
    )


def _boxes(matches: Matches, position: NDArray[np.int64]) -> pa.Array:
    """The part [x, y, width, height] that each match was found in; null where it is that of the whole."""
    found: list[list[float] | None] = [None] * len(position)
    if matches.parts is not None and matches.by_part is not None:
        for row in np.flatnonzero(position >= 0):
            if matches.by_part[position[row]]:
                found[row] = matches.parts.box[position[row]].tolist()
    return pa.array(found, pa.list_(pa.float32()))


def _copies(table: pa.Table) -> list[dict[str, Any]]:
    scores = ["score", "verified", "combined", "registered", "edges", "p_value"]
    keys = ["id", "match", *scores, "group_size", "prompt", "box"]
    copied = table.filter(pa.compute.fill_null(table["copied"], False)).select(keys)
    return list(copied.sort_by([("combined", "descending"), ("id", "ascending")]).to_pylist())


def _similarity_summary(statistics: dict[str, dict[str, Any]]) -> dict[str, Any]:
    def plain(found: dict[str, Any]) -> dict[str, Any]:
        values = {name: estimate.as_dict()["value"] for name, estimate in found.items()}
        return values | {
            "n": found["mean"].n,
            "estimates": {name: estimate.as_dict() for name, estimate in found.items()},
        }

    return plain(statistics["generated"]) | {
        "baseline": plain(statistics["baseline"]),
        "held_out": plain(statistics["held-out"]) if "held-out" in statistics else None,
        "control": plain(statistics["control"]) if "control" in statistics else None,
    }


def _calibration_summary(judgement: Judgement, fdr: float) -> dict[str, Any]:
    calibration = judgement.calibration
    return {
        "method": calibration.method,
        "n": len(calibration.scores),
        "n_removed": calibration.n_removed,
        "n_excluded": calibration.n_excluded,
        "n_look_alikes": len(judgement.look_alikes),
        "rule": calibration.rule,
        "fdr": fdr,
        "line": judgement.verdict.line,
        "differs": judgement.differs,
        "nearer_than_control": judgement.nearer.as_dict() if judgement.nearer else None,
        "sentence": calibration.sentence(fdr),
    }


def _histograms(series: dict[str, NDArray[np.float32] | None], seed: int) -> pa.Table:
    rng = np.random.default_rng(np.random.SeedSequence([seed, 2]))
    names, values = [], []
    for name, scores in series.items():
        if scores is not None:
            kept = scores[np.isfinite(scores)]
            kept = kept if len(kept) <= HISTOGRAM_ROWS else rng.choice(kept, HISTOGRAM_ROWS, replace=False)
            names += [name] * len(kept)
            values.append(kept)
    return pa.table({"series": pa.array(names, pa.string()), "score": pa.array(np.concatenate(values), pa.float32())})
