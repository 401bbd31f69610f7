"""Training: what a step computes, what a run leaves, and that a stop at any moment changes nothing."""

from __future__ import annotations

import dataclasses
import errno
import functools
import hashlib
import json
import math
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

pytest.importorskip("torch")
import torch
from safetensors.torch import load_file, save_file

from copyscope import Corpus
from copyscope.diffusion.conditioning import Conditioning
from copyscope.diffusion.models import Trainable
from copyscope.diffusion.recipe import PRESETS, TrainRecipe
from copyscope.diffusion.run import Run
from copyscope.diffusion.training import checkpoints, data
from copyscope.diffusion.training import train as training
from copyscope.diffusion.training.train import train
from copyscope.errors import InputError, MissingExtra, TrainingError
from copyscope.imaging import images
from copyscope.stats import Estimate
from tests import worlds
from tests.processes import ROOT, in_two_processes


@dataclasses.dataclass(frozen=True)
class Tiny(Trainable):
    """A convolutional denoiser of 8 x 8 pixels with a few thousand parameters, told by the hash of a caption."""

    seed: int = 0
    weights: str = ""

    @property
    def shape(self):
        return 3, 8, 8

    @property
    def image_size(self):
        return 8

    def __call__(self, x, sigma, conditioning):
        return self.network(x, sigma, conditioning.text).float()

    def condition(self, captions):
        digests = [np.frombuffer(hashlib.sha256(text.encode()).digest()[:8], np.uint8) for text in captions]
        text = torch.from_numpy(np.array(digests).reshape(-1, 1, 8)).float() / 128 - 1
        return Conditioning(text, torch.ones(len(captions), 1, dtype=torch.bool))

    def encode(self, pictures):
        return torch.stack([data.to_tensor(picture) for picture in pictures])

    def decode(self, latents):
        pixels = ((latents.detach() + 1) * 127.5).round().clamp(0, 255).to(torch.uint8)
        return [np.ascontiguousarray(each.permute(1, 2, 0).numpy()) for each in pixels]

    def noise_levels(self, uniform):
        return torch.exp(torch.special.ndtri(uniform)).clamp(0.02, 80)

    def loss_weight(self, sigma):
        return sigma.clamp(min=0.1) ** -2

    @functools.cached_property
    def network(self):
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self.seed)
            network = Net()
        if self.weights:
            network.load_state_dict(load_file(Path(self.weights) / "net.safetensors"))
        return network.to(memory_format=torch.channels_last)

    def save(self, folder):
        folder.mkdir(parents=True, exist_ok=True)
        save_file({k: v.contiguous() for k, v in self.network.state_dict().items()}, folder / "net.safetensors")

    def seeded(self, seed):
        return dataclasses.replace(self, seed=seed)

    def with_weights(self, folder):
        return dataclasses.replace(self, weights=str(folder))


class Net(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.last = torch.nn.Conv2d(3, 24, 3, padding=1), torch.nn.Conv2d(24, 3, 3, padding=1)
        self.told = torch.nn.Linear(9, 24)

    def forward(self, x, sigma, text):
        told = self.told(torch.cat([text[:, 0], sigma.log()[:, None]], 1))
        scaled = (x / (1 + sigma).view(-1, 1, 1, 1)).contiguous(memory_format=torch.channels_last)
        return self.last(torch.nn.functional.silu(self.first(scaled) + told[..., None, None]))


SPEC = "tests.diffusion.training.test_train:Tiny"
N = 12


def recipe(**options):
    return TrainRecipe(**{"model": SPEC, "steps": 12, "batch_size": 8, "checkpoint_every": 5, "tracker": "none",
                          "warmup_steps": 2} | options)  # fmt: skip


def write_corpus(folder):
    """N pictures of several sizes and shapes, each with two captions."""
    folder.mkdir()
    rows = []
    for index in range(N):
        rng = np.random.default_rng(index)
        height, width = (8, 8) if index % 3 else (12, 20)
        picture = np.repeat(np.repeat(rng.integers(0, 256, (height // 4, width // 4, 3), dtype=np.uint8), 4, 0), 4, 1)
        (folder / f"{index:02d}.png").write_bytes(images.encode(picture, "png"))
        rows.append({"file_name": f"{index:02d}.png", "captions": [f"picture {index}", f"the other {index}"]})
    worlds.write_metadata(folder, rows)
    return folder


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_corpus(tmp_path_factory.mktemp("corpus") / "train")


def result(run):
    """Bytes of all that training ended in: the last checkpoint and the model."""
    step, path = checkpoints.latest(Path(run) / "checkpoints")
    files = {name: (path / f"{name}.safetensors").read_bytes() for name in ("network", "ema", "optimizer")}
    return files | {"step": step, "model": (Path(run) / "model" / "net.safetensors").read_bytes()}


@pytest.fixture(scope="module")
def whole(folder, tmp_path_factory):
    """The result of an undisturbed training with everything random in it."""
    out = tmp_path_factory.mktemp("whole") / "run"
    train(folder, out, EVENTFUL)
    return result(out)


EVENTFUL = recipe(duplication="partial", duplication_rate=0.5, caption_dropout=0.2, flip=True, random_crop=True)


# What a run is


def test_it_learns_and_leaves_a_run_that_opens(folder, tmp_path):
    reports = []
    run = train(folder, tmp_path / "run", recipe(steps=150, tracker="none", duplication="full"),
                progress=lambda *report: reports.append(report))  # fmt: skip
    losses = run.history["loss"].to_pylist()
    assert losses[-1] < losses[0] / 2
    assert run.summary["steps"] == 150
    assert (run.summary["n"], run.summary["n_missing"]) == (N, 0)
    assert run.summary["loss"] == losses[-1]
    again = Run.open(tmp_path / "run", trust_parts=True)
    assert again.recipe == run.recipe
    assert again.summary == run.summary
    ema = load_file(checkpoints.latest(tmp_path / "run" / "checkpoints")[1] / "ema.safetensors")
    own = again.model.network.state_dict()
    assert all(torch.equal(own[name], value) for name, value in ema.items())
    saved = json.loads((tmp_path / "run" / "recipe.json").read_text())
    assert saved["recipe"]["duplication"] == "full"
    assert {"torch", "copyscope"} <= set(saved["versions"])
    assert ("reading images", N, N) in reports
    label, done, total = reports[-1]
    assert label.startswith("training, loss ")
    assert label.endswith("images/s")
    assert (done, total) == (150, 150)
    assert not list((tmp_path / "run").rglob("*.part"))


def test_first_weights_follow_the_seed_of_the_recipe(folder, tmp_path):
    # At this rate a step changes no weight by more than a millionth: what is saved is what it began with.
    run = train(folder, tmp_path / "run", recipe(steps=1, learning_rate=1e-6, seed=3, ema=0.0))
    for name, value in Tiny(seed=3).network.state_dict().items():
        torch.testing.assert_close(run.model.network.state_dict()[name], value, atol=1e-5, rtol=0)
        assert not torch.allclose(value, Tiny().network.state_dict()[name], atol=1e-3)


def test_the_table_of_the_training_set_says_what_was_drawn(folder, tmp_path):
    table = train(folder, tmp_path / "run", recipe(steps=1, duplication="full", duplication_rate=0.25)).table
    assert table["id"].to_pylist() == Corpus.open(folder).ids
    assert sum(table["duplicated"].to_pylist()) == 3
    assert sorted(set(table["weight"].to_pylist())) == [1, 5]
    assert "image" not in table.column_names


def test_a_finished_run_is_returned_at_once_and_another_is_refused(folder, tmp_path, monkeypatch):
    first = train(folder, tmp_path / "run", recipe())
    monkeypatch.setattr(training, "Loop", None)
    assert train(str(folder), str(tmp_path / "run"), recipe()).summary == first.summary
    with pytest.raises(InputError, match="differs in steps, seed"):
        train(folder, tmp_path / "run", recipe(steps=13, seed=1))
    others = Corpus.open(folder)
    others = others.with_column("weight", [2.0] + [1.0] * (N - 1))
    with pytest.raises(InputError, match="differs in its images"):
        train(others, tmp_path / "run", recipe())


def test_more_steps_go_on_from_a_finished_run_and_fewer_are_refused(folder, tmp_path):
    train(folder, tmp_path / "run", recipe(steps=12, schedule="constant"))
    longer = train(folder, tmp_path / "run", recipe(steps=20, schedule="constant"))
    assert longer.summary["steps"] == 20
    assert longer.recipe.steps == 20
    assert longer.history["step"].to_pylist()[-1] == 20
    train(folder, tmp_path / "at once", recipe(steps=20, schedule="constant"))
    assert result(tmp_path / "run") == result(tmp_path / "at once")
    with pytest.raises(InputError, match=r"differs in steps\.\nMore steps go on from there, fewer cannot"):
        train(folder, tmp_path / "run", recipe(steps=12, schedule="constant"))
    assert Run.open(tmp_path / "run", trust_parts=True).summary["steps"] == 20


def test_a_start_that_is_refused_leaves_nothing_that_blocks_its_folder(folder, tmp_path):
    lacking = Corpus.open(folder).with_column("captions", [[], *([["a picture"]] * (N - 1))])
    with pytest.raises(InputError, match="no caption"):
        train(lacking, tmp_path / "run", recipe())
    assert not (tmp_path / "run").exists()
    with pytest.raises(InputError, match="knows no gradient checkpointing"):
        train(folder, tmp_path / "run", recipe(gradient_checkpointing=True))
    assert train(lacking, tmp_path / "run", recipe(conditioning="fixed")).summary["steps"] == 12


def test_planted_duplicates_of_the_images_are_trained_as_they_are(folder, tmp_path):
    from copyscope.curation.curate import duplicate

    planted = duplicate(Corpus.open(folder), "partial", rate=0.25, factor=3)
    table = train(planted, tmp_path / "run", recipe(steps=1)).table
    assert sorted(zip(table["weight"].to_pylist(), table["duplication"].to_pylist(), strict=True)) == [
        *[(1, "")] * 9,
        *[(3, "partial")] * 3,
    ]


def test_a_folder_of_other_things_is_left_alone(folder, tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(InputError, match="not empty"):
        train(folder, tmp_path, recipe())
    with pytest.raises(InputError, match="not empty"):
        train(folder, tmp_path / "notes.txt", recipe())
    assert [path.name for path in tmp_path.iterdir()] == ["notes.txt"]
    with pytest.raises(InputError, match="no finished training"):
        Run.open(tmp_path)


def test_only_what_can_be_trained_is(folder, tmp_path):
    with pytest.raises(InputError, match="knows no gradient checkpointing"):
        train(folder, tmp_path / "a", recipe(gradient_checkpointing=True))
    with pytest.raises(InputError, match="fp16"):
        train(folder, tmp_path / "b", recipe(mixed_precision="fp16"))


def watcher(seen, rates=(0.25,)):
    def watch(folder, captions, step):
        made = Corpus.open(folder)
        assert made.prompts == list(captions)
        seen.append((step, made.table["source_id"].to_pylist(), list(captions)))
        value = rates[min(len(seen), len(rates)) - 1]
        return Estimate(value, value - 0.1, value + 0.1, len(captions))

    return watch


# Stopping


class Stop(BaseException):
    """A kill, as far as Python can tell."""


def stopped_at(step):
    def progress(label, done, total):
        if label.startswith("training") and done == step:
            raise Stop

    return progress


@pytest.mark.parametrize("steps", [(1,), (5,), (6, 8, 11), (12,)])
def test_a_stop_between_steps_changes_no_bit(folder, tmp_path, whole, steps):
    for step in steps:
        with pytest.raises(Stop):
            train(folder, tmp_path / "run", EVENTFUL, progress=stopped_at(step))
    run = train(folder, tmp_path / "run", EVENTFUL)
    assert result(tmp_path / "run") == whole
    assert run.history["step"].to_pylist() == [5, 10, 12]


@pytest.mark.parametrize("place", range(1, 16))
def test_a_stop_in_the_middle_of_writing_changes_no_bit(folder, tmp_path, whole, monkeypatch, place):
    """Stops at the n-th file that is written or renamed: those of the first checkpoint, and into the second."""
    with monkeypatch.context() as patch:
        left = [place]

        def counted(plain):
            def call(*arguments, **options):
                left[0] -= 1
                if left[0] == 0:
                    raise Stop
                return plain(*arguments, **options)

            return call

        patch.setattr(checkpoints, "save_file", counted(checkpoints.save_file))
        patch.setattr(checkpoints.os, "replace", counted(os.replace))
        with pytest.raises(Stop):
            train(folder, tmp_path / "run", EVENTFUL)
    run = train(folder, tmp_path / "run", EVENTFUL)
    assert result(tmp_path / "run") == whole
    assert run.history["step"].to_pylist() == [5, 10, 12]


def test_the_time_before_a_stop_counts(folder, tmp_path):
    with pytest.raises(Stop):
        train(folder, tmp_path / "run", recipe(), progress=stopped_at(7))
    path = tmp_path / "run" / "checkpoints" / "step-00000005" / "state.json"
    state = json.loads(path.read_text())
    assert 0 < state["seconds"] < 100
    del state["digest"]
    state["seconds"] = 1000.0
    path.write_text(json.dumps(state | {"digest": checkpoints._digest(state)}))
    assert 1000 <= train(folder, tmp_path / "run", recipe()).summary["seconds"] < 1100
    last = checkpoints.latest(tmp_path / "run" / "checkpoints")[1]
    assert 1000 < json.loads((last / "state.json").read_text())["seconds"] < 1100


LONG = dataclasses.replace(EVENTFUL, steps=500, checkpoint_every=4)


def test_killed_at_any_moment_it_ends_in_the_same_bits(folder, tmp_path):
    code = "import sys; from tests.diffusion.training import test_train as t; t.train(sys.argv[1], sys.argv[2], t.LONG)"
    reached = 0
    for _ in range(2):
        started = subprocess.Popen([sys.executable, "-c", code, str(folder), str(tmp_path / "run")], cwd=ROOT)
        found = None
        while found is None or found[0] < reached + 60:
            assert started.poll() is None, "it ended by itself"
            time.sleep(random.uniform(0, 0.05))
            found = checkpoints.latest(tmp_path / "run" / "checkpoints")
        os.kill(started.pid, signal.SIGKILL)
        started.wait()
        reached = checkpoints.latest(tmp_path / "run" / "checkpoints")[0]
    assert 120 <= reached < LONG.steps
    train(folder, tmp_path / "run", LONG)
    train(folder, tmp_path / "undisturbed", LONG)
    assert result(tmp_path / "run") == result(tmp_path / "undisturbed")


TOGETHER = recipe(steps=6, gradient_accumulation=2, flip=True, sample_every=6, sample_steps=1)


def test_two_processes_train_what_one_does(folder, tmp_path):
    in_two_processes(__name__, folder, tmp_path)
    one = train(folder, tmp_path / "one", TOGETHER, watch=watcher([]))
    two = Run.open(tmp_path / "two", trust_parts=True)
    assert two.summary["loss"] == pytest.approx(one.summary["loss"], rel=1e-5)
    assert two.summary["replication"] == one.summary["replication"] == 0.25
    for name, value in one.model.network.state_dict().items():
        torch.testing.assert_close(two.model.network.state_dict()[name], value, rtol=1e-4, atol=1e-6)
    assert (tmp_path / "two" / "samples" / "step-00000006.png").is_file()


def together(folder, out):
    """What each process of the test above runs."""
    assert os.environ["WORLD_SIZE"] == "2"
    # Nine images a step cannot be halved; and one training can follow another.
    with pytest.raises(InputError, match="cannot be shared by 2 processes"):
        train(folder, Path(out) / "odd", recipe(batch_size=9))
    train(folder, Path(out) / "before", recipe(steps=1))
    train(folder, Path(out) / "two", TOGETHER, watch=watcher([]))


# Going wrong


def test_a_loss_that_is_not_finite_stops_it_and_keeps_the_checkpoint(folder, tmp_path, monkeypatch):
    calls = []

    def poisoned(self, sigma):
        calls.append(1)
        return sigma * (math.nan if len(calls) > 7 else 1)

    monkeypatch.setattr(Tiny, "loss_weight", poisoned)
    with pytest.raises(TrainingError, match=r"The loss is nan at step 10; .*\n.*learning_rate"):
        train(folder, tmp_path / "run", recipe())
    assert checkpoints.latest(tmp_path / "run" / "checkpoints")[0] == 5
    assert not (tmp_path / "run" / "summary.json").exists()


@pytest.mark.parametrize("wrong", ["save_file", "write_text", "write_table"])
def test_a_full_disk_stops_it_and_the_same_command_goes_on(folder, tmp_path, whole, monkeypatch, wrong):
    where = {"save_file": checkpoints, "write_text": Path, "write_table": pq}[wrong]
    plain, calls = getattr(where, wrong), []

    def full(first, *rest, **options):
        path = first if wrong == "write_text" else rest[0]
        calls.append(1)
        # In the middle of the second checkpoint: the disk takes a part of the file, then no more.
        if (tmp_path / "run" / "checkpoints" / "step-00000005").exists():
            Path(path).write_bytes(b"half")
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return plain(first, *rest, **options)

    with monkeypatch.context() as patch:
        patch.setattr(where, wrong, full)
        with pytest.raises(TrainingError, match=r"the disk is full\. Whole checkpoints are kept\.\nMake room"):
            train(folder, tmp_path / "run", EVENTFUL)
    assert calls
    assert checkpoints.latest(tmp_path / "run" / "checkpoints")[0] == 5
    assert not list((tmp_path / "run").rglob("*.part"))
    train(folder, tmp_path / "run", EVENTFUL)
    assert result(tmp_path / "run") == whole


def test_unreadable_images_are_counted_and_never_drawn(folder, tmp_path):
    corpus = write_corpus(tmp_path / "train")
    (corpus / "03.png").write_bytes(b"no image")
    (corpus / "04.png").write_bytes((corpus / "05.png").read_bytes()[:60])
    run = train(corpus, tmp_path / "run", recipe(steps=2, duplication="full", duplication_rate=0.5))
    assert (run.summary["n"], run.summary["n_missing"]) == (N - 2, 2)
    errors = run.table["error"].to_pylist()
    assert [row for row, error in enumerate(errors) if error] == [3, 4]
    assert "not an image" in errors[3]
    duplicated = run.table["duplicated"].to_pylist()
    assert sum(duplicated) == 5
    assert not duplicated[3]
    assert not duplicated[4]


def test_a_corpus_without_a_readable_image_is_refused(tmp_path):
    (tmp_path / "train").mkdir()
    (tmp_path / "train" / "a.png").write_bytes(b"")
    with pytest.raises(InputError, match="None of the 1 images"):
        train(tmp_path / "train", tmp_path / "run", recipe())


def test_an_image_that_vanishes_is_told(folder, tmp_path):
    corpus = write_corpus(tmp_path / "train")

    def progress(label, done, total):
        if label.startswith("training") and done == 1:
            for path in corpus.glob("*.png"):
                path.unlink()

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(data, "KEPT_BYTES", 0)
        with pytest.raises(TrainingError, match="could be read at the start and cannot now: no such file"):
            train(corpus, tmp_path / "run", recipe(), progress=progress)


def test_latents_of_another_shape_than_the_model_says_are_told(folder, tmp_path, monkeypatch):
    monkeypatch.setattr(Tiny, "encode", lambda self, pictures: torch.zeros(len(pictures), 3, 4, 4))
    with pytest.raises(TrainingError, match=r"latents of shape \(3, 4, 4\)"):
        train(folder, tmp_path / "run", recipe())


def test_a_tracker_that_is_not_installed_is_named(folder, tmp_path, monkeypatch):
    monkeypatch.setattr("accelerate.tracking.get_available_trackers", list)
    with pytest.raises(MissingExtra, match="'wandb'"):
        train(folder, tmp_path / "run", recipe(tracker="wandb"))
    assert not (tmp_path / "run").exists()


# Recipes


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"steps": 0}, "steps must be at least 1, not 0"),
        ({"learning_rate": math.nan}, "learning_rate"),
        ({"learning_rate": math.inf}, "learning_rate"),
        ({"betas": (0.9, 1.5)}, "betas"),
        ({"ema": 1.0}, "ema"),
        ({"caption_dropout": 1.5}, "caption_dropout must be at least 0 and at most 1, not 1.5"),
        ({"duplication": "some"}, "duplication must be one of none, full, partial, not 'some'"),
        ({"conditioning": "poem"}, "conditioning must be one of"),
        ({"schedule": "steps"}, "schedule must be one of constant, linear, cosine"),
        ({"tracker": "paper"}, "tracker must be one of"),
        ({"duplication_factor": 0.5}, "duplication_factor"),
        ({"batch_size": 8, "gradient_accumulation": 3}, "multiple of gradient_accumulation"),
    ],
)
def test_a_recipe_names_the_field_that_cannot_be(options, message):
    with pytest.raises(InputError, match=message):
        TrainRecipe(**options)


def test_the_preset_of_the_paper_is_a_recipe():
    told = TrainRecipe(**PRESETS["dcr-2023"])
    assert (told.learning_rate, told.batch_size, told.steps, told.warmup_steps) == (5e-6, 16, 100_000, 5000)
    assert (told.ema, told.betas, told.schedule, told.flip, told.random_crop) == (
        0,
        (0.9, 0.999),
        "constant",
        True,
        False,
    )


def test_importing_the_package_loads_no_torch():
    code = (
        "import sys, copyscope.diffusion as d; assert 'torch' not in sys.modules; "
        "assert d.TrainRecipe(steps=3).steps == 3; assert set(d.__all__) <= set(dir(d)); "
        "[getattr(d, name) for name in d.__all__]; assert not hasattr(d, 'nothing')"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
