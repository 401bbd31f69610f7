"""The command line: one command per verb. Parses, calls, prints; results on stdout, progress and errors on stderr."""

from __future__ import annotations

import contextlib
import json
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from .console import note, note_unreadable, progress_bar, show, show_json, show_table
from .errors import CopyscopeError, InputError

EXIT_UNREADABLE, EXIT_ERROR, EXIT_COPIES, EXIT_STOPPED = 1, 2, 3, 130

app = typer.Typer(
    name="copyscope",
    help="Does a text-to-image model copy its training images? Which ones, why, and what to do about it.",
    no_args_is_help=True,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    add_completion=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)

Generated = Annotated[
    str, typer.Argument(metavar="GENERATED", help="Images the model made: a folder, Parquet, WebDataset or URL.")
]
Train = Annotated[str, typer.Argument(metavar="TRAIN", help="Images it was trained on, in any of the same layouts.")]
CorpusPath = Annotated[str, typer.Argument(metavar="CORPUS", help="Images: a folder, Parquet, WebDataset or URL.")]
ProtocolName = Annotated[
    str, typer.Option("--protocol", "-p", help="A protocol or descriptor spec; `copyscope parts` lists them.")
]
AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON object instead of tables.")]
Out = Annotated[Path | None, typer.Option("--out", "-o", metavar="DIR", help="Write the results into this folder.")]
Strict = Annotated[bool, typer.Option("--strict", help=f"Exit {EXIT_UNREADABLE} if any image cannot be read.")]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Print what would be done, and do nothing.")]
Seed = Annotated[int, typer.Option("--seed", min=0, help="Seed of the random samples.")]
Workers = Annotated[
    int | None, typer.Option("--workers", min=1, help="Threads that decode and describe; one a core by default.")
]


@app.callback(invoke_without_command=True)
def root(
    context: typer.Context,
    version: Annotated[bool, typer.Option("--version", help="Print the version.")] = False,
    debug: Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")] = False,
) -> None:
    """Options before the command's name."""
    if version:
        import copyscope

        print(copyscope.__version__)
        raise typer.Exit


@app.command()
def audit(
    generated: Generated,
    train: Train,
    held_out: Annotated[
        str | None,
        typer.Option("--held-out", metavar="DIR", help="Real images not trained on, to calibrate the verdict."),
    ] = None,
    protocol: ProtocolName = "sscd-288",
    fdr: Annotated[float, typer.Option("--fdr", help="False discovery rate of the list of copies.")] = 0.05,
    clip: Annotated[
        str | None,
        typer.Option("--clip", metavar="DIR", help="Local CLIP model, to measure how images agree with their prompts."),
    ] = None,
    fail_over: Annotated[
        float | None,
        typer.Option("--fail-over", metavar="RATE", help=f"Exit {EXIT_COPIES} if the replication rate is above RATE."),
    ] = None,
    out: Out = None,
    as_json: AsJson = False,
    strict: Strict = False,
    dry_run: DryRun = False,
    seed: Seed = 0,
    workers: Workers = None,
) -> None:
    """Say how much of GENERATED copies TRAIN, which images, why, and what to do.

    Writes summary.json, Parquet tables and report.html with -o DIR.
    """
    from .copying.protocols import protocol as named

    if fail_over is not None and not 0 <= fail_over <= 1:
        raise InputError(f"--fail-over is a share between 0 and 1, not {fail_over}.\nFor 5 % write --fail-over 0.05")
    if dry_run:
        from .corpus import Corpus

        sets = {"generated": generated, "train": train} | ({"held_out": held_out} if held_out else {})
        corpora = {name: Corpus.open(path) for name, path in sets.items()}
        found = named(protocol)
        found.load()
        show_json(
            {name: {"path": corpus.origin, "kind": corpus.kind, "n": len(corpus)} for name, corpus in corpora.items()}
            | {"protocol": found.name, "descriptor": found.descriptor, "threshold": found.threshold}
            | {"fdr": fdr, "seed": seed, "out": str(out) if out else None}
        )
        return
    from .copying.audit import audit as run

    _check(out)
    with progress_bar() as progress:
        result = run(
            generated, train, held_out, protocol, fdr=fdr, clip=clip, seed=seed, workers=workers, progress=progress
        )
    if out:
        result.save(out)
    if as_json:
        show_json(result.summary)
    else:
        show(result)
        if out:
            print(f"Report: {out / 'report.html'}")
        else:
            note("For the report with pictures, add -o DIR.")
    _exit(result.summary, strict, fail_over)


@app.command()
def lint(
    train: Train,
    protocol: ProtocolName = "sscd-288",
    out: Out = None,
    as_json: AsJson = False,
    strict: Strict = False,
    seed: Seed = 0,
    workers: Workers = None,
) -> None:
    """Say before training what in TRAIN is likely to be copied: duplicates, repeated captions, plain pictures."""
    from .copying.lint import lint as run

    _check(out)
    with progress_bar() as progress:
        result = run(train, protocol, seed=seed, workers=workers, progress=progress)
    if out:
        result.save(out)
    if as_json:
        show_json(result.summary)
    else:
        show(result)
        if out:
            print(f"Report: {out / 'report.html'}")
    _exit(result.summary, strict, None)


@app.command()
def embed(
    corpus: CorpusPath,
    out: Annotated[
        Path,
        typer.Option(
            "--out", "-o", metavar="DIR", help="Folder for vectors.npy, embeddings.parquet and embeddings.json."
        ),
    ],
    protocol: ProtocolName = "sscd-288",
    as_json: AsJson = False,
    strict: Strict = False,
    workers: Workers = None,
) -> None:
    """Describe every image of CORPUS; killed and started again, it goes on where it was."""
    from .copying.embed import embed as run
    from .copying.protocols import protocol as named
    from .corpus import Corpus

    _check(out)
    with progress_bar() as progress:
        described = run(Corpus.open(corpus), named(protocol).load(), workers=workers, progress=progress)
    described.save(out)
    summary = json.loads((out / "embeddings.json").read_text())
    if as_json:
        show_json(summary)
    else:
        print(f"{summary['n']} embeddings of {summary['dim']} dimensions by {summary['descriptor']} in {out}")
        note_unreadable(summary["n_missing"])
    _exit(summary, strict, None)


@app.command(name="match")
def match_(
    queries: Annotated[str, typer.Argument(metavar="QUERIES", help="Images asked about.")],
    references: Annotated[str, typer.Argument(metavar="REFERENCES", help="Images searched.")],
    k: Annotated[int, typer.Option("-k", min=1, help="Matches a query.")] = 10,
    protocol: ProtocolName = "sscd-288",
    out: Out = None,
    as_json: AsJson = False,
    workers: Workers = None,
) -> None:
    """The k most similar images of REFERENCES for every image of QUERIES; -o writes matches.parquet."""
    from .copying.embed import embed as describe
    from .copying.match import match as run
    from .copying.protocols import protocol as named
    from .copying.results import write_table
    from .copying.verify import Verify
    from .corpus import Corpus

    _check(out)
    descriptor = named(protocol).load()
    with progress_bar() as progress:
        sets = [
            describe(Corpus.open(path), descriptor, workers=workers, progress=progress)
            for path in (queries, references)
        ]
        found = run(sets[0], sets[1], Verify(), k=k, workers=workers, progress=progress)
    table = found.table(k)
    if out:
        write_table(out, "matches", table)
    if as_json:
        show_json(
            {
                "schema": "copyscope.matches/1",
                "n_missing": [each.n_missing for each in sets],
                "matches": table.to_pylist(),
            }
        )
    else:
        show_table(table.slice(0, 50), f"{table.num_rows} matches" + (", the first 50" if table.num_rows > 50 else ""))
        note_unreadable(sum(each.n_missing for each in sets))


@app.command(name="duplicates")
def duplicates_(
    corpus: CorpusPath,
    threshold: Annotated[
        float | None, typer.Option("--threshold", help="Similarity of near-duplicates; the protocol's by default.")
    ] = None,
    protocol: ProtocolName = "sscd-288",
    out: Out = None,
    as_json: AsJson = False,
    workers: Workers = None,
) -> None:
    """Groups of near-duplicates in CORPUS, and whether their captions repeat with them; -o writes groups.parquet."""
    from .copying.duplicates import duplicates as run
    from .copying.embed import embed as describe
    from .copying.protocols import protocol as named
    from .copying.results import write_table
    from .corpus import Corpus

    _check(out)
    rules = named(protocol)
    with progress_bar() as progress:
        described = describe(Corpus.open(corpus), rules.load(), workers=workers, progress=progress)
        bar = rules.duplicates if threshold is None else threshold
        groups = run(described, bar, workers=workers, progress=progress)
    table, summary = groups.table(), groups.summary()
    if out:
        write_table(out, "groups", table)
    if as_json:
        show_json(
            summary
            | {"schema": "copyscope.duplicates/1", "n_missing": described.n_missing, "groups": table.to_pylist()}
        )
        return
    print(
        f"{summary['n_groups']} near-duplicate groups hold {summary['n_images_in_groups']} of {len(described.rows)} "
        f"images (similarity >= {bar:g}; {summary['chains']})."
    )
    print(
        f"With the caption repeated too: {summary['full']}; with other captions: {summary['partial']}; "
        f"without captions: {summary['uncaptioned']}; with the very same pixels: {summary['n_exact_groups']}."
    )
    show_table(table.slice(0, 50), "the largest groups")
    note_unreadable(described.n_missing)


@app.command(name="parts")
def parts_(
    shelf: Annotated[str | None, typer.Argument(metavar="SHELF", help="descriptors, measures or protocols.")] = None,
    as_json: AsJson = False,
) -> None:
    """List the protocols and every part: how it is called and what it is."""
    from .copying.protocols import catalogue

    listing = catalogue(shelf)
    if as_json:
        show_json(listing)
        return
    for name, rows in listing.items():
        print(f"{name}:")
        for row in rows:
            called = row["spec"] if name != "protocols" else f"{row['name']} = {row['spec']}"
            print(f"  {called}\n      {row['about']}")


@app.command()
def report(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="Folder that `audit -o` or `lint -o` wrote.")],
) -> None:
    """Make the HTML report of a finished audit or lint again."""
    from .copying import audit, lint
    from .copying.results import read_schema

    is_lint = read_schema(folder) == lint.SCHEMA
    result: audit.Audit | lint.Lint = lint.Lint.load(folder) if is_lint else audit.Audit.load(folder)
    result.save(folder)
    print(f"Report: {folder / 'report.html'}")


@app.command()
def fetch(
    name: Annotated[str | None, typer.Argument(metavar="NAME", help="What to fetch; without it, the list.")] = None,
    as_json: AsJson = False,
) -> None:
    """Download a named data set into the cache, checked by its hash. Nothing else in Copyscope downloads anything."""
    from . import assets

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
    """Audit real images, some of them altered copies, and compare the verdict with the truth."""
    from . import assets
    from .copying.audit import audit as run
    from .demo import SOURCE, build, score

    _check(out)
    if not yes and not assets.is_fetched(SOURCE):
        megabytes = next(each.megabytes for each in assets.known() if each.name == SOURCE)
        if not typer.confirm(
            f"The demo needs the data set {SOURCE} ({megabytes} MB, downloaded once). Fetch it?", err=True
        ):
            raise typer.Exit(EXIT_ERROR)
    with progress_bar() as progress:
        made = build(out, assets.fetch(SOURCE, progress=progress), seed=seed)
        result = run(made.generated, made.train, made.held_out, protocol, seed=seed, progress=progress)
    folder = result.save(out / "report")
    truth = score(made, result.summary)
    plain = {
        name: {kind: each.as_dict() for kind, each in value.items()} if isinstance(value, dict) else value.as_dict()
        for name, value in truth.items()
    }
    (folder / "truth.json").write_text(json.dumps(plain, indent=1) + "\n")
    if as_json:
        show_json({"summary": result.summary, "truth": plain, "report": str(folder / "report.html")})
        return
    show(result)
    print("Against the truth (which images are altered copies was recorded when they were made):")
    for name in ("precision", "recall", "false_alarms"):
        print(f"  {name.replace('_', ' '):<14}{truth[name]}")
    for kind, recall in truth["recall_by_kind"].items():
        print(f"  recall, {kind:<8}{recall}")
    print(f"Report: {folder / 'report.html'}")


@app.command()
def doctor(as_json: AsJson = False) -> None:
    """Say what is installed, what can be used, and what each missing piece would need."""
    from .doctor import examine

    findings = examine()
    if as_json:
        show_json(findings)
    else:
        for row in findings:
            print(f"{'ok ' if row['ok'] else '-- '} {row['what']}: {row['says']}")


def main() -> None:
    """Entry point: errors made for people are printed in two lines; `--debug` gives the traceback."""
    # Windows consoles and pipes may not be UTF-8, and file names can hold anything.
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(AttributeError, ValueError):
            stream.reconfigure(errors="backslashreplace")  # type: ignore[union-attr]
    try:
        app()
    except CopyscopeError as error:
        if "--debug" in sys.argv:
            raise
        print(f"copyscope: {error}", file=sys.stderr)
        sys.exit(EXIT_ERROR)
    except SystemExit as stop:
        if stop.code == EXIT_STOPPED:  # typer makes this of Ctrl-C
            print("copyscope: stopped; run the same command again to go on from here", file=sys.stderr)
        raise


def _check(out: Path | None) -> None:
    """Where -o points to must be a folder, or a place for one: said before the work rather than after it."""
    if out:
        from .copying.results import check_folder

        check_folder(out)


def _exit(summary: dict[str, Any], strict: bool, fail_over: float | None) -> None:
    if fail_over is not None:
        rate = summary["replication_rate"]["value"]
        if rate is None or rate > fail_over:
            shown = "unknown" if rate is None else f"{rate:.3f}"
            note(f"The replication rate is {shown}, above the {fail_over:g} of --fail-over.")
            raise typer.Exit(EXIT_COPIES)
    unreadable = sum(summary.get("failures", {"": summary.get("n_missing", 0)}).values())
    if strict and unreadable:
        note(f"{unreadable} images could not be read, and --strict was given.")
        raise typer.Exit(EXIT_UNREADABLE)
