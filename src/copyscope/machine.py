"""This machine and the person before it: processors a run may use, and how a long step reports its progress."""

from __future__ import annotations

import os
from typing import Protocol


class Progress(Protocol):
    """Told how far a long step has come: `progress("sscd", 120, 3000)`."""

    def __call__(self, label: str, done: int, total: int) -> None: ...


def cores() -> int:
    """Processors this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else (os.cpu_count() or 1)
