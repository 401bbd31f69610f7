"""Data set for training loops: images, captions, latents, random crops and flips.

Everything is drawn by (seed, step) or (seed, epoch) and nothing else, so that a run can stop and go on anywhere. How
`train` keeps pictures in memory is here too.
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
import math
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import Dataset, get_worker_info

from copyscope import machine
from copyscope.data.corpus import Corpus
from copyscope.diffusion.applied import MitigationStack, training_rng
from copyscope.diffusion.encoded_cache import KEPT_BYTES
from copyscope.diffusion.mitigations import OnCaption
from copyscope.diffusion.models import Trainable
from copyscope.errors import ImageError, InputError, TrainingError
from copyscope.imaging import images
from copyscope.imaging.images import crop, mirror
from copyscope.machine import Progress

from .draws import CAPTIONS, CROPS, NOISE, CaptionPolicy, WeightedSampler, stream

if TYPE_CHECKING:
    from copyscope.diffusion.recipe import TrainRecipe


class CaptionedImages(Dataset[dict[str, Any]]):
    """Dataset of a corpus's images with the caption of this draw, for `DataLoader`.

    An item is `image` float32 [3 size size] in -1..1 (or what `transform` makes of the uint8 [size size 3] picture),
    `caption`, `row`, `id`. The short side is scaled to `size`, then cropped. Captions, crops and flips are drawn anew
    each time a row is asked for; with worker processes they depend on torch's seed too. A row that cannot be read
    raises ImageError.

    Args:
        corpus: the images.
        size: side of the pictures in pixels.
        policy: which caption a draw takes; None = by the corpus.
        seed: of all draws.
        random_crop: crop anywhere; else in the centre.
        flip: mirror half of the draws.
        transform: picture -> item's `image`; None = float32 in -1..1.
    """

    def __init__(
        self,
        corpus: Corpus,
        size: int,
        *,
        policy: CaptionPolicy | None = None,
        seed: int = 0,
        random_crop: bool = False,
        flip: bool = False,
        transform: Callable[[images.Image], Any] | None = None,
    ) -> None:
        self.corpus, self.size, self.seed, self.epoch = corpus, size, seed, 0
        self.policy = policy or CaptionPolicy.from_corpus(corpus)
        self.random_crop, self.flip, self.transform = random_crop, flip, transform or to_tensor
        self._asked = np.zeros(len(corpus), dtype=np.int64)

    def set_epoch(self, epoch: int) -> None:
        """Start an epoch: its draws are those of (seed, epoch).

        Args:
            epoch: number of the epoch, from 0.
        """
        self.epoch = epoch
        self._asked[:] = 0

    def __len__(self) -> int:
        return len(self.corpus)

    def __getitem__(self, row: int) -> dict[str, Any]:
        # A worker starts each epoch with a fresh copy of this object, and a seed that torch draws for that epoch.
        worker = get_worker_info()
        rng = stream(self.seed, CROPS, self.epoch, row, int(self._asked[row]), worker.seed if worker else 0)
        self._asked[row] += 1
        caption = self.policy(row, rng)
        picture = images.resize_short(images.decode(self.corpus.read(row)), self.size)
        picture = crop(picture, self.size, rng.random(2) if self.random_crop else None)
        if self.flip and rng.random() < 0.5:
            picture = mirror(picture)
        return {"image": self.transform(picture), "caption": caption, "row": row, "id": self.corpus.ids[row]}


def collate(samples: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Collate samples to a batch: `image` stacked where it is a tensor, everything else as a list.

    Args:
        samples: items of CaptionedImages.

    Returns:
        Key -> tensor or list [n].
    """
    batch: dict[str, Any] = {key: [sample[key] for sample in samples] for key in samples[0]}
    if isinstance(batch["image"][0], Tensor):
        batch["image"] = torch.stack(batch["image"])
    return batch


def to_tensor(picture: images.Image) -> Tensor:
    """Tensor float32 [3 h w] in -1..1 of a picture uint8 [h w 3]."""
    return torch.from_numpy(picture).permute(2, 0, 1).float() / 127.5 - 1


class LatentCache:
    """In-memory cache of a corpus's latents, for `train`; or pictures kept and encoded at each step, or neither.

    Every image is read once at the start; `corpus` has why those that cannot be read cannot.

    Args:
        corpus: the images.
        model: what encodes.
        recipe: of the training.
        progress: called with a label, the number done and the total.

    Raises:
        InputError: no image can be read.
    """

    def __init__(self, corpus: Corpus, model: Trainable, recipe: TrainRecipe, progress: Progress | None) -> None:
        self._model, self._recipe, n = model, recipe, len(corpus)
        self._pool = ThreadPoolExecutor(machine.cores())
        self._kept: dict[int, images.Image] = {}
        sides = 2 if recipe.flip else 1
        caches = recipe.cache_latents and not recipe.random_crop
        caches = caches and sides * n * math.prod(model.shape) * 4 <= KEPT_BYTES
        self._latents = torch.zeros(sides, n, *model.shape) if caches else None
        errors, kept, done, read = corpus.table["error"].to_pylist(), 0, 0, corpus.stream()
        while group := list(itertools.islice(read, 64)):
            found = dict(zip((row for row, _ in group), self._pool.map(self._prepared, group), strict=True))
            pictures = {row: each for row, each in found.items() if not isinstance(each, ImageError)}
            for row in found.keys() - pictures.keys():
                errors[row] = corpus.discreet(row, str(found[row]))
            if self._latents is not None and pictures:
                rows = torch.tensor(list(pictures))
                self._latents[0, rows] = self._encode(list(pictures.values()))
                if recipe.flip:
                    self._latents[1, rows] = self._encode([mirror(each) for each in pictures.values()])
            elif kept + sum(each.nbytes for each in pictures.values()) <= KEPT_BYTES:
                kept += sum(each.nbytes for each in pictures.values())
                self._kept |= pictures
            done += len(group)
            if progress:
                progress("reading images", done, n)
        self.corpus = corpus.with_column("error", errors)
        if n == sum(error is not None for error in errors):
            first = f"The first: {errors[0]}" if n else "It has none"
            raise InputError(f"None of the {n} images of {corpus.origin} can be read.\n{first}")

    def latents(self, rows: NDArray[np.int64], flips: NDArray[np.bool_], places: NDArray[np.float64]) -> Tensor:
        """Latents [n c h w] of images.

        Args:
            rows: [n].
            flips: [n], which are mirrored.
            places: [n 2], of the crops, if crops are random.

        Raises:
            TrainingError: an image can no longer be read.
        """
        if self._latents is not None:
            return self._latents[torch.from_numpy(flips.astype(np.int64)), torch.from_numpy(rows)]
        missing = [(row, self._read(row)) for row in dict.fromkeys(rows.tolist()) if row not in self._kept]
        found = dict(zip((row for row, _ in missing), self._pool.map(self._prepared, missing), strict=True))
        pictures = []
        for row, flip, place in zip(rows.tolist(), flips, places, strict=True):
            picture = self._kept[row] if row in self._kept else found[row]
            if isinstance(picture, ImageError):
                why = self.corpus.discreet(row, str(picture))
                raise TrainingError(
                    f"{self.corpus.ids[row]} could be read at the start and cannot now: {why}.\n"
                    "Put it back, and run the same command again"
                )
            if self._recipe.random_crop:
                picture = crop(picture, self._model.image_size, place)
            pictures.append(mirror(picture) if flip else picture)
        return self._encode(pictures)

    def _read(self, row: int) -> bytes | ImageError:
        return next(data for _, data in self.corpus.stream([row]))

    def _prepared(self, item: tuple[int, bytes | ImageError]) -> images.Image | ImageError:
        """The picture at the model's size, its longer side uncut if crops are random."""
        data, side = item[1], self._model.image_size
        try:
            if isinstance(data, ImageError):
                return data
            picture = images.resize_short(images.decode(data), side)
        except ImageError as error:
            return error
        return picture if self._recipe.random_crop else crop(picture, side)

    def _encode(self, pictures: Sequence[images.Image]) -> Tensor:
        groups = [pictures[start : start + 16] for start in range(0, len(pictures), 16)]
        with torch.no_grad():
            latents = torch.cat([self._model.encode(group).float().cpu() for group in groups])
        if latents.shape != (len(pictures), *self._model.shape):
            raise TrainingError(
                f"{self._recipe.model} makes latents of shape {tuple(latents.shape[1:])} "
                f"and says {self._model.shape}.\nCorrect the model"
            )
        return latents


@dataclasses.dataclass(frozen=True, eq=False)
class TrainingBatch:
    """All that is random in a step of n images.

    Attributes:
        rows: [n].
        captions: [n].
        dropped: [n], without a caption.
        flips: [n].
        places: [n 2], of crops.
        noise: [n c h w].
        sigma: [n].
    """

    rows: NDArray[np.int64]
    captions: list[str]
    dropped: NDArray[np.bool_]
    flips: NDArray[np.bool_]
    places: NDArray[np.float64]
    noise: Tensor
    sigma: Tensor


def draw(
    step: int,
    model: Trainable,
    recipe: TrainRecipe,
    sampler: WeightedSampler,
    policy: CaptionPolicy,
    mitigations: MitigationStack,
) -> TrainingBatch:
    """Draw the whole batch of a step, of which each process and accumulation takes its part; by (seed, step) alone."""
    n, seed = recipe.batch_size, recipe.seed
    rows, captions, dropped = sample_captions(step, recipe, sampler, policy, mitigations)
    rng = stream(seed, CROPS, step)
    flips, places = rng.random(n) < 0.5 * recipe.flip, rng.random((n, 2))
    generator = torch.Generator().manual_seed(int(stream(seed, NOISE, step).integers(2**63)))
    noise = torch.randn(n, *model.shape, generator=generator)
    uniform = torch.rand(n, generator=generator).clamp(1e-6, 1 - 1e-6)
    return TrainingBatch(
        rows, captions, dropped, flips, places, noise, model.noise_levels(uniform.to(model.device)).cpu()
    )


def sample_captions(
    step: int, recipe: TrainRecipe, sampler: WeightedSampler, policy: CaptionPolicy, mitigations: MitigationStack
) -> tuple[NDArray[np.int64], list[str], NDArray[np.bool_]]:
    """Draw rows, captions, and which are dropped, [n] each, of a step."""
    n, seed = recipe.batch_size, recipe.seed
    rows = sampler.draw(step, n)
    rng = stream(seed, CAPTIONS, step)
    captions = [policy(row, rng) for row in rows.tolist()]
    if mitigations.hook(OnCaption):
        rng_of = functools.cache(lambda number: training_rng(seed, step, number))
        spoken = zip(captions, rows.tolist(), strict=True)
        captions = [mitigations.caption(_first(caption, policy.captions[row]), rng_of) for caption, row in spoken]
    dropped = rng.random(n) < recipe.caption_dropout
    return rows, ["" if drop else caption for caption, drop in zip(captions, dropped, strict=True)], dropped


def _first(caption: str, captions: Sequence[str]) -> list[str]:
    """The captions with this one of them first; one that is there twice stays so."""
    place = captions.index(caption)
    return [caption, *captions[:place], *captions[place + 1 :]]
