"""Cores, memory budget, file locks and progress callbacks."""

from __future__ import annotations

import contextlib
import ctypes
import functools
import mmap
import os
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from .errors import InputError

if TYPE_CHECKING:
    from numpy.typing import NDArray

MEMORY = "COPYSCOPE_MEMORY"
"""The variable that says how much memory a run may take: bytes, or as `4GB`."""
DEVICE = "COPYSCOPE_DEVICE"
"""The variable that says where descriptors run: `auto` (or nothing), `cpu`, `cuda:0`."""
LEAST = 64 * 2**20
"""Bytes that a step works with where the setting leaves it less."""
UNITS = {"": 1, "K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40}
GROUPS, OWN_GROUPS = Path("/sys/fs/cgroup"), Path("/proc/self/cgroup")


class Progress(Protocol):
    """Callback that is told how far a long step has come: `progress("sscd", 120, 3000)`."""

    def __call__(self, label: str, done: int, total: int) -> None:
        """Report a step: its label, how many are done, and of how many; 0 = not known."""


def cores() -> int:
    """Processors this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else (os.cpu_count() or 1)


def memory() -> int:
    """Memory a run plans with, in bytes: COPYSCOPE_MEMORY, else half of what the machine or control group has.

    Raises:
        InputError: the variable says no size.
    """
    said = os.environ.get(MEMORY, "").strip()
    if not said:
        return _has() // 2
    found = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([KMGT]?)i?B?", said, re.IGNORECASE)
    if not found or not float(found[1]):
        raise InputError(f"{MEMORY} is {said!r}, which is no amount of memory.\nGive one as 4GB or 512MB")
    return int(float(found[1]) * UNITS[found[2].upper()])


def memory_budget(besides: int = 0) -> int:
    """Memory for the blocks of a step, in bytes: what `memory` leaves beside what the process holds; at least LEAST.

    Mapped files do not count, nor does anything where the system does not tell.

    Args:
        besides: bytes that the step is going to hold besides.
    """
    _give_back()
    held = 0
    with contextlib.suppress(OSError):
        lines = Path("/proc/self/status").read_text().splitlines()
        held = next((int(line.split()[1]) * 1024 for line in lines if line.startswith("RssAnon:")), 0)
    return max(LEAST, memory() - held - besides)


def _give_back() -> None:
    """Have Arrow and the C library return to the system what they keep for later: hundreds of megabytes at times."""
    import pyarrow as pa

    pa.default_memory_pool().release_unused()
    if sys.platform == "linux":
        with contextlib.suppress(OSError, AttributeError):  # another C library
            ctypes.CDLL("libc.so.6").malloc_trim(0)


@functools.cache
def _has() -> int:
    has = [os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") if hasattr(os, "sysconf") else 8 * 2**30]
    with contextlib.suppress(OSError):
        for line in OWN_GROUPS.read_text().splitlines():
            _, kind, group = line.split(":", 2)
            if kind in ("", "memory"):
                folder, file = GROUPS / kind, "memory.limit_in_bytes" if kind else "memory.max"
                # In a container the group is named as it is outside, and lies at the root.
                for limit in (folder / group.lstrip("/") / file, folder / file):
                    with contextlib.suppress(OSError, ValueError):  # "max" is no limit
                        has.append(int(limit.read_text()))
    return min(has)


def drop_pages(array: NDArray[Any]) -> None:
    """Take the pages of a mapped file out of the process; they are read again on the next access.

    Linux would leave them while there is room, and a run that only streams would seem to need all of the file. An array
    that is not mapped, or whose changes are its own, stays as it is.
    """
    base: Any = array
    while base is not None and not isinstance(base, mmap.mmap):
        if getattr(base, "mode", None) == "c":
            return
        base = getattr(base, "base", None)
    if base is not None and hasattr(mmap, "MADV_DONTNEED"):
        base.madvise(mmap.MADV_DONTNEED)


@contextlib.contextmanager
def file_lock(path: Path) -> Iterator[None]:
    """Exclusive lock of a file between threads and processes; the system releases it when a process is killed.

    Windows has no such lock: there only one process may be within at a time.

    Args:
        path: the file of the lock; its folder is made.

    Raises:
        InputError: the file system has no locks.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w") as file:
        if sys.platform != "win32":
            import fcntl

            try:
                fcntl.flock(file, fcntl.LOCK_EX)
            except OSError as error:
                raise no_lock(path, error) from None
        yield


def no_lock(path: Path, error: OSError) -> InputError:
    """Error for a file that cannot be locked, as on some mounts of NFS and Lustre.

    Without a lock, two processes would write one file.
    """
    return InputError(
        f"Cannot lock {path}: {error.strerror or error}.\n"
        "Name a folder on a disk of this machine, or mount that one with locks (NFS: lockd, Lustre: flock)"
    )
