"""Which image with which caption, drawn how often: a sampler, a caption policy and a data set for any training loop.

Everything is drawn by (seed, step) or (seed, epoch) and nothing else, so that a run can stop and go on anywhere. How
`train` keeps pictures in memory is here too.
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
import math
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import Dataset, Sampler, get_worker_info

from copyscope import machine
from copyscope.data.corpus import Corpus
from copyscope.diffusion.applied import Mitigations, training_rng
from copyscope.diffusion.mitigations import OnCaption
from copyscope.diffusion.models import Trainable
from copyscope.errors import ImageError, InputError, TrainingError
from copyscope.imaging import images
from copyscope.machine import Progress

if TYPE_CHECKING:
    from .train import TrainRecipe

# Streams of random numbers of one seed: which rows, which captions, crops and flips, noise, which rows to sample.
ROWS, CAPTIONS, CROPS, NOISE, SAMPLES = range(5)
KEPT_BYTES = 2 * 2**30
"""Latents, pictures and text states are kept in memory up to this many bytes each, beyond it made anew at each step."""


def stream(seed: int, kind: int, *place: int) -> np.random.Generator:
    """The generator of one kind of draws at one place: a step, or an epoch and a row."""
    return np.random.default_rng(np.random.SeedSequence([seed, kind, *place]))


@dataclasses.dataclass(frozen=True, eq=False)
class CaptionPolicy:
    """Which of an image's captions a draw takes: the first, or, where `fresh`, any of them, anew each time.

    captions: of each row [n], at least one each. fresh: bool [n]; true for partially duplicated images, whose picture
    repeats while its caption varies (Somepalli et al. 2023, section 4).
    """

    captions: Sequence[Sequence[str]]
    fresh: NDArray[np.bool_]

    @staticmethod
    def from_corpus(corpus: Corpus) -> CaptionPolicy:
        """By the column `duplication`, which `curate.duplicate` adds; without it the first caption always."""
        kinds = corpus.table["duplication"].to_pylist() if "duplication" in corpus.table.column_names else [""]
        fresh = np.broadcast_to(np.array([kind == "partial" for kind in kinds]), len(corpus))
        return CaptionPolicy([captions or [""] for captions in corpus.captions], fresh)

    def __call__(self, row: int, rng: np.random.Generator) -> str:
        captions = self.captions[row]
        return captions[int(rng.integers(len(captions)))] if self.fresh[row] else captions[0]

    def all_of(self, row: int) -> Sequence[str]:
        """The captions that a draw of the row can give."""
        return self.captions[row] if self.fresh[row] else self.captions[row][:1]


class WeightedSampler(Sampler[int]):
    """Rows drawn with replacement, each in proportion to its weight: for `DataLoader(sampler=...)`.

    With replacement in every case, equal weights included, so that arms of an experiment differ in weight alone.
    weights: [n], at least 0, some above. n_draws: draws an epoch; n unless given. Each iteration is the next epoch, and
    `set_epoch` says which comes next. rows: those that can be drawn. Raises InputError.
    """

    def __init__(
        self, weights: Sequence[float] | NDArray[np.float64], n_draws: int | None = None, *, seed: int = 0
    ) -> None:
        given = np.asarray(weights, dtype=np.float64)
        if given.ndim != 1 or not np.isfinite(given).all() or (given < 0).any() or not given.sum() > 0:
            raise InputError("Weights must be numbers of 0 or more, some above 0.\nSee the column `weight`")
        # Rows of weight 0 are left out: a uniform number at the very end of the range must not find one.
        self.rows = np.flatnonzero(given)
        self._ends = np.cumsum(given[self.rows]) / given.sum()
        self.n_draws, self.seed, self.epoch = n_draws or len(given), seed, 0

    @staticmethod
    def from_corpus(corpus: Corpus, n_draws: int | None = None, *, seed: int = 0) -> WeightedSampler:
        """By the column `weight`; rows with an `error` are never drawn."""
        readable = [error is None for error in corpus.table["error"].to_pylist()]
        if not any(readable):
            raise InputError(f"No image of {corpus.origin} can be read.\nIts column `error` says why")
        weights = np.array(corpus.table["weight"].to_pylist(), dtype=np.float64)
        return WeightedSampler(weights * np.array(readable), n_draws, seed=seed)

    def set_epoch(self, epoch: int) -> None:
        """Which epoch the next iteration is."""
        self.epoch = epoch

    def __len__(self) -> int:
        return self.n_draws

    def __iter__(self) -> Iterator[int]:
        self.epoch += 1
        return iter(self.draw(self.epoch - 1, self.n_draws).tolist())

    def draw(self, step: int, n: int) -> NDArray[np.int64]:
        """The n rows of a step or an epoch [n]; the same each time it is asked."""
        found = np.searchsorted(self._ends, stream(self.seed, ROWS, step).random(n), side="right")
        return self.rows[np.minimum(found, len(self.rows) - 1)]


class CaptionedImages(Dataset[dict[str, Any]]):
    """Images of a corpus with the caption of this draw, for `DataLoader`.

    An item is `image` float32 [3 size size] in -1..1 (or what `transform` makes of the uint8 [size size 3] picture),
    `caption`, `row`, `id`. The short side is scaled to `size`, then cropped in the centre, or anywhere if
    `random_crop`. Captions, crops and flips are drawn anew each time a row is asked for; with worker processes they
    depend on torch's seed too. Raises ImageError for a row that cannot be read.
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
        """Starts an epoch: its draws are those of (seed, epoch)."""
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
        picture = cut(picture, self.size, rng.random(2) if self.random_crop else None)
        if self.flip and rng.random() < 0.5:
            picture = mirrored(picture)
        return {"image": self.transform(picture), "caption": caption, "row": row, "id": self.corpus.ids[row]}


def collate(samples: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """A batch: `image` stacked where it is a tensor, everything else as a list."""
    batch: dict[str, Any] = {key: [sample[key] for sample in samples] for key in samples[0]}
    if isinstance(batch["image"][0], Tensor):
        batch["image"] = torch.stack(batch["image"])
    return batch


def to_tensor(picture: images.Image) -> Tensor:
    """float32 [3 h w] in -1..1 of uint8 [h w 3]."""
    return torch.from_numpy(picture).permute(2, 0, 1).float() / 127.5 - 1


def cut(picture: images.Image, side: int, place: NDArray[np.float64] | None = None) -> images.Image:
    """A square [side side 3] of the picture: the middle, or where `place`, two numbers in [0, 1), says."""
    if place is None:
        return images.centre_crop(picture, side)
    top, left = ((np.array(picture.shape[:2]) - side + 1) * place).astype(int)
    return np.ascontiguousarray(picture[top : top + side, left : left + side])


def mirrored(picture: images.Image) -> images.Image:
    """The picture [h w 3] with left and right exchanged."""
    return np.ascontiguousarray(picture[:, ::-1])


class Pictures:
    """Latents of a corpus's images, for `train`: kept in memory, or pictures kept and encoded at each step, or neither.

    Every image is read once at the start; `corpus` has why those that cannot be read cannot. Raises InputError where
    that is all of them.
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
                    self._latents[1, rows] = self._encode([mirrored(each) for each in pictures.values()])
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
        """Latents [n c h w] of rows [n], mirrored where `flips` [n], cropped at `places` [n 2] if crops are random."""
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
                picture = cut(picture, self._model.image_size, place)
            pictures.append(mirrored(picture) if flip else picture)
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
        return picture if self._recipe.random_crop else cut(picture, side)

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
class Draw:
    """All that is random in a step of n images: noise [n c h w], sigma [n], flips [n], places of crops [n 2].

    dropped [n]: told nothing.
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
    mitigations: Mitigations,
) -> Draw:
    """The whole batch of a step, of which each process and accumulation takes its part; by (seed, step) alone."""
    n, seed = recipe.batch_size, recipe.seed
    rows, captions, dropped = said(step, recipe, sampler, policy, mitigations)
    rng = stream(seed, CROPS, step)
    flips, places = rng.random(n) < 0.5 * recipe.flip, rng.random((n, 2))
    generator = torch.Generator().manual_seed(int(stream(seed, NOISE, step).integers(2**63)))
    noise = torch.randn(n, *model.shape, generator=generator)
    uniform = torch.rand(n, generator=generator).clamp(1e-6, 1 - 1e-6)
    return Draw(rows, captions, dropped, flips, places, noise, model.noise_levels(uniform.to(model.device)).cpu())


def said(
    step: int, recipe: TrainRecipe, sampler: WeightedSampler, policy: CaptionPolicy, mitigations: Mitigations
) -> tuple[NDArray[np.int64], list[str], NDArray[np.bool_]]:
    """Of a step's Draw: its rows, captions, and which are dropped, [n] each."""
    n, seed = recipe.batch_size, recipe.seed
    rows = sampler.draw(step, n)
    rng = stream(seed, CAPTIONS, step)
    captions = [policy(row, rng) for row in rows.tolist()]
    if mitigations.door(OnCaption):
        rng_of = functools.cache(lambda number: training_rng(seed, step, number))
        spoken = zip(captions, rows.tolist(), strict=True)
        captions = [mitigations.caption(_first(caption, policy.captions[row]), rng_of) for caption, row in spoken]
    dropped = rng.random(n) < recipe.caption_dropout
    return rows, ["" if drop else caption for caption, drop in zip(captions, dropped, strict=True)], dropped


def _first(caption: str, captions: Sequence[str]) -> list[str]:
    """The captions with this one of them first; one that is there twice stays so."""
    place = captions.index(caption)
    return [caption, *captions[:place], *captions[place + 1 :]]
