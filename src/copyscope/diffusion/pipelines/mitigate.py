"""`mitigate` and `observe`: mitigations and signals in a diffusers pipeline, within a `with` block.

    with copyscope.mitigate(pipeline, ["delayed_guidance(start=0.35)"], seed=0):
        pictures = pipeline("a red fish", guidance_scale=7.5).images

    with copyscope.observe(pipeline, ["text_conditional_norm"]) as observed:
        pictures = pipeline("a red fish", guidance_scale=7.5).images
    observed.scores["text_conditional_norm"]

What acts, and in which order, is what `generate.sample` does. The pipeline runs its own code: methods of this one
object are wrapped meanwhile, and during a call its network's `forward`, as accelerate does it; no class is changed.
"""

from __future__ import annotations

import contextlib
import dataclasses
import inspect
import itertools
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from copyscope.diffusion import applied
from copyscope.diffusion import observed as signals_of
from copyscope.diffusion.denoiser import (
    DenoiseQuery,
    DenoiseResult,
    FindNearest,
    GuidedDenoiser,
    SamplingContext,
    guided,
)
from copyscope.diffusion.mitigations import (
    GUIDANCE,
    NEAREST,
    NEEDS,
    NULL,
    PROMPTS,
    SAMPLING,
    Mitigation,
    OnCaption,
    OnDenoiser,
    OnNoise,
)
from copyscope.diffusion.models import _pipelines
from copyscope.diffusion.models.stable_diffusion import StableDiffusion
from copyscope.diffusion.signals import Signal
from copyscope.errors import InputError

from .call_state import Call, OnStep, OwnMethods, Settings, StartedCall
from .network_call import NetworkCall, same, told_by
from .patched_pipeline import (
    PROMPTS_OF,
    CaptionsOnly,
    captions_only,
    lock_of,
    rewritten,
    seeds_of,
    wrapped_calls,
    wrapped_method,
)

POSITIONS = ("sample", "timestep")
"""Names of the arguments that pipelines give a U-Net by position; transformers are given all by name."""


@contextlib.contextmanager
def mitigate(
    pipeline: Any, mitigations: Sequence[str], *, seed: int = 0, nearest: FindNearest | None = None
) -> Iterator[Any]:
    """Mitigations in a loaded diffusers pipeline, within a `with` block.

    Steps are counted as the pipeline's loop does, but a scheduler of second order (Heun) has half as many: the calls of
    the network in between are points that a step only tries. An image whose step nothing changed gets the network's own
    answer, bit by bit; for others `guidance_rescale` does nothing. One `with` a pipeline at a time. Its threads take
    turns, and so do those of pipelines that share the network; the end of the `with` waits for a call under way. A call
    raises InputError too, before the network is asked, or at its end where the class goes another way than its family.

    Args:
        pipeline: of a class in `models._pipelines.NETWORKS`, one that inherits from it, or the one of the same family
            that starts from an image. Any other object whose calls take `prompt` (of inpainting, ControlNet, another
            network) has mitigations of the prompt alone.
        mitigations: specs of the shelf, in the order they act.
        seed: of what they draw, for each image from (seed, number of the call in this `with`, place of the image in the
            call); a call's own `generator` is not touched.
        nearest: finds training images, for the mitigations that want it.

    Yields:
        The pipeline.

    Raises:
        PartError: there is no such mitigation.
        InputError: the pipeline is of another class or has mitigations already, or lacks what a mitigation needs.
    """
    with _entered(pipeline, Settings(tuple(mitigations), (), seed, nearest)):
        yield pipeline


@contextlib.contextmanager
def observe(
    pipeline: Any,
    signals: Sequence[str],
    *,
    mitigations: Sequence[str] = (),
    seed: int = 0,
    nearest: FindNearest | None = None,
    on_step: OnStep | None = None,
) -> Iterator[signals_of.Observed]:
    """Signals that watch a loaded diffusers pipeline make its images, within a `with` block; they change no image.

    Args:
        pipeline: as in `mitigate`.
        signals: specs of the shelf.
        mitigations: as in `mitigate`.
        seed: as in `mitigate`.
        nearest: as in `mitigate`.
        on_step: is shown the model and each step, once the signals have seen it; what it raises ends the call.

    Yields:
        What they see: after a call, `scores` is {spec: [n]} of its images, and `maps` where they are copied.

    Raises:
        PartError: there is no such signal or mitigation.
        InputError: as in `mitigate`.
    """
    with _entered(pipeline, Settings(tuple(mitigations), tuple(signals), seed, nearest, on_step)) as mitigated:
        yield mitigated.observed


@contextlib.contextmanager
def _entered(pipeline: Any, settings: Settings) -> Iterator[_Mitigated | CaptionsOnly]:
    if settings.seed < 0:
        raise InputError(f"seed must be at least 0, not {settings.seed}.\nTake another")
    mitigated: _Mitigated | CaptionsOnly
    if _pipelines.family(pipeline) in _pipelines.NETWORKS:
        mitigated = _Mitigated(pipeline, settings)
    else:
        mitigated = captions_only(pipeline, settings.specs, settings.signals, settings.seed)
    with mitigated.there():
        yield mitigated


class _Mitigated:
    """A pipeline with mitigations and signals.

    A call of the pipeline goes through four of its methods and then through its network, step by step; what is done
    there stands below in that order.
    """

    own: OwnMethods
    forward: Callable[..., Any]
    """The network's own, during a call."""

    def __init__(self, pipeline: Any, settings: Settings) -> None:
        self.pipeline, self.settings = pipeline, settings
        self.observed = signals_of.Observed()
        self.from_image = _pipelines.from_image(pipeline)
        self.lock = lock_of(self._network)
        self.acted = False
        self.calls = itertools.count()
        self.call: Call | None = None
        self.busy = False
        self.asking = contextlib.ExitStack()

    @contextlib.contextmanager
    def there(self) -> Iterator[None]:
        model = StableDiffusion.around(self.pipeline, self.pipeline.device)
        # Whether a call has guidance and prompts is seen in the call.
        parts, signals = self._loaded(model, 2.0, True)
        both: tuple[Mitigation | Signal, ...] = (*parts.parts, *signals)
        named = zip((*self.settings.specs, *self.settings.signals), both, strict=True)
        lacking = [spec for spec, part in named if GUIDANCE in part.needs]
        if lacking and not model.has_null:
            what, instead = NEEDS[NULL]
            raise InputError(f"{lacking[0]} needs {what}.\n{instead}")
        if self.from_image and (noise := parts.door(OnNoise)):
            kind = type(self.pipeline).__name__
            raise InputError(
                f"{self.settings.specs[noise[0][0]]} acts on noise, and a {kind} starts from an image.\nLeave it out"
            )
        with contextlib.ExitStack() as wrapped:
            wrapped.enter_context(wrapped_calls(self.pipeline, self._called))
            wrapped.callback(self._end)
            hooks = (self._begin, self._encode, self._prepare, self._free)
            names = (field.name for field in dataclasses.fields(OwnMethods))
            self.own = OwnMethods(
                *(wrapped_method(wrapped, self.pipeline, *each) for each in zip(names, hooks, strict=True))
            )
            try:
                yield
            finally:
                # Not in the midst of another thread's call.
                wrapped.enter_context(self.lock)

    def _called(self, plain: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """A call of the pipeline. Raises InputError where it made its images past the mitigations."""
        with self.lock:
            if self.call is not None or isinstance(getattr(self._forward_of_network, "__self__", None), _Mitigated):
                raise InputError("The network is in a call with mitigations.\nCall it again once that has ended")
            self.acted = False
            try:
                found = plain(*args, **kwargs)
            finally:
                self._end()
            if not self.acted and (self.settings.specs or self.settings.signals or self.settings.on_step):
                raise InputError(
                    f"A {type(self.pipeline).__name__} made its images past the mitigations: its call is not that of "
                    f"{_pipelines.family(self.pipeline)}.\nLet it call check_inputs, encode_prompt and its network "
                    "as that does; and call it before the `with` ends"
                )
            return found

    @property
    def _network(self) -> Any:
        return getattr(self.pipeline, _pipelines.NETWORKS[_pipelines.family(self.pipeline)])

    @property
    def _forward_of_network(self) -> Any:
        return vars(self._network).get("forward")

    def _loaded(
        self, model: StableDiffusion, guidance: float, prompted: bool
    ) -> tuple[applied.MitigationStack, Sequence[Signal]]:
        has = [what for what, there in ((PROMPTS, prompted), (NEAREST, self.settings.nearest is not None)) if there]
        parts = applied.load(self.settings.specs, SAMPLING, model, guidance=guidance, has=has)
        if not prompted and (captions := parts.door(OnCaption)):
            what, instead = NEEDS[PROMPTS]
            raise InputError(f"{self.settings.specs[captions[0][0]]} needs {what}.\n{instead}")
        return parts, signals_of.load(self.settings.signals, model, guidance=guidance, has=has)

    # What the pipeline calls in a call, in this order

    def _begin(self, *args: Any, **kwargs: Any) -> Any:
        self._end()
        found = self.own.check_inputs(*args, **kwargs)
        self.call = Call(next(self.calls))
        self.forward = wrapped_method(self.asking, self._network, "forward", self._forward)
        return found

    def _encode(self, *args: Any, **kwargs: Any) -> Any:
        call, pipeline = self.call, self.pipeline
        if call is None or self.busy or not call.is_here():
            return self.own.encode_prompt(*args, **kwargs)
        if call.parts is not None:  # Flux with `true_cfg_scale` encodes its negative prompt in a call of its own.
            if denoisers := call.parts.door(OnDenoiser):
                spec = self.settings.specs[denoisers[0][0]]
                raise InputError(f"{spec} does not fit true_cfg_scale.\nLeave the negative prompt out")
            found = self.own.encode_prompt(*args, **kwargs)
            call.negative = found[0]
            return found
        # By the names that the class has: a wrapper of someone else may have none.
        _, *names = inspect.signature(type(pipeline).encode_prompt).parameters
        given = dict(zip(names, args, strict=False)) | kwargs
        model = StableDiffusion.around(pipeline, given.get("device") or pipeline.device)
        has_guidance = getattr(pipeline, "do_classifier_free_guidance", False)
        prompt = given.get("prompt")
        scale = pipeline.guidance_scale if has_guidance else 1.0
        call.parts, call.signals = self._loaded(model, scale, prompt is not None)
        given = given if prompt is None else self._told(call, call.parts, given)
        both: tuple[Mitigation | Signal, ...] = (*call.parts.parts, *call.signals)
        needs_null = model.has_null and not has_guidance and any(NULL in part.needs for part in both)
        if not needs_null:
            return self.own.encode_prompt(**given)
        found = self.own.encode_prompt(**given | {"do_classifier_free_guidance": True})
        call.null = told_by(found[1], found[3] if len(found) > 2 else None)
        return found  # A pipeline without guidance has no use for the second.

    def _prepare(self, *args: Any, **kwargs: Any) -> Any:
        found = self.own.prepare_latents(*args, **kwargs)
        if self.call is None or self.call.parts is None or self.from_image:
            return found
        latents, *others = found if isinstance(found, tuple) else (found,)
        # A copy: other noise is put into it, and these may be the caller's own.
        self.call.latents = latents.clone()
        return (self.call.latents, *others) if others else self.call.latents

    def _forward(self, *args: Any, **kwargs: Any) -> Any:
        call, forward = self.call, self.forward
        # Another pipeline of the same network, in a thread of its own.
        if call is None or call.parts is None or self.busy or not call.is_here():
            return forward(*args, **kwargs)
        told = dict(zip(POSITIONS, args, strict=False)) | kwargs
        if told["encoder_hidden_states"] is call.negative:
            return forward(*args, **kwargs)
        self.busy = True
        try:
            return self._answer(call, call.parts, told)
        finally:
            self.busy = False

    def _free(self) -> None:
        self._end()
        self.own.maybe_free_model_hooks()

    def _end(self) -> None:
        self.call = None
        self.asking.close()

    # What is done there

    def _told(self, call: Call, parts: applied.MitigationStack, given: dict[str, Any]) -> dict[str, Any]:
        """The arguments of `encode_prompt`, with the captions of this draw."""
        each, prompt = given.get("num_images_per_prompt", 1), given["prompt"]
        n = 1 if isinstance(prompt, str) else len(prompt)
        seeds = seeds_of(self.settings.seed, call.number, n * each)

        def of_images(texts: str | Sequence[str]) -> list[str]:
            rows = [texts] * n if isinstance(texts, str) else list(texts)
            return rewritten(parts, [text for text in rows for _ in range(each)], seeds)

        # An empty one beside the first stands for the first.
        names = [name for name in PROMPTS_OF if name == "prompt" or given.get(name)]
        told: dict[str, Any] = {name: of_images(given[name]) for name in names}
        call.prompts = told["prompt"]
        firsts = {name: rows[::each] for name, rows in told.items()}
        if all([row for row in firsts[name] for _ in range(each)] == rows for name, rows in told.items()):
            return given | {name: rows[0] if isinstance(given[name], str) else rows for name, rows in firsts.items()}
        # The images of a prompt are told different things: each is a prompt of its own.
        for name, value in given.items():
            if isinstance(value, Tensor) and name.startswith("negative_"):
                told[name] = value.repeat_interleave(each, 0)
            elif value and name.startswith("negative_"):
                rows = [value] * n if isinstance(value, str) else value
                told[name] = [text for text in rows for _ in range(each)]
        return given | told | {"num_images_per_prompt": 1}

    def _answer(self, call: Call, parts: applied.MitigationStack, told: dict[str, Any]) -> Any:
        """What the network answers the pipeline."""
        if "skip_layers" in told:
            raise InputError("Mitigations do not fit skip_guidance_layers.\nLeave it out")
        # The call as n images at one noise level.
        scheduler, halves = self.pipeline.scheduler, 1 + getattr(self.pipeline, "do_classifier_free_guidance", False)
        time = getattr(self.pipeline, "current_timestep", None)
        if time is None:
            told_as = scheduler.config.num_train_timesteps if self._flux else 1
            time = torch.as_tensor(told["timestep"]).reshape(-1)[0] * told_as
        known = call.asked.model if call.asked else None
        asked = NetworkCall(self.pipeline, self.forward, told, halves, time, known)
        call.asked = asked
        # Before the first step: noise and conditioning; before later ones the same conditioning again.
        if call.started is None:
            call.started = self._start(call, parts, asked)
        elif call.started.told is not None:
            given = call.started.given
            if given is None or not torch.equal(asked.text, given[-asked.n :]):
                raise InputError("A callback changed the prompt that mitigations changed.\nDo without one of the two")
            asked.set_conditioning(*call.started.told)
        # Which step: a scheduler of second order asks in between too.
        begins = getattr(scheduler, "state_in_first_order", True)
        i = call.steps if begins else None
        call.steps += begins
        # The step: D(x, sigma), by what stands around the network.
        if call.started.guided is None:
            return asked.run()
        if asked.halves != call.started.halves:
            raise InputError("A callback turned guidance off, which mitigations change.\nDo without one of the two")
        scale = asked.x.new_full((asked.n,), self.pipeline.guidance_scale if halves == 2 else 1.0)
        n_steps = -(-self.pipeline.num_timesteps // scheduler.order)
        step = call.started.guided(DenoiseQuery(asked.x, asked.sigma, i, n_steps, scale))
        self.observed.see(step)
        if self.settings.on_step and i is not None:
            self.settings.on_step(asked.model, step)
        return asked.answer(step.denoised)

    @property
    def _flux(self) -> bool:
        return _pipelines.family(self.pipeline) == "FluxPipeline"

    def _start(self, call: Call, parts: applied.MitigationStack, asked: NetworkCall) -> StartedCall:
        """All that comes before the first step, as in `generate.sample`."""
        self.acted = True
        seeds = seeds_of(self.settings.seed, call.number, asked.n)
        # What the pipeline would sample from.
        deviation = float(getattr(self.pipeline.scheduler, "init_noise_sigma", 1.0))
        told, null = asked.conditioning()
        sigma = float(asked.sigma[0])
        noise = asked.x / sigma if call.latents is None else asked.unpacked(call.latents) / deviation
        request = SamplingContext(
            asked.model,
            call.prompts,
            told,
            call.null if null is None else null,
            self.pipeline.guidance_scale if asked.halves == 2 else 1.0,
            sigma,
            noise,
            asked.predict,
            (),
            self.settings.nearest,
            asked.block,
        )
        # What mitigations make of it.
        begun = parts.prepare(request, seeds)
        given, instead, around = None, None, None
        if not same(begun.conditioning, told) or (null is not None and not same(begun.null, null)):
            given, instead = asked.text.clone(), (begun.conditioning, begun.null)
            asked.set_conditioning(*instead)
        if call.latents is not None and not torch.equal(begun.noise, noise):
            asked.set_noise(call.latents, begun.noise, deviation)
        # What watches and what stands around the network.
        self.observed.begin(call.signals, begun, seeds)
        if parts.door(OnDenoiser) or call.signals or self.settings.on_step:
            around = parts.around(self._plain(call, begun), begun, seeds)
        return StartedCall(asked.halves, given, instead, around)

    @staticmethod
    def _plain(call: Call, request: SamplingContext) -> GuidedDenoiser:
        """The network itself: its answer to the pipeline where that is what is asked, else another."""

        def denoiser(ask: DenoiseQuery) -> DenoiseResult:
            asked = call.asked
            assert asked is not None
            if torch.equal(ask.x, asked.x) and torch.equal(ask.sigma, asked.sigma):
                return asked.step(ask)
            conditional = denoised = request.predict(ask.x, ask.sigma, request.conditioning)
            unconditional, scale = None, torch.ones_like(ask.scale)
            if asked.halves == 2 and request.null is not None:
                unconditional, scale = request.predict(ask.x, ask.sigma, request.null), ask.scale
                denoised = guided(conditional, unconditional, scale)
            return DenoiseResult(ask.i, ask.n_steps, ask.sigma, ask.x, conditional, unconditional, denoised, scale)

        return denoiser
