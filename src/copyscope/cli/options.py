"""Options that several commands share, exit codes, and checks of input and output paths."""

from __future__ import annotations

import enum
import importlib.util
import os
import shlex
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from copyscope.console import note, show, show_json
from copyscope.errors import InputError, MissingExtra
from copyscope.machine import DEVICE

if TYPE_CHECKING:
    from copyscope.curation.decisions import Decisions
    from copyscope.data.corpus import Corpus
    from copyscope.data.removals import Removed
    from copyscope.engine import Engine
    from copyscope.machine import Progress

EXIT_UNREADABLE, EXIT_ERROR, EXIT_COPIES, EXIT_CANNOT_TELL, EXIT_STOPPED = 1, 2, 3, 4, 130

Generated = Annotated[
    str, typer.Argument(metavar="GENERATED", help="Images the model made: a folder, Parquet, WebDataset or URL.")
]
Train = Annotated[str, typer.Argument(metavar="TRAIN", help="Images it was trained on, in any of the same layouts.")]
IndexFolder = Annotated[Path, typer.Argument(metavar="INDEX", help="Folder that `copyscope index build` made.")]
ModelSpec = Annotated[str, typer.Argument(metavar="RUN", help="Folder that `train -o` wrote, or a model's spec.")]
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
DecisionsFile = Annotated[
    Path | None,
    typer.Option("--decisions", metavar="FILE", help="Verdicts of people to honour; `copyscope decide` writes them."),
]
InsideOnly = Annotated[
    bool,
    typer.Option(
        "--inside-only", help="Refuse images outside the folder, which a table in it lists or a symbolic link leads to."
    ),
]
Split = Annotated[
    str | None,
    typer.Option("--split", metavar="NAME", help="Read this split of the training set, or `all`; as PATH@NAME does."),
]
Lenient = Annotated[
    bool, typer.Option("--lenient", help="Read JPEG files that lack their end marker; the column `repaired` says so.")
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


def open_corpus(path: str, inside_only: bool, split: str | None = None, lenient: bool = False) -> Corpus:
    """Open the corpus at `path`, and tell the person in a line what was found there and what was not used."""
    from copyscope.data.corpus import Corpus

    corpus = Corpus.open(path, inside_only=inside_only, split=split, lenient=lenient)
    if warning := corpus.account.warning:
        note(f"{path}: {warning}.")
    note(f"{path}: {corpus.account.line()}.")
    if n := corpus.n_outside:
        note(f"{n} images lie outside the folder {path}; --inside-only refuses them.")
    return corpus


def opened(
    path: str,
    without: str | None,
    inside_only: bool,
    progress: Progress,
    split: str | None = None,
    lenient: bool = False,
) -> tuple[Corpus, dict[str, Any]]:
    """Open the corpus at `path` without the images that the list of --without names.

    Also what the summary says of that, and of images that lie outside.
    """
    from copyscope.data import removals

    corpus = open_corpus(path, inside_only, split, lenient)
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


def save_and_show(result: Any, out: Path | None, as_json: bool, without_out: str = "") -> None:
    """Save an audit or a lint where -o says, and print it.

    Args:
        result: of the audit or the lint.
        out: folder of -o; None = it is not saved.
        as_json: print the summary as JSON.
        without_out: a note for the person where there is no -o; "" = none.
    """
    if out:
        result.save(out)
    if as_json:
        show_json(result.summary)
        return
    show(result)
    if out:
        print(f"Report: {out / 'report.html'}")
    elif without_out:
        note(without_out)


def read_decisions(path: Path | None) -> Decisions | None:
    """The decisions of --decisions; lines that are none are said to the person."""
    if path is None:
        return None
    from copyscope.curation.decisions import Decisions

    found = Decisions.read(path)
    for row in found.errors[:5]:
        note(f"{row['file']}, line {row['line']}: {row['error']}; the line is passed over.")
    if len(found.errors) > 5:
        note(f"{len(found.errors) - 5} further lines of it are passed over.")
    return found


def note_advice(train: str, out: Path | None, kind: str, n: int) -> None:
    """The command that does what a lint or an audit advises, where it advises anything."""
    if n:
        where = out or "DIR"
        note(f"{'' if out else 'With -o DIR, '}see what is advised, and do it without --dry-run:")
        note(f"  copyscope curate {shlex.quote(train)} -o CURATED --from-{kind} {shlex.quote(str(where))} --dry-run")


def need_torch(what: str) -> None:
    """Check that torch is installed.

    Raises:
        MissingExtra: it is not.
    """
    if not importlib.util.find_spec("torch"):
        raise MissingExtra(what, "torch", "diffusion")


def exit_with(summary: Mapping[str, Any], strict: bool) -> None:
    """Exit with EXIT_UNREADABLE where images could not be read and --strict was given."""
    unreadable = sum(summary.get("failures", {"": summary.get("n_missing", 0)}).values())
    lines = len(summary.get("decisions", {}).get("errors", []))
    if strict and lines:
        note(f"{lines} lines of decisions could not be read, and --strict was given.")
        raise typer.Exit(EXIT_UNREADABLE)
    if strict and unreadable:
        note(f"{unreadable} images could not be read, and --strict was given.")
        raise typer.Exit(EXIT_UNREADABLE)


def gate(summary: Mapping[str, Any], fail_over: float, fail_on: FailOn, allow_cannot_tell: bool) -> None:
    """Exit with EXIT_COPIES above a replication rate, and with EXIT_CANNOT_TELL where an audit does not know it.

    The lower end of the corrected rate may not be above it either: a rate that is known to be higher than what was
    found passes no gate, whatever the answer.

    Args:
        summary: of an audit.
        fail_over: the rate that may not be passed, 0 to 1.
        fail_on: whether the share of copies found is compared, or the upper end of the corrected rate.
        allow_cannot_tell: pass an audit that cannot tell.
    """
    from copyscope.report.wording import out_of_reach

    lowest = summary["estimated_rate"]["low"]
    if lowest is not None and lowest > fail_over:
        note(f"The corrected replication rate is at least {lowest:.3f}, above the {fail_over:g} of --fail-over.")
        raise typer.Exit(EXIT_COPIES)
    rate = summary["replication_rate"]["value"] if fail_on is FailOn.rate else summary["estimated_rate"]["high"]
    name = "replication rate" if fail_on is FailOn.rate else "upper end of the corrected replication rate"
    answer = summary["verdict"]["answer"]
    # Where only identical files can be called copies, few of them say nothing of the others.
    calibration = summary["calibration"]
    blind = out_of_reach(calibration)
    if calibration["method"] == "baseline":
        blind = "Without held-out images or controls, only images identical to a training image are called copies."
    highest = summary["estimated_rate"]["high"]
    if highest is not None and highest <= fail_over:
        blind = ""  # however many are not seen, the rate is below the limit
    unknown = answer in ("cannot tell", "suspicious") or bool(blind)
    # An upper end is high wherever little is known: then not knowing is what is to be said.
    if rate is not None and rate > fail_over and not (unknown and fail_on is FailOn.upper):
        note(f"The {name} is {rate:.3f}, above the {fail_over:g} of --fail-over.")
        raise typer.Exit(EXIT_COPIES)
    if unknown and not allow_cannot_tell:
        why = blind if blind and answer == "copies" else f"The audit answers {answer!r}."
        note(f"{why} So the gate stays shut. To let it pass: --allow-cannot-tell")
        raise typer.Exit(EXIT_CANNOT_TELL)
