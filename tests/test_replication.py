"""Statistics and verdict on numbers whose answer is known."""

from __future__ import annotations

import numpy as np
import pytest

from copyscope.copying.replication import Calibration, similarity, verdict


def calibration(n, seed=0, method="held-out"):
    return Calibration(method, np.random.default_rng(seed).normal(0.4, 0.05, n), 3, "a rule")


def test_the_statistics_are_those_of_dcr():
    scores = np.random.default_rng(0).uniform(0, 1, 500)
    found = similarity(scores, 0.5)
    assert found["mean"].value == pytest.approx(scores.mean())
    assert found["std"].value == pytest.approx(scores.std())
    for percent in (75, 90, 95):
        assert found[f"p{percent}"].value == pytest.approx(np.quantile(scores, percent / 100))
        assert found[f"p{percent}"].low < percent / 100 < found[f"p{percent}"].high
    assert found["above_threshold"].value == pytest.approx((scores > 0.5).mean())


def test_a_score_at_the_threshold_is_not_above_it():
    assert similarity(np.array([0.5, 0.5, 0.6]), 0.5)["above_threshold"].value == pytest.approx(1 / 3)


def test_planted_copies_are_found_and_counted():
    rng = np.random.default_rng(1)
    scores = np.concatenate([rng.normal(0.4, 0.05, 160), rng.normal(0.9, 0.02, 40)])
    found = verdict(scores, calibration(1000))
    assert found.answer == "copies"
    assert found.copied[160:].all()
    assert found.copied[:160].mean() <= 0.05
    assert found.rate.low < 0.2 < found.rate.high
    assert found.cut == scores[found.copied].min()
    assert str(int(found.copied.sum())) in found.sentence


def test_the_false_discovery_rate_is_kept_on_average():
    rng = np.random.default_rng(2)
    wrong = []
    for seed in range(200):
        scores = np.concatenate([rng.normal(0.4, 0.05, 80), rng.normal(0.62, 0.05, 20)])
        found = verdict(scores, calibration(500, seed)).copied
        wrong.append(found[:80].sum() / max(found.sum(), 1))
    assert np.mean(wrong) < 0.05


def test_a_clean_model_with_enough_images_is_called_clean_with_a_bound():
    scores = np.random.default_rng(3).normal(0.38, 0.03, 300)
    found = verdict(scores, calibration(2000))
    assert found.answer == "no copies found"
    assert found.needed is None
    assert found.rate.value == 0
    assert 0 < found.rate.high < 0.05


def test_too_few_generated_images_cannot_be_told_and_how_many_would_do_is_said_and_does():
    scores = np.full(10, 0.3)
    found = verdict(scores, calibration(2000))
    assert found.answer == "cannot tell"
    assert "72 generated images" in found.needed
    assert verdict(np.full(72, 0.3), calibration(2000)).answer == "no copies found"
    assert verdict(np.full(71, 0.3), calibration(2000)).answer == "cannot tell"


def test_too_few_calibration_images_cannot_be_told_and_how_many_would_do_is_said_and_does():
    scores = np.full(200, 0.3)
    scores[:10] = 0.99
    found = verdict(scores, calibration(100))
    assert found.answer == "cannot tell"
    assert "399 held-out" in found.needed
    assert verdict(scores, calibration(399)).answer == "copies"
    assert verdict(scores, calibration(398)).answer == "cannot tell"


def test_unreadable_images_count_against_us():
    scores = np.full(100, 0.3)
    assert verdict(scores, calibration(2000)).answer == "no copies found"
    found = verdict(scores, calibration(2000), n_missing=30)
    assert found.answer == "cannot tell"
    assert found.rate.high > 30 / 130


def test_nothing_readable_or_nothing_to_calibrate_on_cannot_be_told():
    for scores, m in ((np.zeros(0), 100), (np.full(100, 0.9), 0)):
        found = verdict(scores, calibration(m))
        assert found.answer == "cannot tell"
        assert not found.copied.any()


def test_the_baseline_says_that_it_is_a_stand_in():
    assert "stand-in" in calibration(10, method="baseline").sentence()
    assert "3 look-alikes" in calibration(10).sentence()


def test_just_enough_calibration_images_are_enough():
    scores = np.full(100, 0.3)
    assert verdict(scores, calibration(399)).answer == "no copies found"
    found = verdict(scores, calibration(398))
    assert found.answer == "cannot tell"
    assert "399 held-out" in found.needed


def test_the_more_stand_out_the_fewer_calibration_images_it_takes():
    scores = np.full(200, 0.3)
    scores[:50] = 0.99
    found = verdict(scores, calibration(50))
    assert found.answer == "cannot tell"
    assert "79 held-out" in found.needed
    assert verdict(scores, calibration(79)).answer == "copies"


def test_what_only_ties_with_a_calibration_image_does_not_stand_out():
    among = calibration(50)
    scores = np.full(200, 0.3)
    scores[:50] = among.scores.max()
    assert "399 held-out" in verdict(scores, among).needed


def test_the_false_discovery_rate_asked_for_is_the_one_used():
    scores = np.concatenate([np.full(40, 0.3), np.full(10, 0.99)])
    # p = 1/25 of ten in fifty: found at 20 %, not at the 5 % of the default.
    assert verdict(scores, calibration(24), fdr=0.2).copied.sum() == 10
    assert verdict(scores, calibration(24)).copied.sum() == 0


def test_an_image_that_is_a_training_image_is_a_copy_whatever_there_is_to_calibrate_on():
    scores, same = np.array([1.0, 0.3, 0.3]), np.array([True, False, False])
    found = verdict(scores, calibration(0), identical=same)
    assert found.answer == "copies"
    assert found.copied.tolist() == same.tolist()
    assert verdict(scores, calibration(0), identical=np.zeros(3, dtype=bool)).answer == "cannot tell"
