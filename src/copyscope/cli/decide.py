"""Commands `decide` and `leaks`."""

from __future__ import annotations

import datetime
import getpass
import hashlib
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from copyscope.console import note_unreadable, printable, progress_bar, show_json, show_table
from copyscope.errors import InputError

from .options import (
    EXIT_COPIES,
    AsJson,
    DecisionsFile,
    EngineSpec,
    InsideOnly,
    Out,
    ProtocolName,
    Strict,
    Workers,
    check_out,
    exit_with,
    open_corpus,
    opened_engine,
    read_decisions,
)

if TYPE_CHECKING:
    from copyscope.curation.decisions import Named
    from copyscope.data.corpus import Corpus


def decide(
    verdict: Annotated[str, typer.Argument(metavar="VERDICT", help="same, different, licensed or ignore.")],
    images: Annotated[list[str] | None, typer.Argument(metavar="[IMAGES]", help="Ids of images in --of.")] = None,
    of: Annotated[
        list[str] | None,
        typer.Option("--of", metavar="CORPUS", help="The images; may be repeated, as for generated and training ones."),
    ] = None,
    decisions: Annotated[
        Path, typer.Option("--decisions", metavar="FILE", help="File that the decision is added to.")
    ] = Path("decisions.jsonl"),
    result: Annotated[
        Path | None,
        typer.Option("--result", metavar="DIR", help="With --group: a result of lint, duplicates, audit or leaks."),
    ] = None,
    group: Annotated[
        int | None, typer.Option("--group", min=0, help="All images of this near-duplicate group of --result.")
    ] = None,
    by: Annotated[str, typer.Option("--by", help="Who decides; your user name by default.")] = "",
    why: Annotated[str, typer.Option("--why", help="The reason, for people.")] = "",
    as_json: AsJson = False,
) -> None:
    """Write down a verdict on images, which --decisions of other commands honours.

    same: they are one picture. different: no two of them are. licensed: a copy of one of them is no copy. ignore: of
    one image, leave it out; of several, say nothing of any two of them. The file has one JSON object a line and may be
    edited by hand. Images are named by the digest of their file, so that a new name does not lose the decision.
    """
    from copyscope.curation.decisions import append, checked

    ids = list(images or [])
    if (result is None) != (group is None):
        raise InputError("--result and --group go together.\nName a result folder and a group in it")
    if result is not None and group is not None:
        ids += _of_group(result, group)
    if not of:
        raise InputError("Whose images are they?\nAdd --of CORPUS, the folder they are in")
    named: list[Named] = []
    with progress_bar():
        corpora = [open_corpus(path, False) for path in of]
        for each in ids:
            named += _named(each, corpora)
    when = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
    try:
        decision = checked(verdict, named, by or _user(), when, why)
    except ValueError as error:
        raise InputError(f"No such decision: {error}.\nSee: copyscope decide --help") from None
    append(decisions, decision)
    if as_json:
        show_json({"schema": "copyscope.decision/1", "file": str(decisions), "decision": decision.as_dict()})
        return
    print(f"{verdict}: {', '.join(each.id or '' for each in named[:5])}{' ...' if len(named) > 5 else ''}")
    print(f"Added to {decisions}. Honour it with --decisions {decisions}")


def _named(name: str, corpora: list[Corpus]) -> list[Named]:
    """Name the image of this id in each corpus that has one, with the digest of its file.

    Where a corpus's folder stands before the id, that of this corpus alone. Raises InputError.
    """
    from copyscope.curation.decisions import Named
    from copyscope.errors import ImageError

    found = []
    for corpus in corpora:
        if name.startswith(folder := corpus.origin.rstrip("/") + "/") and name.removeprefix(folder) in corpus.ids:
            return _named(name.removeprefix(folder), [corpus])
    for corpus in corpora:
        if name not in corpus.ids:
            continue
        row = corpus.ids.index(name)
        try:
            found.append(Named(name, hashlib.sha256(corpus.read(row)).hexdigest()))
        except ImageError as error:
            raise InputError(f"{name} of {corpus.origin} cannot be read: {error}.\nName another image") from None
    if not found:
        where = " or ".join(corpus.origin for corpus in corpora)
        raise InputError(f"No image {name!r} in {where}.\nGive ids as the results show them")
    return found


def _of_group(result: Path, group: int) -> list[str]:
    """Ids of the images of a near-duplicate group of a result."""
    from copyscope.data.parquet_pages import read_table

    path = result / "groups.parquet"
    if not path.is_file():
        raise InputError(f"No groups in {result}.\nName the folder that lint, duplicates, audit or leaks wrote with -o")
    rows = read_table(path).to_pylist()
    ids = [row["id"] for row in rows if row["group"] == group]
    if not ids:
        groups = sorted({row["group"] for row in rows})
        shown = ", ".join(map(str, groups[:20])) + (", ..." if len(groups) > 20 else "")
        raise InputError(f"{result} has no group {group}.\nIts groups are: {shown or 'none'}")
    return ids


def _user() -> str:
    try:
        return getpass.getuser()
    except (OSError, KeyError, ImportError):
        return ""


def leaks(
    sets: Annotated[
        list[str],
        typer.Argument(metavar="SETS", help="Two sets of images or more; the first is the one to be cleaned."),
    ],
    protocol: ProtocolName = "sscd-288",
    decisions: DecisionsFile = None,
    inside_only: InsideOnly = False,
    out: Out = None,
    as_json: AsJson = False,
    strict: Strict = False,
    workers: Workers = None,
    engine: EngineSpec = None,
) -> None:
    """Say which images of one set stand, changed or not, in another.

    Such as training and test images, licensed and unlicensed ones, or a block list.

    Exits 3 where some do. -o writes a report and drop.csv, the images of the first set to leave out (--without).
    """
    import pyarrow as pa

    from copyscope.detection.leaks import leaks as run

    check_out(out)
    decided = read_decisions(decisions)
    who = opened_engine(engine)
    with progress_bar() as progress:
        corpora = [open_corpus(path, inside_only) for path in sets]
        found = run(corpora, protocol, decisions=decided, workers=workers, engine=who, progress=progress)
    if out:
        found.save(out)
    rows = found.tables["groups"].select(["group", "set", "id_in_set", "exact"])
    if as_json:
        show_json({**found.summary, "groups": rows.to_pylist(), "drop": found.tables["drop"].to_pylist()})
    else:
        shown = rows.rename_columns(["group", "set", "id", "exact"])
        n_groups = found.summary["n_groups"]
        title = f"{n_groups} {'group' if n_groups == 1 else 'groups'} across sets" + (
            ": the first 50 images" if len(rows) > 50 else ""
        )
        show_table(pa.table(shown).slice(0, 50), title)
        note_unreadable(found.summary["n_missing"])
        print(printable(found.sentence))
        if out:
            print(f"Report: {out / 'report.html'}")
            if found.summary["n_leaked"]:
                print(f"To leave them out: copyscope curate {sets[0]} -o CLEANED --without {out / 'drop.csv'}")
    exit_with(found.summary, strict)
    if found.summary["n_groups"]:
        raise typer.Exit(EXIT_COPIES)
