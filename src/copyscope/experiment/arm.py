"""Run one arm of an experiment: train, generate, audit, estimate.

An arm is asked for images in two scenarios: of training captions, where copying shows, and, if the recipe says so, of
the captions of held-out images, where a mitigation shows what it costs those who ask for something else.
"""

from __future__ import annotations

import dataclasses
import functools
import json
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa

from copyscope import recipes, stats
from copyscope.data import storage
from copyscope.data.corpus import Corpus
from copyscope.data.parquet_pages import read_table
from copyscope.documents import read_json
from copyscope.errors import CopyscopeError, ImageError, InputError, MissingExtra
from copyscope.imaging import images
from copyscope.machine import Progress, file_lock
from copyscope.stats import EstimateDict, Floats

from . import outcomes
from .plan import Arm
from .prepare import prepare

if TYPE_CHECKING:
    from copyscope.detection.audit import Audit
    from copyscope.detection.embedding.embeddings import Embeddings
    from copyscope.detection.verdict.text_alignment import Head
    from copyscope.diffusion.generate import SampleRecipe
    from copyscope.diffusion.run import Run

#: What an audit says beside the outcomes of its images: name -> where in its summary.
AUDITED = {
    "above_threshold": ("similarity", "estimates", "above_threshold"),
    "held_out_p95": ("similarity", "held_out", "estimates", "p95"),
    "baseline_p95": ("similarity", "baseline", "estimates", "p95"),
    "frechet_distance": ("quality", "frechet_distance"),
    "precision": ("quality", "precision"),
    "recall": ("quality", "recall"),
    "diversity_generated": ("quality", "diversity_generated"),
    "text_image_alignment": ("quality", "text_image_alignment"),
}
#: The same of the images of held-out captions.
GENERAL = {
    "general_replication_rate": ("replication_rate",),
    "general_similarity_mean": ("similarity", "estimates", "mean"),
    "general_similarity_p95": ("similarity", "estimates", "p95"),
    "general_above_threshold": ("similarity", "estimates", "above_threshold"),
    "general_diversity_generated": ("quality", "diversity_generated"),
}
#: Measures of an arm beside those of `outcomes` -> what they are, for reports.
MEASURES = {
    "general_replication_rate": "share of the images of held-out captions that are copies",
    "general_replication_rate_fixed": "the same by the one line for all arms",
    "general_similarity_mean": "mean similarity of such an image to its nearest training image",
    "general_similarity_p95": "95th percentile of that similarity",
    "general_above_threshold": "share of such images whose similarity is above the protocol's threshold",
    "general_diversity_generated": "diversity of such images",
    "general_frechet_distance": "Fréchet distance of such images to all held-out images",
    "general_precision": "precision of such images against all held-out images",
    "general_recall": "recall of such images against all held-out images",
    "agreement": "text-image agreement of images and training captions, by a head fitted on held-out images",
    "general_agreement": "the same, of images and held-out captions",
    "real_frechet_distance": "Fréchet distance of as many training images to all held-out images: what is real scores",
    "real_agreement": "text-image agreement of the held-out images of these captions with them",
    "shuffled_agreement": "the same with the captions of one another: what knows nothing of the caption scores",
    "seconds_per_image": "seconds that sampling an image took, loading the model included",
}
NOTHING: EstimateDict = {"value": None, "low": None, "high": None, "n": 0}
#: Images of an arm that a report shows: the first ones, as they come, so that nobody has chosen them.
SHEET, SHEET_SIDE = 12, 96
SHEETS = pa.schema([*(outcomes.SCHEMA.field(name) for name in ("id", "prompt", "match", "similarity", "copied", "own")),
                    pa.field("made", pa.binary()), pa.field("real", pa.binary())])  # fmt: skip


def run_arm(arm: Arm, progress: Progress | None = None) -> None:
    """Train, generate, audit one arm; finished steps are kept. An error is written to `failed.json` in its folder."""
    if (arm.folder / "arm.json").is_file():
        return
    arm.folder.mkdir(parents=True, exist_ok=True)
    (arm.folder / "failed.json").unlink(missing_ok=True)
    write(arm.folder / "recipe.json", arm.recipe | {"run": arm.run.name, "provenance": recipes.provenance()})
    try:
        found = _run_arm(arm, prefixed_progress(arm, progress))
    except Exception as error:  # memory that is used up, a library's own: no other arm is to be lost for it
        write(arm.folder / "failed.json", {"error": failure(error)})
    else:
        write(arm.folder / "arm.json", found)


def failure(error: Exception) -> str:
    """Reason why an arm failed, for its row: a CopyscopeError's message, or another error's kind and message."""
    return str(error) if isinstance(error, CopyscopeError) else storage.failure(error)


def is_trained_by(arm: Arm) -> bool:
    """Whether the model of the run is the one that the plan asks for.

    That one was agreed to with the plan: a folder that somebody gave may hold another.
    """
    try:
        return bool(read_json(arm.run / "recipe.json")["recipe"]["model"] == arm.train.model)
    except (InputError, KeyError, TypeError):
        return False


def general_prompts(arm: Arm, held_out: Corpus | None) -> list[str]:
    """Prompts from held-out images: the first captions of the first that have one, as many as the arm is asked for.

    Raises:
        InputError: there are too few.
    """
    rows = _captioned(held_out) if held_out else []
    if len(rows) < arm.audit.general:
        wanted = f"{arm.audit.general} held-out captions, and {arm.images / 'held-out'} has {len(rows)}"
        raise InputError(f"[audit] general asks for {wanted}.\nAsk for fewer, or hold out more images with captions")
    return [held_out.captions[row][0] for row in rows[: arm.audit.general]] if held_out else []


def audited(arm: Arm, generated: Corpus, progress: Progress | None) -> Audit:
    """Audit of some images of an arm."""
    from copyscope.detection.audit import audit

    training, held_out = prepare(arm.data, arm.images)
    # A small model draws one picture an image: nothing is set into a part of another.
    return audit(
        generated, training, held_out, arm.audit.protocol,
        fdr=arm.audit.fdr, parts="off", clip=arm.audit.clip or None, seed=arm.audit.seed, progress=progress,
    )  # fmt: skip


def outcomes_of(arm: Arm, judged: Audit, generated: Corpus) -> pa.Table:
    """Outcomes of the images of an audit, one row each: see `outcomes.outcomes`."""
    # A column without a value is none: images of one prompt of one's own have no source.
    known = [name for name in ("id", "seed", "source_id") if name in generated.table.column_names]
    return outcomes.outcomes(
        judged.tables["generated"],
        {row["id"]: row for row in generated.table.select(known).to_pylist()},
        _pairs(read_table(arm.run / "train.parquet", ["id", "duplicated"])),
        _pairs(judged.tables["groups"].select(["id", "group"])),
        judged.summary["calibration"]["n"],
    )


def text_vectors(captions: Sequence[str]) -> Floats:
    """Text vectors: mean state [n e] of the tokens of each caption, by the packaged text encoder.

    Raises:
        MissingExtra: the encoder is not installed.
    """
    distinct = list(dict.fromkeys(captions))
    states = _encoder().encode(distinct)
    text, mask = (np.asarray(each, dtype=np.float64) for each in (states.text, states.mask))
    # What the mask leaves out is 0.
    means = text.sum(axis=1) / np.maximum(mask.sum(axis=1, keepdims=True), 1)
    place = {caption: row for row, caption in enumerate(distinct)}
    found: Floats = means[[place[caption] for caption in captions]]
    return found


def prefixed_progress(arm: Arm, progress: Progress | None) -> Progress | None:
    """Progress with the name of the arm in front."""
    return functools.partial(_told, progress, arm.slug) if progress else None


def write(path: Path, values: Mapping[str, Any]) -> None:
    """Write values as JSON into a file, whole or not at all."""
    from copyscope.files import write_file

    text = json.dumps(values, indent=1, ensure_ascii=False, allow_nan=False) + "\n"
    write_file(path, lambda temporary: temporary.write_text(text, encoding="utf-8"))


def _run_arm(arm: Arm, progress: Progress | None) -> dict[str, Any]:
    """What `arm.json` holds; `outcomes.parquet` and `sheet.parquet` are written on the way."""
    from copyscope.detection.results import write_table

    began = time.monotonic()
    training, held_out = prepare(arm.data, arm.images)
    prompts, timings = general_prompts(arm, held_out), list[tuple[float, int]]()
    trained = _trained(arm, training, held_out, progress)
    generated = _made(arm, arm.folder / "generated", arm.sample, timings, progress)
    judged = audited(arm, generated, progress)
    judged.save(arm.folder / "audit")
    table = outcomes_of(arm, judged, generated)
    write_table(arm.folder, "outcomes", table)
    write_table(arm.folder, "sheet", _sheet(table, generated, training))
    estimates = {name: estimate.as_dict() for name, estimate in outcomes.rates(table).items()}
    estimates |= {name: _found(judged, path) for name, path in AUDITED.items()}
    real = _embedded(arm, held_out, progress) if held_out else None
    head = _head(arm, real) if real else None
    estimates["agreement"] = _agreement(head, _embedded(arm, generated, progress)) if head else NOTHING
    if prompts and real:
        estimates |= _general(arm, prompts, real, head, timings, progress)
    estimates["seconds_per_image"] = outcomes.seconds_per_image(timings).as_dict()
    return {
        "answer": judged.summary["verdict"]["answer"],
        "n_generated": judged.summary["n_generated"],
        "n_missing": judged.summary["n_missing"],
        "n_train": judged.summary["n_train"],
        "steps": trained.summary["steps"],
        "train_seconds": trained.summary["seconds"],
        "seconds": round(time.monotonic() - began, 1),
        "estimates": estimates,
    }


def _trained(arm: Arm, training: Corpus, held_out: Corpus | None, progress: Progress | None) -> Run:
    """The arm's run, trained here unless it is there already."""
    from copyscope.detection.watch import make_watch
    from copyscope.diffusion.training.train import train

    watched = arm.train.sample_every or arm.train.stop_at_replication
    watch = make_watch(training, held_out, arm.audit.protocol) if watched else None
    with file_lock(arm.run.parent / f".{arm.run.name}.lock"):
        return train(training, arm.run, arm.train, watch=watch, progress=progress)


def _general(
    arm: Arm, prompts: Sequence[str], real: Embeddings, head: Head | None, timings: list[tuple[float, int]],
    progress: Progress | None,
) -> dict[str, Any]:  # fmt: skip
    """Estimates of the images that the arm makes of held-out captions; `real`: all held-out images."""
    from copyscope.detection.verdict.quality import quality

    recipe = dataclasses.replace(arm.sample, n_images=len(prompts))
    generated = _made(arm, arm.folder / "general", recipe, timings, progress, captions=prompts)
    judged = audited(arm, generated, progress)
    judged.save(arm.folder / "general-audit")
    described = _embedded(arm, generated, progress)
    cost = quality(described.vectors, real.vectors, described.descriptor, seed=arm.audit.seed)
    found = {name: _found(judged, path) for name, path in GENERAL.items()} | reference(arm, real, head, progress)
    fixed = outcomes.rates(outcomes_of(arm, judged, generated))["replication_rate_fixed"]
    found["general_replication_rate_fixed"] = fixed.as_dict()
    for name in ("frechet_distance", "precision", "recall"):
        found[f"general_{name}"] = getattr(cost, name).as_dict()
    return found | {"general_agreement": _agreement(head, described) if head else NOTHING}


def reference(arm: Arm, real: Embeddings, head: Head | None, progress: Progress | None) -> dict[str, Any]:
    """Reference values: what real images score in place of those made of held-out captions.

    The same for all arms of these data, and so kept beside them.

    Args:
        arm: names the data.
        real: all held-out images.
        head: text alignment; None = not measured.
        progress: called with a label, the number done and the total.
    """
    from copyscope.detection.verdict.quality import quality

    path = arm.images / "reference.json"
    if path.is_file():
        return read_json(path)
    training = _embedded(arm, Corpus.open(arm.images / "train"), progress)
    some = training.vectors[: arm.audit.general]
    distance = quality(some, real.vectors, real.descriptor, seed=arm.audit.seed).frechet_distance
    found = {"real_frechet_distance": distance.as_dict(), "real_agreement": NOTHING, "shuffled_agreement": NOTHING}
    if head:
        place = {int(row): position for position, row in enumerate(real.rows)}
        rows = [row for row in _captioned(real.corpus)[: arm.audit.general] if row in place]
        vectors = real.vectors[[place[row] for row in rows]]
        told = [real.corpus.captions[row][0] for row in rows]
        found["real_agreement"] = _cosines(head, told, vectors)
        found["shuffled_agreement"] = _cosines(head, told[len(told) // 2 :] + told[: len(told) // 2], vectors)
    write(path, found)
    return found


def _made(
    arm: Arm, folder: Path, recipe: SampleRecipe, timings: list[tuple[float, int]], progress: Progress | None,
    captions: Sequence[str] | None = None,
) -> Corpus:  # fmt: skip
    """Images of the arm's run; seconds and number are added to `timings` where any were made here."""
    from copyscope.diffusion.generate import generate
    from copyscope.nearest_image import nearest

    find = nearest(arm.images / "train")
    before, began = sum(1 for _ in folder.glob("*.png")), time.monotonic()
    generated = generate(
        arm.run, folder, recipe, captions=captions, nearest=find, trust_parts=is_trained_by(arm), progress=progress
    )
    if before < recipe.n_images:
        timings.append((time.monotonic() - began, recipe.n_images - before))
    return generated


def _head(arm: Arm, real: Embeddings) -> Head | None:
    """The head from captions to images, fitted on captioned held-out images that nothing was made of; None of few."""
    from copyscope.detection.verdict.text_alignment import LEAST, fit

    place = {int(row): position for position, row in enumerate(real.rows)}
    rows = [row for row in _captioned(real.corpus)[arm.audit.general :] if row in place]
    if len(rows) < LEAST:
        return None
    try:
        text = text_vectors([real.corpus.captions[row][0] for row in rows])
    except MissingExtra:
        return None
    return fit(text, real.vectors[[place[row] for row in rows]])


def _agreement(head: Head, described: Embeddings) -> EstimateDict:
    """Text-image agreement of the readable images and their prompts."""
    prompts = described.corpus.prompts
    return _cosines(head, [prompts[row] for row in described.rows], described.vectors)


def _cosines(head: Head, captions: Sequence[str], vectors: Floats) -> EstimateDict:
    """Mean agreement of captions [n] and image vectors [n d]."""
    from copyscope.detection.verdict.text_alignment import agreement

    if not captions:
        return NOTHING
    cosines = agreement(head, text_vectors(captions), vectors)
    return stats.bootstrap(lambda values: float(values.mean()), cosines).as_dict()


def _embedded(arm: Arm, corpus: Corpus, progress: Progress | None) -> Embeddings:
    from copyscope.detection.embedding.embed import embed

    return embed(corpus, arm.audit.protocol, progress=progress)


def _captioned(corpus: Corpus) -> list[int]:
    """Rows that have a caption to ask for."""
    return [row for row, captions in enumerate(corpus.captions) if captions and captions[0].strip()]


@functools.cache
def _encoder() -> Any:
    from copyscope.diffusion.text.encoder import TextEncoder

    return TextEncoder()


def _found(judged: Audit, path: Sequence[str]) -> EstimateDict:
    """An estimate of the audit's summary; one without value where the audit has none."""
    value: Any = judged.summary
    for key in path:
        value = (value or {}).get(key)
    return value or NOTHING


def _sheet(table: pa.Table, generated: Corpus, training: Corpus) -> pa.Table:
    """The first images of an arm beside their matches, as WebP; null where one cannot be read."""
    rows = table.slice(0, SHEET).to_pylist()
    places = [{name: row for row, name in enumerate(corpus.ids)} for corpus in (generated, training)]
    for row in rows:
        for name, key, corpus, place in zip(
            ("made", "real"), ("id", "match"), (generated, training), places, strict=True
        ):
            row[name] = _thumbnail(corpus, place[row[key]]) if row[key] in place else None
    return pa.Table.from_pylist(rows, SHEETS)


def _thumbnail(corpus: Corpus, row: int) -> bytes | None:
    try:
        return images.encode(images.thumbnail(images.decode(corpus.read(row)), SHEET_SIDE), "webp", 88)
    except ImageError:
        return None


def _pairs(table: pa.Table) -> dict[Any, Any]:
    return dict(zip(*(column.to_pylist() for column in table.columns), strict=True))


def _told(progress: Progress, slug: str, label: str, done: int, total: int) -> None:
    progress(f"{slug}: {label}", done, total)
