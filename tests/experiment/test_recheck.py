"""Recheck: which copies are looked for again, how they are asked for, and what counts as one regained."""

from __future__ import annotations

import json

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from copyscope import stats
from copyscope.curation import captions
from copyscope.data.corpus import Corpus
from copyscope.errors import InputError
from copyscope.experiment import outcomes, recheck
from copyscope.experiment import run as experiment
from copyscope.experiment.arm import NOTHING, audited
from copyscope.experiment.plan import NOISE, plan
from tests.experiment.test_arm import replace, write_toml
from tests.experiment.test_run import fake_generate


@pytest.fixture(scope="module")
def done(world, tmp_path_factory):
    """(result, its folder, its TOML, recipes that images were asked by) of an experiment with real audits."""
    folder, asked = tmp_path_factory.mktemp("recheck"), {}
    toml = write_toml(world, folder)
    with pytest.MonkeyPatch.context() as patch:
        replace(patch)

        def generate(model, out, recipe, **options):
            asked["/".join(out.parts[-3:])] = (model, recipe)
            return fake_generate(model, out, recipe, **options)

        patch.setattr("copyscope.diffusion.generate.generate", generate)
        found = experiment.run(toml, folder / "out", settings=["audit.general=0"])
    return found, folder / "out", toml, asked


def arm(found, name):
    return next(row for row in found.summary["arms"] if row["name"] == name)


def table(*rows):
    """Outcomes from rows (source, beyond, own)."""
    full = [
        dict.fromkeys(outcomes.SCHEMA.names)
        | {"source_id": source, "beyond": beyond, "own": own, "prompt": f"caption of {source}"}
        for source, beyond, own in rows
    ]
    return pa.Table.from_pylist(full, outcomes.SCHEMA)


def test_copies_lost_are_those_of_the_first_arm_that_the_other_has_not():
    first = table(("a", True, True), ("b", True, True), ("c", True, False), ("d", False, True), ("e", True, True),
                  ("f", True, True), ("a", False, False), ("g", True, True))  # fmt: skip
    second = table(("a", False, True), ("b", True, True), ("c", False, False), ("d", False, False), ("e", None, None),
                   ("f", True, False), ("a", False, False), ("b", False, False))  # fmt: skip
    assert recheck.lost(first, second, 9) == [("a", "caption of a"), ("f", "caption of f")]
    assert recheck.lost(first, second, 1) == [("a", "caption of a")]
    assert recheck.lost(second, first, 9) == []


def test_one_copy_of_an_image_asked_for_twice_keeps_it():
    first, second = table(("a", True, True), ("a", True, True)), table(("a", False, True), ("a", True, True))
    assert recheck.lost(first, second, 9) == []


def test_tries_ask_again_and_in_other_words():
    prompts = [("a", "A red disc on sand"), ("b", "")]
    found = recheck.tries(prompts, 3, seed=0)
    assert list(found) == list(recheck.KINDS)
    assert found["seed"] == found["noise"] == [prompts[0]] * 3 + [prompts[1]] * 3
    words = [caption for source, caption in found["paraphrase"] if source == "a"]
    assert len(set(words)) == len(found["paraphrase"]) == 3
    assert all("red disc on sand" in caption and caption != "A red disc on sand" for caption in words)
    assert recheck.tries(prompts, 3, seed=0) == found != recheck.tries(prompts, 3, seed=1)
    assert recheck.tries([("a", "x")], 99, seed=0)["paraphrase"] == [
        ("a", words) for words in captions.paraphrases("x", 99, np.random.default_rng([0, recheck.WORDS, 0]))
    ]


def row(source, kind, regained):
    return {"source_id": source, "kind": kind, "regained": regained}


def test_a_share_is_of_prompts_and_missing_tries_count_against_the_model():
    rows = [row("a", "seed", False), row("a", "noise", True), row("a", "noise", True)]
    rows += [row("b", "seed", None), row("b", "noise", False)]
    rows += [row("c", "seed", False), row("c", "noise", None), row("c", "noise", True)]
    assert recheck.regained(rows) == stats.proportion(2, 2, missing=1)
    assert recheck.regained(rows, ["seed"]) == stats.proportion(0, 2, missing=1)
    assert recheck.regained(rows, ["noise"]) == stats.proportion(2, 3)
    assert recheck.regained(rows, ["paraphrase"]).n == recheck.regained([]).n == 0


ROWS = st.lists(
    st.builds(row, st.sampled_from("abcde"), st.sampled_from(recheck.KINDS), st.sampled_from([True, False]))
)


@settings(deadline=None)
@given(ROWS)
def test_any_kind_regains_at_least_what_one_does(rows):
    whole = recheck.regained(rows)
    for kind in recheck.KINDS:
        one = recheck.regained(rows, [kind])
        if one.n:
            assert round(one.value * one.n) <= round(whole.value * whole.n)
            assert one.n <= whole.n
    assert str(recheck.regained(reversed(rows))) == str(whole)


def test_what_is_regained_is_counted_by_kind(done):
    found, out, _, _ = done
    estimates = arm(found, "noised")["estimates"]
    assert estimates["copies_regained"] == stats.proportion(2, 4).as_dict()
    assert estimates["copies_regained_by_paraphrase"] == stats.proportion(2, 4).as_dict()
    assert estimates["copies_regained_by_seed"] == stats.proportion(0, 4).as_dict()
    # One of these is a copy, but of another image than the prompt's.
    assert estimates["copies_regained_by_noise"] == stats.proportion(0, 4).as_dict()
    rows = pq.read_table(out / "arms" / "noised-seed0" / "recheck.parquet").to_pylist()
    assert [row["kind"] for row in rows] == ["seed"] * 8 + ["paraphrase"] * 8 + ["noise"] * 8
    assert [row["id"] for row in rows if row["regained"]] == ["paraphrase/0000.png", "paraphrase/0004.png"]
    saved = json.loads((out / "arms" / "noised-seed0" / "recheck.json").read_text())
    assert (saved["n_prompts"], saved["n_tries"]) == (4, 24)
    assert saved["first"] == "plain-seed0"


def test_the_line_is_not_that_of_the_tries(done):
    """Two copies among 24 tries are too few for the false discovery rate of the tries alone."""
    _, out, toml, _ = done
    noised = plan(toml, out, ["audit.general=0"]).arms[1]
    tried = {
        kind: Corpus.open(noised.folder / "recheck" / kind).table.select(recheck.COLUMNS) for kind in recheck.KINDS
    }
    named = [each.set_column(0, "id", [[f"{kind}/{name}" for name in each["id"].to_pylist()]]) for kind, each in
             tried.items()]  # fmt: skip
    together = Corpus(pa.concat_tables(named), "x", "imagefolder")
    judged = audited(noised, together, None)
    assert judged.summary["replication_rate"]["value"] == 0


def test_the_first_arm_is_not_rechecked_nor_one_that_lost_nothing(done):
    found, out, _, _ = done
    assert arm(found, "plain")["estimates"]["copies_regained"] == NOTHING
    assert not (out / "arms" / "plain-seed0" / "recheck.json").exists()
    assert arm(found, "short")["estimates"]["copies_regained"]["n"] == 0
    assert json.loads((out / "arms" / "short-seed0" / "recheck.json").read_text())["n_prompts"] == 0


def test_tries_are_made_by_the_arm_as_protected_as_it_is(done):
    _, out, toml, asked = done
    noised = plan(toml, out, ["audit.general=0"]).arms[1]
    own = noised.sample.mitigations
    tried = {kind: asked[f"noised-seed0/recheck/{kind}"] for kind in recheck.KINDS}
    assert {kind: recipe.mitigations for kind, (_, recipe) in tried.items()} == {
        "seed": own, "paraphrase": own, "noise": (NOISE, *own)
    }  # fmt: skip
    assert {run for run, _ in tried.values()} == {noised.run}
    seeds = {recipe.seed for _, recipe in tried.values()}
    assert len(seeds) == 1
    assert seeds != {noised.sample.seed}


def test_what_was_stopped_or_failed_is_rechecked_next_time(world, tmp_path, monkeypatch):
    toml, out = write_toml(world, tmp_path), tmp_path / "out"
    made = replace(monkeypatch)
    values = ["audit.general=0"]

    def fail(model, folder, recipe, **options):
        if folder.name == "noise":
            raise InputError("No room.\nMake some")
        return fake_generate(model, folder, recipe, **options)

    with monkeypatch.context() as patch:
        patch.setattr("copyscope.diffusion.generate.generate", fail)
        failed = experiment.run(toml, out, settings=values)
    assert arm(failed, "noised")["recheck_error"] == "No room.\nMake some"
    assert arm(failed, "noised")["error"] is None
    assert failed.summary["n_failed"] == 0
    assert arm(failed, "noised")["estimates"]["copies_regained"] == NOTHING
    assert arm(failed, "noised")["estimates"]["replication_rate"]["n"] == 30
    states = experiment.status(toml, out, settings=values)
    assert [(row["state"], row["detail"]) for row in states] == [
        ("done", ""),
        ("done", "to be rechecked"),
        ("done", ""),
    ]
    made.clear()
    found = experiment.run(toml, out, settings=values)
    assert made == ["recheck/noise"]
    assert arm(found, "noised")["recheck_error"] is None
    assert arm(found, "noised")["estimates"]["copies_regained"]["n"] == 4
    assert experiment.run(toml, out, settings=values).table.equals(found.table)


def test_what_is_compared_with_another_arm_is_rechecked(world, tmp_path, monkeypatch):
    toml, out = write_toml(world, tmp_path), tmp_path / "out"
    made, values = replace(monkeypatch), ["audit.general=0"]
    experiment.run(toml, out, settings=values)
    listed = toml.read_text().replace(PLAIN, "") + PLAIN.replace("plain", "later")
    toml.write_text(listed.replace("[[arms]]", SAME + "[[arms]]", 1))
    stale = experiment.collect(plan(toml, out, values))
    assert arm(stale, "noised")["first"] == "same-seed0"
    assert arm(stale, "noised")["estimates"]["copies_regained"] == NOTHING
    made.clear()
    found = experiment.run(toml, out, settings=values)
    assert {"recheck/seed", "recheck/paraphrase", "recheck/noise"} <= set(made)
    assert json.loads((out / "arms" / "noised-seed0" / "recheck.json").read_text())["first"] == "same-seed0"
    assert arm(found, "noised")["estimates"]["copies_regained"]["n"] == 4


PLAIN = '[[arms]]\nname = "plain"\n'
SAME = '[[arms]]\nname = "same"\n"sample.guidance" = 1.0\n'


def test_an_engine_rechecks_after_all_arms_are_done(world, tmp_path, monkeypatch):
    toml = write_toml(world, tmp_path)
    replace(monkeypatch)
    phases = []

    def engine(function, planned):
        phases.append((function.__name__, [arm.name for arm in planned]))
        for arm in reversed(planned):
            function(arm)

    found = experiment.run(toml, tmp_path / "out", settings=["audit.general=0"], engine=engine)
    assert phases == [("run_arm", ["plain", "noised", "short"]), ("recheck_arm", ["noised", "short"])]
    assert arm(found, "noised")["estimates"]["copies_regained"]["n"] == 4
