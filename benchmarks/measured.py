"""What a process takes: seconds, processor seconds, and memory of its own, from outside and from within.

Its own memory is what is not a page of a file (RssAnon of the kernel): a map of a file costs nothing that the system
could not take back. Linux only.
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import psutil

MB = 2**20


@dataclasses.dataclass(frozen=True)
class Ran:
    """A process that has ended. code: None when it was stopped. peak_mb: own memory of it and its children together.
    others: processor seconds that other processes had meanwhile: whether the machine was quiet."""

    code: int | None
    text: str
    errors: str
    seconds: float
    cpu_seconds: float
    peak_mb: int
    others: float

    def as_dict(self) -> dict[str, Any]:
        return {
            "whole_seconds": round(self.seconds, 2),
            "whole_cpu_seconds": round(self.cpu_seconds, 2),
            "peak_mb": self.peak_mb,
            "others_cpu_seconds": round(self.others, 1),
        }


def run(command: Sequence[str], environment: Mapping[str, str], allowed: float) -> Ran:
    """Run a command for `allowed` seconds at most, and watch its memory and that of its children."""
    began, before = time.perf_counter(), busy()
    # A session of its own, so that its children can be stopped with it.
    child = subprocess.Popen(command, env=dict(environment), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
                             start_new_session=True)  # fmt: skip
    said: dict[str, str] = {}
    readers = [
        threading.Thread(target=lambda name=name, pipe=pipe: said.update({name: pipe.read()}))
        for name, pipe in (("text", child.stdout), ("errors", child.stderr))
    ]
    for reader in readers:
        reader.start()
    peak, stopped = 0, False
    while True:
        pid, status, usage = os.wait4(child.pid, os.WNOHANG)
        if pid:
            break
        peak = max(peak, of_tree(child.pid))
        if not stopped and time.perf_counter() - began > allowed:
            os.killpg(child.pid, signal.SIGKILL)
            stopped = True
        time.sleep(0.05)
    child.returncode = os.waitstatus_to_exitcode(status)
    seconds = time.perf_counter() - began
    for reader, pipe in zip(readers, (child.stdout, child.stderr), strict=True):
        reader.join()
        if pipe:
            pipe.close()
    code, spent = None if stopped else child.returncode, usage.ru_utime + usage.ru_stime
    others = max(0.0, busy() - before - spent)
    return Ran(code, said["text"], said["errors"], seconds, spent, round(peak / MB), others)


def busy() -> float:
    """Processor seconds of the whole machine since it started, without those that it idled."""
    times = psutil.cpu_times()
    return sum(times) - times.idle - times.iowait - times.guest - times.guest_nice


def of_tree(pid: int) -> int:
    """Own memory of a process and its children in bytes; pages that they share are counted once."""
    try:
        children = psutil.Process(pid).children(recursive=True)
    except psutil.NoSuchProcess:
        return 0
    if not children:
        return field(pid, "status", "RssAnon")
    return sum(field(each, "smaps_rollup", "Pss_Anon") for each in (pid, *(child.pid for child in children)))


def field(pid: int | str, file: str, name: str) -> int:
    """A number of bytes in a file of /proc; 0 where the process has gone."""
    try:
        for line in Path(f"/proc/{pid}/{file}").read_text().splitlines():
            if line.startswith(f"{name}:"):
                return int(line.split()[1]) * 1024
    except (OSError, ValueError):
        pass
    return 0


class Watched:
    """Own memory of this process while a block runs, in bytes: at its start, at its peak; and the peak with maps."""

    def __enter__(self) -> Watched:
        # Sets the kernel's high-water mark back, so that it is that of this block.
        with contextlib.suppress(OSError):
            Path("/proc/self/clear_refs").write_text("5")
        self.start = self.peak = field("self", "status", "RssAnon")
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._watch)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()
        self.resident = field("self", "status", "VmHWM")

    def _watch(self) -> None:
        while not self._stop.wait(0.02):
            self.peak = max(self.peak, field("self", "status", "RssAnon"))


def timed(call: Callable[[], Any]) -> tuple[Any, dict[str, Any]]:
    """What a call gives, and its seconds, seconds of processor, own memory in MB at its start and peak, and the peak
    with maps."""
    began, spent = time.perf_counter(), time.process_time()
    with Watched() as memory:
        found = call()
    return found, {
        "seconds": round(time.perf_counter() - began, 3),
        "cpu_seconds": round(time.process_time() - spent, 3),
        "start_mb": round(memory.start / MB),
        "peak_mb": round(memory.peak / MB),
        "peak_with_maps_mb": round(memory.resident / MB),
    }
