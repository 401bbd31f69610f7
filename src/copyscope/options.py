"""Options that computations on images hand on to those they are made of: cache, threads, engine, progress."""

from __future__ import annotations

from pathlib import Path
from typing import TypedDict

from .engine import Engine
from .machine import Progress


class Options(TypedDict, total=False):
    """What every computation takes."""

    workers: int | None
    """Threads; None = one a core."""
    progress: Progress | None
    """Called with a label, the number done and the total."""


class CacheOptions(Options, total=False):
    """Of what is computed of images, and kept."""

    cache: str | Path | None
    """Folder of the content store; None = the user's cache."""


class EngineOptions(CacheOptions, total=False):
    """Of what an engine may compute."""

    engine: Engine | str | None
    """Who computes; None = this process."""


def without_engine(options: EngineOptions) -> CacheOptions:
    """The options but for the engine, for what this process computes."""
    found: CacheOptions = {
        "cache": options.get("cache"),
        "workers": options.get("workers"),
        "progress": options.get("progress"),
    }
    return found
