"""Commands that look at images: audit, lint, embed, match, duplicates, index."""

from __future__ import annotations

import dataclasses
import functools
import json
import operator
from pathlib import Path
from typing import Annotated, Any

import typer

from .cli_options import (
    AsJson,
    CorpusPath,
    EngineSpec,
    HeldOut,
    Out,
    ProtocolName,
    Seed,
    Strict,
    Train,
    Without,
    Workers,
    check_out,
    exit_with,
    opened,
    opened_engine,
    told,
)
from .console import note_unreadable, progress_bar, show, show_json, show_table
from .errors import InputError


def lint(
    train: Train,
    protocol: ProtocolName = "sscd-288",
    without: Without = None,
    out: Out = None,
    as_json: AsJson = False,
    strict: Strict = False,
    seed: Seed = 0,
    workers: Workers = None,
    engine: EngineSpec = None,
) -> None:
    """Say before training what in TRAIN is likely to be copied: duplicates, repeated captions, plain pictures."""
    from .copying.lint import lint as run

    check_out(out)
    with progress_bar() as progress:
        corpus, left_out = opened(train, without, progress)
        result = run(corpus, protocol, seed=seed, workers=workers, engine=opened_engine(engine), progress=progress)
    result = dataclasses.replace(result, summary=result.summary | left_out)
    if out:
        result.save(out)
    if as_json:
        show_json(result.summary)
    else:
        show(result)
        if out:
            print(f"Report: {out / 'report.html'}")
    exit_with(result.summary, strict)


def embed(
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
    as_json: AsJson = False,
    strict: Strict = False,
    workers: Workers = None,
    engine: EngineSpec = None,
) -> None:
    """Describe every image of CORPUS; killed and started again, it goes on where it was.

    With --engine each worker writes its own Parquet parts, into a folder that all of them reach, or to a URL
    (s3://bucket/name).
    """
    from .copying.protocols import protocol as named

    if engine:
        summary = _embed_by(engine, corpus, out, protocol, without)
    else:
        from .copying.embed import embed as run
        from .files import write_file

        if "://" in out:
            raise InputError(f"Only with an engine is written to a URL, as {out} is.\nAdd --engine processes")
        folder = Path(out)
        check_out(folder)
        with progress_bar() as progress:
            images, left_out = opened(corpus, without, progress)
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


def _embed_by(engine: str, corpus: str, out: str, protocol: str, without: str | None) -> dict[str, Any]:
    from .copying.protocols import protocol as named
    from .copying.sharded import write
    from .corpus import Corpus
    from .engine import open_engine

    if "://" not in out:
        check_out(Path(out))
    with progress_bar() as progress:
        summary, removed = write(
            Corpus.open(corpus),
            out,
            named(protocol).load(),
            engine=open_engine(engine),
            without=without,
            progress=progress,
        )
    if without and removed:
        told(without, removed)
    return summary


def match(
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
    out: Out = None,
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
        if engine:
            raise InputError("An index is searched by this process alone.\nLeave out --engine")
        _match_in_index(pictures, index, k, local, out, as_json, workers)
        return
    if len(pictures) != 2:
        raise InputError(
            f"match takes two sets of images, those asked about and those searched, not {len(pictures)}.\n"
            "To search an index add --index DIR"
        )
    queries, references = pictures
    from .copying.embed import embed as describe
    from .copying.match import match as run
    from .copying.protocols import protocol as named
    from .copying.results import write_table
    from .copying.verify import Verify
    from .corpus import Corpus

    descriptor, who = named(protocol).load(), opened_engine(engine)
    with progress_bar() as progress:
        sets = [
            describe(Corpus.open(path), descriptor, workers=workers, engine=who, progress=progress)
            for path in (queries, references)
        ]
        found = run(sets[0], sets[1], Verify(), k=k, workers=workers, engine=who, progress=progress)
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


def _match_in_index(
    pictures: list[str], folder: Path, k: int, local: bool, out: Path | None, as_json: bool, workers: int | None
) -> None:
    from .copying.index import Index
    from .copying.lookup import lookup

    with progress_bar() as progress:
        found = lookup(Index.open(folder), pictures, k, local=local, workers=workers, progress=progress)
    if out:
        found.save(out)
    rows = found.tables["matches"]
    if as_json:
        show_json(found.summary | {"matches": rows.to_pylist()})
        return
    shown = rows.select(["query_id", "reference_id", "score", "verified", "combined", "p_value", "box"])
    show_table(shown.slice(0, 50), f"{rows.num_rows} matches" + (", the first 50" if rows.num_rows > 50 else ""))
    note_unreadable(found.summary["n_missing"])
    if out:
        print(f"Report: {out / 'report.html'}")


def duplicates(
    corpus: CorpusPath,
    threshold: Annotated[
        float | None, typer.Option("--threshold", help="Similarity of near-duplicates; the protocol's by default.")
    ] = None,
    protocol: ProtocolName = "sscd-288",
    without: Without = None,
    out: Out = None,
    as_json: AsJson = False,
    workers: Workers = None,
    engine: EngineSpec = None,
) -> None:
    """Groups of near-duplicates in CORPUS, and whether their captions repeat with them; -o writes groups.parquet."""
    from .copying.duplicates import duplicates as run
    from .copying.embed import embed as describe
    from .copying.protocols import protocol as named
    from .copying.results import write_table

    check_out(out)
    rules, who = named(protocol), opened_engine(engine)
    with progress_bar() as progress:
        images, left_out = opened(corpus, without, progress)
        described = describe(images, rules.load(), workers=workers, engine=who, progress=progress)
        bar = rules.duplicates if threshold is None else threshold
        groups = run(described, bar, workers=workers, engine=who, progress=progress)
    table, summary = groups.table(), groups.summary()
    if out:
        write_table(out, "groups", table)
    if as_json:
        show_json(
            summary
            | {"schema": "copyscope.duplicates/1", "n_missing": described.n_missing, "groups": table.to_pylist()}
            | left_out
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


def index(
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
        list[str] | None, typer.Option("--remove", metavar="ID", help="Take an image out; may be repeated.")
    ] = None,
    without: Annotated[
        str | None,
        typer.Option(
            "--without",
            metavar="LIST",
            help="Leave out of TRAIN, and take out of an index that is there, what LIST names: see embed.",
        ),
    ] = None,
    compact: Annotated[bool, typer.Option("--compact", help="Free the space of what was removed.")] = False,
    check: Annotated[bool, typer.Option("--check", help="Check every byte against its checksum.")] = False,
    as_json: AsJson = False,
    strict: Strict = False,
    seed: Seed = 0,
    workers: Workers = None,
    engine: EngineSpec = None,
) -> None:
    """Keep the descriptors of TRAIN on disk, so that `copyscope match --index` answers at once; add and remove images.

    Without TRAIN and other options it says what the index is. What was given is done in the order of the options.
    """
    from .copying.index import Index
    from .corpus import Corpus
    from .removals import Removed, ids_of, leave_out, read_list

    check_out(out)
    if add and not train:
        raise InputError("--add needs the images to add.\nGive their folder: copyscope index TRAIN -o DIR --add")
    who, n_before = opened_engine(engine), 0
    removed: list[Removed] = []
    listed = read_list(without) if without else None
    with progress_bar() as progress:
        found = None if train and not add else Index.open(out)
        if found:
            n_before = found.summary()["n_missing"]
            if listed is not None:
                ids, there = ids_of(found.ids, found.sha256, listed)
                found.remove(ids)
                removed.append(there)
        if train:
            images = Corpus.open(train)
            if listed is not None:
                images, given = leave_out(images, listed, progress=progress)
                removed.append(given)
            how: dict[str, Any] = {"workers": workers, "engine": who, "progress": progress}
            if found:
                found.add(images, **how)
            else:
                how |= {"crops": crops, "precision": precision, "seed": seed}
                found = Index.build(images, out, protocol, held_out=held_out, **how)
        assert found
        if remove:
            found.remove(remove)
        if compact:
            found.compact()
        if check:
            found.check(progress)
    summary = found.summary()
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
    exit_with({"n_missing": summary["n_missing"] - n_before}, strict)
