"""Account of an opened corpus: images, errors, captions and where from, and every file that was not used, and why."""

from __future__ import annotations

import dataclasses
import posixpath
from collections.abc import Iterable, Mapping
from typing import Annotated, TypedDict

import pyarrow as pa
import pyarrow.compute as pc

from .folders.names import CONFIGURATIONS, looks_like, suffix_of
from .storage import readable

MOST_NAMES = 20
"""Names of files that are kept of each reason; counts are exact."""
MOST_KINDS = 50
"""Kinds of errors, reasons and sources of captions; those beyond are counted together."""
_NAME = 200
_OTHER = "other"
NO_IMAGE = "no image has this name"
_DEFAULTS = {"captions": NO_IMAGE, "metadata": "no captions in it", "images": "not opened: name it to read it"}
"""Why a file was not used, by what it looks like, where nothing else is known."""
_CONFIGURATION = "if it is a trainer's configuration, name the file itself"


class ErrorCount(TypedDict):
    """Images that cannot be read for one kind of reason."""

    kind: Annotated[str, "kind of error"]
    n: Annotated[int, "images"]


class SourceCount(TypedDict):
    """Images whose captions come from one place."""

    source: Annotated[str, "where captions come from"]
    n: Annotated[int, "images"]


class UnusedFiles(TypedDict):
    """Files that were not used for one reason."""

    why: Annotated[str, "reason"]
    n: Annotated[int, "files"]
    first: Annotated[list[str], "the first 20 names"]


class SplitCount(TypedDict):
    """Rows of a split."""

    split: Annotated[str, "name"]
    n: Annotated[int, "rows"]


class AccountSummary(TypedDict):
    """What became of all that lay in a set."""

    line: Annotated[str, "the account in a line"]
    warning: Annotated[str, "what is to be said first, or nothing"]
    n: Annotated[int, "rows"]
    errors: Annotated[list[ErrorCount], "rows that cannot be read, by kind of error"]
    n_captioned: Annotated[int, "readable rows with a caption"]
    captions_from: Annotated[list[SourceCount], "where captions come from"]
    n_unused: Annotated[int, "files that look like images, captions or metadata and were not used"]
    unused: Annotated[list[UnusedFiles], "these files by reason"]
    split: Annotated[str | None, "the split that was read; null where there are none"]
    splits: Annotated[list[SplitCount], "the splits that are there"]
    notes: Annotated[list[str], "what else is to be said"]


class SetAccount(AccountSummary):
    """The account of one of several sets."""

    set: Annotated[str, "`generated`, `train`, `held_out` or `control`"]


@dataclasses.dataclass
class Unused:
    """Files that were not used for one reason: how many, how many of these look like captions, the first names."""

    n: int = 0
    n_captions: int = 0
    names: list[str] = dataclasses.field(default_factory=list)


@dataclasses.dataclass
class Account:
    """What became of all that lies in a corpus.

    Args:
        n: rows.
        errors: kind of error -> rows.
        n_captioned: rows without an error that have a caption.
        sources: where captions come from -> images.
        unused: reason -> files that look like images, captions or metadata and were not used.
        split: the one that was read, or None.
        splits: rows of each that was there.
        notes: what else is to be said.
    """

    n: int = 0
    errors: dict[str, int] = dataclasses.field(default_factory=dict)
    n_captioned: int = 0
    sources: dict[str, int] = dataclasses.field(default_factory=dict)
    unused: dict[str, Unused] = dataclasses.field(default_factory=dict)
    split: str | None = None
    splits: dict[str, int] = dataclasses.field(default_factory=dict)
    notes: list[str] = dataclasses.field(default_factory=list)

    def pass_over(self, path: str, why: str) -> None:
        """A file that was not used."""
        if why not in self.unused and len(self.unused) >= MOST_KINDS:
            why = _OTHER
        entry = self.unused.setdefault(why, Unused())
        entry.n += 1
        entry.n_captions += looks_like(path) in ("captions", "metadata")
        if len(entry.names) < MOST_NAMES:
            entry.names.append(readable(path)[:_NAME])

    def pass_over_all(self, paths: Iterable[str], why: Mapping[str, str], otherwise: str = "") -> None:
        """Files that were not used, those that look like images, captions or metadata; `why` of some is known."""
        for path in paths:
            if kind := looks_like(path):
                configured = _CONFIGURATION if suffix_of(path) in CONFIGURATIONS else _DEFAULTS[kind]
                self.pass_over(path, why.get(path) or otherwise or configured)

    def count(self, table: pa.Table) -> None:
        """Counts the rows of a corpus, as they are when it has been opened."""
        self.n = table.num_rows
        errors = table["error"]
        fine = pc.is_null(errors)
        has_caption = pc.greater(pc.fill_null(pc.list_value_length(table["captions"]), 0), 0)
        self.n_captioned = int(pc.sum(pc.and_(has_caption, fine)).as_py() or 0)
        kinds: dict[str, int] = {}
        for each in pc.value_counts(errors.drop_null().combine_chunks()).to_pylist():
            kind = kind_of(each["values"])
            kind = kind if kind in kinds or len(kinds) < MOST_KINDS else _OTHER
            kinds[kind] = kinds.get(kind, 0) + each["counts"]
        self.errors = dict(sorted(kinds.items(), key=lambda each: (-each[1], each[0])))
        self.sources = dict(sorted(self.sources.items(), key=lambda each: (-each[1], each[0]))[:MOST_KINDS])
        self.notes = self.notes[:MOST_NAMES]

    @property
    def n_unused(self) -> int:
        """Files that look like images, captions or metadata and were not used."""
        return sum(entry.n for entry in self.unused.values())

    @property
    def warning(self) -> str:
        """What is to be said before all else: most images have no caption, and files lie about that may hold them."""
        readable_rows = self.n - sum(self.errors.values())
        idle = {why: entry for why, entry in self.unused.items() if entry.n_captions}
        if not idle or 2 * self.n_captioned >= readable_rows:
            return ""
        n = sum(entry.n_captions for entry in idle.values())
        said = "; ".join(f"{_names(entry)}: {why}" for why, entry in list(idle.items())[:3])
        return (
            f"only {self.n_captioned:,} of {readable_rows:,} images have captions, and {n:,} files that may hold some "
            f"were not used ({said})"
        )

    def line(self) -> str:
        """The account in one line."""
        parts = [f"{self.n:,} image{'s' * (self.n != 1)}" + (f" of the split {self.split!r}" if self.split else "")]
        if self.errors:
            parts.append(f"{sum(self.errors.values()):,} with an error ({_counts(self.errors)})")
        sources = f" ({_counts(self.sources)})" if self.sources else ""
        parts.append(f"captions for {self.n_captioned:,}{sources}" if self.n_captioned else "no captions")
        if self.unused:
            reasons = [f"{_names(entry)}: {why}" for why, entry in list(self.unused.items())[:4]]
            more = [f"{len(self.unused) - 4} more reasons"] if len(self.unused) > 4 else []
            parts.append(f"{self.n_unused:,} files not used ({'; '.join(reasons + more)})")
        return "; ".join(parts + self.notes[:3])

    def summary(self) -> AccountSummary:
        """The account as plain values for JSON."""
        return {
            "line": self.line(),
            "warning": self.warning,
            "n": self.n,
            "errors": [{"kind": kind, "n": n} for kind, n in self.errors.items()],
            "n_captioned": self.n_captioned,
            "captions_from": [{"source": source, "n": n} for source, n in self.sources.items()],
            "n_unused": self.n_unused,
            "unused": [{"why": why, "n": entry.n, "first": entry.names} for why, entry in self.unused.items()],
            "split": self.split,
            "splits": [{"split": split, "n": n} for split, n in self.splits.items()],
            "notes": self.notes,
        }


def kind_of(error: str) -> str:
    """The kind of an error of a row: without the names and numbers that are of this row alone."""
    if error.startswith("listed in "):
        return "listed" + error[error.rfind(", but") :] if ", but" in error else "listed"
    return error.partition(":")[0][:_NAME]


def _names(entry: Unused) -> str:
    first = ", ".join(posixpath.basename(name.rstrip("/")) + "/" * name.endswith("/") for name in entry.names[:2])
    return first + (f" and {entry.n - 2:,} more" if entry.n > 2 else "")


def _counts(counts: Mapping[str, int]) -> str:
    shown = [f"{name} {n:,}" for name, n in list(counts.items())[:4]]
    return ", ".join(shown + ([f"{len(counts) - 4} more kinds"] if len(counts) > 4 else []))
