"""Anti-memorization guidance (AMG): guide away from the nearest training image (Chen et al. 2024)."""

from __future__ import annotations

import dataclasses
import math

import torch

from copyscope.diffusion.denoiser import DenoiseQuery, DenoiseResult, GuidedDenoiser, NearestImage, SamplingContext
from copyscope.diffusion.models import Trainable
from copyscope.imaging import images

from . import GUIDANCE, NEAREST, OnDenoiser


@dataclasses.dataclass(frozen=True)
class AntimemorizationGuidance(OnDenoiser):
    """Guide away from the training image nearest to the estimate of x0, where their similarity is above the threshold.

    It then

    1. takes the share clamp(strength * despecification * similarity, 0, 1) of w - 1 off the scale w of guidance,
    2. guides away from that image's caption, with the like share by `deduplication`, as far as 1 leaves some of w - 1,
    3. makes the estimate's distance to that image, both as latents, greater by the share strength * dissimilarity *
       (similarity - threshold): a step up the gradient of half its square. Only of models that encode pictures.

    Source: AMG of Chen et al. 2024 (CVPR). Theirs is the gradient of SSCD's similarity through decoder and descriptor;
    the finder here is any function of pictures and has none, so the distance of latents stands for it. Their share
    clamp(13 * similarity, 0, 6.5) at w = 7.5 is a despecification of 2; their threshold for SD goes from 0.3 to 0.4.

    Cost: one model call a step from `start` on, where the threshold is passed and 1 leaves something to 2. A look
    decodes a picture, and what is found is encoded.

    Args:
        strength: of all three; 0 is the sampling as it was.
        threshold: similarity as the finder measures it.
        despecification: of 1; 0 is without.
        deduplication: of 2; 0 is without.
        dissimilarity: of 3; 0 is without.
        start: share of the steps before it first looks, 0 to 1; estimates are blurred until about the middle.
        every: steps from look to look, the found holding in between.
    """

    strength: float = 1.0
    threshold: float = 0.4
    despecification: float = 2.0
    deduplication: float = 2.0
    dissimilarity: float = 1.0
    start: float = 0.0
    every: int = 1
    needs = (GUIDANCE, NEAREST)

    def __post_init__(self) -> None:
        if not min(self.strength, self.despecification, self.deduplication, self.dissimilarity) >= 0:
            raise ValueError("strength, despecification, deduplication and dissimilarity must be 0 or more")
        if not 0 <= self.start <= 1 or self.every < 1:
            raise ValueError("start must be a share from 0 to 1, and every at least 1")

    def calls(self, steps: int) -> int:
        """One a step from `start` on, for the caption; see `Mitigation.calls`."""
        return steps - self._first(steps) if self.strength * self.deduplication else 0

    def wrap(self, denoiser: GuidedDenoiser, request: SamplingContext) -> GuidedDenoiser:
        """Look for the nearest training image and guide away from it; see `OnDenoiser.wrap`."""
        model, found, look = request.model, list[NearestImage](), 0

        def guided_away(ask: DenoiseQuery) -> DenoiseResult:
            nonlocal found, look
            step = denoiser(ask)
            assert step.unconditional is not None
            if ask.i is not None and ask.i >= max(look, self._first(ask.n_steps)) and request.nearest:
                # One at a time: the last bits of a batch depend on how many there are.
                pictures = [model.decode(latent[None].clone())[0] for latent in step.denoised]
                found, look = list(request.nearest(pictures)), ask.i + self.every
            rows = [row for row, each in enumerate(found) if each.similarity > self.threshold]
            if not rows:
                return step
            similarity = step.scale.new_tensor([found[row].similarity for row in rows])
            off = (self.strength * self.despecification * similarity).clamp(0, 1)
            rest = (self.strength * self.deduplication * similarity).clamp(min=0).minimum(1 - off)
            room, none, made = (step.scale[rows] - 1).clamp(min=0), step.unconditional[rows], step.denoised[rows]
            made -= (off * room).view(-1, 1, 1, 1) * (step.conditional[rows] - none)
            if left := (rest * room).nonzero()[:, 0].tolist():
                caption = model.condition([found[rows[place]].caption for place in left]).to(made.device)
                told = request.predict(ask.x[rows][left], ask.sigma[rows][left], caption)
                made[left] -= (rest * room)[left].view(-1, 1, 1, 1) * (told - none[left])
            if isinstance(model, Trainable) and self.dissimilarity:
                short = [images.resize_short(found[row].picture, model.image_size) for row in rows]
                copied = torch.cat([model.encode([images.centre_crop(each, model.image_size)]) for each in short])
                away = self.strength * self.dissimilarity * (similarity - self.threshold)
                made += away.view(-1, 1, 1, 1) * (made - copied.to(made))
            (denoised := step.denoised.clone())[rows] = made
            return dataclasses.replace(step, denoised=denoised)

        return guided_away if self.strength else denoiser

    def _first(self, steps: int) -> int:
        return math.ceil(self.start * steps - 1e-9)
