"""Decisions: verdicts of people on images and pairs of images, kept in a file, honoured with `--decisions`.

The file has one JSON object a line. A line is whole by itself: it is appended without reading the others, a broken one
costs no other, its number names it, and version control merges files line by line.
"""

from __future__ import annotations

import dataclasses
import itertools
import json
import os
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Annotated, Any, NotRequired, TypedDict

import numpy as np
import pyarrow as pa
import pyarrow.compute
from numpy.typing import NDArray

from copyscope.data.corpus import Corpus
from copyscope.documents import MAX_LINE, parse_json
from copyscope.errors import InputError, reason

VERDICTS = ("same", "different", "licensed", "ignore")
"""same: the images are one picture. different: no two of them are. licensed: a copy of one of them is no copy. ignore:
of one image: leave it out of groups and matches; of several: say nothing of any two of them."""
MOST_IMAGES = 1000
"""Of a decision: it is on every pair of them."""
PIECE = 65_536
Places = dict[tuple[int, int], list[int]]
"""Positions of images by number of decision and of its image."""
_SHA256 = re.compile(r"[0-9a-fA-F]{64}")
_KEYS = {"verdict", "images", "by", "when", "why"}


class DecisionError(TypedDict):
    """A line of a file of decisions that is none."""

    file: Annotated[str, "path as given"]
    line: Annotated[int, "its number, from 1"]
    error: Annotated[str, "why it is no decision"]


class DecisionsSummary(TypedDict):
    """What decisions did."""

    file: Annotated[str, "path as given"]
    n: Annotated[int, "decisions read"]
    same: Annotated[int, "of them, those with the verdict `same`"]
    different: Annotated[int, "of them, those with the verdict `different`"]
    licensed: Annotated[int, "of them, those with the verdict `licensed`"]
    ignore: Annotated[int, "of them, those with the verdict `ignore`"]
    n_unmatched: Annotated[int, "that name no image of this call"]
    n_apart: Annotated[int, 'pairs that were in one group, or a match, and are "different"']
    n_joined: Annotated[int, 'pairs that were in two groups and are "same"']
    n_licensed: Annotated[int, "matches with a licensed image; of `lint`, cards that were left out"]
    n_ignored: Annotated[int, "images in groups, pairs and matches that are to be ignored"]
    errors: Annotated[list[DecisionError], "lines that are no decision; in the table `failures` too"]
    sentence: Annotated[str, "all of this, in words"]


class Decided(TypedDict):
    """What decisions add to a summary."""

    decisions: NotRequired[Annotated[DecisionsSummary, "what the decisions did"]]


@dataclasses.dataclass(frozen=True)
class Named:
    """An image as a decision names it.

    By the digest of its file, so that it may be renamed; by id where there is no digest.
    """

    id: str | None
    sha256: str | None


@dataclasses.dataclass(frozen=True)
class Decision:
    """One verdict.

    Args:
        verdict: one of VERDICTS.
        images: one or more; "same" and "different" need two.
        by: who decided; for people, may be empty.
        when: likewise.
        why: likewise.
        line: in the file, from 1; 0 = not in one yet.
    """

    verdict: str
    images: tuple[Named, ...]
    by: str = ""
    when: str = ""
    why: str = ""
    line: int = 0

    def as_dict(self) -> dict[str, Any]:
        """As the file has it, without what is empty."""
        images = [{name: value for name, value in dataclasses.asdict(each).items() if value} for each in self.images]
        values = {"verdict": self.verdict, "images": images, "by": self.by, "when": self.when, "why": self.why}
        return {name: value for name, value in values.items() if value}


@dataclasses.dataclass
class Honoured:
    """What decisions did in one call.

    Args:
        found: lines that name images of it.
        n_apart: pairs that were in one group, or candidates of a match, and are not any more.
        n_joined: pairs put into one group.
        n_licensed: matches with a licensed image.
        n_ignored: images and pairs of which nothing is said, for "ignore".
        same: pairs of positions that are one picture, whatever their pixels say.
        emptied: ids of pictures all of whose matches were excused.
    """

    found: set[int] = dataclasses.field(default_factory=set)
    n_apart: int = 0
    n_joined: int = 0
    n_licensed: int = 0
    n_ignored: int = 0
    same: list[tuple[int, int]] = dataclasses.field(default_factory=list)
    emptied: set[str] = dataclasses.field(default_factory=set)

    def add(self, other: Honoured) -> None:
        """Count what another step of the same call did too."""
        self.found |= other.found
        for name in ("n_apart", "n_joined", "n_licensed", "n_ignored"):
            setattr(self, name, getattr(self, name) + getattr(other, name))


@dataclasses.dataclass(frozen=True)
class Decisions:
    """The decisions of a file, in its order, and a row (file, line, error) for each line that is none.

    Of two decisions on one pair, or on one image, the later one holds.
    """

    file: str
    listed: tuple[Decision, ...] = ()
    errors: tuple[DecisionError, ...] = ()

    @staticmethod
    def read(path: str | os.PathLike[str] | Decisions) -> Decisions:
        """The decisions in a file. Raises InputError where it cannot be read; a broken line is a row in `errors`."""
        if isinstance(path, Decisions):
            return path
        name = os.fspath(path)
        try:
            with open(path, encoding="utf-8-sig", errors="replace") as file:
                lines = list(iter(lambda: file.readline(MAX_LINE), ""))
        except OSError as error:
            raise InputError(
                f"Cannot read the decisions in {name}: {reason(error)}.\nMake the file with: copyscope decide"
            ) from None
        listed: list[Decision] = []
        errors: list[DecisionError] = []
        for number, line in enumerate(lines, 1):
            if not line.strip() or line.lstrip().startswith("#"):
                continue
            try:
                listed.append(_decision(parse_json(line), number))
            except ValueError as error:
                errors.append({"file": name, "line": number, "error": str(error)})
        return Decisions(name, tuple(listed), tuple(errors))

    def within(self, corpus: Corpus, rows: NDArray[np.integer[Any]]) -> Within:
        """What the decisions say of images of one set, at these corpus rows; positions are among `rows`."""
        places = self.places(names_of(corpus, rows))
        pairs: dict[tuple[int, int], str] = {}
        single: dict[int, str] = {}
        found: set[int] = set()
        for at, decision in enumerate(self.listed):
            named = [places.get((at, image), []) for image in range(len(decision.images))]
            found |= {decision.line} if any(named) else set()
            if decision.verdict == "licensed" or len(decision.images) == 1:
                single |= dict.fromkeys(itertools.chain(*named), decision.verdict)
                continue
            for one, other in itertools.combinations(named, 2):
                pairs |= {_pair(*both): decision.verdict for both in itertools.product(one, other)}
        return Within(pairs, single, found)

    def between(self, mine: Places, theirs: Places) -> Between:
        """What the decisions say of pairs of a query and a reference.

        Args:
            mine: `places` of the queries; none of pictures that have neither id nor digest.
            theirs: `places` of the references.
        """
        pairs: dict[tuple[int, int], str] = {}
        licensed: dict[int, str] = {}
        ignored: dict[int, str] = {}
        found: set[int] = set()
        for at, decision in enumerate(self.listed):
            n = range(len(decision.images))
            own, other = ([places.get((at, image), []) for image in n] for places in (mine, theirs))
            found |= {decision.line} if any(own) or any(other) else set()
            if decision.verdict == "licensed" or len(decision.images) == 1:
                licensed |= dict.fromkeys(itertools.chain(*other), decision.verdict)
                ignored |= dict.fromkeys(itertools.chain(*own), decision.verdict)
                continue
            for one, two in itertools.permutations(n, 2):
                pairs |= dict.fromkeys(itertools.product(own[one], other[two]), decision.verdict)
        return Between(
            {pair: verdict for pair, verdict in pairs.items() if verdict != "same"},
            licensed,
            {row for row, verdict in ignored.items() if verdict == "ignore"},
            found,
        )

    def summary(self, honoured: Honoured | None = None) -> DecisionsSummary:
        """What a result says of the decisions, as plain JSON."""
        done = honoured or Honoured()
        kinds = Counter(decision.verdict for decision in self.listed)
        return {
            "file": self.file,
            "n": len(self.listed),
            "same": kinds["same"],
            "different": kinds["different"],
            "licensed": kinds["licensed"],
            "ignore": kinds["ignore"],
            "n_unmatched": sum(decision.line not in done.found for decision in self.listed),
            "n_apart": done.n_apart,
            "n_joined": done.n_joined,
            "n_licensed": done.n_licensed,
            "n_ignored": done.n_ignored,
            "errors": list(self.errors),
            "sentence": self.sentence(done),
        }

    def sentence(self, done: Honoured) -> str:
        """The decisions in a sentence or two."""
        did = {
            "told apart": done.n_apart,
            "joined": done.n_joined,
            "with a licensed image": done.n_licensed,
            "ignored": done.n_ignored,
        }
        n = len(self.listed)
        said = f"{n} {'decision' if n == 1 else 'decisions'} of {self.file}"
        effects = ", ".join(
            f"{count} {'pair' if count == 1 else 'pairs'} {what}" for what, count in did.items() if count
        )
        said += f": {effects}." if effects else " changed nothing."
        if absent := sum(decision.line not in done.found for decision in self.listed):
            said += f" {absent} {'names' if absent == 1 else 'name'} no image that is here."
        if self.errors:
            first = self.errors[0]
            lines = f"{len(self.errors)} {'line' if len(self.errors) == 1 else 'lines'}"
            said += f" {lines} cannot be read, the first is line {first['line']}: {first['error']}."
        return said

    def failures(self) -> pa.Table:
        """The lines that are no decision, as rows of a result's `failures`: corpus, id, error."""
        rows = [
            {"corpus": "decisions", "id": f"{row['file']}:{row['line']}", "error": row["error"]} for row in self.errors
        ]
        return pa.Table.from_pylist(rows, pa.schema(dict.fromkeys(("corpus", "id", "error"), pa.string())))

    def places(self, names: Iterable[tuple[int, pa.Table]]) -> Places:
        """The positions of the images that each decision names.

        Args:
            names: columns `id` and `sha256` of images, in pieces, each with the position of its first row.
        """
        named: dict[str, dict[str, list[tuple[int, int]]]] = {"id": {}, "sha256": {}}
        for at, decision in enumerate(self.listed):
            for image, each in enumerate(decision.images):
                known = named["sha256" if each.sha256 else "id"]
                known.setdefault(each.sha256 or each.id or "", []).append((at, image))
        values = {name: pa.array(list(wanted), pa.string()) for name, wanted in named.items() if wanted}
        found: Places = {}
        for start, piece in names:
            for name, wanted in values.items():
                rows = np.flatnonzero(pa.compute.is_in(piece[name], value_set=wanted).to_numpy(zero_copy_only=False))
                for row, value in zip(rows.tolist(), piece[name].take(pa.array(rows)).to_pylist(), strict=True):
                    for place in named[name][value]:
                        found.setdefault(place, []).append(start + row)
        return found


def names_of(corpus: Corpus, rows: NDArray[np.integer[Any]]) -> Iterator[tuple[int, pa.Table]]:
    """What `Decisions.places` takes, of these rows of a corpus whose files were read."""
    ids = "id_in_set" if "id_in_set" in corpus.table.column_names else "id"
    for start in range(0, len(rows), PIECE):
        some = rows[start : start + PIECE]
        yield start, pa.table({"id": corpus.pick(ids, some), "sha256": corpus.pick("sha256", some)})


@dataclasses.dataclass(frozen=True)
class Within:
    """Verdicts on pairs (lower position first) and on single images of one set; the lines that name any of them."""

    pairs: dict[tuple[int, int], str]
    single: dict[int, str]
    found: set[int]

    def of(self, *verdicts: str) -> list[tuple[int, int]]:
        """The pairs of these verdicts."""
        return [pair for pair, verdict in self.pairs.items() if verdict in verdicts]

    @property
    def licensed(self) -> set[int]:
        """Positions of licensed images."""
        return {row for row, verdict in self.single.items() if verdict == "licensed"}

    @property
    def ignored(self) -> set[int]:
        """Positions of images to be ignored."""
        return {row for row, verdict in self.single.items() if verdict == "ignore"}


@dataclasses.dataclass(frozen=True)
class Between:
    """What decisions say of queries and references.

    Args:
        pairs: of a query and a reference that are no match, with their verdict.
        references: those that are licensed or to be ignored, with their verdict.
        queries: those to be ignored.
        found: lines that name any of them.
    """

    pairs: dict[tuple[int, int], str]
    references: dict[int, str]
    queries: set[int]
    found: set[int]

    def excuse(self, query: int, reference: int) -> str:
        """Why this pair is no match: "different", "licensed" or "ignore"; "" where it is one."""
        if query in self.queries:
            return "ignore"
        return self.pairs.get((query, reference)) or self.references.get(reference, "")


def append(path: str | os.PathLike[str], decision: Decision) -> None:
    """Add a decision to the end of a file, which is made if it is not there. Raises InputError."""
    try:
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        with open(path, "ab+") as file:
            file.seek(0, os.SEEK_END)
            if file.tell():
                file.seek(-1, os.SEEK_END)
                # A line that was written by hand may lack its end.
                before = b"" if file.read(1) == b"\n" else b"\n"
            else:
                before = b""
            file.write(before + json.dumps(decision.as_dict(), ensure_ascii=False).encode() + b"\n")
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        raise InputError(f"Cannot write {os.fspath(path)}: {reason(error)}.\nName another file") from None


def checked(verdict: str, images: Sequence[Named], by: str = "", when: str = "", why: str = "") -> Decision:
    """A decision. Raises ValueError where it can be none, with the reason."""
    if verdict not in VERDICTS:
        raise ValueError(f"verdict {str(verdict)[:40]!r} is not one of {', '.join(VERDICTS)}")
    least = 2 if verdict in ("same", "different") else 1
    if not least <= len(images) <= MOST_IMAGES:
        raise ValueError(f"{verdict!r} needs {least} to {MOST_IMAGES:,} images, not {len(images)}")
    return Decision(verdict, tuple(images), by, when, why)


def _decision(values: Any, line: int) -> Decision:
    """The decision of a line. Raises ValueError with the reason."""
    if not isinstance(values, dict):
        raise ValueError('not an object such as {"verdict": "different", "images": ["a.png", "b.png"]}')
    if unknown := sorted(values.keys() - _KEYS):
        raise ValueError(f"unknown key {unknown[0][:40]!r}; there are {', '.join(sorted(_KEYS))}")
    images = values.get("images")
    if not isinstance(images, list) or not images:
        raise ValueError("no list of images")
    about = [values.get(name, "") for name in ("by", "when", "why")]
    if not all(isinstance(text, str) for text in about):
        raise ValueError("by, when and why are texts")
    found = checked(values.get("verdict", ""), [_image(image) for image in images], *about)
    return dataclasses.replace(found, line=line)


def _image(value: Any) -> Named:
    if isinstance(value, str) and value:
        return Named(None, value.lower()) if _SHA256.fullmatch(value) else Named(value, None)
    if not isinstance(value, dict) or not value.keys() <= {"id", "sha256"} or not value:
        raise ValueError("an image is an id, a sha256, or an object of both")
    if not all(isinstance(each, str) and each for each in value.values()):
        raise ValueError("id and sha256 of an image are texts")
    digest = value.get("sha256")
    if digest is not None and not _SHA256.fullmatch(digest):
        raise ValueError(f"sha256 {digest[:40]!r} is not 64 hexadecimal digits")
    return Named(value.get("id"), digest and digest.lower())


def _pair(one: int, other: int) -> tuple[int, int]:
    return (one, other) if one < other else (other, one)
