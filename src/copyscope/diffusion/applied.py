"""Apply mitigations: load specs, check them against the model, call each at its hook.

Random numbers come from streams of their own, so that a mitigation turned down to nothing leaves a training and an
image as they were without it. In training they are of (seed, step, number of the part): one stream for all captions of
a step, in the order of its rows, and else one a row. Rows are counted over the whole batch, so that a caption or a
perturbation is the same however many processes share it. In sampling they are of (seed of the image, number of the
part).
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Sequence
from typing import Any, TypeVar, cast

import numpy as np
import torch
from torch import Tensor

from copyscope import parts
from copyscope.errors import InputError, PartError

from .conditioning import Conditioning
from .denoiser import GuidedDenoiser, SamplingContext
from .mitigations import (
    CROSS_ATTENTION,
    GUIDANCE,
    NEAREST,
    NEEDS,
    NULL,
    PROMPTS,
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
from .models import Model, Trainable

D = TypeVar("D", bound=Mitigation)

TRAINING_STREAM, SAMPLING_STREAM = 5, 6
"""Streams of mitigations of a seed, beside those of `data`."""

FUSED = ("cross-attention whose projections are apart, and here they are fused", "Call unfuse_qkv_projections first")

PRESETS: dict[str, dict[str, dict[str, str]]] = {
    # The paper's letters, with the defaults of its authors' code where it has some; 0.1 is its README's example of GN.
    "dcr-2023": {
        TRAINING: {
            "MC": "multiple_captions",
            "GN": "gaussian_noise(scale=0.1)",
            "RC": "random_caption(probability=0.1, tokens=4)",
            "RT": "random_tokens(n=2, probability=0.1)",
            "CWR": "word_repetition(n=2, probability=0.1)",
        },
        SAMPLING: {
            "GN": "gaussian_noise(scale=0.1, both=True)",
            "RT": "random_tokens(n=4, probability=1.0)",
            "CWR": "word_repetition(n=4, probability=1.0)",
            "RNA": "random_numbers(n=4, probability=1.0)",
        },
    }
}
"""Named settings: `dcr-2023:RT` is the paper's RT as the stage it is used in has it."""


@dataclasses.dataclass(frozen=True, eq=False)
class MitigationStack:
    """Mitigations of a recipe in the order they act, each with its number.

    Attributes:
        parts: the mitigations.
    """

    parts: tuple[Mitigation, ...] = ()

    def hook(self, hook: type[D]) -> list[tuple[int, D]]:
        """Mitigations of one hook, with their numbers."""
        return [(number, part) for number, part in enumerate(self.parts) if isinstance(part, hook)]

    def caption(self, captions: Sequence[str], rng_of: Any) -> str:
        """Caption of an image for one draw: the first, unless a mitigation rewrites it.

        Args:
            captions: of the image.
            rng_of: number of a part -> its generator.
        """
        first, *others = captions
        for number, part in self.hook(OnCaption):
            first = part.rewrite([first, *others], rng_of(number))
        return first

    def perturb(self, conditioning: Conditioning, rngs_of: Any) -> Conditioning:
        """Perturb the conditioning of a training batch.

        Args:
            conditioning: of the batch [n].
            rngs_of: number of a part -> a generator a row.
        """
        for number, part in self.hook(OnConditioning):
            conditioning = part.perturb(conditioning, rngs_of(number))
        return conditioning

    def fused(
        self, latents: Tensor, conditioning: Conditioning, rngs_of: Any, model: Trainable
    ) -> tuple[Tensor, Conditioning]:
        """Fuse latents and conditioning of a training batch.

        Args:
            latents: [n c h w].
            conditioning: of the batch [n].
            rngs_of: number of a part -> a generator a row.
            model: what made the latents.
        """
        for number, part in self.hook(OnLatents):
            latents, conditioning = part.fuse(latents, conditioning, rngs_of(number), model)
        return latents, conditioning

    def remember(self) -> list[Tensor]:
        """Initial state of each OnLoss part."""
        return [part.state() for _, part in self.hook(OnLoss)]

    def weights(self, batch: Batch, memories: Sequence[Tensor]) -> Tensor:
        """Weights [n] of the losses of a batch; `memories` are changed in place."""
        found = torch.ones_like(batch.loss)
        for (_, part), memory in zip(self.hook(OnLoss), memories, strict=True):
            found = found * part.weigh(batch, memory)
        # Each of several makes up for those it alone leaves out.
        return found * (len(found) / found.sum()) if len(memories) > 1 and found.any() else found

    def prepare(self, request: SamplingContext, seeds: Sequence[int]) -> SamplingContext:
        """Conditioning, null and noise that sampling starts from, in a changed request.

        Args:
            request: what is asked of the model.
            seeds: of the images [n].
        """
        rngs_of = functools.partial(sampling_rngs, seeds)
        for number, part in self.hook(OnConditioning):
            request = dataclasses.replace(request, rngs=rngs_of(number))
            told = part.perturb(request.conditioning, request.rngs, request)
            # Its own stream goes on, so that the two halves get different noise.
            null = (
                part.perturb(request.null, request.rngs, request)
                if part.on_null and request.null is not None
                else request.null
            )
            request = dataclasses.replace(request, conditioning=told, null=null)
        for number, noise_part in self.hook(OnNoise):
            request = dataclasses.replace(request, rngs=rngs_of(number))
            request = dataclasses.replace(request, noise=noise_part.draw(request.noise, request))
        return request

    def around(self, denoiser: GuidedDenoiser, request: SamplingContext, seeds: Sequence[int]) -> GuidedDenoiser:
        """Wrap a guided denoiser in all parts, the first the innermost."""
        for number, part in self.hook(OnDenoiser):
            denoiser = part.wrap(denoiser, dataclasses.replace(request, rngs=sampling_rngs(seeds, number)))
        return denoiser

    def calls(self, steps: int) -> int:
        """Model calls an image beyond those of the sampler, at most."""
        return sum(part.calls(steps) for part in self.parts)


def load(
    specs: Sequence[str], stage: str, model: Model, *, guidance: float = 1.0, has: Sequence[str] = (PROMPTS,)
) -> MitigationStack:
    """Load mitigations for a stage of work with a model, and check that they fit.

    Args:
        specs: specs of the shelf, or a preset's letters.
        stage: TRAINING or SAMPLING.
        model: the model.
        guidance: scale of guidance; 1 = none.
        has: which of PROMPTS and NEAREST there are.

    Raises:
        PartError: there is no such part.
        InputError: one does not act in the stage, or needs what is lacking.
    """
    found = []
    for spec in specs:
        part = named(spec, stage)
        refuse(spec, part.needs, model, guidance, has if stage == SAMPLING else None)
        if getattr(part, "tokenizer", None) == "":
            part = dataclasses.replace(cast(Any, part), tokenizer=model.tokenizer)
        found.append(part)
    return MitigationStack(tuple(found))


def refuse(spec: str, needs: Sequence[str], model: Model, guidance: float, has: Sequence[str] | None) -> None:
    """Refuse a part that needs what there is not.

    Args:
        spec: of the part, for the message.
        needs: keys of NEEDS.
        model: the model.
        guidance: scale of guidance; 1 = none.
        has: which of PROMPTS and NEAREST there are; None in training, where a null alone is needed.

    Raises:
        InputError: something is lacking.
    """
    if lacks := _lacks(needs, model, guidance, has):
        raise InputError(f"{spec} needs {lacks[0]}.\n{lacks[1]}")


def named(spec: str, stage: str) -> Mitigation:
    """Load the part of a spec or a preset's letters for a stage.

    Raises:
        PartError: there is no such part.
        InputError: it does not act in the stage, or what it names is not there.
    """
    part: Mitigation = _loaded(spec, stage)
    if stage not in part.stages:
        raise InputError(f"{spec} acts in {part.stages[0]} only.\nLeave it out of the recipe of {stage}")
    part.check()
    return part


def training_rng(seed: int, step: int, number: int, *row: int) -> np.random.Generator:
    """Generator of a part in a training step, or of a row of that step's batch.

    Args:
        seed: of the recipe.
        step: of the training, from 0.
        number: of the part among the mitigations.
        row: of the whole batch; none = one generator for all its captions.
    """
    return np.random.default_rng(np.random.SeedSequence([seed, TRAINING_STREAM, step, number, *row]))


def sampling_rngs(seeds: Sequence[int], number: int) -> list[np.random.Generator]:
    """Generators [n] of a part, of images with these seeds."""
    return [np.random.default_rng(np.random.SeedSequence([seed, SAMPLING_STREAM, number])) for seed in seeds]


def _loaded(spec: str, stage: str) -> Any:
    known = {f"{name}:{letters}": each for name, stages in PRESETS.items() for letters, each in stages[stage].items()}
    presets = f"presets in {stage} are: {', '.join(known)}"
    name, colon, letters = spec.partition(":")
    if name in PRESETS and spec not in known:
        raise PartError(f"No {letters!r} of {name} in {stage}.\nThe {presets}")
    try:
        return parts.load("mitigations", known.get(spec, spec))
    except PartError as error:
        # A class of one's own without arguments is written like a preset: which was meant, we cannot know.
        raise (PartError(f"{error}; {presets}") if colon and "(" not in spec else error) from None


def _lacks(needs: Sequence[str], model: Model, guidance: float, has: Sequence[str] | None) -> tuple[str, str] | None:
    """What is needed and there is not, as NEEDS and FUSED say it."""
    if NULL in needs and not model.has_null:
        return NEEDS[NULL]
    if has is None:
        return None
    if GUIDANCE in needs and guidance == 1:
        return NEEDS[GUIDANCE]
    if CROSS_ATTENTION in needs and not model.cross_attentions:
        return NEEDS[CROSS_ATTENTION]
    if CROSS_ATTENTION in needs and any(map(_fused, model.cross_attentions)):
        return FUSED
    return next((NEEDS[what] for what in (PROMPTS, NEAREST) if what in needs and what not in has), None)


def _fused(layer: torch.nn.Module) -> bool:
    """Whether its keys do not come of `to_k`, which stays there; so does `fused_projections`, once unfused."""
    return "Fused" in type(getattr(layer, "processor", None)).__name__
