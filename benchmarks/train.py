"""What `train` and `generate` add to the bare network: time of a training step, of sampling, and memory.

    python benchmarks/train.py             about four minutes on two quiet cores

The rival is the same network called by hand: forward, backward and optimiser on tensors that are there already; for
sampling, the calls of the network alone. Rounds alternate, so that both meet the same machine.
"""

from __future__ import annotations

import dataclasses
import resource
import statistics
import tempfile
import time
from pathlib import Path

import torch

from copyscope import Corpus, parts
from copyscope.diffusion.generate import SampleRecipe, generate, sample
from copyscope.diffusion.recipe import TrainRecipe
from copyscope.diffusion.training.train import train
from pictures import corpus
from record import record

ROUNDS, STEPS, BATCH, N = 5, 60, 32, 128
N_SAMPLES, SAMPLE_STEPS = 64, 25


def bare_step(captions: list[str]) -> float:
    """Seconds of a step of the network alone, the median of STEPS."""
    model = parts.load("models", "small_unet")
    optimiser = torch.optim.AdamW(model.network.train().parameters(), 2e-3, betas=(0.9, 0.99), fused=True)
    conditioning = model.condition(captions[:BATCH])
    x0, noise = torch.randn(2, BATCH, *model.shape)
    sigma = torch.rand(BATCH) + 1
    took = []
    for _ in range(STEPS):
        start = time.perf_counter()
        denoised = model(x0 + sigma.view(-1, 1, 1, 1) * noise, sigma, conditioning)
        loss = (model.loss_weight(sigma) * (denoised - x0).square().mean((1, 2, 3))).mean()
        loss.backward()
        optimiser.step()
        optimiser.zero_grad()
        took.append(time.perf_counter() - start)
    return statistics.median(took)


def our_step(training: Corpus, out: Path) -> float:
    """Seconds of a step of `train`, data, captions, EMA and logging included: the median over what it logs."""
    recipe = TrainRecipe(steps=STEPS, batch_size=BATCH, checkpoint_every=10**6)
    history = train(training, out, recipe).history
    return BATCH / statistics.median(history["images_per_second"].to_pylist()[1:])


def bare_sampling(captions: list[str]) -> float:
    """Seconds of the calls of the network that sampling needs."""
    model = parts.load("models", "small_unet")
    conditioning = model.condition(captions[:N_SAMPLES])
    x, sigma = torch.randn(N_SAMPLES, *model.shape), torch.ones(N_SAMPLES)
    with torch.inference_mode():
        model(x, sigma, conditioning)
        start = time.perf_counter()
        for _ in range(SAMPLE_STEPS):
            model(x, sigma, conditioning)
        return time.perf_counter() - start


def our_sampling(captions: list[str], out: Path) -> tuple[float, float]:
    """Seconds of `sample` (noise, sampler, decoding), and of `generate` (text, PNG files and metadata besides).

    Weights are loaded beforehand.
    """
    model = parts.load("models", "small_unet")
    recipe = SampleRecipe(n_images=N_SAMPLES, steps=SAMPLE_STEPS, batch_size=N_SAMPLES)
    conditioning = model.condition(captions[:N_SAMPLES])
    sample(model, conditioning, range(N_SAMPLES), dataclasses.replace(recipe, steps=1))
    start = time.perf_counter()
    sample(model, conditioning, range(N_SAMPLES), recipe)
    sampled = time.perf_counter()
    generate(model, out, recipe, captions=captions[:N_SAMPLES])
    return sampled - start, time.perf_counter() - sampled


def ratios(ours: list[float], theirs: list[float]) -> dict[str, object]:
    each = [a / b for a, b in zip(ours, theirs, strict=True)]
    return {"seconds": ours, "seconds_bare": theirs, "ratio": statistics.median(each), "ratios": each}


def main() -> None:
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        training = corpus(folder / "train", N)
        captions = [row[0] for row in training.captions]
        ours: dict[str, list[float]] = {"training_step": [], "sampling": [], "generating": []}
        bare: dict[str, list[float]] = {name: [] for name in ours}
        for index in range(ROUNDS):
            bare["training_step"].append(bare_step(captions))
            ours["training_step"].append(our_step(training, folder / f"run-{index}"))
            bare["sampling"].append(bare_sampling(captions))
            sampled, generated = our_sampling(captions, folder / f"images-{index}")
            ours["sampling"].append(sampled)
            ours["generating"].append(generated)
        bare["generating"] = bare["sampling"]
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    found = {name: ratios(ours[name], bare[name]) for name in ours}
    sizes = {"threads": torch.get_num_threads(), "batch": BATCH, "samples": N_SAMPLES}
    record("train", found | {"peak_megabytes": round(peak)} | sizes)


if __name__ == "__main__":
    main()
