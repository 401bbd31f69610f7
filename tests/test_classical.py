"""The classical tests are as stated, go blind on duplicates, and see again by group."""

from __future__ import annotations

import numpy as np
import pytest

from copyscope.copying.classical import (
    ClassicalTest,
    authenticity_test,
    distance,
    neighbourhood_test,
    ratio_test,
)


def test_distance_is_euclidean_on_unit_vectors():
    rng = np.random.default_rng(0)
    a, b = rng.standard_normal((2, 5, 7))
    a, b = (x / np.linalg.norm(x, axis=1, keepdims=True) for x in (a, b))
    np.testing.assert_allclose(distance((a * b).sum(axis=1)), np.linalg.norm(a - b, axis=1))
    assert distance(np.array([1 + 1e-7])) == 0


def test_the_classical_tests_are_as_stated():
    first, second = np.array([0.99, 0.99, 0.9]), np.array([0.3, 0.99, 0.85])
    np.testing.assert_array_equal(ratio_test(first, second), distance(first) / distance(second) < 1 / 3)
    np.testing.assert_array_equal(authenticity_test(first, second), [True, False, True])
    k50 = np.tile(np.array([[0.99] + [0.3] * 49]), (2, 1))
    k50[1] = 0.99
    np.testing.assert_array_equal(neighbourhood_test(k50), [True, False])


def test_a_classical_test_is_counted_by_group_size():
    copied = np.array([True, True, True, True, False])
    size = np.array([1, 2, 4, 60, 1])
    test = ClassicalTest(
        "t", "r", np.array([True, False, False, False, True]), np.array([True, True, True, True, True])
    )
    found = test.summary(copied, size)
    assert [row["n_copies"] for row in found["by_group_size"]] == [1, 1, 1, 1]
    assert [row["seen"] for row in found["by_group_size"]] == [1, 0, 0, 0]
    assert [row["seen_group_aware"] for row in found["by_group_size"]] == [1, 1, 1, 1]
    assert found["flagged"]["value"] == pytest.approx(2 / 5)
