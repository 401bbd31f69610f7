"""Commands `index build`, `add`, `remove`, `compact`, `check` and `show`."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import typer

from copyscope.console import note, note_unreadable, progress_bar, show_json
from copyscope.errors import InputError

from .options import (
    AsJson,
    DeviceName,
    EngineSpec,
    HeldOut,
    IndexFolder,
    InsideOnly,
    Lenient,
    ProtocolName,
    Seed,
    Split,
    Strict,
    Train,
    TrustParts,
    Without,
    Workers,
    check_out,
    exit_with,
    open_corpus,
    opened,
    opened_engine,
    refuse_idle,
    removal_note,
)

index = typer.Typer(
    help="A training set on disk, in which `copyscope match --index` finds copies.", no_args_is_help=True
)


@index.command()
def build(
    context: typer.Context,
    train: Train,
    out: Annotated[Path, typer.Option("--out", "-o", metavar="DIR", help="Folder of the new index.")],
    held_out: HeldOut = None,
    protocol: ProtocolName = "sscd-288",
    crops: Annotated[
        bool, typer.Option("--crops", help="Describe parts of the training images too: ten times the size.")
    ] = False,
    precision: Annotated[
        str,
        typer.Option(
            "--precision", help="How vectors are stored: float32, float16 (half the bytes), int8 (a quarter)."
        ),
    ] = "float32",
    without: Without = None,
    inside_only: InsideOnly = False,
    split: Split = None,
    lenient: Lenient = False,
    as_json: AsJson = False,
    strict: Strict = False,
    seed: Seed = 0,
    workers: Workers = None,
    device: DeviceName = None,
    engine: EngineSpec = None,
) -> None:
    """Describe the images of TRAIN and write a new index.

    p-values rest on the images of --held-out; without it, on a random sample of the training images.
    """
    from copyscope.detection.index.index import Index

    if held_out:
        refuse_idle(context, ["seed"], "with --held-out: no sample is drawn\nLeave it out")
    check_out(out)
    who = opened_engine(engine)
    with progress_bar() as progress:
        images, left_out = opened(train, without, inside_only, progress, split, lenient)
        found = Index.build(
            images,
            out,
            protocol,
            held_out=open_corpus(held_out, inside_only, None, lenient) if held_out else None,
            crops=crops,
            precision=precision,
            seed=seed,
            workers=workers,
            engine=who,
            progress=progress,
        )
    summary = found.summary()
    _say(out, summary, as_json, left_out)
    n_held = summary["calibration"]["n_missing"] if held_out else 0
    if n_held and not as_json:
        note(f"{n_held} held-out images could not be read: they do not calibrate.")
    exit_with({"n_missing": summary["n_missing"] + n_held}, strict)


@index.command()
def add(
    folder: IndexFolder,
    images: Annotated[
        str, typer.Argument(metavar="IMAGES", help="New training images: a folder, Parquet, WebDataset or URL.")
    ],
    without: Without = None,
    inside_only: InsideOnly = False,
    split: Split = None,
    lenient: Lenient = False,
    trust_parts: TrustParts = False,
    as_json: AsJson = False,
    strict: Strict = False,
    workers: Workers = None,
    device: DeviceName = None,
    engine: EngineSpec = None,
) -> None:
    """Add IMAGES to an index. Their ids must be new. The calibration follows; look-ups may go on meanwhile."""
    from copyscope.detection.index.index import Index

    found, who = Index.open(folder, trust_parts=trust_parts), opened_engine(engine)
    n_before = found.summary()["n_missing"]
    with progress_bar() as progress:
        corpus, left_out = opened(images, without, inside_only, progress, split, lenient)
        found.add(corpus, workers=workers, engine=who, progress=progress)
    summary = found.summary()
    n_missing = summary["n_missing"] - n_before
    _say(folder, summary, as_json, left_out, n_missing)
    exit_with({"n_missing": n_missing}, strict)


@index.command()
def remove(
    folder: IndexFolder,
    ids: Annotated[
        list[str] | None, typer.Argument(metavar="[IDS]", help="Ids of images, as `copyscope match` shows them.")
    ] = None,
    listed: Annotated[
        str | None,
        typer.Option("--list", metavar="LIST", help="Remove the images that LIST names by id or sha256."),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Remove images, so that none is found. The files hold their data until `copyscope index compact`."""
    from copyscope.data.removals import ids_of, read_list
    from copyscope.detection.index.index import Index

    if not ids and listed is None:
        raise InputError("No image to remove was named.\nGive ids, or a file of them with --list LIST")
    found, wanted, said = Index.open(folder), list(ids or ()), dict[str, Any]()
    if listed is not None:
        named, removed = ids_of(found.ids, found.sha256, read_list(listed))
        wanted += named
        said = removal_note(listed, removed)
    if wanted:
        found.remove(wanted)
    _say(folder, found.summary(), as_json, said, 0)


@index.command()
def compact(folder: IndexFolder, as_json: AsJson = False) -> None:
    """Write the files anew, without any byte of the images that were removed."""
    from copyscope.detection.index.index import Index

    found = Index.open(folder)
    found.compact()
    _say(folder, found.summary(), as_json, n_missing=0)


@index.command()
def check(folder: IndexFolder, as_json: AsJson = False) -> None:
    """Compare every byte with its checksum; an error names the first file that is damaged."""
    from copyscope.detection.index.index import Index

    found = Index.open(folder)
    with progress_bar() as progress:
        found.check(progress)
    _say(folder, found.summary(), as_json, n_missing=0)
    if not as_json:
        print("Every checksum holds.")


@index.command()
def show(folder: IndexFolder, as_json: AsJson = False) -> None:
    """Say how many images an index holds, how they are described, and what its p-values rest on."""
    from copyscope.detection.index.index import Index

    _say(folder, Index.open(folder).summary(), as_json)


def _say(
    folder: Path,
    summary: Mapping[str, Any],
    as_json: bool,
    more: Mapping[str, Any] | None = None,
    n_missing: int | None = None,
) -> None:
    """Print what an index is.

    Args:
        folder: of the index.
        summary: of the index.
        as_json: print one JSON object, `summary` and `more`.
        more: what the JSON says beside the summary.
        n_missing: images that this command could not read; None = all that the index counts.
    """
    if as_json:
        show_json({**summary, **(more or {})})
        return
    scores = summary["calibration"]
    short = f" ({summary['precision']})" if summary["precision"] != "float32" else ""
    print(
        f"{summary['n']} images by {summary['descriptor']}{short} in {folder}, {summary['bytes'] / 2**20:,.1f} MiB; "
        f"p-values rest on {scores['n']} {scores['method']} images."
    )
    note_unreadable(summary["n_missing"] if n_missing is None else n_missing)
    if summary["n_blank"]:
        note(f"{summary['n_blank']} blank images (one colour to within noise) were left out.")
    if summary["n_removed"]:
        note(
            f"{summary['n_removed']} removed images are found no more, but their vectors, small pictures, ids and "
            f"digests are still in the files. To take them out: copyscope index compact {folder}"
        )
