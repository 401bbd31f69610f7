"""Engines: run many independent tasks in processes; ray_engine.py does it on a Ray cluster.

`open_engine("ray(address='auto')")` parses the spec as those of parts are. A worker that dies costs what it was doing,
which is done again elsewhere; what cannot be done is handed back as `TaskFailure`, with the reason, and stops nothing
else.
"""

from __future__ import annotations

import abc
import dataclasses
import difflib
import importlib
import multiprocessing
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from typing import Any, TypedDict, TypeVar

from copyscope.errors import reason

from . import parts
from .errors import CopyscopeError, PartError
from .machine import Progress, cores

TRIES = 4
"""How often a task is tried whose worker dies, or that fails for a reason that may be its machine's."""

S = TypeVar("S")
T = TypeVar("T")
R = TypeVar("R")


@dataclasses.dataclass(frozen=True)
class TaskFailure:
    """Stands for the result of a task that failed.

    Attributes:
        why: the reason, for people, one line.
        told: the task itself raised a CopyscopeError, and would do so on another machine too.
    """

    why: str
    told: bool = False


class Engine(abc.ABC):
    """Runs tasks elsewhere: a frozen dataclass of plain values, whose `str` is the spec that rebuilds it."""

    def __str__(self) -> str:
        path = f"{type(self).__module__}:{type(self).__qualname__}"
        return parts.written(next((name for name, each in ENGINES.items() if each == path), path), self)

    @property
    @abc.abstractmethod
    def threads(self) -> int:
        """Processors of one task, which is how many threads it should use."""

    @abc.abstractmethod
    def width(self) -> int:
        """How many tasks run at the same time now; a cluster may grow."""

    @abc.abstractmethod
    def map(
        self, function: Callable[[S, T], R], shared: S, tasks: Iterable[T]
    ) -> Iterator[tuple[int, R | TaskFailure]]:
        """Run `function(shared, task)` for every task, in any order.

        At most about twice `width` tasks are taken from `tasks` ahead of the results. Everything must be picklable, the
        function by its name in a module. A task whose worker dies, or that raises, is tried TRIES times in all; a
        CopyscopeError, raised on purpose, fails it at once.

        Args:
            function: called as `function(shared, task)` by a worker.
            shared: what all tasks have in common; sent once and not with each.
            tasks: the tasks, numbered from 0.

        Yields:
            (number of the task, its result, or a TaskFailure), in the order in which tasks end.
        """


@dataclasses.dataclass(frozen=True)
class Processes(Engine):
    """Processes of this machine, one thread each; what kills a process costs a task and not the run.

    Args:
        workers: how many; 0 = one a processor that this process may use. They start with the first task and end with
            the last.
    """

    workers: int = 0

    def __post_init__(self) -> None:
        if self.workers < 0:
            raise ValueError(f"workers must be at least 0, not {self.workers}")

    @property
    def threads(self) -> int:
        """One thread a process."""
        return 1

    def width(self) -> int:
        """Number of processes."""
        return self.workers or cores()

    def map(
        self, function: Callable[[S, T], R], shared: S, tasks: Iterable[T]
    ) -> Iterator[tuple[int, R | TaskFailure]]:
        """Run the tasks in spawned processes; see `Engine.map`."""
        return _Pool(self, function, shared).map(tasks)


@dataclasses.dataclass
class _Job:
    """A task in a pool, and how often it was tried."""

    number: int
    task: Any
    tries: int = 0


class _Pool:
    """A pool of processes that is made anew when a worker dies.

    Then the whole pool is gone and nobody says whose fault it was: so each job that was under way is a suspect, done
    again with no other beside it. Else one that kills its worker each time would take its neighbours with it.
    """

    def __init__(self, engine: Engine, function: Callable[[Any, Any], Any], shared: Any) -> None:
        self.engine, self.width = engine, engine.width()
        # Not forked: a child would inherit threads' locks, of fsspec, Arrow and ONNX Runtime, without the threads.
        self.context = multiprocessing.get_context("spawn")
        self.started = self.context.Event()
        self.told = self.started, function, shared
        self.pool = self._new()
        self.is_broken = False
        self.suspects: deque[_Job] = deque()
        self.under_way: dict[Future[Any], _Job] = {}

    def map(self, tasks: Iterable[Any]) -> Iterator[tuple[int, Any]]:
        """As `Engine.map`."""
        waiting = (_Job(number, task) for number, task in enumerate(tasks))
        try:
            while True:
                self._begin_jobs(waiting)
                if not (self.under_way or self.is_broken):
                    return
                yield from self._finished()
                if self.is_broken:
                    self._renew()
        finally:
            self.pool.shutdown(cancel_futures=True)

    def _new(self) -> ProcessPoolExecutor:
        return ProcessPoolExecutor(self.width, self.context, initializer=_tell, initargs=self.told)

    def _begin_jobs(self, waiting: Iterator[_Job]) -> None:
        """One suspect alone; without suspects as many jobs as there is room for."""
        if self.suspects:
            if not self.under_way:
                self._begin(self.suspects.popleft())
            return
        while not self.is_broken and len(self.under_way) < 2 * self.width and (job := next(waiting, None)):
            self._begin(job)

    def _begin(self, job: _Job) -> None:
        try:
            self.under_way[self.pool.submit(_in_process, job.task)] = job
        except BrokenProcessPool:  # since we last looked
            self.suspects.append(job)
            self.is_broken = True

    def _finished(self) -> Iterator[tuple[int, Any]]:
        """The results of the jobs that are done; those that failed are suspects, or lost after TRIES tries."""
        alone = len(self.under_way) == 1
        for future in wait(self.under_way, return_when=FIRST_COMPLETED).done:
            job, error = self.under_way.pop(future), future.exception()
            if error is None:
                yield job.number, future.result()
                continue
            died = isinstance(error, BrokenProcessPool)
            self.is_broken |= died
            # In company nobody knows whose worker died.
            job.tries += alone or not died
            if job.tries >= TRIES:
                yield job.number, TaskFailure(why_died(job.tries) if died else why_raised(error))
            else:
                self.suspects.append(job)

    def _renew(self) -> None:
        """Make the pool anew; all that was under way is suspect. Raises CopyscopeError where no process ever began."""
        if not self.started.is_set():
            raise CopyscopeError(
                f"The engine {self.engine} has no worker: each process died before it began.\n"
                "In a script, put what uses processes under `if __name__ == '__main__':`"
            )
        self.suspects.extend(self.under_way.values())
        self.under_way.clear()
        self.pool.shutdown()
        self.pool, self.is_broken = self._new(), False


ENGINES = {"processes": "copyscope.engine:Processes", "ray": "copyscope.ray_engine:Ray"}
"""Where each engine is, by the name that specs have."""


def open_engine(spec: str | Engine) -> Engine:
    """Load the engine of a spec.

    Args:
        spec: `processes(workers=4)`, `ray(address='auto')`, or `package.module:Class(...)` of your own; an Engine is
            returned as it is.

    Raises:
        PartError: the spec is malformed, names no engine, or gives arguments that the engine does not take.
    """
    if isinstance(spec, Engine):
        return spec
    path, arguments, options = parts.parse(spec, "engines", [*ENGINES])
    if ":" not in path and path not in ENGINES:
        close = difflib.get_close_matches(path, ENGINES, 1)
        hint = f"Did you mean {close[0]!r}? " if close else ""
        raise PartError(f"No engine {path!r}.\n{hint}There are: {', '.join(ENGINES)}")
    module, _, attribute = ENGINES.get(path, path).partition(":")
    try:
        cls = getattr(importlib.import_module(module), attribute)
    except (ImportError, AttributeError) as error:
        raise PartError(f"Cannot load the engine {path!r}: {error}.\nWrite it as package.module:Class") from None
    if not (isinstance(cls, type) and issubclass(cls, Engine)):
        raise PartError(f"{path!r} is not an engine.\nMake it a subclass of copyscope.engine.Engine")
    engine: Engine = parts.made(cls, path, arguments, options)
    return engine


def answer(function: Callable[[S, T], R], shared: S, task: T) -> R | TaskFailure:
    """By a worker: the result of a task, or the error that it raised on purpose."""
    try:
        return function(shared, task)
    except CopyscopeError as error:
        return TaskFailure(" ".join(str(error).split("\n")), told=True)


_told: list[Any] = []


def _tell(started: Any, function: Callable[[Any, Any], Any], shared: Any) -> None:
    """Once a process, whatever the number of tasks."""
    _told[:] = function, shared
    started.set()


def _in_process(task: Any) -> Any:
    function, shared = _told
    return answer(function, shared, task)


def why_died(tries: int) -> str:
    """Of a task whose worker died each time."""
    often = f" {tries} times" if tries > 1 else ""
    return f"its worker died{often}: killed, out of memory, or not able to start"


def why_raised(error: BaseException) -> str:
    """Of a task that raised an exception not on purpose."""
    return f"{type(error).__name__}: {reason(error)}"


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
