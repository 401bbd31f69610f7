"""Robustness check of a mitigation: are copies gone, or only harder to get?

For prompts whose image the first listed arm copied and another arm did not, that arm, mitigations and all, is asked
again in three ways: with other noise, in other words, and with noise on the prompt's embedding. **Several tries raise
the chance of a copy**: with nothing but luck between the arms, an arm that copies a prompt's image in a share p of its
images regains it in 1 - (1 - p)^k of k tries. So a share regained says that copies can be had again, and is compared
between arms of as many tries, never with a replication rate.
"""

from __future__ import annotations

import dataclasses
import shutil
import time
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa

from copyscope.curation import captions
from copyscope.data.corpus import Corpus
from copyscope.documents import read_json
from copyscope.machine import Progress
from copyscope.stats import Estimate, proportion

from . import arm as arms
from . import outcomes
from .plan import NOISE, Arm

#: Measure -> what it is, for reports.
MEASURES = {
    "copies_regained": "of prompts whose image the first arm copied and this one did not, those copied in a recheck",
    "copies_regained_by_seed": "the same, of tries with other noise",
    "copies_regained_by_paraphrase": "the same, of tries in other words",
    "copies_regained_by_noise": "the same, of tries with noise on the prompt's embedding",
}
KINDS = ("seed", "paraphrase", "noise")
SEEDS, WORDS = 11, 12
"""Streams of the sampling seed that the noise of the tries and their paraphrases are drawn from."""

Prompt = tuple[str, str]
"""A training image's id, and its caption that was the prompt."""


def due(arm: Arm) -> bool:
    """Whether an arm is to be rechecked and can be: it and the one it is compared with are finished."""
    if not arm.audit.recheck or arm.first is None:
        return False
    if finished(arm) is not None:
        return False
    return all((folder / "arm.json").is_file() for folder in (arm.folder, arm.first))


def finished(arm: Arm) -> dict[str, Any] | None:
    """Values of `recheck.json`; None where there is none, or one by comparison with another arm."""
    path = arm.folder / "recheck.json"
    found = read_json(path) if arm.first and path.is_file() else None
    return found if found and arm.first and found["first"] == arm.first.name else None


def recheck_arm(arm: Arm, progress: Progress | None = None) -> None:
    """Recheck an arm if it is due: write `recheck.json`, and `recheck.parquet` with a row a try; images made are kept.

    An error is written to `recheck-failed.json`, and the recheck tried again next time.
    """
    if not due(arm):
        return
    (arm.folder / "recheck-failed.json").unlink(missing_ok=True)
    try:
        found = _recheck(arm, arms.prefixed_progress(arm, progress))
    except Exception as error:  # as in `arms.run_arm`
        arms.write(arm.folder / "recheck-failed.json", {"error": arms.failure(error)})
    else:
        arms.write(arm.folder / "recheck.json", found)


def lost(first: pa.Table, second: pa.Table, most: int) -> list[Prompt]:
    """Prompts whose image the first arm copied and the second did not.

    A copy is what is beyond the line that is one for all arms. An image that is the prompt of several generated ones
    counts as copied once one of them copies it or its group. Of unreadable ones nobody knows.

    Args:
        first: outcomes of one arm.
        second: outcomes of the other.
        most: how many prompts at most, in the order of the first arm: nobody has chosen them.
    """
    rows = second.to_pylist()
    kept = {row["source_id"] for row in rows if row["beyond"] and row["own"]}
    seen = {row["source_id"] for row in rows if row["beyond"] is not None}
    found: dict[str, str] = {}
    for row in first.to_pylist():
        if row["beyond"] and row["own"] and row["source_id"] in seen - kept:
            found.setdefault(row["source_id"], row["prompt"])
    return list(found.items())[:most]


def tries(prompts: Sequence[Prompt], attempts: int, seed: int) -> dict[str, list[Prompt]]:
    """Prompts that are tried, by kind, in order: `attempts` a prompt, fewer where there are no more paraphrases."""
    again = [prompt for prompt in prompts for _ in range(attempts)]
    reworded = []
    for row, (source, caption) in enumerate(prompts):
        rng = np.random.default_rng(np.random.SeedSequence([seed, WORDS, row]))
        reworded += [(source, words) for words in captions.paraphrases(caption, attempts, rng)]
    return {"seed": again, "paraphrase": reworded, "noise": again}


def regained(rows: Iterable[Mapping[str, Any]], kinds: Sequence[str] = KINDS) -> Estimate:
    """Share of the prompts tried for which a try of these kinds is a copy of the prompt's image or its group.

    Exact binomial over prompts; one without a copy but with an unreadable try is missing, and counts against the model.

    Args:
        rows: `kind`, `source_id` and `regained` of each try, null where it cannot be read.
        kinds: that count.
    """
    found: dict[str, list[bool | None]] = {}
    for row in rows:
        if row["kind"] in kinds:
            found.setdefault(row["source_id"], []).append(row["regained"])
    hits = sum(True in tried for tried in found.values())
    missing = sum(True not in tried and None in tried for tried in found.values())
    return proportion(hits, len(found) - missing, missing=missing)


def _recheck(arm: Arm, progress: Progress | None) -> dict[str, Any]:
    from copyscope.detection.results import write_table

    assert arm.first is not None
    began = time.monotonic()
    prompts = lost(outcomes.read(arm.first), outcomes.read(arm.folder), arm.audit.recheck)
    asked = {"first": arm.first.name, "prompts": [list(prompt) for prompt in prompts]}
    if not (begun := arm.folder / "recheck" / "asked.json").is_file() or read_json(begun) != asked:
        # Made of the prompts of another comparison.
        shutil.rmtree(begun.parent, ignore_errors=True)
        begun.parent.mkdir()
        arms.write(begun, asked)
    rows = _judged(arm, prompts, progress) if prompts else []
    write_table(arm.folder, "recheck", pa.Table.from_pylist(rows, SCHEMA))
    estimates = {"copies_regained": regained(rows)}
    estimates |= {f"copies_regained_by_{kind}": regained(rows, [kind]) for kind in KINDS}
    return {
        "first": arm.first.name,
        "n_prompts": len(prompts),
        "n_tries": len(rows),
        "seconds": round(time.monotonic() - began, 1),
        "estimates": {name: estimate.as_dict() for name, estimate in estimates.items()},
    }


SCHEMA = pa.schema(
    {name: pa.string() for name in ("id", "kind", "source_id", "prompt", "match")}
    | {"similarity": pa.float64(), "combined": pa.float64(), "own": pa.bool_(), "regained": pa.bool_()}
)


def _judged(arm: Arm, prompts: Sequence[Prompt], progress: Progress | None) -> list[dict[str, Any]]:
    """A row a try, with whether it is a copy of the prompt's image or its group."""
    made = {kind: _generated(arm, kind, asked, progress) for kind, asked in
            tries(prompts, arm.audit.attempts, arm.sample.seed).items() if asked}  # fmt: skip
    named = [
        corpus.with_column("id", [f"{kind}/{name}" for name in corpus.ids]).table.select(COLUMNS)
        for kind, corpus in made.items()
    ]
    one = next(iter(made.values()))
    together = Corpus(pa.concat_tables(named).combine_chunks(), str(arm.folder / "recheck"), one.kind)
    table = arms.outcomes_of(arm, arms.audited(arm, together, progress), together)
    rows = []
    for row in table.to_pylist():
        regained = None if row["beyond"] is None else bool(row["beyond"] and row["own"])
        rows.append(row | {"kind": row["id"].partition("/")[0], "regained": regained})
    return rows


COLUMNS = [
    "id", "image", "captions", "weight", "sha256", "width", "height", "error", "prompt", "seed", "source_id",
]  # fmt: skip


def _generated(arm: Arm, kind: str, asked: Sequence[Prompt], progress: Progress | None) -> Corpus:
    """Images of the arm's run under its own mitigations; the k-th of each kind begins from the same noise."""
    from copyscope.diffusion.generate import generate
    from copyscope.nearest_image import nearest

    mitigations = (NOISE, *arm.sample.mitigations) if kind == "noise" else arm.sample.mitigations
    seed = int(np.random.SeedSequence([arm.sample.seed, SEEDS]).generate_state(1)[0])
    recipe = dataclasses.replace(arm.sample, n_images=len(asked), seed=seed, prompts="", mitigations=mitigations)
    return generate(
        arm.run,
        arm.folder / "recheck" / kind,
        recipe,
        captions=[caption for _, caption in asked],
        ids=[source for source, _ in asked],
        nearest=nearest(arm.images / "train"),
        trust_parts=arms.is_trained_by(arm),
        progress=progress,
    )
