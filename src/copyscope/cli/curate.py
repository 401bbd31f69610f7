"""Command `curate`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from copyscope.console import note, note_unreadable, progress_bar, show_json, show_table
from copyscope.errors import InputError, MissingExtra

from .options import (
    AsJson,
    CorpusPath,
    DecisionsFile,
    DryRun,
    InsideOnly,
    Lenient,
    ProtocolName,
    Seed,
    Split,
    Without,
    Workers,
    check_out,
    need_torch,
    opened,
    read_decisions,
    refuse_idle,
)

if TYPE_CHECKING:
    import numpy as np

    from copyscope.data.corpus import Corpus
    from copyscope.detection.advice import Plan
    from copyscope.machine import Progress


def curate(
    context: typer.Context,
    corpus: CorpusPath,
    out: Annotated[Path, typer.Option("--out", "-o", metavar="DIR", help="A new folder for the data set.")],
    without: Without = None,
    decisions: DecisionsFile = None,
    inside_only: InsideOnly = False,
    split: Split = None,
    lenient: Lenient = False,
    drop_duplicates: Annotated[
        Literal["keep-one", "down-weight", "remove"] | None,
        typer.Option(
            "--drop-duplicates",
            help="What becomes of the images of a near-duplicate group. keep-one keeps a captioned one first, then the "
            "one with most pixels, the least compressed, the best captioned; dropped.csv says why, image by image.",
        ),
    ] = None,
    from_lint: Annotated[
        Path | None, typer.Option("--from-lint", metavar="DIR", help="Do what a lint of CORPUS advises; see --dry-run.")
    ] = None,
    from_audit: Annotated[
        Path | None, typer.Option("--from-audit", metavar="DIR", help="Do what an audit against CORPUS advises.")
    ] = None,
    n: Annotated[int | None, typer.Option("-n", min=1, help="Keep this many images, drawn at random.")] = None,
    captions: Annotated[
        str | None,
        typer.Option(
            "--captions",
            help="Add captions: general (kinds in place of nouns), paraphrase, wordnet, or the folder of a captioning "
            "model such as BLIP. With --from-lint or --from-audit: to the images to recaption, before their own.",
        ),
    ] = None,
    n_captions: Annotated[int, typer.Option("--n-captions", min=1, help="How many --captions adds to an image.")] = 4,
    conditioning: Annotated[
        str | None,
        typer.Option(
            "--conditioning", help="Captions become: unconditional, fixed, class, instance, random or original."
        ),
    ] = None,
    class_column: Annotated[str, typer.Option("--class-column", help="Column of the classes.")] = "class",
    duplication: Annotated[
        str, typer.Option("--duplication", help="Plant duplicates, as weights: none, full or partial (captions vary).")
    ] = "none",
    rate: Annotated[float, typer.Option("--rate", help="Share of images that --duplication repeats.")] = 0.05,
    factor: Annotated[float, typer.Option("--factor", help="How often these are drawn for once of the others.")] = 5.0,
    layout: Annotated[str, typer.Option("--layout", help="imagefolder, kohya, parquet or webdataset.")] = "imagefolder",
    protocol: ProtocolName = "sscd-288",
    dry_run: DryRun = False,
    as_json: AsJson = False,
    seed: Seed = 0,
    workers: Workers = None,
) -> None:
    """Make a data set for any trainer out of CORPUS; the options apply in the order they are listed in.

    Image files are copied as they are, with captions, weight and all other columns.
    """
    from copyscope.curation.captions import conditioned
    from copyscope.curation.curate import duplicate, subset
    from copyscope.curation.export import reading_hint, refuse_full, write
    from copyscope.detection.advice import COLUMNS, carried_out
    from copyscope.detection.advice import plan as advised
    from copyscope.detection.dedup.deduplicate import near_duplicates, without_duplicates, write_list

    result = from_lint or from_audit
    if from_lint and from_audit:
        raise InputError("--from-lint and --from-audit cannot both be.\nUse one after the other")
    if dry_run and not result:
        raise InputError("--dry-run shows a plan, and there is none.\nAdd --from-lint DIR or --from-audit DIR")
    if result:
        refuse_idle(
            context,
            ["decisions"],
            "with --from-lint and --from-audit, which carry out a result\n"
            "Make the result with --decisions FILE, then carry it out",
        )
    needs = {
        ("protocol", "decisions"): (drop_duplicates, "--drop-duplicates keep-one"),
        ("n_captions",): (captions or result, "--captions general"),
        ("class_column",): (conditioning == "class", "--conditioning class"),
        ("rate", "factor"): (duplication != "none", "--duplication full"),
    }
    for names, (needed, option) in needs.items():
        if not needed:
            refuse_idle(context, names, f"without {option.split()[0]}\nLeave it out, or add {option}, say")
    check_out(out)
    if not dry_run:
        refuse_full(out)
    decided = read_decisions(decisions)
    dropped: list[dict[str, Any]] = []
    said: dict[str, Any] = {}
    with progress_bar() as progress:
        made, left_out = opened(corpus, without, inside_only, progress, split, lenient)
        n_given = len(made)
        options: dict[str, Any] = {"workers": workers, "progress": progress}
        if result:
            planned = advised(made, result, drop_duplicates or "keep-one", **options)
            said |= {"plan": {"result": str(result), **planned.counts(), "n_unmatched": planned.n_unmatched}}
            if dry_run:
                _show_plan(planned, as_json)
                return
            made = carried_out(made, planned)
            if to_recaption := planned.ids("recaption"):
                made = _captioned(made, captions or "general", n_captions, seed, progress, class_column, to_recaption)
        elif drop_duplicates:
            described, groups = near_duplicates(made, protocol, decided, **options)
            made, dropped = without_duplicates(described, groups, drop_duplicates, **options)
            said |= {"decisions": decided.summary(groups.honoured)} if decided else {}
        if n:
            made = subset(made, n, seed=seed)
        if captions and not result:
            made = _captioned(made, captions, n_captions, seed, progress, class_column)
        if conditioning:
            made = conditioned(made, conditioning, seed=seed, class_column=class_column)
        made = duplicate(made, duplication, rate=rate, factor=factor, seed=seed)
        written = write(made, out, layout, progress=progress)
        if dropped:
            write_list(dropped, out / "dropped.csv")
        if result:
            write_list(planned.rows, out / "done.csv", COLUMNS)
    summary = (
        {
            "schema": "copyscope.curate/1",
            "path": str(out),
            "kind": written.kind,
            "layout": layout,
            "reads": (reads := reading_hint(layout)),
            "n": len(written),
            "n_duplicated": sum(made.table["duplicated"].to_pylist()),
            "n_dropped": len(dropped),
            "n_groups": len({row["group"] for row in dropped}),
            "n_missing": len(made) - len(written),
        }
        | left_out
        | said
    )
    if as_json:
        show_json(summary)
        return
    planted = f"; {summary['n_duplicated']} of them planted as duplicates" if summary["n_duplicated"] else ""
    if duplication != "none":
        planted += f" (drawn {factor:g} times as often)"
    print(f"{summary['n']} images in {out}{planted}")
    print(f"A trainer reads: caption from {reads['caption']}, weight (how often to draw) from {reads['weight']}.")
    if "partial" in written.table["duplication"].to_pylist():
        print(f"Images planted as partial duplicates take any caption from {reads['captions']}, anew at each draw.")
    if result:
        done = ", ".join(f"{does} {n}" for does, n in planned.counts().items() if n)
        print(f"Done of what {result} advises: {done or 'nothing'}; listed in {out / 'done.csv'}")
    elif drop_duplicates in ("keep-one", "remove"):
        n_groups = "1 group" if summary["n_groups"] == 1 else f"{summary['n_groups']} groups"
        where = f"; listed in {out / 'dropped.csv'}" if dropped else ""
        print(f"{len(dropped)} of {n_given} dropped ({n_groups}){where}")
    if "decisions" in said:
        print(said["decisions"]["sentence"])
    note_unreadable(len(made) - len(written))


def _show_plan(planned: Plan, as_json: bool) -> None:
    import pyarrow as pa

    if as_json:
        plan = {"result": planned.result, **planned.counts(), "n_unmatched": planned.n_unmatched}
        show_json({"schema": "copyscope.plan/1", "plan": plan, "rows": list(planned.rows)})
        return
    rows = [{name: row[name] for name in ("id", "does", "kept_id", "reason")} for row in planned.rows]
    if rows:
        shown = pa.Table.from_pylist(rows[:50])
        show_table(shown, f"the plan for {len(rows)} images" + (", the first 50" if len(rows) > 50 else ""))
    print(planned.sentence())


def _captioned(
    corpus: Corpus, how: str, n: int, seed: int, progress: Progress, class_column: str, ids: list[str] | None = None
) -> Corpus:
    """Add captions by kinds, by templates, by WordNet or by the model in a folder.

    Args:
        corpus: the images.
        how: general, paraphrase, wordnet or a folder.
        n: captions an image.
        seed: of the draws.
        progress: is told how far it is.
        class_column: column of classes, for "general".
        ids: of the images that get any, before their own; None = all, behind.
    """
    from copyscope.curation.captions import paraphrases, wordnet
    from copyscope.curation.curate import add_captions
    from copyscope.curation.general import generalised
    from copyscope.data.table import texts
    from copyscope.imaging.images import decode

    done = 0

    def reworded(row: int, captions: list[str], rng: np.random.Generator) -> list[str]:
        return paraphrases(captions[0], n, rng, wordnet=how == "wordnet") if captions else []

    def seen(row: int, captions: list[str], rng: np.random.Generator) -> list[str]:
        nonlocal done
        done += 1
        progress("caption", done, len(corpus))
        return captioner.caption([decode(corpus.read(row))], n, seed=int(rng.integers(2**31)))[0]

    def general(row: int, captions: list[str], rng: np.random.Generator) -> list[str]:
        kind = " ".join(texts(classes[row]))
        return generalised(captions[0], n, kind, nouns=nouns) if captions else []

    if how == "general":
        named = class_column in corpus.table.column_names
        classes = corpus.table[class_column].to_pylist() if named else [None] * len(corpus)
        try:
            nouns = bool(wordnet())
        except MissingExtra as error:
            nouns = False
            note(f"{str(error).partition(chr(10))[0]} Captions are shortened, and classes are named, without it.")
            note(str(error).partition("\n")[2])
        return add_captions(corpus, general, seed=seed, ids=ids)
    if how in ("paraphrase", "wordnet"):
        return add_captions(corpus, reworded, seed=seed, ids=ids)
    if not Path(how).is_dir():
        raise InputError(f"--captions {how} is no folder of a model.\nThere are also: general, paraphrase, wordnet")
    need_torch("A captioning model")
    from copyscope.diffusion.text.captioner import Captioner

    captioner = Captioner(how)
    return add_captions(corpus, seen, seed=seed, ids=ids)
