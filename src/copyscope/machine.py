"""This machine and the person before it: processors a run may use, locks, how a long step tells its progress."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Protocol


class Progress(Protocol):
    """Told how far a long step has come: `progress("sscd", 120, 3000)`."""

    def __call__(self, label: str, done: int, total: int) -> None: ...


def cores() -> int:
    """Processors this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else (os.cpu_count() or 1)


@contextlib.contextmanager
def locked(path: Path) -> Iterator[None]:
    """Nobody else, in this process or another, is within while we are; the system lets go of it if we are killed.

    path: the file of the lock; its folder is made. Windows has no such lock: there only one may be within at a time.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w") as file:
        if sys.platform != "win32":
            import fcntl

            fcntl.flock(file, fcntl.LOCK_EX)
        yield
