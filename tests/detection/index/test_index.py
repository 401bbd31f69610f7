"""The index: the audit's own scores, brute force, adding and removing, damage that is said, parts that are found."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import multiprocessing
import os
import shutil
import signal
import subprocess
import sys

import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image
from typer.testing import CliRunner

import copyscope
from copyscope import Corpus, Index, parts
from copyscope.cli import main
from copyscope.detection.embedding.protocols import protocol as named_protocol
from copyscope.detection.index import manifest as index_files
from copyscope.detection.index.index import TABLE, table
from copyscope.detection.matching import partial_copies
from copyscope.detection.matching.local_search import Candidates, local_search
from copyscope.detection.matching.ncc import Verify
from copyscope.detection.matching.tiny_image import coarse_vectors
from copyscope.detection.matching.windows import extract
from copyscope.detection.search import binary_codes as codes_module
from copyscope.detection.search.binary_codes import Block, VectorBlocks, encode, rotation
from copyscope.errors import InputError
from copyscope.imaging import images
from tests import worlds

FAST = "sscd-distilled"


@pytest.fixture(scope="module")
def built(world, tmp_path_factory):
    """An index of the first 40 training images, calibrated on 25 held-out ones. Not to be changed."""
    held = Corpus.open(world.held_out).take(range(25))
    return Index.build(first(world, 40), tmp_path_factory.mktemp("built") / "index", FAST, held_out=held)


@pytest.fixture
def index(built, tmp_path):
    """A copy of it to change."""
    return Index.open(shutil.copytree(built.folder, tmp_path / "index"))


def first(world, stop, start=0):
    return Corpus.open(world.train).take(range(start, stop))


def unit(rng, n, d=64):
    vectors = rng.standard_normal((n, d), dtype=np.float32)
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


def rows_of(vectors, parts, gone=()):
    directions = rotation(vectors.shape[1])
    removed = np.isin(np.arange(len(vectors)), gone)
    thumbnails = np.zeros((len(vectors), 4, 4, 3), np.uint8)
    blocks = [
        Block(vectors[part], encode(vectors[part], directions), thumbnails[part], removed[part]) for part in parts
    ]
    return VectorBlocks(blocks, directions)


# Search


def test_both_searches_are_brute_force_over_all_blocks_and_skip_what_was_removed():
    rng = np.random.default_rng(0)
    vectors = unit(rng, 3000)
    queries = vectors[rng.integers(0, 3000, 20)] + 0.1 * unit(rng, 20)
    gone = (queries[:10] @ vectors.T).argmax(axis=1)
    rows = rows_of(vectors, [slice(0, 1), slice(1, 1800), slice(1800, 3000)], gone)
    scores = queries @ vectors.T
    scores[:, gone] = -9
    order = np.argsort(-scores, axis=1, kind="stable")[:, :5]
    for exact in (True, False):
        found = rows.nearest(queries, 5, exact=exact)
        np.testing.assert_array_equal(found.index[:, 0], order[:, 0])
        np.testing.assert_allclose(found.score, np.take_along_axis(scores, order, axis=1), atol=1e-5)


@pytest.mark.parametrize("each", [3, 80], ids=["few removed", "many removed"])
def test_codes_skip_what_was_removed_however_much_it_is(each):
    rng = np.random.default_rng(6)
    vectors = unit(rng, 3000)
    queries = vectors[rng.integers(0, 3000, 20)] + 0.1 * unit(rng, 20)
    scores = queries @ vectors.T
    gone = np.unique(np.argsort(-scores, axis=1)[:, :each])
    assert (len(gone) > codes_module.KEPT) == (each > 3)
    scores[:, gone] = -9
    found = rows_of(vectors, [slice(0, 3000)], gone).nearest(queries, 5, exact=False)
    # The nearest are gone, and what is left is not near: codes of 64 bits find most of it.
    assert not np.isin(found.index, gone).any()
    assert (found.index >= 0).all()
    assert (found.index[:, 0] == scores.argmax(axis=1)).mean() >= 0.9


@pytest.mark.parametrize("others", [20, 500])
def test_what_was_removed_takes_no_place_among_candidates(monkeypatch, others):
    monkeypatch.setattr(codes_module, "KEPT", 40)
    rng = np.random.default_rng(9)
    query = unit(rng, 1)
    vectors = np.concatenate([query + 0.01 * unit(rng, 40), unit(rng, others)])
    found = rows_of(vectors, [slice(0, 40 + others)], range(40)).nearest(query, 5, exact=False)
    assert len(set(found.index[0].tolist())) == 5
    assert found.index.min() >= 40


def test_codes_keep_a_near_row_among_very_many(monkeypatch):
    monkeypatch.setattr(codes_module, "KEPT", 40)
    rng = np.random.default_rng(1)
    vectors = unit(rng, 40_000, 512)
    source = rng.integers(0, len(vectors), 30)
    queries = 0.4 * vectors[source] + np.sqrt(1 - 0.16) * unit(rng, 30, 512)
    rows = rows_of(vectors, [slice(0, 15_000), slice(15_000, 40_000)])
    found = rows.nearest(queries, 1, exact=False)
    assert (found.index[:, 0] == source).mean() > 0.9
    assert found.score[:, 0] == pytest.approx((queries * vectors[found.index[:, 0]]).sum(axis=1), abs=1e-5)


def test_few_queries_of_many_rows_go_by_codes_where_faiss_is(monkeypatch):
    monkeypatch.setattr(codes_module, "FAST_ROWS", 100)
    vectors = unit(np.random.default_rng(2), 200)
    rows, taken = rows_of(vectors, [slice(0, 200)]), []
    for way in ("_exact", "_by_codes"):
        method = getattr(VectorBlocks, way)
        monkeypatch.setattr(
            VectorBlocks, way, lambda *given, way=way, method=method: taken.append(way) or method(*given)
        )
    rows.nearest(vectors[:3], 1)
    rows.nearest(vectors[:40], 1)
    monkeypatch.setattr(codes_module.importlib.util, "find_spec", lambda name: None)
    assert rows.nearest(vectors[:3], 1).index[:, 0].tolist() == [0, 1, 2]
    assert taken == ["_by_codes", "_exact", "_exact"]
    monkeypatch.setitem(sys.modules, "faiss", None)
    with pytest.raises(InputError, match="by sign bits, which needs faiss"):
        rows.nearest(vectors[:3], 1, exact=False)


def test_the_angle_is_the_share_of_bits_that_differ():
    rng = np.random.default_rng(2)
    one, other = unit(rng, 1, 512), unit(rng, 1, 512)
    directions = rotation(512)
    for weight in (0.0, 0.3, 1.0):
        mixed = (1 - weight) * one + weight * other
        angle = np.arccos(np.clip((one @ mixed.T / np.linalg.norm(mixed)).item(), -1, 1))
        bits = np.unpackbits(encode(one, directions) ^ encode(mixed, directions)).sum()
        assert bits / 512 == pytest.approx(angle / np.pi, abs=0.09)
    assert np.allclose(directions.T @ directions, np.eye(512), atol=1e-5)


def test_fewer_rows_than_asked_for_leave_none():
    vectors = unit(np.random.default_rng(3), 3)
    for exact in (True, False):
        found = rows_of(vectors, [slice(0, 3)], gone=[1]).nearest(vectors[:1], 5, exact=exact)
        assert found.index[0].tolist()[2:] == [-1, -1, -1]
        assert 1 not in found.index


# Scores


def test_scores_are_those_of_an_audit_which_looks_at_no_fewer_candidates(built, world):
    held = Corpus.open(world.held_out).take(range(25))
    audit = copyscope.audit(world.generated, first(world, 40), held, FAST)
    answers = built.match(world.generated, 40, local=False)
    rows = audit.tables["generated"].to_pylist()
    assert len(answers) == len(rows) == 40
    for row, hits in zip(rows, answers, strict=True):
        (same,) = [hit for hit in hits if hit.id == row["match"]]
        for name in ("score", "verified", "combined"):
            assert getattr(same, name) == pytest.approx(row[name], abs=1e-5), name
        assert hits[0].combined >= row["combined"] - 1e-5
        assert {(hit.box, hit.source_box) for hit in hits} == {(None, None)}
    assert built.summary()["calibration"]["n"] == audit.summary["calibration"]["n"]


def test_coarse_vectors_are_correlations_of_four_by_four_pixels():
    rng = np.random.default_rng(7)
    pictures = np.stack([images.resize(worlds.picture(rng)[0], (32, 32)) for _ in range(3)])
    small = np.stack([images.resize(picture, (4, 4)) for picture in pictures]).astype(float)
    centred = small - small.mean(axis=(1, 2), keepdims=True)
    centred /= np.sqrt((centred**2).sum(axis=(1, 2, 3), keepdims=True))
    vectors = coarse_vectors(pictures)
    np.testing.assert_allclose(vectors @ vectors.T, np.einsum("nhwc,mhwc->nm", centred, centred), atol=0.03)
    assert not coarse_vectors(np.full((1, 32, 32, 3), 90, np.uint8)).any()


@pytest.mark.parametrize("mirrored", [False, True])
def test_a_rough_copy_that_the_descriptor_does_not_retrieve_is_found_by_its_pixels(world, tmp_path, mirrored):
    """Blind vectors: the source is further from the query than every other training image."""
    train = first(world, 30, 10)
    index = Index.build(train, tmp_path / "index", FAST, held_out=Corpus.open(world.held_out).take(range(10)))
    source = images.decode(train.read(4))
    rough = source[:, ::-1].copy() if mirrored else source
    looks = extract([rough], named_protocol(FAST).load(), Verify(), local=False)
    (block,) = index._state.whole.blocks
    away = unit(np.random.default_rng(8), 1, looks.vectors.shape[2])
    away -= (away @ looks.vectors[0, 0]) * looks.vectors[:, 0]
    away /= np.linalg.norm(away)
    blind = np.repeat(0.1 * looks.vectors[:, 0] + np.sqrt(0.99) * away, len(block.vectors), axis=0).astype(np.float32)
    blind[4] = np.sqrt(0.99) * away - 0.1 * looks.vectors[:, 0]
    whole = VectorBlocks([dataclasses.replace(block, vectors=blind)], index._state.whole.directions)
    for exact in (True, False):
        found = local_search(looks, whole, index._state.coarse, None, Verify(top=2), 2, exact=exact)
        at = next(found.of(0))
        assert found.row[0, at] == 4
        assert found.verified[0, at] > 0.99
        assert found.score[0, at] == pytest.approx(-0.1, abs=1e-5)
        rows = found.row[0][found.row[0] >= 0].tolist()
        assert len(rows) == len(set(rows)), "no candidate is compared twice"
    blocks = [dataclasses.replace(block, gone=np.arange(len(blind)) == 4) for block in index._state.coarse.blocks]
    found = local_search(looks, whole, VectorBlocks(blocks, index._state.coarse.directions), None, Verify(top=2), 2)
    assert 4 not in found.row


def test_pictures_in_memory_are_answered_as_files_are(built, world):
    corpus = Corpus.open(world.generated).take([0, 1])
    pictures = [images.decode(corpus.read(row)) for row in range(2)]
    for mine, theirs in zip(built.match(pictures, 3), built.match(corpus, 3), strict=True):
        assert [hit.id for hit in mine] == [hit.id for hit in theirs]
        assert [hit.combined for hit in mine] == pytest.approx([hit.combined for hit in theirs], abs=1e-4)
    (alone,) = built.match(pictures[0], 3)
    assert alone[0].id == built.match(corpus, 1)[0][0].id


def test_each_training_image_comes_once_best_first_and_an_unreadable_picture_has_none(built, world, tmp_path):
    (tmp_path / "broken.png").write_bytes(b"no picture")
    shutil.copy(next(world.generated.glob("*.png")), tmp_path / "whole.png")
    answers = built.match(tmp_path, 100)
    assert answers[0] == []
    assert len({hit.id for hit in answers[1]}) == len(answers[1])
    seen = [hit.combined for hit in answers[1] if hit.combined is not None]
    assert seen == sorted(seen, reverse=True)
    assert len(seen) >= 8
    assert answers[1][-1].combined is answers[1][-1].p_value is answers[1][-1].verified is None


def test_p_values_of_real_images_are_never_smaller_than_promised(built, world):
    unseen = Corpus.open(world.held_out).take(range(25, 85))
    for local in (False, True):
        p_values = np.array([hits[0].p_value for hits in built.match(unseen, 1, local=local)])
        # 60 pictures, each at or below 0.2 with that probability: more than 23 would be one case in a thousand.
        assert (p_values <= 0.2).sum() <= 23
        assert p_values.min() >= 1 / 26


# Parts


@pytest.mark.parametrize("size", [(128, 128), (150, 100)], ids=["square", "wide"])
def test_an_inset_of_a_quarter_is_found_with_its_box(built, world, size):
    rng = np.random.default_rng(4)
    width, height = size
    corpus = first(world, 40)
    right, sure, overlaps = 0, 0, []
    for row in range(10, 39, 4):
        side = round((width * height / 4) ** 0.5)
        background = images.resize(worlds.picture(rng)[0], (height, width))
        top, left = int(rng.integers(height - side + 1)), int(rng.integers(width - side + 1))
        background[top : top + side, left : left + side] = images.resize(images.decode(corpus.read(row)), (side, side))
        (hits,) = built.match(background, 1)
        if hits[0].id == corpus.ids[row] and hits[0].box:
            right += 1
            sure += hits[0].p_value <= 1 / 26
            overlaps.append(overlap(hits[0].box, (left / width, top / height, side / width, side / height)))
    assert right >= 7
    assert sure >= 4
    assert min(overlaps) > 0.4
    assert np.mean(overlaps) > 0.6  # fine noise, as in these pictures, favours a size too small


def overlap(one, other):
    across, down = (min(one[at] + one[at + 2], other[at] + other[at + 2]) - max(one[at], other[at]) for at in range(2))
    shared = max(across, 0) * max(down, 0)
    return shared / (one[2] * one[3] + other[2] * other[3] - shared)


def test_a_place_is_found_mirrored_too_and_a_flat_picture_scores_nothing():
    rng = np.random.default_rng(5)
    thumbnail = images.resize(worlds.picture(rng)[0], (32, 32))
    canvas = np.full((1, partial_copies.SIDE, partial_copies.SIDE, 3), 120, np.uint8)
    canvas[0, 10:42, 20:52] = thumbnail[:, ::-1]
    pictures = partial_copies.Padded.of(canvas, np.array([[64, 64]]))
    scores, boxes = partial_copies.find(pictures, thumbnail[None], np.array([[0, -1]]))
    assert scores[0, 0] > 0.99
    assert boxes[0, 0] == pytest.approx([20 / 64, 10 / 64, 0.5, 0.5], abs=0.04)
    assert np.isnan(scores[0, 1])
    flat = partial_copies.Padded.of(np.full_like(canvas, 120), np.array([[64, 64]]))
    assert partial_copies.find(flat, thumbnail[None], np.array([[0]]))[0][0, 0] == pytest.approx(0, abs=1e-3)


def test_a_picture_that_shows_a_quarter_of_a_training_image_is_found_among_crops(world, tmp_path):
    held = Corpus.open(world.held_out).take(range(10))
    train = first(world, 18, 10)  # those before are planted duplicates
    index = Index.build(train, tmp_path / "index", FAST, held_out=held, crops=True)
    picture = images.decode(train.read(3))
    height, width = picture.shape[:2]
    part = images.resize(picture[height // 4 : 3 * height // 4, width // 4 : 3 * width // 4], (height, width))
    (hits,) = index.match(part, 1)
    assert hits[0].id == train.ids[3]
    assert hits[0].source_box == (0.25, 0.25, 0.5, 0.5)
    assert hits[0].box is None
    index.remove([train.ids[3]])
    index.add(first(world, 20, 18))
    index.compact()
    assert index.match(part, 1)[0][0].id != train.ids[3]
    index.check()


# Changing it


def test_images_are_added_and_removed_and_every_reader_sees_it(index, world):
    reader = Index.open(index.folder)
    asked = first(world, 42, 41)
    assert reader.match(asked, 1, local=False)[0][0].combined < 0.999
    assert index.add(first(world, 50, 40)) == 10
    assert len(index) == len(reader) == 50
    assert reader.ids == first(world, 50).ids
    assert reader.match(asked, 1, local=False)[0][0].id == asked.ids[0]
    assert index.remove(asked.ids) == 1
    assert asked.ids[0] not in {hit.id for hit in reader.match(asked, 50, local=False)[0]}
    assert len(reader) == 49
    before = [hit.id for hit in reader.match(asked, 49)[0]]
    index.compact()
    assert reader.summary()["n_removed"] == 0
    assert reader.summary()["n_segments"] == 1
    assert [hit.id for hit in reader.match(asked, 49)[0]] == before
    assert index.add(asked) == 1
    index.check()
    files = {path.name for path in index.folder.iterdir()} - {"index.json", ".lock"}
    assert files == set(index_files.read_manifest(index.folder)["files"]), "nothing that is not named is left behind"


def test_ids_must_be_new_to_be_added_and_there_to_be_removed(index, world):
    with pytest.raises(InputError, match="in the index already"):
        index.add(first(world, 2))
    with pytest.raises(InputError, match=r"not in the index, the first is 'nowhere\.png'"):
        index.remove([index.ids[0], "nowhere.png"])
    assert len(index) == 40


def test_an_index_that_was_added_to_answers_as_one_built_at_once(world, tmp_path):
    held = Corpus.open(world.held_out).take(range(10))
    grown = Index.build(first(world, 25, 10), tmp_path / "grown", FAST, held_out=held)
    grown.add(first(world, 40, 25))
    whole = Index.build(first(world, 40, 10), tmp_path / "whole", FAST, held_out=held)
    asked = Corpus.open(world.generated).take(range(6))
    for mine, theirs in zip(grown.match(asked, 3), whole.match(asked, 3), strict=True):
        assert [hit.id for hit in mine] == [hit.id for hit in theirs]
        assert all(a.p_value >= b.p_value - 1e-9 for a, b in zip(mine, theirs, strict=True)), "never a smaller p-value"
    # Every score can only rise when there is more to be like.
    assert (grown._state.calibration.local >= whole._state.calibration.local - 1e-6).all()


def test_a_held_out_image_that_is_then_trained_on_no_longer_calibrates(index, world):
    held = Corpus.open(world.held_out).take([0])
    before = index.summary()["calibration"]
    index.add(held.with_column("id", ["was-held-out.png"]))
    after = index.summary()["calibration"]
    assert (after["n"], after["n_removed"]) == (before["n"] - 1, before["n_removed"] + 1)
    # What no longer calibrates is not counted again when it is added under another name.
    index.add(held.with_column("id", ["again.png"]))
    assert index.summary()["calibration"] == after


def test_without_held_out_images_the_training_set_stands_in(world, tmp_path):
    index = Index.build(first(world, 20), tmp_path / "index", FAST)
    assert index.summary()["calibration"]["method"] == "baseline"
    before = index._state.calibration.whole.copy()
    assert before.max() < 0.999, "no image is its own match"
    index.add(first(world, 20).with_column("id", [f"again{row}.png" for row in range(20)]))
    np.testing.assert_allclose(index._state.calibration.whole, before, err_msg="near-duplicates do not count")


@pytest.mark.parametrize("precision", ["float32", "float16", "int8"])
def test_a_training_image_is_identical_at_any_calibration(world, tmp_path, precision):
    train = first(world, 40, 28)
    index = Index.build(train, tmp_path / "index", FAST, precision=precision)
    picture = images.decode(train.read(3))
    mirrored = np.ascontiguousarray(picture[:, ::-1])
    (tmp_path / "again.webp").write_bytes(images.encode(picture, "png"))
    for hits in (
        *index.match([picture], 3),
        *index.match(tmp_path / "again.webp", 3),
        *index.match(train.take([3]), 3),
    ):
        assert (hits[0].id, hits[0].identical) == (train.ids[3], True)
        assert not any(hit.identical for hit in hits[1:])
    shifted = images.resize(picture[2:, 2:], picture.shape[:2])
    for near in (mirrored, shifted, 255 - picture):
        assert not any(hit.identical for hit in index.match([near], 3)[0])
    # The mirror image of a picture has a pixel score of 1 too: the picture itself comes before it.
    write = tmp_path / "mirrored.png"
    write.write_bytes(images.encode(mirrored, "png"))
    index.add(write)
    assert [hits[0].id for hits in index.match([picture, mirrored], 1)] == [train.ids[3], "mirrored.png"]


def test_candidates_that_are_the_picture_itself_come_first():
    scores = [np.array([[0.9, 0.99, 1.0]], np.float32)] * 3
    boxes = [np.zeros((1, 3, 4), np.float32)] * 2
    found = Candidates(np.array([[7, 8, 9]]), *boxes, *scores)
    assert list(found.of(0)) == [2, 1, 0]
    assert list(found.of(0, np.array([False, True, False]))) == [1, 2, 0]


def holds(folder, traces):
    """Which of the traces, byte strings by name, are in any file of a folder; packed tables are read."""
    content = b"".join(path.read_bytes() for path in sorted(folder.iterdir()))
    for path in folder.glob("*.parquet"):
        content += repr(pq.read_table(path).to_pylist()).encode()
    return {name for name, trace in traces.items() if trace in content}


@pytest.mark.parametrize("precision", ["float32", "int8"])
@pytest.mark.parametrize("way", ["baseline", "held-out", "added"])
def test_nothing_of_a_removed_image_is_left_after_compact(world, tmp_path, way, precision):
    held = Corpus.open(world.held_out).take(range(8))
    # An id that another image has too is no trace of the first.
    held = held.with_column("id", [f"unseen{row}.png" for row in range(8)])
    index = Index.build(
        first(world, 40, 20), tmp_path / "index", FAST, held_out=held if way != "baseline" else None,
        crops=way == "baseline", precision=precision,
    )  # fmt: skip
    if way == "added":
        # The removed image is one of the held-out ones in another format, which calibrated until it was added.
        Image.fromarray(images.decode(held.read(2))).save(tmp_path / "opted-out.bmp")
        gone, source = "opted-out.bmp", Corpus.open(tmp_path / "opted-out.bmp")
        index.add(source)
    else:
        gone, source = first(world, 40, 20).ids[15], first(world, 40, 20).take([15])
    content = source.read(0)
    picture = images.decode(content)
    looks = extract([picture], named_protocol(FAST).load(), Verify(), True)
    digest = hashlib.sha256(content)
    rows = {
        "id": gone.encode(),
        "sha256": digest.hexdigest().encode(),
        "digest": digest.digest(),
        "thumbnail": looks.thumbnails.tobytes(),
        "canvas": looks.canvases.pixels.tobytes(),
        "vector": looks.vectors[0, 0].tobytes(),
        "hash": parts.load("descriptors", "pdq").describe([picture]).tobytes(),
    }
    # Thumbnails and, of calibration images, canvases and vectors of float32 are there to be found.
    assert holds(index.folder, rows) >= {"id", "sha256", "thumbnail"}
    index.remove([gone])
    assert holds(index.folder, rows) >= {"id", "sha256", "thumbnail"}, "removing alone does not take it out"
    (index.folder / "0123456789abcdef.thumbnails.npy").write_bytes(rows["thumbnail"])
    (index.folder / ".0123456789abcdef.rows.parquet.77.tmp").write_bytes(rows["id"])
    before = index.summary()["calibration"]["n"]
    index.compact()
    assert holds(index.folder, rows) == set()
    assert index.summary()["calibration"]["n"] == before - (way == "baseline")
    assert len(index) == (20 if way == "added" else 19)
    index.check()
    index.add(source.with_column("id", ["back.png"]))
    assert index.match([picture], 1)[0][0].identical


def test_all_of_an_index_without_held_out_images_may_be_removed(world, tmp_path):
    index = Index.build(first(world, 5), tmp_path / "index", FAST)
    names = index.ids
    index.remove(names)
    index.compact()
    assert holds(index.folder, {name: name.encode() for name in names}) == set()
    assert (len(index), index.summary()["calibration"]["n"]) == (0, 0)
    index.add(first(world, 3))
    assert index.match(first(world, 1), 1)[0][0].identical


def test_many_small_additions_are_merged(index, world, monkeypatch):
    monkeypatch.setattr("copyscope.detection.index.index.COMPACT_ABOVE", 2)
    for row in range(40, 43):
        index.add(first(world, row + 1, row))
    assert index.summary()["n_segments"] <= 2
    assert index.ids == first(world, 43).ids


def test_all_may_be_removed(index, world):
    index.remove(index.ids)
    index.compact()
    assert (len(index), index.match(first(world, 1))) == (0, [[]])
    index.add(first(world, 2))
    assert index.match(first(world, 1), 1)[0][0].id == index.ids[0]


def test_an_index_goes_to_a_new_or_empty_folder_only(built, world, tmp_path):
    with pytest.raises(InputError, match="There is an index"):
        Index.build(first(world, 2), built.folder, FAST)
    (tmp_path / "vectors.npy").write_bytes(b"of somebody else")
    with pytest.raises(InputError, match="not empty"):
        Index.build(first(world, 2), tmp_path, FAST)
    assert (tmp_path / "vectors.npy").read_bytes() == b"of somebody else"
    with pytest.raises(InputError, match="No index in"):
        Index.open(tmp_path)


# Damage


def kinds(folder):
    return sorted(
        {path.name.partition(".")[2] for path in folder.iterdir() if path.name not in ("index.json", ".lock")}
    )


def test_every_kind_of_file_is_checked_to_the_byte(index):
    index.remove(index.ids[:1])
    found = kinds(index.folder)
    assert {"coarse.vectors.npy", "coarse.codes.npy", "coarse.rotation.npy", "rotation.npy"} <= set(found)
    assert {"vectors.npy", "codes.npy", "thumbnails.npy", "rows.parquet", "removed.parquet", "scores.npy"} <= set(found)
    for kind in found:
        path = next(path for path in index.folder.iterdir() if path.name.endswith(f".{kind}"))
        whole = path.read_bytes()
        path.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
        with pytest.raises(InputError, match=f"damaged: {path.name} is not what its checksum says"):
            Index.check(index)
        path.write_bytes(whole[:-1])
        with pytest.raises(InputError, match=f"damaged: {path.name} has {len(whole) - 1} bytes"):
            Index.open(index.folder)
        path.unlink()
        with pytest.raises(InputError, match=f"damaged: {path.name} is missing"):
            Index.open(index.folder)
        path.write_bytes(whole)
    index.check()


def test_a_changed_manifest_is_said_at_once(index):
    path = index.folder / "index.json"
    text = path.read_text()
    for changed, message in (
        (text.replace('"n": 40', '"n": 41'), "is not what its own checksum says"),
        (text[: len(text) // 2], "is not a manifest"),
        (text.replace("copyscope.index/2", "copyscope.index/9"), "index/9"),
    ):
        assert changed != text
        path.write_text(changed)
        with pytest.raises(InputError, match=message):
            Index.open(index.folder)


def test_other_weights_are_refused(index, world, monkeypatch):
    monkeypatch.setattr(
        "copyscope.detection.descriptors.sscd_distilled.SscdDistilled.fingerprint", lambda self: "other"
    )
    with pytest.raises(InputError, match="other weights"):
        index.match(first(world, 1))


# Processes


def read(folder, stop, results):
    """What a reader sees until it is told to stop: numbers of images, and whether every answer was right."""
    index = Index.open(folder)
    vectors = np.array(index._state.whole.blocks[0].vectors[10:13])
    expected, seen, right = index.ids[10:13], [], True
    while not stop.is_set() or len(seen) < 3:
        state = index._fresh()
        found = state.whole.nearest(vectors, 1)
        right &= [each["id"] for each in state.table.take(found.index[:, 0], ["id"])] == expected
        seen.append(len(index))
    results.put((seen, right))


def test_two_processes_read_while_a_third_appends(index, world):
    context = multiprocessing.get_context("spawn")
    stop, results = context.Event(), context.Queue()
    readers = [context.Process(target=read, args=(index.folder, stop, results)) for _ in range(2)]
    for reader in readers:
        reader.start()
    code = (
        "import sys, copyscope; index = copyscope.Index.open(sys.argv[1]); train = copyscope.Corpus.open(sys.argv[2])\n"
        "for row in range(40, 46):\n    index.add(train.take([row]))\n    row % 3 or index.compact()\n"
    )
    subprocess.run([sys.executable, "-c", code, index.folder, world.train], check=True)
    stop.set()
    answers = [results.get(timeout=120) for _ in readers]
    for reader in readers:
        reader.join()
    for seen, right in answers:
        assert right
        assert seen == sorted(seen)
        assert seen[-1] == 46
    index.check()


@pytest.mark.parametrize("moment", ["write_segment", "write_manifest"])
def test_a_killed_writer_leaves_what_was_there_and_its_rest_is_taken_away(index, world, moment):
    code = (
        "import os, sys, copyscope\nfrom copyscope.detection.index import index as module, manifest\n"
        "def die(*arguments):\n    os.kill(os.getpid(), 9)\n"
        "place = manifest if sys.argv[3] == 'write_manifest' else module\n"
        "real = getattr(place, sys.argv[3])\n"
        "setattr(place, sys.argv[3], (lambda *a: (real(*a), die())) if sys.argv[3] == 'write_segment' else die)\n"
        "train = copyscope.Corpus.open(sys.argv[2])\n"
        "copyscope.Index.open(sys.argv[1]).add(train.take([40]))\n"
    )
    killed = subprocess.run([sys.executable, "-c", code, index.folder, world.train, moment], check=False)
    assert killed.returncode == -signal.SIGKILL
    again = Index.open(index.folder)
    again.check()
    assert len(again) == 40
    named = set(index_files.read_manifest(index.folder)["files"]) | {"index.json", ".lock"}
    assert set(os.listdir(index.folder)) > named
    assert again.add(first(world, 41, 40)) == 1
    named = set(index_files.read_manifest(index.folder)["files"]) | {"index.json", ".lock"}
    assert set(os.listdir(index.folder)) == named


# The command line


def run(*arguments):
    found = CliRunner().invoke(main.app, [str(each) for each in arguments])
    return found.exit_code, found.stdout, found.exception


def test_the_commands_build_add_remove_check_and_match(world, tmp_path):
    folder, some, more = tmp_path / "train.index", tmp_path / "some", tmp_path / "more"
    paths = sorted(world.train.glob("*.png"))
    for target, chosen in ((some, paths[:12]), (more, paths[12:14])):
        target.mkdir()
        for path in chosen:
            shutil.copy(path, target)
    code, stdout, _ = run("index", "build", some, "-o", folder, "-p", FAST, "--json")
    assert code == 0
    assert json.loads(stdout)["n"] == 12
    assert json.loads(run("index", "add", folder, more, "--json")[1])["n"] == 14
    assert "No image to remove was named.\nGive ids" in str(run("index", "remove", folder)[2])
    assert json.loads(run("index", "remove", folder, paths[0].name, "--json")[1])["n"] == 13
    assert "copyscope index compact" in CliRunner().invoke(main.app, ["index", "show", str(folder)]).stderr
    code, stdout, _ = run("index", "compact", folder)
    assert "13 images by sscd_distilled" in stdout
    assert json.loads(run("index", "show", folder, "--json")[1])["n_removed"] == 0
    assert run("index", "check", folder)[1].endswith("Every checksum holds.\n")
    code, stdout, _ = run("match", paths[11], paths[13], "--index", folder, "-k", 2, "--json", "-o", tmp_path / "out")
    rows = json.loads(stdout)["matches"]
    assert [(row["query_id"], row["reference_id"]) for row in rows if row["rank"] == 1] == [
        (paths[11].name, paths[11].name),
        (paths[13].name, paths[13].name),
    ]
    assert (tmp_path / "out" / "matches.parquet").is_file()
    said = run("match", paths[11], "--index", folder, "--no-local")[1]
    assert f"{paths[11].name} is a copy of {paths[11].name} (the same image)" in said
    assert "1 of 1 image matches a training image (the same image)." in said
    assert "two sets of images" in str(run("match", paths[3])[2])
    assert "There is an index" in str(run("index", "build", some, "-o", folder, "-p", FAST)[2])
    assert f"copyscope index build TRAIN -o {some}" in str(run("index", "show", some)[2])
    victim = next(folder.glob("*.thumbnails.npy"))
    victim.write_bytes(victim.read_bytes()[:-1] + b"\x01")
    assert f"{victim.name} is not what its checksum says" in str(run("index", "check", folder)[2])


def test_a_table_of_answers_has_a_row_a_hit(built, world):
    asked = Corpus.open(world.generated).take([0, 1])
    found = table(asked.ids, built.match(asked, 3))
    assert found.schema == TABLE
    assert found["query_id"].to_pylist() == [each for each in asked.ids for _ in range(3)]
    assert found["rank"].to_pylist() == [1, 2, 3] * 2


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("segments", "x"),
        ("segments", ["x"]),
        ("segments", [{"name": "../../etc", "n": 1}]),
        ("segments", [{"name": "0" * 16, "n": -1}]),
        ("segments", [{"name": "0" * 16, "n": 5}]),
        ("calibration", None),
        ("calibration", {}),
        ("calibration", {"method": 1, "n": 1, "rule": "", "looks": "../x", "scores": "../x"}),
        ("files", []),
        ("files", {"../x": {"bytes": 1, "sha256": ""}}),
        ("files", {"0000000000000000.codes.npy": None}),
        ("removed", 5),
        ("removed", "../x"),
        ("rotation", None),
        ("dim", "512"),
        ("crops", None),
        ("protocol", ["x"]),
        ("precision", {}),
    ],
)
def test_a_manifest_of_wrong_values_is_two_lines_though_its_digest_is_right(index, key, value):
    manifest = index_files.read_manifest(index.folder)
    index_files.write_file(
        index.folder / index_files.MANIFEST,
        lambda path: path.write_text(
            json.dumps((changed := manifest | {key: value}) | {"digest": index_files.digest_of(changed)})
        ),
    )
    with pytest.raises(InputError) as caught:
        Index.open(index.folder).check()
    assert len(str(caught.value).splitlines()) == 2


def test_held_out_images_that_are_all_training_images_are_refused(world, tmp_path):
    some = Corpus.open(world.train).take(range(8))
    with pytest.raises(InputError, match=r"None of the 8 held-out images .* show what a training image shows.*\n.+"):
        Index.build(some, tmp_path / "index", "phash", held_out=some)


def test_an_index_opened_by_a_relative_path_follows_no_change_of_folder(index, world, tmp_path, monkeypatch):
    monkeypatch.chdir(index.folder.parent)
    found = Index.open(index.folder.name)
    assert found.origin == index.folder.name
    monkeypatch.chdir(tmp_path.parent)
    found.remove([found.ids[0]])
    found.add(first(world, 41, 40))
    found.check()
    found.compact()
    assert found.summary()["n"] == len(found.match(first(world, 3, 2), 40)[0]) == 40


def test_a_summary_does_not_walk_the_rows_again(index):
    class Counted(np.ndarray):
        walks = 0

        def sum(self, *arguments, **options):
            Counted.walks += 1
            return super().sum(*arguments, **options)

    index.remove(index.ids[:2])
    (block,) = index._state.whole.blocks
    object.__setattr__(block, "gone", block.gone.view(Counted))
    vars(block).pop("n_gone", None)
    assert [index.summary()["n"] for _ in range(3)] == [38] * 3
    assert Counted.walks == 1
