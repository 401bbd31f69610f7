"""Command `audit`, and the release gate `--fail-over`."""

from __future__ import annotations

from typing import Annotated

import typer

from copyscope.console import progress_bar, show_json
from copyscope.errors import InputError

from .options import (
    EXIT_CANNOT_TELL,
    EXIT_COPIES,
    AsJson,
    DecisionsFile,
    DeviceName,
    DryRun,
    EmbedImages,
    EngineSpec,
    FailOn,
    Generated,
    HeldOut,
    InsideOnly,
    Lenient,
    Out,
    PartsWish,
    ProtocolName,
    Seed,
    Split,
    Strict,
    Train,
    Workers,
    check_out,
    exit_with,
    gate,
    note_advice,
    open_corpus,
    opened_engine,
    read_decisions,
    refuse_idle,
    save_and_show,
)


def audit(
    context: typer.Context,
    generated: Generated,
    train: Train,
    held_out: HeldOut = None,
    control: Annotated[
        str | None,
        typer.Option(
            "--control",
            metavar="DIR",
            help="Instead of --held-out: images of the base model, without the fine-tuning, from the same prompts.",
        ),
    ] = None,
    held_out_exclude: Annotated[
        str | None,
        typer.Option(
            "--held-out-exclude",
            metavar="FILE",
            help="Leave out the held-out images, or controls, that FILE names by id: look-alikes that you saw.",
        ),
    ] = None,
    trust_held_out: Annotated[
        bool, typer.Option("--trust-held-out", help="Calibrate on held-out images even where their kind is another.")
    ] = False,
    sensitivity: Annotated[
        int,
        typer.Option(
            "--sensitivity",
            min=0,
            metavar="N",
            help="Plant altered copies of N training images, to measure how many would be seen. 0 leaves it out.",
        ),
    ] = 200,
    parts: Annotated[
        PartsWish,
        typer.Option(
            "--parts",
            help="Look for training images set into parts of the pictures (grids, insets); auto: up to 20,000 of them.",
        ),
    ] = PartsWish.auto,
    decisions: DecisionsFile = None,
    inside_only: InsideOnly = False,
    split: Split = None,
    lenient: Lenient = False,
    protocol: ProtocolName = "sscd-288",
    fdr: Annotated[float, typer.Option("--fdr", help="False discovery rate of the list of copies.")] = 0.05,
    clip: Annotated[
        str | None,
        typer.Option("--clip", metavar="DIR", help="Local CLIP model, to measure how images agree with their prompts."),
    ] = None,
    title: Annotated[str | None, typer.Option("--title", metavar="TEXT", help="Title of the report.")] = None,
    model: Annotated[
        str | None,
        typer.Option("--model", metavar="TEXT", help="Name and version of the model, for the report."),
    ] = None,
    text: Annotated[
        str | None, typer.Option("--note", metavar="TEXT", help="A note for the readers of the report.")
    ] = None,
    embed: Annotated[
        EmbedImages,
        typer.Option(
            "--embed",
            help="What the report enlarges: nothing, the 24 worst pairs at 768 pixels (6 MB), or the files of flagged "
            "pairs as they are, with their metadata (64 MB).",
        ),
    ] = EmbedImages.large,
    fail_over: Annotated[
        float | None,
        typer.Option(
            "--fail-over",
            metavar="RATE",
            help=f"Exit {EXIT_COPIES} if the replication rate is above RATE, {EXIT_CANNOT_TELL} if it is not known.",
        ),
    ] = None,
    fail_on: Annotated[
        FailOn,
        typer.Option("--fail-on", help="What --fail-over looks at: copies found, or the corrected rate's upper end."),
    ] = FailOn.rate,
    allow_cannot_tell: Annotated[
        bool, typer.Option("--allow-cannot-tell", help="Let --fail-over pass an audit that cannot tell.")
    ] = False,
    out: Out = None,
    as_json: AsJson = False,
    strict: Strict = False,
    dry_run: DryRun = False,
    seed: Seed = 0,
    workers: Workers = None,
    device: DeviceName = None,
    engine: EngineSpec = None,
) -> None:
    """Say how much of GENERATED copies TRAIN, which images, why, and what to do.

    Writes summary.json, Parquet tables and report.html with -o DIR.
    """
    from copyscope.detection.embedding.protocols import protocol as named

    if fail_over is not None and not 0 <= fail_over <= 1:
        raise InputError(f"--fail-over is a share between 0 and 1, not {fail_over}.\nFor 5 % write --fail-over 0.05")
    if fail_over is None and (allow_cannot_tell or fail_on is not FailOn.rate):
        raise InputError("--fail-on and --allow-cannot-tell say how --fail-over is meant.\nAdd --fail-over 0.05, say")
    if not out:
        refuse_idle(context, ["embed"], "where no report is written\nLeave it out, or add -o DIR")
    if not (held_out or control):
        idle = "where no images calibrate the verdict\nAdd --held-out DIR or --control DIR"
        refuse_idle(context, ["held_out_exclude", "trust_held_out"], idle)
    if dry_run:
        sets = {"generated": generated, "train": train, "held_out": held_out, "control": control}
        corpora = {
            name: open_corpus(path, inside_only, split if name == "train" else None, lenient)
            for name, path in sets.items()
            if path
        }
        found = named(protocol)
        found.load()
        show_json(
            {name: {"path": corpus.origin, "kind": corpus.kind, "n": len(corpus)} for name, corpus in corpora.items()}
            | {"protocol": found.name, "descriptor": found.descriptor, "threshold": found.threshold}
            | {
                "fdr": fdr,
                "sensitivity": sensitivity,
                "parts": parts.value,
                "seed": seed,
                "out": str(out) if out else None,
            }
        )
        return
    from copyscope.detection.audit import audit as run

    check_out(out)
    decided = read_decisions(decisions)
    with progress_bar() as progress:
        result = run(
            open_corpus(generated, inside_only, None, lenient),
            open_corpus(train, inside_only, split, lenient),
            open_corpus(held_out, inside_only, None, lenient) if held_out else None,
            protocol,
            control=open_corpus(control, inside_only, None, lenient) if control else None,
            held_out_exclude=held_out_exclude,
            trust_held_out=trust_held_out,
            sensitivity=sensitivity,
            parts=parts.value,
            fdr=fdr,
            clip=clip,
            decisions=decided,
            title=title,
            model=model,
            note=text,
            embed_images=embed.value,
            seed=seed,
            workers=workers,
            engine=opened_engine(engine),
            progress=progress,
        )
    save_and_show(result, out, as_json, without_out="For the report with pictures, add -o DIR.")
    if not as_json:
        advised = sum(action not in ("keep", "review") for action in result.tables["risk"]["action"].to_pylist())
        note_advice(train, out, "audit", advised)
    if fail_over is not None:
        gate(result.summary, fail_over, fail_on, allow_cannot_tell)
    exit_with(result.summary, strict)
