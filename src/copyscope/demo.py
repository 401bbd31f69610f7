"""The demo: train a small model on real captioned pictures, generate images, audit them.

Everything is fresh: the pictures come from `copyscope fetch fluent-emoji`, the model is trained from nothing, the
images are its own. Half of the prompts are captions it was trained on, the others captions it never saw.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from copyscope.data.corpus import Corpus

from .machine import Progress
from .stats import Estimate, proportion

SOURCE = "fluent-emoji"
DATA = {
    "train": f"asset:{SOURCE}",
    "where": {"skin_tone": ""},
    "distinct": 0.6,
    "n_train": 256,
    "held_out": "rest",
    "size": 64,
}
"""256 pictures of which no two look alike, in the size of the model; all the others hold out."""
STEPS = 600
N_PROMPTS = 128
"""Images from training captions, and as many from captions of held-out pictures."""


@dataclasses.dataclass(frozen=True)
class Made:
    """What the demo made.

    Attributes:
        train: the training images.
        held_out: real images that the model was not trained on.
        generated: what the model made.
        origin: [n], of each generated image the training id whose caption was its prompt; None where the caption was of
            a held-out picture.
    """

    train: Corpus
    held_out: Corpus
    generated: Corpus
    origin: list[str | None]


def make(folder: Path, *, seed: int = 0, steps: int = STEPS, progress: Progress | None = None) -> Made:
    """Prepare pictures, train the model and generate images in `folder`; what is there already is kept.

    Args:
        folder: where everything goes.
        seed: of the pictures, the training and the samples.
        steps: training steps.
        progress: called with a label, the number done and the total.
    """
    from copyscope.diffusion.recipe import TrainRecipe
    from copyscope.diffusion.training.train import train
    from copyscope.experiment.prepare import prepare

    from .diffusion.generate import SampleRecipe, generate

    training, held_out = prepare(DATA, folder / "data", progress=progress)
    assert held_out is not None
    recipe = TrainRecipe(steps=steps, duplication="full", seed=seed)
    run = train(training, folder / "run", recipe, progress=progress)
    prompts: list[tuple[str, str | None]] = [
        (captions[0], name) for name, captions in zip(training.ids, training.captions, strict=True)
    ]
    prompts = prompts[:N_PROMPTS] + [(captions[0], None) for captions in held_out.captions[:N_PROMPTS]]
    sampling = SampleRecipe(n_images=len(prompts), seed=seed)
    generated = generate(
        run,
        folder / "generated",
        sampling,
        captions=[caption for caption, _ in prompts],
        ids=[name for _, name in prompts],
        progress=progress,
    )
    return Made(training, held_out, generated, generated.table["source_id"].to_pylist())


def score(made: Made, summary: Mapping[str, Any]) -> dict[str, Estimate]:
    """Rates of copies in the audit of the demo's images, by where the prompts came from.

    Args:
        made: what `make` returned.
        summary: of the audit of `made.generated`.

    Returns:
        `known`: share of the images from training captions that are copies. `own`: of these copies, the share matched
        to the image whose caption was the prompt. `unknown`: share of the images from other captions that are copies.
    """
    match = {str(copy["id"]): str(copy["match"]) for copy in summary["copies"]}
    known = [name for name, origin in zip(made.generated.ids, made.origin, strict=True) if origin is not None]
    copied = [name for name in known if name in match]
    origin = dict(zip(made.generated.ids, made.origin, strict=True))
    unknown = [name for name in made.generated.ids if origin[name] is None]
    return {
        "known": proportion(len(copied), len(known)),
        "own": proportion(sum(match[name] == origin[name] for name in copied), len(copied)),
        "unknown": proportion(sum(name in match for name in unknown), len(unknown)),
    }
