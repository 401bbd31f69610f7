"""Mitigations in training: each by its formula, computed again here; and what the loop gives them and keeps of them."""

from __future__ import annotations

import collections
import dataclasses
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from copyscope.diffusion import encoded_cache
from copyscope.diffusion.training import draws

pytest.importorskip("torch")
import torch
from safetensors.torch import load_file
from scipy import stats

from copyscope import Corpus, parts
from copyscope.diffusion.applied import MitigationStack, training_rng
from copyscope.diffusion.conditioning import Conditioning
from copyscope.diffusion.encoded_cache import TextEmbeddingCache
from copyscope.diffusion.mitigations import Batch
from copyscope.diffusion.mitigations.dual_fusion import DualFusion
from copyscope.diffusion.mitigations.mix_up import MixUp
from copyscope.diffusion.run import Run
from copyscope.diffusion.training import checkpoints, data, loop
from copyscope.diffusion.training import train as training
from copyscope.diffusion.training.train import train
from copyscope.errors import InputError, PartError
from copyscope.imaging import images
from tests import worlds
from tests.diffusion.training.test_train import EVENTFUL, LONG, N, Stop, Tiny, recipe, result, stopped_at, write_corpus
from tests.processes import ROOT, in_two_processes


def part(spec):
    return parts.load("mitigations", spec)


def rngs(n, first=0):
    return [np.random.default_rng(first + row) for row in range(n)]


def conditioning(n=6, tokens=5, dim=3, *, pooled=False, seed=0):
    """States of texts of one token up to all; what the mask leaves out is not 0."""
    rng = np.random.default_rng(seed)
    text = torch.from_numpy(rng.standard_normal((n, tokens, dim)).astype(np.float32))
    mask = torch.arange(tokens)[None] < 1 + torch.arange(n)[:, None] % tokens
    vectors = torch.from_numpy(rng.standard_normal((n, 4)).astype(np.float32))
    return Conditioning(text, mask, vectors if pooled else None)


def copied(told):
    return Conditioning(told.text.clone(), told.mask.clone(), None if told.pooled is None else told.pooled.clone())


def same(one, two):
    pooled = one.pooled is two.pooled or torch.equal(one.pooled, two.pooled)
    return torch.equal(one.text, two.text) and torch.equal(one.mask, two.mask) and pooled


def square(corpus, row):
    """The middle of a picture at the size of Tiny."""
    return images.centre_crop(images.resize_short(images.decode(corpus.read(row)), 8), 8)


def within(count, n, share):
    """Whether a count of n is as likely as its share lets expect, to five deviations."""
    return abs(count - n * share) <= 5 * np.sqrt(n * share * (1 - share))


# Noise on tokens


def test_noise_falls_on_tokens_whole_each_by_itself_and_is_standard_normal_times_its_scale():
    told = Conditioning(torch.randn(300, 7, 16), torch.ones(300, 7, dtype=torch.bool))
    moved = (part("token_noise(scale=1.5, probability=0.3)").perturb(told, rngs(300)).text - told.text) / 1.5
    hit = (moved != 0).any(2)
    assert ((moved != 0).all(2) == hit).all()
    assert within(int(hit.sum()), hit.numel(), 0.3)
    # Each by itself: neighbours are both hit as often as the product says, and rows differ.
    assert within(int((hit[:, 1:] & hit[:, :-1])[:, ::2].sum()), 300 * 3, 0.09)
    assert len({tuple(row) for row in hit.tolist()}) > 50
    noise = moved[hit].flatten().double()
    n = len(noise)
    assert abs(noise.mean()) <= 5 / np.sqrt(n)
    assert abs(noise.square().mean() - 1) <= 5 * np.sqrt(2 / n)
    assert stats.kstest(noise.numpy(), "norm").pvalue > 1e-4
    assert abs((moved[hit][:, 1:] * moved[hit][:, :-1]).mean()) <= 5 / np.sqrt(n)


@pytest.mark.parametrize("spec", ["token_noise(probability=1.0)", "token_noise"])
def test_token_noise_leaves_out_what_the_mask_does_and_a_row_is_its_generators_alone(spec):
    told = conditioning(10, pooled=True)
    before = copied(told)
    found = part(spec).perturb(told, rngs(10))
    assert same(told, before)
    assert torch.equal(found.text[~told.mask], told.text[~told.mask])
    if "1.0" in spec:
        assert (found.text != told.text).all(2)[told.mask].all()
    assert found.mask is told.mask
    assert found.pooled is told.pooled
    for row in range(10):
        assert same(part(spec).perturb(told.take([row]), rngs(1, row)), found.take([row]))


# Mix-up


def parents(made, own, others):
    """(partner, lam) with made = lam * own + (1 - lam) * partner, the one of `others` where that can be."""
    found = []
    for place, other in enumerate(others):
        apart = own - other
        lam = float(((made - other) * apart).sum() / (apart**2).sum())
        if np.allclose(made, lam * own + (1 - lam) * other, atol=1e-5):
            found.append((place, lam))
    return found


def test_mix_up_is_of_two_rows_by_a_share_that_is_beta_distributed():
    n, alpha = 60, 3.0
    told = Conditioning(torch.randn(n, 2, 8), torch.ones(n, 2, dtype=torch.bool), torch.randn(n, 5))
    flat = torch.cat([told.text.flatten(1), told.pooled], 1).numpy()
    lams, partners = [], []
    for turn in range(10):
        found = part(f"mix_up(alpha={alpha})").perturb(told, rngs(n, turn * n))
        made = torch.cat([found.text.flatten(1), found.pooled], 1).numpy()
        for row in range(n):
            [(partner, lam)] = parents(made[row], flat[row], np.delete(flat, row, 0))
            lams.append(lam)
            partners.append((partner + (partner >= row) - row) % n)
    # The distribution function of Beta(alpha, 1) is x^alpha.
    assert stats.kstest(np.array(lams) ** alpha, "uniform").pvalue > 1e-4
    assert stats.kstest(np.array(partners), stats.randint(1, n).cdf).pvalue > 1e-4


def test_mix_up_counts_tokens_that_either_counts_and_takes_those_left_out_for_nothing():
    told = conditioning(2, 3, pooled=True)
    told.mask.copy_(torch.tensor([[True, False, False], [True, True, False]]))
    before = copied(told)
    found = part("mix_up").perturb(told, rngs(2))
    assert same(told, before)
    other = told.pooled.flip(0)
    lam = ((found.pooled - other) / (told.pooled - other)).mean(1).tolist()
    assert lam[0] != pytest.approx(lam[1], abs=1e-3)
    for i in (0, 1):
        shares = (lam[i], 1 - lam[i]) if i == 0 else (1 - lam[i], lam[i])
        expected = shares[0] * told.text[0, 0] + shares[1] * told.text[1, 0], shares[1] * told.text[1, 1]
        torch.testing.assert_close(found.text[i, :2], torch.stack(expected), atol=1e-5, rtol=1e-4)
        assert torch.equal(found.text[i, 2], told.text[i, 2])
        assert found.mask[i].tolist() == [True, True, False]


def test_mix_up_mixes_the_share_of_rows_it_says_and_no_row_with_itself():
    told = conditioning(1000, 2, 4)
    found = part("mix_up(probability=0.3)").perturb(told, rngs(1000))
    mixed = (found.text != told.text).flatten(1).any(1)
    assert within(int(mixed.sum()), 1000, 0.3)
    assert torch.equal(found.mask[~mixed], told.mask[~mixed])
    alone = conditioning(1)
    assert part("mix_up").perturb(alone, rngs(1)) is alone


# Dual fusion


def test_dual_fusion_is_of_an_image_and_the_text_of_another_of_the_batch():
    latents, told = torch.randn(7, 3, 4, 4), conditioning(7, pooled=True)
    told.mask[:] = True
    given, before = latents.clone(), copied(told)
    x0, found = part("dual_fusion(share=0.2, text_share=0.4)").fuse(latents, told, rngs(7), Tiny())
    assert torch.equal(latents, given)
    assert same(told, before)
    for row in range(7):
        [(partner, share)] = parents(x0[row].numpy(), given[row].numpy(), np.delete(given.numpy(), row, 0))
        assert share == pytest.approx(0.8, abs=1e-4)
        partner += partner >= row
        torch.testing.assert_close(found.text[row], 0.6 * told.text[row] + 0.4 * told.text[partner])
        torch.testing.assert_close(found.pooled[row], 0.6 * told.pooled[row] + 0.4 * told.pooled[partner])
    one = latents[:1], told.take([0])
    assert part("dual_fusion").fuse(*one, rngs(1), Tiny()) == one
    assert part("dual_fusion(share=0.0)").fuse(latents, told, rngs(7), Tiny())[0] is latents
    assert part("dual_fusion(text_share=0.0)").fuse(latents, told, rngs(7), Tiny())[1] is told


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_corpus(tmp_path_factory.mktemp("corpus") / "train")


def test_dual_fusion_with_a_folder_takes_its_images_and_their_captions(folder, tmp_path, monkeypatch):
    others = write_corpus(tmp_path / "others")
    (others / f"{N - 1:02d}.png").write_bytes(b"no picture")
    corpus, model = Corpus.open(others), Tiny()
    readable = list(range(N - 1))
    squares = [square(corpus, row) for row in readable]
    latents, told = torch.randn(200, *model.shape), model.condition([f"caption {row}" for row in range(200)])
    reads = []
    plain = Corpus.read
    monkeypatch.setattr(Corpus, "read", lambda self, row: [reads.append(row), plain(self, row)][1])
    fusion = part(f"dual_fusion(images={str(others)!r})")
    assert not reads
    x0, found = fusion.fuse(latents, told, rngs(200), model)
    drawn = []
    for row in range(200):
        # What is left is a tenth of one of the pictures.
        apart = ((x0[row] - 0.9 * latents[row]) / 0.1 - model.encode(squares)).abs().amax((1, 2, 3))
        drawn.append(readable[int(apart.argmin())])
        assert apart.min() < 1e-4
    expected = 0.5 * told.text + 0.5 * model.condition([f"picture {row}" for row in drawn]).text
    torch.testing.assert_close(found.text, expected)
    # All, each as often; the one after the broken one, which is the first, twice as often; each read once.
    counts = np.bincount(drawn, minlength=N)
    assert all(within(counts[row], 200, 2 / N if row == 0 else 1 / N) for row in readable)
    assert sorted(reads) == list(range(N))
    again = fusion.fuse(latents, told, rngs(200), model)
    assert torch.equal(again[0], x0)
    assert len(reads) == N
    # Without memory they are read again, and are the same.
    monkeypatch.setattr(encoded_cache, "KEPT_BYTES", 0)
    fresh = dataclasses.replace(fusion)
    assert torch.equal(fresh.fuse(latents, told, rngs(200), model)[0], x0)
    assert len(reads) > 2 * N
    # One alone is fused too; another model is not given the latents of the first.
    assert not torch.equal(fusion.fuse(latents[:1], told.take([0]), rngs(1), model)[0], latents[:1])
    monkeypatch.setattr(Tiny, "encode", lambda self, pictures: torch.ones(len(pictures), *self.shape))
    assert torch.equal(fusion.fuse(latents, told, rngs(200), Tiny(seed=1))[0], 0.9 * latents + 0.1)
    assert fusion == fresh
    for path in others.glob("*.png"):
        path.write_bytes(b"")
    with pytest.raises(InputError, match="None of the 12 images"):
        dataclasses.replace(fusion).fuse(latents, told, rngs(200), model)


# Weights of losses


def batch(loss, sigma, **others):
    n = len(loss)
    x = torch.zeros(n, 2, 3, 3)
    null = Conditioning(torch.zeros(n, 1, 1), torch.ones(n, 1, dtype=torch.bool))
    found = Batch(torch.tensor(loss), x, torch.tensor(sigma), x, null, lambda *given: pytest.fail("a model call"))
    return dataclasses.replace(found, **others)


def test_the_gate_leaves_out_samples_whose_norm_is_at_its_limit_or_above():
    sigma = torch.tensor([0.5, 1.0, 2.0, 4.0, 1.0])
    # Norms of the difference of epsilon: 1, 2, 3, 1.999, 0.
    norms = torch.tensor([1.0, 2.0, 3.0, 1.999, 0.0])
    rng = torch.Generator().manual_seed(0)
    direction = torch.randn(5, 2, 3, 3, generator=rng)
    direction[1] = torch.nn.functional.one_hot(torch.tensor(4), 18).view(2, 3, 3)
    direction /= direction.flatten(1).norm(dim=1).view(-1, 1, 1, 1)
    x = torch.randn(5, 2, 3, 3, generator=rng)
    x[1] = 0
    apart = direction * (norms * sigma).view(-1, 1, 1, 1)
    null = conditioning(5, 1, 1)
    asked = []

    def predict(*given):
        asked.append(given)
        return (x - apart).requires_grad_()

    given = batch([9.0, 1, 2, 3, 4], sigma.tolist(), x=x * 3, denoised=x, null=null, predict=predict)
    weight = part("loss_gate(above=2.0)").weigh(given, torch.zeros(0))
    assert weight.tolist() == pytest.approx([5 / 3, 0, 0, 5 / 3, 5 / 3])
    assert not weight.requires_grad
    [(at, levels, told)] = asked
    assert at is given.x
    assert levels is given.sigma
    assert told is null
    assert part("loss_gate(above=2.0)").training_calls == 1
    assert part("loss_gate(above=1e-9)").weigh(given, torch.zeros(0)).tolist() == [0, 0, 0, 0, 5]
    assert part("loss_gate(above=100.0)").weigh(given, torch.zeros(0)).tolist() == [1] * 5
    all_apart = dataclasses.replace(given, predict=lambda *_: x + 100)
    assert part("loss_gate").weigh(all_apart, torch.zeros(0)).tolist() == [0] * 5
    before = len(asked)
    assert part("loss_gate(above=0.0)").weigh(given, torch.zeros(0)).tolist() == [1] * 5
    assert len(asked) == before


def test_anti_gradient_is_an_exponential_mean_of_each_bin():
    below, decay, bins, n = 0.8, 0.7, 4, 12
    control, rng = part(f"anti_gradient(below={below}, decay={decay}, bins={bins})"), np.random.default_rng(0)
    memory = control.state()
    assert memory.dtype == torch.float64
    history = [[] for _ in range(bins)]
    dropped, fresh = 0, 0
    for _ in range(30):
        loss, sigma = rng.exponential(size=n), np.exp(rng.normal(size=n) * 2)
        sigma[0], loss = 1e20, loss.astype(np.float32)
        place = [min(int(bins * s / (1 + s)), bins - 1) for s in sigma.astype(np.float32)]
        keeps = []
        for each, at in zip(loss, place, strict=True):
            # The weights of an exponential mean that starts with its first value, oldest last.
            shares = [decay**age for age in range(len(history[at]))]
            fresh += not shares
            usual = np.average(history[at][::-1], weights=shares) if shares else 0
            keeps.append(each >= below * usual)
        given = batch(loss.tolist(), sigma.tolist())
        weight = control.weigh(given, memory)
        assert weight.tolist() == pytest.approx([n / sum(keeps) if keep else 0 for keep in keeps])
        dropped += n - sum(keeps)
        for at in set(place):
            history[at].append(np.mean([each for each, where in zip(loss, place, strict=True) if where == at]))
    assert 60 < dropped < 300
    assert fresh
    assert all(len(each) > 3 for each in history)


def test_anti_gradient_leaves_all_out_where_all_are_low_and_forgets():
    control = part("anti_gradient(below=0.5)")
    memory = control.state()
    assert control.weigh(batch([1.0, 1.0], [1.0, 1.0]), memory).tolist() == [1, 1]
    assert control.weigh(batch([0.4, 0.4], [1.0, 1.0]), memory).tolist() == [0, 0]
    # Another noise level has no history yet.
    assert control.weigh(batch([0.3, 0.3], [1.0, 3.0]), memory).tolist() == [0, 2]
    for _ in range(20):
        weight = control.weigh(batch([0.3, 0.3], [1.0, 1.0]), memory)
    assert weight.tolist() == [1, 1]
    assert memory.isfinite().all()
    untouched = control.state()
    assert part("anti_gradient(below=0.0)").weigh(batch([1.0, 2], [1.0, 1]), untouched).tolist() == [1, 1]
    assert torch.equal(untouched, control.state())


def test_anti_gradients_memory_can_be_averaged_over_processes():
    """One process had losses at a noise level, the other none: the mean is that of the one."""
    control = part("anti_gradient(below=0.5, bins=2)")
    one, two = control.state(), control.state()
    control.weigh(batch([1.0], [0.1]), one)
    control.weigh(batch([8.0], [10.0]), two)
    both = (one + two) / 2
    assert control.weigh(batch([0.51, 0.49, 4.1, 3.9], [0.1, 0.1, 10, 10]), both).tolist() == [2, 0, 2, 0]


def test_noise_levels_outside_the_limits_are_left_out():
    sigma = [0.1, 0.5, 1.0, 2.0, 9.0]
    for lowest, highest, expected in (
        (0.5, 0, [0, 1.25, 1.25, 1.25, 1.25]), (0, 2.0, [1.25, 1.25, 1.25, 1.25, 0]),
        (0.5, 2.0, [0, 5 / 3, 5 / 3, 5 / 3, 0]), (20.0, 0, [0] * 5), (0, 0, [1] * 5),
    ):  # fmt: skip
        restriction = part(f"noise_restriction(lowest={lowest}, highest={highest})")
        assert restriction.weigh(batch([1.0] * 5, sigma), torch.zeros(0)).tolist() == pytest.approx(expected)


# All of them

ZERO = ("token_noise(scale=0.0)", "token_noise(probability=0.0)", "mix_up(probability=0.0)",
        "dual_fusion(share=0.0, text_share=0.0)", "loss_gate(above=0.0)", "anti_gradient(below=0.0)",
        "noise_restriction", "gaussian_noise(scale=0.0)", "word_repetition(probability=0.0)")  # fmt: skip
USEFUL = ("token_noise", "mix_up", "dual_fusion", "loss_gate(above=0.5)", "anti_gradient",
          "noise_restriction(lowest=0.2)")  # fmt: skip


@pytest.mark.parametrize("spec", ZERO[:4])
def test_at_no_strength_the_very_same_is_given_back(spec):
    told, latents = conditioning(), torch.randn(6, 3, 8, 8)
    if spec.startswith("dual"):
        assert part(spec).fuse(latents, told, rngs(6), Tiny()) == (latents, told)
    else:
        assert part(spec).perturb(told, rngs(6)) is told


@pytest.mark.parametrize("spec", [
    "token_noise(scale=-1)", "token_noise(scale=1e999)", "token_noise(probability=1.1)", "mix_up(probability=-0.1)",
    "mix_up(alpha=0)", "dual_fusion(share=1.5)", "dual_fusion(text_share=-1)", "loss_gate(above=-1)",
    "anti_gradient(below=-1)", "anti_gradient(decay=1.0)", "anti_gradient(bins=0)", "noise_restriction(lowest=-1)",
    "noise_restriction(lowest=3, highest=2)",
])  # fmt: skip
def test_settings_that_cannot_be_are_refused(spec):
    with pytest.raises(PartError, match="does not fit its part"):
        part(spec)


# In the loop


@pytest.fixture(scope="module")
def plain(folder, tmp_path_factory):
    out = tmp_path_factory.mktemp("plain") / "run"
    train(folder, out, EVENTFUL)
    return result(out)


def test_a_training_with_all_at_no_strength_is_to_the_bit_one_without(folder, tmp_path, plain):
    train(folder, tmp_path / "run", dataclasses.replace(EVENTFUL, mitigations=ZERO))
    assert result(tmp_path / "run") == plain


@pytest.mark.parametrize("spec", USEFUL)
def test_each_changes_what_is_learnt(folder, tmp_path, plain, spec):
    run = train(folder, tmp_path / "run", dataclasses.replace(EVENTFUL, mitigations=(spec,)))
    assert result(tmp_path / "run")["network"] != plain["network"]
    assert np.isfinite(run.summary["loss"])


RESTRICTION = "noise_restriction(lowest=0.2, highest=2.0)"


def test_a_step_is_that_of_the_formulas(folder, tmp_path):
    """Rows are numbered over the whole batch, weights are of each accumulation's part of it."""
    mitigations = ("word_repetition(probability=0.5)", "token_noise(probability=1.0)", RESTRICTION)
    options = recipe(steps=1, gradient_accumulation=2, caption_dropout=0.3, mitigations=mitigations)
    run = train(folder, tmp_path / "run", options)
    model, corpus = Tiny(seed=options.seed), Corpus.open(folder)
    sampler = draws.WeightedSampler.from_corpus(corpus, seed=options.seed)
    drawn = data.draw(0, model, options, sampler, draws.CaptionPolicy.from_corpus(corpus), MitigationStack())
    repetition, noise, _ = map(part, mitigations)
    rng = training_rng(options.seed, 0, 0)
    captions = [repetition.rewrite([f"picture {row}", f"the other {row}"], rng) for row in drawn.rows]
    total = 0.0
    told = model.condition(["" if drop else caption for caption, drop in zip(captions, drawn.dropped, strict=True)])
    assert 0 < drawn.dropped.sum() < 8
    noised = noise.perturb(told, [training_rng(options.seed, 0, 1, row) for row in range(8)])
    text = torch.where(torch.from_numpy(drawn.dropped)[:, None, None], told.text, noised.text)
    x0 = model.encode([square(corpus, row) for row in drawn.rows.tolist()])
    with torch.no_grad():
        x = x0 + drawn.sigma.view(-1, 1, 1, 1) * drawn.noise
        error = (model(x, drawn.sigma, Conditioning(text, told.mask)) - x0).square().mean((1, 2, 3))
    for half in (slice(0, 4), slice(4, 8)):
        counts = (drawn.sigma[half] >= 0.2) & (drawn.sigma[half] <= 2)
        assert 0 < counts.sum() < 4
        assert not drawn.dropped[half][counts.numpy()].all()
        total += float((model.loss_weight(drawn.sigma) * error)[half][counts].mean()) / 2
    assert run.summary["loss"] == pytest.approx(total, rel=1e-4)


def test_who_is_told_nothing_stays_told_nothing(folder, tmp_path, monkeypatch):
    seen = []
    plain = loop.Loss.forward
    monkeypatch.setattr(loop.Loss, "forward", lambda self, x0, noise, sigma, *told: [
        seen.append(told), plain(self, x0, noise, sigma, *told)][1])  # fmt: skip
    options = recipe(caption_dropout=0.4, mitigations=("token_noise(probability=1.0)", "mix_up", "dual_fusion"))
    train(folder, tmp_path / "run", options)
    corpus = Corpus.open(folder)
    policy, sampler = draws.CaptionPolicy.from_corpus(corpus), draws.WeightedSampler.from_corpus(corpus, seed=0)
    dropped = [data.draw(step, Tiny(), options, sampler, policy, MitigationStack()).dropped for step in range(12)]
    assert 20 < np.concatenate(dropped).sum() < 60
    null = Tiny().condition([""]).text
    for (text, mask), drops in zip(seen, dropped, strict=True):
        assert (text == null).flatten(1).all(1).tolist() == drops.tolist()
        assert mask.all()


def test_a_batch_of_which_nothing_counts_changes_nothing_but_by_decay(folder, tmp_path):
    options = recipe(ema=0.0, weight_decay=0.0, mitigations=("noise_restriction(lowest=99)",))
    run = train(folder, tmp_path / "run", options)
    assert run.summary["loss"] == 0
    before = Tiny(seed=0).network.state_dict()
    assert all(torch.equal(value, before[name]) for name, value in run.model.network.state_dict().items())


# What is remembered

REMEMBERING = dataclasses.replace(EVENTFUL, mitigations=("token_noise", "anti_gradient", "loss_gate(above=3.0)"))


def remembered(run):
    return (checkpoints.latest(Path(run) / "checkpoints")[1] / "mitigations.safetensors").read_bytes()


@pytest.mark.parametrize("steps", [(1,), (6, 8, 11), (12,)])
def test_after_a_stop_it_remembers_what_it_did(folder, tmp_path, steps):
    train(folder, tmp_path / "whole", REMEMBERING)
    for step in steps:
        with pytest.raises(Stop):
            train(folder, tmp_path / "run", REMEMBERING, progress=stopped_at(step))
    train(folder, tmp_path / "run", REMEMBERING)
    assert result(tmp_path / "run") == result(tmp_path / "whole")
    assert remembered(tmp_path / "run") == remembered(tmp_path / "whole")


LONG_REMEMBERING = dataclasses.replace(LONG, steps=200, mitigations=REMEMBERING.mitigations)


def test_killed_it_ends_in_the_same_bits(folder, tmp_path):
    code = (
        "import sys; from tests.diffusion.mitigations import test_training as t\n"
        "t.train(*sys.argv[1:], t.LONG_REMEMBERING)"
    )
    started = subprocess.Popen([sys.executable, "-c", code, str(folder), str(tmp_path / "run")], cwd=ROOT)
    while (checkpoints.latest(tmp_path / "run" / "checkpoints") or (0,))[0] < 60:
        assert started.poll() is None, "it ended by itself"
        time.sleep(0.02)
    os.kill(started.pid, signal.SIGKILL)
    started.wait()
    assert checkpoints.latest(tmp_path / "run" / "checkpoints")[0] < 200
    train(folder, tmp_path / "run", LONG_REMEMBERING)
    train(folder, tmp_path / "undisturbed", LONG_REMEMBERING)
    assert result(tmp_path / "run") == result(tmp_path / "undisturbed")
    assert remembered(tmp_path / "run") == remembered(tmp_path / "undisturbed")


def test_memories_are_in_checkpoints_by_the_place_of_their_part(folder, tmp_path):
    both = ("loss_gate", "anti_gradient(bins=3)", "anti_gradient(bins=5, below=0.5)")
    train(folder, tmp_path / "run", recipe(mitigations=both))
    saved = load_file(checkpoints.latest(tmp_path / "run" / "checkpoints")[1] / "mitigations.safetensors")
    assert {name: len(value) for name, value in saved.items()} == {"1": 6, "2": 10}
    assert all(value.dtype == torch.float64 and value.any() for value in saved.values())
    train(folder, tmp_path / "none", recipe(mitigations=("loss_gate",)))
    assert not (checkpoints.latest(tmp_path / "none" / "checkpoints")[1] / "mitigations.safetensors").exists()


def losses_of_parts(folder, options):
    """Losses of the first step in each half of its batch, and their noise levels."""
    model, corpus = Tiny(seed=options.seed), Corpus.open(folder)
    sampler = draws.WeightedSampler.from_corpus(corpus, seed=options.seed)
    drawn = data.draw(0, model, options, sampler, draws.CaptionPolicy.from_corpus(corpus), MitigationStack())
    pictures = data.LatentCache(corpus, model, options, None)
    found = []
    for half in (slice(0, 4), slice(4, 8)):
        x0 = pictures.latents(drawn.rows[half], drawn.flips[half], drawn.places[half])
        sigma = drawn.sigma[half]
        with torch.no_grad():
            x = x0 + sigma.view(-1, 1, 1, 1) * drawn.noise[half]
            denoised = model(x, sigma, model.condition(drawn.captions[half]))
        found.append(((model.loss_weight(sigma) * (denoised - x0).square().mean((1, 2, 3))).tolist(), sigma.tolist()))
    return found


TOGETHER = recipe(steps=6, flip=True, gradient_accumulation=2, caption_dropout=0.2,
                  mitigations=("word_repetition(probability=0.5)", "token_noise", "gaussian_noise"))  # fmt: skip
APART = recipe(steps=1, mitigations=("anti_gradient(bins=4)",))


def test_two_processes_train_what_one_does_and_average_what_they_remember(folder, tmp_path):
    in_two_processes(__name__, folder, tmp_path)
    one, two = train(folder, tmp_path / "one", TOGETHER), Run.open(tmp_path / "two", trust_parts=True)
    assert two.summary["loss"] == pytest.approx(one.summary["loss"], rel=1e-5)
    for name, value in one.model.network.state_dict().items():
        torch.testing.assert_close(two.model.network.state_dict()[name], value, rtol=1e-4, atol=1e-6)
    memories = []
    for loss, sigma in losses_of_parts(folder, APART):
        memories.append(part(*APART.mitigations).state())
        part(*APART.mitigations).weigh(batch(loss, sigma), memories[-1])
    saved = load_file(checkpoints.latest(tmp_path / "apart" / "checkpoints")[1] / "mitigations.safetensors")
    assert not torch.allclose(*memories)
    torch.testing.assert_close(saved["0"], sum(memories) / 2, rtol=1e-4, atol=1e-7)


def together(folder, out):
    """What each process of the test above runs."""
    assert os.environ["WORLD_SIZE"] == "2"
    train(folder, Path(out) / "two", TOGETHER)
    train(folder, Path(out) / "apart", APART)


# Texts that are made on the way


@pytest.mark.parametrize("options", [{}, {"cache_text": False}, {"ahead": 1}, {"kept": 100}])
def test_how_new_captions_are_encoded_changes_no_bit(folder, tmp_path, monkeypatch, options):
    told = dataclasses.replace(EVENTFUL, mitigations=("word_repetition(probability=0.7)",))
    train(folder, tmp_path / "one", told)
    calls = []
    encode = Tiny.condition
    monkeypatch.setattr(Tiny, "condition", lambda self, captions: [calls.append(1), encode(self, captions)][1])
    monkeypatch.setattr(loop, "AHEAD", options.get("ahead", loop.AHEAD))
    monkeypatch.setattr(encoded_cache, "KEPT_BYTES", options.get("kept", encoded_cache.KEPT_BYTES))
    told = dataclasses.replace(told, cache_text=options.get("cache_text", True))
    train(folder, tmp_path / "two", told)
    assert result(tmp_path / "one") == result(tmp_path / "two")
    # Once for the captions of the corpus, once for those of the steps that are to come.
    assert len(calls) == 2 if not options else len(calls) > 8


@pytest.mark.parametrize(
    ("specs", "kept", "room"),
    [(("random_tokens(n=2, probability=1.0)",), 2**16, 2**13),
     (("multiple_captions(probability=0.7)", "random_tokens(n=2, probability=0.5)"), 2**13, 2**10)],
)  # fmt: skip
def test_captions_made_anew_are_not_kept_for_ever_and_the_training_sets_are(
    folder, tmp_path, monkeypatch, specs, kept, room
):
    sizes, calls = [], []
    plain = Tiny.condition

    class Watched(TextEmbeddingCache):
        def __call__(self, captions):
            told = super().__call__(captions)
            sizes.append(sum(one.text.nbytes for store in (self._own, self._made) for one in store.found.values()))
            return told

    monkeypatch.setattr(encoded_cache, "KEPT_BYTES", kept)
    monkeypatch.setattr(loop, "TextEmbeddingCache", Watched)
    monkeypatch.setattr(Tiny, "condition", lambda self, captions: [calls.extend(captions), plain(self, captions)][1])
    train(folder, tmp_path / "run", recipe(steps=150, checkpoint_every=150, mitigations=specs))
    own = {caption for captions in Corpus.open(folder).captions for caption in captions}
    counts = collections.Counter(calls)
    assert len(sizes) == 150
    assert len(counts) > 500
    # A caption of Tiny takes 32 bytes.
    assert max(sizes) <= room + 32 * len(own)
    assert {counts[caption] for caption in own} <= {0, 1}
    assert len(own & counts.keys()) == (2 * N if len(specs) > 1 else N)
    # Where there is room for the steps ahead, what is made is encoded once too.
    assert len(specs) > 1 or set(counts.values()) == {1}


# Rows that training leaves out


@pytest.fixture(scope="module")
def with_left_out(tmp_path_factory):
    """Images of which the first six have no weight and the last cannot be read."""
    left_out = write_corpus(tmp_path_factory.mktemp("left-out") / "train")
    rows = [json.loads(line) for line in (left_out / "metadata.jsonl").read_text().splitlines()]
    worlds.write_metadata(left_out, [row | {"weight": float(place >= 6)} for place, row in enumerate(rows)])
    (left_out / f"{N - 1:02d}.png").write_bytes(b"no picture")
    return left_out


def test_partners_in_a_batch_are_rows_that_training_draws(with_left_out, tmp_path, monkeypatch):
    texts, latents = [], []
    mix, fuse = MixUp.perturb, DualFusion.fuse
    monkeypatch.setattr(MixUp, "perturb", lambda self, told, *given: [
        texts.append(told.text), mix(self, told, *given)][1])  # fmt: skip
    monkeypatch.setattr(DualFusion, "fuse", lambda self, x0, *given: [latents.append(x0), fuse(self, x0, *given)][1])
    train(with_left_out, tmp_path / "run", recipe(mitigations=("mix_up", "dual_fusion")))
    model, corpus, drawn = Tiny(), Corpus.open(with_left_out), range(6, N - 1)
    allowed = model.condition([f"picture {row}" for row in drawn]).text.flatten(1)
    assert torch.cat(texts).flatten(1).unique(dim=0).tolist() == allowed.unique(dim=0).tolist()
    allowed = model.encode([square(corpus, row) for row in drawn]).flatten(1)
    assert torch.cat(latents).flatten(1).unique(dim=0).tolist() == allowed.unique(dim=0).tolist()


def test_dual_fusion_leaves_out_images_without_weight(with_left_out):
    told = Tiny().condition(["a caption"] * 100)
    fusion = part(f"dual_fusion(text_share=1.0, images={str(with_left_out)!r})")
    _, found = fusion.fuse(torch.randn(100, *Tiny().shape), told, rngs(100), Tiny())
    drawn = Tiny().condition([f"picture {row}" for row in range(6, N - 1)]).text
    torch.testing.assert_close(found.text.unique(dim=0), drawn.unique(dim=0))


def test_dual_fusion_without_images_is_told_before_anything_is_read(folder, with_left_out, tmp_path, monkeypatch):
    empty, weightless = tmp_path / "empty", write_corpus(tmp_path / "weightless")
    empty.mkdir()
    rows = [{"file_name": path.name, "weight": 0.0} for path in weightless.glob("*.png")]
    worlds.write_metadata(weightless, rows)
    monkeypatch.setattr(training, "_accelerator", None)
    wrong = {tmp_path / "none": "no such file or folder.\nCheck the path",
             empty: "the folder is empty.\nName a folder that holds images",
             weightless: "some above 0.\nSee the column `weight`"}  # fmt: skip
    for images_, why in wrong.items():
        spec = f"dual_fusion(images={str(images_)!r})"
        with pytest.raises(InputError) as caught:
            train(folder, tmp_path / "run", recipe(mitigations=(spec,)))
        assert str(caught.value).startswith(f"{spec}: ")
        assert str(caught.value).endswith(why)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("fresh", [False, True])
def test_a_caption_that_an_image_has_twice_counts_twice(fresh):
    policy, sampler = draws.CaptionPolicy([["a", "a", "b"]], np.array([fresh])), draws.WeightedSampler([1.0])
    options, n = recipe(batch_size=3000), 3000
    _, captions, _ = data.sample_captions(0, options, sampler, policy, MitigationStack((part("multiple_captions"),)))
    assert within(captions.count("b"), n, 1 / 3)


# The recipe


def test_a_run_from_before_there_were_mitigations_has_none(folder, tmp_path):
    train(folder, tmp_path / "run", recipe())
    path = tmp_path / "run" / "recipe.json"
    saved = json.loads(path.read_text())
    assert saved["recipe"].pop("mitigations") == []
    path.write_text(json.dumps(saved))
    (tmp_path / "run" / "summary.json").unlink()
    before = result(tmp_path / "run")
    assert train(folder, tmp_path / "run", recipe()).recipe.mitigations == ()
    assert result(tmp_path / "run") == before
    with pytest.raises(InputError, match="differs in mitigations"):
        train(folder, tmp_path / "run", recipe(mitigations=("token_noise",)))


def test_mitigations_that_cannot_be_are_told_before_captions_are_encoded(folder, tmp_path, monkeypatch):
    monkeypatch.setattr(loop, "TextEmbeddingCache", None)
    with pytest.raises(PartError, match="token_noise"):
        train(folder, tmp_path / "run", recipe(mitigations=("token_nose",)))
    with pytest.raises(InputError, match="acts in sampling only"):
        train(folder, tmp_path / "other", recipe(mitigations=("delayed_guidance",)))
