"""Command `match`."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from copyscope.console import note_unreadable, printable, progress_bar, show_json, show_table
from copyscope.errors import InputError

from .options import (
    AsJson,
    DecisionsFile,
    DeviceName,
    EngineSpec,
    InsideOnly,
    Out,
    ProtocolName,
    TrustParts,
    Workers,
    check_out,
    open_corpus,
    opened_engine,
    read_decisions,
    refuse_idle,
)

if TYPE_CHECKING:
    from copyscope.data.corpus import Corpus
    from copyscope.detection.index.index import Index


def match(
    context: typer.Context,
    pictures: Annotated[
        list[str],
        typer.Argument(
            metavar="IMAGES", help="Images asked about, then the images searched; with --index, the former alone."
        ),
    ],
    index: Annotated[
        Path | None, typer.Option("--index", metavar="DIR", help="Search an index that `copyscope index build` made.")
    ] = None,
    k: Annotated[int, typer.Option("-k", min=1, help="Matches a query.")] = 10,
    local: Annotated[
        bool, typer.Option("--local/--no-local", help="With --index: look for copies in parts of the images too.")
    ] = True,
    train: Annotated[
        str | None,
        typer.Option("--train", metavar="DIR", help="With --index and -o: the training images, for the report."),
    ] = None,
    protocol: ProtocolName = "sscd-288",
    decisions: DecisionsFile = None,
    inside_only: InsideOnly = False,
    out: Out = None,
    trust_parts: TrustParts = False,
    as_json: AsJson = False,
    workers: Workers = None,
    device: DeviceName = None,
    engine: EngineSpec = None,
) -> None:
    """The k most similar images of a set for every image asked about; -o writes matches.parquet.

    copyscope match QUERIES REFERENCES, or copyscope match IMAGES --index DIR; then -o writes a report.html too, with
    the pictures, their matches and boxes.
    """
    check_out(out)
    if index:
        from copyscope.detection.index.index import Index

        refuse_idle(context, ["protocol"], "with --index: an index keeps the protocol it was made with\nLeave it out")
        refuse_idle(context, ["engine"], "with --index: an index is searched by this process alone\nLeave it out")
        found = Index.open(index, trust_parts=trust_parts, decisions=read_decisions(decisions))
        if not out:
            refuse_idle(context, ["train"], "where no report is written\nLeave it out, or add -o DIR")
        trained = open_corpus(train, inside_only) if train else None
        _match_in_index(pictures, found, k, local, inside_only, trained, out, as_json, workers)
        return
    if len(pictures) != 2:
        raise InputError(
            f"match takes two sets of images, those asked about and those searched, not {len(pictures)}.\n"
            "To search an index add --index DIR"
        )
    refuse_idle(context, ["local", "trust_parts", "train"], "without an index\nLeave it out, or add --index DIR")
    queries, references = pictures
    from copyscope.detection.embedding.protocols import protocol as named
    from copyscope.detection.match_sentences import match_sets
    from copyscope.detection.results import write_table

    with progress_bar() as progress:
        summary, table = match_sets(
            open_corpus(queries, inside_only),
            open_corpus(references, inside_only),
            named(protocol),
            k,
            decisions=read_decisions(decisions),
            workers=workers,
            engine=opened_engine(engine),
            progress=progress,
        )
    if out:
        write_table(out, "matches", table)
    if as_json:
        show_json(summary | {"matches": table.to_pylist()})
    else:
        show_table(table.slice(0, 50), f"{table.num_rows} matches" + (", the first 50" if table.num_rows > 50 else ""))
        note_unreadable(sum(summary["n_missing"]))
        _print_copies(summary, summary["n_identical"] + summary["n_similar"])


def _match_in_index(
    pictures: list[str],
    index: Index,
    k: int,
    local: bool,
    inside_only: bool,
    train: Corpus | None,
    out: Path | None,
    as_json: bool,
    workers: int | None,
) -> None:
    import pyarrow as pa

    from copyscope.detection.lookup import lookup
    from copyscope.report.wording import placed

    with progress_bar() as progress:
        asked = [open_corpus(path, inside_only) for path in dict.fromkeys(pictures)]
        found = lookup(index, asked, k, local=local, train=train, workers=workers, progress=progress)
    if out:
        found.save(out)
    rows = found.tables["matches"]
    if as_json:
        show_json(found.summary | {"matches": rows.to_pylist()})
        return
    shown = rows.select(["query_id", "reference_id", "score", "verified", "combined", "p_value", "identical", "box"])
    shown = shown.slice(0, 50)
    boxes = [placed(box).replace(" %", "%") or None for box in shown["box"].to_pylist()]
    shown = shown.drop_columns("box")
    if any(boxes):
        shown = shown.append_column("part", pa.array(boxes, pa.string()))
    show_table(shown, f"{rows.num_rows} matches" + (", the first 50" if rows.num_rows > 50 else ""))
    note_unreadable(found.summary["n_missing"])
    _print_copies(found.summary, found.summary["n_flagged"])
    if out:
        print(f"Report: {out / 'report.html'}")


def _print_copies(summary: Mapping[str, Any], n: int) -> None:
    """What was found in sentences: the first of n copies, then how many of how many images."""
    from copyscope.detection.match_sentences import lines_of

    for line in lines_of(summary["copies"][:10], n):
        print(printable(line))
    print(printable(summary["sentence"]))
