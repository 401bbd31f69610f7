"""Search = brute force, whatever the blocks, ties and exclusions."""

from __future__ import annotations

import threading

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from threadpoolctl import threadpool_info, threadpool_limits

from copyscope.detection.search import exact as search_module
from copyscope.detection.search.exact import NOTHING, one_blas_thread, search
from copyscope.errors import InputError


def brute(queries, references, k, query_labels=None, reference_labels=None):
    scores = queries @ references.T
    if query_labels is not None:
        scores[query_labels[:, None] == reference_labels[None, :]] = NOTHING
    index = np.full((len(queries), k), -1)
    score = np.full((len(queries), k), NOTHING, dtype=np.float32)
    for row, values in enumerate(scores):
        order = [j for j in np.lexsort((np.arange(len(values)), -values)) if values[j] > NOTHING][:k]
        index[row, : len(order)], score[row, : len(order)] = order, values[order]
    return index, score


@settings(max_examples=60, deadline=None)
@given(
    n=st.integers(0, 12),
    m=st.integers(0, 40),
    k=st.integers(1, 12),
    labels=st.booleans(),
    blocks=st.tuples(st.integers(1, 7), st.integers(1, 13)),
    seed=st.integers(0, 2**32 - 1),
)
def test_search_is_brute_force(n, m, k, labels, blocks, seed):
    rng = np.random.default_rng(seed)
    # Whole numbers in few dimensions: sums are exact, and ties are everywhere.
    queries, references = (rng.integers(-1, 2, (size, 3)).astype(np.float32) / 2 for size in (n, m))
    own = (rng.integers(0, 4, n), rng.integers(0, 4, m)) if labels else (None, None)
    before = search_module.QUERY_BLOCK, search_module.REFERENCE_BLOCK
    search_module.QUERY_BLOCK, search_module.REFERENCE_BLOCK = blocks
    try:
        found = search(queries, references, k, query_labels=own[0], reference_labels=own[1], workers=2)
    finally:
        search_module.QUERY_BLOCK, search_module.REFERENCE_BLOCK = before
    index, score = brute(queries, references, k, *own)
    np.testing.assert_array_equal(found.index, index)
    np.testing.assert_array_equal(found.score, score)


def test_search_agrees_with_faiss_on_real_sized_vectors():
    faiss = pytest.importorskip("faiss")
    rng = np.random.default_rng(0)
    references = rng.standard_normal((9000, 64), dtype=np.float32)
    queries = rng.standard_normal((300, 64), dtype=np.float32)
    index = faiss.IndexFlatIP(64)
    index.add(references)
    scores, rows = index.search(queries, 10)
    found = search(queries, references, 10)
    assert (found.index == rows).mean() > 0.999
    np.testing.assert_allclose(found.score, scores, atol=1e-4)


def test_permuting_the_references_permutes_the_result():
    rng = np.random.default_rng(1)
    queries, references = (
        rng.standard_normal((20, 8), dtype=np.float32),
        rng.standard_normal((500, 8), dtype=np.float32),
    )
    order = rng.permutation(500)
    plain, permuted = search(queries, references, 5), search(queries, references[order], 5)
    np.testing.assert_array_equal(order[permuted.index], plain.index)
    # A matrix product may sum in another order where the rows stand elsewhere in a block.
    np.testing.assert_allclose(permuted.score, plain.score, atol=1e-5)


def test_wrong_arguments_are_told():
    with pytest.raises(InputError, match="same descriptor"):
        search(np.zeros((1, 3), np.float32), np.zeros((1, 4), np.float32))
    with pytest.raises(InputError, match="at least 1"):
        search(np.zeros((1, 3), np.float32), np.zeros((1, 3), np.float32), 0)


def test_progress_tells_references_up_to_the_last(monkeypatch):
    monkeypatch.setattr(search_module, "REFERENCE_BLOCK", 4)
    told = []
    search(np.zeros((2, 3), np.float32), np.zeros((10, 3), np.float32), 1, progress=lambda *values: told.append(values))
    assert told == [("search", 4, 10), ("search", 8, 10), ("search", 10, 10)]


def test_the_order_of_whole_numbers_is_the_opposite_of_that_of_the_scores():
    rng = np.random.default_rng(0)
    score = np.concatenate([rng.standard_normal(999), [0, -0.0, -2, 1, -1, 1e-30, -1e-30, np.inf]]).astype(np.float32)
    wanted = np.argsort(-score, kind="stable")
    np.testing.assert_array_equal(np.argsort(search_module._falling(score), kind="stable"), wanted)


def blas_threads():
    """Of the libraries that have one number of threads for the whole process; those on OpenMP have one a thread."""
    found = [each for each in threadpool_info() if each["user_api"] == "blas"]
    return {each["num_threads"] for each in found if each.get("threading_layer") != "openmp"}


@pytest.mark.skipif(not blas_threads(), reason="no BLAS whose threads can be limited")
def test_blas_threads_are_restored_after_overlapping_searches():
    """Four threads enter one after another and leave in the same order; one of them by an error."""
    entered, leave = [threading.Event() for _ in range(4)], [threading.Event() for _ in range(4)]
    failed = []

    def work(number):
        try:
            with one_blas_thread():
                entered[number].set()
                leave[number].wait(60)
                if number == 1:
                    raise RuntimeError
        except RuntimeError:
            failed.append(number)

    search_module._blas_libraries.cache_clear()  # other tests load libraries with a BLAS of their own
    with threadpool_limits(2, user_api="blas"):
        before = blas_threads()
        assert before == {2}
        threads = [threading.Thread(target=work, args=(number,), daemon=True) for number in range(4)]
        for number, thread in enumerate(threads):
            thread.start()
            assert entered[number].wait(60)
            assert blas_threads() == {1}
        for number, thread in enumerate(threads):
            leave[number].set()
            thread.join()
            assert blas_threads() == ({1} if number < 3 else before)
        assert failed == [1]
        with one_blas_thread():
            assert blas_threads() == {1}
        assert blas_threads() == before
