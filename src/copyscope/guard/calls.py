"""Base of generation calls: generate, regenerate some images, build the output.

It knows nothing of what is wrong with an image; whoever does (the guard) says which rows, with which mitigations.
"""

from __future__ import annotations

import abc
import dataclasses
import math
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from copyscope.diffusion.denoiser import DenoiseResult, FindNearest
from copyscope.diffusion.models import Image, Model

from .pictures import delivered

SeedOf = Callable[[int], int]
"""Row -> the seed of its image in this try."""
Look = Callable[[float, list[Image]], bool]
"""Share of the steps that are done, estimates of the images [n] -> whether to stop there."""
Ladder = Sequence[Sequence[str]]
OUTPUTS = ("pil", "np", "pt")
"""What pipelines call the forms that hold pictures; "latent" holds none."""


class Stopped(Exception):
    """A look stopped the sampling.

    Args:
        share: of the steps that were done.
        estimates: of the images, uint8 [h w 3] each.
    """

    def __init__(self, share: float, estimates: list[Image]) -> None:
        self.share, self.estimates = share, estimates


@dataclasses.dataclass(frozen=True, eq=False)
class StepObserver:
    """Signals and looks that watch the steps of a try.

    Attributes:
        look: shown the estimates; True stops the try.
        signals: specs; they watch tries that nothing changes, since thresholds hold for those alone.
        looks: ascending shares of the steps after which `look` is called.
        nearest: finds training images, for mitigations that want it.
    """

    look: Look
    signals: Sequence[str] = ()
    looks: Sequence[float] = ()
    nearest: FindNearest | None = None

    def of(self, rung: Sequence[str]) -> Sequence[str]:
        """Signals that watch a try on a rung."""
        return () if rung else self.signals

    def looking(self) -> Callable[[Model, DenoiseResult], None] | None:
        """Callback for the steps of one try that calls `look` and raises Stopped; None where nobody looks."""
        if not self.looks:
            return None
        ahead = list(self.looks)

        def on_step(model: Model, step: DenoiseResult) -> None:
            assert step.i is not None
            done = step.i + 1
            # After the last step the image itself is looked at.
            if not ahead or done < math.ceil(ahead[0] * step.n_steps) or done == step.n_steps:
                return
            while ahead and done >= math.ceil(ahead[0] * step.n_steps):
                ahead.pop(0)
            estimates = model.decode(step.denoised)
            if self.look(done / step.n_steps, estimates):
                raise Stopped(done / step.n_steps, estimates)

        return on_step


@dataclasses.dataclass(frozen=True, eq=False)
class Attempt:
    """Images of one try [n].

    Attributes:
        images: in the caller's form; None each where the try was stopped.
        share: of the steps after which it was stopped; None = finished.
        estimates: of the images where it was stopped.
        signals: scores by spec [n].
        extras: what else was returned of each image, by name [n].
        views: of each finished image, uint8 [h w 3] each, all that a person may see in it.
    """

    images: list[Any]
    share: float | None = None
    estimates: list[Image] | None = None
    signals: Mapping[str, NDArray[np.float64]] = dataclasses.field(default_factory=dict)
    extras: Mapping[str, list[Any]] = dataclasses.field(default_factory=dict)
    views: list[list[Image]] = dataclasses.field(default_factory=list)

    @classmethod
    def stopped(cls, by: Stopped, scores: Mapping[str, Tensor]) -> Attempt:
        """Attempt of a try that a look ended."""
        return cls([None] * len(by.estimates), by.share, by.estimates, arrays(scores))

    @classmethod
    def finished(
        cls,
        images: Sequence[Any],
        signals: Mapping[str, NDArray[np.float64]] | None = None,
        extras: Mapping[str, list[Any]] | None = None,
        *,
        colours: bool = False,
    ) -> Attempt:
        """Attempt of a try that ended, with images of any library.

        Args:
            images: in the caller's form [n].
            signals: scores by spec [n].
            extras: what else was returned, by name [n].
            colours: as in `delivered`.

        Raises:
            InputError: one of them is no image.
        """
        found = [delivered(image, colours) for image in images]
        views = [each.views for each in found]
        return cls([each.image for each in found], signals=signals or {}, extras=extras or {}, views=views)

    def of(self, rows: Sequence[int]) -> Attempt:
        """Some rows of the attempt."""

        def taken(values: Any) -> Any:
            return values[list(rows)] if isinstance(values, np.ndarray) else [values[row] for row in rows]

        return dataclasses.replace(
            self,
            images=taken(self.images),
            views=taken(self.views) if self.views else [],
            estimates=None if self.estimates is None else taken(self.estimates),
            signals={name: taken(values) for name, values in self.signals.items()},
            extras={name: taken(values) for name, values in self.extras.items()},
        )


class GenerationCall(abc.ABC):
    """Base of calls of one kind of generator: a pipeline, a model, a function.

    `prompts` [n] are those of the caller, None where there is no text; known once `first` has run.
    """

    prompts: list[str | None]
    watchable = True
    """Whether signals and looks can watch the steps."""

    @classmethod
    @abc.abstractmethod
    def check(cls, made_by: Any, ladder: Ladder, nearest: FindNearest | None) -> None:
        """Check that the rungs of a ladder can act in a call.

        Args:
            made_by: the pipeline, model or function.
            ladder: specs of mitigations, rung by rung.
            nearest: finds training images; None = nobody does.

        Raises:
            PartError: there is no such mitigation.
            InputError: a rung can act in no call.
        """

    @classmethod
    def model(cls, made_by: Any) -> Model:
        """Model of what makes the images, where its steps can be watched."""
        raise NotImplementedError

    @abc.abstractmethod
    def __init__(
        self, made_by: Any, arguments: tuple[Any, ...], options: Mapping[str, Any], watching: StepObserver
    ) -> None: ...

    @abc.abstractmethod
    def seed_used(self, row: int, attempt: int) -> bool:
        """Whether an image came of `seed_of(row)`: not if the caller gave a seed, or the function takes none."""

    def fits(self, rung: Sequence[str]) -> bool:
        """Whether this call has what a rung needs, guidance or a text; asked once `first` has run."""
        return True

    @abc.abstractmethod
    def first(self, seed_of: SeedOf) -> Attempt:
        """Make the images of the call by itself."""

    def same_again(self, rows: Sequence[int], views: Sequence[Sequence[Image]]) -> bool:
        """Whether each of these rows is what it was in the try before, though nothing but its words could change."""
        return False

    @abc.abstractmethod
    def again(self, rows: Sequence[int], rung: Sequence[str], seed_of: SeedOf) -> Attempt:
        """Make some rows once more, with other seeds and with mitigations.

        Args:
            rows: which.
            rung: specs of mitigations.
            seed_of: row -> seed.
        """

    @abc.abstractmethod
    def output(self, images: Sequence[Any], extras: Mapping[str, Mapping[int, Any]]) -> Any:
        """Return value of the call.

        Args:
            images: [n].
            extras: by name, values of some rows that are replaced.
        """

    def blank(self, image: Any, estimate: Image | None) -> Any:
        """Black image of the size and kind of `image`, or where there is none of an estimate."""
        from PIL import Image as Pillow

        if image is None:
            return np.zeros_like(estimate)
        if isinstance(image, Tensor):
            return torch.zeros_like(image)
        return Pillow.new("RGB", image.size) if hasattr(image, "convert") else np.zeros_like(image)


def has_length(value: Any, lengths: Collection[int], depth: int = 2) -> bool:
    """Whether an argument, or one inside it, has one of these lengths: lists, tuples, arrays, values of a mapping."""
    if isinstance(value, (np.ndarray, Tensor)):
        return value.ndim > 0 and len(value) in lengths
    if isinstance(value, Mapping):
        return depth > 0 and any(has_length(each, lengths, depth - 1) for each in value.values())
    if not isinstance(value, (list, tuple)):
        return False
    return len(value) in lengths or (depth > 0 and any(has_length(each, lengths, depth - 1) for each in value))


def generator(seed: int) -> torch.Generator:
    """Torch generator of a seed, on the CPU."""
    return torch.Generator().manual_seed(seed)


def arrays(scores: Mapping[str, Tensor]) -> dict[str, NDArray[np.float64]]:
    """Scores of signals as numpy arrays."""
    return {spec: values.double().cpu().numpy() for spec, values in scores.items()}
