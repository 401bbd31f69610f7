"""Copyscope: does a text-to-image model copy its training images? Which ones, why, and what to do about it.

    import copyscope

    result = copyscope.audit("generated/", "train/", held_out="held-out/")
    print(result.summary["verdict"]["sentence"])
    result.save("audit/")

    run = copyscope.train("train/", "run/", copyscope.TrainRecipe(duplication="full"))
    made = copyscope.generate("run/", "generated/", copyscope.SampleRecipe(n_images=256))

Public names load on first use: importing copyscope loads neither numpy nor torch.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from ._version import __version__

_HOMES = {
    "Audit": "detection.audit",
    "Corpus": "data.corpus",
    "CopyscopeError": "errors",
    "Embeddings": "detection.embedding.embeddings",
    "Estimate": "stats",
    "Experiment": "experiment.run",
    "Groups": "detection.dedup.groups",
    "Guard": "guard.guard",
    "Index": "detection.index.index",
    "Lint": "detection.lint",
    "Matches": "detection.matching.match",
    "Policy": "guard.guard",
    "Run": "diffusion.run",
    "SampleRecipe": "diffusion.generate",
    "TrainRecipe": "diffusion.recipe",
    "audit": "detection.audit",
    "duplicates": "detection.dedup.groups",
    "embed": "detection.embedding.embed",
    "fetch": "data.assets",
    "generate": "diffusion.generate",
    "lint": "detection.lint",
    "match": "detection.matching.match",
    "mitigate": "diffusion.pipelines.mitigate",
    "nearest": "nearest_image",
    "observe": "diffusion.pipelines.mitigate",
    "train": "diffusion.training.train",
}

__all__ = [*sorted(_HOMES), "__version__"]

if TYPE_CHECKING:
    from copyscope.data.assets import fetch as fetch
    from copyscope.data.corpus import Corpus as Corpus
    from copyscope.detection.audit import Audit as Audit
    from copyscope.detection.audit import audit as audit
    from copyscope.detection.dedup.groups import Groups as Groups
    from copyscope.detection.dedup.groups import duplicates as duplicates
    from copyscope.detection.embedding.embed import embed as embed
    from copyscope.detection.embedding.embeddings import Embeddings as Embeddings
    from copyscope.detection.index.index import Index as Index
    from copyscope.detection.lint import Lint as Lint
    from copyscope.detection.lint import lint as lint
    from copyscope.detection.matching.match import Matches as Matches
    from copyscope.detection.matching.match import match as match
    from copyscope.diffusion.pipelines.mitigate import mitigate as mitigate
    from copyscope.diffusion.pipelines.mitigate import observe as observe
    from copyscope.diffusion.recipe import TrainRecipe as TrainRecipe
    from copyscope.diffusion.run import Run as Run
    from copyscope.diffusion.training.train import train as train
    from copyscope.experiment.run import Experiment as Experiment
    from copyscope.guard.guard import Guard as Guard
    from copyscope.guard.guard import Policy as Policy

    from .diffusion.generate import SampleRecipe as SampleRecipe
    from .diffusion.generate import generate as generate
    from .errors import CopyscopeError as CopyscopeError
    from .nearest_image import nearest as nearest
    from .stats import Estimate as Estimate


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'copyscope' has no attribute {name!r}")
    return getattr(importlib.import_module(f".{_HOMES[name]}", __name__), name)


def __dir__() -> list[str]:
    return sorted(__all__)
