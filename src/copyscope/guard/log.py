"""Log of a guard's decisions, and its summary."""

from __future__ import annotations

import collections
import dataclasses
import json
import math
import os
import re
import stat
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

import pyarrow as pa

from copyscope import stats
from copyscope._version import __version__
from copyscope.documents import parse_json
from copyscope.errors import InputError

SCHEMA, OLD_SCHEMA = "copyscope.guard_log/2", "copyscope.guard_log/1"
START = re.compile(rb'{"schema": "copyscope\.guard_log/[12]"')
"""How a line begins; no text in a line has it, since its quotes are escaped there."""
SHOWN = 500
"""Most rows of the report's table, the last ones."""

TEXTS, REAL = pa.list_(pa.string()), pa.float64()
TABLE = pa.schema(
    {"call": pa.int64(), "row": pa.int64(), "attempt": pa.int64(), "rung": TEXTS, "prompt": pa.string()}
    | {
        "seed": pa.int64(),
        "score": REAL,
        "combined": REAL,
        "p_value": REAL,
        "match": pa.string(),
        "box": pa.list_(REAL),
    }
    | {"signals": pa.map_(pa.string(), REAL), "flagged": TEXTS, "copy": pa.bool_(), "look": REAL}
    | {"action": pa.string(), "seconds": REAL, "time": pa.string()}
)


@dataclasses.dataclass(frozen=True)
class Record:
    """What was decided about one try of one image.

    Args:
        call: number of the call, from 0.
        row: of the image in the call, from 0.
        attempt: number of the try, from 0.
        rung: the mitigations of the try.
        prompt: the caller's, its sha256 (hex) where the policy hashes; None where there was no text.
        seed: of the try; None where the guard gave none.
        score: of the training image it is most like, as in a Hit; None too where a log of version 1 is read, which has
            the combined score alone.
        combined: as in a Hit.
        p_value: as in a Hit.
        match: id of the training image.
        box: as in a Hit.
        signals: scores by spec; None where there is none.
        flagged: the signals above their line.
        copy: whether it was taken for one.
        look: share of the steps after which it was judged and stopped; None = finished.
        action: "delivered", "redone" or "refused".
        seconds: of the try, its look-up included, of all images that it made.
        time: of the decision, ISO 8601 in UTC.
    """

    call: Annotated[int, "number of the call of this guard, from 0; a guard made anew begins again"]
    row: Annotated[int, "place of the image in the call, from 0"]
    attempt: Annotated[int, "number of the try, from 0"]
    rung: Annotated[tuple[str, ...], "its mitigations; none in the first try, or with another seed alone"]
    prompt: Annotated[str | None, "as asked; its sha256 where the policy hashes; null where there was no text"]
    seed: Annotated[int | None, "of the try; null where the guard gave none"]
    score: Annotated[
        float | None,
        "descriptor similarity of the training image it is most like; null = there is none, or it was not logged "
        "(version 1)",
    ]
    combined: Annotated[float | None, "combined score of the two; null where the index gives none"]
    p_value: Annotated[float | None, "p-value of the combined score; null where the index gives none"]
    match: Annotated[str | None, "its id"]
    box: Annotated[tuple[float, ...] | None, "the part of the picture that is like it; null = the whole"]
    signals: Annotated[Mapping[str, float | None], "score of each signal, null where it has none"]
    flagged: Annotated[tuple[str, ...], "signals above their line"]
    copy: Annotated[bool, "whether it was taken for a copy"]
    look: Annotated[float | None, "share of the steps after which it was judged and stopped; null = finished"]
    action: Annotated[str, "`delivered`, `redone` or `refused`"]
    seconds: Annotated[float, "of the try, its look-up included, for all images that it made"]
    time: Annotated[str, "of the decision, ISO 8601 in UTC"]

    def as_dict(self) -> dict[str, Any]:
        """Plain values for JSON: a line of the log."""
        return {"schema": SCHEMA} | dataclasses.asdict(self)


@dataclasses.dataclass(frozen=True)
class Log:
    """A log that was read.

    Args:
        records: of the file.
        n_unreadable: lines that are not whole, as a full disk or a kill leaves them, or hold a value that no guard
            writes.
    """

    records: list[Record]
    n_unreadable: int = 0


def read_log(path: str | os.PathLike[str]) -> list[Record]:
    """Read the records of a log; lines that were not written whole are left out.

    Args:
        path: the JSONL file.

    Returns:
        The records, oldest first.

    Raises:
        InputError: the file cannot be read, or is no such log.
    """
    return load(path).records


def load(path: str | os.PathLike[str]) -> Log:
    """Read a log as `read_log`, and tell how many lines cannot be read.

    Args:
        path: the JSONL file.

    Returns:
        The log.

    Raises:
        InputError: the file cannot be read, or is no such log.
    """
    try:
        lines = [line for line in Path(path).read_bytes().split(b"\n") if line.strip(b"\0\r ")]
        records, n_unreadable = [], 0
        for line in lines:
            # A writer that does not know of a tear goes on with its line.
            begin = max((found.start() for found in START.finditer(line)), default=0)
            try:
                records.append(_record(_row(line[begin:])))
                n_unreadable += begin > 0
            except ValueError:
                n_unreadable += 1
        # Of a log whose first line was torn, that is all there is.
        start = json.dumps({"schema": SCHEMA}).encode()
        if lines and not records and not any(line.startswith(start[:12]) or start.startswith(line) for line in lines):
            raise ValueError
        return Log(records, n_unreadable)
    except (OSError, ValueError, KeyError, TypeError):
        raise InputError(f"{path} is no log of a guard.\nGive a file that Guard(log=...) wrote") from None


def append(path: Path, text: str) -> None:
    """Append whole lines to a log, on a line of their own even where the last writer was cut off.

    Raises:
        OSError: the file cannot be written.
    """
    data = text.encode()
    file = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | getattr(os, "O_CLOEXEC", 0), 0o666)
    try:
        if data and not _ends_whole(path, file):
            data = b"\n" + data
        # One write, if the system takes it whole: then the lines stay together whoever else writes.
        while data:
            data = data[os.write(file, data) :]
    finally:
        os.close(file)


def _ends_whole(path: Path, file: int) -> bool:
    """Whether what is there ends with a whole line."""
    there = os.fstat(file)
    if not stat.S_ISREG(there.st_mode) or there.st_size == 0:
        return True
    try:
        with open(path, "rb") as reader:
            reader.seek(-1, os.SEEK_END)
            return reader.read(1) == b"\n"
    except OSError:  # It may be written only: an empty line does no harm.
        return False


def _row(line: bytes) -> dict[str, Any]:
    """What a line says. Raises ValueError if it is torn, TypeError if it is another's."""
    row = parse_json(line)
    if not isinstance(row, dict) or row.get("schema") not in (SCHEMA, OLD_SCHEMA):
        raise TypeError
    if row["schema"] == OLD_SCHEMA:
        # Its `score` was the combined one where the hit was re-ranked, and so a p-value; else the similarity.
        known = row["p_value"] is not None
        row |= {"score": None, "combined": row["score"]} if known else {"combined": None}
    return row


def _record(row: dict[str, Any]) -> Record:
    """Record of a line. Raises ValueError where a value is none that a guard writes, KeyError where one is missing."""
    values = {name: row[name] for name in _KINDS}
    for name, value in values.items():
        if not _KINDS[name](value):
            raise ValueError(f"{name} cannot be {value!r:.100}")
    return Record(
        **values | {name: tuple(values[name]) for name in ("rung", "flagged", "box") if values[name] is not None}
    )


def _is_text(value: Any) -> bool:
    if isinstance(value, str):
        value.encode()  # half a character is a ValueError
    return isinstance(value, str)


def _is_whole(value: Any) -> bool:
    return type(value) is int and abs(value) < 2**63


def _is_real(value: Any) -> bool:
    return (type(value) is int and abs(value) <= 2**53) or (type(value) is float and math.isfinite(value))


def _or_none(kind: Callable[[Any], bool]) -> Callable[[Any], bool]:
    return lambda value: value is None or kind(value)


def _list_of(kind: Callable[[Any], bool]) -> Callable[[Any], bool]:
    return lambda value: isinstance(value, list) and all(map(kind, value))


def _is_scores(value: Any) -> bool:
    return isinstance(value, dict) and all(_is_text(key) and _or_none(_is_real)(each) for key, each in value.items())


_KINDS: dict[str, Callable[[Any], bool]] = {
    "call": _is_whole,
    "row": _is_whole,
    "attempt": _is_whole,
    "rung": _list_of(_is_text),
    "prompt": _or_none(_is_text),
    "seed": _or_none(_is_whole),
    "score": _or_none(_is_real),
    "combined": _or_none(_is_real),
    "p_value": _or_none(_is_real),
    "match": _or_none(_is_text),
    "box": _or_none(lambda value: _list_of(_is_real)(value) and len(value) == 4),
    "signals": _is_scores,
    "flagged": _list_of(_is_text),
    "copy": lambda value: isinstance(value, bool),
    "look": _or_none(_is_real),
    "action": _is_text,
    "seconds": _is_real,
    "time": _is_text,
}
"""Of each field of a Record, whether a value of JSON can be its."""


def as_table(records: Sequence[Record]) -> pa.Table:
    """Table with a row a record, its fields as columns; signals are a map of spec to score."""
    rows = [dataclasses.asdict(record) | {"signals": list(record.signals.items())} for record in records]
    return pa.Table.from_pylist(rows, TABLE)


@dataclasses.dataclass(frozen=True)
class Report:
    """A log in numbers, for `report.guard`.

    Attributes:
        summary: plain values: numbers of images, Estimates of rates, rungs, and the last records of images that were
            made again, refused or flagged.
        tables: none.
    """

    summary: dict[str, Any]
    tables: dict[str, Any] = dataclasses.field(default_factory=dict)


def summed_up(records: Sequence[Record], n_unreadable: int = 0) -> Report:
    """Sum up a log. An image counts once it was delivered or refused.

    Args:
        records: of the log.
        n_unreadable: lines of it that cannot be read.
    """
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
        "n_unreadable": n_unreadable,
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
