"""`audit`: compare generated images with training images; verdict, matches, causes, advice."""

from __future__ import annotations

import datetime
import time
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from copyscope import parts
from copyscope._version import __version__
from copyscope.curation.decisions import Decisions
from copyscope.data import removals
from copyscope.data.corpus import Corpus
from copyscope.detection.causes.causes import Causes, causes
from copyscope.detection.dedup.backgrounds import grouped_with_source, over_all
from copyscope.detection.dedup.groups import Groups, duplicates
from copyscope.detection.embedding.embed import embed
from copyscope.detection.embedding.embeddings import Embeddings
from copyscope.detection.embedding.protocols import protocol as named_protocol
from copyscope.detection.matching.excused import Excuse
from copyscope.detection.matching.match import Matches
from copyscope.detection.matching.ncc import Verify
from copyscope.detection.matching.part_search import MOST, PartSearch
from copyscope.detection.search.ivf import search_report, with_ivf
from copyscope.detection.verdict.baselines import classical_tests
from copyscope.detection.verdict.judge import Judgement, judge
from copyscope.detection.verdict.quality import quality
from copyscope.detection.verdict.repeated_outputs import SAME, repeated_outputs
from copyscope.detection.verdict.same_files import refuse_same_files
from copyscope.detection.verdict.sensitivity import GROUPS
from copyscope.detection.verdict.verdict import FDR, dataset_similarity, similarity
from copyscope.engine import CacheOptions, Engine, open_engine
from copyscope.errors import InputError
from copyscope.imaging import images
from copyscope.machine import Progress

from .about import About
from .one_pass import read_queries, read_train
from .previews import EMBED, gallery
from .results import Result, accounts, failures, versions
from .summaries import AuditSummary

SCHEMA = "copyscope.audit/1"
HISTOGRAM_ROWS = 20_000
MATCHES_KEPT = 10


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
    began, n_excluded = time.monotonic(), 0
    if not 0 < fdr < 1:
        raise InputError(f"fdr must be between 0 and 1, not {fdr}.\nThe usual choice is 0.05")
    if sensitivity < 0:
        raise InputError(f"sensitivity is a number of training groups, not {sensitivity}.\n0 leaves it out")
    if embed_images not in EMBED:
        raise InputError(f"embed_images is one of {', '.join(EMBED)}, not {embed_images!r}.\nThe usual one is large")
    if held_out is not None and control is not None:
        raise InputError("A verdict is calibrated on held-out images or on controls, not on both.\nGive one of them")
    corpora = {"generated": _open(generated), "train": _open(train)}
    calibrator = "held-out" if held_out is not None else "control" if control is not None else None
    if calibrator:
        corpora[calibrator] = _open(held_out if held_out is not None else control)  # type: ignore[arg-type]
        if held_out_exclude is not None:
            corpora[calibrator], n_excluded = _without(corpora[calibrator], held_out_exclude, progress)
    elif held_out_exclude is not None:
        raise InputError("No held-out images to exclude any from.\nGive them: --held-out (in Python: held_out)")
    refuse_same_files(corpora)
    decided = Decisions.read(decisions) if decisions is not None else None
    rules, verify = named_protocol(protocol), Verify()
    descriptor, engine = rules.load(), open_engine(engine) if engine is not None else None
    options: CacheOptions = {"cache": cache, "workers": workers, "progress": progress}
    trained = embed(
        read_train(
            corpora["train"],
            descriptor,
            grouped=True,
            judged=True,
            parts_searched=parts == "on" or (parts == "auto" and len(corpora["train"]) <= MOST),
            engine=engine,
            **options,
        ),
        descriptor,
        **options,
    )
    _refuse_unreadable("train", trained)
    trained = with_ivf(trained, **options)
    groups = duplicates(trained, rules.duplicates, decisions=decided, engine=engine, **options)
    every, source = over_all(trained, descriptor, engine=engine, **options)
    every = with_ivf(every, **options)
    searched, why_parts = PartSearch.for_audit(parts, every, descriptor, verify, **options)
    described = {"train": trained}
    for name in [name for name in corpora if name != "train"]:
        settings: dict[str, Any] = options | {"search": searched, "held_out": name == "held-out", "engine": engine}
        described[name] = embed(read_queries(corpora[name], descriptor, **settings), descriptor, **options)
        if name != "generated":
            _refuse_unreadable(name, described[name])
    described = {name: described[name] for name in corpora}
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
    )
    judgement = judgement.of_sources(described["train"], source)
    judged, matches = judgement.verdict, judgement.matches
    calibration_scores = judgement.compared.similarity if judgement.compared else None
    why = causes(matches, judged, groups, seed=seed, **options)
    near = judged.copied | judged.likeness | (matches.similarity >= rules.duplicates)
    near |= np.nan_to_num(matches.verified, nan=-1).max(axis=1, initial=-1) >= SAME
    repeated = repeated_outputs(
        described["generated"], near, rules.duplicates, blank=judgement.blank["generated"], verify=verify, **options
    )
    tables = {
        "generated": _generated_table(judgement, groups, why),
        "matches": matches.table(MATCHES_KEPT),
        "groups": groups.table(),
        "risk": why.risk,
        "complexity": why.complexity,
        "histograms": _histograms(
            {
                "generated": matches.similarity,
                "baseline": judgement.baseline.similarity,
                calibrator or "held-out": calibration_scores,
            },
            seed,
        ),
        "failures": failures(described),
        "removed": pa.table({"id": pa.array(judgement.removed, pa.string())}),
        "look_alikes": judgement.look_alikes,
    }
    repeats = (group["ids"] for group in repeated.as_dict()["groups"])
    tables["thumbnails"] = gallery(described, tables, repeats, embed_images)
    statistics = {
        name: similarity(scores[np.isfinite(scores)], rules.threshold)
        for name, scores in (
            ("generated", matches.similarity),
            ("baseline", judgement.baseline.similarity),
            (calibrator or "held-out", calibration_scores),
        )
        if scores is not None
    }
    summary: dict[str, Any] = {
        "schema": SCHEMA,
        "copyscope": __version__,
        "created": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "seconds": 0.0,
        "about": About(title, model, note).summary(described),
        "verdict": {key: getattr(judged, key) for key in ("answer", "sentence", "reasons", "needed")},
        "replication_rate": judged.rate.as_dict(),
        "estimated_rate": judged.estimated_rate.as_dict(),
        "sensitivity": {kind: each.as_dict() for kind, each in judged.sensitivity.items()} or None,
        "excess": judged.excess,
        "parts": {"looked": searched is not None, "why": why_parts},
        "n_likeness": int(judged.likeness.sum()),
        "n_blank": {
            name.replace("-", "_"): int(judgement.blank[name].sum()) if name in judgement.blank else 0
            for name in ("generated", "held-out", "control")
        },
        "repeated_outputs": repeated.as_dict(),
        "n_generated": len(corpora["generated"]),
        "n_train": len(corpora["train"]),
        "n_missing": described["generated"].n_missing,
        "n_missing_train": described["train"].n_missing,
        "similarity": _similarity_summary(statistics),
        "dataset_similarity": dataset_similarity(statistics, judged.answer),
        "calibration": _calibration_summary(judgement, fdr),
        "copies": _copies(tables["generated"]),
        "classical_tests": [
            test.summary(judged.copied, groups.sizes[groups.label[matches.match]])
            for test in classical_tests(matches, groups)
        ],
        "duplicates": groups.summary(),
        "findings": why.findings.as_dict(),
        "quality": quality(
            described["generated"].vectors,
            described["train"].vectors,
            str(descriptor),
            text=_text_pairs(described["generated"].corpus, str(clip), options) if clip else None,
            seed=seed,
        ).as_dict(),
        "search": search_report(described["train"], described["generated"].vectors, workers=workers, progress=progress),
        "protocol": {
            "name": rules.name,
            "descriptor": rules.descriptor,
            "threshold": rules.threshold,
            "duplicates": rules.duplicates,
            "verify": str(verify),
            "fingerprint": described["train"].fingerprint,
        },
        "recipe": _recipe(
            corpora,
            {
                "protocol": rules.name,
                "fdr": fdr,
                "clip": str(clip) if clip else None,
                "held_out_exclude": str(held_out_exclude) if held_out_exclude else None,
                "trust_held_out": trust_held_out,
                "sensitivity": sensitivity,
                "parts": parts,
                "embed_images": embed_images,
            },
            seed,
        ),
        "failures": {name: each.n_missing for name, each in described.items()},
        "n_outside": sum(corpus.n_outside for corpus in corpora.values()),
        "accounts": accounts(corpora),
        "frames": images.FRAMES,
    }
    if excuse is not None:
        summary["decisions"] = said = excuse.decisions.summary(excuse.honoured)
        summary["verdict"]["sentence"] += f" {said['sentence']}"
        tables["failures"] = pa.concat_tables([tables["failures"], excuse.decisions.failures()])
    summary["seconds"] = round(time.monotonic() - began, 2)
    return Audit(summary, tables)


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


def _generated_table(judgement: Judgement, groups: Groups, why: Causes) -> pa.Table:
    """One row an image of the generated corpus, unreadable ones included."""
    matches, judged = judgement.matches, judgement.verdict
    corpus, rows = matches.queries.corpus, matches.queries.rows
    position = np.full(len(corpus), -1, dtype=np.int64)
    position[rows] = np.arange(len(rows))
    unread = position < 0
    trained, at = matches.references, np.arange(len(rows))
    next_there = np.flatnonzero(matches.next_index >= 0)
    next_ids = trained.corpus.pick("id", trained.rows[matches.next_index[next_there]])
    next_at = np.zeros(len(rows), dtype=np.int64)
    next_at[next_there] = np.arange(len(next_there))

    def column(values: NDArray[Any], dtype: pa.DataType, absent: NDArray[np.bool_] | None = None) -> pa.Array:
        padded = np.zeros(len(corpus), dtype=values.dtype)
        padded[rows] = values
        mask = unread.copy()
        mask[rows] |= absent if absent is not None else np.zeros(len(rows), dtype=bool)
        if values.dtype.kind == "f":
            mask[rows] |= ~np.isfinite(values)
        return pa.array(padded, dtype, mask=mask)

    matched = trained.rows[matches.match]
    match_, next_ = column(at, pa.int64()), column(next_at, pa.int64(), matches.next_index < 0)
    prompts = corpus.prompts
    found = groups.sizes[groups.label[matches.match]] if len(rows) else np.zeros(0, np.int64)
    unknown = np.full(len(rows), np.nan, np.float32)
    registered, edged = (
        unknown if each is None else matches.of_best(each, unknown) for each in (matches.registered, matches.edged)
    )
    return pa.table(
        {
            "id": corpus.table["id"],
            "prompt": pa.array(prompts, pa.string()),
            "match": trained.corpus.pick("id", matched).take(match_),
            "match_captions": trained.corpus.pick("captions", matched).take(match_),
            **{name: column(values, pa.float32()) for name, values in matches.scores.items()},
            "registered": column(registered, pa.float32()),
            "edges": column(edged, pa.float32()),
            "similarity": column(matches.similarity, pa.float32()),
            "p_value": column(judged.p_values, pa.float64()),
            "copied": column(judged.copied, pa.bool_()),
            "likeness": column(judged.likeness, pa.bool_()),
            "blank": column(judgement.blank["generated"], pa.bool_()),
            "box": _boxes(matches, position),
            "group_size": column(found, pa.int64()),
            "next_match": next_ids.take(next_),
            "next_score": column(matches.next_score, pa.float32()),
            "why": pa.array([why.reasons.get(row) for row in position.tolist()], pa.string()),
            "error": corpus.table["error"],
        }
    )


def _boxes(matches: Matches, position: NDArray[np.int64]) -> pa.Array:
    """The part [x, y, width, height] that each match was found in; null where it is that of the whole."""
    found: list[list[float] | None] = [None] * len(position)
    if matches.parts is not None and matches.by_part is not None:
        for row in np.flatnonzero(position >= 0):
            if matches.by_part[position[row]]:
                found[row] = matches.parts.box[position[row]].tolist()
    return pa.array(found, pa.list_(pa.float32()))


def _copies(table: pa.Table) -> list[dict[str, Any]]:
    scores = ["score", "verified", "combined", "registered", "edges", "p_value"]
    keys = ["id", "match", *scores, "group_size", "prompt", "box"]
    copied = table.filter(pa.compute.fill_null(table["copied"], False)).select(keys)
    return list(copied.sort_by([("combined", "descending"), ("id", "ascending")]).to_pylist())


def _similarity_summary(statistics: dict[str, dict[str, Any]]) -> dict[str, Any]:
    def plain(found: dict[str, Any]) -> dict[str, Any]:
        values = {name: estimate.as_dict()["value"] for name, estimate in found.items()}
        return values | {
            "n": found["mean"].n,
            "estimates": {name: estimate.as_dict() for name, estimate in found.items()},
        }

    return plain(statistics["generated"]) | {
        "baseline": plain(statistics["baseline"]),
        "held_out": plain(statistics["held-out"]) if "held-out" in statistics else None,
        "control": plain(statistics["control"]) if "control" in statistics else None,
    }


def _calibration_summary(judgement: Judgement, fdr: float) -> dict[str, Any]:
    calibration = judgement.calibration
    return {
        "method": calibration.method,
        "n": len(calibration.scores),
        "n_removed": calibration.n_removed,
        "n_excluded": calibration.n_excluded,
        "n_look_alikes": len(judgement.look_alikes),
        "rule": calibration.rule,
        "fdr": fdr,
        "line": judgement.verdict.line,
        "differs": judgement.differs,
        "nearer_than_control": judgement.nearer.as_dict() if judgement.nearer else None,
        "sentence": calibration.sentence(fdr),
    }


def _histograms(series: dict[str, NDArray[np.float32] | None], seed: int) -> pa.Table:
    rng = np.random.default_rng(np.random.SeedSequence([seed, 2]))
    names, values = [], []
    for name, scores in series.items():
        if scores is not None:
            kept = scores[np.isfinite(scores)]
            kept = kept if len(kept) <= HISTOGRAM_ROWS else rng.choice(kept, HISTOGRAM_ROWS, replace=False)
            names += [name] * len(kept)
            values.append(kept)
    return pa.table({"series": pa.array(names, pa.string()), "score": pa.array(np.concatenate(values), pa.float32())})


def _recipe(corpora: dict[str, Corpus], options: dict[str, Any], seed: int) -> dict[str, Any]:
    return {
        "generated": corpora["generated"].origin,
        "train": corpora["train"].origin,
        "held_out": corpora["held-out"].origin if "held-out" in corpora else None,
        "control": corpora["control"].origin if "control" in corpora else None,
        "options": options,
        "versions": versions(),
        "seed": seed,
    }
