"""Search by cells: exact where all cells are searched, what it misses is measured, no pair that is not one."""

from __future__ import annotations

import contextlib
import dataclasses
import gc
import signal
import subprocess
import sys
import time
import types

import numpy as np
import pyarrow as pa
import pytest
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from copyscope.data.corpus import Corpus
from copyscope.detection.dedup import groups as duplicates_module
from copyscope.detection.dedup import ivf_components as components_module
from copyscope.detection.dedup import near_pairs
from copyscope.detection.dedup.ivf_components import ivf_components
from copyscope.detection.dedup.near_pairs import Closest
from copyscope.detection.embedding.embeddings import Embeddings
from copyscope.detection.search import ivf as cells_module
from copyscope.detection.search import ivf_files
from copyscope.detection.search.exact import search
from copyscope.detection.search.ivf import IVF, nearest, with_ivf
from copyscope.engine import Processes
from copyscope.errors import InputError


def clustered(rng, n, d=32, groups=60, spread=0.6):
    centres = rng.standard_normal((groups, d))
    vectors = centres[rng.integers(0, groups, n)] + spread * rng.standard_normal((n, d))
    return (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)


def embedded(vectors):
    table = pa.table({"sha256": [f"{row:064x}" for row in range(len(vectors))]})
    return Embeddings(Corpus(table, "here", "imagefolder"), np.arange(len(vectors)), vectors, "pdq", "1")


@pytest.fixture(scope="module")
def vectors():
    return clustered(np.random.default_rng(0), 6000)


@pytest.fixture(scope="module")
def cells(vectors):
    return IVF.build(vectors, 64)


def copies(rng, vectors, n, noise=0.06):
    source = rng.integers(0, len(vectors), n)
    queries = vectors[source] + noise * rng.standard_normal((n, vectors.shape[1]), dtype=np.float32)
    return source, (queries / np.linalg.norm(queries, axis=1, keepdims=True)).astype(np.float32)


def test_every_row_is_in_the_cell_of_its_nearest_centre_once(vectors, cells):
    assert sorted(cells.rows.tolist()) == list(range(len(vectors)))
    np.testing.assert_allclose(cells.halves, vectors[cells.rows], atol=1e-3)
    own = np.repeat(np.arange(64), np.diff(cells.starts))
    np.testing.assert_array_equal(own, (vectors @ cells.centres.T).argmax(axis=1)[cells.rows])
    assert np.linalg.norm(cells.centres, axis=1) == pytest.approx(np.ones(64), abs=1e-3)


def test_all_cells_give_what_exact_search_gives_with_labels_too(vectors, cells):
    rng = np.random.default_rng(1)
    _, queries = copies(rng, vectors, 300, 0.2)
    labels, own = rng.integers(0, 400, len(vectors)), rng.integers(0, 400, 300)
    for options in ({}, {"query_labels": own, "reference_labels": labels}):
        exact = search(queries, vectors, 7, **options)
        found = cells.nearest(queries, 7, probes=64, **options)
        np.testing.assert_array_equal(found.index, exact.index)
        np.testing.assert_allclose(found.score, exact.score, atol=1e-5)


def test_few_cells_miss_some_and_none_is_wrong(vectors, cells):
    rng = np.random.default_rng(2)
    source, queries = copies(rng, vectors, 400)
    found = cells.nearest(queries, 3, probes=2)
    assert (found.index[:, 0] == source).mean() > 0.9
    there = found.index >= 0
    scores = np.einsum("qkd,qd->qk", vectors[found.index], queries)
    np.testing.assert_allclose(found.score[there], scores[there], atol=1e-5)
    assert (np.diff(found.score, axis=1) <= 1e-6).all()
    assert (cells.nearest(queries, 200, probes=1).index == -1).any(), "a cell may hold fewer than asked for"


def test_recall_is_the_share_of_nearest_rows_found(vectors, cells, monkeypatch):
    rng = np.random.default_rng(3)
    _, queries = copies(rng, vectors, 150, 0.12)
    monkeypatch.setattr(cells_module, "PROBE_FRACTION", 64)
    told = cells.recall(queries)
    exact, found = search(queries, vectors, 1), cells.nearest(queries, 1, probes=1)
    assert told.n == 150
    assert told.value == pytest.approx((exact.index == found.index).mean(), abs=1e-9)
    assert 0.3 < told.value < 1
    monkeypatch.setattr(cells_module, "PROBE_FRACTION", 1)
    assert cells.recall(queries).value == 1
    # Queries that are like nothing count only where there is nothing else.
    away = queries.copy()
    away[:100] = -vectors.mean(axis=0) / np.linalg.norm(vectors.mean(axis=0))
    assert cells.recall(away).n == 50
    assert cells.recall(away[:100]).n == 100


def test_recall_is_of_more_queries_where_few_are_like_a_row(vectors, cells, monkeypatch):
    away = -vectors.mean(axis=0) / np.linalg.norm(vectors.mean(axis=0))
    queries = np.repeat(away[None], 2500, axis=0)
    queries[::25] = vectors[:100]
    assert 70 <= cells.recall(queries).n <= 90, "one in 25 of MOST"
    monkeypatch.setattr(cells_module, "COPIES", 16)
    assert 12 <= cells.recall(queries).n <= 20, "twice the first lot, which has half of what is aimed at"
    monkeypatch.setattr(cells_module, "COPIES", 1)
    assert 4 <= cells.recall(queries).n <= 12, "the first lot has enough"


def test_recall_among_the_rows_is_of_their_nearest_other_row(vectors, cells, monkeypatch):
    monkeypatch.setattr(cells_module, "MEASURED", 6000)
    monkeypatch.setattr(cells_module, "MOST", 6000)
    monkeypatch.setattr(cells_module, "NEAR", 1)
    similar = vectors @ vectors.T
    np.fill_diagonal(similar, -2)
    own = (vectors @ cells.centres.T).argmax(axis=1)
    alike = similar.max(axis=1) >= 0.5
    kept = own[similar.argmax(axis=1)] == own
    told = cells.recall()
    assert told.n == alike.sum()
    assert told.value == pytest.approx(kept[alike].mean(), abs=0.002)
    assert 0.2 < told.value < 0.98


def every_pair(vectors, threshold):
    pairs = np.nonzero(vectors @ vectors.T >= threshold)
    return pairs, connected_components(coo_array((np.ones(len(pairs[0])), pairs)), directed=False)[1]


def same(one, other):
    """Two labellings of one partition."""
    return (
        len(set(zip(one.tolist(), other.tolist(), strict=True))) == len(set(one.tolist())) == len(set(other.tolist()))
    )


@pytest.mark.parametrize("crowd", [1, 64, 10**9])
def test_with_all_cells_near_components_are_those_of_all_pairs_whatever_the_pieces(vectors, monkeypatch, crowd):
    monkeypatch.setattr(cells_module, "NEAR", 64)
    for name, value in (("LOT", 50), ("PIECE", 16), ("MANY", 20), ("CROWD", crowd)):
        monkeypatch.setattr(near_pairs, name, value)
    monkeypatch.setattr(components_module, "_stretch", lambda *_: 800)  # cells lie in two
    some = np.concatenate([vectors[:900], np.repeat(vectors[:1], 40, axis=0), vectors[500:600]])
    for threshold in (0.7, 0.8, 0.85):
        _, wanted = every_pair(some, threshold)
        assert 1 < len(set(wanted.tolist())) < 900
        assert same(ivf_components(IVF.build(some, 8), threshold)[0], wanted)


def test_the_closest_rows_are_those_of_a_search_in_the_near_cells(vectors, monkeypatch):
    monkeypatch.setattr(near_pairs, "LOT", 500)
    monkeypatch.setattr(components_module, "_stretch", lambda *_: 2000)
    made = IVF.build(vectors, 64)
    for threshold in (0.8, 0.99):
        _, found = ivf_components(made, threshold, k=2, floor=0.6)
        own = np.arange(len(vectors))
        wanted = made.nearest(vectors, 2, probes=cells_module.NEAR, query_labels=own, reference_labels=own)
        there = wanted.score >= 0.6 + 1e-3
        assert 0.2 < there.mean() < 1
        # Half precision may tell two apart that are as near as that.
        assert (found.index == wanted.index)[there].mean() > 0.99
        np.testing.assert_allclose(found.score[there], wanted.score[there], atol=1e-3)
        assert (found.index[wanted.score < 0.6 - 1e-3] == -1).all()


def test_of_equal_rows_the_first_alone_is_close_to_anything(vectors):
    some = np.concatenate([vectors[:300], vectors[:50]])
    _, found = ivf_components(IVF.build(some, 4), 0.9, k=2, floor=0.6)
    assert (found.index[300:] == -1).all()
    assert (found.index < 300).all()
    assert (found.index[:300, 0] >= 0).mean() > 0.5


def test_closest_keeps_the_best_of_what_it_is_offered_once_each():
    rng = np.random.default_rng(0)
    closest = Closest.none(30, 3, 0.2)
    scores = rng.random((30, 40)).astype(np.float32)
    places, others = rng.integers(0, 30, 4000), rng.integers(0, 40, 4000)
    for piece in np.array_split(np.arange(4000), 50):
        closest.offer(places[piece], others[piece], scores[places[piece], others[piece]])
    for place in range(30):
        offered = np.unique(others[places == place])
        best = offered[np.argsort(-scores[place, offered])][:3]
        np.testing.assert_array_equal(closest.place[place], best)
        np.testing.assert_array_equal(closest.score[place], scores[place, best])
    assert closest.bar(np.arange(30)).min() >= 0.2
    assert Closest.none(3, 2, 0.4).bar(np.arange(3)).tolist() == pytest.approx([0.4] * 3)


def test_components_by_cells_are_those_of_all_pairs_but_for_few(vectors, cells):
    rng = np.random.default_rng(4)
    _, twins = copies(rng, vectors, 500, 0.04)
    hub = np.repeat(vectors[:1], 300, axis=0)
    every = np.concatenate([vectors, twins, hub]).astype(np.float32)
    label = ivf_components(IVF.build(every, 64), 0.95)[0]
    pairs, wanted = every_pair(every, 0.95)
    both = {(a, b) for a, b in zip(*pairs, strict=True) if a < b}
    together = np.mean([label[a] == label[b] for a, b in both])
    assert together > 0.99
    # No group is larger than it should be: each lies in one of the true ones.
    assert len({(a, b) for a, b in zip(label.tolist(), wanted.tolist(), strict=True)}) == len(set(label.tolist()))


@pytest.mark.parametrize("stars", [2, 64])
def test_a_chain_in_cells_is_split_into_stars_and_what_is_left_cell_by_cell(monkeypatch, stars):
    angles = np.deg2rad(np.random.default_rng(0).permutation(np.arange(0, 720)) / 2)
    ring = np.stack([np.cos(angles), np.sin(angles)], axis=1).astype(np.float32)
    star = np.tile(np.array([[0.0, 0.0, 1.0]], np.float32), (40, 1))
    vectors = np.concatenate([np.pad(ring, ((0, 0), (0, 1))), star])
    threshold = float(np.cos(np.deg2rad(4.25)))
    every = dataclasses.replace(embedded(vectors), cells=IVF.build(vectors, 8))
    joined = ivf_components(every.cells, threshold)[0]
    assert len(set(joined.tolist())) == 2
    for name, value in (("STARS", stars), ("PIECE", 50)):
        monkeypatch.setattr(duplicates_module, name, value)
    taken = []
    rows = duplicates_module._Rows
    one = rows.star
    monkeypatch.setattr(rows, "star", lambda *given: taken.append(len(given[1])) or one(*given))
    label, n_chained = duplicates_module._stars(every, joined, threshold)
    assert n_chained == 1
    assert len(set(label[720:].tolist())) == 1
    for group in set(label.tolist()):
        mine = vectors[label == group]
        assert (mine @ mine.T >= threshold - 1e-6).all(axis=1).any(), "no member reaches all others"
    # What is left after so many stars is gone through a cell at a time.
    assert sorted(taken)[-stars - 2] <= 200 if stars == 2 else sum(taken) > 5000


def test_a_star_is_told_by_the_vectors_where_halves_are_not_sure():
    rng = np.random.default_rng(0)
    centre = np.eye(1, 64, dtype=np.float32)
    threshold = 0.8
    away = rng.standard_normal((400, 64)).astype(np.float32) * (np.arange(64) > 0)
    away /= np.linalg.norm(away, axis=1, keepdims=True)
    at = threshold + rng.uniform(-5e-5, 5e-5, 400).astype(np.float32)[:, None]
    vectors = np.concatenate([np.repeat(centre, 3000, axis=0), at * centre + np.sqrt(1 - at**2) * away])
    wanted = vectors @ centre[0] >= threshold
    rows = np.arange(len(vectors))

    cells = types.SimpleNamespace(vectors=vectors, rows=rows)
    found = duplicates_module._Rows(vectors.astype(np.float16), cells).star(rows, threshold)
    np.testing.assert_array_equal(found, wanted)
    assert (duplicates_module._Rows(vectors.astype(np.float16)).star(rows, threshold) != wanted).any()


@pytest.mark.parametrize("n", [1, 2, 3, 5])
def test_few_rows_have_no_more_cells_than_rows(vectors, n):
    made = IVF.build(vectors[:n])
    assert len(made.centres) <= n
    assert made.nearest(vectors[:n], 1).index[:, 0].tolist() == list(range(n))


def test_the_first_of_equal_vectors_is_known_and_a_shared_key_alone_makes_none_equal(vectors, monkeypatch):
    some = np.concatenate([vectors[:300], vectors[100:200], vectors[100:110]])
    made = IVF.build(some, 8)
    first = made.rows[made.first][np.argsort(made.rows)]
    np.testing.assert_array_equal(first, [*range(300), *range(100, 200), *range(100, 110)])
    keys = np.zeros(len(some), np.uint64)  # as if all had one
    found = ivf_files._first(keys, made.halves)
    equal = (made.halves[:, None] == made.halves[found][:, None]).all(axis=(1, 2))
    assert equal.all()


def killed_after(monkeypatch, module, name, n):
    """The n-th call of a function, and all later ones, raise as a killed process would end."""
    real, calls = getattr(module, name), []

    def call(*arguments, **options):
        calls.append(1)
        if len(calls) > n:
            raise KeyboardInterrupt
        return real(*arguments, **options)

    monkeypatch.setattr(module, name, call)
    return calls


def test_cells_are_the_same_whatever_the_pieces_they_are_written_in(vectors, monkeypatch):
    whole = IVF.build(vectors, 64)
    monkeypatch.setattr(ivf_files, "BLOCK", 256)
    monkeypatch.setattr(ivf_files, "memory_budget", lambda: 200_000)
    made = IVF.build(vectors, 64)
    for name in ("centres", "starts", "rows", "near", "halves", "first"):
        np.testing.assert_array_equal(getattr(made, name), getattr(whole, name))


@pytest.mark.parametrize("n", [0, 1, 5, 24])
def test_cells_that_were_killed_in_the_making_are_gone_on_with(vectors, tmp_path, monkeypatch, n):
    monkeypatch.setattr(ivf_files, "BLOCK", 256)
    whole = IVF.build(vectors, 64)
    with monkeypatch.context() as patch:
        calls = killed_after(patch, ivf_files, "search", n)
        if n < 24:
            with pytest.raises(KeyboardInterrupt):
                IVF.build(vectors, 64, folder=tmp_path)
        else:
            IVF.build(vectors, 64, folder=tmp_path)
            assert len(calls) == 24
    if n == 5:  # killed between the two files
        with (tmp_path / "near.part").open("ab") as file:
            file.write(b"x" * 1000)
    with monkeypatch.context() as patch:
        calls = killed_after(patch, ivf_files, "search", 24 - n)
        made = IVF.build(vectors, 64, folder=tmp_path)
        assert len(calls) == 24 - n, "what was done is not done again"
    for name in ("centres", "starts", "rows", "near", "halves", "first"):
        np.testing.assert_array_equal(getattr(made, name), getattr(whole, name))
    assert not list(tmp_path.glob("*.part"))


def test_components_that_were_killed_go_on_and_are_kept(vectors, tmp_path, monkeypatch):
    monkeypatch.setattr(near_pairs, "LOT", 500)
    monkeypatch.setattr(components_module, "_stretch", lambda *_: 500)  # twelve of them
    made = IVF.build(vectors, 64, folder=tmp_path)
    wanted, closest = ivf_components(IVF.build(vectors, 64), 0.9, k=2, floor=0.7)
    with monkeypatch.context() as patch:
        killed_after(patch, components_module, "find_pairs", 7)
        with pytest.raises(KeyboardInterrupt):
            ivf_components(made, 0.9, k=2, floor=0.7)
    monkeypatch.setattr(components_module, "_stretch", lambda *_: 1000)
    with monkeypatch.context() as patch:
        calls = killed_after(patch, components_module, "find_pairs", 99)
        label, found = ivf_components(made, 0.9, k=2, floor=0.7)
        assert len(calls) == 3
        assert same(label, wanted)
        np.testing.assert_array_equal(found.index, closest.index)
        ivf_components(made, 0.9, k=2, floor=0.7)
        assert len(calls) == 3, "asked again, nothing is computed"
        ivf_components(made, 0.8, k=2, floor=0.7)
        assert len(calls) > 3, "another threshold is another graph"


def test_a_stretch_is_what_memory_leaves(monkeypatch):
    monkeypatch.setattr(components_module, "memory_budget", lambda besides: 10**9 - besides)
    alone = components_module._stretch(10**6, 512, None, 1)
    assert 200_000 < alone < 10**9 // 2048, "what merging takes is left out"
    assert components_module._stretch(4 * 10**6, 512, None, 1) < alone - 30_000
    monkeypatch.setattr(components_module, "cores", lambda: 4)
    monkeypatch.setattr(components_module, "memory_budget", lambda besides: 4 * 10**9 - besides)
    four = components_module._stretch(10**6, 512, Processes(), 1)
    assert four == pytest.approx(alone - 41 * 10**6 // 2048, rel=0.01), "as four side by side have room for"


SLOW = """
import sys, time
import numpy as np
from pathlib import Path
from copyscope.detection.dedup import ivf_components, near_pairs
from copyscope.detection.search import ivf, ivf_files
folder = Path(sys.argv[1])
ivf_files.BLOCK, ivf_files.memory_budget = 256, lambda: 200_000
near_pairs.LOT, ivf_components._stretch = 500, lambda *_: 500
for module, name in ((ivf_files, "search"), (ivf_files, "_scatter"), (ivf_components, "find_pairs")):
    def slowly(*arguments, real=getattr(module, name), **options):
        time.sleep(0.03)
        return real(*arguments, **options)
    setattr(module, name, slowly)
made = ivf.IVF.build(np.load(folder / "vectors.npy"), 64, folder=folder / "cells")
label, closest = ivf_components.ivf_components(made, 0.9, k=2, floor=0.7)
np.save(folder / "label.npy", label)
np.save(folder / "closest.npy", closest.index)
"""


def sizes(folder):
    """Bytes of each file, but for those that go while they are listed."""
    found = {}
    for path in folder.glob("*"):
        with contextlib.suppress(FileNotFoundError):
            found[path.name] = path.stat().st_size
    return found


@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="no SIGKILL here")
def test_killed_again_and_again_it_ends_with_the_same(vectors, tmp_path, monkeypatch):
    np.save(tmp_path / "vectors.npy", vectors)
    rng, kills = np.random.default_rng(0), 0
    deadline = time.monotonic() + 120
    while not (tmp_path / "closest.npy").exists():
        assert time.monotonic() < deadline
        left = sizes(tmp_path / "cells")
        victim = subprocess.Popen([sys.executable, "-c", SLOW, str(tmp_path)])
        while victim.poll() is None and left == sizes(tmp_path / "cells"):
            time.sleep(0.002)
        with contextlib.suppress(subprocess.TimeoutExpired):
            victim.wait(rng.uniform(0.1, 0.4))
        kills += victim.poll() is None
        victim.kill()
        assert victim.wait() in (0, -signal.SIGKILL)
    assert kills > 2
    assert not list((tmp_path / "cells").glob(".*.tmp"))
    monkeypatch.setattr(ivf_files, "BLOCK", 256)
    label, closest = ivf_components(IVF.build(vectors, 64), 0.9, k=2, floor=0.7)
    assert same(np.load(tmp_path / "label.npy"), label)
    np.testing.assert_array_equal(np.load(tmp_path / "closest.npy"), closest.index)


def test_temporary_cells_are_gone_when_nobody_has_them(vectors):
    made = IVF.build(vectors[:500], 4)
    folder = made.folder
    assert folder.is_dir()
    del made
    gc.collect()
    assert not folder.exists()


def test_cells_of_a_training_set_are_kept_by_what_decides_them(vectors, tmp_path, monkeypatch):
    monkeypatch.setattr(cells_module, "EXACT_ROWS", 100)
    embeddings = embedded(vectors[:300])
    first = with_ivf(embeddings, cache=tmp_path).cells
    assert first.folder.parent == tmp_path / "cells"
    with monkeypatch.context() as patch:
        patch.setattr(cells_module, "make", None)
        assert with_ivf(embeddings, cache=tmp_path).cells.folder == first.folder
    for other in ({"fingerprint": "2"}, {"descriptor": "phash"}, {"rows": np.arange(300)[::-1]}):
        folder = with_ivf(dataclasses.replace(embeddings, **other), cache=tmp_path).cells.folder
        assert folder != first.folder


def test_few_rows_are_searched_exactly_and_many_need_faiss(vectors, tmp_path, monkeypatch):
    assert with_ivf(embedded(vectors)).cells is None
    exact = search(vectors[:5], vectors, 3)
    np.testing.assert_array_equal(nearest(vectors[:5], vectors, 3, None).index, exact.index)
    monkeypatch.setattr(cells_module, "EXACT_ROWS", 100)
    made = with_ivf(embedded(vectors[:200]), cache=tmp_path).cells
    assert made is not None
    np.testing.assert_array_equal(nearest(vectors[:5], vectors[:200], 1, made).index[:, 0], range(5))
    monkeypatch.setitem(__import__("sys").modules, "faiss", None)
    with pytest.raises(InputError, match="needs faiss"):
        with_ivf(embedded(vectors[:300]), cache=tmp_path)
