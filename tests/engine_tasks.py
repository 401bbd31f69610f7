"""What workers of tests/test_engine.py do: tasks that die, a descriptor that keeps a log and dies of one picture."""

from __future__ import annotations

import dataclasses
import os
import signal
import time
import uuid
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from copyscope.detection.descriptors import Descriptor, Image
from copyscope.detection.descriptors.phash import Phash
from copyscope.errors import CopyscopeError

DEADLY = (13, 66, 6)
"""Colour of a picture that kills whoever describes it with `Logged(deadly=True)`."""


def times(shared: int, task: int) -> int:
    return shared * task


def sized(shared: bytes, task: int) -> tuple[int, bytes]:
    return task, shared[:2] + bytes(200_000)


def die(folder: str, task: int) -> int:
    """Dies: of a task above 100 at the first time, of one above 200 each time."""
    note(folder, str(task))
    if task > 200 or (task > 100 and len(list(Path(folder).glob(f"{task}-*"))) == 1):
        os.kill(os.getpid(), signal.SIGKILL)
    return task


def fail(folder: str, task: int) -> int:
    note(folder, str(task))
    if task == 2:
        raise CopyscopeError("No such thing.\nTry another")
    if task == 3:
        raise ValueError("three is wrong")
    return task


def held(folder: str, task: int) -> str:
    """The node of Ray it was done on; from the fourth task on, once there is a file `go`."""
    import ray

    node = str(ray.get_runtime_context().get_node_id())
    note(folder, f"{task}-{node}")
    until = time.time() + 60
    while task >= 3 and not (Path(folder) / "go").exists() and time.time() < until:
        time.sleep(0.02)
    return node


def note(folder: str, what: str) -> None:
    (Path(folder) / f"{what}-{uuid.uuid4().hex}").write_text("")


@dataclasses.dataclass(frozen=True)
class Logged(Descriptor):
    """pHash; a file in the folder `log` for each call, which says how many pictures were described."""

    log: str = ""
    deadly: bool = False
    weights: str = ""

    @property
    def dim(self) -> int:
        return 64

    def describe(self, images: list[Image]) -> NDArray[np.float32]:
        if self.deadly and any(tuple(image[0, 0].tolist()) == DEADLY for image in images):
            os.kill(os.getpid(), signal.SIGKILL)
        note(self.log, str(len(images)))
        return Phash().describe(images)

    def fingerprint(self) -> str:
        """`weights`: a file that another machine may lack."""
        return self.weights and Path(self.weights).read_text() + str(
            os.getpid() if self.weights.endswith("pid") else ""
        )


def described(log: Any) -> int:
    """How many pictures were described by `Logged`."""
    return sum(int(path.name.partition("-")[0]) for path in Path(log).iterdir())
