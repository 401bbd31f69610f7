"""Calibration scores of an index: what its p-values rest on, kept up to date as rows are added."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from copyscope import parts
from copyscope.data.corpus import Corpus
from copyscope.detection.dedup.groups import Groups
from copyscope.detection.descriptors import Descriptor
from copyscope.detection.embedding.embed import embed, vectors_work
from copyscope.detection.embedding.embeddings import Embeddings
from copyscope.detection.matching.blank import blank_or_gone
from copyscope.detection.matching.local_search import local_search
from copyscope.detection.matching.ncc import Verify
from copyscope.detection.matching.partial_copies import Padded
from copyscope.detection.matching.windows import QueryFeatures, extract_from
from copyscope.detection.search.binary_codes import VectorBlocks
from copyscope.detection.search.exact import search
from copyscope.detection.verdict.calibration import RULE, alike_by_file, alike_by_hash, look_alikes
from copyscope.engine import CacheOptions, Options
from copyscope.errors import InputError

from . import manifest as files
from .segments import IndexSnapshot

# Training images that stand in where nothing was held out; each is looked at ten times.
SAMPLE = 500
GROUP_RULE = "training images against those outside their own near-duplicate group"
KINDS = ("vectors", "thumbnails", "canvases", "extent")


def calibrate(
    folder: Path,
    state: IndexSnapshot,
    train: Embeddings,
    held: Corpus | None,
    groups: Groups | None,
    descriptor: Descriptor,
    verify: Verify,
    seed: int,
    options: CacheOptions,
) -> dict[str, Any]:
    """Score the calibration images of a new index, and name scores and features in the manifest.

    Held-out images without look-alikes, or a sample of the training set against those outside their own near-duplicate
    group, are matched as pictures are.

    Args:
        folder: of the index.
        state: of the index, all segments written.
        train: the training images.
        held: held-out images; None = the training images stand in.
        groups: near-duplicate groups of the training images; None with held-out images.
        descriptor: what describes them.
        verify: the pixel comparison.
        seed: of the sample.
        options: `cache`, `workers` and `progress` of `embed`.

    Returns:
        The manifest with the calibration.

    Raises:
        InputError: no held-out image is left.
    """
    name = files.new_name()
    own, removed, n_blank = None, 0, 0
    written: dict[str, Any] = {}
    # The calibration images as queries.
    if held is not None:
        pdq = parts.load("descriptors", "pdq")
        filled, rows, looks = extract_from(held, descriptor, verify, True, also=[vectors_work(pdq)], **options)
        hashes = embed(filled.take(rows.tolist()), pdq, **options)
        rows, looks = rows[hashes.rows], looks.take(hashes.rows)
        if not len(rows):
            raise InputError(f"None of the {len(held)} held-out images in {held.origin} can be read.\nName others")
        images = Embeddings(filled, rows, looks.vectors[:, 0], train.descriptor, train.fingerprint)
        blank, gone = blank_or_gone(filled, rows, looks.thumbnails, **options)
        alike = look_alikes(images, train, **options) & ~(blank | gone)
        removed, n_blank = int(alike.sum()), int(blank.sum())
        n_missing = len(held) - len(rows) + int(gone.sum())
        some = ~(alike | blank | gone)
        if not some.any():
            unread = f" and {n_missing} unreadable" if n_missing else ""
            raise InputError(
                f"None of the {len(held)} held-out images in {held.origin} can calibrate: {removed} show what a "
                f"training image shows, {n_blank} are blank{unread}.\nName real images that it was not trained on"
            )
        looks, corpus = looks.take(some), filled.take(rows[some].tolist())
        written |= files.write_array(folder, f"{name}.looks.pdq", hashes.vectors[some])
    else:
        assert groups is not None
        rng = np.random.default_rng(np.random.SeedSequence(seed))
        _, first = np.unique(groups.label, return_index=True)
        sample = np.sort(rng.permutation(first)[:SAMPLE])
        corpus = train.corpus.take(train.rows[sample].tolist())
        _, rows, looks = extract_from(corpus, descriptor, verify, True, **options)
        n_missing = len(sample) - len(rows)
        own = (groups.label[sample[rows]], groups.label)
        corpus = corpus.take(rows.tolist())
    # Their best scores, and what is kept to score them again when images are added.
    found = _scores(looks, state.whole, state.coarse, state.crops, verify, own, options)
    kept: tuple[NDArray[Any], ...] = (looks.vectors, looks.thumbnails, looks.canvases.pixels, looks.canvases.extent)
    for kind, array in zip(KINDS, kept, strict=True):
        written |= files.write_array(folder, f"{name}.looks.{kind}", array)
    written |= files.write_table(folder, f"{name}.looks.rows", corpus.table.select(["id", "sha256"]))
    written |= files.write_array(folder, f"{name}.scores", found)
    calibration = {
        "method": "held-out" if held is not None else "baseline",
        "n": int(np.isfinite(found[:, 0]).sum()),
        "n_removed": removed,
        "n_blank": n_blank,
        "n_missing": n_missing,
        "rule": RULE if held is not None else GROUP_RULE,
        "looks": name,
        "scores": name,
    }
    return files.changed(state.manifest, written, calibration=calibration)


def recalibrate(
    folder: Path, state: IndexSnapshot, added: Embeddings, verify: Verify, options: CacheOptions
) -> dict[str, Any]:
    """Raise the calibration scores after images were added; take out calibration images that now have a look-alike.

    A score is then the best over the segments, which is never below that over all rows at once: p-values stay valid.

    Args:
        folder: of the index.
        state: of the index, the new segment last.
        added: images of the new segment.
        verify: the pixel comparison.
        options: `cache`, `workers` and `progress` of `embed`.

    Returns:
        The manifest with the new calibration.
    """
    # What was kept of the calibration images.
    kept = state.manifest["calibration"]
    name = kept["looks"]
    vectors, thumbnails, pixels, extent = (files.map_array(folder, f"{name}.looks.{kind}") for kind in KINDS)
    looks = QueryFeatures(vectors, thumbnails, Padded(pixels, extent))
    rows = files.read_table(folder, f"{name}.looks.rows")
    old: NDArray[np.float32] = files.map_array(folder, f"{kept['scores']}.scores")
    if not len(old):  # all were removed
        return state.manifest
    # Those that do not count: look-alikes of the new images, or near-duplicates.
    own, out, n_removed = None, np.isnan(old[:, 0]), kept["n_removed"]
    new, coarse = state.whole.last, state.coarse.last
    crops = state.crops.last if state.crops else None
    if kept["method"] == "held-out":
        images = added.corpus.take(added.rows.tolist())
        hashes = embed(images, parts.load("descriptors", "pdq"), **options)
        alike = alike_by_hash(files.map_array(folder, f"{name}.looks.pdq"), hashes.vectors)
        alike |= alike_by_file(rows["sha256"], images.table["sha256"])
        n_removed += int((alike & ~out).sum())
        out = out | alike
    else:
        # A new near-duplicate of a training image of the sample does not count for it.
        nearest = search(added.vectors, np.ascontiguousarray(looks.vectors[:, 0]), 1)
        near = nearest.score[:, 0] >= state.manifest["duplicates"]
        own = (np.arange(len(old)), np.where(near, nearest.index[:, 0], -1))
    # The best over the segments.
    raised = np.fmax(old, _scores(looks, new, coarse, crops, verify, own, options))
    raised[out] = np.nan
    scores = files.new_name()
    written = files.write_array(folder, f"{scores}.scores", raised)
    n = int(np.isfinite(raised[:, 0]).sum())
    calibration = kept | {"scores": scores, "n": n, "n_removed": n_removed}
    return files.changed(state.manifest, written, [f"{kept['scores']}.scores"], calibration=calibration)


def forget(folder: Path, state: IndexSnapshot) -> dict[str, Any]:
    """Rewrite the calibration without images that were removed from the index, where any was; the manifest with it.

    Training images that stand in as calibration go with their ids. Held-out images that had a look-alike in the index
    count no more, and go too: one may have been the same file.
    """
    kept, gone = state.manifest["calibration"], np.flatnonzero(state.gone)
    if not kept or not len(gone):
        return state.manifest
    old: NDArray[np.float32] = files.map_array(folder, f"{kept['scores']}.scores")
    rows = files.read_table(folder, f"{kept['looks']}.looks.rows")
    removed = state.table.take(gone, ["id", "sha256"])
    known = "id" if kept["method"] == "baseline" else "sha256"
    names = pa.array([each[known] for each in removed if each[known] is not None], pa.string())
    out = np.isnan(old[:, 0]) | pc.is_in(rows[known], value_set=names).to_numpy(zero_copy_only=False)
    if not out.any():
        return state.manifest
    name = files.new_name()
    written = files.write_array(folder, f"{name}.scores", old, keep=[~out])
    for kind in (*KINDS, *(["pdq"] if kept["method"] == "held-out" else [])):
        array = files.map_array(folder, f"{kept['looks']}.looks.{kind}")
        written |= files.write_array(folder, f"{name}.looks.{kind}", array, keep=[~out])
    written |= files.write_table(folder, f"{name}.looks.rows", rows.filter(pa.array(~out)))
    calibration = kept | {"looks": name, "scores": name, "n": len(old) - int(out.sum())}
    return files.changed(state.manifest, written, [kept["looks"], kept["scores"]], calibration=calibration)


def _scores(
    looks: QueryFeatures,
    whole: VectorBlocks,
    coarse: VectorBlocks,
    crops: VectorBlocks | None,
    verify: Verify,
    own: tuple[NDArray[np.int64], NDArray[np.int64]] | None,
    options: CacheOptions,
) -> NDArray[np.float32]:
    """Best combined scores [m 2] of the whole pictures and with their windows; NaN where nothing was left to match."""
    settings: Options = {"workers": options.get("workers"), "progress": options.get("progress")}
    alone = dataclasses.replace(looks, vectors=looks.vectors[:, :1])
    columns = [
        local_search(each, whole, coarse, crops, verify, verify.top, exact=True, own=own, **settings).best
        for each in (alone, looks)
    ]
    scores = np.stack(columns, axis=1)
    return np.where(np.isfinite(scores), scores, np.nan).astype(np.float32)
