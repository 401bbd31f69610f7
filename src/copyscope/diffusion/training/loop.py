"""Training loop: batches, loss, optimizer, weight averaging, logs, samples, checkpoints."""

from __future__ import annotations

import contextlib
import math
import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TypedDict

import numpy as np
import pyarrow as pa
import torch
from numpy.typing import NDArray
from torch import Tensor

from copyscope.data.corpus import Corpus
from copyscope.data.parquet_pages import read_table
from copyscope.diffusion import applied
from copyscope.diffusion.applied import MitigationStack, training_rng
from copyscope.diffusion.conditioning import Conditioning
from copyscope.diffusion.encoded_cache import TextEmbeddingCache
from copyscope.diffusion.mitigations import TRAINING, Batch, OnCaption
from copyscope.diffusion.models import Trainable
from copyscope.errors import InputError, TrainingError
from copyscope.files import sync, write_bytes, write_json, write_table
from copyscope.imaging import images
from copyscope.machine import Progress
from copyscope.stats import Estimate

from . import checkpoints
from .data import LatentCache, draw, sample_captions
from .draws import SAMPLES, CaptionPolicy, WeightedSampler, stream

if TYPE_CHECKING:
    from copyscope.diffusion.recipe import TrainRecipe

SCHEMA = "copyscope.run/1"
LOG_EVERY = 10
AHEAD = 16
"""Steps whose captions are encoded together where mitigations make new ones: a few at each step take far longer."""
HISTORY = pa.schema(
    {"step": pa.int64()}
    | dict.fromkeys(("loss", "learning_rate", "images_per_second", "replication", "replication_low"), pa.float64())
    | {"replication_high": pa.float64(), "replication_n": pa.int64()}
)

ReplicationCallback = Callable[[Path, Sequence[str], int], Estimate]
"""(folder of fresh samples, their prompts, step) -> replication rate."""


class RunSummary(TypedDict):
    """Summary of a training run."""

    schema: Annotated[str, "`copyscope.run/1`"]
    steps: Annotated[int, "steps trained"]
    seconds: Annotated[float, "how long that took, interruptions left out"]
    n: Annotated[int, "training images"]
    n_missing: Annotated[int, "training images that cannot be read"]
    loss: Annotated[float, "mean over the last steps"]
    replication: Annotated[float | None, "replication rate at the last checkpoint, where it was watched"]


def rate(recipe: TrainRecipe, step: int) -> float:
    """Learning rate of a step (0-based): warm-up, then level, then the fall to 2 % over the last `decay` share."""
    warm = min(1.0, (step + 1) / recipe.warmup_steps) if recipe.warmup_steps else 1.0
    falling = recipe.decay * recipe.steps
    left = (recipe.steps - step) / falling if falling else 1.0
    if recipe.schedule == "constant" or left >= 1:
        return recipe.learning_rate * warm
    if recipe.schedule == "cosine":
        left = (1 - math.cos(math.pi * left)) / 2
    return recipe.learning_rate * warm * max(0.02, left)


class Loss(torch.nn.Module):
    """The loss of a batch as a module, so that accelerate can wrap it for many processes."""

    def __init__(self, model: Trainable, min_snr: float, mitigations: MitigationStack | None = None) -> None:
        super().__init__()
        self.network, self._model, self._gamma = model.network, model, min_snr
        self._mitigations = mitigations or MitigationStack()
        self.memories = self._mitigations.remember()
        self._null = model.condition([""]).to(model.device) if self.memories else None

    def forward(self, x0: Tensor, noise: Tensor, sigma: Tensor, *told: Tensor) -> Tensor:
        """Mean weighted loss of a batch."""
        x = x0 + sigma.view(-1, 1, 1, 1) * noise
        denoised = self._model(x, sigma, Conditioning(*told))
        if self._gamma:
            # Min-SNR-gamma (Hang et al. 2023) of the error of x0: min(SNR, gamma) whatever the network predicts, with
            # SNR = 1 / sigma^2; divided by SNR it is their weight of epsilon's error, by SNR + 1 that of v's.
            weight = sigma.square().reciprocal().clamp(max=self._gamma)
        else:
            weight = self._model.loss_weight(sigma)
        losses: Tensor = weight * (denoised - x0).square().mean((1, 2, 3))
        if self._null is not None:
            losses = losses * self._weights(losses.detach(), x, sigma, denoised.detach(), self._null)
        return losses.mean()

    @torch.no_grad()
    def _weights(self, losses: Tensor, x: Tensor, sigma: Tensor, denoised: Tensor, null: Conditioning) -> Tensor:
        batch = Batch(losses, x, sigma, denoised, null.take([0] * len(x)), self._model)
        return self._mitigations.weights(batch, self.memories).to(losses)


class Loop:
    """The steps of a training, from the last checkpoint to the end."""

    def __init__(
        self,
        model: Trainable,
        pictures: LatentCache,
        corpus: Corpus,
        recipe: TrainRecipe,
        out: Path,
        accelerator: Any,
        watch: ReplicationCallback | None,
        progress: Progress | None,
    ) -> None:
        self.model, self.pictures, self.corpus, self.recipe, self.out = model, pictures, corpus, recipe, out
        self.accelerator, self.watch, self.progress = accelerator, watch, progress
        self.mitigations = applied.load(recipe.mitigations, TRAINING, model)
        self.readable = [row for row, error in enumerate(corpus.table["error"].to_pylist()) if error is None]
        self.sampler = WeightedSampler.from_corpus(corpus, seed=recipe.seed)
        self.policy = CaptionPolicy.from_corpus(corpus)
        spoken = {caption for row in self.readable for caption in self.policy.all_of(row)}
        spoken |= {""} if recipe.caption_dropout else set()
        others = {caption for row in self.readable for caption in self.policy.captions[row]}
        self.texts = TextEmbeddingCache(model, spoken, others, cache=recipe.cache_text, progress=progress)
        network = model.network
        if recipe.gradient_checkpointing:
            if not hasattr(network, "enable_gradient_checkpointing"):
                raise InputError(
                    f"{recipe.model} knows no gradient checkpointing.\nSet gradient_checkpointing to false"
                )
            network.enable_gradient_checkpointing()  # type: ignore[operator]
        weights = [value for value in network.parameters() if value.requires_grad]
        self.optimizer = torch.optim.AdamW(
            weights, recipe.learning_rate, recipe.betas, recipe.epsilon, recipe.weight_decay, fused=True
        )
        self.average = {n: v.clone() for n, v in checkpoints.trained(network).items()} if recipe.ema else {}
        loss = Loss(model, recipe.min_snr, self.mitigations)
        self.memories = {str(place): each for place, each in enumerate(loss.memories) if each.numel()}
        self.rows: list[dict[str, Any]] = []
        self.start, self.seconds = 0, 0.0
        if found := checkpoints.latest(out / "checkpoints"):
            self.start, path = found
            self.seconds = checkpoints.read(path, network, self.average, self.optimizer, self.memories)
            self.rows = [row for row in read_table(out / "history.parquet").to_pylist() if row["step"] <= self.start]
        self.loss = accelerator.prepare(loss)
        self.stepper = accelerator.prepare(self.optimizer)
        self.weights = weights
        self.own, self.averaged = list(checkpoints.trained(network).values()), list(self.average.values())

    def run(self) -> None:
        """Train to the end, and write the model and `summary.json`."""
        recipe, done = self.recipe, self.start
        self.model.network.train()
        began = since = time.monotonic()
        losses: list[Tensor] = []
        while done < recipe.steps and not self._copies_enough():
            losses.append(self._step(done))
            done += 1
            saves = done == recipe.steps or done % recipe.checkpoint_every == 0
            if saves or done % LOG_EVERY == 0:
                self._log(done, losses, since)
                losses, since = [], time.monotonic()
            if self.progress:
                self.progress(self._told_so_far(), done, recipe.steps)
            paused = time.monotonic()
            judged = saves and self.watch is not None
            if judged or (recipe.sample_every and done % recipe.sample_every == 0):
                self._look(done, judged)
            if saves and self.accelerator.is_main_process:
                write_table(pa.Table.from_pylist(self.rows, HISTORY), self.out / "history.parquet")
                checkpoints.write(
                    self.out / "checkpoints",
                    done,
                    self.model.network,
                    self.average,
                    self.optimizer,
                    keep=recipe.keep_checkpoints,
                    seconds=self.seconds + time.monotonic() - began,
                    memories=self.memories,
                )
            since += time.monotonic() - paused
        if self.accelerator.is_main_process:
            self._finish(done, self.seconds + time.monotonic() - began)

    def _step(self, step: int) -> Tensor:
        """One step of the optimizer; the loss of this process's part of the batch, not waited for."""
        recipe, accelerator = self.recipe, self.accelerator
        drawn = draw(step, self.model, recipe, self.sampler, self.policy, self.mitigations)
        for group in self.optimizer.param_groups:
            group["lr"] = rate(recipe, step)
        if (step - self.start) % AHEAD == 0 and self.mitigations.door(OnCaption):
            self._encode_ahead(step)
        turns = recipe.gradient_accumulation
        total = torch.zeros((), device=accelerator.device)
        for turn, part in enumerate(self._parts()):
            told = self.texts(drawn.captions[part])
            x0 = self.pictures.latents(drawn.rows[part], drawn.flips[part], drawn.places[part])
            if self.mitigations.parts:
                x0, told = self._mitigated(step, x0, told, drawn.dropped[part], part.start)
            given = [x0, drawn.noise[part], drawn.sigma[part], told.text, told.mask, told.pooled]
            waits = contextlib.nullcontext() if turn + 1 == turns else accelerator.no_sync(self.loss)
            with waits:
                loss = self.loss(*(each.to(accelerator.device) for each in given if each is not None)) / turns
                accelerator.backward(loss)
            total += loss.detach()
        if recipe.max_grad_norm:
            accelerator.clip_grad_norm_(self.weights, recipe.max_grad_norm)
        self.stepper.step()
        self.stepper.zero_grad()
        if accelerator.num_processes > 1:
            for memory in self.memories.values():
                memory.copy_(accelerator.reduce(memory.to(accelerator.device), "mean"))
        if self.averaged:
            torch._foreach_lerp_(self.averaged, self.own, 1 - min(recipe.ema, (1 + step) / (20 + step)))
        return total

    def _parts(self) -> list[slice]:
        """Which rows of a batch are this process's, one slice an accumulation."""
        turns, processes = self.recipe.gradient_accumulation, self.accelerator.num_processes
        own = self.recipe.batch_size // turns // processes
        firsts = [(turn * processes + self.accelerator.process_index) * own for turn in range(turns)]
        return [slice(first, first + own) for first in firsts]

    def _encode_ahead(self, step: int) -> None:
        """Encodes this process's captions of the steps from `step` on."""
        captions: set[str] = set()
        for ahead in range(step, min(step + AHEAD, self.recipe.steps)):
            _, spoken, _ = sample_captions(ahead, self.recipe, self.sampler, self.policy, self.mitigations)
            captions.update(*(spoken[part] for part in self._parts()))
        self.texts.keep(captions)

    def _mitigated(
        self, step: int, x0: Tensor, told: Conditioning, dropped: NDArray[np.bool_], first: int
    ) -> tuple[Tensor, Conditioning]:
        """Latents and conditioning of rows from `first` on of a step's batch; those told nothing stay so."""
        seed = self.recipe.seed

        def rngs_of(number: int) -> list[np.random.Generator]:
            return [training_rng(seed, step, number, first + row) for row in range(len(x0))]

        nothing = told
        told = self.mitigations.perturb(told, rngs_of)
        x0, told = self.mitigations.fused(x0, told, rngs_of, self.model)
        if dropped.any():
            both = Conditioning.join([told, nothing])
            told = both.take([row + len(x0) * bool(drop) for row, drop in enumerate(dropped)])
        return x0, told

    def _log(self, step: int, losses: list[Tensor], since: float) -> None:
        """A row of the history: the mean loss of the last steps. Raises TrainingError where it is not finite."""
        loss = float(self.accelerator.reduce(torch.stack(losses).mean(), "mean"))
        if not math.isfinite(loss):
            raise TrainingError(
                f"The loss is {loss} at step {step}; the checkpoints before it are kept.\n"
                "Train into another folder with a lower learning_rate, more warmup_steps, or in full precision"
            )
        speed = self.recipe.batch_size * len(losses) / max(time.monotonic() - since, 1e-9)
        values = {"loss": loss, "learning_rate": rate(self.recipe, step - 1), "images_per_second": speed}
        self.rows.append({"step": step} | values)
        self.accelerator.log(values, step=step)

    def _told_so_far(self) -> str:
        if not self.rows:
            return "training"
        row = self.rows[-1]
        return f"training, loss {row['loss']:.3f}, {row['images_per_second']:.0f} images/s"

    def _copies_enough(self) -> bool:
        """Whether the watch was sure, the last time it looked, of more copies than are wanted."""
        low = self.rows[-1].get("replication_low") if self.rows else None
        return low is not None and 0 < self.recipe.stop_at_replication < low

    def _look(self, step: int, judged: bool) -> None:
        """Makes samples with the averaged weights, a grid of them, and shows them to the watch if they are `judged`."""
        found = torch.zeros(4, dtype=torch.float64)
        if self.accelerator.is_main_process:
            folder = self.out / "samples" / f"step-{step:08d}"
            with self._averaged():
                made = self._samples(folder)
            write_bytes(images.encode(_grid(made), "png"), folder.with_suffix(".png"))
            if self.watch and judged:
                seen = self.watch(folder, made.prompts, step)
                found = torch.tensor([seen.value, seen.low, seen.high, seen.n], dtype=torch.float64)
        if not judged:
            self.accelerator.wait_for_everyone()
            return
        value, low, high, n = self.accelerator.reduce(found, "sum").tolist()
        named = {"replication": value, "replication_low": low, "replication_high": high, "replication_n": int(n)}
        self.rows[-1] |= named
        self.accelerator.log(named, step=step)

    @contextlib.contextmanager
    def _averaged(self) -> Iterator[None]:
        """With the averaged weights in the network, as it is for making images."""
        network, own = self.model.network, [value.clone() for value in self.own]
        if self.average:
            checkpoints.put(network, self.average)
        network.eval()
        try:
            yield
        finally:
            for value, before in zip(self.own, own, strict=True):
                value.copy_(before)
            network.train()

    def _samples(self, folder: Path) -> Corpus:
        """Samples of training captions drawn by the seed, each once before any comes again."""
        from copyscope.diffusion.generate import SampleRecipe, generate

        recipe = self.recipe
        order = stream(recipe.seed, SAMPLES).permutation(self.readable)
        rows = [int(order[turn % len(order)]) for turn in range(recipe.sample_images)]
        asked = SampleRecipe(n_images=len(rows), steps=recipe.sample_steps, guidance=recipe.guidance, seed=recipe.seed)
        shutil.rmtree(folder, ignore_errors=True)
        captions = [self.policy.captions[row][0] for row in rows]
        return generate(self.model, folder, asked, captions=captions, ids=[self.corpus.ids[row] for row in rows])

    def _finish(self, steps: int, seconds: float) -> None:
        with self._averaged():
            self.model.save(self.out / "model")
        sync(self.out / "model")
        last = self.rows[-1]
        summary: RunSummary = {
            "schema": SCHEMA,
            "steps": steps,
            "seconds": round(seconds, 1),
            "n": len(self.readable),
            "n_missing": len(self.corpus) - len(self.readable),
            "loss": last["loss"],
            "replication": last.get("replication"),
        }
        write_json(summary, self.out / "summary.json")


def _grid(made: Corpus) -> images.Image:
    """The pictures side by side, in about as many rows as columns, the last row filled with white."""
    pictures = [images.decode(made.read(row)) for row in range(len(made))]
    across = math.ceil(math.sqrt(len(pictures)))
    pictures += [np.full_like(pictures[0], 255)] * (-len(pictures) % across)
    return np.concatenate([np.concatenate(pictures[at : at + across], 1) for at in range(0, len(pictures), across)])
