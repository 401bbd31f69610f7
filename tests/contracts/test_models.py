"""What every model must do; a new file on the shelf is tested by being there."""

from __future__ import annotations

import dataclasses
import functools
import math

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from copyscope import parts
from copyscope.diffusion import sampling
from copyscope.diffusion.conditioning import Conditioning
from copyscope.diffusion.generate import SampleRecipe, sample
from copyscope.diffusion.models import Model, Trainable
from copyscope.imaging import images
from tests import worlds

CAPTIONS = ["a red disc on sand", "", "a blue bar", "a ring"]
# Small ones; parts that need an argument get it from the fixture of that name.
SPECS = {
    "empirical": ("empirical({corpus_folder!r}, size=16)",),
    "small_unet": ("small_unet(size=32, components=24, channels=(32, 32), tokens=8)",),
    "stable_diffusion": (
        "stable_diffusion({pipeline_folder!r}, on='cpu')",
        "stable_diffusion({pipeline_folder!r}, on='cpu', lora_rank=2)",
    ),
}
# Predicts x0 itself, with no path past the network: a denoiser only once it is trained.
LEARNS_ALL = {"small_unet"}


@pytest.fixture(scope="module")
def corpus_folder(tmp_path_factory):
    return str(worlds.world(tmp_path_factory.mktemp("models"), 8, 0, 0, duplicates=()).train)


@pytest.fixture(scope="module")
def pipeline_folder(tmp_path_factory):
    from tests.models import tiny_stable_diffusion

    return str(tiny_stable_diffusion(tmp_path_factory.mktemp("pipeline") / "sd"))


def column(sigma):
    return sigma.view(-1, 1, 1, 1)


def check_model(part: Model, learns_all: bool = False) -> None:
    """Raises AssertionError where `part` breaks the contract of its shelf."""
    n, (low, high) = len(CAPTIONS), part.sigmas
    assert 0 < low < high < math.inf, "its lowest noise level is below its highest"
    assert part.schedule in sampling.SCHEDULES, "a schedule that there is"
    with torch.no_grad():
        check_conditioning(part)
        check_denoiser(part, n, low, high)
        recipe = SampleRecipe(n_images=n, steps=4)
        x = sampling.noise(range(n), part.shape)
        pictures = part.decode(x)
        assert len(pictures) == n, "one picture a latent"
        for picture in [*pictures, *sample(part, part.condition(CAPTIONS), range(n), recipe)]:
            assert picture.dtype == np.uint8, "pictures are uint8"
            assert picture.shape[2:] == (3,), "pictures are [h w 3]"
        assert torch.equal(x, sampling.noise(range(n), part.shape)), "latents are left as they were"
        alone = np.stack([part.decode(each[None].clone())[0] for each in x]).astype(int)
        assert np.abs(alone - np.stack(pictures)).max() <= 1, "a picture depends on its latent alone"
        if not learns_all:
            told = part.condition(CAPTIONS)
            levels = sampling.noise_levels(4, low, high)
            made = sampling.euler(lambda x, sigma, i: part(x, sigma, told), x * high, levels)
            noised = made + low * sampling.noise(range(n), part.shape)
            apart = part(noised, torch.full((n,), low), told) - noised
            assert apart.square().mean().sqrt() < 6 * low, "nearly x at the lowest noise"
    assert parts.load("models", str(part)) == part, "the spec rebuilds the part"


def check_conditioning(part: Model) -> None:
    told = part.condition(CAPTIONS)
    assert (told.text.shape[:2], len(told)) == (told.mask.shape, len(CAPTIONS)), "one conditioning a caption"
    assert (told.text.dtype, told.mask.dtype) == (torch.float32, torch.bool), "float32 states and a bool mask"
    assert told.text.isfinite().all(), "finite states"
    for row, caption in enumerate(CAPTIONS):
        one = part.condition([caption])
        torch.testing.assert_close(one.text[0], told.text[row], msg="states depend on their caption alone")
        assert torch.equal(one.mask[0], told.mask[row]), "a mask depends on its caption alone"
    assert len(part.condition([])) == 0, "no caption, no conditioning"


def check_denoiser(part: Model, n: int, low: float, high: float) -> None:
    told, before = part.condition(CAPTIONS), part.condition(CAPTIONS)
    sigma = torch.tensor(np.geomspace(low, high, n), dtype=torch.float32)
    x = sampling.noise(range(n), part.shape) * column(sigma)
    given, levels = x.clone(), sigma.clone()
    found = part(x, sigma, told)
    assert found.shape == x.shape, "shape [n c h w]"
    assert found.dtype == torch.float32, "float32"
    assert found.isfinite().all(), "finite, in pure noise too"
    for now, was in ((x, given), (sigma, levels), (told.text, before.text)):
        assert torch.equal(now, was), "what it is given is left as it was"
    assert torch.equal(part(x, sigma, told), found), "the same again"
    scale = float(found.abs().max())
    for row in range(n):
        one = part(x[[row]], sigma[[row]], told.take([row]))
        assert (one[0] - found[row]).abs().max() <= 1e-4 * scale, "a row's result depends on that row alone"


def check_trainable(part: Trainable, folder) -> None:
    """Raises AssertionError where `part` breaks what `train` rests on."""
    rng = np.random.default_rng(3)
    side, n = part.image_size, len(CAPTIONS)
    pictures = [images.resize(worlds.picture(rng)[0], (side, side)) for _ in range(n)]
    before = [picture.copy() for picture in pictures]
    x0 = part.encode(pictures)
    assert (x0.shape, x0.dtype) == ((n, *part.shape), torch.float32), "latents [n c h w] of pictures, float32"
    assert all(map(np.array_equal, pictures, before)), "pictures are left as they were"
    assert torch.equal(part.encode(pictures), x0), "the same latents again"
    alone = torch.cat([part.encode([picture]) for picture in pictures])
    assert (alone - x0).abs().max() < 1e-4 * float(x0.abs().max()), "latents depend on their picture alone"
    assert part.decode(x0)[0].shape == (side, side, 3), "pictures of its own size come back"
    check_levels(part)
    check_network(part, x0)
    with torch.no_grad():
        for number, value in enumerate(value for value in part.network.parameters() if value.requires_grad):
            value += 0.02 * torch.randn(value.shape, generator=torch.Generator().manual_seed(number))
        told, sigma = part.condition(CAPTIONS), torch.full((n,), 1.0)
        found = part(x0, sigma, told)
        part.save(folder)
        loaded = part.with_weights(folder)
        assert torch.equal(loaded(x0, sigma, told), found), "saved and loaded, it answers the same"
        written = {path.suffix for path in folder.rglob("*") if path.is_file()}
        assert ".safetensors" in written, "weights are in safetensors"
        assert not written & {".bin", ".pt", ".pth", ".ckpt", ".pkl"}, "weights are in safetensors alone"
        assert parts.load("models", str(loaded)) == loaded, "the spec of what is loaded rebuilds it"


def check_levels(part: Trainable) -> None:
    low, high = part.sigmas
    uniform = torch.linspace(1e-6, 1 - 1e-6, 200)
    levels = part.noise_levels(uniform)
    assert levels.shape == uniform.shape, "a noise level a number"
    assert (levels.diff() >= 0).all(), "noise levels rise"
    assert levels[-1] > levels[0], "noise levels differ"
    assert ((levels > low * 0.999) & (levels < high * 1.001)).all(), "noise levels are of those it is good for"
    assert torch.equal(part.noise_levels(uniform), levels), "noise levels are a function of the number"
    weight = part.loss_weight(levels)
    assert weight.shape == levels.shape, "a loss weight a level"
    assert ((weight > 0) & weight.isfinite()).all(), "loss weights are positive"


def check_network(part: Trainable, x0) -> None:
    told = part.condition(CAPTIONS)
    states = (told.text, x0) if told.pooled is None else (told.text, x0, told.pooled)
    assert not any(state.requires_grad for state in states), "only the network's parameters require gradients"
    trained = [value for value in part.network.parameters() if value.requires_grad]
    assert trained, "something is trained"
    part.network.zero_grad()
    sigma = part.noise_levels(torch.tensor([0.2, 0.4, 0.6, 0.8]))
    x = x0 + column(sigma) * sampling.noise(range(len(x0)), part.shape)
    loss = (part.loss_weight(sigma) * (part(x, sigma, told) - x0).square().mean((1, 2, 3))).mean()
    assert loss.requires_grad, "the network is what answers"
    loss.backward()
    assert any(value.grad is not None and value.grad.any() for value in trained), "the loss reaches the network"
    part.network.zero_grad()


@pytest.mark.parametrize("name", parts.names("models"))
def test_every_model_keeps_the_contract(name, request, tmp_path):
    for number, spec in enumerate(SPECS.get(name, (name,))):
        needed = [fixture for fixture in ("corpus_folder", "pipeline_folder") if fixture in spec]
        part = parts.load("models", spec.format(**{each: request.getfixturevalue(each) for each in needed}))
        check_model(part, name in LEARNS_ALL)
        if isinstance(part, Trainable):
            check_trainable(part, tmp_path / str(number))


@dataclasses.dataclass(frozen=True)
class Good(Trainable):
    """A tiny model that keeps the contract, for the broken ones to break: one layer, one number a caption."""

    weights: str = ""

    @property
    def shape(self):
        return 3, 4, 4

    @property
    def image_size(self):
        return 4

    @functools.cached_property
    def network(self):
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            layer = torch.nn.Linear(4, 3)
        if self.weights:
            layer.load_state_dict(load_file(f"{self.weights}/layer.safetensors"))
        return layer

    def __call__(self, x, sigma, conditioning):
        counted = (conditioning.text * conditioning.mask[..., None]).sum((1, 2))
        total = 1 + column(sigma) ** 2
        seen = torch.cat([x / total.sqrt(), counted.view(-1, 1, 1, 1).expand(-1, 1, 4, 4)], 1)
        found = self.network(seen.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
        return x / total + column(sigma) / total.sqrt() * found

    def condition(self, captions):
        text = torch.tensor([len(caption) / 10 for caption in captions]).view(-1, 1, 1)
        return Conditioning(text, torch.ones(len(captions), 1, dtype=torch.bool))

    def decode(self, latents):
        pixels = ((latents.permute(0, 2, 3, 1) + 1) * 127.5).round().clamp(0, 255)
        return list(pixels.detach().to(torch.uint8).numpy())

    def encode(self, pictures):
        return torch.from_numpy(np.stack(pictures)).permute(0, 3, 1, 2).float() / 127.5 - 1

    def noise_levels(self, uniform):
        low, high = self.sigmas
        return low * (high / low) ** uniform

    def loss_weight(self, sigma):
        return sigma**-2

    def save(self, folder):
        folder.mkdir(parents=True)
        save_file(self.network.state_dict(), folder / "layer.safetensors")

    def with_weights(self, folder):
        return dataclasses.replace(self, weights=str(folder))


def answering(change):
    """`Good` whose answer is `change(answer, x, sigma, conditioning)`."""
    return {"__call__": lambda self, x, sigma, told: change(Good.__call__(self, x, sigma, told), x, sigma, told)}


def changed(method, change):
    """`Good` of which `method(given)` is `change(result, given)`."""
    return {method: lambda self, given: change(getattr(Good, method)(self, given), given)}


def scribble(found, x, sigma, told):
    x *= 2
    return found


def stain(found, pictures):
    pictures[0][:] = 0
    return found


def tripled(states):
    return Conditioning(torch.cat([states.text] * 3, 1), torch.cat([states.mask] * 3, 1)[:, :2])


def mixed(states, captions):
    return Conditioning(states.text - states.text.sum(0) * (len(captions) > 1), states.mask)


def forgetful(self, folder):
    return dataclasses.replace(self, weights="")


def pickled(self, folder):
    Good.save(self, folder)
    (folder / "layer.bin").write_bytes(b"")


class Memory:
    """What changes with every call."""

    def __init__(self, step=1.0):
        self.value, self.step = 0.0, step

    def __call__(self, found, *_):
        self.value += self.step
        return found + self.value


BROKEN = {
    "lowest noise level is below": {"sigmas": property(lambda self: (80.0, 0.02))},
    "a schedule that there is": {"schedule": property(lambda self: "cosine")},
    "one conditioning a caption": changed("condition", lambda states, _: tripled(states)),
    "float32 states": changed("condition", lambda states, _: Conditioning(states.text.double(), states.mask)),
    "finite states": changed("condition", lambda states, _: Conditioning(states.text / 0, states.mask)),
    "states depend on their caption": changed("condition", mixed),
    "shape .n c h w": answering(lambda found, *_: found[:, :, 1:]),
    "^float32": answering(lambda found, *_: found.double()),
    "finite, in pure noise": answering(lambda found, x, sigma, told: found / (column(sigma) < 79)),
    "what it is given is left": answering(scribble),
    "the same again": answering(Memory()),
    "depends on that row alone": answering(lambda found, *_: found - found.mean(0)),
    "one picture a latent": changed("decode", lambda found, _: found[:1]),
    "pictures are uint8": changed("decode", lambda found, _: [each / 255 for each in found]),
    "pictures are .h w 3": changed("decode", lambda found, _: [each.transpose(2, 0, 1) for each in found]),
    "latents are left": changed("decode", lambda found, latents: [latents.zero_(), found][1]),
    "a picture depends on its latent": changed("decode", lambda found, _: found if len(found) == 1 else found[::-1]),
    "nearly x at the lowest": answering(lambda found, *_: -found),
    "the spec rebuilds": {"__str__": lambda self: f"{__name__}:Good"},
}
BROKEN_TRAINABLE = {
    "latents .n c h w. of pictures": changed("encode", lambda found, _: found[:, :2]),
    "pictures are left": changed("encode", stain),
    "the same latents again": changed("encode", Memory()),
    "latents depend on their picture": changed("encode", lambda found, _: found - found.mean(0)),
    "pictures of its own size": {"image_size": property(lambda self: 4), **changed("decode", lambda found, _: [
        each[:2] for each in found])},
    "a noise level a number": changed("noise_levels", lambda levels, _: levels[:9]),
    "noise levels differ": changed("noise_levels", lambda levels, _: levels * 0 + 1),
    "a loss weight a level": changed("loss_weight", lambda weight, _: weight.mean()),
    "noise levels rise": changed("noise_levels", lambda levels, _: levels.flip(0)),
    "noise levels are of those": changed("noise_levels", lambda levels, _: levels * 2),
    "noise levels are a function": changed("noise_levels", Memory(1e-6)),
    "loss weights are positive": changed("loss_weight", lambda weight, _: weight - 1),
    "only the network's parameters": changed(
        "condition", lambda states, _: Conditioning(states.text.clone().requires_grad_(), states.mask)
    ),
    "something is trained": {"network": functools.cached_property(
        lambda self: Good.network.func(self).requires_grad_(False))},
    "the network is what answers": answering(lambda found, *_: found.detach()),
    "the loss reaches": answering(lambda found, x, *_: found * 0 + x),
    "it answers the same": {"with_weights": forgetful},
    "weights are in safetensors alone": {"save": pickled},
}  # fmt: skip


def broken(body):
    """A part that differs from `Good` in `body`, at a place where its spec finds it."""
    cls = type("Broken", (Good,), body | {"__module__": __name__, "__doc__": "Breaks a clause."})
    made = dataclasses.dataclass(frozen=True)(cls)
    for name, value in body.items():
        if isinstance(value, functools.cached_property):
            value.__set_name__(made, name)
    return made


@pytest.mark.parametrize("clause", BROKEN)
def test_each_clause_rejects_the_model_that_breaks_it(clause, monkeypatch):
    cls = broken(BROKEN[clause])
    monkeypatch.setitem(globals(), "Broken", cls)
    with pytest.raises(AssertionError, match=clause):
        check_model(cls())


@pytest.mark.parametrize("clause", BROKEN_TRAINABLE)
def test_each_clause_rejects_the_trainable_model_that_breaks_it(clause, monkeypatch, tmp_path):
    cls = broken(BROKEN_TRAINABLE[clause])
    monkeypatch.setitem(globals(), "Broken", cls)
    with pytest.raises(AssertionError, match=clause):
        check_trainable(cls(), tmp_path / "model")


def test_the_model_that_the_broken_ones_break_is_whole(tmp_path):
    check_model(Good())
    check_trainable(Good(), tmp_path / "model")
