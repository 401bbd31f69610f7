"""What every mitigation must do; a new file on the shelf is tested by being there."""

from __future__ import annotations

import copy
import dataclasses
import functools
import inspect
import re

import numpy as np
import pytest
import torch
from scipy.stats import binom

from copyscope import Corpus, parts
from copyscope.diffusion import applied, sampling
from copyscope.diffusion.denoiser import DenoiseQuery, DenoiseResult, NearestImage, SamplingContext, guided
from copyscope.diffusion.generate import SampleRecipe, sample
from copyscope.diffusion.mitigations import (
    NEEDS,
    SAMPLING,
    TRAINING,
    Batch,
    Mitigation,
    OnCaption,
    OnConditioning,
    OnDenoiser,
    OnLatents,
    OnLoss,
    OnNoise,
)
from copyscope.diffusion.recipe import TrainRecipe
from copyscope.diffusion.training.train import train
from tests import worlds
from tests.contracts import code_lines

MODEL = "small_unet(size=32, components=24, channels=(32, 32), tokens=8)"
CAPTIONS = ["a red disc on sand", "a blue bar in deep snow", "two rings, one of them green", "a cross"]
OTHERS = ["a crimson disc, seen from above", "a picture of a disc"]
STEPS, SCALE = 5, 3.0
# A spec that acts on the untrained model here, and one turned down to nothing.
SPECS = {
    "anti_gradient": ("anti_gradient(below=0.8)", "anti_gradient(below=0.0)"),
    "antimemorization_guidance": ("antimemorization_guidance", "antimemorization_guidance(strength=0.0)"),
    "attention_rescaling": ("attention_rescaling(factor=3.0)", "attention_rescaling(factor=1.0, mask_padding=False)"),
    "delayed_guidance": ("delayed_guidance(start=0.6)", "delayed_guidance(start=0.0)"),
    "dual_fusion": ("dual_fusion", "dual_fusion(share=0.0, text_share=0.0)"),
    "gaussian_noise": ("gaussian_noise(scale=0.3)", "gaussian_noise(scale=0.0)"),
    "generalised_captions": ("generalised_captions(words=2)", "generalised_captions(probability=0.0)"),
    "loss_gate": ("loss_gate(above=0.1)", "loss_gate(above=0.0)"),
    "mix_up": ("mix_up", "mix_up(probability=0.0)"),
    "multiple_captions": ("multiple_captions(probability=0.5)", "multiple_captions(probability=0.0)"),
    "noise_adjustment": ("noise_adjustment", "noise_adjustment(gamma=0.0)"),
    "noise_restriction": ("noise_restriction(lowest=1.0)", "noise_restriction"),
    "prompt_optimisation": ("prompt_optimisation(target=0.0)", "prompt_optimisation(steps=0)"),
    "prompt_reanchoring": ("prompt_reanchoring(trigger=0.01)", "prompt_reanchoring(paraphrases=0)"),
    "random_caption": ("random_caption(probability=0.3)", "random_caption(probability=0.0)"),
    "random_numbers": ("random_numbers(probability=0.5)", "random_numbers(n=0)"),
    "random_tokens": ("random_tokens(probability=0.5)", "random_tokens(n=0)"),
    "sharpness_aware_noise": ("sharpness_aware_noise(target=0.0)", "sharpness_aware_noise(steps=0)"),
    "token_noise": ("token_noise", "token_noise(scale=0.0)"),
    "word_repetition": ("word_repetition(probability=0.5)", "word_repetition(probability=0.0)"),
}


@functools.cache
def model():
    """Untrained, and moved so that prompts and noise make a difference to what it answers."""
    found = parts.load("models", MODEL)
    with torch.no_grad():
        for number, value in enumerate(found.network.parameters()):
            value += 0.02 * torch.randn(value.shape, generator=torch.Generator().manual_seed(number))
    return found


def find(pictures):
    """A service that knows one training image, and is sure of it."""
    return [NearestImage(0.9, CAPTIONS[0], np.full((32, 32, 3), 90, np.uint8)) for _ in pictures]


def rngs(n, seed=0):
    return applied.sampling_rngs(range(seed, seed + n), 0)


def request(captions=tuple(CAPTIONS), seed=0, predict=None):
    n, told = len(captions), model().condition(captions)
    null = model().condition([""]).take([0] * n)
    noise = sampling.noise(range(seed, seed + n), model().shape)
    return SamplingContext(
        model(), list(captions), told, null, SCALE, 80.0, noise, predict or model(), rngs(n, seed), nearest=find
    )


def kept(*tensors):
    return [tensor.clone() for tensor in tensors]


def check_same(before, *tensors):
    assert all(map(torch.equal, before, tensors)), "what it is given is left as it was"


def check_plain(*tensors):
    for tensor in tensors:
        assert not tensor.requires_grad, "gradients are promised by no hook"
        assert tensor.isfinite().all(), "finite"


def check_mitigation(part: Mitigation, off: Mitigation) -> None:
    """Raises AssertionError where `part`, or `off`, the same turned down to nothing, breaks the contract."""
    assert part.stages, "it acts somewhere"
    assert set(part.stages) <= {TRAINING, SAMPLING}, "stages there are"
    assert set(part.needs) <= set(NEEDS), "needs that can be told"
    for each in (part, off):
        assert parts.load("mitigations", str(each)) == each, "the spec rebuilds the part"
    said = inspect.getdoc(type(part)) or ""
    assert "Source: " in said, "the docstring names its source"
    assert "Cost: " in said, "the docstring says what it costs"
    for field in dataclasses.fields(part):
        assert re.search(rf"\b{field.name}\b", said), f"the docstring explains {field.name}"
    state, grads = copy.deepcopy(model().network.state_dict()), [value.grad for value in model().network.parameters()]
    hooks = count_hooks()
    for hook, check in CHECKS.items():
        if isinstance(part, hook):
            with torch.random.fork_rng(), torch.no_grad():
                check(part, off)
    assert all(torch.equal(value, state[name]) for name, value in model().network.state_dict().items()), "weights stay"
    assert all(value.grad is was for value, was in zip(model().network.parameters(), grads, strict=True)), (
        "no gradients are left on the weights"
    )
    assert count_hooks() == hooks, "no hooks are left"
    if SAMPLING in part.stages:
        check_sampling(part, off)


def count_hooks():
    layers = list(model().network.modules())
    return sum(len(each._forward_hooks) + len(each._forward_pre_hooks) for each in layers)


def check_caption(part: OnCaption, off: OnCaption) -> None:
    given = [*CAPTIONS[:1], *OTHERS]
    before = list(given)
    made = [part.rewrite(given, np.random.default_rng(seed)) for seed in range(400)]
    assert given == before, "what it is given is left as it was"
    assert all(isinstance(caption, str) for caption in made), "a caption is text"
    assert made == [part.rewrite(given, np.random.default_rng(seed)) for seed in range(400)], "the same seed, the same"
    changed = sum(caption != given[0] for caption in made)
    assert changed, "it does something"
    if hasattr(part, "probability"):
        # What it makes may by chance be the caption itself, so only the upper end binds here.
        assert changed <= binom.ppf(1 - 1e-6, 400, part.probability), "no more often than it says"
    assert [off.rewrite(given, np.random.default_rng(seed)) for seed in range(50)] == given[:1] * 50, "off is off"
    for captions in ([""], ["x"], ["  "], ["🍋", ""]):
        assert isinstance(part.rewrite(captions, np.random.default_rng(0)), str), "any caption will do"
    assert part(given, 7) == part(given, 7), "a callable, by seed"
    assert isinstance(part(given[0], 7), str), "of one caption too"


def check_conditioning(part: OnConditioning, off: OnConditioning) -> None:
    asked = request()
    told = asked.conditioning
    before = kept(told.text, told.mask, asked.noise)
    for stage in part.stages:
        given = asked if stage == SAMPLING else None
        found = part.perturb(told, rngs(4), given)
        check_same(before, told.text, told.mask, asked.noise)
        check_plain(found.text)
        assert (found.text.shape, found.mask.shape) == (told.text.shape, told.mask.shape), "shapes are kept"
        assert not same_conditioning(found, told), "it does something"
        assert same_conditioning(part.perturb(told, rngs(4), given), found), "the same seeds, the same"
        assert same_conditioning(off.perturb(told, rngs(4), given), told), "off is off"
        padding = ~(told.mask | found.mask)
        assert torch.equal(found.text[padding], told.text[padding]), "tokens that do not count are left alone"


def same_conditioning(one, other):
    pairs = [(getattr(one, field.name), getattr(other, field.name)) for field in dataclasses.fields(one)]
    return all(a is b or (a is not None and b is not None and torch.equal(a, b)) for a, b in pairs)


def check_latents(part: OnLatents, off: OnLatents) -> None:
    latents, told = sampling.noise(range(4), model().shape), model().condition(CAPTIONS)
    before = kept(latents, told.text, told.mask)
    x0, found = part.fuse(latents, told, rngs(4), model())
    check_same(before, latents, told.text, told.mask)
    check_plain(x0, found.text)
    assert (x0.shape, found.text.shape) == (latents.shape, told.text.shape), "shapes are kept"
    assert not (torch.equal(x0, latents) and torch.equal(found.text, told.text)), "it does something"
    again, same = part.fuse(latents, told, rngs(4), model())
    assert torch.equal(again, x0), "the same seeds, the same"
    assert torch.equal(same.text, found.text), "the same seeds, the same"
    x0, found = off.fuse(latents, told, rngs(4), model())
    assert torch.equal(x0, latents), "off is off"
    assert torch.equal(found.text, told.text), "off is off"


def batches():
    """Three batches of eight, their noise levels from low to high."""
    told = model().condition(CAPTIONS * 2)
    for number in range(3):
        sigma = torch.exp(torch.linspace(-3, 4, 8))
        x = sigma.view(-1, 1, 1, 1) * sampling.noise(range(number * 8, number * 8 + 8), model().shape)
        loss = torch.linspace(0.1, 2.0, 8).roll(number)
        null = model().condition([""]).take([0] * 8)
        yield Batch(loss, x, sigma, model()(x, sigma, told), null, model())


def check_loss(part: OnLoss, off: OnLoss) -> None:
    memory, again, calls = part.state(), part.state(), 0
    weights, offs = [], off.state()
    for batch in batches():

        def predict(*given, at=batch):
            nonlocal calls
            calls += len(given[0])
            return at.predict(*given)

        before = kept(batch.loss, batch.x, batch.sigma, batch.denoised)
        weight = part.weigh(dataclasses.replace(batch, predict=predict), memory)
        check_same(before, batch.loss, batch.x, batch.sigma, batch.denoised)
        check_plain(weight)
        assert weight.shape == batch.loss.shape, "a weight a loss"
        assert (weight >= 0).all(), "weights are not negative"
        assert torch.equal(part.weigh(batch, again), weight), "the same again"
        assert torch.equal(off.weigh(batch, offs), torch.ones(8)), "off is off"
        weights.append(weight)
    assert torch.equal(memory, again), "what it remembers is of what it saw"
    assert memory.dtype == torch.float64, "memory is float64"
    assert any(not torch.equal(weight, torch.ones(8)) for weight in weights), "it does something"
    assert calls == 24 * part.training_calls, "it asks the model as often as it says"


def check_noise(part: OnNoise, off: OnNoise) -> None:
    asked = request()
    before = kept(asked.noise, asked.conditioning.text)
    found = part.draw(asked.noise, asked)
    check_same(before, asked.noise, asked.conditioning.text)
    check_plain(found)
    assert found.shape == asked.noise.shape, "shape is kept"
    assert not torch.equal(found, asked.noise), "it does something"
    assert torch.equal(part.draw(asked.noise, request()), found), "the same seeds, the same"
    assert torch.equal(off.draw(asked.noise, asked), asked.noise), "off is off"


def plain(asked):
    def denoiser(ask):
        with_prompt = asked.predict(ask.x, ask.sigma, asked.conditioning)
        without = asked.predict(ask.x, ask.sigma, asked.null)
        made = guided(with_prompt, without, ask.scale)
        return DenoiseResult(ask.i, ask.n_steps, ask.sigma, ask.x, with_prompt, without, made, ask.scale)

    return denoiser


def check_denoiser(part: OnDenoiser, off: OnDenoiser) -> None:
    asked = request()
    levels = [80.0, 9.0, 2.0, 0.6, 0.1]
    asks = [
        DenoiseQuery(level * asked.noise, torch.full((4,), level), i, STEPS, torch.full((4,), SCALE))
        for i, level in enumerate(levels)
    ]
    before = kept(asks[1].x, asks[1].sigma, asks[1].scale)
    found = list(map(part.wrap(plain(asked), request()), asks))
    check_same(before, asks[1].x, asks[1].sigma, asks[1].scale)
    usual = list(map(plain(asked), asks))
    check_plain(*(step.denoised for step in found))
    assert all(step.denoised.shape == asked.noise.shape for step in found), "shape is kept"
    assert any(not torch.equal(a.denoised, b.denoised) for a, b in zip(found, usual, strict=True)), "it does something"
    again = list(map(part.wrap(plain(asked), request()), asks))
    assert all(torch.equal(a.denoised, b.denoised) for a, b in zip(found, again, strict=True)), (
        "the same seeds, the same"
    )
    same = list(map(off.wrap(plain(asked), request()), asks))
    assert all(torch.equal(a.denoised, b.denoised) for a, b in zip(same, usual, strict=True)), "off is off"


CHECKS = {
    OnCaption: check_caption,
    OnConditioning: check_conditioning,
    OnLatents: check_latents,
    OnLoss: check_loss,
    OnNoise: check_noise,
    OnDenoiser: check_denoiser,
}


def made(captions, seeds, *mitigations, counted=None):
    recipe = SampleRecipe(n_images=4, steps=STEPS, guidance=SCALE)
    found = applied.MitigationStack(mitigations)
    told = [found.caption([caption], lambda number, seed=seed: applied.sampling_rngs([seed], number)[0])
            for caption, seed in zip(captions, seeds, strict=True)]  # fmt: skip
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(applied, "load", lambda *given, **options: found)
        if counted is not None:
            asks = type(model()).__call__

            def counting(self, x, *given):
                counted.append(len(x))
                return asks(self, x, *given)

            patch.setattr(type(model()), "__call__", counting)
        return np.stack(sample(model(), model().condition(told), seeds, recipe, prompts=told, nearest=find))


def check_sampling(part: Mitigation, off: Mitigation) -> None:
    """Where the images are made: off changes no pixel, an image depends on itself alone, calls are as documented."""
    seeds, usual, calls = [11, 12, 13, 14], [], []
    before = made(CAPTIONS, seeds, counted=usual)
    assert np.array_equal(made(CAPTIONS, seeds, off), before), "off changes no pixel"
    found = made(CAPTIONS, seeds, part, counted=calls)
    assert np.array_equal(made(CAPTIONS, seeds, part), found), "the same seeds, the same pixels"
    order = [2, 0, 3, 1]
    turned = made([CAPTIONS[row] for row in order], [seeds[row] for row in order], part)
    assert np.array_equal(turned, found[order]), "an image depends on its own prompt and seed alone"
    assert np.array_equal(made(CAPTIONS[:1], seeds[:1], part), found[:1]), "whatever the others are"
    # Blocks are filled up to four rows, so whole blocks count.
    assert sum(calls) - sum(usual) <= 4 * part.calls(STEPS), "it asks the model no more often than it says"


@pytest.fixture(autouse=True)
def as_it_was():
    """What these checks do to torch's global generator is of no account to others."""
    with torch.random.fork_rng():
        yield


@pytest.mark.parametrize("name", parts.names("mitigations"))
def test_every_mitigation_keeps_the_contract(name):
    on, off = (parts.load("mitigations", spec) for spec in SPECS.get(name, (name, name)))
    check_mitigation(on, off)
    assert code_lines(inspect.getmodule(type(on))) <= 75, "one small file"


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    return Corpus.open(worlds.world(tmp_path_factory.mktemp("mitigations"), 12, 0, 0, duplicates=()).train)


@pytest.fixture(scope="module")
def plainly_trained(corpus, tmp_path_factory):
    return weights(corpus, tmp_path_factory.mktemp("plain") / "run", ())


def weights(corpus, folder, mitigations):
    recipe = TrainRecipe(
        model=MODEL, steps=3, batch_size=8, caption_dropout=0.3, tracker="none", warmup_steps=0, ema=0.0, decay=0.0
    )
    run = train(corpus, folder, dataclasses.replace(recipe, mitigations=mitigations))
    return {name: value.clone() for name, value in run.model.network.state_dict().items()}


@pytest.mark.parametrize("name", [
    name for name in parts.names("mitigations") if TRAINING in parts.part_class("mitigations", name).stages
])  # fmt: skip
def test_training_with_it_off_changes_no_weight(name, corpus, plainly_trained, tmp_path):
    found = weights(corpus, tmp_path / "run", (SPECS[name][1],))
    assert all(torch.equal(value, plainly_trained[key]) for key, value in found.items())


@dataclasses.dataclass(frozen=True)
class Good(OnConditioning):
    """Adds noise, as it should.

    Source: this file. scale: of the noise. Cost: none.
    """

    scale: float = 0.5

    def perturb(self, conditioning, rngs, request=None):
        noise = np.stack([rng.standard_normal(conditioning.text.shape[1:], np.float32) for rng in rngs])
        moved = conditioning.text + self.scale * torch.from_numpy(noise) * conditioning.mask[..., None]
        return dataclasses.replace(conditioning, text=moved)


@dataclasses.dataclass(frozen=True)
class Draws(Good):
    __doc__ = Good.__doc__

    def perturb(self, conditioning, rngs, request=None):
        return dataclasses.replace(conditioning, text=conditioning.text + self.scale * torch.rand(1))


@dataclasses.dataclass(frozen=True)
class Mutates(Good):
    __doc__ = Good.__doc__

    def perturb(self, conditioning, rngs, request=None):
        found = super().perturb(conditioning, rngs)
        conditioning.text.copy_(found.text)
        return found


@dataclasses.dataclass(frozen=True)
class OnPadding(Good):
    __doc__ = Good.__doc__

    def perturb(self, conditioning, rngs, request=None):
        return dataclasses.replace(conditioning, text=conditioning.text + self.scale)


@dataclasses.dataclass(frozen=True)
class NeverOff(Good):
    __doc__ = Good.__doc__

    def perturb(self, conditioning, rngs, request=None):
        return Good(self.scale + 0.1).perturb(conditioning, rngs)


@dataclasses.dataclass(frozen=True)
class Shortens(Good):
    __doc__ = Good.__doc__

    def perturb(self, conditioning, rngs, request=None):
        found = super().perturb(conditioning, rngs)
        return dataclasses.replace(found, text=found.text[:, :4], mask=found.mask[:, :4])


@dataclasses.dataclass(frozen=True)
class Crosstalk(Good):
    __doc__ = Good.__doc__

    stages = (SAMPLING,)

    def perturb(self, conditioning, rngs, request=None):
        text = conditioning.text + self.scale * conditioning.text.mean(0) * conditioning.mask[..., None]
        return dataclasses.replace(conditioning, text=text)


@dataclasses.dataclass(frozen=True)
class Trains(Good):
    __doc__ = Good.__doc__

    stages = (SAMPLING,)

    def perturb(self, conditioning, rngs, request=None):
        with torch.enable_grad():
            if self.scale:
                request.apart(request.noise, torch.full((len(rngs),), 2.0)).sum().backward()
        return super().perturb(conditioning, rngs)


@dataclasses.dataclass(frozen=True)
class Asks(Good):
    __doc__ = Good.__doc__

    stages = (SAMPLING,)

    def perturb(self, conditioning, rngs, request=None):
        request.apart(request.noise, torch.full((len(rngs),), 2.0))
        return super().perturb(conditioning, rngs)


@dataclasses.dataclass(frozen=True)
class Idle(Good):
    __doc__ = Good.__doc__

    def perturb(self, conditioning, rngs, request=None):
        return conditioning


@dataclasses.dataclass(frozen=True)
class Unsaid(Good):
    """Says nothing."""


@dataclasses.dataclass(frozen=True)
class Negative(OnLoss):
    """Weighs below nothing. Source: this file. scale: of it. Cost: none."""

    scale: float = 1.0

    def weigh(self, batch, memory):
        return 1 - self.scale * batch.loss * 2


@dataclasses.dataclass(frozen=True)
class Forgetful(OnCaption):
    """Draws from the global generator. Source: this file. probability: of it. Cost: none."""

    probability: float = 0.5

    def rewrite(self, captions, rng):
        return captions[int(torch.rand(1) < self.probability)]


def test_the_good_part_keeps_the_contract():
    check_mitigation(Good(), Good(0.0))


@pytest.mark.parametrize(("broken", "said"), [
    (Draws, "same seeds"),
    (Mutates, "left as it was"),
    (OnPadding, "left alone|off is off"),
    (NeverOff, "off is off"),
    (Shortens, "shapes are kept"),
    (Crosstalk, "its own prompt|whatever the others"),
    (Trains, "no gradients are left"),
    (Asks, "no more often"),
    (Idle, "does something"),
    (Unsaid, "names its source"),
    (Negative, "not negative"),
    (Forgetful, "same seed"),
])  # fmt: skip
def test_a_broken_part_is_rejected(broken, said):
    part = broken()
    field = dataclasses.fields(part)[0].name
    try:
        with pytest.raises(AssertionError, match=said):
            check_mitigation(part, dataclasses.replace(part, **{field: 0.0}))
    finally:
        for value in model().network.parameters():
            value.grad = None
