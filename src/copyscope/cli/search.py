"""Commands `match` and `index`."""

from __future__ import annotations

import functools
import operator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from copyscope.console import note, note_unreadable, printable, progress_bar, show_json, show_table
from copyscope.errors import InputError

from .options import (
    AsJson,
    EngineSpec,
    HeldOut,
    InsideOnly,
    Out,
    ProtocolName,
    Seed,
    Strict,
    TrustParts,
    Workers,
    check_out,
    exit_with,
    open_corpus,
    opened_engine,
    refuse_idle,
    told,
)

if TYPE_CHECKING:
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
        Path | None, typer.Option("--index", metavar="DIR", help="Search an index that `copyscope index` made.")
    ] = None,
    k: Annotated[int, typer.Option("-k", min=1, help="Matches a query.")] = 10,
    local: Annotated[
        bool, typer.Option("--local/--no-local", help="With --index: look for copies in parts of the images too.")
    ] = True,
    protocol: ProtocolName = "sscd-288",
    inside_only: InsideOnly = False,
    out: Out = None,
    trust_parts: TrustParts = False,
    as_json: AsJson = False,
    workers: Workers = None,
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
        found = Index.open(index, trust_parts=trust_parts)
        _match_in_index(pictures, found, k, local, inside_only, out, as_json, workers)
        return
    if len(pictures) != 2:
        raise InputError(
            f"match takes two sets of images, those asked about and those searched, not {len(pictures)}.\n"
            "To search an index add --index DIR"
        )
    refuse_idle(context, ["local", "trust_parts"], "without an index\nLeave it out, or add --index DIR")
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
    out: Path | None,
    as_json: bool,
    workers: int | None,
) -> None:
    import pyarrow as pa

    from copyscope.detection.lookup import lookup
    from copyscope.report.wording import placed

    with progress_bar() as progress:
        asked = [open_corpus(path, inside_only) for path in dict.fromkeys(pictures)]
        found = lookup(index, asked, k, local=local, workers=workers, progress=progress)
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


def _print_copies(summary: dict[str, Any], n: int) -> None:
    """What was found in sentences: the first of n copies, then how many of how many images."""
    from copyscope.detection.match_sentences import lines_of

    for line in lines_of(summary["copies"][:10], n):
        print(printable(line))
    print(printable(summary["sentence"]))


MADE_WITH = ("held_out", "protocol", "crops", "precision", "seed")
"""Options of `index` that are decided when an index is made."""


def index(
    context: typer.Context,
    out: Annotated[Path, typer.Option("--out", "-o", metavar="DIR", help="Folder of the index.")],
    train: Annotated[
        str | None, typer.Argument(metavar="[TRAIN]", help="Training images, in any of the layouts of a corpus.")
    ] = None,
    held_out: HeldOut = None,
    protocol: ProtocolName = "sscd-288",
    crops: Annotated[
        bool, typer.Option("--crops", help="Describe parts of the training images too: ten times the size.")
    ] = False,
    precision: Annotated[
        str,
        typer.Option("--precision", help="How vectors are kept: float32, float16 (half the bytes), int8 (a quarter)."),
    ] = "float32",
    add: Annotated[bool, typer.Option("--add", help="Add TRAIN to an index that is there.")] = False,
    remove: Annotated[
        list[str] | None,
        typer.Option(
            "--remove", metavar="ID", help="Take an image out; may be repeated. Files keep it until --compact."
        ),
    ] = None,
    without: Annotated[
        str | None,
        typer.Option(
            "--without",
            metavar="LIST",
            help="Leave out of TRAIN, and take out of an index that is there, what LIST names: see embed.",
        ),
    ] = None,
    inside_only: InsideOnly = False,
    compact: Annotated[bool, typer.Option("--compact", help="Take out of the files all that was removed.")] = False,
    check: Annotated[bool, typer.Option("--check", help="Check every byte against its checksum.")] = False,
    trust_parts: TrustParts = False,
    as_json: AsJson = False,
    strict: Strict = False,
    seed: Seed = 0,
    workers: Workers = None,
    engine: EngineSpec = None,
) -> None:
    """Keep the descriptors of TRAIN on disk, so that `copyscope match --index` answers at once; add and remove images.

    Without TRAIN and other options it says what the index is. What was given is done in the order of the options.
    """
    from copyscope.data.removals import Removed, ids_of, leave_out, read_list
    from copyscope.detection.index.index import Index

    check_out(out)
    if add and not train:
        raise InputError("--add needs the images to add.\nGive their folder: copyscope index TRAIN -o DIR --add")
    if add:
        how_made = "with --add: an index keeps what it was made with\nLeave it out, or make a new index without --add"
        refuse_idle(context, MADE_WITH, how_made)
    elif not train:
        idle = "without TRAIN: no images are described\nLeave it out, or name the training images"
        refuse_idle(context, [*MADE_WITH, "engine", "workers", "inside_only"], idle)
    else:
        refuse_idle(context, ["trust_parts"], "on a new index: no file asks for parts\nLeave it out")
    who, n_before = opened_engine(engine), 0
    removed: list[Removed] = []
    listed = read_list(without) if without else None
    with progress_bar() as progress:
        found = None if train and not add else Index.open(out, trust_parts=trust_parts)
        if found:
            n_before = found.summary()["n_missing"]
            if listed is not None:
                ids, there = ids_of(found.ids, found.sha256, listed)
                found.remove(ids)
                removed.append(there)
        if train:
            images = open_corpus(train, inside_only)
            if listed is not None:
                images, given = leave_out(images, listed, progress=progress)
                removed.append(given)
            how: dict[str, Any] = {"workers": workers, "engine": who, "progress": progress}
            if found:
                found.add(images, **how)
            else:
                held = open_corpus(held_out, inside_only) if held_out else None
                how |= {"crops": crops, "precision": precision, "seed": seed}
                found = Index.build(images, out, protocol, held_out=held, **how)
        assert found
        if remove:
            found.remove(remove)
        if compact:
            found.compact()
        if check:
            found.check(progress)
    summary = found.summary()
    n_held = summary["calibration"]["n_missing"] if held_out and not add else 0
    if without:
        summary |= told(without, functools.reduce(operator.and_, removed))
    if as_json:
        show_json(summary)
    else:
        kept = summary["calibration"]
        short = f" ({summary['precision']})" if summary["precision"] != "float32" else ""
        print(
            f"{summary['n']} images by {summary['descriptor']}{short} in {out}, {summary['bytes'] / 2**20:,.1f} MiB; "
            f"p-values rest on {kept['n']} {kept['method']} images." + (" Every checksum holds." if check else "")
        )
        note_unreadable(summary["n_missing"] - n_before)
        if n_held:
            note(f"{n_held} held-out images could not be read: they do not calibrate.")
        if summary["n_blank"]:
            note(f"{summary['n_blank']} blank images (one colour to within noise) were left out.")
        if summary["n_removed"]:
            note(
                f"{summary['n_removed']} removed images are found no more, but their vectors, small pictures, ids and "
                "digests are still in the files: --compact takes them out."
            )
    exit_with({"n_missing": summary["n_missing"] - n_before + n_held}, strict)
