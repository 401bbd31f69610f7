"""Options that several commands share, exit codes, and checks of input and output paths."""

from __future__ import annotations

import enum
import importlib.util
import os
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from copyscope.console import note
from copyscope.errors import InputError, MissingExtra
from copyscope.machine import DEVICE

if TYPE_CHECKING:
    from copyscope.data.corpus import Corpus
    from copyscope.data.removals import Removed
    from copyscope.engine import Engine
    from copyscope.machine import Progress

EXIT_UNREADABLE, EXIT_ERROR, EXIT_COPIES, EXIT_CANNOT_TELL, EXIT_STOPPED = 1, 2, 3, 4, 130

Generated = Annotated[
    str, typer.Argument(metavar="GENERATED", help="Images the model made: a folder, Parquet, WebDataset or URL.")
]
Train = Annotated[str, typer.Argument(metavar="TRAIN", help="Images it was trained on, in any of the same layouts.")]
CorpusPath = Annotated[str, typer.Argument(metavar="CORPUS", help="Images: a folder, Parquet, WebDataset or URL.")]
HeldOut = Annotated[
    str | None, typer.Option("--held-out", metavar="DIR", help="Real images not trained on, to calibrate the verdict.")
]
ProtocolName = Annotated[
    str, typer.Option("--protocol", "-p", help="A protocol or descriptor spec; `copyscope parts` lists them.")
]
AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON object instead of tables.")]
Out = Annotated[Path | None, typer.Option("--out", "-o", metavar="DIR", help="Write the results into this folder.")]
Strict = Annotated[bool, typer.Option("--strict", help=f"Exit {EXIT_UNREADABLE} if any image cannot be read.")]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Print what would be done, and do nothing.")]
Seed = Annotated[int, typer.Option("--seed", min=0, help="Seed of the random samples.")]
Settings = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="NAME=VALUE", help="Change one value of the recipe; may be repeated."),
]
MitigationSpecs = Annotated[
    list[str] | None,
    typer.Option("--mitigation", metavar="SPEC", help="Add a mitigation to the recipe's; may be repeated."),
]
SignalSpecs = Annotated[
    list[str] | None,
    typer.Option("--signal", metavar="SPEC", help="Add a signal to the recipe's; may be repeated."),
]
Recipe = Annotated[
    str | None, typer.Option("--recipe", metavar="TOML|PRESET", help="Where the values come from; else the defaults.")
]
Without = Annotated[
    str | None,
    typer.Option("--without", metavar="LIST", help="Leave out the images that LIST names by id, sha256, URL or key."),
]
InsideOnly = Annotated[
    bool,
    typer.Option(
        "--inside-only", help="Refuse images outside the folder, which a table in it lists or a symbolic link leads to."
    ),
]
Workers = Annotated[
    int | None, typer.Option("--workers", min=1, help="Threads that decode and describe; one a core by default.")
]


def _use_device(name: str | None) -> str | None:
    """Have this process, and those it starts, run descriptors on a device; a name that is wrong is told at once."""
    if name is not None:
        from copyscope.detection.descriptors import _device

        os.environ[DEVICE] = name
        _device.wished()
    return name


DeviceName = Annotated[
    str | None,
    typer.Option(
        "--device",
        metavar="auto|cpu|cuda:0",
        help=f"Where descriptors run; by default what {DEVICE} says, or a GPU that ONNX Runtime or torch can use.",
        callback=_use_device,
    ),
]
EngineSpec = Annotated[
    str | None,
    typer.Option(
        "--engine",
        metavar="SPEC",
        help="Who describes and searches: 'ray' (a Ray cluster), 'processes', or with options, as in "
        "\"ray(address='auto')\"; by default threads of this process.",
    ),
]


TrustParts = Annotated[
    bool,
    typer.Option(
        "--trust-parts",
        help="Load parts from outside Copyscope, and weights by path (TorchScript is code), that the files given ask "
        "for: this runs code of whoever made them. What is typed in the command is loaded in any case.",
    ),
]


class FailOn(enum.Enum):
    """Rate that --fail-over is compared with."""

    rate = "rate"
    upper = "upper"


class PartsWish(enum.Enum):
    """Whether an audit looks at parts of pictures."""

    auto = "auto"
    on = "on"
    off = "off"


class EmbedImages(enum.Enum):
    """What a report of an audit shows of a pair that is enlarged."""

    small = "small"
    large = "large"
    full = "full"


def refuse_idle(context: typer.Context, names: Iterable[str], why: str) -> None:
    """Refuse options that were typed and that this call has no use for.

    Args:
        context: of the call.
        names: parameters of the options.
        why: when these options have no use, and what to do, in two lines.

    Raises:
        InputError: one of them was typed.
    """
    typed = [name for name in names if getattr(context.get_parameter_source(name), "name", "") == "COMMANDLINE"]
    if typed:
        flags = {each.name: "/".join([*each.opts, *each.secondary_opts]) for each in context.command.params}
        said, do = why.split("\n")
        has = "has" if len(typed) == 1 else "have"
        raise InputError(f"{' and '.join(flags[name] for name in typed)} {has} no effect {said}.\n{do}")


def check_out(out: Path | None) -> None:
    """Check that -o names a folder, or a place for one: before the work rather than after it."""
    if out:
        from copyscope.detection.results import check_folder

        check_folder(out)


def opened_engine(spec: str | None) -> Engine | None:
    """Load the engine of --engine, before anything else is done: a spec that is wrong is told at once."""
    from copyscope.engine import open_engine

    return open_engine(spec) if spec is not None else None


def open_corpus(path: str, inside_only: bool) -> Corpus:
    """Open the corpus at `path`, and tell the person how many of its images lie outside."""
    from copyscope.data.corpus import Corpus

    corpus = Corpus.open(path, inside_only=inside_only)
    if n := corpus.n_outside:
        note(f"{n} images lie outside the folder {path}; --inside-only refuses them.")
    return corpus


def opened(path: str, without: str | None, inside_only: bool, progress: Progress) -> tuple[Corpus, dict[str, Any]]:
    """Open the corpus at `path` without the images that the list of --without names.

    Also what the summary says of that, and of images that lie outside.
    """
    from copyscope.data import removals

    corpus = open_corpus(path, inside_only)
    said: dict[str, Any] = {"n_outside": corpus.n_outside} if corpus.n_outside else {}
    if without is None:
        return corpus, said
    corpus, removed = removals.leave_out(corpus, removals.read_list(without), progress=progress)
    return corpus, said | removal_note(without, removed)


def removal_note(without: str, removed: Removed) -> dict[str, Any]:
    """Note on a removal list for a summary; told to the person too."""
    note(f"{removed.n_removed} images are left out, as {without} asks.")
    if removed.unmatched:
        first = min(removed.unmatched)
        note(f"{len(removed.unmatched)} of its {removed.n_listed} entries name no image, the first {first!r}.")
    return {"without": {"list": without, **removed.summary()}}


def need_torch(what: str) -> None:
    """Check that torch is installed.

    Raises:
        MissingExtra: it is not.
    """
    if not importlib.util.find_spec("torch"):
        raise MissingExtra(what, "torch", "diffusion")


def exit_with(summary: dict[str, Any], strict: bool) -> None:
    """Exit with EXIT_UNREADABLE where images could not be read and --strict was given."""
    unreadable = sum(summary.get("failures", {"": summary.get("n_missing", 0)}).values())
    if strict and unreadable:
        note(f"{unreadable} images could not be read, and --strict was given.")
        raise typer.Exit(EXIT_UNREADABLE)


def gate(summary: dict[str, Any], fail_over: float, fail_on: FailOn, allow_cannot_tell: bool) -> None:
    """Exit with EXIT_COPIES above a replication rate, and with EXIT_CANNOT_TELL where an audit does not know it.

    The lower end of the corrected rate may not be above it either: a rate that is known to be higher than what was
    found passes no gate, whatever the answer.

    Args:
        summary: of an audit.
        fail_over: the rate that may not be passed, 0 to 1.
        fail_on: whether the share of copies found is compared, or the upper end of the corrected rate.
        allow_cannot_tell: pass an audit that cannot tell.
    """
    lowest = summary["estimated_rate"]["low"]
    if lowest is not None and lowest > fail_over:
        note(f"The corrected replication rate is at least {lowest:.3f}, above the {fail_over:g} of --fail-over.")
        raise typer.Exit(EXIT_COPIES)
    rate = summary["replication_rate"]["value"] if fail_on is FailOn.rate else summary["estimated_rate"]["high"]
    name = "replication rate" if fail_on is FailOn.rate else "upper end of the corrected replication rate"
    answer = summary["verdict"]["answer"]
    unknown = answer in ("cannot tell", "suspicious")
    # An upper end is high wherever little is known: then not knowing is what is to be said.
    if rate is not None and rate > fail_over and not (unknown and fail_on is FailOn.upper):
        note(f"The {name} is {rate:.3f}, above the {fail_over:g} of --fail-over.")
        raise typer.Exit(EXIT_COPIES)
    if unknown and not allow_cannot_tell:
        note(f"The audit answers {answer!r}, so that the gate stays shut. To let it pass: --allow-cannot-tell")
        raise typer.Exit(EXIT_CANNOT_TELL)
