"""Rates and paired differences, against counts done by hand and against their own coverage."""

from __future__ import annotations

import math

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import binomtest

from copyscope import stats
from copyscope.experiment import outcomes

ROWS = [
    # id, source, match, copied, similarity, calibration images that score as high
    ("0", "a", "a", True, 0.9, 0),
    ("1", "b", "b2", True, 0.8, 2),
    ("2", "c", "a", True, 0.7, 3),
    ("3", "d", "d", False, 0.4, 20),
    ("4", "e", "a", False, 0.3, 40),
    ("5", None, "e", False, 0.2, 200),
    ("6", "a", None, None, None, None),
]
N_CALIBRATION = 200


@pytest.fixture
def table():
    """Seven images, the last unreadable, one without a source; b and b2 are near-duplicates, a and e duplicated."""
    return make(ROWS)


def make(rows, n_calibration=N_CALIBRATION):
    audited = pa.table(
        {
            "id": [row[0] for row in rows],
            "prompt": ["a prompt"] * len(rows),
            "match": pa.array([row[2] for row in rows], pa.string()),
            "copied": pa.array([row[3] for row in rows], pa.bool_()),
            "similarity": pa.array([row[4] for row in rows], pa.float64()),
            "combined": pa.array([row[4] for row in rows], pa.float64()),
            "p_value": [None if row[5] is None else (1 + row[5]) / (1 + N_CALIBRATION) for row in rows],
            "error": [None if row[2] else "torn" for row in rows],
        }
    )
    made = {row[0]: {"id": row[0], "seed": int(row[0]), "source_id": row[1]} for row in rows}
    duplicated = {name: name in "ae" for name in ("a", "b", "b2", "c", "d", "e")}
    return outcomes.outcomes(audited, made, duplicated, {"b": 7, "b2": 7}, n_calibration)


def test_an_image_knows_whether_its_match_is_its_own(table):
    rows = {row["id"]: row for row in table.to_pylist()}
    assert [row["own"] for row in rows.values()] == [True, True, False, True, False, None, None]
    assert [row["duplicated"] for row in rows.values()] == [True, False, False, False, True, None, True]
    assert rows["6"]["copied"] is None
    assert [row["beyond"] for row in rows.values()] == [True, True, False, False, False, False, None]
    assert table.schema == outcomes.SCHEMA


def test_rates_are_of_the_readable_and_the_unreadable_widen_them(table):
    found = outcomes.rates(table)
    assert list(found) == list(outcomes.MEASURES)
    assert found["replication_rate"] == stats.proportion(3, 6, missing=1)
    assert found["replication_rate_duplicated"] == stats.proportion(1, 2, missing=1)
    assert found["replication_rate_others"] == stats.proportion(2, 3)
    assert found["replication_rate_fixed"] == stats.proportion(2, 6, missing=1)
    assert found["replication_rate_fixed_duplicated"] == stats.proportion(1, 2, missing=1)
    assert found["copies_of_duplicated"] == stats.proportion(2, 3)
    assert found["own_rate"] == stats.proportion(3, 5, missing=1)
    assert found["own_copy_rate"] == stats.proportion(2, 5, missing=1)
    assert found["similarity_mean"].value == pytest.approx(np.mean([0.9, 0.8, 0.7, 0.4, 0.3, 0.2]))
    assert found["similarity_p95"].n == 6


@pytest.mark.parametrize(("as_high", "of", "beyond"), [
    (0, 1, True), (1, 1, False), (0, 99, True), (1, 99, False), (1, 100, True), (5, 525, True), (6, 525, False),
])  # fmt: skip
def test_the_fixed_line_is_reached_by_one_in_a_hundred_real_images(as_high, of, beyond):
    assert outcomes.beyond((1 + as_high) / (1 + of), of) is beyond


def test_without_calibration_there_is_no_fixed_line(table):
    assert outcomes.beyond(1.0, 0) is None
    found = outcomes.rates(make(ROWS, 0))
    assert found["replication_rate_fixed"].n == 0
    assert math.isnan(found["replication_rate_fixed"].value)
    assert found["replication_rate"] == outcomes.rates(table)["replication_rate"]


def test_outcomes_of_an_earlier_version_are_read(table, tmp_path):
    pq.write_table(table.drop_columns("beyond"), tmp_path / "outcomes.parquet")
    found = outcomes.read(tmp_path)
    assert found.schema == outcomes.SCHEMA
    assert found["beyond"].null_count == len(table)
    assert [row["measure"] for row in outcomes.contrasts(found, found)] == [
        name for name in outcomes.COMPARED if name != "replication_rate_fixed"
    ]


def test_contrasts_pair_by_id_seed_and_source_whatever_the_order(table):
    other = make(
        [("4", "e", "e", True, 0.9, 0), ("0", "a", "a", True, 0.95, 9), ("3", "d", "a", True, 0.9, 0), *ROWS[5:]]
    )
    found = {row["measure"]: row for row in outcomes.contrasts(table, other)}
    assert list(found) == list(outcomes.COMPARED)
    assert (found["replication_rate"]["n"], found["replication_rate"]["difference"]) == (4, pytest.approx(2 / 4))
    assert (found["replication_rate_duplicated"]["n"], found["own_rate"]["n"]) == (2, 3)
    assert found["own_rate"]["difference"] == pytest.approx(0)
    assert found["similarity_mean"]["difference"] == pytest.approx((0.05 + 0.6 + 0.5 + 0) / 4)
    assert found["replication_rate_fixed"]["difference"] == pytest.approx((2 - 1) / 4)
    assert found["similarity_mean"]["p_value"] is None


@pytest.mark.parametrize("rows", [[("3", "c", "c", True, 0.9, 0), *ROWS[:3]], [("9", "d", "c", True, 0.9, 0)], []])
def test_arms_of_other_prompts_are_not_compared(table, rows):
    assert list(outcomes.contrasts(table, make(rows))) == []


def test_the_interval_of_a_worked_example():
    """Fagerland, Lydersen & Laake 2014 (Statistics in Medicine 33:2850): of 21 children 1 had airway
    hyper-responsiveness before and after, 1 before only, 7 after only; Newcombe's interval is -0.507 to -0.026."""
    before = np.repeat([True, True, False, False], [1, 1, 7, 12])
    after = np.repeat([True, False, True, False], [1, 1, 7, 12])
    estimate, p_value = outcomes.paired_difference(after, before)
    assert estimate.value == pytest.approx(-6 / 21)
    assert (estimate.low, estimate.high) == (pytest.approx(-0.507, abs=5e-4), pytest.approx(-0.026, abs=5e-4))
    assert p_value == pytest.approx(binomtest(1, 8).pvalue)


FLAGS = st.lists(st.tuples(st.booleans(), st.booleans()), min_size=1, max_size=60)


@given(FLAGS)
def test_a_difference_lies_in_its_interval_and_turns_with_its_sides(pairs):
    first, second = np.array(pairs, dtype=bool).T
    one, p_value = outcomes.paired_difference(first, second)
    other, same = outcomes.paired_difference(second, first)
    assert one.value == pytest.approx(second.mean() - first.mean())
    assert -1 <= one.low <= one.value <= one.high <= 1
    assert one.low < one.high
    assert (one.low, one.high) == (pytest.approx(-other.high), pytest.approx(-other.low))
    assert p_value == same


@pytest.mark.parametrize("law", [(0.3, 0.1, 0.2, 0.4), (0.05, 0.02, 0.1, 0.83), (0.6, 0.15, 0.05, 0.2)])
def test_the_interval_holds_the_truth_as_often_as_it_says(law):
    rng = np.random.default_rng(0)
    held = 0
    for _ in range(600):
        drawn = rng.choice(4, 80, p=law)
        estimate, _ = outcomes.paired_difference(drawn <= 1, (drawn == 0) | (drawn == 2))
        held += estimate.low <= law[2] - law[1] <= estimate.high
    assert 0.93 <= held / 600 <= 0.99


def test_no_pair_no_number():
    estimate, p_value = outcomes.paired_difference(np.zeros(0, bool), np.zeros(0, bool))
    assert (estimate.n, math.isnan(estimate.value), p_value) == (0, True, None)


def test_seeds_are_averaged_with_students_interval():
    found = outcomes.over_seeds([0.1, 0.2, 0.3])
    assert found.value == pytest.approx(0.2)
    # 4.3027 = Student's 97.5 % quantile with two degrees of freedom.
    assert found.high - found.value == pytest.approx(4.3027 * 0.1 / math.sqrt(3), rel=1e-4)
    assert math.isnan(outcomes.over_seeds([0.1]).low)


def test_columns_of_mixed_values_are_text():
    row = {
        "arm": "x",
        "label": "x",
        "name": None,
        "seed": 0,
        "answer": None,
        "error": None,
        "seconds": 1.0,
        "train_seconds": None,
    }
    row |= dict.fromkeys(("n_train", "n_generated", "n_missing", "steps"))
    row |= {"estimates": {"rate": {"value": None, "low": 0.0, "high": 1.0, "n": 0}}}
    table = outcomes.arms_table(
        [row | {"values": {"train.a": [1], "b": 1}}, row | {"values": {"train.a": "y", "b": 2}}]
    )
    assert table["train.a"].to_pylist() == ["[1]", '"y"']
    assert table["b"].to_pylist() == [1, 2]
    assert table.column_names[-4:] == ["rate", "rate_low", "rate_high", "rate_n"]


def test_a_value_that_an_arm_does_not_set_is_null():
    row = dict.fromkeys(("arm", "label", "name", "seed", "answer", "error", "seconds", "train_seconds", "n_train"))
    row |= dict.fromkeys(("n_generated", "n_missing", "steps")) | {"estimates": {}}
    table = outcomes.arms_table(
        [row | {"values": {}}, row | {"values": {"a.x": 1, "a.y": ["z"]}}, row | {"values": {"a.x": 2, "a.w": True}}]
    )
    assert table["a.x"].to_pylist() == [None, 1, 2]
    assert table["a.y"].to_pylist() == [None, '["z"]', None]
    assert table["a.w"].to_pylist() == [None, None, True]


def test_seconds_an_image_are_of_all_samplings_with_students_interval():
    nothing = outcomes.seconds_per_image([])
    assert (nothing.n, math.isnan(nothing.value)) == (0, True)
    once = outcomes.seconds_per_image([(6.0, 12)])
    assert (once.value, once.n, math.isnan(once.low), math.isnan(once.high)) == (0.5, 12, True, True)
    twice = outcomes.seconds_per_image([(10.0, 10), (3.3, 3)])
    assert (twice.value, twice.n) == (pytest.approx(13.3 / 13), 13)
    # 12.706 = Student's 97.5 % quantile with one degree of freedom.
    assert twice.high - 1.05 == pytest.approx(12.706 * 0.05, rel=1e-4)
    assert twice.low == pytest.approx(1.05 - 12.706 * 0.05, rel=1e-3)
    assert outcomes.seconds_per_image([(1.0, 1), (9.0, 1)]).low == 0


@given(st.lists(st.tuples(st.floats(0.01, 1e3), st.integers(1, 500)), min_size=2, max_size=6))
def test_two_samplings_or_more_hold_their_value(timings):
    found = outcomes.seconds_per_image(timings[:2])
    assert 0 <= found.low <= found.value * (1 + 1e-9)
    assert found.value <= found.high * (1 + 1e-9)
