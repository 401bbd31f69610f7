"""The leaderboard: ranks, ratios and the frontier, on rows made by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest

from copyscope.experiment.leaderboard import leaderboard


def estimate(value, half=0.1, n=256):
    return {"value": value, "low": value - half, "high": value + half, "n": n}


def arm(label, rate, distance, seed=0, values=(), floor=None, first="plain"):
    estimates = {"replication_rate_fixed": estimate(rate), "general_frechet_distance": estimate(distance)}
    estimates["real_frechet_distance"] = estimate(floor, 0) if floor is not None else {"value": None}
    name = f"{label}-seed{seed}"
    return {
        "arm": name, "label": label, "seed": seed, "values": dict(values), "estimates": estimates,
        "first": None if label == first else f"{first}-seed{seed}",
    }  # fmt: skip


ARMS = [
    arm("plain", 0.8, 1.0),
    arm("dear", 0.0, 1.2),
    arm("good", 0.1, 1.04),
    arm("free", 0.4, 0.98),
    arm("worse", 0.5, 1.02),
]


def test_rows_are_ranked_and_the_dear_ones_come_last():
    assert [row["label"] for row in leaderboard(ARMS)] == ["good", "free", "worse", "plain", "dear"]


def test_the_frontier_is_what_nothing_beats():
    assert {row["label"] for row in leaderboard(ARMS) if row["frontier"]} == {"good", "free", "dear"}


def test_equal_rows_do_not_beat_each_other():
    twins = [*ARMS, arm("twin", 0.1, 1.04)]
    assert {row["label"] for row in leaderboard(twins) if row["frontier"]} == {"good", "twin", "free", "dear"}


def test_ratios_are_to_the_plain_model():
    rows = {row["label"]: row for row in leaderboard(ARMS)}
    assert rows["good"]["fewer_copies"]["value"] == pytest.approx(0.875)
    assert rows["good"]["dearer"]["value"] == pytest.approx(0.04)
    # Katz's interval, worked out by hand: ln(0.125) -+ 1.96 sqrt(1/25.6 - 1/256 + 1/204.8 - 1/256)
    reach = 1.96 * math.sqrt(1 / 25.6 - 1 / 256 + 1 / 204.8 - 1 / 256)
    low, high = (1 - 0.125 * math.exp(sign * reach) for sign in (1, -1))
    assert (rows["good"]["fewer_copies"]["low"], rows["good"]["fewer_copies"]["high"]) == pytest.approx((low, high))
    assert rows["dear"]["fewer_copies"]["value"] == 1
    assert 0.95 < rows["dear"]["fewer_copies"]["low"] < rows["dear"]["fewer_copies"]["high"] == 1
    assert rows["plain"]["fewer_copies"]["value"] == rows["plain"]["dearer"]["value"] == 0


def test_the_interval_of_fewer_copies_holds_the_truth_as_often_as_it_says():
    rng, hits = np.random.default_rng(0), 0
    for _ in range(400):
        rates = rng.binomial(256, (0.6, 0.15)) / 256
        found = leaderboard([arm("plain", rates[0], 1.0), arm("other", rates[1], 1.0)])
        one = next(row["fewer_copies"] for row in found if row["label"] == "other")
        hits += one["low"] <= 0.75 <= one["high"]
    assert 0.92 <= hits / 400 <= 0.98


def test_seeds_become_one_row_and_each_is_compared_with_its_own_plain_model():
    arms = [arm("plain", 0.8, 1.0, 0), arm("plain", 0.6, 1.1, 1), arm("good", 0.4, 1.0, 0), arm("good", 0.15, 1.1, 1)]
    rows = {row["label"]: row for row in leaderboard(arms)}
    assert rows["good"]["seeds"] == [0, 1]
    assert rows["good"]["estimates"]["replication_rate_fixed"]["value"] == pytest.approx(0.275)
    assert rows["good"]["estimates"]["replication_rate_fixed"]["n"] == 2
    assert rows["good"]["fewer_copies"]["value"] == pytest.approx((0.5 + 0.75) / 2)
    assert rows["plain"]["fewer_copies"] == {"value": 0, "low": 0, "high": 0, "n": 2}


def test_the_mean_of_shares_is_a_share_and_that_of_distances_is_not_cut():
    arms = [arm("plain", rate, distance, seed) for seed, (rate, distance) in enumerate([(0.1, 0.2), (0.9, 9.0)])]
    for row in arms:
        rate = row["estimates"]["replication_rate_fixed"]
        rate |= {"low": 0.0, "high": 1.0}
    row = leaderboard(arms)[0]["estimates"]
    assert (row["replication_rate_fixed"]["low"], row["replication_rate_fixed"]["high"]) == (0, 1)
    assert row["general_frechet_distance"]["low"] < 0 < 1 < row["general_frechet_distance"]["high"]


def test_what_is_not_finished_is_left_out():
    missing = {"value": None, "low": None, "high": None, "n": 0}
    unfinished = arm("later", 0.1, 1.0)
    unfinished["estimates"]["replication_rate_fixed"] = missing
    rows = leaderboard([*ARMS, unfinished])
    assert "later" not in {row["label"] for row in rows}
    assert leaderboard([unfinished, *ARMS[1:]]) == []
    assert leaderboard([]) == []


def test_a_plain_model_without_copies_gives_no_ratio():
    rows = leaderboard([arm("plain", 0.0, 1.0), arm("other", 0.0, 1.0)])
    assert rows[1]["fewer_copies"]["value"] is None


def test_what_real_images_score_is_taken_off_both_distances():
    rows = {
        row["label"]: row for row in leaderboard([arm("plain", 0.8, 1.2, floor=0.7), arm("x", 0.4, 1.25, floor=0.7)])
    }
    assert rows["x"]["dearer"]["value"] == pytest.approx(0.05 / 1.2)
    assert rows["x"]["excess"]["value"] == pytest.approx(0.1)
    # By hand: half-widths of 0.1 in both, (1/0.5) and (0.55/0.5)/0.5 times them.
    reach = math.hypot(0.1 / 0.5, 1.1 * 0.1 / 0.5)
    assert rows["x"]["excess"]["high"] - rows["x"]["excess"]["value"] == pytest.approx(reach)
    assert rows["plain"]["excess"] == {"value": 0, "low": 0, "high": 0, "n": 256}
    better = leaderboard([arm("plain", 0.8, 0.6, floor=0.7), arm("x", 0.4, 0.5, floor=0.7)])
    assert next(row for row in better if row["label"] == "x")["excess"]["value"] is None


def test_the_dear_ones_are_those_of_excess():
    rows = leaderboard(
        [arm("plain", 0.8, 1.2, floor=0.7), arm("x", 0.0, 1.25, floor=0.7), arm("y", 0.4, 1.2, floor=0.7)]
    )
    assert [row["label"] for row in rows] == ["y", "plain", "x"]


def test_seeds_are_ranked_by_their_own_plain_models():
    """Of the seed where plain copies less, 0.3 is a smaller part of it than 0.2 is of the other's."""
    arms = [arm("plain", 0.9, 1.0, 0), arm("plain", 0.3, 1.0, 1), arm("a", 0.6, 1.0, 0), arm("b", 0.25, 1.0, 1)]
    assert [row["label"] for row in leaderboard(arms)] == ["a", "b", "plain"]


def test_a_seed_whose_plain_model_copies_nothing_is_left_out():
    arms = [arm("plain", 0.8, 1.0, 0), arm("plain", 0.0, 1.0, 1), arm("a", 0.4, 1.0, 0), arm("a", 0.1, 1.0, 1)]
    row = next(row for row in leaderboard(arms) if row["label"] == "a")
    assert row["fewer_copies"]["value"] == pytest.approx(0.5)
    assert row["seeds"] == [0, 1]


def test_no_end_is_above_all_copies_gone():
    arms = [arm("plain", 0.8, 1.0, seed) for seed in (0, 1)] + [arm("a", 0.0, 1.0, 0), arm("a", 0.1, 1.0, 1)]
    row = next(row for row in leaderboard(arms) if row["label"] == "a")
    assert row["fewer_copies"]["high"] == 1
    assert row["fewer_copies"]["low"] < 0.5


def test_each_grid_value_has_a_plain_model_and_a_frontier_of_its_own():
    small = [arm("plain · n=1", 0.2, 1.0), arm("a · n=1", 0.1, 1.1, first="plain · n=1")]
    large = [arm("plain · n=2", 0.8, 2.0), arm("a · n=2", 0.6, 1.9, first="plain · n=2")]
    small[0]["first"] = large[0]["first"] = None
    rows = {row["label"]: row for row in leaderboard([*small, *large])}
    assert rows["a · n=1"]["fewer_copies"]["value"] == pytest.approx(0.5)
    assert rows["a · n=2"]["fewer_copies"]["value"] == pytest.approx(0.25)
    assert {label for label, row in rows.items() if row["frontier"]} == {"plain · n=1", "a · n=1", "a · n=2"}


@pytest.mark.parametrize(("values", "stage"), [
    ({}, "plain"),
    ({"train.mitigations": [], "sample.mitigations": None}, "plain"),
    ({"train.mitigations": ["gaussian_noise"]}, "training"),
    ({"data.n_train": 8}, "training"),
    ({"sample.mitigations": ["gaussian_noise"], "train.steps": None}, "sampling"),
    ({"sample.guidance": 1.0, "train.steps": 9}, "both"),
    ({"sample.guidance": 1.5}, "plain"),
    ({"sample.guidance": None, "train.steps": 9}, "both"),
])  # fmt: skip
def test_a_row_says_where_it_differs_from_the_plain_model(values, stage):
    usual = {"sample.guidance": 1.5}
    rows = leaderboard([arm("plain", 0.5, 1.0, values=usual), arm("one", 0.4, 1.0, values=usual | values)])
    assert {row["label"]: row["stage"] for row in rows} == {"plain": "plain", "one": stage}


@pytest.mark.parametrize(("distance", "order"), [(1.05, ["edge", "plain"]), (1.0501, ["plain", "edge"])])
def test_a_row_is_dear_from_above_five_percent_on(distance, order):
    assert [row["label"] for row in leaderboard([arm("plain", 0.8, 1.0), arm("edge", 0.0, distance)])] == order


def test_no_copy_at_all_counts_as_half_a_copy_in_the_lower_end():
    found = leaderboard([arm("plain", 0.8, 1.0), arm("none", 0.0, 1.0)])
    row = next(row["fewer_copies"] for row in found if row["label"] == "none")
    # Katz's interval, worked out by hand, of 0.5 of 256 against 204.8 of 256.
    reach = 1.96 * math.sqrt(1 / 0.5 - 1 / 256 + 1 / 204.8 - 1 / 256)
    assert (row["value"], row["high"]) == (1, 1)
    assert row["low"] == pytest.approx(1 - 0.5 / 204.8 * math.exp(reach))
