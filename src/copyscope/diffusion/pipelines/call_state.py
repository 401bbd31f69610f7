"""State of a pipeline under mitigations: its settings, its own methods, and a call as it goes on."""

from __future__ import annotations

import dataclasses
import threading
from collections.abc import Callable, Sequence
from typing import Any

from torch import Tensor

from copyscope.diffusion import applied
from copyscope.diffusion.conditioning import Conditioning
from copyscope.diffusion.denoiser import DenoiseResult, FindNearest, GuidedDenoiser
from copyscope.diffusion.models.stable_diffusion import StableDiffusion
from copyscope.diffusion.signals import Signal

from .network_call import NetworkCall

OnStep = Callable[[StableDiffusion, DenoiseResult], None]


@dataclasses.dataclass(frozen=True)
class Settings:
    """What `mitigate` and `observe` were given beside the pipeline.

    Attributes:
        specs: of the mitigations.
        signals: specs of the signals.
        seed: as in `mitigate`.
        nearest: as in `mitigate`.
        on_step: called after each step of the sampler; None = nobody looks.
    """

    specs: tuple[str, ...]
    signals: tuple[str, ...]
    seed: int
    nearest: FindNearest | None
    on_step: OnStep | None = None


@dataclasses.dataclass(frozen=True, eq=False)
class StartedCall:
    """What is decided before the first step of a call.

    Attributes:
        halves: as in NetworkCall.
        given: texts that the network was first given; None where mitigations change nothing of them.
        told: what mitigations tell the network instead, with a prompt and without; None where they change nothing.
        guided: what answers in place of the network; None where the network answers itself.
    """

    halves: int
    given: Tensor | None
    told: tuple[Conditioning, Conditioning | None] | None
    guided: GuidedDenoiser | None


@dataclasses.dataclass(eq=False)
class Call:
    """A call of the pipeline, about n images, filled as the pipeline goes on.

    `encode_prompt` sets the fields from `parts` to `negative`, `prepare_latents` sets `latents`, and the network sets
    those after it.

    Attributes:
        number: of the call, in this `with`.
        thread: that the call is in. Other threads may use the network meanwhile, for pipelines without mitigations.
        parts: mitigations, loaded for this call.
        signals: loaded for this call.
        prompts: [n], as mitigations rewrote them; None = the pipeline was given none.
        null: what the network is told without a prompt, where a part needs that and the pipeline has no guidance; else
            None.
        negative: texts of Flux's own guidance; None = there are none.
        latents: the pipeline's own; None where it starts from an image.
        started: what was decided before the first step.
        steps: how many steps have begun.
        asked: the network's call under way.
    """

    number: int
    thread: int = dataclasses.field(default_factory=threading.get_ident)
    parts: applied.MitigationStack | None = None
    signals: Sequence[Signal] = ()
    prompts: list[str] | None = None
    null: Conditioning | None = None
    negative: Tensor | None = None
    latents: Tensor | None = None
    started: StartedCall | None = None
    steps: int = 0
    asked: NetworkCall | None = None

    def is_here(self) -> bool:
        """Whether this thread is the one of the call."""
        return self.thread == threading.get_ident()


@dataclasses.dataclass(frozen=True)
class OwnMethods:
    """The methods of the pipeline that are wrapped, as they were."""

    check_inputs: Callable[..., Any]
    encode_prompt: Callable[..., Any]
    prepare_latents: Callable[..., Any]
    maybe_free_model_hooks: Callable[..., Any]
