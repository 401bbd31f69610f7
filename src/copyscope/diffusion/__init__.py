"""Train models, generate images, and mitigate copying. Never imports `copyscope.detection`.

Public names load on first use: importing this package does not load torch. `train` and `generate` are modules here, and
functions in `copyscope`.
"""

from __future__ import annotations

import importlib
import os
from typing import TYPE_CHECKING, Any

# How long threads that wait for each other spin before they sleep. GNU OpenMP's default is long, and beside another
# busy process trains many times slower; this costs nothing on a quiet machine. It is read when torch is first imported.
os.environ.setdefault("GOMP_SPINCOUNT", "10000")

_HOMES = {
    "CaptionPolicy": "training.draws",
    "CaptionedImages": "training.data",
    "PRESETS": "recipe",
    "Run": "run",
    "SampleRecipe": "generate",
    "TrainRecipe": "recipe",
    "WeightedSampler": "training.draws",
    "collate": "training.data",
}

__all__ = sorted(_HOMES)

if TYPE_CHECKING:
    from copyscope.diffusion.training.data import CaptionedImages as CaptionedImages
    from copyscope.diffusion.training.data import collate as collate
    from copyscope.diffusion.training.draws import CaptionPolicy as CaptionPolicy
    from copyscope.diffusion.training.draws import WeightedSampler as WeightedSampler

    from .generate import SampleRecipe as SampleRecipe
    from .recipe import PRESETS as PRESETS
    from .recipe import TrainRecipe as TrainRecipe
    from .run import Run as Run


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'copyscope.diffusion' has no attribute {name!r}")
    return getattr(importlib.import_module(f".{_HOMES[name]}", __name__), name)


def __dir__() -> list[str]:
    return list(__all__)
