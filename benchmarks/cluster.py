"""A simulated cluster: independent tasks on machines that differ, slow down, fail and are lost.

A discrete-event simulation of one stage of a job. It knows nothing of what the tasks do: a task is seconds of compute,
bytes in and out, and requests that are waited for. `benchmarks/scale.py` says what they are.
"""

from __future__ import annotations

import dataclasses
import heapq
from collections import deque
from collections.abc import Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]

END, FAIL, LOSS, BACK, LOOK = range(5)
DRAWN = 4096


@dataclasses.dataclass(frozen=True)
class Cluster:
    """Machines of one kind, and what goes wrong with them.

    machines, slots: slots is tasks at a time on a machine. inward, outward: bytes/s of a machine's network. store:
    bytes/s of the shared object store, all machines together. request: seconds that one request is waited for.
    machine_sigma: the speeds of machines are lognormal with this sigma, their mean 1, so that the whole is as fast as
    without. task_sigma: the compute of an execution is lognormally longer or shorter, its mean as it was. failure:
    probability that an execution fails, at any point of it alike. between_losses: mean seconds until a machine is lost
    with all it is doing. replacement: seconds until another stands in its place. retries: executions of a task that may
    fail before it is given up. speculate: an idle slot starts a task a second time once it has run `late` times as long
    as it should take; whichever ends first counts.
    """

    machines: int = 4
    slots: int = 4
    inward: float = np.inf
    outward: float = np.inf
    store: float = np.inf
    request: float = 0.0
    machine_sigma: float = 0.0
    task_sigma: float = 0.0
    failure: float = 0.0
    between_losses: float = np.inf
    replacement: float = 600.0
    retries: int = 10
    speculate: bool = False
    late: float = 1.5

    def smooth(self) -> Cluster:
        """The same with equal machines on which nothing goes wrong."""
        return dataclasses.replace(self, machine_sigma=0.0, task_sigma=0.0, failure=0.0, between_losses=np.inf)

    def sound(self) -> Cluster:
        """The same without failures and losses: machines and tasks still differ in speed."""
        return dataclasses.replace(self, failure=0.0, between_losses=np.inf)

    @property
    def bandwidth(self) -> tuple[float, float]:
        """Bytes/s in and out of one slot: its part of its machine's network, and of the store.

        The part is fixed. A lone task at the end of a stage would get more in truth.
        """
        share = self.store / (self.machines * self.slots)
        return min(self.inward / self.slots, share), min(self.outward / self.slots, share)

    def transfer(self, tasks: Tasks) -> Floats:
        """Seconds [n] that a task's bytes take; both directions at once."""
        inward, outward = self.bandwidth
        return np.maximum(tasks.read / inward, tasks.written / outward)

    def seconds(self, tasks: Tasks) -> Floats:
        """Seconds [n] of each task on a slot of speed 1: bytes flow while it computes, requests are waited for."""
        return np.maximum(tasks.compute, self.transfer(tasks)) + tasks.requests * self.request


@dataclasses.dataclass(frozen=True)
class Tasks:
    """n tasks: seconds of compute, bytes read and written, requests, and bytes of memory of each [n]."""

    compute: Floats
    read: Floats
    written: Floats
    requests: Floats
    memory: Floats

    @classmethod
    def of(
        cls,
        n: int,
        compute: float | Floats = 0.0,
        read: float | Floats = 0.0,
        written: float | Floats = 0.0,
        requests: float | Floats = 0.0,
        memory: float | Floats = 0.0,
    ) -> Tasks:
        """n tasks; a number is that of every task."""
        values = (compute, read, written, requests, memory)
        return cls(*(np.broadcast_to(np.asarray(value, np.float64), (n,)).copy() for value in values))

    def __len__(self) -> int:
        return len(self.compute)


@dataclasses.dataclass(frozen=True)
class Outcome:
    """What came of a stage.

    seconds: from its start until the last task counts. busy: slot-seconds in which a slot was taken. wasted: those of
    them spent on executions that did not count. executions: how often a task was started. again: bytes read by those
    that did not count. losses: machines lost. given_up: tasks without a result. done: results of each task [n], 0 or 1.
    """

    seconds: float
    busy: float
    wasted: float
    executions: int
    again: float
    losses: int
    given_up: int
    done: NDArray[np.int64]


def run(tasks: Tasks, cluster: Cluster, seed: Sequence[int] = (0,)) -> Outcome:
    """Run the tasks, the longest first. The same seed gives the same outcome."""
    return _Stage(tasks, cluster, seed).run()


class _Stage:
    def __init__(self, tasks: Tasks, cluster: Cluster, seed: Sequence[int]) -> None:
        self.cluster = cluster
        drawn, lost, machines = (np.random.default_rng(np.random.SeedSequence([*seed, stream])) for stream in range(3))
        self.draws, self.lost = _draws(drawn), lost
        speeds = np.exp(cluster.machine_sigma * machines.standard_normal(cluster.machines))
        self.speeds: list[float] = (speeds / speeds.mean()).tolist()
        nominal = cluster.seconds(tasks)
        self.nominal: list[float] = nominal.tolist()
        self.compute: list[float] = tasks.compute.tolist()
        self.transfer: list[float] = cluster.transfer(tasks).tolist()
        self.wait: list[float] = (tasks.requests * cluster.request).tolist()
        self.read: list[float] = tasks.read.tolist()
        self.waiting = deque(np.argsort(-nominal, kind="stable").tolist())
        self.left = len(tasks)
        self.done = np.zeros(len(tasks), np.int64)
        self.failed = [0] * len(tasks)
        # Executions under way: number -> (task, machine, start, length); and the numbers of each task and machine.
        self.under_way: dict[int, tuple[int, int, float, float]] = {}
        self.of_task: dict[int, set[int]] = {}
        self.of_machine: list[set[int]] = [set() for _ in range(cluster.machines)]
        # How often a machine was lost: a slot of an earlier life is no slot.
        self.life = [0] * cluster.machines
        self.free = deque((machine, 0) for _ in range(cluster.slots) for machine in range(cluster.machines))
        self.events: list[tuple[float, int, int]] = []
        self.overdue: list[tuple[float, int]] = []
        self.looking = np.inf
        self.executions = self.losses = self.given_up = 0
        self.busy = self.wasted = self.again = 0.0

    def run(self) -> Outcome:
        now = 0.0
        if np.isfinite(self.cluster.between_losses):
            for machine in range(self.cluster.machines):
                self._push(self.lost.exponential(self.cluster.between_losses), LOSS, machine)
        self._assign(now)
        while self.left:
            now, kind, which = heapq.heappop(self.events)
            if kind in (END, FAIL):
                if which not in self.under_way:
                    continue  # it was stopped, or lost with its machine
                (self._end if kind == END else self._fail)(which, now)
            elif kind == LOSS:
                self._lose(which, now)
            elif kind == BACK:
                self.free.extend([(which, self.life[which])] * self.cluster.slots)
            else:
                self.looking = np.inf
            self._assign(now)
        for number in list(self.under_way):
            self._stop(number, now)
        counts = self.executions, self.again, self.losses, self.given_up
        return Outcome(now, self.busy, self.wasted, *counts, self.done)

    def _push(self, when: float, kind: int, which: int) -> None:
        heapq.heappush(self.events, (when, kind, which))

    def _assign(self, now: float) -> None:
        while self.free:
            machine, life = self.free[0]
            if life != self.life[machine]:
                self.free.popleft()
                continue
            if self.waiting:
                task = self.waiting.popleft()
            elif (second := self._late(now)) is not None:
                task = second
            else:
                return
            self.free.popleft()
            self._start(task, machine, now)

    def _start(self, task: int, machine: int, now: float) -> None:
        sigma = self.cluster.task_sigma
        normal, chance, point = next(self.draws)
        compute = self.compute[task] * float(np.exp(sigma * normal - sigma**2 / 2)) / self.speeds[machine]
        length = max(compute, self.transfer[task]) + self.wait[task]
        number = self.executions
        self.executions += 1
        self.under_way[number] = (task, machine, now, length)
        self.of_task.setdefault(task, set()).add(number)
        self.of_machine[machine].add(number)
        fails = chance < self.cluster.failure
        self._push(now + length * (point if fails else 1.0), FAIL if fails else END, number)
        if self.cluster.speculate:
            heapq.heappush(self.overdue, (now + self.cluster.late * self.nominal[task], number))

    def _late(self, now: float) -> int | None:
        """A task that has run too long and runs only once, if there is one; else be called when the next is late."""
        while self.overdue:
            when, number = self.overdue[0]
            known = self.under_way.get(number)
            if known is None or len(self.of_task[known[0]]) > 1:
                heapq.heappop(self.overdue)
            elif when <= now:
                heapq.heappop(self.overdue)
                return known[0]
            else:
                if when < self.looking:
                    self.looking = when
                    self._push(when, LOOK, 0)
                return None
        return None

    def _stop(self, number: int, now: float, counts: bool = False) -> int:
        """End an execution, and say of which task it was. Its slot is free unless its machine is gone."""
        task, machine, start, length = self.under_way.pop(number)
        self.of_task[task].discard(number)
        self.of_machine[machine].discard(number)
        self.busy += now - start
        if not counts:
            self.wasted += now - start
            self.again += self.read[task] * (now - start) / length if length else 0.0
        self.free.append((machine, self.life[machine]))
        return task

    def _end(self, number: int, now: float) -> None:
        task = self._stop(number, now, counts=True)
        for twin in list(self.of_task[task]):
            self._stop(twin, now)
        self.done[task] += 1
        self.left -= 1

    def _fail(self, number: int, now: float) -> None:
        task = self._stop(number, now)
        self.failed[task] += 1
        if self.of_task[task]:
            return  # its second execution goes on
        if self.failed[task] >= self.cluster.retries:
            self.given_up += 1
            self.left -= 1
        else:
            self.waiting.append(task)

    def _lose(self, machine: int, now: float) -> None:
        self.losses += 1
        for number in list(self.of_machine[machine]):
            task = self._stop(number, now)
            if not self.of_task[task]:
                self.waiting.appendleft(task)
        self.life[machine] += 1
        self._push(now + self.cluster.replacement, BACK, machine)
        self._push(now + self.cluster.replacement + self.lost.exponential(self.cluster.between_losses), LOSS, machine)


def _draws(rng: np.random.Generator) -> Iterator[tuple[float, float, float]]:
    """(standard normal, uniform, uniform) without end, drawn by the lot."""
    while True:
        normal, chance, point = rng.standard_normal(DRAWN), rng.random(DRAWN), rng.random(DRAWN)
        yield from zip(normal.tolist(), chance.tolist(), point.tolist(), strict=True)
