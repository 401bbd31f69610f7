"""Experiments: a grid of arms, run once and kept, in one table and one report whose truth is known.

The models here copy by rule: training and generating are replaced by functions that write what the real ones write, so
that every number in the table has one right value.
"""

from __future__ import annotations

import dataclasses
import functools
import json
import pickle
import re
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from copyscope import stats
from copyscope.data.corpus import Corpus
from copyscope.errors import InputError, PartError
from copyscope.experiment import arm as one_arm
from copyscope.experiment import plan, run
from copyscope.imaging import images
from copyscope.report.experiment import render
from tests import worlds

pytest_plugins = ("tests.browser",)
N = 30
TOML = """
name = "small"
about = "What copying depends on."
[data]
train = "{train}"
held_out = "{held_out}"
size = 64
[train]
steps = 40
sample_every = {sample_every}
[sample]
n_images = 30
[audit]
protocol = "sscd-distilled"
[grid]
"train.conditioning" = ["fixed", "instance"]
"train.duplication" = ["none", "full"]
"""


@pytest.fixture
def toml(world, tmp_path):
    return write_toml(world, tmp_path)


def write_toml(world, folder, sample_every=0):
    path = folder / "small.toml"
    path.write_text(TOML.format(train=world.train, held_out=world.held_out, sample_every=sample_every))
    return path


def fake_train(train_set, out, recipe, *, watch=None, progress=None):
    """A run folder; every fifth image is a duplicated one, watched twice on the way."""
    out.mkdir(parents=True, exist_ok=True)
    duplicated = [recipe.duplication != "none" and row % 5 == 0 for row in range(len(train_set))]
    pq.write_table(pa.table({"id": train_set.ids, "duplicated": duplicated}), out / "train.parquet")
    history = [{"step": step, "loss": 1.0, **dict.fromkeys(CURVE)} for step in (10, 20, 30, 40)]
    if watch:
        folder = out / "samples" / "last"
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "0.png").write_bytes(train_set.read(0))
        for row in history[1::2]:
            seen = watch(folder, ["a caption"], row["step"])
            row |= dict(zip(CURVE, (seen.value, seen.low, seen.high, seen.n), strict=True))
    pq.write_table(pa.Table.from_pylist(history, HISTORY), out / "history.parquet")
    (out / "made.json").write_text(json.dumps({"from": train_set.origin, "told": recipe.conditioning}))
    if progress:
        progress("training", 40, 40)
    return SimpleNamespace(summary={"steps": 40, "seconds": 6.0})


CURVE = ("replication", "replication_low", "replication_high", "replication_n")
HISTORY = pa.schema(
    {"step": pa.int64(), "loss": pa.float64()} | dict.fromkeys(CURVE[:3], pa.float64()) | {CURVE[3]: pa.int64()}
)


def copied_by_rule(conditioning, index, duplicated):
    """Which images are copies of the one that prompted them: told by captions, one in three, and all duplicated."""
    return conditioning == "instance" and (index % 3 == 0 or duplicated)


def fake_generate(model, out, recipe, *, captions=None, ids=None, nearest=None, trust_parts=False, progress=None):
    """By `copied_by_rule`; mitigations take every second copy away. Of held-out captions each fourth image is a copy,
    whatever is done. In a recheck other words bring back the copies of every second prompt, and a noised embedding
    once that of another image."""
    if (out / "metadata.jsonl").is_file():
        return Corpus.open(out)
    trained = pq.read_table(model / "train.parquet").to_pylist()
    made = json.loads((model / "made.json").read_text())
    training, conditioning = Corpus.open(made["from"]), made["told"]
    duplicated = {row["id"]: row["duplicated"] for row in trained}
    folder = worlds._Folder(out)
    for index in range(recipe.n_images):
        source = ids[index] if ids else None if captions else trained[(index + recipe.seed) % len(trained)]["id"]
        copied = source
        if out.parent.name == "recheck":
            kept = {"seed": False, "paraphrase": index % 4 == 0, "noise": index == 3}[out.name]
            copied = trained[0]["id"] if out.name == "noise" else source
        elif captions:
            kept, copied = index % 4 == 0, trained[index]["id"]
        else:
            kept = copied_by_rule(conditioning, index, duplicated[source])
            kept &= index % 2 == 0 or not recipe.mitigations
        if kept:
            row = training.ids.index(copied)
            image = worlds.light_copy(images.decode(training.read(row)), np.random.default_rng(row))
        else:
            image = np.random.default_rng([recipe.seed, index]).integers(0, 256, (64, 64, 3), dtype=np.uint8)
        folder.add(image, prompt=captions[index] if captions else conditioning, seed=index, source_id=source)
    folder.close()
    return Corpus.open(out)


@dataclasses.dataclass
class QuickAudit:
    """What an experiment asks of an audit, for tests of all else: every third image is a copy of its source."""

    generated: Corpus

    @property
    def summary(self):
        told = {
            "protocol": {"name": "sscd-288", "descriptor": "sscd"},
            "calibration": {"sentence": "On nothing.", "n": 100},
        }
        return {"verdict": {"answer": "copies"}, "n_generated": N, "n_missing": 0, "n_train": 60} | told

    @property
    def tables(self):
        made = self.generated.table.select(["id", "prompt", "source_id"]).rename_columns(["id", "prompt", "match"])
        copied = np.arange(len(made)) % 3 == 0
        scores = {"similarity": copied * 0.9, "combined": copied * 0.9, "p_value": np.where(copied, 1, 101) / 101}
        for name, column in ({"copied": copied} | scores).items():
            made = made.append_column(name, pa.array(column))
        made = made.append_column("error", pa.nulls(len(made), pa.string()))
        return {
            "generated": made,
            "groups": pa.table({"id": pa.array([], pa.string()), "group": pa.array([], "int64")}),
        }

    def save(self, folder):
        folder.mkdir()
        (folder / "summary.json").write_text(json.dumps(self.summary))


def quick_text(captions):
    """Vectors [n 8] of captions that no model made."""
    return np.array([np.random.default_rng(list(caption.encode())).normal(size=8) for caption in captions])


@pytest.fixture
def tower(monkeypatch):
    """The two functions of the diffusion tower, replaced, and a quick audit; the list says what was called."""
    calls = []

    def counted(name, function):
        @functools.wraps(function)
        def call(*arguments, **options):
            calls.append(name)
            return function(*arguments, **options)

        return call

    monkeypatch.setattr("copyscope.diffusion.training.train.train", counted("train", fake_train))
    monkeypatch.setattr("copyscope.diffusion.generate.generate", counted("generate", fake_generate))
    monkeypatch.setattr("copyscope.detection.audit.audit", lambda generated, *rest, **options: QuickAudit(generated))
    monkeypatch.setattr("copyscope.experiment.arm.text_vectors", quick_text)
    return calls


@pytest.fixture(scope="module")
def done(world, tmp_path_factory):
    """A whole experiment with watched training and real audits, and its folder."""
    folder = tmp_path_factory.mktemp("done")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("copyscope.report.render", lambda audit: "an arm's own page takes a second to draw")
        patch.setattr("copyscope.diffusion.training.train.train", fake_train)
        patch.setattr("copyscope.diffusion.generate.generate", fake_generate)
        patch.setattr("copyscope.experiment.arm.text_vectors", quick_text)
        found = run.run(write_toml(world, folder, 20), folder / "out", settings=["seeds=[1]"])
    return found, folder / "out"


def arms(found):
    return {row["arm"]: row for row in found.table.to_pylist()}


def expected(conditioning, duplication):
    """Flags copied [n] and duplicated [n] by the rule, of seed 1."""
    duplicated = np.array([duplication == "full" and (index + 1) % 5 == 0 for index in range(N)])
    return np.array([copied_by_rule(conditioning, i, duplicated[i]) for i in range(N)]), duplicated


def test_the_table_holds_the_rates_of_the_rule(done):
    rows = arms(done[0])
    assert len(rows) == 4
    for conditioning in ("fixed", "instance"):
        for duplication in ("none", "full"):
            row = rows[f"{conditioning}-{duplication}-seed1"]
            copied, duplicated = expected(conditioning, duplication)
            assert (row["train.conditioning"], row["train.duplication"], row["seed"]) == (conditioning, duplication, 1)
            assert row["replication_rate"] == row["own_copy_rate"] == pytest.approx(copied.mean())
            assert row["replication_rate_n"] == N
            assert row["replication_rate_low"] <= row["replication_rate"] < row["replication_rate_high"]
            assert row["replication_rate_duplicated_n"] == duplicated.sum()
            if duplicated.any():
                assert row["replication_rate_duplicated"] == pytest.approx(copied[duplicated].mean())
            assert row["replication_rate_others"] == pytest.approx(copied[~duplicated].mean())
            assert (row["steps"], row["train_seconds"], row["n_train"], row["error"]) == (40, 6.0, 60, None)
            assert 0 < row["held_out_p95"] < 1
            assert row["similarity_mean_n"] == N


def test_contrasts_are_paired_and_each_key_is_compared_with_its_first_value(done):
    table = done[0].tables["contrasts"].to_pylist()
    assert {(row["from"], row["to"]) for row in table} == {("fixed", "instance"), ("none", "full")}
    found = {(row["measure"], row["to"], row["at"]): row for row in table}
    assert len([key for key in found if key[0] == "replication_rate"]) == 4
    one = found["replication_rate", "instance", "none"]
    assert (one["difference"], one["n"]) == (pytest.approx(1 / 3), N)
    assert one["p_value"] == pytest.approx(2 / 2**10)
    assert 0 < one["low"] < one["difference"] < one["high"]
    nothing = found["replication_rate", "full", "fixed"]
    assert (nothing["difference"], nothing["p_value"]) == (0, 1)
    assert nothing["low"] < 0 < nothing["high"]
    twice = found["replication_rate_duplicated", "full", "instance"]
    (copied, duplicated), (before, _) = expected("instance", "full"), expected("instance", "none")
    assert twice["n"] == duplicated.sum()
    assert twice["difference"] == pytest.approx(copied[duplicated].mean() - before[duplicated].mean())


def test_several_seeds_are_compared_each_and_on_average(toml, tower, tmp_path):
    found = run.run(toml, tmp_path / "out", settings=["seeds=[0, 1]", "grid.train.duplication=['none']"])
    rows = [row for row in found.tables["contrasts"].to_pylist() if row["measure"] == "similarity_mean"]
    assert [(row["seed"], row["n"]) for row in rows] == [(0, N), (1, N), (None, 2)]
    assert "fixed · none · seed 1" in render(found)
    assert found.summary["sentence"] == "33.3 % of the images are copies in every arm."
    assert found.summary["calibration"] == "On nothing."


def test_curves_and_sheets_are_of_every_arm(done):
    found, _ = done
    curves = found.tables["curves"].to_pylist()
    assert [row["step"] for row in curves if row["arm"] == "fixed-none-seed1"] == [20, 40]
    assert {row["value"] for row in curves} == {1.0}
    sheets = found.tables["sheets"].to_pylist()
    assert len(sheets) == 4 * one_arm.SHEET
    first = [row for row in sheets if row["arm"] == "instance-none-seed1"]
    assert [row["id"] for row in first] == [f"{index:04d}.png" for index in range(12)]
    assert [row["copied"] for row in first] == [index % 3 == 0 for index in range(12)]
    assert images.decode(first[0]["made"]).shape == images.decode(first[0]["real"]).shape == (64, 64, 3)


def test_the_summary_is_plain_and_what_is_saved_is_loaded(done):
    found, folder = done
    assert json.loads(json.dumps(found.summary, allow_nan=False)) == found.summary
    again = run.Experiment.load(folder)
    assert again.summary == found.summary
    assert again.table.equals(found.table)
    assert again.summary["sentence"].startswith("From 0.0 % (fixed · none")
    assert "instance · full" in again.summary["sentence"]
    assert found.summary["recipe"]["seeds"] == [1]
    assert found.summary["recipe"]["provenance"]["versions"]["copyscope"]


def test_a_second_run_does_nothing_and_says_the_same(toml, tower, tmp_path):
    first = run.run(toml, tmp_path / "out")
    assert tower == ["train", "generate"] * 4
    second = run.run(toml, tmp_path / "out")
    assert tower == ["train", "generate"] * 4
    assert first.table.equals(second.table)
    assert [row["state"] for row in run.status(toml, tmp_path / "out")] == ["done"] * 4


def test_what_was_stopped_goes_on_with_the_arm_it_was_in(toml, tower, tmp_path, monkeypatch):
    def stop(*arguments, **options):
        if len(tower) > 2:
            raise KeyboardInterrupt
        tower.append("generate")
        return fake_generate(*arguments, **options)

    with monkeypatch.context() as patch:
        patch.setattr("copyscope.diffusion.generate.generate", stop)
        with pytest.raises(KeyboardInterrupt):
            run.run(toml, tmp_path / "out")
    states = [row["state"] for row in run.status(toml, tmp_path / "out")]
    assert states == ["done", "under way", "to do", "to do"]
    partial = run.collect(plan.plan(toml, tmp_path / "out"))
    assert [row["answer"] is None for row in partial.table.to_pylist()] == [False, True, True, True]
    assert partial.summary["sentence"].startswith("1 of 4 arms are finished.")
    assert "not finished" in render(partial)
    tower.clear()
    assert run.run(toml, tmp_path / "out").summary["n_done"] == 4
    assert tower == ["train", "generate"] * 3


def test_more_values_and_seeds_keep_the_arms_there_are(toml, tower, tmp_path):
    run.run(toml, tmp_path / "out", settings=["grid.train.duplication=['none']"])
    tower.clear()
    assert run.run(toml, tmp_path / "out", settings=["seeds=[0, 3]"]).summary["n_done"] == 8
    assert tower == ["train", "generate"] * 6


def test_other_values_are_refused_before_anything_runs(toml, tower, tmp_path):
    run.run(toml, tmp_path / "out", settings=["grid.train.duplication=['none']"])
    tower.clear()
    with pytest.raises(InputError, match=r"begun with train.steps = 40, and now it is 50"):
        run.run(toml, tmp_path / "out", settings=["train.steps=50"])
    assert tower == []


def test_an_arm_that_fails_is_a_row_and_is_tried_again(toml, tower, tmp_path, monkeypatch):
    def fail(train_set, out, recipe, **options):
        if recipe.duplication == "full":
            raise InputError("The loss is not a number.\nLower the learning rate")
        return fake_train(train_set, out, recipe, **options)

    with monkeypatch.context() as patch:
        patch.setattr("copyscope.diffusion.training.train.train", fail)
        found = run.run(toml, tmp_path / "out")
    assert found.summary["n_failed"] == 2
    failed = arms(found)["fixed-full-seed0"]
    assert failed["error"].startswith("The loss is not a number")
    assert failed["replication_rate"] is None
    assert "The loss is not a number" in render(found)
    assert [row["state"] for row in run.status(toml, tmp_path / "out")] == ["done", "failed", "done", "failed"]
    states = []

    def look(*arguments, **options):
        states.append([row["state"] for row in run.status(toml, tmp_path / "out")])
        return fake_train(*arguments, **options)

    monkeypatch.setattr("copyscope.diffusion.training.train.train", look)
    found = run.run(toml, tmp_path / "out")
    assert (found.summary["n_failed"], found.summary["n_done"]) == (0, 4)
    assert states[0] == ["done", "under way", "done", "failed"]


def test_where_every_arm_fails_the_first_error_is_told(toml, tmp_path, monkeypatch):
    def fail(*arguments, **options):
        raise InputError("The loss is not a number.\nLower the learning rate")

    monkeypatch.setattr("copyscope.diffusion.training.train.train", fail)
    with pytest.raises(InputError, match=r"fixed-none-seed0: The loss is not a number"):
        run.run(toml, tmp_path / "out")


def test_an_engine_runs_the_arms_in_any_order(toml, tower, tmp_path):
    def backwards(function, planned):
        for arm in reversed(planned):
            function(arm)

    found = run.run(toml, tmp_path / "out", engine=backwards)
    plain = run.run(toml, tmp_path / "other")
    left = ["train_seconds", "seconds", *(f"seconds_per_image{end}" for end in ("", "_low", "_high"))]
    assert found.table.drop_columns(left).equals(plain.table.drop_columns(left))


def test_an_arm_can_be_sent_to_another_process(toml, tmp_path):
    arm = plan.plan(toml, tmp_path / "out").arms[1]
    function, sent = pickle.loads(pickle.dumps((run.run_arm, arm)))
    assert (function, sent) == (run.run_arm, arm)


def test_progress_names_the_arm(toml, tower, tmp_path):
    told = []
    run.run(toml, tmp_path / "out", progress=lambda label, done, total: told.append(label))
    assert "instance-full-seed0: training" in told


def test_unreadable_images_count_against_the_model(toml, tmp_path, monkeypatch):
    def torn(*arguments, **options):
        made = fake_generate(*arguments, **options)
        (Path(made.origin) / "0000.png").write_bytes(b"")
        return Corpus.open(made.origin)

    monkeypatch.setattr("copyscope.diffusion.training.train.train", fake_train)
    monkeypatch.setattr("copyscope.diffusion.generate.generate", torn)
    settings = ["grid={}", "train.conditioning=instance"]
    row = run.run(toml, tmp_path / "out", settings=settings).table.to_pylist()[0]
    assert (row["n_missing"], row["replication_rate_n"]) == (1, N - 1)
    assert row["replication_rate"] == row["own_copy_rate"] == pytest.approx(9 / 29)
    assert row["replication_rate_high"] == stats.proportion(9, N - 1, missing=1).high


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        (["train.stepz=5"], r"\[train\] TrainRecipe has no setting 'stepz'.\nDid you mean 'steps'"),
        (["data.distinct=2"], r"\[data\] distinct must be a similarity"),
        (["audit.fdr=many"], r"\[audit\] fdr must be a number"),
        (["grid.train.stepz=[1]"], r"\[train\] TrainRecipe has no setting 'stepz'"),
        (["grid.audit.fdr=[0.1]"], "The grid cannot vary 'audit.fdr'"),
        (["grid.train.steps=5"], "grid.train.steps must be a list of different values, not 5"),
        (["grid.train.steps=[5, 5]"], "grid.train.steps must be a list of different values"),
        (["seeds=[0, 0]"], "seeds must be different numbers"),
        (["seeds=[]"], "seeds must be different numbers"),
        (["tarin.steps=5"], "no setting 'tarin'.\nDid you mean 'train'"),
    ],
)
def test_what_is_wrong_in_the_file_is_named(toml, settings, said):
    with pytest.raises(InputError, match=said):
        plan.plan(toml, settings=settings)


@pytest.mark.parametrize("setting", ["audit.protocol=sscdd", "train.model=small_nuet"])
def test_an_unknown_part_is_told_before_the_night(toml, setting):
    with pytest.raises(PartError, match="Did you mean"):
        plan.plan(toml, settings=[setting])


def test_arms_have_folders_of_their_own(toml, tmp_path):
    settings = ["grid={}", "grid.train.model=['small_unet', 'small_unet(size=32)', 'small_unet(size=48)']"]
    slugs = [arm.slug for arm in plan.plan(toml, settings=[*settings, "grid.train.flip=[false, true]"]).arms]
    assert len(set(slugs)) == 6
    assert slugs[1] == "small_unet-flip=true-seed0"
    assert all(re.fullmatch(r"[A-Za-z0-9._=+-]+", slug) for slug in slugs)
    settings = ["grid={}", "grid.train.class_column=['a b', 'a/b', 'a_b']"]
    assert len({arm.slug for arm in plan.plan(toml, settings=settings).arms}) == 3
    alone = plan.plan(toml, settings=["grid={}"]).arms
    assert [(arm.slug, arm.label, arm.values) for arm in alone] == [("seed0", "the only arm", {})]
    assert plan.plan(toml).out == Path("runs/small")


def test_seeds_reach_training_and_sampling(toml):
    arms = plan.plan(toml, settings=["seeds=[5]", "grid.sample.steps=[3, 4]"]).arms
    assert {(arm.train.seed, arm.sample.seed, arm.data.seed) for arm in arms} == {(5, 5, 0)}
    assert [arm.sample.steps for arm in arms[:2]] == [3, 4]


def test_a_grid_over_the_data_prepares_each_and_pairs_nothing(toml, tower, tmp_path):
    settings = ["grid={}", "grid.data.n_train=[20, 40]"]
    planned = plan.plan(toml, tmp_path / "out", settings)
    assert [arm.images.name for arm in planned.arms] == ["data-n_train=20", "data-n_train=40"]
    found = run.run(toml, tmp_path / "out", settings=settings)
    assert [len(Corpus.open(arm.images / "train")) for arm in planned.arms] == [20, 40]
    assert [row["data.n_train"] for row in found.table.to_pylist()] == [20, 40]
    assert found.tables["contrasts"].num_rows == 0


def test_the_page_is_a_pure_function_and_shows_hostile_text_as_text(done):
    found, _ = done
    assert render(found) == render(found)
    summary = json.loads(json.dumps(found.summary))
    summary["name"] = summary["arms"][0]["label"] = "<script>alert(1)</script>"
    page = render(dataclasses.replace(found, summary=summary))
    assert "<script>alert(1)" not in page
    assert "&lt;script&gt;alert(1)" in page


@pytest.mark.browser
@pytest.mark.parametrize(("size", "scheme"), [("desktop", "light"), ("phone", "dark")])
def test_the_report_opens_in_a_browser(done, visit, size, scheme):
    page = visit(done[1] / "report.html", size, scheme).page
    assert page.locator("h1").inner_text().startswith("From 0.0 % (fixed · none")
    assert page.locator("#arms tbody tr").count() == 4
    assert page.locator("#arms svg.plot, #curves svg.plot").count() == 2
    assert page.locator("#samples table").count() == 4
    assert page.locator("#samples img").count() == 4 * 2 * one_arm.SHEET
    assert page.evaluate("[...document.images].every(image => image.complete && image.naturalWidth > 0)")
    assert page.evaluate("document.documentElement.scrollWidth") == page.viewport_size["width"]


def test_the_experiments_of_the_project_are_valid(tmp_path):
    folder = Path(__file__).parents[2] / "experiments"
    files = sorted(folder.glob("*.toml"))
    assert files
    for path in files:
        planned = plan.plan(path, tmp_path)
        assert planned.recipe.name == path.stem
        assert path.read_text().startswith("# copyscope experiment run experiments/")
