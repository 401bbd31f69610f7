"""Run signals while sampling: load specs, check them against the model, record scores."""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from copyscope import parts

from . import applied
from .denoiser import DenoiseResult, SamplingContext
from .mitigations import PROMPTS
from .models import Model, Trainable
from .signals import Signal, SignalState

STREAM = 7
"""Stream of signals of an image's seed, beside those of `applied`; the same for all, so that their order is nothing."""


@dataclasses.dataclass(eq=False)
class Observed:
    """What signals have seen of a sampling; empty before one begins, and filled anew by the next.

    Attributes:
        watches: signal's spec -> its state. `scores` and `maps` may be read at any time.
    """

    watches: dict[str, SignalState] = dataclasses.field(default_factory=dict)

    def begin(self, signals: Sequence[Signal], request: SamplingContext, seeds: Sequence[int]) -> None:
        """Begin to watch a sampling of n images."""
        self.watches.clear()
        for signal in signals:
            rngs = [np.random.default_rng(np.random.SeedSequence([seed, STREAM])) for seed in seeds]
            self.watches[str(signal)] = signal.watch(dataclasses.replace(request, rngs=rngs))

    @torch.no_grad()
    def see(self, step: DenoiseResult) -> None:
        """Show a step of the sampling to all signals, not a point that a step only tries."""
        if step.i is not None:
            for watch in self.watches.values():
                watch.observe(step)

    @property
    def scores(self) -> dict[str, Tensor]:
        """Scores of each signal [n]; NaN as long as it has not seen all that it needs."""
        return {spec: watch.scores() for spec, watch in self.watches.items()}

    @property
    def maps(self) -> dict[str, Tensor]:
        """Maps [n h w] of each signal that knows where an image is copied, and has seen it."""
        found = {spec: watch.maps() for spec, watch in self.watches.items()}
        return {spec: map for spec, map in found.items() if map is not None}


def load(specs: Sequence[str], model: Model, *, guidance: float = 1.0, has: Sequence[str] = (PROMPTS,)) -> list[Signal]:
    """Load signals to watch a model, and check that they fit.

    Args:
        specs: specs of the shelf.
        model: the model.
        guidance: scale of guidance; 1 = none.
        has: PROMPTS, where there are any.

    Raises:
        PartError: there is no such signal.
        InputError: one needs what is lacking.
    """
    found: list[Signal] = []
    for spec in specs:
        signal: Signal = parts.load("signals", spec)
        applied.refuse(spec, signal.needs, model, guidance, has)
        found.append(signal)
    return found


def fingerprint(model: Model) -> str:
    """sha256 (hex) of a model's weights, or of its spec where it has none."""
    digest = hashlib.sha256(type(model).__name__.encode())
    if not isinstance(model, Trainable):
        digest.update(str(model).encode())
        return digest.hexdigest()
    for name, value in sorted(model.network.state_dict().items()):
        digest.update(f"{name} {value.dtype} {tuple(value.shape)}".encode())
        digest.update(value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()
