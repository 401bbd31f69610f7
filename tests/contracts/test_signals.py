"""What every signal must do; a new file on the shelf is tested by being there."""

from __future__ import annotations

import copy
import dataclasses
import inspect
import re

import numpy as np
import pytest
import torch

from copyscope import parts
from copyscope.diffusion.generate import SampleRecipe, sample
from copyscope.diffusion.mitigations import GUIDANCE, NEEDS
from copyscope.diffusion.observed import Observed, load
from copyscope.diffusion.signals import OnSteps, Signal
from copyscope.errors import InputError
from tests.contracts import code_lines
from tests.contracts.test_mitigations import CAPTIONS, count_hooks, model

STEPS, SCALE = 4, 3.0
TEXTS, SEEDS = CAPTIONS[:3], [11, 12, 13]


def seen(signal, texts=TEXTS, seeds=SEEDS, scale=SCALE, n_images=4, counted=None, on_step=None):
    """Scores [n], maps or None, and pictures of a sampling that a signal watches; none, if it is None."""
    specs = (str(signal),) if signal is not None else ()
    recipe = SampleRecipe(n_images=n_images, steps=STEPS, guidance=scale, signals=specs)
    watched = Observed()
    with pytest.MonkeyPatch.context() as patch:
        if counted is not None:
            asks = type(model()).__call__

            def counting(self, x, *given):
                counted.append(len(x))
                return asks(self, x, *given)

            patch.setattr(type(model()), "__call__", counting)
        look = on_step and (lambda step: on_step(step, watched))
        made = sample(model(), model().condition(texts), seeds, recipe, prompts=texts, watched=watched, on_step=look)
    found = [*watched.scores.values()]
    return found[0] if found else None, watched.maps.get(specs[0]) if specs else None, np.stack(made)


def check_signal(signal: Signal) -> None:
    """Raises AssertionError where `signal` breaks the contract."""
    assert parts.load("signals", str(signal)) == signal, "the spec rebuilds the part"
    assert set(signal.needs) <= set(NEEDS), "needs that can be told"
    said = inspect.getdoc(type(signal)) or ""
    assert "Source: " in said, "the docstring names its source"
    assert "Cost: " in said, "the docstring says what it costs"
    for field in dataclasses.fields(signal):
        assert re.search(rf"\b{field.name}\b", said), f"the docstring explains {field.name}"
    state, hooks = copy.deepcopy(model().network.state_dict()), count_hooks()
    _, _, plain = seen(None)
    scores, maps, pictures = seen(signal)
    assert np.array_equal(pictures, plain), "it changes no pixel"
    assert all(torch.equal(value, state[name]) for name, value in model().network.state_dict().items()), "weights stay"
    assert all(value.grad is None for value in model().network.parameters()), "no gradients are left"
    assert count_hooks() == hooks, "no hooks are left"
    assert (scores.shape, scores.dtype) == ((3,), torch.float32), "a number an image"
    assert scores.isfinite().all(), "finite"
    assert not scores.requires_grad, "gradients are not promised"
    assert len(set(scores.tolist())) == 3, "it tells images apart"
    with torch.random.fork_rng():
        torch.manual_seed(5)
        assert torch.equal(seen(signal)[0], scores), "the same seeds, the same scores"
    check_rows(signal, scores, maps)
    check_steps(signal, scores)
    check_calls(signal)


def check_rows(signal, scores, maps):
    order = [2, 0, 1]
    turned, turned_maps, _ = seen(signal, [TEXTS[row] for row in order], [SEEDS[row] for row in order])
    assert torch.equal(turned, scores[order]), "an image depends on its own prompt and seed alone"
    alone, alone_maps, _ = seen(signal, TEXTS[:1], SEEDS[:1])
    assert torch.equal(alone, scores[:1]), "whatever the others are"
    if maps is not None:
        assert maps.shape[0] == 3, "a map an image"
        assert (maps >= 0).all(), "maps are not negative"
        assert torch.equal(turned_maps, maps[order]), "maps are of images"
        assert torch.equal(alone_maps, maps[:1]), "maps are of images"


def check_steps(signal, scores):
    so_far = []
    seen(signal, on_step=lambda step, watched: so_far.append(next(iter(watched.scores.values())).clone()))
    needed = signal.needed(STEPS)
    assert 1 <= needed <= STEPS, "it needs steps that there are"
    for number, each in enumerate(so_far, 1):
        if number < needed:
            assert each.isnan().all(), "no score before it has seen enough"
        else:
            assert torch.equal(each, scores), "final once it has seen enough"


def check_calls(signal):
    for scale in (SCALE, 1.0) if GUIDANCE not in signal.needs else (SCALE,):
        usual, counted = [], []
        # In blocks of one, so that none is filled up.
        seen(None, TEXTS[:1], SEEDS[:1], scale, 1, usual)
        seen(signal, TEXTS[:1], SEEDS[:1], scale, 1, counted)
        assert sum(counted) - sum(usual) == signal.calls(STEPS, scale != 1), "it asks the model as often as it says"


@pytest.mark.parametrize("name", parts.names("signals"))
def test_every_signal_keeps_the_contract(name):
    signal = parts.load("signals", name)
    check_signal(signal)
    assert code_lines(inspect.getmodule(type(signal))) <= 75, "one small file"


@pytest.mark.parametrize("spec", [
    "text_conditional_norm(steps=0)", "two_level_difference(steps=2)", "sharpness(steps=2)", "seed_variation(steps=1)",
    "attention_entropy(layer=3, steps=0)", "latent_update_norm(mean=(1.0, 1.0, 1.0), deviation=(1.0, 2.0, 3.0))",
])  # fmt: skip
def test_other_settings_keep_the_contract(spec):
    check_signal(parts.load("signals", spec))


@dataclasses.dataclass(frozen=True)
class Needing(OnSteps):
    """Needs what it is told."""

    wants: tuple = ()

    @property
    def needs(self):
        return self.wants

    def value(self, step, request):
        raise AssertionError


@pytest.mark.parametrize("need", NEEDS)
def test_what_it_needs_and_is_not_there_is_refused_before_the_work(need):
    spec = f"{__name__}:Needing(wants={(need,)})"
    deaf = dataclasses.replace(parts.load("models", "empirical('nowhere')"))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(type(deaf), "has_null", False)
        with pytest.raises(InputError, match=rf"needs {NEEDS[need][0]}.\n{NEEDS[need][1]}"):
            load([spec], deaf, guidance=1.0, has=())


@dataclasses.dataclass(frozen=True)
class Good(OnSteps):
    """The size of what is made, as it should be.

    Source: this file. scale: of the number. Cost: none.
    """

    scale: float = 0.5

    def value(self, step, request):
        return self.scale * step.conditional.flatten(1).norm(dim=1)


@dataclasses.dataclass(frozen=True)
class Draws(Good):
    __doc__ = Good.__doc__

    def value(self, step, request):
        return super().value(step, request) + torch.rand(len(step.x))


@dataclasses.dataclass(frozen=True)
class Mutates(Good):
    __doc__ = Good.__doc__

    def value(self, step, request):
        found = super().value(step, request)
        step.denoised.mul_(0.5)
        return found


@dataclasses.dataclass(frozen=True)
class Crosstalk(Good):
    __doc__ = Good.__doc__

    def value(self, step, request):
        found = super().value(step, request)
        return found - found.sort().values.mean()


@dataclasses.dataclass(frozen=True)
class InOrder(Good):
    __doc__ = Good.__doc__

    def value(self, step, request):
        return super().value(step, request) + torch.arange(len(step.x))


@dataclasses.dataclass(frozen=True)
class AsksMore(Good):
    __doc__ = Good.__doc__

    def value(self, step, request):
        request.predict(step.x, step.sigma, request.conditioning)
        return super().value(step, request)


@dataclasses.dataclass(frozen=True)
class Infinite(Good):
    __doc__ = Good.__doc__

    def value(self, step, request):
        return super().value(step, request) / 0


@dataclasses.dataclass(frozen=True)
class OneForAll(Good):
    __doc__ = Good.__doc__

    def value(self, step, request):
        return torch.ones(len(step.x))


@dataclasses.dataclass(frozen=True)
class Unsaid(Good):
    """Source: this file. Cost: none."""


@dataclasses.dataclass(frozen=True)
class LeavesHooks(Good):
    __doc__ = Good.__doc__

    def value(self, step, request):
        model().network.register_forward_hook(lambda *given: None)
        return super().value(step, request)


@dataclasses.dataclass(frozen=True)
class NeverDone(Good):
    __doc__ = Good.__doc__

    def needed(self, steps):
        return steps + 1


@dataclasses.dataclass(frozen=True)
class StillMoving(Good):
    __doc__ = Good.__doc__

    def watch(self, request):
        inner = super().watch(request)
        inner.observe = lambda step: setattr(inner, "values", [Good.value(self, step, request)])
        return inner


def test_the_suite_takes_a_good_one():
    check_signal(Good())


@pytest.mark.parametrize(("broken", "why"), [
    (Draws, "the same seeds"), (Mutates, "no pixel"), (Crosstalk, "whatever the others"), (InOrder, "its own prompt"),
    (AsksMore, "as often as it says"), (Infinite, "finite"), (OneForAll, "apart"), (Unsaid, "explains scale"),
    (LeavesHooks, "no hooks"), (NeverDone, "finite"), (StillMoving, "final"),
])  # fmt: skip
def test_the_suite_refuses_broken_ones(broken, why):
    hooks = dict(model().network._forward_hooks)
    try:
        with pytest.raises(AssertionError, match=why):
            check_signal(broken())
    finally:
        model().network._forward_hooks.clear()
        model().network._forward_hooks.update(hooks)
