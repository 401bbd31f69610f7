"""The log of a guard: a record a decision, read back, and summed up for a report."""

from __future__ import annotations

import collections
import dataclasses
import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa

from . import __version__, stats
from .errors import InputError

SCHEMA = "copyscope.guard_log/1"
SHOWN = 500
"""Most rows of the report's table, the last ones."""

TEXTS, REAL = pa.list_(pa.string()), pa.float64()
TABLE = pa.schema(
    {"call": pa.int64(), "row": pa.int64(), "attempt": pa.int64(), "rung": TEXTS, "prompt": pa.string()}
    | {"seed": pa.int64(), "score": REAL, "p_value": REAL, "match": pa.string(), "box": pa.list_(REAL)}
    | {"signals": pa.map_(pa.string(), REAL), "flagged": TEXTS, "copy": pa.bool_(), "look": REAL}
    | {"action": pa.string(), "seconds": REAL, "time": pa.string()}
)


@dataclasses.dataclass(frozen=True)
class Record:
    """What was decided about one try of one image.

    call, row, attempt: which, each from 0. rung: the mitigations of the try. prompt: as asked, its sha256 (hex) where
    the policy hashes, None where there was no text. seed: of the try, None where the guard gave none. score, p_value,
    match, box: of the training image it is most like, as in a Hit. signals: scores by spec, None where there is none.
    flagged: the signals above their line. copy: whether it was taken for one. look: share of the steps after which it
    was judged and stopped, None = finished. action: "delivered", "redone" or "refused". seconds: of the try, its
    look-up included, of all images that it made. time: of the decision, ISO 8601 in UTC.
    """

    call: int
    row: int
    attempt: int
    rung: tuple[str, ...]
    prompt: str | None
    seed: int | None
    score: float | None
    p_value: float | None
    match: str | None
    box: tuple[float, ...] | None
    signals: Mapping[str, float | None]
    flagged: tuple[str, ...]
    copy: bool
    look: float | None
    action: str
    seconds: float
    time: str

    def as_dict(self) -> dict[str, Any]:
        """Plain values for JSON: a line of the log."""
        return {"schema": SCHEMA} | dataclasses.asdict(self)


def read_log(path: str | os.PathLike[str]) -> list[Record]:
    """The records of a log. Raises InputError where it is none; a last line that was not written whole is left out."""
    names = [field.name for field in dataclasses.fields(Record)]
    try:
        *lines, _ = Path(path).read_text(encoding="utf-8").split("\n")
        rows: list[dict[str, Any]] = [json.loads(line) for line in lines]
        if any(row["schema"] != SCHEMA for row in rows):
            raise ValueError
        for row in rows:
            row |= {name: tuple(row[name]) for name in ("rung", "flagged", "box") if row[name] is not None}
        return [Record(**{name: row[name] for name in names}) for row in rows]
    except (OSError, ValueError, KeyError, TypeError):
        raise InputError(f"{path} is no log of a guard.\nGive a file that Guard(log=...) wrote") from None


def as_table(records: Sequence[Record]) -> pa.Table:
    """A row a record, its fields as columns; signals are a map of spec to score."""
    rows = [dataclasses.asdict(record) | {"signals": list(record.signals.items())} for record in records]
    return pa.Table.from_pylist(rows, TABLE)


@dataclasses.dataclass(frozen=True)
class Report:
    """What `report.guard` is given. summary: plain values: numbers of images, Estimates of rates, rungs, and the last
    records of images that were made again, refused or flagged."""

    summary: dict[str, Any]
    tables: dict[str, Any] = dataclasses.field(default_factory=dict)


def summed_up(records: Sequence[Record]) -> Report:
    """Counts over a log. An image counts once it was delivered or refused."""
    actions = collections.Counter(record.action for record in records)
    n = actions["delivered"] + actions["refused"]
    firsts = [record for record in records if record.attempt == 0]
    rungs: dict[tuple[bool, tuple[str, ...]], list[Record]] = collections.defaultdict(list)
    for record in records:
        rungs[record.attempt == 0, record.rung].append(record)
    told = [record for record in records if record.copy or record.attempt or record.flagged]
    rows = [
        {
            "rung": "first try" if first else ", ".join(rung) or "another seed",
            "tries": len(tried),
            "passed": stats.proportion(sum(not each.copy for each in tried), len(tried)).as_dict(),
        }
        for (first, rung), tried in rungs.items()
    ]
    refused = stats.proportion(actions["refused"], n)
    copies = stats.proportion(sum(record.copy for record in firsts), len(firsts))
    summary = {
        "schema": SCHEMA,
        "copyscope": __version__,
        "sentence": f"Of {n} images asked for, {actions['delivered']} were handed out, {actions['refused']} refused.",
        "n_images": n,
        "n_tries": len(records),
        "n_stopped": sum(record.look is not None for record in records),
        "n_flagged": sum(bool(record.flagged) for record in records),
        "first_copies": copies.as_dict(),
        "refused": refused.as_dict(),
        "rungs": rows,
        "since": min((record.time for record in records), default=None),
        "until": max((record.time for record in records), default=None),
        "records": [record.as_dict() for record in told[-SHOWN:]],
        "n_records": len(told),
    }
    return Report(summary)
