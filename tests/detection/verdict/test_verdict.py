"""Statistics and verdict on numbers whose answer is known."""

from __future__ import annotations

import numpy as np
import pytest

from copyscope import stats
from copyscope.detection.verdict import verdict as replication
from copyscope.detection.verdict.verdict import Calibration, Planted, dataset_similarity, similarity, verdict

KINDS = ("light", "crop", "mirror", "part")


def calibration(n, seed=0, method="held-out"):
    return Calibration(method, np.random.default_rng(seed).normal(0.4, 0.05, n), 3, "a rule")


def planted(n=100, seen=1.0, kinds=KINDS):
    """Planted copies of which a share stands far above all calibration scores, and the others far below."""
    scores = np.where(np.arange(n) < round(seen * n), 0.99, 0.1)
    return {kind: Planted(scores) for kind in kinds}


def clean(n):
    return np.random.default_rng(3).normal(0.38, 0.03, n)


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
    assert found.p_values[found.copied].max() <= found.line
    assert str(int(found.copied.sum())) in found.sentence


def test_the_false_discovery_rate_is_kept_on_average():
    rng = np.random.default_rng(2)
    wrong = []
    for seed in range(200):
        scores = np.concatenate([rng.normal(0.4, 0.05, 80), rng.normal(0.62, 0.05, 20)])
        found = verdict(scores, calibration(500, seed)).copied
        wrong.append(found[:80].sum() / max(found.sum(), 1))
    assert np.mean(wrong) < 0.05


def test_false_discovery_rate_is_kept_with_several_scores():
    rng = np.random.default_rng(2)
    wrong, seen = [], []
    for _ in range(200):
        images = rng.normal(0.4, 0.05, (600, 1)) + rng.normal(0, 0.04, (600, 2))
        images[:20, 0] += 0.35  # copies that one score sees
        found = verdict(images[:100], Calibration("held-out", images[100:], 0, "")).copied
        wrong.append(found[20:].sum() / max(found.sum(), 1))
        seen.append(found[:20].mean())
    assert np.mean(wrong) < 0.05
    assert np.mean(seen) > 0.7


def test_clean_model_is_called_clean_only_where_copies_would_have_been_seen():
    found = verdict(clean(300), calibration(2000), planted=planted())
    assert found.answer == "no copies found"
    assert found.needed is None
    assert found.reasons == []
    assert found.rate.value == 0
    assert 0 < found.estimated_rate.high < 0.05
    assert f"at most {100 * found.estimated_rate.high:.1f} %" in found.sentence


def test_without_calibration_images_the_rate_is_a_bound_with_false_alarms():
    found = verdict(clean(75), calibration(2000, method="baseline"), planted=planted())
    assert found.answer == "cannot tell"
    assert "without held-out or control images false alarms cannot be told from copies" in found.reasons[0]
    assert "held-out or control images" in found.needed
    same = np.arange(300) == 0
    copied = verdict(clean(300), calibration(2000, method="baseline"), planted=planted(), identical=same)
    assert "false alarms included" in copied.sentence


def test_without_a_measured_sensitivity_silence_means_nothing():
    found = verdict(clean(300), calibration(2000))
    assert found.answer == "cannot tell"
    assert "not measured" in found.reasons[0]
    assert found.sensitivity == {}
    assert np.isnan(found.estimated_rate.value)
    assert (found.estimated_rate.low, found.estimated_rate.high) == (0, 1)


@pytest.mark.parametrize("kind", ["light", "crop"])
@pytest.mark.parametrize(("seen", "answer"), [(0.9, "no copies found"), (0.86, "cannot tell")])
def test_lower_end_of_the_sensitivity_to_light_and_crop_decides(kind, seen, answer):
    # 90 of 100 has the lower end .824, 86 of 100 has .776.
    found = verdict(clean(300), calibration(2000), planted=planted() | planted(seen=seen, kinds=[kind]))
    assert found.answer == answer
    assert (f"`{kind}` copies" in found.sentence) == (answer == "cannot tell")


def test_kind_that_is_seldom_seen_raises_the_upper_end_of_the_rate():
    few = verdict(clean(300), calibration(2000), planted=planted() | planted(seen=0.1, kinds=["part"]))
    assert few.answer == "cannot tell"
    assert few.estimated_rate.high > 0.1
    assert "`part` copies" in few.reasons[0]
    assert "generated images" in few.needed
    many = verdict(clean(3000), calibration(2000), planted=planted() | planted(seen=0.2, kinds=["part"]))
    assert many.answer == "no copies found"


def test_held_out_set_with_look_alikes_is_the_reason_and_they_are_marked():
    among = calibration(2000)
    among.scores[:40] = 0.995
    found = verdict(clean(300), among, planted=planted())
    assert found.answer == "cannot tell"
    assert "--held-out-exclude" in found.needed
    assert found.look_alikes[:40].all()
    assert not found.look_alikes[40:].any()
    assert "40 of 2000" in found.needed


def test_held_out_images_of_another_kind_flag_nothing_and_decide_nothing():
    scores = np.concatenate([clean(200), np.full(100, 0.99)])
    found = verdict(scores, calibration(2000), planted=planted(), differs="Another kind.")
    assert found.answer == "cannot tell"
    assert not found.copied.any()
    assert "Another kind." in found.sentence
    assert "--trust-held-out" in found.needed
    same = np.arange(300) == 299
    assert verdict(scores, calibration(2000), differs="Another kind.", identical=same).answer == "copies"


def test_too_few_generated_images_cannot_be_told_and_how_many_would_do_is_said_and_does():
    found = verdict(np.full(10, 0.3), calibration(2000), planted=planted(1000))
    assert found.answer == "cannot tell"
    assert "72 generated images" in found.needed
    assert verdict(np.full(71, 0.3), calibration(2000), planted=planted(1000)).answer == "cannot tell"
    assert verdict(np.full(120, 0.3), calibration(2000), planted=planted(1000)).answer == "no copies found"


def test_too_few_calibration_images_cannot_be_told_and_how_many_would_do_is_said_and_does():
    scores = np.full(200, 0.3)
    scores[:10] = 0.99
    found = verdict(scores, calibration(100))
    assert found.answer == "cannot tell"
    assert "399 held-out" in found.needed
    assert verdict(scores, calibration(399)).answer == "copies"
    assert verdict(scores, calibration(398)).answer == "cannot tell"


def test_unreadable_images_count_against_us():
    scores = np.full(200, 0.3)
    assert verdict(scores, calibration(2000), planted=planted()).answer == "no copies found"
    found = verdict(scores, calibration(2000), planted=planted(), n_missing=30)
    assert found.answer == "cannot tell"
    assert found.rate.high > 30 / 230
    assert found.estimated_rate.high > 30 / 230


def test_blank_images_are_no_copies_and_in_no_rate():
    scores = np.concatenate([clean(200), np.full(50, 0.99)])
    blank = np.arange(250) >= 200
    found = verdict(scores, calibration(2000), planted=planted(), blank=blank, identical=blank)
    assert found.answer == "no copies found"
    assert found.rate.n == found.estimated_rate.n == 200
    assert np.isnan(found.p_values[blank]).all()
    assert not found.copied.any()


def test_nothing_readable_or_nothing_to_calibrate_on_cannot_be_told():
    for scores, m in ((np.zeros(0), 100), (np.full(100, 0.9), 0)):
        found = verdict(scores, calibration(m), planted=planted())
        assert found.answer == "cannot tell"
        assert not found.copied.any()


def test_baseline_calls_images_suspicious_and_not_copies():
    scores = np.concatenate([clean(160), np.full(40, 0.99)])
    found = verdict(scores, calibration(1000, method="baseline"), planted=planted())
    assert found.answer == "suspicious"
    assert found.copied[160:].all()
    assert "no proof" in found.sentence
    same = np.arange(200) == 199
    assert verdict(scores, calibration(1000, method="baseline"), identical=same).answer == "copies"
    assert "Not calibrated" in calibration(10, method="baseline").sentence()
    assert "3 look-alikes" in calibration(10).sentence()


def test_with_controls_a_copy_must_be_nearer_than_training_images_are_to_one_another():
    scores = np.concatenate([clean(140), np.full(60, 0.99)])
    beyond = np.arange(200) >= 180
    found = verdict(scores, calibration(200, method="controls"), beyond_own=beyond)
    assert found.copied.tolist() == beyond.tolist()
    assert found.likeness[140:180].all()
    assert not found.likeness[180:].any()
    assert "40 more are likenesses" in found.sentence
    blind = {kind: Planted(each.scores, np.zeros(100, bool)) for kind, each in planted().items()}
    assert (
        verdict(scores, calibration(200, method="controls"), beyond_own=beyond, planted=blind)
        .sensitivity["light"]
        .value
        == 0
    )


def test_what_only_ties_with_a_calibration_image_does_not_stand_out():
    among = calibration(50)
    scores = np.full(200, 0.3)
    scores[:50] = among.scores.max()
    assert not verdict(scores, among).copied.any()


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


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("rate", [0.0, 0.05, 0.3])
def test_corrected_rate_covers_the_true_one_whatever_kind_the_copies_are_of(kind, rate):
    """Kinds of which 95, 90, 60 and 15 % stand out; nulls of the law of the calibration images."""
    shares = dict(zip(KINDS, (0.95, 0.9, 0.6, 0.15), strict=True))
    rng = np.random.default_rng(5)

    def copies(share, n):
        return np.where(rng.random(n) < share, rng.normal(0.75, 0.03, n), rng.normal(0.4, 0.05, n))

    covered = silent = 0
    for _ in range(100):
        k = round(rate * 200)
        scores = np.concatenate([copies(shares[kind], k), rng.normal(0.4, 0.05, 200 - k)])
        found = verdict(
            scores,
            Calibration("held-out", rng.normal(0.4, 0.05, 400), 0, ""),
            planted={name: Planted(copies(share, 100)) for name, share in shares.items()},
        )
        covered += found.estimated_rate.low <= rate <= found.estimated_rate.high
        silent += found.answer == "no copies found"
    assert covered >= 93
    assert rate == 0 or silent <= 5


def test_paper_s_percentile_stands_beside_the_verdict_and_disagreement_is_said():
    rng = np.random.default_rng(0)
    near, far = (similarity(rng.normal(mean, 0.05, 400), 0.5) for mean in (0.8, 0.4))
    found = dataset_similarity({"generated": near, "baseline": far, "held-out": far}, "copies")
    assert found["above"]
    assert found["agrees"]
    assert found["p95"]["generated"]["value"] == pytest.approx(near["p95"].value)
    assert "The verdict differs" in dataset_similarity({"generated": far, "baseline": far}, "copies")["sentence"]
    assert "The verdict differs" in dataset_similarity({"generated": near, "baseline": far}, "cannot tell")["sentence"]
    few = similarity(np.random.default_rng(2).uniform(0.2, 0.3, 30), 0.5)
    unknown = dataset_similarity({"generated": near, "baseline": few}, "copies")
    assert "too few images" in unknown["sentence"]
    assert (unknown["above"], unknown["agrees"]) == (False, True)


def test_share_nearer_than_calibration_images_is_told_where_no_single_image_can_be_named():
    rng = np.random.default_rng(1)
    among = np.concatenate([rng.normal(0.4, 0.05, 290), np.full(10, 0.95)])  # look-alikes take all power
    scores = np.concatenate([rng.normal(0.4, 0.05, 120), rng.normal(0.8, 0.03, 80)])
    found = verdict(scores, Calibration("held-out", among, 0, ""), planted=planted())
    assert found.answer == "cannot tell"
    assert 0.15 < found.excess < 0.4
    assert "nearer to the training set" in found.sentence
    assert stats.excess(scores, among)[0] == pytest.approx(found.excess)


def test_score_that_does_not_tell_light_copies_makes_nobody_a_look_alike():
    rng = np.random.default_rng(0)
    among = rng.normal(0.4, 0.05, (500, 2))
    light = np.stack([np.full(100, 0.95), rng.normal(0.4, 0.05, 100)], axis=1)  # the second score says nothing of them
    found = verdict(
        clean(300)[:, None].repeat(2, 1), Calibration("held-out", among, 0, ""), planted={"light": Planted(light)}
    )
    assert not found.look_alikes.any()
    among[:7, 0] = 0.97
    found = verdict(
        clean(300)[:, None].repeat(2, 1), Calibration("held-out", among, 0, ""), planted={"light": Planted(light)}
    )
    assert np.flatnonzero(found.look_alikes).tolist() == list(range(7))


@pytest.mark.parametrize(("n_beyond", "answer"), [(2, "suspicious"), (12, "copies")])
def test_no_more_copies_than_new_views_of_the_subject_give_are_no_proof(n_beyond, answer):
    scores = np.concatenate([clean(140), np.full(60, 0.99)])
    beyond = np.arange(200) >= 200 - n_beyond
    found = verdict(scores, calibration(200, method="controls"), beyond_own=beyond)
    assert found.answer == answer
    assert found.copied.sum() == n_beyond
    same = np.arange(200) == 199
    assert verdict(scores, calibration(200, method="controls"), beyond_own=beyond, identical=same).answer == "copies"


def estimated(p_values, light, trusted=True):
    return replication._estimated_rate(np.asarray(p_values), 0, 99, {"light": np.asarray(light)}, 0, trusted)


def spread_out(count, line, n=200):
    """P-values of n images of which `count` are 0.01, and as many below `line` as chance gives."""
    rest = n - count
    return np.concatenate([np.full(count, 0.01), np.linspace(0.02, line, 6), np.linspace(0.2, 1, rest - 6)])


def test_one_family_in_the_narrow_tail_does_not_raise_the_lower_end():
    seen = np.full(100, 0.01)
    assert estimated(spread_out(40, 0.08), seen).low > 0.05
    assert estimated(spread_out(8, 0.08), seen).low == 0


def test_the_rate_is_not_read_off_where_kinds_of_images_are_compared():
    """Copies that are told at p = .3 alone bound nothing."""
    assert estimated(np.linspace(0.01, 1, 200), np.full(100, 0.3)).high == 1


def test_without_a_calibration_false_alarms_may_be_none():
    trusted, other = (estimated(spread_out(40, 0.08), np.full(100, 0.05), each) for each in (True, False))
    assert other.low == 0 < trusted.low
    assert other.high > trusted.high


def test_reasons_say_what_became_of_the_images_that_are_not_there():
    few = Calibration("held-out", calibration(3).scores, 27, "by hash", n_blank=1)
    blank = np.arange(20) < 12
    found = verdict(clean(20), few, planted=planted(), blank=blank)
    assert "8 readable images are too few (12 more are blank)" in found.reasons[0]
    assert "too few (27 more are training images or look like one; 1 more is blank)" in found.reasons[1]
    assert "20 readable images are too few to" in verdict(clean(20), calibration(99), planted=planted()).reasons[0]


def test_a_training_set_without_anything_to_copy_is_told_from_sensitivity_not_measured():
    found = verdict(clean(200), calibration(400), planted={})
    assert found.answer == "cannot tell"
    assert found.reasons == ["All training images are blank: there is nothing to copy."]
    assert "--sensitivity 0" in verdict(clean(200), calibration(400)).reasons[0]


def test_no_interval_is_narrower_than_so_many_images_can_make_it():
    # Less like the training set than any calibration image: no false alarm where five are expected.
    known = calibration(500)
    wide = {"light": planted(1000)["light"], "overlay": Planted(np.full(200, np.quantile(known.scores, 0.95)))}
    far = verdict(np.full(80, 0.05), known, planted=wide)
    assert far.estimated_rate.high >= stats.proportion(0, 80).high
    one = verdict(np.ones(1), known, planted=wide, identical=np.ones(1, bool))
    assert one.estimated_rate.low < 0.2
    assert one.estimated_rate.high == 1


def test_copies_that_stand_out_only_together_are_said_to_be_there():
    """Thirty held-out images let none of forty be named; sixteen far above them all are no chance."""
    known = np.random.default_rng(4).uniform(0, 0.3, 30)
    scores = np.concatenate([np.full(16, 0.9), np.random.default_rng(5).uniform(0, 0.3, 24)])
    found = verdict(scores, Calibration("held-out", known, 0, ""), planted=planted(), fdr=0.05)
    assert found.answer == "cannot tell"
    assert found.estimated_rate.low > 0.05
    assert "none stands out by itself, but together they do" in found.sentence
    assert not any("too few to exclude" in reason for reason in found.reasons)


def test_an_interval_that_says_nothing_is_not_said():
    scores = np.concatenate([[1.0], np.random.default_rng(6).uniform(0, 0.3, 59)])
    found = verdict(scores, Calibration("held-out", clean(20), 0, ""), planted=planted(seen=0.0), identical=scores == 1)
    assert found.answer == "copies"
    assert "100.0 %" not in found.sentence
    assert "cannot be told" in found.sentence
