"""Search by cells: exact where all cells are searched, what it misses is measured, no pair that is not one."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from copyscope.copying import cells as cells_module
from copyscope.copying import duplicates
from copyscope.copying.cells import Cells, nearest
from copyscope.copying.search import search
from copyscope.errors import InputError


def clustered(rng, n, d=32, groups=60, spread=0.6):
    centres = rng.standard_normal((groups, d))
    vectors = centres[rng.integers(0, groups, n)] + spread * rng.standard_normal((n, d))
    return (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)


@pytest.fixture(scope="module")
def vectors():
    return clustered(np.random.default_rng(0), 6000)


@pytest.fixture(scope="module")
def cells(vectors):
    return Cells.build(vectors, 64)


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
    monkeypatch.setattr(cells_module, "SHARE", 64)
    told = cells.recall(queries)
    exact, found = search(queries, vectors, 1), cells.nearest(queries, 1, probes=1)
    assert told.n == 150
    assert told.value == pytest.approx((exact.index == found.index).mean(), abs=1e-9)
    assert 0.3 < told.value < 1
    monkeypatch.setattr(cells_module, "SHARE", 1)
    assert cells.recall(queries).value == 1
    # Queries that are like nothing count only where there is nothing else.
    away = queries.copy()
    away[:100] = -vectors.mean(axis=0) / np.linalg.norm(vectors.mean(axis=0))
    assert cells.recall(away).n == 50
    assert cells.recall(away[:100]).n == 100


def test_recall_among_the_rows_is_of_their_nearest_other_row(vectors, cells, monkeypatch):
    monkeypatch.setattr(cells_module, "MEASURED", 6000)
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


def test_pairs_of_all_cells_are_all_pairs(vectors, monkeypatch):
    monkeypatch.setattr(cells_module, "NEAR", 64)
    monkeypatch.setattr(cells_module, "LOT", 50)
    some = vectors[:900]
    whole = Cells.build(some, 8)
    threshold = 0.9
    found = set()
    for cell in range(8):
        for one, other in whole.pairs(cell, threshold):
            found |= set(zip(one.tolist(), other.tolist(), strict=True))
    row, column = np.nonzero(some @ some.T >= threshold)
    assert found == set(zip(row.tolist(), column.tolist(), strict=True))


def test_components_by_cells_are_those_of_all_pairs_but_for_few(vectors, cells):
    rng = np.random.default_rng(4)
    _, twins = copies(rng, vectors, 500, 0.04)
    hub = np.repeat(vectors[:1], 300, axis=0)
    every = np.concatenate([vectors, twins, hub]).astype(np.float32)
    label = duplicates.components(every, 0.95, cells=Cells.build(every, 64))
    pairs = np.nonzero(every @ every.T >= 0.95)
    _, wanted = connected_components(coo_array((np.ones(len(pairs[0])), pairs)), directed=False)
    both = {(a, b) for a, b in zip(*pairs, strict=True) if a < b}
    together = np.mean([label[a] == label[b] for a, b in both])
    assert together > 0.99
    # No group is larger than it should be: each lies in one of the true ones.
    assert len({(a, b) for a, b in zip(label.tolist(), wanted.tolist(), strict=True)}) == len(set(label.tolist()))


def test_few_rows_are_searched_exactly_and_many_need_faiss(vectors, monkeypatch):
    assert Cells.of(vectors) is None
    exact = search(vectors[:5], vectors, 3)
    np.testing.assert_array_equal(nearest(vectors[:5], vectors, 3, None).index, exact.index)
    monkeypatch.setattr(cells_module, "EXACT_ROWS", 100)
    made = Cells.of(vectors[:200])
    assert made is not None
    np.testing.assert_array_equal(nearest(vectors[:5], vectors[:200], 1, made).index[:, 0], range(5))
    monkeypatch.setitem(__import__("sys").modules, "faiss", None)
    with pytest.raises(InputError, match="needs faiss"):
        Cells.of(vectors[:200])
