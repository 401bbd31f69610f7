"""The classical tests are as stated, go blind on duplicates, and see again by group."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest

from copyscope.detection.matching.match import Matches
from copyscope.detection.search.exact import search
from copyscope.detection.verdict.baselines import (
    SIZES,
    ClassicalTest,
    authenticity_test,
    classical_tests,
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


def test_a_pair_of_exact_copies_is_what_the_ratio_test_is_blind_to():
    assert not ratio_test(np.array([1.0]), np.array([1.0]))[0]
    assert not authenticity_test(np.array([1.0]), np.array([1.0]))[0]


def test_every_size_is_in_one_class():
    sizes = np.arange(1, 9)
    found = {name: sizes[inside(sizes)].tolist() for name, inside in SIZES.items()}
    assert found == {"1": [1], "2": [2], "3-5": [3, 4, 5], "6+": [6, 7, 8]}


def unit(values):
    return (values / np.linalg.norm(values, axis=1, keepdims=True)).astype(np.float32)


def field(n_train=30, n_generated=12, k=8, groups=10, seed=0, away=0.02):
    """Matches and groups of random vectors, each generated one near a training one; groups are near one another."""
    rng = np.random.default_rng(seed)
    label = rng.integers(0, groups, n_train)
    train = unit(unit(rng.standard_normal((groups, 6)))[label] + 0.05 * rng.standard_normal((n_train, 6)))
    generated = unit(train[rng.integers(0, n_train, n_generated)] + away * rng.standard_normal((n_generated, 6)))
    found = search(generated, train, k)
    similarity = generated @ train.T
    # The match of highest combined score may be of another group than the nearest, whose group is the one that counts.
    verified = rng.uniform(0, 1, found.score.shape).astype(np.float32)
    queries, references = SimpleNamespace(vectors=generated), SimpleNamespace(vectors=train, cells=None)
    unused = np.zeros(n_generated, np.int64), np.zeros(n_generated, np.float32)
    matches = Matches(queries, references, found, verified, *unused)
    return matches, SimpleNamespace(label=label), similarity, train


def test_all_tests_are_as_stated_by_loops():
    matches, groups, similarity, train = field()
    ratio, authentic, hood = classical_tests(matches, groups)
    label, own = groups.label, train @ train.T
    expected = {"ratio": [], "ratio by group": [], "authentic": [], "authentic by group": [], "hood": []}
    for row in similarity:
        order = np.argsort(-row)
        first = order[0]
        elsewhere = [j for j in order if label[j] != label[first]]
        d = np.sqrt(2 - 2 * row)
        expected["ratio"].append(d[first] / d[order[1]] < 1 / 3)
        expected["ratio by group"].append(d[first] / d[elsewhere[0]] < 1 / 3)
        expected["hood"].append(d[first] < 0.5 * d[order[:8]].mean())
        near = np.sqrt(np.maximum(2 - 2 * own[first], 0))
        expected["authentic"].append(d[first] < min(near[j] for j in range(len(near)) if j != first))
        expected["authentic by group"].append(d[first] < min(near[j] for j in elsewhere))
    assert [ratio.flagged.tolist(), ratio.flagged_by_group.tolist()] == [expected["ratio"], expected["ratio by group"]]
    assert authentic.flagged.tolist() == expected["authentic"]
    assert authentic.flagged_by_group.tolist() == expected["authentic by group"]
    assert hood.flagged.tolist() == expected["hood"]
    assert hood.flagged_by_group is None
    assert "n=8" in hood.name
    for blind, sees in (("ratio", "ratio by group"), ("authentic", "authentic by group")):
        assert sum(expected[blind]) < sum(expected[sees])


@pytest.mark.parametrize(("away", "seen"), [(0.02, True), (0.8, False)])
def test_the_neighbourhood_is_of_the_neighbours_there_are(away, seen):
    matches, groups, similarity, _ = field(n_train=5, k=20, away=away)
    hood = classical_tests(matches, groups)[2]
    d = np.sqrt(2 - 2 * similarity)
    assert "n=5" in hood.name
    assert hood.flagged.tolist() == (d.min(axis=1) < 0.5 * d.mean(axis=1)).tolist()
    assert hood.flagged.all() == seen


def test_where_there_is_no_other_group_it_is_as_far_as_can_be():
    matches, groups, similarity, _ = field(groups=1)
    ratio, authentic, _ = classical_tests(matches, groups)
    assert ratio.flagged_by_group.tolist() == (distance(similarity.max(axis=1)) < 2 / 3).tolist()
    assert ratio.flagged_by_group.all()
    assert authentic.flagged_by_group.all()


@pytest.mark.parametrize(("n_train", "n_generated", "k"), [(1, 4, 8), (5, 0, 8), (5, 4, 1)])
def test_without_a_second_neighbour_there_are_no_tests(n_train, n_generated, k):
    assert classical_tests(*field(n_train=n_train, n_generated=n_generated, k=k)[:2]) == []
