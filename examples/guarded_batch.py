"""Pictures of a file of prompts, without copies of what is in an index; the log of every decision, and its report.

    python examples/guarded_batch.py stable-diffusion/ prompts.txt train.index -o out/ --steps 30

A line of PROMPTS is a picture: out/00000.png, out/00001.png and so on, or an empty out/00001.refused where every try
was a copy. Run again, it makes those that are missing. out/guard.jsonl is the log, out/guard.html its report.
"""

from __future__ import annotations

import argparse
import dataclasses
import subprocess
import sys
from pathlib import Path

import torch
from diffusers import DiffusionPipeline

from copyscope import Guard, Policy, recipes


def main(words: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", help="folder or name of a diffusers pipeline")
    parser.add_argument("prompts", type=Path, help="text file, a prompt a line")
    parser.add_argument("index", help="folder that `copyscope index build` made")
    parser.add_argument("-o", "--out", type=Path, required=True, help="folder of the pictures")
    parser.add_argument("--policy", help="TOML file of a guard's policy")
    parser.add_argument("--steps", type=int, default=50)
    parser.add_argument("--guidance", type=float, default=7.5)
    parser.add_argument("--seed", type=int, default=0, help="of the first picture; the next has the next")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    options = parser.parse_args(words)

    policy = Policy()
    if options.policy:
        policy = recipes.from_dict(Policy, recipes.read_toml(options.policy))
    options.out.mkdir(parents=True, exist_ok=True)
    log = options.out / "guard.jsonl"
    # A refused picture must not end the batch.
    guard = Guard(options.index, dataclasses.replace(policy, refuse="none"), log=log)
    pipe = guard(DiffusionPipeline.from_pretrained(options.model).to(options.device))

    prompts = [line.strip() for line in options.prompts.read_text(encoding="utf-8").splitlines() if line.strip()]
    for number, prompt in enumerate(prompts):
        picture = options.out / f"{number:05d}.png"
        refused = picture.with_suffix(".refused")
        if picture.exists() or refused.exists():
            continue
        # A generator a prompt: a batch that was interrupted goes on to the same pictures.
        generator = torch.Generator().manual_seed(options.seed + number)
        (image,) = pipe(
            prompt, num_inference_steps=options.steps, guidance_scale=options.guidance, generator=generator
        ).images
        if image is None:
            refused.touch()
            continue
        # Under another name until it is whole.
        image.save(picture.with_suffix(".part"), "png")
        picture.with_suffix(".part").replace(picture)
    subprocess.run([sys.executable, "-m", "copyscope", "report", str(log)], check=True)


if __name__ == "__main__":
    main()
