"""Run tasks on a Ray cluster: `--engine ray`."""

from __future__ import annotations

import contextlib
import dataclasses
import importlib
import os
from collections.abc import Callable, Iterable, Iterator
from typing import Any

from . import engine
from .engine import Engine, R, S, T, TaskFailure
from .errors import CopyscopeError, MissingExtra, reason


@dataclasses.dataclass(frozen=True)
class Ray(Engine):
    """Tasks of Ray, spread over all machines of a cluster. Needs the extra `ray` on each of them.

    Args:
        address: of a cluster; "auto" = the one this machine belongs to, "local" = start Ray here, None = what
            RAY_ADDRESS names, else a cluster that runs on this machine, else start Ray here, which ends with this
            process.
        cpus: processors of one task.

    Raises:
        ValueError: cpus is below 1.
    """

    address: str | None = None
    cpus: int = 1

    def __post_init__(self) -> None:
        if self.cpus < 1:
            raise ValueError(f"cpus must be at least 1, not {self.cpus}")

    @property
    def threads(self) -> int:
        """Processors of one task."""
        return self.cpus

    def width(self) -> int:
        """Number of tasks that the processors of the cluster suffice for, at least 1."""
        return max(1, int(self._connected().cluster_resources().get("CPU", 1)) // self.cpus)

    def map(
        self, function: Callable[[S, T], R], shared: S, tasks: Iterable[T]
    ) -> Iterator[tuple[int, R | TaskFailure]]:
        """Run the tasks on the cluster; see `Engine.map`."""
        ray = self._connected()
        # What a task is tried again for is Ray's affair: it knows which worker or machine was lost, and where there is
        # another. SPREAD, else it fills one machine first.
        remote = ray.remote(engine.answer).options(
            num_cpus=self.cpus, max_retries=engine.TRIES - 1, retry_exceptions=True, scheduling_strategy="SPREAD"
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
                        found = TaskFailure(engine.why_raised(error.cause or error))
                    except ray.exceptions.RayError as error:
                        found = TaskFailure(f"{engine.why_died(engine.TRIES)}; Ray says {type(error).__name__}")
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


def _if_own(own: Ray) -> bool | None:
    """Whether Ray shall bring its web page: not where we start it; of a cluster that is there it may not be said."""
    return None if own.address or os.environ.get("RAY_ADDRESS") else False


def _errors_to_stderr() -> None:
    """Ray tells of workers that died on stdout, whatever it is asked; there our results are, as JSON for instance."""
    worker = importlib.import_module("ray._private.worker")
    plain = getattr(worker, "print_to_stdstream", None)
    if plain and not hasattr(plain, "plain"):

        def told(data: dict[str, Any], *arguments: Any, **options: Any) -> None:
            plain(data | {"is_err": True}, *arguments, **options)

        told.plain = plain  # type: ignore[attr-defined]
        setattr(worker, "print_to_stdstream", told)  # noqa: B010
