"""The leaderboard: ranks, ratios and the frontier, on rows made by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest

from copyscope.leaderboard import leaderboard


def estimate(value, half=0.1, n=256):
    return {"value": value, "low": value - half, "high": value + half, "n": n}


def arm(label, rate, distance, seed=0, values=()):
    estimates = {"replication_rate": estimate(rate), "general_frechet_distance": estimate(distance)}
    return {"label": label, "seed": seed, "values": dict(values), "estimates": estimates}


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
    assert rows["good"]["estimates"]["replication_rate"]["value"] == pytest.approx(0.275)
    assert rows["good"]["estimates"]["replication_rate"]["n"] == 2
    assert rows["good"]["fewer_copies"]["value"] == pytest.approx((0.5 + 0.75) / 2)
    assert rows["plain"]["fewer_copies"] == {"value": 0, "low": 0, "high": 0, "n": 2}


def test_what_is_not_finished_is_left_out():
    missing = {"value": None, "low": None, "high": None, "n": 0}
    unfinished = arm("later", 0.1, 1.0)
    unfinished["estimates"]["replication_rate"] = missing
    rows = leaderboard([*ARMS, unfinished])
    assert "later" not in {row["label"] for row in rows}
    assert leaderboard([unfinished, *ARMS[1:]]) == []
    assert leaderboard([]) == []


def test_a_plain_model_without_copies_gives_no_ratio():
    rows = leaderboard([arm("plain", 0.0, 1.0), arm("other", 0.0, 1.0)])
    assert rows[1]["fewer_copies"]["value"] is None


@pytest.mark.parametrize(("values", "stage"), [
    ({}, "plain"),
    ({"train.mitigations": [], "sample.mitigations": None}, "plain"),
    ({"train.mitigations": ["gaussian_noise"]}, "training"),
    ({"data.n_train": 8}, "training"),
    ({"sample.mitigations": ["gaussian_noise"], "train.steps": None}, "sampling"),
    ({"sample.guidance": 1.0, "train.steps": 9}, "both"),
])  # fmt: skip
def test_a_row_says_where_it_acts(values, stage):
    assert leaderboard([arm("one", 0.5, 1.0, values=values)])[0]["stage"] == stage
