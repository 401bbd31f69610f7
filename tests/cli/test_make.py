"""Curate, train, generate and experiment as a user meets them: real ones, of a model with hardly any weights."""

from __future__ import annotations

import json
import subprocess
import sys

import numpy as np
import pytest

from copyscope.cli import main
from copyscope.data.corpus import Corpus
from copyscope.diffusion.run import Run
from copyscope.errors import InputError
from tests.cli.test_main import FAST, run
from tests.errors import without_accounts
from tests.json_types import check

MODEL = "small_unet(size=16, components=8, channels=(32,))"
TINY = [f"model={MODEL}", "steps=4", "batch_size=4", "checkpoint_every=2", "sample_steps=2", "tracker=none"]
SETTINGS = [word for setting in TINY for word in ("--set", setting)]


def output(*arguments):
    code, stdout, _ = run(*arguments)
    assert code == 0
    return json.loads(stdout)


# curate


def test_near_duplicates_are_dropped_or_down_weighted(world, tmp_path):
    groups = output("duplicates", world.train, *FAST, "--json")
    grouped, n_groups = groups["n_images_in_groups"], groups["n_groups"]
    assert grouped > n_groups > 0
    left = {"keep-one": 60 - grouped + n_groups, "remove": 60 - grouped, "down-weight": 60}
    for how, n in left.items():
        out = tmp_path / how
        made = output("curate", world.train, "-o", out, "--drop-duplicates", how, *FAST, "--json")
        assert (made["n"], made["n_missing"], made["layout"]) == (n, 0, "imagefolder")
        assert len(Corpus.open(out)) == n
    weights = Corpus.open(tmp_path / "down-weight").table["weight"].to_numpy()
    assert weights.sum() == pytest.approx(left["keep-one"])


def test_curate_counts_planted_duplicates_only_where_some_are_planted(world, tmp_path):
    _, plain, _ = run("curate", world.train, "-o", tmp_path / "plain")
    reads = "A trainer reads: caption from text, weight (how often to draw) from weight.\n"
    assert plain == f"60 images in {tmp_path / 'plain'}\n{reads}"
    _, planted, _ = run("curate", world.train, "-o", tmp_path / "planted", "--duplication", "full", "--rate", 0.1)
    assert planted.split("\n")[0].endswith("; 6 of them planted as duplicates (drawn 5 times as often)")


@pytest.mark.parametrize("layout", ["imagefolder", "kohya", "parquet", "webdataset"])
def test_planted_duplicates_survive_a_second_curate_and_training(world, tmp_path, layout):
    def facts(path):
        rows = Corpus.open(path).table.to_pylist()
        names = ("weight", "duplicated", "duplication", "duplication_factor", "captions")
        return sorted((row.get("original_id") or row["id"], *(row[name] for name in names)) for row in rows)

    once, again = tmp_path / "once", tmp_path / "again"
    options = ["--duplication", "partial", "--rate", 0.2, "--captions", "paraphrase", "--n-captions", 2]
    output("curate", world.train, "-o", once, *options, "--json")
    made = output("curate", once, "-o", again, "--layout", layout, "--json")
    assert (made["layout"], made["n_duplicated"]) == (layout, 12)
    assert facts(again) == facts(once)
    _, said, _ = run("curate", again, "-o", tmp_path / "third")
    assert "; 12 of them planted as duplicates\n" in said
    assert "partial duplicates take any caption from captions" in said
    if layout == "imagefolder":
        output("train", again, "-o", tmp_path / "run", *SETTINGS, "--json")
        trained = Run.open(tmp_path / "run").table.to_pylist()
        assert sorted((row["weight"], row["duplication"]) for row in trained) == [(1, "")] * 48 + [(5, "partial")] * 12


def test_captions_are_added_then_conditioned_then_duplicated(world, tmp_path):
    options = ["-n", 20, "--captions", "paraphrase", "--n-captions", 3, "--seed", 5, "--layout", "parquet"]
    options += ["--duplication", "partial", "--rate", 0.5, "--factor", 4]
    made = output("curate", world.train, "-o", tmp_path / "a", *options, "--json")
    assert made == {
        "schema": "copyscope.curate/1",
        "path": str(tmp_path / "a"),
        "kind": "parquet",
        "layout": "parquet",
        "reads": {"caption": "text", "captions": "captions", "weight": "weight"},
        "n": 20,
        "n_duplicated": 10,
        "n_dropped": 0,
        "n_groups": 0,
        "n_missing": 0,
    }
    check("curate", made)
    corpus = Corpus.open(tmp_path / "a")
    before = dict(zip(Corpus.open(world.train).ids, Corpus.open(world.train).captions, strict=True))
    for name, captions in zip(corpus.ids, corpus.captions, strict=True):
        assert captions[: len(before[name])] == before[name]
        assert len(captions) == len(before[name]) + 3
    assert sorted(set(corpus.table["weight"].to_pylist())) == [1, 4]
    code, stdout, _ = run("curate", world.train, "-o", tmp_path / "b", "--conditioning", "fixed")
    assert (code, stdout.split("\n")[0]) == (0, f"60 images in {tmp_path / 'b'}")
    assert {tuple(captions) for captions in Corpus.open(tmp_path / "b").captions} == {("An image",)}


def test_a_captioning_model_adds_what_it_sees(world, tmp_path, monkeypatch):
    from copyscope.diffusion.text import captioner

    seen = []

    def caption(self, pictures, n, *, seed):
        seen.append((self.folder, seed))
        return [[f"mean {int(np.mean(picture))}" for _ in range(n)] for picture in pictures]

    monkeypatch.setattr(captioner.Captioner, "caption", caption)
    (tmp_path / "blip").mkdir()
    output("curate", world.train, "-o", tmp_path / "a", "--captions", tmp_path / "blip", "-n", 5, "--json")
    assert len(set(seen)) == 5
    assert seen[0][0] == str(tmp_path / "blip")
    assert all(captions[-1].startswith("mean ") for captions in Corpus.open(tmp_path / "a").captions)


def test_unreadable_images_are_counted(world, tmp_path):
    folder = tmp_path / "set"
    folder.mkdir()
    (folder / "a.png").write_bytes((world.train / "0000.png").read_bytes())
    (folder / "b.png").write_bytes(b"")
    code, stdout, stderr = run("curate", folder, "-o", tmp_path / "a")
    assert code == 0
    assert stdout.startswith("1 images in")
    assert "1 image could not be read" in stderr


# train, generate


@pytest.fixture(scope="module")
def trained(world, tmp_path_factory):
    out = tmp_path_factory.mktemp("train") / "run"
    command = ["train", world.train, "-o", out, *SETTINGS, "--watch", 3, "--held-out", world.held_out, *FAST]
    return command, run(*command), out


def test_a_training_is_watched_and_says_where_the_model_is(trained):
    command, (code, stdout, stderr), out = trained
    assert code == 0
    assert f"4 steps on 60 images; the model is in {out / 'model'}" in stdout
    assert "replication while training" in stdout
    assert f"copyscope generate {out}" in stderr
    last = Run.open(out).history.to_pylist()[-1]
    assert (last["replication_n"], last["replication_low"]) == (3, 0)
    recipe = Run.open(out).recipe
    assert (recipe.model, recipe.steps, recipe.sample_images) == (MODEL, 4, 3)
    # The same again is read and not trained.
    before = (out / "summary.json").stat().st_mtime_ns
    check("train", json.loads((out / "summary.json").read_text()))
    assert output(*command, "--json") == json.loads((out / "summary.json").read_text())
    assert (out / "summary.json").stat().st_mtime_ns == before


def test_a_trained_model_generates_what_audit_takes(trained, world, tmp_path):
    *_, model = trained
    out = tmp_path / "made"
    made = output("generate", model, "-o", out, "-n", 5, "--seed", 7, "--set", "steps=2", "--json")
    assert (made["schema"], made["path"], made["n"]) == ("copyscope.generated/1", str(out), 5)
    assert {key: made["recipe"][key] for key in ("n_images", "seed", "steps")} == {"n_images": 5, "seed": 7, "steps": 2}
    check("generate", made)
    corpus, captions = Corpus.open(out), Corpus.open(world.train)
    said = dict(zip(captions.ids, captions.captions, strict=True))
    for prompt, source in zip(corpus.prompts, corpus.table["source_id"].to_pylist(), strict=True):
        assert prompt == said[source][0]
    assert output("audit", out, world.train, *FAST, "--json")["n_generated"] == 5


def test_prompts_are_given_as_text_or_in_a_file(trained, tmp_path):
    *_, model = trained
    (tmp_path / "prompts.txt").write_text("a cat\na dog\n")
    few = ["-n", 3, "--set", "steps=1"]
    code, stdout, stderr = run("generate", model, "-o", tmp_path / "a", "--prompts", tmp_path / "prompts.txt", *few)
    assert (code, stdout) == (0, f"3 images in {tmp_path / 'a'}\n")
    assert "copyscope audit" in stderr
    assert Corpus.open(tmp_path / "a").prompts == ["a cat", "a dog", "a cat"]
    assert run("generate", model, "-o", tmp_path / "b", "--prompt", "a  bird", *few)[0] == 0
    assert Corpus.open(tmp_path / "b").prompts == ["a  bird"] * 3


def test_mitigations_come_after_those_of_the_recipe(tmp_path):
    (tmp_path / "r.toml").write_text('mitigations = ["gaussian_noise"]\n')
    given = ["--recipe", tmp_path / "r.toml", "--mitigation", "token_noise(scale=1.0)", "--mitigation", "dcr-2023:RT"]
    named = ["gaussian_noise", "token_noise(scale=1.0)", "dcr-2023:RT"]
    for command in ("train", "generate"):
        assert output(command, "x", "-o", tmp_path / "y", "--dry-run", *given)["mitigations"] == named


def test_a_trained_model_generates_with_a_mitigation_that_looks_at_the_training_set(trained, world, tmp_path):
    *_, model = trained
    looks = "antimemorization_guidance(threshold=-1.0, dissimilarity=5.0)"
    common = ["generate", model, "-n", 3, "--set", "steps=2", "--set", "guidance=2.0"]
    with pytest.raises(InputError, match="needs to be told the nearest training image"):
        run(*common, "-o", tmp_path / "a", "--mitigation", looks)
    output(*common, "-o", tmp_path / "b", "--mitigation", looks, "--nearest", world.train, "--json")
    output(*common, "-o", tmp_path / "c", "--json")
    made, plain = (Corpus.open(tmp_path / name) for name in "bc")
    assert all(made.read(row) != plain.read(row) for row in range(3))


def test_a_dry_run_prints_the_recipe_and_does_nothing(tmp_path):
    (tmp_path / "r.toml").write_text("[train]\nsteps = 7\nflip = true\n[sample]\nsteps = 9\n")
    (tmp_path / "flat.toml").write_text("steps = 8\n")
    train = ["train", "nowhere", "-o", tmp_path / "run", "--dry-run"]
    recipe = output(*train, "--recipe", tmp_path / "r.toml", "--set", "seed=3")
    assert (recipe["steps"], recipe["flip"], recipe["seed"]) == (7, True, 3)
    assert output(*train, "--recipe", tmp_path / "flat.toml")["steps"] == 8
    assert output(*train, "--watch", 9)["sample_images"] == 9
    paper = output(*train, "--recipe", "dcr-2023", "--set", f"model={MODEL}")
    assert (paper["steps"], paper["learning_rate"], paper["model"]) == (100_000, 5e-6, MODEL)
    sample = output("generate", "nowhere", "-o", tmp_path / "g", "--recipe", tmp_path / "r.toml", "--dry-run", "-n", 4)
    assert (sample["steps"], sample["n_images"]) == (9, 4)
    assert output("generate", "x", "-o", "y", "--prompt", "p", "--dry-run")["prompts"] == "text:p"
    assert not (tmp_path / "run").exists()


# experiment


TOML = f"""
name = "small"
[data]
train = "{{train}}"
held_out = "{{held_out}}"
n_train = 12
n_held_out = 20
[train]
model = "{MODEL}"
steps = 2
batch_size = 4
tracker = "none"
sample_every = 2
sample_images = 2
sample_steps = 1
[sample]
n_images = 4
steps = 1
[audit]
protocol = "phash"
[grid]
"train.duplication" = ["none", "full"]
"""


def test_an_experiment_runs_to_a_report_and_says_how_far_it_is(world, tmp_path):
    toml, out = tmp_path / "small.toml", tmp_path / "out"
    toml.write_text(TOML.format(train=world.train, held_out=world.held_out))
    where = [toml, "-o", out]
    planned = output("experiment", "run", *where, "--dry-run", "--set", "train.steps=3")
    assert [(arm["arm"], arm["train"]["steps"]) for arm in planned["arms"]] == [("none-seed0", 3), ("full-seed0", 3)]
    assert not out.exists()
    code, stdout, _ = run("experiment", "status", *where)
    assert code == 0
    assert "0 of 2 arms are done." in stdout
    code, stdout, _ = run("experiment", "run", *where)
    assert code == 0
    assert f"Report: {out / 'report.html'}" in stdout
    assert "full-seed0" in stdout
    states = output("experiment", "status", *where, "--json")
    for row in states:
        check("status", row)
    assert [(arm["arm"], arm["state"]) for arm in states] == [("none-seed0", "done"), ("full-seed0", "done")]
    summary = json.loads((out / "summary.json").read_text())
    assert (summary["n_done"], summary["n_failed"]) == (2, 0)
    check("experiment", summary)
    for again in (["experiment", "report", *where], ["report", out]):
        page = (out / "report.html").read_text()
        (out / "report.html").unlink()
        assert run(*again)[0] == 0
        assert len((out / "report.html").read_text()) == pytest.approx(len(page), rel=0.01)
    again = output("experiment", "run", *where, "--json")
    assert [arm["estimates"] for arm in again["arms"]] == [arm["estimates"] for arm in summary["arms"]]


# Errors


def wrong(world, tmp_path):
    toml, bad, file = tmp_path / "x.toml", tmp_path / "bad.toml", tmp_path / "file"
    bad.write_text("name = \n")
    file.write_text("")
    yield ("curate", tmp_path / "nowhere", "-o", tmp_path / "a"), "nowhere"
    yield ("curate", world.train, "-o", file), "Cannot write results"
    yield ("curate", world.train, "-o", tmp_path), "is not empty"
    yield ("curate", world.train, "-o", tmp_path / "a", "--captions", "blip"), "no folder of a model"
    yield ("curate", world.train, "-o", tmp_path / "a", "--conditioning", "clas"), "No conditioning style"
    yield ("curate", world.train, "-o", tmp_path / "a", "--conditioning", "class"), "no column 'class'"
    yield ("curate", world.train, "-o", tmp_path / "a", "--duplication", "ful"), "No duplication style"
    yield ("curate", world.train, "-o", tmp_path / "a", "--layout", "zip"), "No layout"
    yield ("curate", world.train, "-o", tmp_path / "a", "-n", 61), "61 images"
    yield ("train", tmp_path / "nowhere", "-o", tmp_path / "a"), "nowhere"
    yield ("train", world.train, "-o", file), "Cannot write results"
    yield ("train", world.train, "-o", tmp_path / "a", "--recipe", "dcr"), "The presets are: dcr-2023"
    yield ("train", world.train, "-o", tmp_path / "a", "--recipe", bad), "no TOML"
    yield ("train", world.train, "-o", tmp_path / "a", "--set", "step=5"), "Did you mean 'steps'"
    yield ("train", world.train, "-o", tmp_path / "a", "--set", "steps"), "sets nothing"
    yield ("train", world.train, "-o", tmp_path / "a", "--set", "steps=many"), "whole number"
    yield ("train", world.train, "-o", tmp_path / "a", "--held-out", world.held_out), "Add --watch N"
    yield (
        ("train", world.train, "-o", tmp_path / "b", "--set", "model=small_net", "--set", "tracker=none"),
        "small_unet",
    )
    yield ("generate", tmp_path / "nowhere", "-o", tmp_path / "a"), "nowhere"
    yield ("generate", "x", "-o", tmp_path / "a", "--prompt", "a", "--prompts", file), "cannot both be"
    yield ("generate", "x", "-o", tmp_path / "a", "--set", "sampler=heum"), "sampler"
    yield ("experiment", "run", toml), "cannot be read"
    yield ("experiment", "status", bad), "no TOML"
    yield ("experiment", "report", toml), "cannot be read"


def test_errors_are_two_lines_on_stderr_and_exit_2(world, tmp_path, capsys, monkeypatch):
    for arguments, says in wrong(world, tmp_path):
        monkeypatch.setattr(sys, "argv", ["copyscope", *map(str, arguments)])
        with pytest.raises(SystemExit) as stop:
            main.main()
        stdout, stderr = capsys.readouterr()
        stderr = without_accounts(stderr)
        assert stop.value.code == 2, arguments
        assert says in stderr, (arguments, stderr)
        assert stderr.startswith("copyscope: ")
        assert len(stderr.strip().splitlines()) <= 2, stderr
        assert stdout == ""


# Without torch


def without_torch(*arguments):
    code = (
        "import sys; sys.modules['torch'] = None\n"
        "import importlib.util as u; find = u.find_spec\n"
        "u.find_spec = lambda name, *rest: None if name == 'torch' else find(name, *rest)\n"
        f"sys.argv = ['copyscope', *{list(map(str, arguments))!r}]\n"
        "from copyscope.cli.main import main; main()"
    )
    return subprocess.run([sys.executable, "-c", code], text=True, capture_output=True)


def test_what_needs_torch_says_so_and_the_parts_are_listed_all_the_same(tmp_path):
    (tmp_path / "blip").mkdir()
    toml = tmp_path / "x.toml"
    commands = [("train", "a", "-o", "b"), ("generate", "a", "-o", "b"), ("experiment", "status", toml), ("demo",)]
    for command in [*commands, ("curate", tmp_path, "-o", "b", "--captions", tmp_path / "blip")]:
        (tmp_path / "a.png").write_bytes(b"")
        found = without_torch(*command)
        assert found.returncode == 2, command
        assert "pip install 'copyscope[diffusion]'" in found.stderr
        assert len(without_accounts(found.stderr).strip().splitlines()) == 2
    listed = without_torch("parts")
    assert listed.returncode == 0, listed.stderr
    assert "small_unet\n      The part 'small_unet' needs the package 'torch'" in listed.stdout
    assert "sscd(" in listed.stdout


def test_a_training_leaves_out_what_a_list_names(world, tmp_path):
    first = Corpus.open(world.train).ids[0]
    (tmp_path / "list.txt").write_text(f"{first}\nnowhere\n")
    command = ["train", world.train, "-o", tmp_path / "run", *SETTINGS, "--json"]
    summary = output(*command, "--without", tmp_path / "list.txt")
    assert summary["n"] == 59
    assert summary["without"] == {
        "list": str(tmp_path / "list.txt"), "n_listed": 2, "n_removed": 1, "n_unmatched": 1
    }  # fmt: skip
    # The model of the run has not seen it: with it, that is another run.
    with pytest.raises(InputError, match="differs in its images"):
        run(*command)
