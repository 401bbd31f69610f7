"""The perfect copier: the denoiser of a weighted finite corpus in closed form, without weights and without training."""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from copyscope.data.corpus import Corpus
from copyscope.diffusion.conditioning import Conditioning
from copyscope.errors import ImageError, InputError
from copyscope.imaging import images

from . import Image, Model


@dataclasses.dataclass(frozen=True)
class Empirical(Model):
    """The perfect copier: denoises as a model that learnt the corpus to the last bit (Karras et al. 2022, B.3).

    x0 = mean + sqrt(1 - bandwidth^2) (image - mean) + bandwidth z, with z of the corpus's covariance. Mean and
    covariance over the pixels are those of the corpus at every bandwidth.

    Args:
        corpus: path of the images.
        size: side in pixels they are brought to.
        bandwidth: 0 to 1; at 0 every sample is a training image, drawn by weight; larger ones move it on to other
            pictures, as far as 1, where samples are those of one normal distribution.
        specificity: how much likelier, in nats, images are that bear the prompt as a caption; 0 is deaf to prompts, and
            a prompt that no image bears means all of them.
    """

    corpus: str
    size: int = 32
    bandwidth: float = 0.0
    specificity: float = 100.0

    def __post_init__(self) -> None:
        if self.size < 1:
            raise ValueError("size must be at least 1")
        if not 0 <= self.bandwidth <= 1 or not 0 <= self.specificity < math.inf:
            raise ValueError("bandwidth must lie between 0 and 1, and specificity must not be negative")

    @property
    def shape(self) -> tuple[int, int, int]:
        """Pixels themselves: (3, size, size)."""
        return 3, self.size, self.size

    def __call__(self, x: Tensor, sigma: Tensor, conditioning: Conditioning) -> Tensor:
        """Mean of x0 given x, in closed form; see `Model.__call__`."""
        known = self._known
        # In double precision: at low noise, log-likelihoods are differences of numbers in the millions.
        noise = sigma.double()[:, None] ** 2
        away = x.double().flatten(1) - known.mean
        place = away @ known.axes.T
        spread = self.bandwidth**2 * known.variance
        total = noise + spread
        # Each squared distance in units of the variance along its axis, multiplied out; x's own part is common to all.
        likelihood = (place / total) @ known.centres.T - (1 / total) @ (known.centres**2).T / 2
        told = torch.where(conditioning.mask[..., None], conditioning.text, 0).sum(1).double()
        share = torch.softmax(known.log_weight + self.specificity * (told @ known.bears.T) + likelihood, dim=1)
        found = (spread * place + noise * (share @ known.centres)) / total
        return (known.mean + found @ known.axes).to(x.dtype).view_as(x)

    def condition(self, captions: Sequence[str]) -> Conditioning:
        """One token a caption: 1 at the place of that caption among those of the corpus, all 0 for any other and ""."""
        place = self._known.captions
        text = torch.zeros(len(captions), 1, self._known.bears.shape[1])
        for row, caption in enumerate(captions):
            if caption in place:
                text[row, 0, place[caption]] = 1
        return Conditioning(text, torch.ones(len(captions), 1, dtype=torch.bool))

    def decode(self, latents: Tensor) -> list[Image]:
        """Round to pixels; see `Model.decode`."""
        pixels = ((latents.detach().permute(0, 2, 3, 1) + 1) * 127.5).round().clamp(0, 255)
        return list(pixels.to(torch.uint8).numpy())

    @functools.cached_property
    def _known(self) -> _Known:
        found = Corpus.open(self.corpus)
        weights = found.table["weight"].to_pylist()
        pictures: dict[int, Image] = {}
        for row, data in found.stream(row for row, weight in enumerate(weights) if weight > 0):
            try:
                if isinstance(data, ImageError):
                    raise data
                whole = images.resize_short(images.decode(data), self.size)
                pictures[row] = images.centre_crop(whole, self.size)
            except ImageError:
                continue
        if not pictures:
            raise InputError(
                f"None of {len(found)} images in {self.corpus} can be read and has a weight.\nName a folder of images"
            )
        rows = sorted(pictures)
        pixels = torch.from_numpy(np.stack([pictures[row] for row in rows])).permute(0, 3, 1, 2).double() / 127.5 - 1
        captions = [found.captions[row] for row in rows]
        return _Known.of(pixels.flatten(1), [weights[row] for row in rows], captions, self.bandwidth)


@dataclasses.dataclass(frozen=True, eq=False)
class _Known:
    """A corpus of n images in the coordinates of its own covariance.

    Attributes:
        mean: [d], of the pixels.
        axes: [r d], orthonormal.
        variance: [r], of the images along each axis.
        centres: [n r], the images about the mean, drawn in by the bandwidth.
        log_weight: [n].
        captions: caption -> its column of `bears`.
        bears: [n captions], 1 where an image bears the caption.
    """

    mean: Tensor
    axes: Tensor
    variance: Tensor
    centres: Tensor
    log_weight: Tensor
    captions: dict[str, int]
    bears: Tensor

    @staticmethod
    def of(pixels: Tensor, weights: Sequence[float], captions: Sequence[Sequence[str]], bandwidth: float) -> _Known:
        weight = torch.tensor(weights, dtype=torch.float64)
        weight /= weight.sum()
        mean = weight @ pixels
        _, singular, axes = torch.linalg.svd((pixels - mean) * weight.sqrt()[:, None], full_matrices=False)
        every = {caption: None for each in captions for caption in each if caption}
        place = {caption: column for column, caption in enumerate(every)}
        bears = torch.zeros(len(pixels), max(1, len(place)), dtype=torch.float64)
        for row, each in enumerate(captions):
            for caption in filter(None, each):
                bears[row, place[caption]] = 1
        centres = math.sqrt(1 - bandwidth**2) * (pixels - mean) @ axes.T
        return _Known(mean, axes, singular**2, centres, weight.log(), place, bears)
