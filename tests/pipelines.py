"""Tiny pipelines in use: training them by hand, and sampling from them by our denoiser and by diffusers itself."""

from __future__ import annotations

import itertools
import json
import shutil

import numpy as np
import torch

from copyscope.diffusion.denoiser import guided
from copyscope.diffusion.models import _pipelines
from copyscope.diffusion.models.stable_diffusion import StableDiffusion
from tests.models import tiny_stable_diffusion

KINDS = ("sd1", "sd2", "sdxl", "sd3", "flux")
CAPTIONS = ["a red fish", "two blue houses by the sea, and very much more text than the tokenizers take in"]


def folders_of(root):
    """A folder with the tiny pipeline of each kind."""
    return {kind: tiny_stable_diffusion(root / kind, kind) for kind in KINDS}


def small(folder, **options):
    """The model of a tiny pipeline; of 32 pixels, which that of Flux does not know by itself."""
    return StableDiffusion(str(folder), **{"resolution": 32, "on": "cpu"} | options)


def loaded(folder):
    """The plain pipeline of diffusers, as a user would load it."""
    from diffusers import DiffusionPipeline

    with _pipelines.quiet():
        pipeline = DiffusionPipeline.from_pretrained(folder)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def rescheduled(folder, to, **options):
    """A copy of a pipeline's folder with other options of its scheduler."""
    shutil.copytree(folder, to)
    file = to / "scheduler" / "scheduler_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | options))
    return to


def pictures(n=4, size=32):
    return list(np.random.default_rng(0).integers(0, 256, (n, size, size, 3), dtype=np.uint8))


def train_and_held_out(root, copied, others):
    """Folders `train/`, of the pictures `copied` and eight of `others`, and `held-out/`, of the rest of those."""
    from PIL import Image

    for name, there in (("train", [*copied, *others[:8]]), ("held-out", others[8:])):
        (root / name).mkdir()
        for number, picture in enumerate(there):
            Image.fromarray(np.asarray(picture)).save(root / name / f"{number:03d}.png")
    return root / "train", root / "held-out"


def normal(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def loss_of(model, latents, noise, sigma, conditioning):
    """As `train` computes it."""
    found = model(latents + sigma.view(-1, 1, 1, 1) * noise, sigma, conditioning)
    return (model.loss_weight(sigma) * (found - latents).square().mean((1, 2, 3))).mean()


def fit(model, steps=8, mixed=False):
    """A few steps on two pictures, in mixed precision if asked; the loss before and after."""
    latents, conditioning = model.encode(pictures(2)), model.condition(CAPTIONS)
    sigma = model.noise_levels(torch.tensor([0.3, 0.7]))
    noise = normal(*latents.shape)
    trained = [parameter for parameter in model.network.parameters() if parameter.requires_grad]
    optimiser = torch.optim.AdamW(trained, 5e-3)
    losses = []
    for _ in range(steps):
        optimiser.zero_grad()
        with torch.autocast("cpu", torch.bfloat16, enabled=mixed):
            loss = loss_of(model, latents, noise, sigma, conditioning)
        loss.backward()
        optimiser.step()
        losses.append(loss.item())
    return losses[0], losses[-1]


@torch.no_grad()
def euler(model, x, sigmas, guidance):
    """Euler's method from x over decreasing noise levels, for CAPTIONS."""
    conditional, unconditional = model.condition(CAPTIONS), model.condition([""] * len(CAPTIONS))
    for sigma, after in itertools.pairwise(sigmas):
        level = torch.full((len(x),), float(sigma))
        denoised = guided(model(x, level, conditional), model(x, level, unconditional), guidance)
        x = denoised + after / sigma * (x - denoised)
    return x


def sampled_by_diffusers(pipeline, latents, guidance):
    """Latents that the pipeline itself makes of CAPTIONS, and the noise levels it went through."""
    from diffusers import EulerDiscreteScheduler

    options = {"num_inference_steps": 4, "height": 32, "width": 32, "latents": latents, "output_type": "latent"}
    name = type(pipeline).__name__
    with _pipelines.quiet():
        if name == "FluxPipeline":
            packed = pipeline._pack_latents(latents, *latents.shape)
            options |= {"true_cfg_scale": guidance, "negative_prompt": [""] * 2, "latents": packed}
            options |= {"sigmas": np.linspace(0.999, 0.1, 4)}
            made = pipeline._unpack_latents(pipeline(CAPTIONS, **options).images, 32, 32, 2)
        elif name == "StableDiffusion3Pipeline":
            options |= {"sigmas": np.linspace(0.999, 0.1, 4), "guidance_scale": guidance}
            made = pipeline(CAPTIONS, **options).images
        else:
            pipeline.scheduler = EulerDiscreteScheduler.from_config(pipeline.scheduler.config)
            made = pipeline(CAPTIONS, **options, guidance_scale=guidance).images
    return made, pipeline.scheduler.sigmas.double()


def assert_samples_alike(model, pipeline, guidance):
    latents = normal(2, *model.shape)
    made, sigmas = sampled_by_diffusers(pipeline, latents.clone(), guidance)
    if hasattr(pipeline, "unet"):
        x = latents * pipeline.scheduler.init_noise_sigma
    else:
        sigmas = sigmas / (1 - sigmas)
        x = latents * float(1 + sigmas[0])
    ours = euler(model, x, sigmas, guidance)
    torch.testing.assert_close(ours, made, rtol=1e-3, atol=1e-3 * float(made.std()))
    return ours
