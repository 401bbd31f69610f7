"""Commands `lint`, `embed` and `duplicates`."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from copyscope.console import note_unreadable, progress_bar, show_json, show_table
from copyscope.errors import InputError

from .options import (
    AsJson,
    CorpusPath,
    DecisionsFile,
    DeviceName,
    EngineSpec,
    InsideOnly,
    Lenient,
    Out,
    ProtocolName,
    Seed,
    Split,
    Strict,
    Train,
    Without,
    Workers,
    check_out,
    exit_with,
    note_advice,
    open_corpus,
    opened,
    opened_engine,
    read_decisions,
    refuse_idle,
    removal_note,
    save_and_show,
)

if TYPE_CHECKING:
    from copyscope.data.corpus import Corpus


def lint(
    train: Train,
    protocol: ProtocolName = "sscd-288",
    without: Without = None,
    decisions: DecisionsFile = None,
    inside_only: InsideOnly = False,
    split: Split = None,
    lenient: Lenient = False,
    out: Out = None,
    as_json: AsJson = False,
    strict: Strict = False,
    seed: Seed = 0,
    workers: Workers = None,
    device: DeviceName = None,
    engine: EngineSpec = None,
) -> None:
    """Say before training what in TRAIN is likely to be copied: duplicates, repeated captions, plain pictures."""
    from copyscope.detection.lint import lint as run

    check_out(out)
    decided = read_decisions(decisions)
    with progress_bar() as progress:
        corpus, left_out = opened(train, without, inside_only, progress, split, lenient)
        options: dict[str, Any] = {"workers": workers, "engine": opened_engine(engine), "progress": progress}
        result = run(corpus, protocol, decisions=decided, seed=seed, **options)
    result = dataclasses.replace(result, summary=result.summary | left_out)
    save_and_show(result, out, as_json)
    if not as_json:
        note_advice(train, out, "lint", len(result.tables["risk"]))
    exit_with(result.summary, strict)


def embed(
    context: typer.Context,
    corpus: CorpusPath,
    out: Annotated[
        str,
        typer.Option(
            "--out",
            "-o",
            metavar="DIR",
            help="Folder for vectors.npy, embeddings.parquet, embeddings.json; with --engine a folder or URL of parts.",
        ),
    ],
    protocol: ProtocolName = "sscd-288",
    without: Without = None,
    inside_only: InsideOnly = False,
    split: Split = None,
    lenient: Lenient = False,
    as_json: AsJson = False,
    strict: Strict = False,
    workers: Workers = None,
    device: DeviceName = None,
    engine: EngineSpec = None,
) -> None:
    """Describe every image of CORPUS; killed and started again, it goes on where it was.

    With --engine each worker writes its own Parquet parts, into a folder that all of them reach, or to a URL
    (s3://bucket/name).
    """
    from copyscope.detection.embedding.protocols import protocol as named

    if engine:
        refuse_idle(context, ["workers"], "with --engine\nSay it to the engine: --engine 'processes(workers=4)'")
        summary = _embed_by(engine, open_corpus(corpus, inside_only, split, lenient), out, protocol, without)
    else:
        from copyscope.detection.embedding.embed import embed as run
        from copyscope.files import write_file

        if "://" in out:
            raise InputError(f"Only with an engine is written to a URL, as {out} is.\nAdd --engine processes")
        folder = Path(out)
        check_out(folder)
        with progress_bar() as progress:
            images, left_out = opened(corpus, without, inside_only, progress, split, lenient)
            described = run(images, named(protocol).load(), workers=workers, progress=progress)
        described.save(folder)
        summary = json.loads((folder / "embeddings.json").read_text()) | left_out
        if left_out:
            write_file(folder / "embeddings.json", lambda path: path.write_text(json.dumps(summary, indent=1) + "\n"))
    if as_json:
        show_json(summary)
    else:
        print(f"{summary['n']} embeddings of {summary['dim']} dimensions by {summary['descriptor']} in {out}")
        note_unreadable(summary["n_missing"])
    exit_with(summary, strict)


def _embed_by(engine: str, corpus: Corpus, out: str, protocol: str, without: str | None) -> dict[str, Any]:
    from copyscope.detection.embedding.parquet import write
    from copyscope.detection.embedding.protocols import protocol as named
    from copyscope.engine import open_engine

    if "://" not in out:
        check_out(Path(out))
    with progress_bar() as progress:
        summary, removed = write(
            corpus,
            out,
            named(protocol).load(),
            engine=open_engine(engine),
            without=without,
            progress=progress,
        )
    if without and removed:
        removal_note(without, removed)
    return summary


def duplicates(
    corpus: CorpusPath,
    threshold: Annotated[
        float | None, typer.Option("--threshold", help="Similarity of near-duplicates; the protocol's by default.")
    ] = None,
    protocol: ProtocolName = "sscd-288",
    without: Without = None,
    decisions: DecisionsFile = None,
    inside_only: InsideOnly = False,
    split: Split = None,
    lenient: Lenient = False,
    out: Out = None,
    as_json: AsJson = False,
    workers: Workers = None,
    device: DeviceName = None,
    engine: EngineSpec = None,
) -> None:
    """Groups of near-duplicates in CORPUS, and whether their captions repeat with them; -o writes groups.parquet."""
    from copyscope.detection.dedup.groups import duplicates as run
    from copyscope.detection.embedding.embed import embed as describe
    from copyscope.detection.embedding.protocols import protocol as named
    from copyscope.detection.results import write_table

    check_out(out)
    rules, who, decided = named(protocol), opened_engine(engine), read_decisions(decisions)
    with progress_bar() as progress:
        images, left_out = opened(corpus, without, inside_only, progress, split, lenient)
        described = describe(images, rules.load(), workers=workers, engine=who, progress=progress)
        bar = rules.duplicates if threshold is None else threshold
        groups = run(described, bar, decisions=decided, workers=workers, engine=who, progress=progress)
    table, summary = groups.table(), groups.summary()
    said = {"decisions": decided.summary(groups.honoured)} if decided else {}
    if out:
        write_table(out, "groups", table)
    if as_json:
        show_json(
            summary
            | {"schema": "copyscope.duplicates/1", "n_missing": described.n_missing, "groups": table.to_pylist()}
            | left_out
            | said
        )
        return
    print(
        f"{summary['n_groups']} near-duplicate groups hold {summary['n_images_in_groups']} of {len(described.rows)} "
        f"images (similarity >= {bar:g}; {summary['chains']})."
    )
    full, partial, none = (summary[name] for name in ("full", "partial", "uncaptioned"))
    if summary["n_groups"]:
        print(
            f"Groups by their captions: {full} full (some caption repeats with the image), {partial} partial (no "
            f"caption repeats), {none} uncaptioned. Groups in which images agree in every pixel: "
            f"{summary['n_exact_groups']}."
        )
    if said:
        print(said["decisions"]["sentence"])
    show_table(table.slice(0, 50), "the largest groups: a row an image")
    note_unreadable(described.n_missing)
