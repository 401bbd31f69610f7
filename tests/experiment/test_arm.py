"""Arms of a list: shared runs, images of held-out captions, text-image agreement, seconds an image, comparisons.

The models copy by the rules of `tests.experiment.test_run`: every number that is asserted has one right value.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from copyscope import machine, stats
from copyscope.data.corpus import Corpus
from copyscope.detection.embedding import embed
from copyscope.detection.verdict import quality
from copyscope.errors import InputError
from copyscope.experiment import arm as arms
from copyscope.experiment import plan, run
from tests.experiment.test_run import N, fake_generate, fake_train, quick_text
from tests.json_types import check
from tests.test_docs import documented

TOML = """
name = "listed"
[data]
train = "{train}"
held_out = "{held_out}"
size = 64
[train]
steps = 40
[sample]
n_images = 30
[audit]
protocol = "sscd-distilled"
general = 8
recheck = 4
[[arms]]
name = "plain"
[[arms]]
name = "noised"
"sample.mitigations" = ["gaussian_noise(scale=0.1)"]
[[arms]]
name = "short"
"train.steps" = 20
"""


def write_toml(world, folder):
    path = folder / "listed.toml"
    path.write_text(TOML.format(train=world.train, held_out=world.held_out))
    return path


@pytest.fixture
def toml(world, tmp_path):
    return write_toml(world, tmp_path)


@pytest.fixture
def fakes(monkeypatch):
    """The towers replaced, but for audits; the list says which runs were trained and which folders of images made."""
    return replace(monkeypatch)


def replace(patch):
    made = []

    def train(train_set, out, recipe, **options):
        if not (out / "made.json").is_file():
            made.append(out.name)
        return fake_train(train_set, out, recipe, **options)

    def generate(model, out, recipe, **options):
        if not (out / "metadata.jsonl").is_file():
            made.append(f"{out.parent.name}/{out.name}")
        return fake_generate(model, out, recipe, **options)

    patch.setattr("copyscope.diffusion.training.train.train", train)
    patch.setattr("copyscope.diffusion.generate.generate", generate)
    patch.setattr("copyscope.experiment.arm.text_vectors", quick_text)
    patch.setattr("copyscope.report.render", lambda audit: "an arm's own page takes a second to draw")
    return made


@pytest.fixture(scope="module")
def done(world, tmp_path_factory):
    """(result, its folder, what was made) of the whole experiment, with real audits."""
    folder = tmp_path_factory.mktemp("listed")
    with pytest.MonkeyPatch.context() as patch:
        made = replace(patch)
        found = run.run(write_toml(world, folder), folder / "out", settings=["train.sample_every=20"])
    return found, folder / "out", made


def rows(found):
    return {row["name"]: row for row in found.summary["arms"]}


def test_arms_that_differ_in_sampling_only_are_trained_once(done):
    found, out, made = done
    runs = {name: row["run"] for name, row in rows(found).items()}
    assert runs["plain"] == runs["noised"] != runs["short"]
    assert [name for name in made if "/" not in name] == [runs["plain"], runs["short"]]
    assert sorted(path.name for path in (out / "runs").iterdir() if path.is_dir()) == sorted({*runs.values()})
    assert not (out / "arms" / "plain-seed0" / "run").exists()


def test_the_table_holds_the_values_of_all_arms(done):
    table = done[0].table
    assert table["name"].to_pylist() == ["plain", "noised", "short"]
    assert table["sample.mitigations"].to_pylist() == [None, '["gaussian_noise(scale=0.1)"]', None]
    assert table["train.steps"].to_pylist() == [None, None, 20]
    rates = dict(zip(table["name"].to_pylist(), table["replication_rate"].to_pylist(), strict=True))
    assert rates == {name: pytest.approx(count / N) for name, count in (("plain", 10), ("noised", 5), ("short", 10))}


def test_every_arm_is_compared_with_the_first_listed_one(done):
    contrasts = [row for row in done[0].summary["contrasts"] if row["measure"] == "replication_rate"]
    assert [(row["key"], row["from"], row["to"], row["at"], row["seed"]) for row in contrasts] == [
        ("arm", "plain", "noised", "", 0),
        ("arm", "plain", "short", "", 0),
    ]
    assert [(row["difference"], row["n"]) for row in contrasts] == [(pytest.approx(-5 / N), N), (0, N)]
    assert contrasts[0]["p_value"] == pytest.approx(2 / 2**5)


def test_contrasts_of_the_grid_stay_within_an_arm(toml, fakes, tmp_path):
    settings = ["grid.train.duplication=['none', 'full']", "seeds=[0, 1]", "audit.general=0", "audit.recheck=0"]
    settings += ["arms=[{name='plain'}, {name='noised', sample.mitigations=['gaussian_noise(scale=0.1)']}]"]
    found = run.run(toml, tmp_path / "out", settings=settings)
    table = [row for row in found.summary["contrasts"] if row["measure"] == "replication_rate"]
    said = {(row["key"], row["from"], row["to"], row["at"], row["seed"]) for row in table}
    by_arm = {("arm", "plain", "noised", cell, seed) for cell in ("none", "full") for seed in (0, 1, None)}
    by_grid = {
        ("train.duplication", "none", "full", name, seed) for name in ("plain", "noised") for seed in (0, 1, None)
    }
    assert said == by_arm | by_grid
    assert len(table) == 12


def test_held_out_captions_are_asked_for_in_order_and_audited(done):
    found, out, _ = done
    made = Corpus.open(out / "arms" / "noised-seed0" / "general")
    held_out = Corpus.open(out / "data" / "held-out")
    assert made.prompts == [captions[0] for captions in held_out.captions[:8]]
    assert "source_id" not in made.table.column_names
    for row in found.summary["arms"]:
        estimates = row["estimates"]
        assert estimates["general_replication_rate"] == stats.proportion(2, 8).as_dict()
        assert estimates["general_replication_rate_fixed"] == stats.proportion(2, 8).as_dict()
        assert estimates["general_similarity_mean"]["n"] == estimates["general_similarity_p95"]["n"] == 8
        audit = json.loads((out / "arms" / row["arm"] / "general-audit" / "summary.json").read_text())
        similarity = audit["similarity"]["estimates"]
        assert estimates["general_above_threshold"] == similarity["above_threshold"]
        assert estimates["general_similarity_mean"] == similarity["mean"]
        assert estimates["general_diversity_generated"] == audit["quality"]["diversity_generated"]


def test_quality_of_held_out_captions_is_against_all_held_out_images(done):
    found, out, _ = done
    made, real = (
        embed.embed(out / folder, "sscd-distilled").vectors for folder in ("arms/plain-seed0/general", "data/held-out")
    )
    assert len(real) == 120
    wanted = quality.quality(made, real, "sscd-distilled")
    estimates = rows(found)["plain"]["estimates"]
    for name in ("frechet_distance", "precision", "recall"):
        assert estimates[f"general_{name}"] == getattr(wanted, name).as_dict()
    assert estimates["general_frechet_distance"]["value"] != estimates["frechet_distance"]["value"]


def test_prompts_of_ones_own_have_no_source(toml, fakes, tmp_path, monkeypatch):
    def generate(model, out, recipe, **options):
        return fake_generate(model, out, recipe, captions=["a red disc"] * N, **options)

    monkeypatch.setattr(
        "copyscope.diffusion.generate.generate", lambda *asked, captions=None, **options: generate(*asked)
    )
    settings = ["arms=[]", "audit.recheck=0", "audit.general=0", "sample.prompts=text:a red disc"]
    row = run.run(toml, tmp_path / "out", settings=settings).summary["arms"][0]["estimates"]
    assert (row["replication_rate"]["n"], row["own_rate"]["n"]) == (N, 0)


def test_too_few_held_out_captions_are_told_before_anything_runs(toml, fakes, tmp_path):
    with pytest.raises(InputError, match=r"asks for 121 held-out captions, and .*held-out has 120"):
        run.run(toml, tmp_path / "out", settings=["audit.general=121"])
    assert fakes == []
    assert not (tmp_path / "out" / "arms").exists()


def test_held_out_images_without_a_caption_are_passed_over(tmp_path, world):
    planned = plan.plan(write_toml(world, tmp_path), tmp_path / "out", ["audit.general=2"])
    held_out = Corpus.open(world.held_out).take([0, 1, 2, 3])
    held_out = held_out.with_column("captions", [[], ["  "], ["a", "b"], ["c"]])
    assert arms.general_prompts(planned.arms[0], held_out) == ["a", "c"]
    with pytest.raises(InputError, match="has 1"):
        arms.general_prompts(planned.arms[0], held_out.take([0, 2]))


def test_agreement_is_of_a_head_that_saw_other_images(toml, fakes, tmp_path, monkeypatch):
    seen = []

    def text(captions):
        seen.append(list(captions))
        return quick_text(captions)

    monkeypatch.setattr("copyscope.experiment.arm.text_vectors", text)
    settings = ["arms=[]", "audit.recheck=0", "audit.general=56"]
    row = run.run(toml, tmp_path / "out", settings=settings).summary["arms"][0]["estimates"]
    captions = [some[0] for some in Corpus.open(tmp_path / "out" / "data" / "held-out").captions]
    assert [len(some) for some in seen] == [64, N, 56, 56, 56]
    assert (seen[0], seen[2], seen[3]) == (captions[56:], captions[:56], captions[28:56] + captions[:28])
    assert seen[4] == seen[2]
    assert (row["agreement"]["n"], row["general_agreement"]["n"]) == (N, 56)
    assert row["agreement"]["low"] <= row["agreement"]["value"] <= row["agreement"]["high"]
    few = run.run(toml, tmp_path / "few", settings=[*settings, "audit.general=57"])
    assert few.summary["arms"][0]["estimates"]["agreement"] == arms.NOTHING
    assert few.summary["arms"][0]["estimates"]["general_agreement"] == arms.NOTHING


def test_what_is_real_is_measured_once_beside_the_data(done):
    found, out, _ = done
    kept = json.loads((out / "data" / "reference.json").read_text())
    rows = [row["estimates"] for row in found.summary["arms"]]
    assert all({name: row[name] for name in kept} == kept for row in rows)
    train, real = (embed.embed(out / "data" / name, "sscd-distilled").vectors for name in ("train", "held-out"))
    by_hand = quality.quality(train[:8], real, "sscd-distilled")
    assert kept["real_frechet_distance"]["value"] == pytest.approx(by_hand.frechet_distance.value)
    assert kept["real_agreement"]["n"] == kept["shuffled_agreement"]["n"] == 8


def test_agreement_tells_images_of_their_captions_from_others(done, monkeypatch):
    """Text vectors that are the images' own, turned: then real images agree with their captions, random ones not."""
    real = embed.embed(done[1] / "data" / "held-out", "sscd-distilled")
    turn = np.linalg.qr(np.random.default_rng(0).normal(size=(real.vectors.shape[1],) * 2))[0]
    known = {captions[0]: vector @ turn for captions, vector in zip(real.corpus.captions, real.vectors, strict=True)}
    monkeypatch.setattr(arms, "text_vectors", lambda captions: np.array([known[caption] for caption in captions]))
    arm = plan.plan(done[1].parent / "listed.toml", done[1]).arms[0]
    head = arms._head(arm, real)
    held_out = Corpus.open(done[1] / "data" / "held-out").take(range(8))
    shown = embed.embed(held_out, "sscd-distilled")
    noise = embed.embed(done[1] / "arms" / "plain-seed0" / "general", "sscd-distilled")
    assert arms._agreement(head, shown)["low"] > arms._agreement(head, noise)["high"]


def test_text_vectors_are_means_over_the_tokens_that_count():
    from copyscope.diffusion.text.encoder import TextEncoder

    captions = ["a red disc", "a blue square on sand, number 12", "a red disc"]
    found = arms.text_vectors(captions)
    states = TextEncoder().encode(captions)
    for row, vector in enumerate(found):
        np.testing.assert_allclose(vector, states.text[row][states.mask[row]].numpy().mean(axis=0), atol=1e-5)
    assert (found[0] == found[2]).all()


def test_seconds_are_of_the_images_made_here(toml, fakes, tmp_path, monkeypatch):
    settings = ["arms=[]", "audit.recheck=0"]

    def slow(model, out, recipe, **options):
        time.sleep(1 if (out / "metadata.jsonl").is_file() else 0.3)
        return fake_generate(model, out, recipe, **options)

    monkeypatch.setattr("copyscope.diffusion.generate.generate", slow)
    first = run.run(toml, tmp_path / "out", settings=settings).summary["arms"][0]["estimates"]
    found = first["seconds_per_image"]
    assert found["n"] == N + 8
    assert 0.6 / (N + 8) < found["value"] < 5 / (N + 8)
    assert 0 <= found["low"] <= found["value"] < found["high"]
    folder = tmp_path / "out" / "arms" / "seed0"
    (folder / "arm.json").unlink()
    again = run.run(toml, tmp_path / "out", settings=settings).summary["arms"][0]["estimates"]
    assert again["seconds_per_image"] == arms.NOTHING
    assert again | {"seconds_per_image": None} == first | {"seconds_per_image": None}
    (folder / "arm.json").unlink()
    shutil.rmtree(folder / "general")
    once = run.run(toml, tmp_path / "out", settings=settings).summary["arms"][0]["estimates"]
    assert (once["seconds_per_image"]["n"], once["seconds_per_image"]["low"]) == (8, None)
    assert once["seconds_per_image"]["value"] < 1 / 8


def test_a_real_model_goes_all_the_way(world, tmp_path, monkeypatch):
    """It has hardly any weights and copies nothing, so that the copies it is to bring back are made up."""
    toml = tmp_path / "real.toml"
    toml.write_text(TOML.format(train=world.train, held_out=world.held_out))
    monkeypatch.setattr(
        "copyscope.experiment.recheck.lost", lambda first, second, most: [(row["source_id"], row["prompt"]) for row in
                                                               second.to_pylist()][:most]
    )  # fmt: skip
    settings = ["train.model=small_unet(size=16, components=8, channels=(32,))", "train.batch_size=4"]
    settings += ["train.steps=2", "train.tracker=none", "sample.n_images=6", "sample.steps=2", "audit.recheck=2"]
    settings += ["arms=[{name='plain'}, {name='noised', sample.mitigations=['gaussian_noise(scale=0.1)']}]"]
    found = run.run(toml, tmp_path / "out", settings=settings)
    assert found.summary["n_failed"] == 0
    assert len([path for path in (tmp_path / "out" / "runs").iterdir() if path.is_dir()]) == 1
    noised = rows(found)["noised"]
    assert noised["recheck_error"] is None
    counts = {"replication_rate": 6, "general_replication_rate": 8, "agreement": 6, "general_agreement": 8}
    counts |= {"general_frechet_distance": 8, "seconds_per_image": 14, "copies_regained": 2}
    assert {name: noised["estimates"][name]["n"] for name in counts} == counts
    tried = Corpus.open(tmp_path / "out" / "arms" / "noised-seed0" / "recheck" / "noise")
    assert tried.table["recipe"][0].as_py().endswith("gaussian_noise(scale=0.1), gaussian_noise(scale=0.1)")
    again = run.run(toml, tmp_path / "out", settings=settings)
    assert again.table.equals(found.table)


def test_an_engine_of_many_hands_trains_a_shared_run_once_at_a_time(toml, fakes, tmp_path, monkeypatch):
    inside, most = [], []

    def train(train_set, out, recipe, **options):
        inside.append(out)
        most.append(inside.count(out))
        time.sleep(0.2)
        found = fake_train(train_set, out, recipe, **options)
        inside.remove(out)
        return found

    monkeypatch.setattr("copyscope.diffusion.training.train.train", train)
    at_once = threading.Barrier(3)

    def engine(function, planned):
        def start(arm):
            at_once.wait()
            function(arm)

        if function is run.run_arm:
            with ThreadPoolExecutor(3) as pool:
                list(pool.map(start, planned))

    settings = ["audit.general=0", "audit.recheck=0"]
    found = run.run(toml, tmp_path / "out", settings=settings, engine=engine)
    assert found.summary["n_done"] == 3
    assert most == [1, 1, 1]


def test_the_lock_of_a_killed_process_is_open(tmp_path):
    path = tmp_path / "runs" / ".run.lock"
    code = (
        f"import time, pathlib; from copyscope import machine\nwith machine.file_lock(pathlib.Path({str(path)!r})):\n"
    )
    code += " print('in', flush=True); time.sleep(600)"
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True) as holder:
        assert holder.stdout.readline() == "in\n"
        waiting = threading.Thread(target=lambda: machine.file_lock(path).__enter__(), daemon=True)
        waiting.start()
        waiting.join(0.3)
        waited = waiting.is_alive()
        holder.kill()
        waiting.join(20)
        assert (waited, waiting.is_alive()) == (True, False)


def test_a_failed_training_is_an_error_of_every_arm_that_shares_it(toml, fakes, tmp_path, monkeypatch):
    def fail(train_set, out, recipe, **options):
        if recipe.steps == 40:
            raise InputError("The loss is not a number.\nLower the learning rate")
        return fake_train(train_set, out, recipe, **options)

    monkeypatch.setattr("copyscope.diffusion.training.train.train", fail)
    found = run.run(toml, tmp_path / "out")
    errors = {name: row["error"] for name, row in rows(found).items()}
    assert errors["short"] is None
    assert errors["plain"] == errors["noised"] == "The loss is not a number.\nLower the learning rate"
    assert rows(found)["short"]["estimates"]["copies_regained"] == arms.NOTHING


def test_an_experiment_of_the_version_before_goes_on(toml, fakes, tmp_path):
    settings = ["arms=[]", "audit.general=0", "audit.recheck=0"]
    first = run.run(toml, tmp_path / "out", settings=settings)
    folder = tmp_path / "out" / "arms" / "seed0"
    (tmp_path / "out" / "runs" / first.summary["arms"][0]["run"]).rename(folder / "run")
    recipe = json.loads((folder / "recipe.json").read_text())
    for table, names in (("audit", ("general", "recheck", "attempts")), ("train", ("mitigations",))):
        for name in names:
            del recipe[table][name]
    (folder / "recipe.json").write_text(json.dumps(recipe))
    arm = json.loads((folder / "arm.json").read_text())
    arm["estimates"] = {name: one for name, one in arm["estimates"].items() if name not in arms.MEASURES}
    (folder / "arm.json").write_text(json.dumps(arm))
    fakes.clear()
    again = run.run(toml, tmp_path / "out", settings=settings)
    assert fakes == []
    assert again.table["replication_rate"].equals(first.table["replication_rate"])
    assert again.summary["arms"][0]["estimates"]["agreement"] == arms.NOTHING
    with pytest.raises(InputError, match=r"begun with audit.general = 0, and now it is 3"):
        run.run(toml, tmp_path / "out", settings=[*settings, "audit.general=3"])


def test_how_far_an_arm_is_counts_the_scenario_it_is_in(toml, fakes, tmp_path, monkeypatch):
    def stop(model, out, recipe, **options):
        if out.name == "general":
            out.mkdir()
            (out / "0000.png").write_bytes(b"")
            raise KeyboardInterrupt
        return fake_generate(model, out, recipe, **options)

    monkeypatch.setattr("copyscope.diffusion.generate.generate", stop)
    with pytest.raises(KeyboardInterrupt):
        run.run(toml, tmp_path / "out")
    states = run.status(toml, tmp_path / "out")
    assert (states[0]["state"], states[0]["detail"]) == ("under way", "1 of 8 images (general)")


def test_keys_and_estimates_are_those_documented(done):
    found, _, _ = done
    check("experiment", found.summary)
    assert found.summary["leaderboard"]
    names = list(found.summary["arms"][0]["estimates"])
    assert sorted(documented("### Estimates of an arm")) == sorted(names)
    assert set(found.summary["measures"]) <= set(names)
    assert all(list(row["estimates"]) == names for row in found.summary["arms"])
    assert json.loads(json.dumps(found.summary, allow_nan=False)) == found.summary
    assert run.Experiment.load(done[1]).table.equals(found.table)


def test_the_page_shows_listed_arms(done):
    page = (Path(done[1]) / "report.html").read_text()
    assert "<bdi>plain</bdi> → <bdi>noised</bdi>" in page


def test_an_arm_that_runs_out_of_memory_or_fails_otherwise_is_a_row_and_stops_no_other(
    toml, fakes, tmp_path, monkeypatch
):
    def fail(train_set, out, recipe, **options):
        if recipe.steps == 40:
            raise MemoryError
        return fake_train(train_set, out, recipe, **options)

    monkeypatch.setattr("copyscope.diffusion.training.train.train", fail)
    found = run.run(toml, tmp_path / "out")
    errors = {name: row["error"] for name, row in rows(found).items()}
    assert errors["short"] is None
    assert errors["plain"] == errors["noised"] == "out of memory"
    monkeypatch.setattr(arms, "audited", lambda *_: (_ for _ in ()).throw(RuntimeError("CUDA out of memory.\n2 GiB")))
    monkeypatch.setattr("copyscope.diffusion.training.train.train", fake_train)
    found = run.run(toml, tmp_path / "out")
    errors = {name: row["error"] for name, row in rows(found).items()}
    assert errors == {"short": None} | dict.fromkeys(("plain", "noised"), "RuntimeError: CUDA out of memory. 2 GiB")
