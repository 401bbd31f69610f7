"""The mitigations of sampling that ask the model: against closed forms of a linear model, and by what they do."""

from __future__ import annotations

import dataclasses
import functools
import threading
import types

import numpy as np
import pytest
import torch

from copyscope import parts
from copyscope.curation.captions import paraphrases
from copyscope.diffusion import applied, generate, sampling
from copyscope.diffusion.conditioning import Conditioning
from copyscope.diffusion.denoiser import (
    DenoiseQuery,
    DenoiseResult,
    NearestImage,
    SamplingContext,
    guided,
    text_conditional_norm,
)
from copyscope.diffusion.generate import SampleRecipe, sample
from copyscope.diffusion.mitigations import NEAREST, PROMPTS, prompt_optimisation, sharpness_aware_noise
from copyscope.diffusion.mitigations._start import guidance_direction
from copyscope.diffusion.mitigations.antimemorization_guidance import AntimemorizationGuidance
from copyscope.diffusion.mitigations.attention_rescaling import AttentionRescaling
from copyscope.diffusion.mitigations.delayed_guidance import DelayedGuidance
from copyscope.diffusion.mitigations.noise_adjustment import NoiseAdjustment
from copyscope.diffusion.mitigations.prompt_optimisation import PromptOptimisation
from copyscope.diffusion.mitigations.prompt_reanchoring import PromptReanchoring
from copyscope.diffusion.mitigations.sharpness_aware_noise import SharpnessAwareNoise
from copyscope.diffusion.models import Model, Trainable
from copyscope.diffusion.models.small_unet import SmallUNet
from copyscope.diffusion.models.stable_diffusion import StableDiffusion
from copyscope.errors import InputError, PartError
from tests import worlds
from tests.models import tiny_stable_diffusion

CAPTIONS = ["a red disc", "snow", "two rings and more"]
SIGMA, SCALE = 5.0, 3.0
ATTENDING = ("small_unet", "sd1", "sdxl")
# Each at a strength that acts on the models here, whatever their norms are.
ACTING = [
    PromptOptimisation(steps=2, target=0.0),
    NoiseAdjustment(rho=20.0, rounds=1),
    SharpnessAwareNoise(steps=2, target=0.0),
    AttentionRescaling(factor=3.0),
    PromptReanchoring(paraphrases=2, threshold=0.0, trigger=0.0, full=0.01),
    AntimemorizationGuidance(despecification=0.5, every=2),
    DelayedGuidance(start=0.4),
]
OFF = [
    PromptOptimisation(steps=0),
    NoiseAdjustment(gamma=0.0),
    NoiseAdjustment(rounds=0),
    SharpnessAwareNoise(steps=0),
    AttentionRescaling(factor=1.0, mask_padding=False),
    PromptReanchoring(paraphrases=0),
    AntimemorizationGuidance(strength=0.0),
    DelayedGuidance(start=0.0),
]


def column(values):
    return values.view(-1, 1, 1, 1)


@dataclasses.dataclass(frozen=True)
class Toy(Trainable):
    """D = x / (1 + sigma^2) + a M x + b V, with (a, b) the mean state of the tokens that count; "" has states of 0.

    Four tokens a caption: one of 0, one a word, the others padding that holds what no one should look at.
    """

    @property
    def shape(self):
        return 3, 2, 2

    @property
    def sigmas(self):
        return 0.1, SIGMA

    @functools.cached_property
    def map(self):
        rng = np.random.default_rng(1)
        return torch.tensor(rng.normal(size=(12, 12)) / 4), torch.tensor(rng.normal(size=12))

    def __call__(self, x, sigma, conditioning):
        counted = conditioning.mask.double()[..., None]
        a, b = ((conditioning.text.double() * counted).sum(1) / counted.sum(1)).unbind(1)
        matrix, vector = self.map
        told = a[:, None] * (x.double().flatten(1) @ matrix.T) + b[:, None] * vector
        return (x / (1 + column(sigma) ** 2) + told.view_as(x)).float()

    def condition(self, captions):
        text, mask = torch.full((len(captions), 4, 2), 9.0), torch.zeros(len(captions), 4, dtype=torch.bool)
        for row, caption in enumerate(captions):
            words = caption.split()[:3]
            text[row, : len(words) + 1], mask[row, : len(words) + 1] = 0, True
            for place, word in enumerate(words):
                text[row, place + 1] = torch.tensor(np.random.default_rng(list(word.encode())).normal(size=2))
        return Conditioning(text, mask)

    def decode(self, latents):
        return list((latents.permute(0, 2, 3, 1) * 9 + 128).clamp(0, 255).to(torch.uint8).numpy())

    @property
    def network(self):
        return torch.nn.Identity()

    @property
    def image_size(self):
        return 2

    def encode(self, pictures):
        return torch.from_numpy(np.stack(pictures)).permute(0, 3, 1, 2).float() / 255

    def noise_levels(self, uniform):
        return 0.1 + uniform * (SIGMA - 0.1)

    def loss_weight(self, sigma):
        return sigma**-2

    def save(self, folder):
        raise NotImplementedError

    def with_weights(self, folder):
        return self


@dataclasses.dataclass(frozen=True)
class Counted:
    """A model as `predict`, that adds up the rows it is asked."""

    model: Model
    rows: list = dataclasses.field(default_factory=list)

    def __call__(self, x, sigma, told):
        self.rows.append(len(x))
        with self.model.attending(told.emphasis):
            return self.model(x, sigma, told)


def similar(pictures, similarity=0.9, caption="two rings and more"):
    return [NearestImage(similarity, caption, np.full((3, 4, 3), 40, np.uint8)) for _ in pictures]


def ask_of(captions=CAPTIONS, seeds=None, model=None, nearest=similar):
    """A request of these captions, each with the noise and the generator of its own seed."""
    model = model or Toy()
    seeds, n = list(range(len(captions))) if seeds is None else seeds, len(captions)
    null = model.condition([""]).take([0] * n)
    noise = sampling.noise(seeds, model.shape)
    sigma, rngs = model.sigmas[1], applied.sampling_rngs(seeds, 0)
    told = model.condition(captions)
    return SamplingContext(model, list(captions), told, null, SCALE, sigma, noise, Counted(model), rngs, nearest)


def norms(request, noise=None, told=None):
    """Text-conditional norms where sampling starts."""
    noise = request.noise if noise is None else noise
    sigma = torch.full((len(noise),), request.sigma)
    return text_conditional_norm(request.apart(noise * request.sigma, sigma, told), sigma)


def plain(request):
    def denoiser(ask):
        prompt = request.predict(ask.x, ask.sigma, request.conditioning)
        none = request.predict(ask.x, ask.sigma, request.null)
        return DenoiseResult(
            ask.i, ask.n_steps, ask.sigma, ask.x, prompt, none, guided(prompt, none, ask.scale), ask.scale
        )

    return denoiser


def asks(request, n_steps=5):
    """What a sampler might ask, from the first noise level down."""
    n = len(request.noise)
    levels = np.geomspace(request.sigma, 0.2, n_steps)
    return [
        DenoiseQuery(request.noise * level, torch.full((n,), level), i, n_steps, torch.full((n,), SCALE))
        for i, level in enumerate(map(float, levels))
    ]


def adam(start, gradient, rate, steps):
    """Adam in numpy, by the paper's algorithm 1."""
    x, m, v = start.copy(), 0.0, 0.0
    for t in range(1, steps + 1):
        g = gradient(x)
        m, v = 0.9 * m + 0.1 * g, 0.999 * v + 0.001 * g * g
        x = x - rate * (m / (1 - 0.9**t)) / (np.sqrt(v / (1 - 0.999**t)) + 1e-8)
    return x


def of_toy(request, row):
    """In float64: the Toy's M and V, the mean state (a, b) of a row, and its noise."""
    matrix, vector = (each.numpy() for each in Toy().map)
    told = request.conditioning
    a, b = told.text[row][told.mask[row]].double().mean(0).tolist()
    return matrix, vector, a, b, request.noise[row].double().numpy().ravel()


def test_optimised_prompts_are_those_of_adam_on_the_norm():
    request = ask_of()
    found = PromptOptimisation(steps=3, rate=0.1, target=0.0).perturb(request.conditioning, request.rngs, request)
    for row, words in enumerate((3, 1, 3)):
        matrix, vector, _, _, noise = of_toy(request, row)
        moved = np.stack([matrix @ noise, vector / SIGMA])

        def gradient(states, moved=moved, words=words):
            apart = (states.sum(0) / (words + 1)) @ moved
            each = moved @ apart / np.linalg.norm(apart) / (words + 1)
            return np.tile(each, (words, 1))

        start = request.conditioning.text[row, 1 : words + 1].double().numpy()
        np.testing.assert_allclose(found.text[row, 1 : words + 1], adam(start, gradient, 0.1, 3), atol=1e-5)
        assert torch.equal(found.text[row, 0], request.conditioning.text[row, 0])
        assert torch.equal(found.text[row, words + 1 :], request.conditioning.text[row, words + 1 :])
    assert torch.equal(found.mask, request.conditioning.mask)


def test_a_prompt_of_one_token_is_moved_too():
    request = ask_of()
    told = Conditioning(torch.ones(3, 1, 2), torch.ones(3, 1, dtype=torch.bool))
    found = PromptOptimisation(steps=1, rate=0.1, target=0.0).perturb(told, request.rngs, request)
    assert ((found.text - told.text).abs() - 0.1).abs().max() < 1e-4


def test_each_prompt_is_moved_until_its_own_norm_is_at_the_target():
    request = ask_of()
    before = norms(request)
    target = float(before.sort().values[:2].mean())
    part = PromptOptimisation(steps=50, target=target)
    found = part.perturb(request.conditioning, request.rngs, request)
    after = norms(request, told=found)
    assert ((before <= target).sum(), (after <= target).all()) == (1, True)
    one = int(before.argmin())
    assert torch.equal(found.text[one], request.conditioning.text[one])
    for row in range(3):
        alone = ask_of([CAPTIONS[row]], [row])
        assert torch.equal(part.perturb(alone.conditioning, alone.rngs, alone).text[0], found.text[row])
        if row != one:  # The step before the last was not enough.
            assert after[row] > target - 0.1 * (before[row] - target) - 0.05


def test_adjusted_noise_is_that_of_the_formula():
    request, part = ask_of(), NoiseAdjustment(gamma=0.4, rho=2.0, rounds=2)
    found = part.draw(request.noise, request)
    for row in range(3):
        matrix, vector, a, b, noise = of_toy(request, row)

        def difference(noise, matrix=matrix, vector=vector, a=a, b=b):
            # Of predicted noise, (x - D) / sigma, at x = sigma * noise.
            return -(a * matrix @ (SIGMA * noise) + b * vector) / SIGMA

        for _ in range(2):
            here = difference(noise)
            noise = noise - 0.4 * (difference(noise + 2.0 * here / np.linalg.norm(here)) - here)
        np.testing.assert_allclose(found[row].numpy().ravel(), noise, atol=1e-5)


def test_sharpness_aware_noise_is_that_of_adam_on_the_formula():
    request = ask_of()
    found = SharpnessAwareNoise(steps=3, rate=0.1, weight=0.2, target=0.0).draw(request.noise, request)
    for row in range(3):
        matrix, vector, a, b, noise = of_toy(request, row)

        def gradient(noise, matrix=matrix, vector=vector, a=a, b=b):
            here = -(a * matrix @ noise + b * vector / SIGMA)
            ahead = -(a * matrix @ (noise + here / np.linalg.norm(here)) + b * vector / SIGMA)
            return -a * matrix.T @ ahead / np.linalg.norm(ahead) + 0.2 * noise / np.linalg.norm(noise)

        np.testing.assert_allclose(found[row].numpy().ravel(), adam(noise, gradient, 0.1, 3), atol=1e-5)


def test_noise_is_moved_until_its_own_loss_is_at_the_target():
    request = ask_of()

    def loss(noise):
        here = guidance_direction(noise, request)
        ahead = guidance_direction(noise + here / here.flatten(1).norm(dim=1).view(-1, 1, 1, 1), request)
        return ahead.flatten(1).norm(dim=1) + 0.1 * noise.flatten(1).norm(dim=1)

    before = loss(request.noise)
    target = float(before.sort().values[:2].mean())
    found = SharpnessAwareNoise(steps=200, weight=0.1, target=target).draw(request.noise, request)
    assert (loss(found) <= target + 1e-5).all()
    still = before <= target
    assert torch.equal(found[still], request.noise[still])
    assert (found[~still] != request.noise[~still]).any()


def test_where_a_prompt_does_not_pull_noise_stays_finite():
    request = ask_of(["", "", ""])
    assert torch.equal(NoiseAdjustment().draw(request.noise, request), request.noise)
    assert SharpnessAwareNoise(target=0.0).draw(request.noise, request).isfinite().all()
    found = PromptOptimisation(target=0.0).perturb(request.conditioning, request.rngs, request)
    assert found.text.isfinite().all()


@pytest.mark.parametrize("part", [
    PromptOptimisation(steps=3, target=0.0),
    PromptOptimisation(steps=0),
    NoiseAdjustment(rounds=3),
    NoiseAdjustment(gamma=0.0),
    SharpnessAwareNoise(steps=2, target=0.0),
    AttentionRescaling(),
], ids=str)  # fmt: skip
def test_parts_that_act_at_the_start_ask_as_often_as_they_say(part):
    request = ask_of()
    if hasattr(part, "draw"):
        part.draw(request.noise, request)
    else:
        part.perturb(request.conditioning, request.rngs, request)
    assert sum(request.predict.rows) == 3 * part.calls(5)


@pytest.mark.parametrize(("part", "asked"), [
    (PromptReanchoring(paraphrases=2, threshold=0.0, trigger=0.0, full=0.1), 2 + 1 + 5),
    (PromptReanchoring(paraphrases=2, trigger=1e6, full=2e6), 0),
    (PromptReanchoring(paraphrases=0), 0),
    (AntimemorizationGuidance(despecification=0.5), 5),
    (AntimemorizationGuidance(despecification=0.5, start=0.55), 2),
    (AntimemorizationGuidance(), 0),  # Despecification takes all of it.
    (AntimemorizationGuidance(strength=0.0), 0),
    (DelayedGuidance(), 0),
], ids=str)  # fmt: skip
def test_parts_that_act_at_each_step_ask_as_often_as_they_say(part, asked):
    request = ask_of()
    wrapped = part.wrap(plain(request), request)
    for ask in asks(request):
        wrapped(ask)
    extra = sum(request.predict.rows) - 3 * 2 * 5
    assert extra == 3 * asked <= 3 * part.calls(5)
    if asked:
        assert asked == part.calls(5)


@pytest.mark.parametrize(("part", "asked"), [
    (DelayedGuidance(), 0),
    (AntimemorizationGuidance(despecification=0.5), 9),
    (AntimemorizationGuidance(despecification=0.5, start=0.55), 3),  # From the fourth step on: 2 + 1.
    (PromptReanchoring(paraphrases=2, threshold=0.0, trigger=0.0, full=0.1), 2 + 1 + 9),
    (PromptOptimisation(steps=3, target=0.0), 3 + 1),
], ids=str)  # fmt: skip
def test_calls_are_counted_by_what_the_sampler_asks(part, asked, monkeypatch):
    """Heun's asks nine times in five steps."""
    rows, plain = [], Toy.__call__
    monkeypatch.setattr(Toy, "__call__", lambda self, x, *given: rows.append(len(x)) or plain(self, x, *given))
    recipe = SampleRecipe(n_images=1, steps=5, sampler="heun", guidance=SCALE, mitigations=(str(part),))
    sample(Toy(), Toy().condition(["snow"]), [3], recipe, prompts=["snow"], nearest=similar)
    assert sum(rows) - 2 * 9 == asked <= part.calls(9)


@pytest.mark.parametrize(("part", "module"), [
    (PromptOptimisation(steps=3, target=0.0), prompt_optimisation),
    (PromptOptimisation(steps=50, rate=0.2, target=0.4), prompt_optimisation),
    (SharpnessAwareNoise(steps=3, target=0.0), sharpness_aware_noise),
], ids=str)  # fmt: skip
def test_gradients_are_taken_of_no_more_images_than_the_model_is_shown(part, module, monkeypatch):
    captions, found, taken = [*CAPTIONS, "a dog", "snow"], [], []
    monkeypatch.setattr(
        module, "descend", lambda start, *rest, of=module.descend: taken.append(len(start)) or of(start, *rest)
    )
    for size in (64, 2):
        monkeypatch.setattr(generate, "BLOCK_IMAGES", size)
        # Each image has a null of its own.
        specs = ("gaussian_noise(scale=0.3, both=True)", str(part))
        recipe = SampleRecipe(n_images=5, steps=2, guidance=SCALE, mitigations=specs)
        found.append(sample(Toy(), Toy().condition(captions), range(5), recipe, prompts=captions))
    assert taken == [5, 2, 2, 1]
    assert all(map(np.array_equal, *found))


def test_once_all_have_stopped_nothing_more_is_asked():
    request = ask_of()
    PromptOptimisation(target=1e6).perturb(request.conditioning, request.rngs, request)
    assert request.predict.rows == [3, 3]  # Without a prompt, and with it.
    request = ask_of()
    SharpnessAwareNoise(target=1e6).draw(request.noise, request)
    assert sum(request.predict.rows) == 3 * 4


def moved_unet():
    """A small_unet whose prompts and noise make a difference, though it has not learnt anything."""
    model = SmallUNet(size=32, components=24, channels=(32, 32), tokens=8)
    with torch.no_grad():
        for number, value in enumerate(model.network.parameters()):
            value += 0.02 * torch.randn(value.shape, generator=torch.Generator().manual_seed(number))
    return model


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    folder = tmp_path_factory.mktemp("pipelines")
    kinds = {
        kind: StableDiffusion(str(tiny_stable_diffusion(folder / kind, kind)), on="cpu")
        for kind in ("sd1", "sdxl", "sd3")
    }
    return {"toy": Toy(), "small_unet": moved_unet()} | kinds


@pytest.fixture(scope="module")
def usually():
    """Model -> the images it makes without a mitigation."""
    return {}


@pytest.mark.parametrize("name", ["small_unet", "sd1", "sdxl", "sd3"])
def test_the_norm_falls(name, models):
    request = ask_of(model=models[name])
    with torch.no_grad():
        before = norms(request)
        prompt = PromptOptimisation(target=0.0).perturb(request.conditioning, request.rngs, request)
        assert (norms(request, told=prompt) < before).all()
        flatter = SharpnessAwareNoise(target=0.0, weight=0.0).draw(request.noise, request)
        assert (norms(request, noise=flatter) < before).all()


def test_the_norm_falls_without_gradients_too():
    """Where D is the gradient of a convex function, as it is near the flat of what noise attracts."""
    request = ask_of()
    matrix, vector = Toy().map
    toy = Toy()
    toy.__dict__["map"] = (matrix @ matrix.T, 0 * vector)
    request = dataclasses.replace(request, model=toy, predict=Counted(toy))
    before = norms(request)
    found = NoiseAdjustment(gamma=0.5, rho=2.0).draw(request.noise, request)
    assert (norms(request, noise=found) < before).all()


@pytest.mark.parametrize(("name", "part"), [
    pytest.param(name, part, id=f"{name}-{str(part).partition('(')[0]}")
    for name in ("toy", "small_unet", "sd1", "sdxl", "sd3") for part in ACTING
    if name in ATTENDING or not isinstance(part, AttentionRescaling)
])  # fmt: skip
def test_an_image_is_its_own_prompts_and_seeds_whatever_the_batch(name, part, models, usually):
    model = models[name]
    captions, seeds = [*CAPTIONS, "snow"], [5, 6, 7, 8]

    def made(rows, *mitigations):
        recipe = SampleRecipe(n_images=4, steps=2, guidance=SCALE, mitigations=mitigations)
        prompts = [captions[row] for row in rows]
        told = model.condition(prompts)
        return sample(model, told, [seeds[row] for row in rows], recipe, prompts=prompts, nearest=similar)

    parameters = list(model.network.parameters())
    required = [value.requires_grad for value in parameters]
    found = made(range(4), str(part))
    assert all(map(np.array_equal, made([2, 0], str(part)), [found[2], found[0]]))
    assert np.array_equal(made([3], str(part))[0], found[3])
    if name not in usually:
        usually[name] = made(range(4))
    assert not all(map(np.array_equal, usually[name], found))
    assert [value.requires_grad for value in parameters] == required
    assert all(value.grad is None for value in parameters)
    hooks = [hook for layer in model.network.modules() for hook in layer._forward_hooks]
    assert not hooks


@pytest.mark.parametrize("part", OFF, ids=str)
@pytest.mark.parametrize("name", ["small_unet", "sd1"])
def test_turned_down_to_nothing_it_changes_no_pixel(name, part, models):
    recipe = SampleRecipe(n_images=3, steps=3, guidance=SCALE)
    usual, found = (
        sample(models[name], models[name].condition(CAPTIONS), [1, 2, 3], each, prompts=CAPTIONS, nearest=similar)
        for each in (recipe, dataclasses.replace(recipe, mitigations=(str(part),)))
    )
    assert all(map(np.array_equal, usual, found))
    assert part.calls(3) == 0


def test_inputs_are_left_as_they_were():
    request = ask_of()
    given = [request.noise, request.conditioning.text, request.conditioning.mask, request.null.text]
    before = [each.clone() for each in given]
    for part in ACTING[:3]:
        if hasattr(part, "draw"):
            found = part.draw(request.noise, request)
        else:
            found = part.perturb(request.conditioning, request.rngs, request).text
        assert not found.requires_grad
    assert all(map(torch.equal, given, before))


class Stressed:
    """Attention written out, with the logits of the first token multiplied by one factor a row."""

    def __init__(self, factors):
        self.factors = factors

    def __call__(self, attn, hidden_states, encoder_hidden_states=None, attention_mask=None, **_):
        n, places, _ = hidden_states.shape
        split = [
            each.view(n, each.shape[1], attn.heads, -1).transpose(1, 2)
            for each in (attn.to_q(hidden_states), attn.to_k(encoder_hidden_states), attn.to_v(encoder_hidden_states))
        ]
        logits = split[0] @ split[1].transpose(2, 3) * attn.scale
        logits[..., 0] *= self.factors.view(-1, 1, 1)
        if attention_mask is not None:
            logits = logits + attention_mask.view(n, 1, 1, -1)
        out = (logits.softmax(-1) @ split[2]).transpose(1, 2).reshape(n, places, -1)
        return attn.to_out[0](out)


@pytest.mark.parametrize("name", ATTENDING)
@torch.no_grad()
def test_rescaled_attention_is_that_of_scaled_logits(name, models):
    model = models[name]
    request = ask_of(model=model)
    part = AttentionRescaling(factor=2.5, mask_padding=False)
    told = part.perturb(request.conditioning, request.rngs, request)
    both = Conditioning.join([told, request.null])
    x, sigma = request.noise.repeat(2, 1, 1, 1) * request.sigma, torch.full((6,), request.sigma)
    found = request.predict(x, sigma, both)
    usual = model(x, sigma, both)
    factors = torch.tensor([2.5] * 3 + [1.0] * 3)
    layers = model.cross_attentions
    kept = [layer.processor for layer in layers]
    try:
        for layer in layers:
            layer.set_processor(Stressed(factors))
        expected = model(x, sigma, both)
    finally:
        for layer, processor in zip(layers, kept, strict=True):
            layer.set_processor(processor)
    scale = usual.abs().max()
    assert (found - expected).abs().max() < 1e-5 * scale
    assert torch.equal(found[3:], usual[3:])  # Without a prompt, to the bit.
    assert (found[:3] != usual[:3]).flatten(1).any(1).all()


def test_twice_rescaled_is_rescaled_by_the_product(models):
    request = ask_of(model=models["small_unet"])
    once = AttentionRescaling(factor=1.5).perturb(request.conditioning, request.rngs, request)
    twice = AttentionRescaling(factor=2.0).perturb(once, request.rngs, request)
    assert twice.emphasis.tolist() == [3.0] * 3
    assert once.emphasis.tolist() == [1.5] * 3
    assert once.take([2, 0]).emphasis.tolist() == [1.5] * 2
    assert once.to("cpu").emphasis.tolist() == [1.5] * 3
    joined = Conditioning.join([request.null, once])
    assert joined.emphasis.tolist() == [1.0] * 3 + [1.5] * 3
    assert Conditioning.join([request.null, request.null]).emphasis is None


@pytest.mark.parametrize("name", ["sd1", "sdxl"])
@torch.no_grad()
def test_masked_padding_is_as_if_it_were_not_there(name, models):
    model = models[name]
    request = ask_of(["ab c", "", "a long caption that is cut at the end of it all"], model=model)
    part = AttentionRescaling(factor=1.0)
    told = part.perturb(request.conditioning, request.rngs, request)
    lengths = [len(each) for each in model.tokenizer(request.prompts, truncation=True)["input_ids"]]
    assert told.mask.sum(1).tolist() == lengths
    assert lengths[1:] == [2, 20]  # Start and end; and all that there is room for.
    x, sigma = request.noise * request.sigma, torch.full((3,), request.sigma)
    found = request.predict(x, sigma, told)
    for row, length in enumerate(lengths):
        cut = told.take([row])
        cut = Conditioning(cut.text[:, :length], cut.mask[:, :length], cut.pooled)
        expected = model(x[[row]], sigma[[row]], cut)
        assert (found[row] - expected[0]).abs().max() < 1e-5 * found.abs().max()
    usual = model(x, sigma, request.conditioning)
    assert torch.equal(found[2], usual[2])  # Who keeps all tokens is told what it was, to the bit.
    assert not torch.equal(found[0], usual[0])


@torch.no_grad()
def test_a_pipeline_is_told_of_no_mask_that_leaves_nothing_out(models, monkeypatch):
    model, masks = models["sd1"], []
    ask = model.network.forward

    def spy(*given, encoder_attention_mask=None, **options):
        masks.append(encoder_attention_mask)
        return ask(*given, encoder_attention_mask=encoder_attention_mask, **options)

    monkeypatch.setattr(model.network, "forward", spy)
    request = ask_of(model=model)
    model(request.noise, torch.ones(3), request.conditioning)
    model(request.noise, torch.ones(3), AttentionRescaling().perturb(request.conditioning, request.rngs, request))
    assert masks[0] is None
    assert masks[1] is not None


def test_small_unet_masks_padding_as_it_is(models):
    request = ask_of(model=models["small_unet"])
    found = AttentionRescaling(factor=1.0).perturb(request.conditioning, request.rngs, request)
    assert torch.equal(found.mask, request.conditioning.mask)
    holed = dataclasses.replace(request.conditioning, mask=request.conditioning.mask.clone())
    holed.mask[:, 1] = False
    assert torch.equal(AttentionRescaling().perturb(holed, request.rngs, request).mask, holed.mask)


def test_attention_is_as_it_was_after_an_error_and_in_other_threads(models):
    model = models["small_unet"]
    request = ask_of(model=model)
    x, sigma, told = request.noise, torch.ones(3), request.conditioning
    hooks = lambda: sum(len(layer.to_k._forward_hooks) for layer in model.cross_attentions)  # noqa: E731
    with torch.no_grad():
        usual, elsewhere = model(x, sigma, told), []

        def other():
            with torch.no_grad():
                elsewhere.append(model(x, sigma, told))

        with model.attending(torch.full((3,), 5.0)):
            assert hooks() == len(model.cross_attentions) > 0
            thread = threading.Thread(target=other)
            thread.start()
            thread.join()
            assert not torch.equal(model(x, sigma, told), usual)
        assert torch.equal(elsewhere[0], usual)
        with pytest.raises(ZeroDivisionError), model.attending(torch.ones(3)):
            1 / 0  # noqa: B018
    assert hooks() == 0


def by_hand(request, part, conditional, sigma):
    """The guided estimate of `part` around a denoiser that answers `conditional`, and 0 without a prompt."""
    none, x = torch.zeros_like(conditional), request.noise * sigma
    ask = DenoiseQuery(x, torch.full((len(x),), sigma), 0, 5, torch.full((len(x),), SCALE))
    inner = DenoiseResult(0, 5, ask.sigma, x, conditional, none, guided(conditional, none, ask.scale), ask.scale)
    given = [inner.conditional.clone(), inner.denoised.clone()]
    found = part.wrap(lambda _: inner, request)(ask).denoised
    assert torch.equal(inner.conditional, given[0])
    assert torch.equal(inner.denoised, given[1])
    assert not inner.unconditional.any()
    return found


def test_reanchored_guidance_is_that_of_the_authors_formula():
    request = ask_of(["a red disc"] * 4)
    # Norms of 2, 3.5, 4.5 and 8 at sigma 1: not triggered, twice on the slope, and full.
    conditional = torch.nn.functional.normalize(request.noise.flatten(1)).view_as(request.noise)
    conditional = conditional * column(torch.tensor([2.0, 3.5, 4.5, 8.0]))
    found = by_hand(request, PromptReanchoring(paraphrases=1), conditional, 1.0)
    new = []
    for row, rng in enumerate(applied.sampling_rngs(range(4), 0)):
        told = Toy().condition(paraphrases("a red disc", 1, rng))
        new.append(Toy()(request.noise[[row]], torch.ones(1), told)[0])
    k = (SCALE * 3 - 5) / (SCALE - 1)
    assert torch.equal(found[0], SCALE * conditional[0])
    for row, norm in enumerate((3.5, 4.5, 8.0), 1):
        s = min((norm - k) / (5 - k) * SCALE, SCALE)
        # In predictions of noise, (x - D) / sigma at sigma 1.
        e_orig, e_new, e_0 = (request.noise[row] - each for each in (conditional[row], new[row], 0.0))
        noise = e_orig + s * (e_new - e_orig) + (SCALE - s) * (e_new - e_0)
        torch.testing.assert_close(found[row], request.noise[row] - noise, atol=1e-5, rtol=1e-5)


def test_reanchoring_just_above_the_trigger_is_guidance_to_the_paraphrase():
    request = ask_of(["snow"])
    conditional = torch.full((1, 3, 2, 2), 3.000001 / 12**0.5)
    found = by_hand(request, PromptReanchoring(paraphrases=1), conditional, 1.0)
    told = Toy().condition(paraphrases("snow", 1, applied.sampling_rngs([0], 0)[0]))
    torch.testing.assert_close(found, SCALE * Toy()(request.noise, torch.ones(1), told), atol=1e-4, rtol=1e-4)


def test_the_first_paraphrase_within_the_threshold_is_taken_else_the_lowest():
    request = ask_of(CAPTIONS)
    texts = [paraphrases(caption, 5, rng) for caption, rng in zip(CAPTIONS, applied.sampling_rngs(range(3), 0),
                                                                 strict=True)]  # fmt: skip
    known = np.array([
        [float(norms(request, told=Toy().condition([text] * 3))[row]) for text in texts[row]] for row in range(3)
    ])  # fmt: skip
    for threshold in (0.0, float(np.median(known)), 1e6):
        expected = [
            int(np.argmax(row <= threshold)) if (row <= threshold).any() else int(row.argmin()) for row in known
        ]
        fresh = ask_of(CAPTIONS)
        part = PromptReanchoring(threshold=threshold)
        found = part._anchors([0, 1, 2], fresh)
        for row, place in enumerate(expected):
            assert torch.equal(found[row].text, Toy().condition([texts[row][place]]).text)
        tried = [1 + (place if (row <= threshold).any() else 4) for place, row in zip(expected, known, strict=True)]
        assert sum(fresh.predict.rows) == 3 + sum(tried)


def test_an_image_is_reanchored_while_it_triggers_and_looks_for_a_paraphrase_once():
    request = ask_of()
    before = [plain(request)(ask) for ask in asks(request)]
    high = torch.stack([text_conditional_norm(step.conditional - step.unconditional, step.sigma) for step in before])
    trigger = float(high.median())
    request = ask_of()
    wrapped = PromptReanchoring(paraphrases=2, threshold=0.0, trigger=trigger, full=trigger + 9).wrap(
        plain(request), request
    )
    after = [wrapped(ask) for ask in asks(request)]
    changed = torch.stack([
        (a.denoised != b.denoised).flatten(1).any(1) for a, b in zip(after, before, strict=True)
    ])  # fmt: skip
    assert torch.equal(changed, high > trigger)
    assert 0 < changed.sum() < changed.numel()
    extra = sum(request.predict.rows) - 3 * 2 * 5
    assert extra == int(changed.sum()) + int(changed.any(0).sum()) * (2 + 1)


def test_without_text_there_is_no_paraphrase_and_the_image_stays():
    request = ask_of(["", "snow"])
    conditional = torch.full((2, 3, 2, 2), 9.0)
    found = by_hand(request, PromptReanchoring(), conditional, 1.0)
    assert torch.equal(found[0], SCALE * conditional[0])
    assert not torch.equal(found[1], SCALE * conditional[1])


def finder(similarities, caption="two rings and more"):
    def find(pictures):
        find.asked.append([picture.copy() for picture in pictures])
        return [NearestImage(each, caption, np.full((4, 6, 3), 51, np.uint8)) for each in similarities]

    find.asked = []
    return find


def test_the_scale_falls_with_similarity_above_the_threshold():
    request = ask_of(nearest=finder([0.3, 0.45, 0.9]))
    conditional = request.noise.clone()
    part = AntimemorizationGuidance(deduplication=0.0, dissimilarity=0.0)
    found = by_hand(request, part, conditional, 2.0)
    # The authors' clamp(13 s, 0, 6.5) of a scale of 7.5, for a scale of 3.
    scales = [SCALE, *(SCALE - (SCALE - 1) * min(13 * each, 6.5) / 6.5 for each in (0.45, 0.9))]
    torch.testing.assert_close(found, column(torch.tensor(scales)) * conditional)
    assert torch.equal(found[0], SCALE * conditional[0])
    torch.testing.assert_close(found[2], conditional[2])  # No guidance is left.
    pictures = Toy().decode(SCALE * conditional)
    assert all(map(np.array_equal, request.nearest.asked[0], pictures))


def test_of_no_strength_it_does_not_even_look():
    request = ask_of(nearest=finder([0.9] * 3))
    found = by_hand(request, AntimemorizationGuidance(strength=0.0), request.noise, 2.0)
    assert torch.equal(found, SCALE * request.noise)
    assert not request.nearest.asked


def test_what_is_left_of_the_scale_leads_away_from_the_caption_found():
    request = ask_of(nearest=finder([0.45, 0.6, 0.9]))
    conditional = request.noise.clone()
    part = AntimemorizationGuidance(despecification=1.0, deduplication=1.0, dissimilarity=0.0)
    found = by_hand(request, part, conditional, 2.0)
    x = request.noise * 2
    caption = Toy()(x, torch.full((3,), 2.0), Toy().condition(["two rings and more"] * 3))
    off = torch.tensor([0.45, 0.6, 0.9])
    rest = torch.tensor([0.45, 0.4, 0.1])
    expected = column(SCALE - 2 * off) * conditional - column(2 * rest) * caption
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)


def test_the_estimate_is_pushed_from_the_latent_of_the_picture_found():
    request = ask_of(nearest=finder([0.3, 0.5, 0.9]))
    conditional = request.noise.clone()
    part = AntimemorizationGuidance(strength=2.0, despecification=0.0, deduplication=0.0, dissimilarity=0.5)
    found = by_hand(request, part, conditional, 2.0)
    copied = torch.full((3, 3, 2, 2), 51 / 255)
    torch.testing.assert_close(
        found - copied, column(torch.tensor([1.0, 1.1, 1.5])) * (SCALE * conditional - copied), atol=1e-5, rtol=1e-5
    )


def test_it_looks_from_its_start_on_every_so_many_steps_and_keeps_what_it_found():
    request = ask_of(nearest=finder([0.9] * 3))
    part = AntimemorizationGuidance(start=0.3, every=2)
    wrapped = part.wrap(plain(request), request)
    before, after = ([each(ask).denoised for ask in asks(request, 10)] for each in (plain(request), wrapped))
    same = [torch.equal(a, b) for a, b in zip(before, after, strict=True)]
    assert same == [True] * 3 + [False] * 7
    assert len(request.nearest.asked) == 4
    tried = dataclasses.replace(asks(request, 10)[-1], i=None)
    assert not torch.equal(wrapped(tried).denoised, plain(request)(tried).denoised)
    assert len(request.nearest.asked) == 4


def test_a_model_that_encodes_nothing_is_not_pushed():
    toy = types.SimpleNamespace(decode=Toy().decode, condition=Toy().condition, shape=Toy().shape)
    request = dataclasses.replace(ask_of(nearest=finder([0.9] * 3)), model=toy)
    conditional = request.noise.clone()
    part = AntimemorizationGuidance(despecification=0.0, deduplication=0.0)
    assert torch.equal(by_hand(request, part, conditional, 2.0), SCALE * conditional)


def watched(part, norms):
    """Scales [step, image] that `part` guides with, where the prompt pulls with these norms [step, image]."""
    norms = torch.tensor(norms, dtype=torch.float32)
    n_steps, n = norms.shape
    request = ask_of(["snow"] * n)
    scales = []

    def denoiser(ask):
        conditional = column(norms[ask.i]) * torch.ones(n, 1, 1, 1)
        none = torch.zeros_like(conditional)
        made = guided(conditional, none, ask.scale)
        return DenoiseResult(ask.i, n_steps, ask.sigma, ask.x, conditional, none, made, ask.scale)

    wrapped = part.wrap(denoiser, request)
    for i in range(n_steps):
        made = wrapped(DenoiseQuery(torch.zeros(n, 1, 1, 1), torch.ones(n), i, n_steps, torch.full((n,), SCALE)))
        scales.append((made.denoised.flatten() / norms[i]).tolist())
    return np.round(np.array(scales), 5)


def test_guidance_sets_in_at_its_share_of_the_steps():
    steps = [[1.0]] * 10
    for start, first in ((0.0, 0), (0.3, 3), (0.31, 4), (1.0, 10)):
        expected = [0.0] * first + [SCALE] * (10 - first)
        assert watched(DelayedGuidance(start), steps)[:, 0].tolist() == expected
    # Whatever 0.56 * 25 is in floating point.
    assert watched(DelayedGuidance(0.56), [[1.0]] * 25)[:, 0].tolist() == [0.0] * 14 + [SCALE] * 11


def test_until_then_it_is_none_or_that_of_the_prompt_or_the_opposite():
    for early in (0.0, 1.0, -SCALE):
        assert watched(DelayedGuidance(0.5, early), [[2.0]] * 4)[:, 0].tolist() == [early] * 2 + [SCALE] * 2


@pytest.mark.parametrize("early", [-SCALE, 0.5, 2.0])
@pytest.mark.parametrize("part", [
    AntimemorizationGuidance(despecification=0.5),
    PromptReanchoring(paraphrases=1, trigger=0.0, full=0.01),
], ids=["antimemorization", "reanchoring"])  # fmt: skip
def test_parts_around_delayed_guidance_guide_by_the_scale_that_acts(part, early):
    def steps(*mitigations, scales=(SCALE,) * 6):
        request = ask_of()
        denoiser = applied.MitigationStack(mitigations).around(plain(request), request, range(3))
        given = zip(asks(request, 6), scales, strict=True)
        return [denoiser(dataclasses.replace(ask, scale=torch.full((3,), scale))) for ask, scale in given]

    delayed, acting = DelayedGuidance(0.5, early), [early] * 3 + [SCALE] * 3
    # One that does nothing stands for it, since what a part draws is of its place in the list.
    around, alone = steps(delayed, part), steps(DelayedGuidance(0.0), part, scales=acting)
    within, parted = steps(part, delayed), [*steps(scales=acting)[:3], *steps(part)[3:]]
    for found, by_hand in ((around, alone), (within, parted)):
        assert [step.scale.tolist() for step in found] == [[scale] * 3 for scale in acting]
        assert all(torch.equal(one.denoised, other.denoised) for one, other in zip(found, by_hand, strict=True))
    assert not torch.equal(around[5].denoised, steps(delayed)[5].denoised)


def test_dynamic_guidance_sets_in_past_each_images_own_first_minimum():
    falling, early, late = [9, 8, 7, 6, 5, 4], [9, 5, 6, 5, 7, 1], [9, 8, 7, 6, 8, 9]
    rising, flat, valley = [1, 2, 3, 4, 5, 6], [5, 5, 5, 5, 5, 5], [9, 5, 5, 6, 5, 4]
    by_step = np.array([falling, early, late, rising, flat, valley], dtype=float).T.tolist()
    found = watched(DelayedGuidance(1.0, 1.0, dynamic=True), by_step)
    assert [int((each == 1).sum()) for each in found.T] == [6, 2, 4, 1, 6, 3]
    at_latest = watched(DelayedGuidance(0.5, 1.0, dynamic=True), by_step)
    assert [int((each == 1).sum()) for each in at_latest.T] == [3, 2, 3, 1, 3, 3]


@pytest.fixture(scope="module")
def lacking(tmp_path_factory):
    """A model without cross-attention, and one without a prediction for no prompt."""
    corpus = worlds.world(tmp_path_factory.mktemp("lacking"), 8, 0, 0, duplicates=()).train
    flux = StableDiffusion(str(tiny_stable_diffusion(tmp_path_factory.mktemp("flux") / "flux", "flux")), on="cpu")
    return {"empirical": parts.load("models", f"empirical({str(corpus)!r}, size=16)"), "flux": flux}


@pytest.mark.parametrize(("spec", "model", "options", "said"), [
    ("attention_rescaling", "empirical", {}, "needs cross-attention to the text, which this model does not have"),
    ("prompt_optimisation", "flux", {}, "needs a prediction without a prompt"),
    ("noise_adjustment", "flux", {}, "needs a prediction without a prompt"),
    ("sharpness_aware_noise", "flux", {}, "needs a prediction without a prompt"),
    ("prompt_reanchoring", "flux", {}, "needs a prediction without a prompt"),
    ("prompt_reanchoring", "empirical", {"guidance": 1.0}, "needs classifier-free guidance"),
    ("prompt_reanchoring", "empirical", {"has": [NEAREST]}, "needs prompts as text, and was given embeddings"),
    ("antimemorization_guidance", "empirical", {"guidance": 1.0}, "needs classifier-free guidance"),
    ("antimemorization_guidance", "empirical", {"has": [PROMPTS]}, "needs to be told the nearest training image"),
    ("delayed_guidance", "empirical", {"guidance": 1.0}, "needs classifier-free guidance"),
])  # fmt: skip
def test_what_is_lacking_is_said_before_the_start(spec, model, options, said, lacking):
    given = {"guidance": 2.0, "has": [PROMPTS, NEAREST]} | options
    with pytest.raises(InputError, match=f"{spec} {said}"):
        applied.load([spec], "sampling", lacking[model], **given)
    with pytest.raises(InputError, match="acts in sampling only"):
        applied.load([spec], "training", lacking["empirical"])


def test_fused_projections_are_refused(tmp_path):
    model = StableDiffusion(str(tiny_stable_diffusion(tmp_path / "sd1")), on="cpu")
    options = {"stage": "sampling", "model": model, "guidance": 2.0}
    model.network.fuse_qkv_projections()
    with pytest.raises(InputError, match=r"attention_rescaling needs .* fused\.\nCall unfuse_qkv_projections"):
        applied.load(["attention_rescaling"], **options)
    applied.load(["delayed_guidance", "prompt_optimisation"], **options)
    model.network.unfuse_qkv_projections()
    applied.load(["attention_rescaling"], **options)


@pytest.mark.parametrize("part", [part for part in ACTING if not isinstance(part, AttentionRescaling)], ids=str)
def test_the_perfect_copier_takes_them_too(part, lacking):
    model, recipe = lacking["empirical"], SampleRecipe(n_images=2, steps=3, guidance=2.0, mitigations=(str(part),))
    captions = list(model._known.captions)[:2]
    made = sample(model, model.condition(captions), [1, 2], recipe, prompts=captions, nearest=similar)
    assert [picture.shape for picture in made] == [(16, 16, 3)] * 2


@pytest.mark.parametrize("spec", [
    "prompt_optimisation(steps=-1)",
    "prompt_optimisation(target=-1)",
    "noise_adjustment(gamma=-1)",
    "noise_adjustment(rho=1e999)",
    "sharpness_aware_noise(weight=-1)",
    "sharpness_aware_noise(target=-1)",
    "attention_rescaling(factor=-1)",
    "prompt_reanchoring(trigger=5)",
    "prompt_reanchoring(paraphrases=-1)",
    "antimemorization_guidance(every=0)",
    "antimemorization_guidance(start=2)",
    "antimemorization_guidance(strength=-1)",
    "delayed_guidance(start=1.5)",
])  # fmt: skip
def test_values_out_of_range_are_refused(spec):
    with pytest.raises(PartError, match="must"):
        parts.load("mitigations", spec)
