"""Vectors of an index in fewer bytes: how far scores move, that look-ups hold, that the index stays what it is."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from typer.testing import CliRunner

from copyscope import Corpus, Index
from copyscope.cli import main
from copyscope.detection.index import manifest as index_files
from copyscope.detection.index import row_table
from copyscope.detection.search import quantized
from copyscope.detection.search.binary_codes import Block, VectorBlocks, encode, rotation
from copyscope.detection.search.quantized import PRECISIONS, Stored, checked, kinds, shorten
from copyscope.errors import InputError

FAST = "sscd-distilled"
SHORT = PRECISIONS[1:]
# Of an inner product of unit vectors of d dimensions with values of magnitude v at most: half a step of each value.
BOUND = {"float16": lambda d, v: np.sqrt(d) * v * 2.0**-11 + 1e-6, "int8": lambda d, v: np.sqrt(d) * v / 254 + 1e-6}


@pytest.fixture(scope="module")
def built(world, tmp_path_factory):
    """An index of the first 40 training images in each precision, calibrated on 25 held-out ones. Not to be changed."""
    held = Corpus.open(world.held_out).take(range(25))
    folder = tmp_path_factory.mktemp("built")
    return {
        each: Index.build(first(world, 40), folder / each, FAST, held_out=held, precision=each) for each in PRECISIONS
    }


def first(world, stop, start=0):
    return Corpus.open(world.train).take(range(start, stop))


def copied(index, folder):
    return Index.open(shutil.copytree(index.folder, folder / "index"))


def unit(rng, n, d=512):
    vectors = rng.standard_normal((n, d), dtype=np.float32)
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


def close(short):
    return 1e-3 if short == "float16" else 1e-2


# Vectors


@pytest.mark.parametrize("short", SHORT)
def test_no_similarity_is_moved_by_more_than_half_a_step_of_each_value(short):
    rng = np.random.default_rng(0)
    # Values of one magnitude are the worst case of a scale a row; a lone large one leaves the rest coarse.
    vectors = np.concatenate([unit(rng, 300), np.sign(unit(rng, 50)) / np.sqrt(512), np.eye(512, dtype=np.float32)[:9]])
    vectors[0, 0] += 1
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    queries = unit(rng, 100)
    moved = np.abs(queries @ (Stored(*shorten(vectors, short))[:] - vectors).T)
    bound = np.array([BOUND[short](512, each) for each in np.abs(vectors).max(axis=1)])
    assert (moved <= bound).all()
    assert moved[:, 1:300].max() < (2e-4 if short == "float16" else 3e-3), "of vectors without a direction of their own"


def test_float32_is_kept_to_the_bit_and_zeros_stay_zeros():
    vectors = np.concatenate([unit(np.random.default_rng(1), 5), np.zeros((1, 512), np.float32)])
    np.testing.assert_array_equal(Stored(*shorten(vectors, "float32"))[:], vectors)
    for short in SHORT:
        assert not Stored(*shorten(vectors, short))[5:].any()


def test_bytes_use_the_whole_range_with_one_scale_a_row():
    vectors = unit(np.random.default_rng(2), 20) * np.linspace(0.01, 30, 20, dtype=np.float32)[:, None]
    values, scale = shorten(vectors, "int8")
    assert (values.dtype, scale.dtype, scale.shape) == (np.int8, np.float32, (20,))
    assert (np.abs(values.astype(int)).max(axis=1) == 127).all()
    assert np.abs(values * scale[:, None] - vectors).max(axis=1) == pytest.approx(scale / 2, rel=0.2)


@pytest.mark.parametrize("short", PRECISIONS)
def test_what_is_read_is_float32_however_it_is_asked_for(short):
    vectors = unit(np.random.default_rng(3), 40, 64)
    stored = Stored(*shorten(vectors, short))
    assert (len(stored), stored.shape) == (40, (40, 64))
    for rows in (slice(3, 9), np.array([9, 3, 3]), slice(0, 0)):
        assert stored[rows].dtype == np.float32
        np.testing.assert_allclose(stored[rows], vectors[rows], atol=close(short))


def test_a_mapped_file_is_let_go_of_and_read_again(tmp_path, monkeypatch):
    monkeypatch.setattr(quantized, "RELEASED_ABOVE", 0)
    vectors = unit(np.random.default_rng(4), 4000)
    index_files.write_array(tmp_path, "0123456789abcdef.vectors", vectors)
    stored = Stored(index_files.map_array(tmp_path, "0123456789abcdef.vectors"))
    before = resident()
    for start in range(0, 4000, 100):
        np.testing.assert_array_equal(stored[start : start + 100], vectors[start : start + 100])
    assert resident() - before < vectors.nbytes / 2
    np.testing.assert_array_equal(stored.values, vectors)


def resident():
    """Bytes of mapped files in memory."""
    try:
        lines = Path("/proc/self/status").read_text().splitlines()
    except OSError:
        pytest.skip("no /proc here")
    return next(1024 * int(line.split()[1]) for line in lines if line.startswith("RssFile"))


@pytest.mark.parametrize("exact", [True, False])
@pytest.mark.parametrize("short", SHORT)
def test_both_searches_rank_by_the_vectors_as_they_are_kept(short, exact):
    rng = np.random.default_rng(5)
    vectors = unit(rng, 3000, 64)
    queries = vectors[rng.integers(0, 3000, 20)] + 0.1 * unit(rng, 20, 64)
    directions = rotation(64)
    blocks = [
        Block(Stored(*shorten(part, short)), encode(part, directions), np.zeros((len(part), 1, 1, 3), np.uint8), gone)
        for part, gone in ((vectors[:1100], np.arange(1100) == 7), (vectors[1100:], np.zeros(1900, bool)))
    ]
    scores = queries @ np.concatenate([block.vectors[:] for block in blocks]).T
    scores[:, 7] = -9
    found = VectorBlocks(blocks, directions).nearest(queries, 5, exact=exact)
    order = np.argsort(-scores, axis=1, kind="stable")[:, :5]
    np.testing.assert_array_equal(found.index[:, 0], order[:, 0])
    np.testing.assert_allclose(found.score, np.take_along_axis(scores, order, axis=1), atol=1e-5)
    np.testing.assert_allclose(
        VectorBlocks(blocks, directions).similarities(queries, found.index),
        found.score,
        atol=1e-5,
        err_msg="one score a row",
    )


# The index


def test_a_precision_that_is_not_there_is_said(world, tmp_path):
    with pytest.raises(InputError, match=r"There is no precision 'int16'\.\nDid you mean int8"):
        Index.build(first(world, 2), tmp_path / "index", FAST, precision="int16")
    with pytest.raises(InputError, match="Give one of: float32, float16, int8"):
        checked("")
    assert not (tmp_path / "index").exists()


def test_halves_and_bytes_are_a_half_and_a_quarter(built):
    folders = {each: index.folder for each, index in built.items()}
    found = {each: sizes(folder) for each, folder in folders.items()}
    for kind in ("vectors", "coarse.vectors"):
        whole = found["float32"][kind]
        assert found["float16"][kind] == whole / 2
        assert found["int8"][kind] == whole / 4
    assert found["int8"]["scales"] == found["int8"]["coarse.scales"] == 4 * 40
    assert {each: index.summary()["precision"] for each, index in built.items()} == {each: each for each in PRECISIONS}
    for index in built.values():
        index.check()


def sizes(folder):
    """Bytes of the values of each kind of array."""
    return {path.name.partition(".")[2].removesuffix(".npy"): np.load(path).nbytes for path in folder.glob("*.npy")}


@pytest.mark.parametrize("short", SHORT)
def test_answers_are_those_of_float32_but_for_the_error(built, world, short):
    asked = Corpus.open(world.generated).take(range(12))
    for mine, theirs in zip(built[short].match(asked, 1), built["float32"].match(asked, 1), strict=True):
        assert mine[0].id == theirs[0].id
        assert mine[0].score == pytest.approx(theirs[0].score, abs=close(short))
        assert mine[0].score != theirs[0].score
        # The square root of the combined score makes much of a small error near a perfect match, and no more.
        assert mine[0].combined == pytest.approx(theirs[0].combined, abs=0.05)
        assert mine[0].p_value == pytest.approx(theirs[0].p_value, abs=2 / 26)


@pytest.mark.parametrize("short", SHORT)
def test_calibration_scores_are_of_the_vectors_as_they_are_kept(built, world, short):
    """What held-out images score when they are looked up is, to the last digit, what p-values rest on."""
    held = Corpus.open(world.held_out).take(range(25))
    index = built[short]
    kept = index._state.calibration
    for local, scores in ((False, kept.whole), (True, kept.local)):
        again = np.sort([hits[0].combined for hits in index.match(held, 1, local=local, exact=True)])
        assert len(scores) == 25
        np.testing.assert_allclose(again, np.sort(scores), atol=1e-6)
    other = built["float32"]._state.calibration
    assert not np.array_equal(kept.whole, other.whole)


@pytest.mark.parametrize("short", SHORT)
def test_p_values_of_real_images_are_never_smaller_than_promised(built, world, short):
    unseen = Corpus.open(world.held_out).take(range(25, 85))
    p_values = np.array([hits[0].p_value for hits in built[short].match(unseen, 1)])
    # 60 pictures, each at or below 0.2 with that probability: more than 23 would be one case in a thousand.
    assert (p_values <= 0.2).sum() <= 23
    assert p_values.min() >= 1 / 26


@pytest.mark.parametrize("short", SHORT)
def test_adding_removing_and_merging_keep_the_precision(built, world, tmp_path, short):
    index = copied(built[short], tmp_path)
    assert index.add(first(world, 46, 40)) == 6
    index.remove([index.ids[0], index.ids[41]])
    whole = index._state.whole
    before = np.concatenate([block.vectors[:][~block.gone] for block in whole.blocks])
    index.compact()
    (block,) = index._state.whole.blocks
    np.testing.assert_array_equal(block.vectors[:], before)
    assert block.vectors.values.dtype == np.dtype(short)
    assert (index.summary()["precision"], index.summary()["n_segments"], len(index)) == (short, 1, 44)
    asked = first(world, 43, 42)
    assert index.match(asked, 1)[0][0].id == asked.ids[0]
    index.check()
    names = {name.partition(".")[2] for name in index_files.read_manifest(index.folder)["files"]}
    assert {f"{kind}.npy" for kind in kinds(short)} <= names


def test_crops_are_kept_short_too(world, tmp_path):
    held = Corpus.open(world.held_out).take(range(4))
    told = []
    options = {"held_out": held, "crops": True, "precision": "int8", "progress": lambda *each: told.append(each)}
    index = Index.build(first(world, 14, 10), tmp_path / "index", FAST, **options)
    assert {("index", 4, 4), ("index", 36, 36)} <= set(told)
    assert sizes(index.folder)["crops.vectors"] == 4 * 9 * 512
    index.remove(index.ids[:1])
    index.compact()
    (block,) = index._state.crops.blocks
    assert (block.vectors.values.dtype, len(block.vectors), len(block.vectors.scale)) == (np.int8, 27, 27)
    assert index.match(first(world, 12, 11), 1)[0][0].id == first(world, 12).ids[11]


# What other versions read and wrote


def rewritten(index, change):
    """The manifest of an index, changed, with its digest right."""
    manifest = index_files.read_manifest(index.folder)
    change(manifest)
    text = json.dumps(manifest | {"digest": index_files.digest_of(manifest)})
    (index.folder / "index.json").write_text(text)


def test_an_index_of_before_there_was_a_choice_is_float32(built, world, tmp_path):
    index = copied(built["float32"], tmp_path)
    rewritten(index, lambda manifest: manifest.pop("precision"))
    old = Index.open(index.folder)
    assert old.summary()["precision"] == "float32"
    asked = first(world, 42, 41)
    assert old.add(asked) == 1
    old.compact()
    assert old.match(asked, 1)[0][0].id == asked.ids[0]


def test_whoever_does_not_know_of_short_vectors_is_kept_from_reading_them(built, tmp_path):
    schemas = {each: index.summary()["schema"] for each, index in built.items()}
    assert schemas == {"float32": "copyscope.index/2", "float16": "copyscope.index/3", "int8": "copyscope.index/3"}
    index = copied(built["int8"], tmp_path)
    rewritten(index, lambda manifest: manifest.update(precision="int4"))
    with pytest.raises(InputError, match="keeps its vectors in 'int4', which this Copyscope does not know"):
        Index.open(index.folder)


def test_a_scale_that_is_damaged_is_said(built, tmp_path):
    index = copied(built["int8"], tmp_path)
    (path,) = (each for each in index.folder.glob("*.scales.npy") if "coarse" not in each.name)
    whole = path.read_bytes()
    path.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    with pytest.raises(InputError, match=f"damaged: {path.name} is not what its checksum says"):
        index.check()
    path.unlink()
    with pytest.raises(InputError, match=f"damaged: {path.name} is missing"):
        Index.open(index.folder)


# Killed while it is made


@pytest.mark.parametrize("moment", [1, 4, 7, 9, 14])
def test_a_build_that_is_killed_and_started_again_is_the_same_index(built, world, tmp_path, moment):
    """Killed in the middle of its n-th file: what lies there is taken for nothing, and goes when it is built again."""
    code = (
        "import os, sys, copyscope\nfrom copyscope.detection.index import manifest\n"
        "real, left = manifest.sync, [int(sys.argv[4])]\n"
        "def sync(file):\n"
        "    left[0] -= 1\n"
        "    left[0] or os.kill(os.getpid(), 9)\n"
        "    real(file)\n"
        "manifest.sync = sync\n"
        "train, held = (copyscope.Corpus.open(each) for each in sys.argv[2:4])\n"
        "copyscope.Index.build(train.take(range(40)), sys.argv[1], 'sscd-distilled', held_out=held.take(range(25)),\n"
        "    precision='int8')\n"
    )
    folder = tmp_path / "index"
    paths = [str(each) for each in (folder, world.train, world.held_out, moment)]
    killed = subprocess.run([sys.executable, "-c", code, *paths], check=False)
    assert killed.returncode == -signal.SIGKILL
    assert any(name.endswith(".tmp") for name in os.listdir(folder))
    with pytest.raises(InputError, match="No index in"):
        Index.open(folder)
    held = Corpus.open(world.held_out).take(range(25))
    again = Index.build(first(world, 40), folder, FAST, held_out=held, precision="int8")
    again.check()
    assert set(os.listdir(folder)) == {"index.json", ".lock", *index_files.read_manifest(folder)["files"]}
    assert contents(folder) == contents(built["int8"].folder)


def contents(folder):
    """The sha256 of every file, by what it is and not by its name."""
    files = index_files.read_manifest(folder)["files"]
    return sorted((name.partition(".")[2], entry["sha256"]) for name, entry in files.items())


def test_what_a_killed_build_left_is_gone_before_the_next_one_writes(world, tmp_path, monkeypatch):
    folder = tmp_path / "index"
    folder.mkdir()
    (folder / "0123456789abcdef.vectors.npy").write_bytes(b"half")
    seen = []
    monkeypatch.setattr(
        "copyscope.detection.index.index.write_segment", lambda *_: seen.extend(os.listdir(folder)) or 1 / 0
    )
    with pytest.raises(ZeroDivisionError):
        Index.build(first(world, 2), folder, FAST)
    assert "0123456789abcdef.vectors.npy" not in seen


# Rows in words


def table_of(folder, sizes, group, monkeypatch):
    """A table in segments of these sizes, and its rows as plain values."""
    monkeypatch.setattr(row_table, "GROUP_ROWS", group)
    monkeypatch.setattr(row_table, "PIECE_ROWS", 2 * group)
    rows = [
        {"id": f"{row}.png", "caption": None if row % 3 else f"c{row}", "sha256": f"{row:064x}", "weight": 1.0}
        | {"width": row, "height": 2}
        for row in range(sum(sizes))
    ]
    names, start = [], 0
    for number, size in enumerate(sizes):
        name = f"{number:016x}"
        pieces = [pa.Table.from_pylist(rows[at : at + 5], row_table.SCHEMA) for at in range(start, start + size, 5)]
        pieces = [
            piece.slice(0, start + size - at) for piece, at in zip(pieces, range(start, start + size, 5), strict=True)
        ]
        row_table.write(folder, name, pieces)
        names.append(name)
        start += size
    return row_table.RowTable(folder, names), rows


def test_rows_are_read_a_group_at_a_time_in_any_number_of_segments(tmp_path, monkeypatch):
    table, rows = table_of(tmp_path, [23, 1, 8, 40], 4, monkeypatch)
    monkeypatch.setattr(row_table, "HELD", 3)
    for some in ([], [0], [22, 23, 24, 31, 32, 71], list(range(72))):
        for _ in range(2):
            assert table.take(np.array(some, np.int64), ["id", "caption"]) == [
                {name: rows[row][name] for name in ("id", "caption")} for row in some
            ]
    assert len(table._groups) <= 3
    pieces = list(table.pieces())
    assert [start for start, _ in pieces] == [0, *np.cumsum([len(piece) for _, piece in pieces])[:-1]]
    assert max(len(piece) for _, piece in pieces) <= 8
    assert [row for _, piece in pieces for row in piece.to_pylist()] == rows
    assert table.column("caption").to_pylist() == [row["caption"] for row in rows]


def test_rows_are_found_by_their_ids_and_those_that_are_gone_are_not(tmp_path, monkeypatch):
    table, _ = table_of(tmp_path, [9, 9], 4, monkeypatch)
    gone = np.arange(18) == 12
    assert table.find(pa.array(["17.png", "nowhere", "3.png", "12.png"]), gone).tolist() == [3, 17]
    assert table.find(pa.array([], pa.string()), gone).tolist() == []
    assert row_table.RowTable(tmp_path, []).find(pa.array(["3.png"]), gone[:0]).tolist() == []


def test_the_first_caption_of_each_row_and_none_where_there_is_none():
    lists = pa.array([["a", "b"], [], None, ["c"], [None, "d"]], pa.list_(pa.string()))
    assert row_table.first_of(lists).to_pylist() == ["a", None, None, "c", None]
    assert row_table.first_of(lists[3:]).to_pylist() == ["c", None]


def test_the_rows_of_a_corpus_are_those_that_could_be_read(tmp_path, monkeypatch):
    monkeypatch.setattr(row_table, "PIECE_ROWS", 16)
    n = 9
    table = pa.table(
        {
            "id": [f"{row}.png" for row in range(n)],
            "image": ["x"] * n,
            "captions": [[f"c{row}"] if row % 2 else [] for row in range(n)],
            "sha256": [f"{row:064x}" for row in range(n)],
            "weight": [float(row) for row in range(n)],
            "width": pa.array(range(n), pa.int64()),
            "height": pa.array(range(n), pa.int64()),
        }
    )
    rows = np.array([0, 1, 3, 5, 8])
    found = pa.concat_tables(row_table.described(table, rows))
    assert found.schema == row_table.SCHEMA
    assert found["id"].to_pylist() == [f"{row}.png" for row in rows]
    assert found["caption"].to_pylist() == [None, "c1", "c3", "c5", None]
    assert found["weight"].to_pylist() == rows.tolist()


def test_changing_a_large_index_lists_no_ids(built, world, tmp_path, monkeypatch):
    index = copied(built["float16"], tmp_path)
    ids = index.ids
    monkeypatch.setattr(Index, "ids", property(lambda self: pytest.fail("all ids are listed")))
    monkeypatch.setattr(row_table.RowTable, "column", lambda *_: pytest.fail("all ids are listed"))
    assert index.add(first(world, 42, 40)) == 2
    assert index.remove([ids[3], ids[3], first(world, 41, 40).ids[0]]) == 2
    with pytest.raises(InputError, match="1 of the images are in the index already, the first is '0041"):
        index.add(first(world, 42, 40))
    with pytest.raises(InputError, match=r"2 of the images are not in the index, the first is 'b\.png'"):
        index.remove(["b.png", ids[3], ids[4]])
    assert index.add(first(world, 41, 40)) == 1
    assert set(index.thumbnails([ids[4], ids[3], "b.png"])) == {ids[4]}


def test_the_command_takes_a_precision(world, tmp_path):
    some = tmp_path / "some"
    some.mkdir()
    for path in sorted(world.train.glob("*.png"))[:4]:
        shutil.copy(path, some)
    arguments = ["index", "build", some, "-o", tmp_path / "index", "-p", FAST, "--precision", "int8", "--json"]
    found = CliRunner().invoke(main.app, [str(each) for each in arguments])
    assert json.loads(found.stdout)["precision"] == "int8"
    assert "(int8)" in CliRunner().invoke(main.app, ["index", "show", str(tmp_path / "index")]).stdout
    found = CliRunner().invoke(main.app, [*map(str, arguments[:7]), "--precision", "int4"])
    assert "no precision 'int4'" in str(found.exception)
