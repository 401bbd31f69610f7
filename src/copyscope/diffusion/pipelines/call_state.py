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
    """What `mitigate` and `observe` were given beside the pipeline."""

    specs: tuple[str, ...]
    signals: tuple[str, ...]
    seed: int
    nearest: FindNearest | None
    on_step: OnStep | None = None


@dataclasses.dataclass(frozen=True, eq=False)
class StartedCall:
    """What is decided before the first step. halves: as in NetworkCall. given: texts that the network was first given,
    and `told`, what mitigations have it told instead; None where they change nothing. guided: what answers in place of
    the network; None where it answers itself.
    """

    halves: int
    given: Tensor | None
    told: tuple[Conditioning, Conditioning | None] | None
    guided: GuidedDenoiser | None


@dataclasses.dataclass(eq=False)
class Call:
    """A call of the pipeline, about n images, filled as the pipeline goes on.

    thread: that it is in; the network may be asked by others meanwhile, for pipelines that have no mitigations.
    By `encode_prompt`: parts and signals, loaded for this call; prompts as rewritten [n]; null, what the network is
    told when told nothing, where the pipeline does not ask for that; negative, texts of Flux's own guidance. By
    `prepare_latents`: the pipeline's own latents. By the network: what started it, how many steps have begun, and its
    call under way.
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
