"""A lint of LAION-2B and an audit of ten million generations, simulated on a cluster: hours, bytes, dollars, limits.

    python benchmarks/scale.py             # about a minute of processor time
    python benchmarks/scale.py --machines 100 --task-sigma 0.8 --speculate 0

Nothing of this size was run. Rates are those of one core, read from results/ (benchmarks embed, search, audit and
scale_rates); all else is an assumption, an argument with its source (`--help`), and stands in the result beside the
numbers. A stage waits for the one before. Its time is compared with that of equal machines on which nothing goes wrong
(`ideal_hours`) and with that of sound ones (what stragglers take); the rest is what failures and lost machines take.
"""

from __future__ import annotations

import argparse
import dataclasses
from typing import Any

import numpy as np

from cluster import Cluster, Outcome, run
from record import record
from scale_jobs import HOUR, Assumed, Rates, Stage, audit, lint
from scale_limits import limits

GROWTH = (1e6, 1e7, 1e8, 1e9, 2.3e9, 1e10)
MACHINES = (1, 5, 25, 100, 400)
SWITCHES = ("collapse", "split", "speculate")
GPUS = 8
HOT = (1e5, 1e6, 3e6, 1e7)
WAVES = (1, 2, 5, 20)
SIGMAS = (0.0, 0.4, 0.8, 1.2)


def main() -> None:
    assumed, seed, runs = arguments()
    rates = Rates.read()
    jobs = {
        "lint": lint(assumed, rates, seed),
        "audit": audit(assumed, rates, seed),
        "audit_exact": audit(assumed, rates, seed, exact=True),
    }
    record(
        "scale",
        {
            "seed": seed,
            "runs": runs,
            "measured": dataclasses.asdict(rates),
            "assumed": {
                field.name: {"value": getattr(assumed, field.name), "source": field.metadata["said"]}
                for field in dataclasses.fields(assumed)
            },
            "jobs": {name: job(stages, assumed, seed, runs) for name, stages in jobs.items()},
            # No GPU was at hand: this stands on the guess of its rate alone.
            "lint_with_gpus": {"gpus": GPUS, **with_gpus(assumed, rates, seed)},
            "growth": [grown(assumed, rates, seed, images) for images in GROWTH],
            "machines": [on_machines(assumed, rates, seed, n) for n in MACHINES],
            "hot": [hot(assumed, rates, seed, times) for times in HOT],
            "stragglers": [stragglers(assumed, rates, seed, sigma) for sigma in SIGMAS],
            "shuffle": [shuffled(assumed, rates, seed, waves) for waves in WAVES],
            "losses": [losses(jobs["lint"], assumed, seed, hours, runs) for hours in (500, 50, 5)],
            "limits": [
                {"where": each.where, "what": each.what, "unit": each.unit, "there": each.there, "answer": each.answer}
                | {"breaks_at": number(each.breaks_at()) if np.isfinite(each.breaks_at()) else None}
                for each in limits(assumed, rates)
            ],
        },
    )


def arguments(given: list[str] | None = None) -> tuple[Assumed, int, int]:
    """What is assumed, each value an option of its own, the seed, and how many runs are averaged."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--runs", type=int, default=3, help="runs of each stage whose mean is given")
    for field in dataclasses.fields(Assumed):
        # argparse formats help with %, which no source has.
        parser.add_argument(
            f"--{field.name.replace('_', '-')}",
            type=int if field.name in SWITCHES else float,
            default=field.default,
            help=field.metadata["said"],
        )
    values = vars(parser.parse_args(given))
    seed, runs = values.pop("seed"), values.pop("runs")
    return Assumed(**values), seed, runs


def number(value: float) -> float:
    """Four digits: more would be pretence."""
    return float(f"{value:.4g}")


def job(stages: list[Stage], a: Assumed, seed: int, runs: int) -> dict[str, Any]:
    """Every stage simulated, and the sums."""
    found = {each.name: stage(each, a, [seed, place], runs) for place, each in enumerate(stages)}
    total: dict[str, Any] = {
        name: sum(each[name] for each in found.values())
        for name in ("hours", "ideal_hours", "core_hours", "gpu_hours", "held_core_hours", "held_gpu_hours",
                     "read", "written", "read_again", "gets", "puts", "machines_lost", "given_up",
                     "straggler_hours", "failure_hours")
    }  # fmt: skip
    total["memory"] = max(each["memory"] for each in found.values())
    total["straggler_share"] = total["straggler_hours"] / total["hours"]
    total["failure_share"] = total["failure_hours"] / total["hours"]
    kept = found["describe"]["written"]
    total["dollars"] = {
        "machines": total["held_core_hours"] * a.core_price + total["held_gpu_hours"] * a.gpu_price,
        "requests": total["gets"] * a.get_price + total["puts"] * a.put_price,
        "a month of what is kept": kept * a.month_price,
    }
    return {"total": rounded(total), "stages": {name: rounded(each) for name, each in found.items()}}


def stage(s: Stage, a: Assumed, seed: list[int], runs: int = 1) -> dict[str, Any]:
    """One stage, the mean of `runs`: with all that goes wrong, on sound machines, and ideally."""
    cluster = a.cluster(s.gpu)
    seeds = [[*seed, number] for number in range(runs)]
    whole, sound = ([run(s.tasks, each, one) for one in seeds] for each in (cluster, cluster.sound()))
    ideal = run(s.tasks, cluster.smooth(), seed).seconds * s.rounds / HOUR

    def mean(outcomes: list[Outcome], name: str) -> float:
        return float(np.mean([getattr(each, name) for each in outcomes])) * s.rounds

    hours, without_failures = mean(whole, "seconds") / HOUR, mean(sound, "seconds") / HOUR
    executions = mean(whole, "executions") / s.rounds / len(s.tasks)
    work = float(s.tasks.compute.sum()) * s.rounds / HOUR
    return {
        "tasks": len(s.tasks),
        "hours": hours,
        "ideal_hours": ideal,
        "straggler_hours": without_failures - ideal,
        "failure_hours": hours - without_failures,
        "core_hours": 0.0 if s.gpu else work,
        "gpu_hours": work if s.gpu else 0.0,
        "held_core_hours": hours * a.machines * a.cores,
        "held_gpu_hours": hours * a.machines * a.gpus,
        "read": float(s.tasks.read.sum()) * s.rounds,
        "written": float(s.tasks.written.sum()) * s.rounds,
        "read_again": mean(whole, "again"),
        "gets": float(s.tasks.requests.sum()) * s.rounds * executions,
        "puts": len(s.tasks) * s.rounds * executions,
        "memory": float(s.tasks.memory.max()),
        "longest_task_hours": float(cluster.seconds(s.tasks).max()) / HOUR,
        "executions_a_task": executions,
        "wasted_share": mean(whole, "wasted") / max(mean(whole, "busy"), 1e-9),
        "machines_lost": mean(whole, "losses"),
        "given_up": mean(whole, "given_up"),
        "bottleneck": bottleneck(s, cluster),
    }


def bottleneck(s: Stage, cluster: Cluster) -> str:
    """Which of these alone would take longest: all compute, all bytes, all waiting, or the longest single task."""
    slots = cluster.machines * cluster.slots
    inward, outward = cluster.bandwidth
    alone = {
        "compute": float(s.tasks.compute.sum()) / slots,
        "reading": float(s.tasks.read.sum()) / inward / slots,
        "writing": float(s.tasks.written.sum()) / outward / slots,
        "requests": float(s.tasks.requests.sum()) * cluster.request / slots,
        "one task": float(cluster.seconds(s.tasks).max()),
    }
    return max(alone, key=lambda name: alone[name])


def rounded(found: dict[str, Any]) -> dict[str, Any]:
    return {
        name: rounded(value) if isinstance(value, dict) else number(value) if isinstance(value, float) else value
        for name, value in found.items()
    }


def in_short(stages: list[Stage], a: Assumed, seed: int) -> dict[str, float]:
    """Hours, bytes and dollars of a job, simulated once."""
    hours = sum(
        run(each.tasks, a.cluster(each.gpu), [seed, place]).seconds * each.rounds / HOUR
        for place, each in enumerate(stages)
    )
    compute = sum(float(each.tasks.compute.sum()) * each.rounds for each in stages if not each.gpu) / HOUR
    moved = sum(float(each.tasks.read.sum() + each.tasks.written.sum()) * each.rounds for each in stages)
    requests = sum(float(each.tasks.requests.sum()) * a.get_price * each.rounds for each in stages)
    dollars = hours * a.machines * (a.cores * a.core_price + a.gpus * a.gpu_price)
    return rounded(
        {"hours": hours, "core_hours": compute, "moved": moved, "machine_dollars": dollars, "request_dollars": requests}
    )


def grown(a: Assumed, r: Rates, seed: int, images: float) -> dict[str, Any]:
    """Both jobs on a set of another size, whose most duplicated image is the same share of it."""
    a = dataclasses.replace(a, images=images, hot=a.hot * images / a.images)
    return {
        "images": images,
        "lint": in_short(lint(a, r, seed), a, seed),
        "audit": in_short(audit(a, r, seed), a, seed),
        "audit_exact": in_short(audit(a, r, seed, exact=True), a, seed),
    }


def with_gpus(a: Assumed, r: Rates, seed: int) -> dict[str, float]:
    """The lint described by GPUS GPUs a machine."""
    a = dataclasses.replace(a, gpus=GPUS)
    return in_short(lint(a, r, seed), a, seed)


def on_machines(a: Assumed, r: Rates, seed: int, machines: int) -> dict[str, Any]:
    a = dataclasses.replace(a, machines=machines)
    return {
        "machines": machines,
        "lint": in_short(lint(a, r, seed), a, seed),
        "audit": in_short(audit(a, r, seed), a, seed),
    }


def hot(a: Assumed, r: Rates, seed: int, times: float) -> dict[str, Any]:
    """The stage of comparing, by what is done about an image that stands so many times in the set."""
    found: dict[str, Any] = {"times": times}
    for collapse, split in ((0, 0), (1, 0), (0, 1), (1, 1)):
        mine = dataclasses.replace(a, hot=times, collapse=collapse, split=split)
        compare = next(each for each in lint(mine, r, seed) if each.name == "compare")
        outcome = run(compare.tasks, mine.cluster(), [seed, 0])
        name = " and ".join([*["equal files first"] * collapse, *["split"] * split]) or "neither"
        found[name] = rounded(
            {
                "hours": outcome.seconds / HOUR,
                "longest_task_hours": float(compare.tasks.compute.max()) / HOUR,
                "memory": float(compare.tasks.memory.max()),
            }
        )
    return found


def stragglers(a: Assumed, r: Rates, seed: int, sigma: float) -> dict[str, Any]:
    """The stage of describing when tasks differ more, or less; in larger tasks too."""
    found: dict[str, Any] = {"task_sigma": sigma}
    for size, tasks in (("small tasks", a.tasks), ("large tasks", a.tasks / 16)):
        (describe,) = (each for each in lint(dataclasses.replace(a, tasks=tasks), r, seed)
                       if each.name == "describe")  # fmt: skip
        for speculate in (False, True):
            cluster = dataclasses.replace(a.cluster(), task_sigma=sigma, speculate=speculate)
            outcome = run(describe.tasks, cluster, [seed, 1])
            name = f"{size}, {'second' if speculate else 'no second'} execution"
            found[name] = rounded({"hours": outcome.seconds / HOUR, "wasted_share": outcome.wasted / outcome.busy})
    return found


def losses(stages: list[Stage], a: Assumed, seed: int, hours: float, runs: int) -> dict[str, Any]:
    """The stage of describing when a machine is lost every so many hours; the mean of `runs`."""
    (describe,) = (each for each in stages if each.name == "describe")
    cluster = dataclasses.replace(a.cluster(), between_losses=hours * HOUR)
    found = [run(describe.tasks, cluster, [seed, 1, number]) for number in range(runs)]
    return rounded(
        {
            "hours_between_losses": float(hours),
            "hours": float(np.mean([each.seconds for each in found])) / HOUR,
            "machines_lost": float(np.mean([each.losses for each in found])),
            "wasted_share": float(np.mean([each.wasted / each.busy for each in found])),
        }
    )


def shuffled(a: Assumed, r: Rates, seed: int, waves: float) -> dict[str, Any]:
    """Both jobs with so many tasks a core on either side of a shuffle."""
    a = dataclasses.replace(a, shuffle_waves=waves)
    return {
        "waves": waves,
        "lint": in_short(lint(a, r, seed), a, seed),
        "audit": in_short(audit(a, r, seed), a, seed),
    }


if __name__ == "__main__":
    main()
