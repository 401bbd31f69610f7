"""Engines: run many independent tasks in processes or on a Ray cluster.

`open_engine("ray(address='auto')")` parses the spec as those of parts are. A worker that dies costs what it was doing,
which is done again elsewhere; what cannot be done is handed back as `TaskFailure`, with the reason, and stops nothing
else.
"""

from __future__ import annotations

import abc
import contextlib
import dataclasses
import difflib
import importlib
import multiprocessing
import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from typing import Any, TypeVar

from copyscope.errors import reason

from . import parts
from .errors import CopyscopeError, MissingExtra, PartError
from .machine import cores

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
        cls = type(self)
        name = next((name for name, each in ENGINES.items() if each is cls), f"{cls.__module__}:{cls.__qualname__}")
        return parts.written(name, self)

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
        waiting = enumerate(tasks)
        # When a worker dies, the whole pool is gone and nobody says whose fault it was: so each that was under way is
        # done again alone. Else one that kills its worker each time would take its neighbours with it.
        suspects: deque[tuple[int, T, int]] = deque()
        under_way: dict[Future[R | TaskFailure], tuple[int, T, int]] = {}
        # Not forked: a child would inherit threads' locks, of fsspec, Arrow and ONNX Runtime, without the threads.
        context = multiprocessing.get_context("spawn")
        started = context.Event()

        def new() -> ProcessPoolExecutor:
            return ProcessPoolExecutor(self.width(), context, initializer=_tell, initargs=(started, function, shared))

        pool = new()

        def begin(number: int, task: T, tries: int) -> bool:
            try:
                under_way[pool.submit(_in_process, task)] = number, task, tries
            except BrokenProcessPool:  # since we last looked
                suspects.append((number, task, tries))
                return False
            return True

        try:
            while True:
                whole, careful = True, bool(suspects)
                if suspects and not under_way:
                    whole = begin(*suspects.popleft())
                # Nothing is begun beside a suspect, the last one neither.
                while whole and not careful and len(under_way) < 2 * self.width() and (more := next(waiting, None)):
                    whole = begin(*more, 0)
                if whole and not under_way:
                    return
                alone = len(under_way) == 1
                for future in wait(under_way, return_when=FIRST_COMPLETED).done:
                    number, task, tries = under_way.pop(future)
                    error = future.exception()
                    if error is None:
                        yield number, future.result()
                        continue
                    died = isinstance(error, BrokenProcessPool)
                    whole &= not died
                    tries += alone or not died
                    if tries >= TRIES:
                        yield number, TaskFailure(_died(tries) if died else _raised(error))
                    else:
                        suspects.append((number, task, tries))
                if not whole:
                    if not started.is_set():
                        raise CopyscopeError(
                            f"The engine {self} has no worker: each process died before it began.\n"
                            "In a script, put what uses processes under `if __name__ == '__main__':`"
                        )
                    suspects.extend(under_way.values())
                    under_way.clear()
                    pool.shutdown()
                    pool = new()
        finally:
            pool.shutdown(cancel_futures=True)


@dataclasses.dataclass(frozen=True)
class Ray(Engine):
    """Tasks of Ray, spread over all machines of a cluster. Needs the extra `ray` on each of them.

    Args:
        address: of a cluster; "auto" = the one this machine belongs to, "local" = start Ray here, None = what
            RAY_ADDRESS names, else a cluster that runs on this machine, else start Ray here, which ends with this
            process.
        cpus: processors of one task.
    """

    address: str | None = None
    cpus: int = 1

    def __post_init__(self) -> None:
        if self.cpus < 1:
            raise ValueError(f"cpus must be at least 1, not {self.cpus}")

    @property
    def threads(self) -> int:
        """Processors that Ray reserves for a task."""
        return self.cpus

    def width(self) -> int:
        """Processors of the cluster now, divided by those of a task."""
        return max(1, int(self._connected().cluster_resources().get("CPU", 1)) // self.cpus)

    def map(
        self, function: Callable[[S, T], R], shared: S, tasks: Iterable[T]
    ) -> Iterator[tuple[int, R | TaskFailure]]:
        """Run the tasks as Ray tasks; see `Engine.map`."""
        ray = self._connected()
        # What a task is tried again for is Ray's affair: it knows which worker or machine was lost, and where there is
        # another. SPREAD, else it fills one machine first.
        remote = ray.remote(_answer).options(
            num_cpus=self.cpus, max_retries=TRIES - 1, retry_exceptions=True, scheduling_strategy="SPREAD"
        )
        waiting, told = enumerate(tasks), ray.put(shared)
        under_way: dict[Any, int] = {}
        try:
            while True:
                # Twice what the cluster does at a time: what waits is what makes an autoscaler add machines.
                room = 2 * self.width()
                while len(under_way) < room and (more := next(waiting, None)):
                    under_way[remote.remote(function, told, more[1])] = more[0]
                if not under_way:
                    return
                for reference in ray.wait(list(under_way), num_returns=1)[0]:
                    number = under_way.pop(reference)
                    try:
                        found = ray.get(reference)
                    except ray.exceptions.RayTaskError as error:
                        found = TaskFailure(_raised(error.cause or error))
                    except ray.exceptions.RayError as error:
                        found = TaskFailure(f"{_died(TRIES)}; Ray says {type(error).__name__}")
                    yield number, found
        finally:
            for reference in under_way:
                with contextlib.suppress(Exception):
                    ray.cancel(reference, force=True)

    def _connected(self) -> Any:
        """The module ray, connected. Raises MissingExtra where it is not installed."""
        # Ray reports what it is used for unless told not to; nothing of ours does.
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
        # Its wish of a later version, printed at each start; no task of ours asks for a GPU.
        os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
        try:
            ray = importlib.import_module("ray")
        except ImportError:
            raise MissingExtra("The engine 'ray'", "ray", "ray") from None
        if not ray.is_initialized():
            _errors_to_stderr()
            try:
                # What workers print belongs into Ray's logs, not among our results on stdout.
                ray.init(self.address, log_to_driver=False, logging_level="ERROR", include_dashboard=_if_own(self))
            except Exception as error:
                where = f"at {self.address!r}" if self.address else "or start it"
                raise CopyscopeError(
                    f"Cannot connect to Ray {where}: {reason(error)}.\n"
                    "Check that `ray status` knows the cluster, and that its Ray and Python are of the same versions"
                ) from None
        return ray


ENGINES: dict[str, type[Engine]] = {"processes": Processes, "ray": Ray}
"""By the names that specs have."""


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
    if ":" in path:
        module, _, attribute = path.partition(":")
        try:
            cls = getattr(importlib.import_module(module), attribute)
        except (ImportError, AttributeError) as error:
            raise PartError(f"Cannot load the engine {path!r}: {error}.\nWrite it as package.module:Class") from None
        if not (isinstance(cls, type) and issubclass(cls, Engine)):
            raise PartError(f"{path!r} is not an engine.\nMake it a subclass of copyscope.engine.Engine")
    elif path in ENGINES:
        cls = ENGINES[path]
    else:
        close = difflib.get_close_matches(path, ENGINES, 1)
        hint = f"Did you mean {close[0]!r}? " if close else ""
        raise PartError(f"No engine {path!r}.\n{hint}There are: {', '.join(ENGINES)}")
    engine: Engine = parts.made(cls, path, arguments, options)
    return engine


def _if_own(engine: Ray) -> bool | None:
    """Whether Ray shall bring its web page: not where we start it; of a cluster that is there it may not be said."""
    return None if engine.address or os.environ.get("RAY_ADDRESS") else False


def _errors_to_stderr() -> None:
    """Ray tells of workers that died on stdout, whatever it is asked; there our results are, as JSON for instance."""
    worker = importlib.import_module("ray._private.worker")
    plain = getattr(worker, "print_to_stdstream", None)
    if plain and not hasattr(plain, "plain"):

        def told(data: dict[str, Any], *arguments: Any, **options: Any) -> None:
            plain(data | {"is_err": True}, *arguments, **options)

        told.plain = plain  # type: ignore[attr-defined]
        setattr(worker, "print_to_stdstream", told)  # noqa: B010


def _answer(function: Callable[[S, T], R], shared: S, task: T) -> R | TaskFailure:
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
    return _answer(function, shared, task)


def _died(tries: int) -> str:
    often = f" {tries} times" if tries > 1 else ""
    return f"its worker died{often}: killed, out of memory, or not able to start"


def _raised(error: BaseException) -> str:
    return f"{type(error).__name__}: {reason(error)}"
