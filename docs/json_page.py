"""Tables of json.md, made of the types of the summaries: every key with its type and what it is."""

from __future__ import annotations

import dataclasses
import types
import typing
from collections.abc import Iterator, Mapping
from typing import Any

from copyscope.cli import summaries as of_commands
from copyscope.curation.decisions import Decided
from copyscope.detection import summaries as of_detection
from copyscope.detection.index.summary import IndexSummary
from copyscope.detection.leaks import LeaksSummary
from copyscope.detection.lint import LintSummary
from copyscope.diffusion import thresholds
from copyscope.diffusion.training.loop import RunSummary
from copyscope.experiment.summaries import ExperimentSummary
from copyscope.guard import log
from copyscope.serve.check import Answer
from copyscope.stats import EstimateDict

KINDS: dict[str, Any] = {
    "estimate": EstimateDict,
    "audit": of_detection.AuditSummary,
    "lint": LintSummary,
    "duplicates": of_commands.DuplicatesSummary,
    "match": of_commands.MatchOutput,
    "index": IndexSummary,
    "index matches": of_commands.LookupOutput,
    "check": Answer,
    "embed": of_detection.EmbeddingsSummary,
    "embeddings in parts": of_detection.EmbeddingsParts,
    "curate": of_commands.CurateSummary,
    "removal lists": of_commands.LeftOut,
    "decisions": Decided,
    "leaks": LeaksSummary,
    "train": RunSummary,
    "generate": of_commands.GeneratedSummary,
    "guard": thresholds.Thresholds,
    "guard log": log.Record,
    "experiment": ExperimentSummary,
    "parts": of_commands.PartEntry,
    "fetch": of_commands.DataSet,
    "fetched": of_commands.Fetched,
    "doctor": of_commands.DoctorRow,
    "demo": of_commands.DemoOutput,
    "status": of_commands.ArmState,
    "dry run": of_commands.AuditPlan,
}
"""Type of the JSON of each section of the page."""
SCHEMAS = {"guard": thresholds.SCHEMA, "guard log": log.SCHEMA}
"""`schema` of dataclasses, whose JSON has it before their fields."""
WORDS = {str: "string", int: "integer", float: "number", bool: "bool", type(None): "null", Any: "any"}
MANY = {"string": "strings", "integer": "integers", "number": "numbers", "object": "objects", "Estimate": "Estimates"}


class Key(typing.NamedTuple):
    """A key of a summary: its type, what it is, and whether it may be absent."""

    name: str
    kind: Any
    about: str
    optional: bool


def keys(kind: Any) -> list[Key]:
    """The keys of a TypedDict or dataclass, inherited ones first."""
    found = []
    for name, hint in typing.get_type_hints(kind, include_extras=True).items():
        optional, about = False, ""
        while (outer := typing.get_origin(hint)) in (typing.Annotated, typing.NotRequired):
            optional |= outer is typing.NotRequired
            about = hint.__metadata__[0] if outer is typing.Annotated else about
            hint = hint.__origin__ if outer is typing.Annotated else hint.__args__[0]
        found.append(Key(name, hint, about, optional))
    return found


def has_keys(kind: Any) -> bool:
    """Whether values of this type are objects of known keys."""
    return typing.is_typeddict(kind) or dataclasses.is_dataclass(kind)


def options(kind: Any) -> tuple[Any, ...]:
    """The types that a union is of; of another type, that one."""
    return typing.get_args(kind) if typing.get_origin(kind) in (types.UnionType, typing.Union) else (kind,)


def word(kind: Any) -> str:
    """A type in the words of the page."""
    if len(options(kind)) > 1:
        return " or ".join(map(word, options(kind)))
    if kind is EstimateDict:
        return "Estimate"
    origin, inner = typing.get_origin(kind) or kind, typing.get_args(kind)
    if origin is tuple and len(inner) > 1 and inner[-1] is not Ellipsis:
        return f"list of {len(inner)} {MANY[word(inner[0])]}"
    if origin in (list, tuple):
        return f"list of {MANY[word(inner[0])]}"
    return "object" if has_keys(kind) or origin in (dict, Mapping) else WORDS[kind]


def below(kind: Any) -> tuple[Any, str]:
    """The type with keys that values of this type are or hold, and how the path to its keys goes on; (None, "") without
    any."""
    for each in options(kind):
        mark = {list: "[]", dict: ".*", Mapping: ".*"}.get(typing.get_origin(each), "")
        inner = typing.get_args(each)[-1] if mark else each
        if has_keys(inner) and inner is not EstimateDict:
            return inner, mark
    return None, ""


def lines(kind: Any, above: str = "", seen: dict[Any, str] | None = None) -> Iterator[str]:
    """Rows of the table of a type. Keys of a type that comes again are listed at the first place alone."""
    seen = {} if seen is None else seen
    for name, hint, about, optional in keys(kind):
        path, (inner, mark) = f"{above}{name}", below(hint)
        before = f"; its keys are those of `{seen[inner]}`" if inner in seen else ""
        yield f"| `{path}` | {word(hint)} | {about}{before}{'; may be absent' if optional else ''} |"
        if inner and not before:
            seen[inner] = path
            yield from lines(inner, f"{path}{mark}.", seen)


def table(name: str) -> list[str]:
    """The table of one section."""
    schema = [f"| `schema` | string | `{SCHEMAS[name]}` |"] if name in SCHEMAS else []
    return ["", "| key | type | is |", "|---|---|---|", *schema, *lines(KINDS[name]), ""]


TABLES = {f"keys of {name}": name for name in KINDS}
