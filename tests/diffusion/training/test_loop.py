"""The steps of a training: what each computes, what is kept in memory, samples, the watch and the logs."""

from __future__ import annotations

import dataclasses
import math

import numpy as np
import pytest

from copyscope.diffusion import encoded_cache
from copyscope.diffusion.training import draws

pytest.importorskip("torch")
import torch
from safetensors.torch import load_file

from copyscope import Corpus, parts
from copyscope.diffusion.applied import MitigationStack
from copyscope.diffusion.training import checkpoints, data, loop
from copyscope.diffusion.training.train import train
from copyscope.imaging import images
from tests.diffusion.training.test_train import SPEC, N, Tiny, recipe, result, watcher, write_corpus


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_corpus(tmp_path_factory.mktemp("corpus") / "train")


# What a step computes


def by_hand(folder, options, steps):
    """Losses and trained weights of the first steps, by the formulas and nothing of the loop."""
    model, told = parts.load("models", SPEC), recipe(**options)
    corpus = Corpus.open(folder)
    policy, sampler = draws.CaptionPolicy.from_corpus(corpus), draws.WeightedSampler.from_corpus(corpus, seed=told.seed)
    weights = list(model.network.parameters())
    optimizer = torch.optim.AdamW(weights, betas=told.betas, eps=told.epsilon, weight_decay=told.weight_decay)
    average, losses = [value.detach().clone() for value in weights], []
    for step in range(steps):
        drawn = data.draw(step, model, told, sampler, policy, MitigationStack())
        pictures = [images.decode(corpus.read(int(row))) for row in drawn.rows]
        x0 = model.encode([images.centre_crop(images.resize_short(each, 8), 8) for each in pictures])
        sigma = drawn.sigma.view(-1, 1, 1, 1)
        denoised = model(x0 + sigma * drawn.noise, drawn.sigma, model.condition(drawn.captions))
        weight = (1 / drawn.sigma**2).clamp(max=told.min_snr) if told.min_snr else model.loss_weight(drawn.sigma)
        loss = (weight.view(-1, 1, 1, 1) * (denoised - x0) ** 2).mean()
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(weights, told.max_grad_norm)
        optimizer.param_groups[0]["lr"] = loop.rate(told, step)
        optimizer.step()
        keep = min(told.ema, (1 + step) / (20 + step))
        average = [keep * old + (1 - keep) * new.detach() for old, new in zip(average, weights, strict=True)]
        losses.append(loss.item())
    names = [name for name, _ in model.network.named_parameters()]
    return losses, dict(zip(names, weights, strict=True)), dict(zip(names, average, strict=True))


@pytest.mark.parametrize("options", [{}, {"min_snr": 2.0, "gradient_accumulation": 4, "max_grad_norm": 0.1}])
def test_steps_are_those_of_the_formulas(folder, tmp_path, options):
    run = train(folder, tmp_path / "run", recipe(steps=5, **options))
    losses, weights, average = by_hand(folder, {"steps": 5} | options, 5)
    assert run.summary["loss"] == pytest.approx(np.mean(losses), rel=1e-4)
    path = checkpoints.latest(tmp_path / "run" / "checkpoints")[1]
    for name, expected in (("network", weights), ("ema", average)):
        found = load_file(path / f"{name}.safetensors")
        assert found.keys() == expected.keys()
        for key, value in expected.items():
            torch.testing.assert_close(found[key], value.detach(), rtol=1e-3, atol=2e-5)


@pytest.mark.parametrize(("predicts", "own"), [("epsilon", lambda snr: snr), ("v", lambda snr: snr + 1)])
def test_min_snr_is_that_of_its_paper_for_epsilon_and_v(predicts, own):
    """Hang et al. 2023: min(SNR, gamma) / SNR times the error of epsilon, / (SNR + 1) that of v."""
    sigma = torch.tensor([0.05, 0.3, 1.0, 4.0])
    snr, gamma = sigma**-2, 5.0
    model = Tiny()
    x0, noise = torch.randn(2, 4, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    told = model.condition(["a"] * 4)
    error = (model(x0 + sigma.view(-1, 1, 1, 1) * noise, sigma, told) - x0).square().mean((1, 2, 3))
    # An error e of x0 is one of e / sigma of epsilon, and of e * sqrt(1 + 1 / sigma^2) of v.
    expected = (snr.clamp(max=gamma) / own(snr) * own(snr) * error).mean()
    found = loop.Loss(model, gamma)(x0, noise, sigma, told.text, told.mask)
    torch.testing.assert_close(found, expected)


def test_the_learning_rate_warms_up_and_falls():
    told = recipe(steps=100, warmup_steps=10, learning_rate=1.0, decay=0.5)
    constant, cosine = (dataclasses.replace(told, schedule=name) for name in ("constant", "cosine"))
    assert [loop.rate(told, step) for step in (0, 4, 9, 49)] == pytest.approx([0.1, 0.5, 1, 1])
    assert [loop.rate(told, step) for step in (50, 75, 90, 99)] == pytest.approx([1, 0.5, 0.2, 0.02])
    assert [loop.rate(cosine, step) for step in (50, 75, 90)] == pytest.approx(
        [1, 0.5, (1 - math.cos(0.2 * math.pi)) / 2]
    )
    assert {loop.rate(constant, step) for step in (10, 99)} == {1.0}
    assert loop.rate(dataclasses.replace(told, steps=1000), 999) == 0.02
    assert loop.rate(recipe(warmup_steps=0, decay=0.0), 0) == recipe().learning_rate


@pytest.mark.parametrize("options", [{"cache_latents": False}, {"cache_text": False}, {"kept": 0}])
def test_what_is_kept_in_memory_changes_no_bit(folder, tmp_path, monkeypatch, options):
    told = recipe(flip=True)
    train(folder, tmp_path / "one", told)
    if "kept" in options:
        monkeypatch.setattr(encoded_cache, "KEPT_BYTES", 0)
    else:
        told = dataclasses.replace(told, **options)
    train(folder, tmp_path / "two", told)
    assert result(tmp_path / "one") == result(tmp_path / "two")


def test_looking_at_samples_changes_no_bit(folder, tmp_path):
    train(folder, tmp_path / "one", recipe())
    train(folder, tmp_path / "two", recipe(sample_every=3, sample_images=5, sample_steps=2))
    assert result(tmp_path / "one") == result(tmp_path / "two")
    grid = images.decode(tmp_path / "two" / "samples" / "step-00000012.png")
    assert grid.shape == (16, 24, 3)
    assert (grid[8:, 16:] == 255).all()
    assert len(list((tmp_path / "two" / "samples").glob("*.png"))) == 4


def test_samples_are_of_the_average_in_evaluation_mode(folder, tmp_path, monkeypatch):
    seen = []

    def generate(model, out, asked, **options):
        seen.append((model.network.training, model.network.first.weight.detach().clone()))
        return plain(model, out, asked, **options)

    from copyscope.diffusion import generate as module

    plain = module.generate
    monkeypatch.setattr(module, "generate", generate)
    for ema in (0.9, 0.0):
        train(folder, tmp_path / str(ema), recipe(steps=5, ema=ema, sample_every=5, sample_steps=1))
        path = checkpoints.latest(tmp_path / str(ema) / "checkpoints")[1]
        saved = load_file(path / ("ema.safetensors" if ema else "network.safetensors"))
        mode, weight = seen.pop()
        assert not mode
        assert torch.equal(weight, saved["first.weight"])
    assert not (path / "ema.safetensors").exists()


def test_half_precision_trains_full_weights(folder, tmp_path):
    full = train(folder, tmp_path / "full", recipe(steps=30))
    half = train(folder, tmp_path / "half", recipe(steps=30, mixed_precision="bf16"))
    assert half.summary["loss"] != full.summary["loss"]
    assert half.summary["loss"] == pytest.approx(full.summary["loss"], rel=0.1)
    assert {value.dtype for value in half.model.network.state_dict().values()} == {torch.float32}
    third = train(folder, tmp_path / "third", recipe(steps=30))
    assert third.summary["loss"] == full.summary["loss"]


# Watching


def test_the_watch_sees_training_captions_at_each_checkpoint(folder, tmp_path):
    seen = []
    run = train(folder, tmp_path / "run", recipe(sample_images=N + 2, sample_steps=1), watch=watcher(seen))
    assert [step for step, *_ in seen] == [5, 10, 12]
    _, sources, captions = seen[0]
    assert sorted(sources[:N]) == Corpus.open(folder).ids
    assert sources[N:] == sources[:2]
    assert captions == [f"picture {int(source[:2])}" for source in sources]
    rows = {row["step"]: row for row in run.history.to_pylist()}
    assert [rows[step]["replication"] for step in (5, 10, 12)] == [0.25] * 3
    assert (rows[5]["replication_low"], rows[5]["replication_high"], rows[5]["replication_n"]) == (0.15, 0.35, N + 2)
    assert run.summary["replication"] == 0.25
    other = []
    train(folder, tmp_path / "other", recipe(steps=1, sample_images=3, sample_steps=1, seed=1), watch=watcher(other))
    assert other[0][1] != sources[:3]


def test_it_stops_where_copying_sets_in_and_stays_stopped(folder, tmp_path):
    told = recipe(steps=40, sample_images=4, sample_steps=1, stop_at_replication=0.3)
    seen = []
    run = train(folder, tmp_path / "run", told, watch=watcher(seen, (0.0, 0.35, 0.45, 0.9)))
    assert run.summary["steps"] == 15
    assert len(seen) == 3
    before = result(tmp_path / "run")
    # Killed after its last checkpoint, it must not train on.
    (tmp_path / "run" / "summary.json").unlink()
    assert train(folder, tmp_path / "run", told, watch=watcher(seen)).summary["steps"] == 15
    assert result(tmp_path / "run") == before


def test_trackers_get_loss_rate_speed_and_replication(folder, tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    told = recipe(tracker="tensorboard", sample_images=2, sample_steps=1)
    run = train(folder, tmp_path / "run", told, watch=watcher([]))
    events = EventAccumulator(str(tmp_path / "run" / "logs" / "copyscope")).Reload()
    for name in ("loss", "learning_rate", "images_per_second", "replication", "replication_low"):
        logged = {event.step: event.value for event in events.Scalars(name)}
        assert logged == pytest.approx({row["step"]: row[name] for row in run.history.to_pylist()})
