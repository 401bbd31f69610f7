"""Entry point of the command line: registers all commands; results on stdout, progress and errors on stderr.

The commands about Copyscope itself are here, all others in the modules of their groups.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer

from copyscope._version import __version__
from copyscope.console import progress_bar, shield, show, show_json
from copyscope.errors import CopyscopeError

from . import audit as cli_auditing
from . import curate as cli_curating
from . import decide as cli_deciding
from . import detect, guard, index, search, serve
from . import make as cli_making
from .options import EXIT_ERROR, EXIT_STOPPED, AsJson, ProtocolName, Seed, check_out, need_torch

app = typer.Typer(
    name="copyscope",
    help="Does a text-to-image model copy its training images? Which ones, why, and what to do about it.",
    no_args_is_help=True,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    add_completion=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


@app.callback(invoke_without_command=True)
def root(
    context: typer.Context,
    version: Annotated[bool, typer.Option("--version", help="Print the version.")] = False,
    debug: Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")] = False,
) -> None:
    """Options before the command's name."""
    if version:
        print(__version__)
        raise typer.Exit


ELSEWHERE: tuple[Callable[..., None], ...] = (
    cli_auditing.audit, detect.lint, detect.embed, search.match, detect.duplicates,
    cli_deciding.leaks, serve.serve,
    cli_curating.curate, cli_deciding.decide,
    cli_making.train, cli_making.generate,
)  # fmt: skip
for command in ELSEWHERE:
    app.command()(command)
app.add_typer(index.index, name="index")
app.add_typer(cli_making.experiment, name="experiment")
app.add_typer(guard.guard, name="guard")


@app.command(name="parts")
def parts_(
    shelf: Annotated[
        str | None,
        typer.Argument(metavar="SHELF", help="descriptors, measures, models, mitigations, signals or protocols."),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """List the protocols and every part: how it is called and what it is."""
    from copyscope.detection.embedding.protocols import catalogue

    listing = catalogue(shelf)
    if as_json:
        show_json(listing)
        return
    for name, rows in listing.items():
        print(f"{name}:")
        for row in rows:
            called = row["spec"] if name != "protocols" else f"{row['name']} = {row['spec']}"
            print(f"  {called}\n      {row['about']}")
            said = [f"{row['door']}, in {' and '.join(row['stages'])}"] if "door" in row else []
            said += [f"needs {', '.join(row['needs'])}"] if row.get("needs") else []
            if said:
                print(f"      {'; '.join(said)}")


@app.command()
def report(
    folder: Annotated[
        Path,
        typer.Argument(
            metavar="DIR|LOG", help="Folder of a finished audit, lint, experiment or look-up, or a guard's log."
        ),
    ],
) -> None:
    """Make the HTML report of a finished audit, lint, experiment or look-up in an index (match --index) again.

    Of a guard's log it makes a report and a Parquet table beside it.
    """
    from copyscope.detection import audit, lint, lookup
    from copyscope.detection.results import read_schema
    from copyscope.experiment import run as experiment
    from copyscope.files import as_damaged

    if folder.is_file():
        from copyscope.detection.results import write_table
        from copyscope.files import write_file
        from copyscope.guard.log import as_table, load, summed_up
        from copyscope.report.guard import render

        log = load(folder)
        page = folder.with_suffix(".html")
        write_file(
            page, lambda path: path.write_text(render(summed_up(log.records, log.n_unreadable)), encoding="utf-8")
        )
        write_table(folder.parent, folder.stem, as_table(log.records))
        if log.n_unreadable:
            print(f"{log.n_unreadable} lines of {folder} were not written whole: left out.", file=sys.stderr)
        print(f"Report: {page}")
        return
    schema = read_schema(folder)
    kinds: dict[str, Any] = {
        experiment.SCHEMA: experiment.Experiment,
        lint.SCHEMA: lint.Lint,
        lookup.SCHEMA: lookup.Lookup,
    }
    result = kinds.get(schema, audit.Audit).load(folder)
    with as_damaged(folder):
        result.save(folder)
    print(f"Report: {folder / 'report.html'}")


@app.command()
def fetch(
    name: Annotated[str | None, typer.Argument(metavar="NAME", help="What to fetch; without it, the list.")] = None,
    as_json: AsJson = False,
) -> None:
    """Download a named data set into the cache, checked by its hash. Nothing else in Copyscope downloads anything."""
    from copyscope.data import assets

    if name is None:
        rows = [
            {"name": each.name, "megabytes": each.megabytes, "licence": each.licence, "about": each.description}
            for each in assets.known()
        ]
        if as_json:
            show_json(rows)
        else:
            for row in rows:
                print(f"{row['name']}  ({row['megabytes']} MB, {row['licence']})\n    {row['about']}")
        return
    with progress_bar() as progress:
        path = assets.fetch(name, progress=progress)
    print(json.dumps({"name": name, "path": str(path)}) if as_json else str(path))


@app.command()
def demo(
    out: Annotated[Path, typer.Option("--out", "-o", metavar="DIR", help="Where the data and the report go.")] = Path(
        "copyscope-demo"
    ),
    yes: Annotated[bool, typer.Option("--yes", help="Fetch the demo's data set without asking.")] = False,
    protocol: ProtocolName = "sscd-288",
    as_json: AsJson = False,
    seed: Seed = 0,
) -> None:
    """Train the small model on real captioned pictures, let it make images, and see which of them are copies."""
    from copyscope.data import assets
    from copyscope.demo import SOURCE, make, score
    from copyscope.detection.audit import audit as run
    from copyscope.report.terminal import estimate

    check_out(out)
    need_torch("The demo")
    if not yes and not assets.is_fetched(SOURCE):
        megabytes = next(each.megabytes for each in assets.known() if each.name == SOURCE)
        if not typer.confirm(
            f"The demo needs the data set {SOURCE} ({megabytes} MB, downloaded once). Fetch it?", err=True
        ):
            raise typer.Exit(EXIT_ERROR)
    with progress_bar() as progress:
        assets.fetch(SOURCE, progress=progress)
        made = make(out, seed=seed, progress=progress)
        result = run(made.generated, made.train, made.held_out, protocol, seed=seed, progress=progress)
    folder = result.save(out / "report")
    truth = score(made, result.summary)
    plain = {name: each.as_dict() for name, each in truth.items()}
    (folder / "truth.json").write_text(json.dumps(plain, indent=1) + "\n")
    if as_json:
        show_json({"summary": result.summary, "truth": plain, "report": str(folder / "report.html")})
        return
    show(result)
    shown = {
        "copies among images from training captions": "known",
        "of these, of the very image of the caption": "own",
        "copies among images from captions never seen": "unknown",
    }
    for text, name in shown.items():
        print(f"{text:<46}{estimate(truth[name].as_dict(), percent=True)}")
    print(f"Report: {folder / 'report.html'}")


@app.command()
def doctor(as_json: AsJson = False) -> None:
    """Say what is installed, what can be used, and what each missing piece would need."""
    from copyscope.doctor import examine

    findings = examine()
    if as_json:
        show_json(findings)
    else:
        for row in findings:
            print(f"{'ok ' if row['ok'] else '-- '} {row['what']}: {row['says']}")


def refusal(error: OSError) -> str:
    """Message in two lines for an OSError of a system that cannot do what was asked of it."""
    what = error.strerror or str(error)[:300] or type(error).__name__
    where = f" ({error.filename})" if error.filename else ""
    return f"The system says: {' '.join(f'{what}{where}'.split())}.\nSet that right, and run the same command again"


def main() -> None:
    """Entry point: errors made for people are printed in two lines; `--debug` gives the traceback."""
    shield()
    try:
        app()
    except CopyscopeError as error:
        if "--debug" in sys.argv:
            raise
        print(f"copyscope: {error}", file=sys.stderr)
        sys.exit(EXIT_ERROR)
    except OSError as error:  # a full disk, a disk that fails, a mount that went away: at any file
        if "--debug" in sys.argv:
            raise
        print(f"copyscope: {refusal(error)}", file=sys.stderr)
        sys.exit(EXIT_ERROR)
    except SystemExit as stop:
        if stop.code == EXIT_STOPPED:  # typer makes this of Ctrl-C
            print("copyscope: stopped; run the same command again to go on from here", file=sys.stderr)
        raise
