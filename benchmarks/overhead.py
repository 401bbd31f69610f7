"""What the guard adds to a clean image: by operations beside Stable Diffusion 1.5, and by the clock on `small_unet`.

    OMP_NUM_THREADS=1 python benchmarks/overhead.py    # some minutes, most of them for SSCD

Operations: those of the networks as torch counts them on its meta device, of Stable Diffusion 1.5 by its public
configuration at 512 x 512 with classifier-free guidance, of SSCD as the ResNet-50 that it is, at 288 pixels. One
multiplication and one addition are two, in whatever number format: the packaged SSCD is int8. What is no network is
estimated, every assumption in the code below.

By the clock, processor time beside wall time, which depends on what else the machine does: calls of the guarded model
and of `sample` itself in one process, in turn, each pair on the same prompts and seeds; the ratio is taken within each
pair. The model is untrained, which changes no time. One try is allowed, so that every image costs what a clean one
does.
"""

from __future__ import annotations

import argparse
import math
import os
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.utils.flop_counter import FlopCounterMode

import worlds
from copyscope import Guard, Index, Policy, SampleRecipe, parts
from copyscope.detection.embedding.protocols import protocol
from copyscope.detection.matching import partial_copies, tiny_image, windows
from copyscope.detection.matching.ncc import Verify
from copyscope.detection.search import binary_codes
from copyscope.diffusion.generate import sample
from record import record

BAR = 5.0
"""Per cent of the sampling."""
SIDE, LATENT, TOKENS, STATES = 512, 64, 77, 768
ROWS, DIM = 1_000_000, 512
LOOKS = {"whole": 1, "windows": 1 + len(windows.BOXES)}


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("--pairs", type=int, default=9)
    arguments.add_argument("--images", type=int, default=16, help="of a call")
    options = arguments.parse_args()
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "1")))
    counted = operations()
    model = parts.load("models", "small_unet")
    with tempfile.TemporaryDirectory() as folder:
        measured = clock(model, Path(folder), options.pairs, options.images)
    record("overhead", {"bar_percent": BAR, "operations": counted, "clock": measured})


# By operations


def operations() -> dict[str, Any]:
    """Of one image, in units of 10^9: the parts, and what the guard adds in per cent of the sampling."""
    unet, text, vae, look = networks()
    rest = {name: others(n) for name, n in LOOKS.items()}
    found: dict[str, Any] = {
        "unet": unet,
        "text_encoder": text,
        "vae_decoder": vae,
        "sscd_look": look,
        "beside_the_network": rest,
        "rows_of_the_index": ROWS,
    }
    for steps in (50, 20):
        # With a prompt and without one, at every step.
        whole = 2 * (text + steps * unet) + vae
        shares: dict[str, Any] = {}
        for name, n in LOOKS.items():
            embedding, other = n * look, sum(rest[name].values())
            shares[name] = percent(whole, embedding=embedding, rest=other)
            # The estimate is decoded, and looked up as a picture is.
            shares[f"{name}, look_at=[0.5]"] = percent(whole, embedding=2 * embedding, rest=2 * other, decoding=vae)
        found[f"{steps} steps"] = {"sampling": whole, "guard_percent": shares}
    return rounded(found)


def percent(whole: float, **added: float) -> dict[str, Any]:
    found: dict[str, Any] = {name: 100 * each / whole for name, each in added.items()}
    total = sum(found.values())
    return found | {"all": total, "below_the_bar": total < BAR}


def networks() -> tuple[float, float, float, float]:
    """10^9 operations of one call of the U-Net, of the text encoder, of the VAE's decoder, and of SSCD."""
    from diffusers import AutoencoderKL, UNet2DConditionModel
    from transformers import CLIPTextConfig, CLIPTextModel, ResNetConfig, ResNetModel

    with torch.device("meta"), torch.no_grad():
        # What the files config.json of Stable Diffusion 1.5 say; all else is diffusers' default.
        unet = UNet2DConditionModel(sample_size=LATENT, cross_attention_dim=STATES, attention_head_dim=8)
        vae = AutoencoderKL(
            block_out_channels=(128, 256, 512, 512),
            down_block_types=("DownEncoderBlock2D",) * 4,
            up_block_types=("UpDecoderBlock2D",) * 4,
            layers_per_block=2,
            latent_channels=4,
        )
        sizes = {"hidden_size": STATES, "intermediate_size": 3072, "num_hidden_layers": 12, "num_attention_heads": 12}
        text = CLIPTextModel(CLIPTextConfig(vocab_size=49408, **sizes))
        # The numbers of parameters are known: a default that changes would be seen here.
        parameters = [sum(each.numel() for each in network.parameters()) for network in (unet, vae, text)]
        assert parameters == [859_520_964, 83_653_863, 123_060_480], parameters
        resnet, head = ResNetModel(ResNetConfig()), torch.nn.Linear(2048, DIM)
        side = protocol("sscd-288").load().size
        latents = torch.zeros(1, 4, LATENT, LATENT)
        return (
            count(lambda: unet(latents, torch.zeros(1), torch.zeros(1, TOKENS, STATES))),
            count(lambda: text(torch.zeros(1, TOKENS, dtype=torch.long))),
            count(lambda: vae.decode(latents)),
            # A picture of 512 x 512 and its windows of 256 x 256 all come to 288 x 288.
            count(lambda: head(resnet(torch.zeros(1, 3, side, side)).pooler_output.flatten(1))),
        )


def count(call: Any) -> float:
    with FlopCounterMode(display=False) as counter:
        call()
    return counter.get_total_flops() / 1e9


def others(looks: int) -> dict[str, float]:
    """10^9 operations, of whole numbers too, of what is done for a picture beside the descriptor, estimated."""
    verify = Verify()
    bits = binary_codes.rotation(DIM).shape[1]
    # A row: XOR, count of bits and sum a word, and one comparison.
    scan = ROWS * (3 * bits / 64 + 1)
    # Two searches by coarse pixels, mirrored and not, besides those by the descriptor; their codes have as many bits.
    search = looks * (2 * DIM * (bits + binary_codes.KEPT) + scan) + 2 * (
        2 * tiny_image.DIM * (bits + binary_codes.KEPT) + scan
    )
    # Three planes; transforms of real numbers; a complex product and sum is 8.
    size = verify.size
    templates = 1 + len(verify.zooms)
    mirrored = 2 if verify.flip else 1
    # Candidates of both searches.
    candidates = 2 * verify.top
    prepared = (candidates + mirrored) * 3 * (1 + templates) * transform(size)
    found_in = 3 * 8 * size * (size // 2 + 1) + transform(size) + 2 * size**2
    compare = prepared + candidates * mirrored * 2 * templates * found_in
    if looks > 1:
        size = partial_copies.SIDE
        place = 3 * transform(size) + 3 * 8 * size * (size // 2 + 1) + transform(size) + 2 * size**2
        compare += 3 * transform(size) + verify.top * 2 * len(partial_copies.SHARES) * place
    # Bilinear, one axis after the other: every pixel that is read, and made, counts twice two, in three planes.
    side = protocol("sscd-288").load().size
    cuts = SIDE**2 + (looks - 1) * (SIDE * windows.SIDE) ** 2
    resize = 12 * (cuts + looks * side**2) + 2 * 12 * SIDE**2
    return {"resize": resize / 1e9, "search": search / 1e9, "second_look": compare / 1e9}


def transform(side: int) -> float:
    """Operations of the Fourier transform of one plane of real numbers."""
    return 2.5 * side**2 * math.log2(side**2)


def rounded(found: Any) -> Any:
    if isinstance(found, dict):
        return {name: rounded(each) for name, each in found.items()}
    return float(f"{found:.4g}") if isinstance(found, float) else found


# By the clock


def clock(model: Any, folder: Path, pairs: int, n: int) -> dict[str, Any]:
    """Seconds of guarded and bare calls of n images, in turn, for the slow and the fast descriptor."""
    # So few, since the search in an index is counted above, and is as fast in all small ones.
    world = worlds.world(folder / "world", n_train=20, n_generated=8, n_held_out=20)
    # As many as are made: a batch is filled up to blocks of a size that depends on it.
    recipe = SampleRecipe(n_images=n, steps=25, guidance=2.0)
    prompts = [f"a picture of {number}" for number in range(n)]
    found: dict[str, Any] = {
        "model": str(model),
        "images_a_call": n,
        "steps": recipe.steps,
        "guidance": recipe.guidance,
        "pairs": pairs,
        "threads": torch.get_num_threads(),
        "load_average": round(os.getloadavg()[0], 1),
    }
    for name in ("sscd-288", "sscd-distilled"):
        index = Index.build(world.train, folder / name, name, held_out=world.held_out)
        for local in (False, True):
            guard = Guard(index, Policy(rate=0.05, local=local, tries=1, refuse="none"))
            found[f"{name}, {'windows' if local else 'whole'}"] = compared(model, guard, prompts, recipe, pairs)
    return found | {"load_average_after": round(os.getloadavg()[0], 1)}


def compared(model: Any, guard: Guard, prompts: list[str], recipe: SampleRecipe, pairs: int) -> dict[str, Any]:
    """By processor time and by wall time: medians, and lowest and highest pair, of what the guard adds in per cent of
    the bare call."""
    guarded, seeds = guard(model), list(range(len(prompts)))
    kind = type(protocol(guard.index.summary()["protocol"]).load())  # type: ignore[union-attr]
    spent: dict[str, np.ndarray] = {}

    def now() -> np.ndarray:
        return np.array([time.process_time(), time.perf_counter()])

    def timed(name: str, call: Any) -> Any:
        def run(*arguments: Any, **options: Any) -> Any:
            began = now()
            try:
                return call(*arguments, **options)
            finally:
                spent[name] = spent.get(name, 0) + now() - began

        return run

    bare = timed("bare", lambda: sample(model, model.condition(prompts), seeds, recipe, prompts=prompts))
    watched = timed("guarded", lambda: guarded(prompts, recipe, seeds=seeds))
    describe = kind.describe
    guard.judge = timed("looking", guard.judge)  # type: ignore[method-assign]
    kind.describe = timed("embedding", describe)  # type: ignore[method-assign]
    rows = []
    try:
        bare()
        watched()
        for pair in range(pairs):
            spent.clear()
            # Who goes first takes turns.
            for call in (bare, watched) if pair % 2 else (watched, bare):
                call()
            whole, embedding, looking = spent["bare"], spent["embedding"], spent["looking"]
            rows.append(
                {
                    "sampling_ms_an_image": 1000 * whole / len(prompts),
                    "embedding_ms_an_image": 1000 * embedding / len(prompts),
                    "all_percent": 100 * (spent["guarded"] / whole - 1),
                    "embedding_percent": 100 * embedding / whole,
                    "rest_of_the_look_up_percent": 100 * (looking - embedding) / whole,
                    # The sampling itself differs from call to call, and so does this, around nothing.
                    "neither_percent": 100 * ((spent["guarded"] - looking) / whole - 1),
                }
            )
    finally:
        kind.describe = describe  # type: ignore[method-assign]
    return {
        clock: {
            name: {"median": round(float(np.median(each)), 2), "low": min(each), "high": max(each)}
            for name in rows[0]
            if (each := [round(float(row[name][at]), 2) for row in rows])
        }
        for at, clock in enumerate(("processor", "wall"))
    }


if __name__ == "__main__":
    main()
