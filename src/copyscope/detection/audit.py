"""`audit`: compare generated images with training images; verdict, matches, causes, advice."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from copyscope import parts
from copyscope.curation.decisions import Decisions
from copyscope.data import removals
from copyscope.data.corpus import Corpus
from copyscope.detection.causes.causes import causes
from copyscope.detection.dedup.backgrounds import grouped_with_source, over_all
from copyscope.detection.dedup.groups import duplicates
from copyscope.detection.embedding.embed import embed
from copyscope.detection.embedding.embeddings import Embeddings
from copyscope.detection.embedding.protocols import protocol as named_protocol
from copyscope.detection.matching.excused import Excuse
from copyscope.detection.matching.ncc import Verify
from copyscope.detection.matching.part_search import MOST, PartSearch
from copyscope.detection.search.ivf import search_report, with_ivf
from copyscope.detection.verdict.judge import judge
from copyscope.detection.verdict.quality import quality
from copyscope.detection.verdict.repeated_outputs import SAME, repeated_outputs
from copyscope.detection.verdict.same_files import refuse_same_files
from copyscope.detection.verdict.sensitivity import GROUPS
from copyscope.detection.verdict.verdict import FDR
from copyscope.engine import CacheOptions, Engine, open_engine
from copyscope.errors import InputError
from copyscope.machine import Progress

from .about import About
from .audit_result import SCHEMA, AuditFindings
from .one_pass import read_queries, read_train
from .previews import EMBED, gallery
from .results import Result, failures
from .summaries import AuditSummary


class Audit(Result):
    """Result of an audit: a summary that is plain JSON, and tables. `docs/json.md` describes both.

    Prints as its verdict; in a notebook it shows the key figures.
    """

    summary: AuditSummary
    schema = SCHEMA

    def page(self) -> str:
        """The report as one HTML page: verdict, matches, causes, advice."""
        from copyscope.report import render

        return render(self)

    @property
    def sentence(self) -> str:
        """The verdict in a sentence."""
        return str(self.summary["verdict"]["sentence"])

    @property
    def lists(self) -> dict[str, pa.Table]:
        """Table `look-alikes`: calibration images that score as light copies do, to edit for `held_out_exclude`."""
        return {"look-alikes": self.tables["look_alikes"]} if "look_alikes" in self.tables else {}

    @property
    def copies(self) -> list[dict[str, Any]]:
        """The generated images called copies, worst first."""
        return [dict(copy) for copy in self.summary["copies"]]

    def __rich__(self) -> Any:
        from copyscope.report.terminal import audit_panel

        return audit_panel(self.summary)

    def _repr_html_(self) -> str:
        from copyscope.report.terminal import audit_snippet

        return audit_snippet(self.summary)


def audit(
    generated: str | Path | Corpus,
    train: str | Path | Corpus,
    held_out: str | Path | Corpus | None = None,
    protocol: str = "sscd-288",
    *,
    control: str | Path | Corpus | None = None,
    held_out_exclude: str | Path | None = None,
    trust_held_out: bool = False,
    sensitivity: int = GROUPS,
    parts: str = "auto",
    fdr: float = FDR,
    clip: str | Path | None = None,
    decisions: str | Path | Decisions | None = None,
    title: str | None = None,
    model: str | None = None,
    note: str | None = None,
    embed_images: str = "large",
    seed: int = 0,
    cache: str | Path | None = None,
    workers: int | None = None,
    engine: Engine | str | None = None,
    progress: Progress | None = None,
) -> Audit:
    """Audit the images in `generated` against those in `train`; see `copyscope audit` for the same on the command line.

    Images that cannot be read are rows with an `error`, counted.

    Args:
        generated: images the model made; a path or URL that `Corpus.open` takes, or a Corpus.
        train: images it was trained on, likewise.
        held_out: real images of the same kind that it was not trained on; they calibrate the verdict. None = the
            training images stand in, and the answer is at most "suspicious".
        protocol: a name in `PROTOCOLS` or a descriptor spec.
        control: instead of `held_out`, images that the base model made, without the fine-tuning, from the same prompts.
        held_out_exclude: list of held-out images (or controls) to leave out: a file with an id, sha256 or path a line.
        trust_held_out: calibrate on held-out images even where they are of another kind than the generated ones.
        sensitivity: training groups of which copies are planted, to measure how many would be seen; 0 = none, and then
            the answer is never "no copies found".
        parts: look for training images that are set into parts of the pictures (grids, insets): "on", "off", or "auto",
            which looks where the training images are at most 20,000.
        fdr: false discovery rate of the list of copies, in (0, 1).
        clip: local folder of a CLIP model, to measure how the generated images agree with their prompts; None = not
            measured.
        decisions: what people decided, a file of `copyscope decide`; None = nothing. A pair that is "different" is no
            match, and a licensed image, or one of its near-duplicates, is not copied.
        title: of the report; None = none.
        model: name and version of the model, for the report; None = not said.
        note: for the readers of the report; None = none.
        embed_images: what the report shows of a pair that is enlarged: "small" = the previews of 192 pixels, "large" =
            the 24 worst pairs at 768 pixels (some 6 MB at most), "full" = the files of flagged pairs, up to 64 MB.
        seed: of the random samples taken.
        cache: folder of the cache; None = the user's.
        workers: threads; None = one a core.
        engine: who describes and searches, a spec or an Engine; None = this process.
        progress: called with a label, the number done and the total.

    Returns:
        The verdict with its tables.

    Raises:
        InputError: a folder cannot be used, or options exclude each other.
        PartError: the protocol names no descriptor.
    """
    began = time.monotonic()
    _refuse_options(fdr, sensitivity, embed_images)
    corpora, n_excluded = _open_sets(generated, train, held_out, control, held_out_exclude, progress)
    decided = Decisions.read(decisions) if decisions is not None else None
    rules, verify = named_protocol(protocol), Verify()
    descriptor, engine = rules.load(), open_engine(engine) if engine is not None else None
    options: CacheOptions = {"cache": cache, "workers": workers, "progress": progress}
    # Describe and group the training images; transparent ones over several backgrounds.
    looks_at_parts = parts == "on" or (parts == "auto" and len(corpora["train"]) <= MOST)
    read = read_train(
        corpora["train"],
        descriptor,
        grouped=True,
        judged=True,
        parts_searched=looks_at_parts,
        engine=engine,
        **options,
    )
    trained = embed(read, descriptor, **options)
    _refuse_unreadable("train", trained)
    trained = with_ivf(trained, **options)
    groups = duplicates(trained, rules.duplicates, decisions=decided, engine=engine, **options)
    every, source = over_all(trained, descriptor, engine=engine, **options)
    every = with_ivf(every, **options)
    searched, why_parts = PartSearch.for_audit(parts, every, descriptor, verify, **options)
    # Describe the others.
    described = {"train": trained}
    for name in [name for name in corpora if name != "train"]:
        settings: dict[str, Any] = options | {"search": searched, "held_out": name == "held-out", "engine": engine}
        described[name] = embed(read_queries(corpora[name], descriptor, **settings), descriptor, **options)
        if name != "generated":
            _refuse_unreadable(name, described[name])
    described = {name: described[name] for name in corpora}
    # Match, calibrate and judge.
    excuse = None
    if decided is not None and groups.honoured is not None:
        excuse = Excuse(decided, trained, source, groups.label, groups.honoured)
    judgement = judge(
        described | {"train": every},
        grouped_with_source(groups, every, source),
        descriptor,
        verify,
        sensitivity=sensitivity,
        parts=searched,
        trust_held_out=trust_held_out,
        n_excluded=n_excluded,
        excuse=excuse,
        fdr=fdr,
        seed=seed,
        engine=engine,
        **options,
    ).of_sources(trained, source)
    # Why, and what the model makes again and again.
    judged, matches = judgement.verdict, judgement.matches
    why = causes(matches, judged, groups, seed=seed, **options)
    near = judged.copied | judged.likeness | (matches.similarity >= rules.duplicates)
    near |= np.nan_to_num(matches.verified, nan=-1).max(axis=1, initial=-1) >= SAME
    repeated = repeated_outputs(
        described["generated"], near, rules.duplicates, blank=judgement.blank["generated"], verify=verify, **options
    )
    # Tables and summary.
    found = AuditFindings(corpora, described, rules, verify, groups, judgement, why, repeated, fdr, seed)
    tables = found.tables()
    repeats = (group["ids"] for group in repeated.as_dict()["groups"])
    tables["thumbnails"] = gallery(described, tables, repeats, embed_images)
    text = _text_pairs(described["generated"].corpus, str(clip), options) if clip else None
    vectors = described["generated"].vectors
    summary = found.summary(tables["generated"]) | {
        "about": About(title, model, note).summary(described),
        "parts": {"looked": searched is not None, "why": why_parts},
        "quality": quality(vectors, trained.vectors, str(descriptor), text=text, seed=seed).as_dict(),
        "search": search_report(trained, vectors, workers=workers, progress=progress),
        "recipe": found.recipe(
            {
                "protocol": rules.name,
                "fdr": fdr,
                "clip": str(clip) if clip else None,
                "held_out_exclude": str(held_out_exclude) if held_out_exclude else None,
                "trust_held_out": trust_held_out,
                "sensitivity": sensitivity,
                "parts": parts,
                "embed_images": embed_images,
            }
        ),
    }
    if excuse is not None:
        summary["decisions"] = said = excuse.decisions.summary(excuse.honoured)
        summary["verdict"]["sentence"] += f" {said['sentence']}"
        tables["failures"] = pa.concat_tables([tables["failures"], excuse.decisions.failures()])
    summary["seconds"] = round(time.monotonic() - began, 2)
    return Audit(summary, tables)


def _refuse_options(fdr: float, sensitivity: int, embed_images: str) -> None:
    """Raises InputError where an option is out of its range."""
    if not 0 < fdr < 1:
        raise InputError(f"fdr must be between 0 and 1, not {fdr}.\nThe usual choice is 0.05")
    if sensitivity < 0:
        raise InputError(f"sensitivity is a number of training groups, not {sensitivity}.\n0 leaves it out")
    if embed_images not in EMBED:
        raise InputError(f"embed_images is one of {', '.join(EMBED)}, not {embed_images!r}.\nThe usual one is large")


def _open_sets(
    generated: str | Path | Corpus,
    train: str | Path | Corpus,
    held_out: str | Path | Corpus | None,
    control: str | Path | Corpus | None,
    exclude: str | Path | None,
    progress: Progress | None,
) -> tuple[dict[str, Corpus], int]:
    """The sets by name, and how many calibration images a list leaves out. Raises InputError where they do not fit."""
    if held_out is not None and control is not None:
        raise InputError("A verdict is calibrated on held-out images or on controls, not on both.\nGive one of them")
    corpora, n_excluded = {"generated": _open(generated), "train": _open(train)}, 0
    for name, given in (("held-out", held_out), ("control", control)):
        if given is not None:
            corpora[name] = _open(given)
            if exclude is not None:
                corpora[name], n_excluded = _without(corpora[name], exclude, progress)
    if exclude is not None and len(corpora) == 2:
        raise InputError("No held-out images to exclude any from.\nGive them: --held-out (in Python: held_out)")
    refuse_same_files(corpora)
    return corpora, n_excluded


def _refuse_unreadable(name: str, described: Embeddings) -> None:
    """Raises InputError where no image of a set can be read."""
    if not len(described.rows):
        corpus = described.corpus
        first = failures({name: described})["error"]
        raise InputError(
            f"None of the {len(corpus)} {name} images in {corpus.origin} can be read.\n"
            f"{f'The first says: {first[0]}' if len(first) else 'Give a folder of images'}"
        )


def _text_pairs(corpus: Corpus, model: str, options: CacheOptions) -> tuple[NDArray[Any], NDArray[Any]] | None:
    """(image vectors, text vectors) [n d] by CLIP of the readable images that have a prompt; None if none has."""
    joint = parts.load("descriptors", f"clip({model!r})")
    prompted = [row for row, prompt in enumerate(corpus.prompts) if prompt]
    described = embed(corpus.take(prompted), joint, **options)
    if not len(described.rows):
        return None
    prompts = described.corpus.prompts
    return described.vectors, joint.describe_text([prompts[row] for row in described.rows])


def _open(source: str | Path | Corpus) -> Corpus:
    return source if isinstance(source, Corpus) else Corpus.open(source)


def _without(corpus: Corpus, listed: str | Path, progress: Progress | None) -> tuple[Corpus, int]:
    """The corpus without the images that a list names, and how many those are."""
    left, removed = removals.leave_out(corpus, removals.read_list(listed), progress=progress)
    if not removed.n_removed:
        raise InputError(
            f"No image of {corpus.origin} is named in {listed}.\nGive ids as look-alikes.csv of the audit has them"
        )
    return left, removed.n_removed
