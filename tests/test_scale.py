"""The simulator of benchmarks/scale.py against what can be worked out by hand."""

from __future__ import annotations

import dataclasses
import sys
from pathlib import Path

import numpy as np
import pytest

BENCHMARKS = str(Path(__file__).parents[1] / "benchmarks")
sys.path.insert(0, BENCHMARKS)
try:
    import cluster
    import scale
    import scale_jobs
    import scale_limits
    from cluster import Cluster, Tasks, run
finally:
    sys.path.remove(BENCHMARKS)

ASSUMED = scale_jobs.Assumed()
RATES = scale_jobs.Rates.read()


def seconds(cluster: Cluster, tasks: Tasks, seeds: int = 20) -> np.ndarray:
    return np.array([run(tasks, cluster, [seed]).seconds for seed in range(seeds)])


def test_equal_tasks_on_sound_machines_take_work_over_workers():
    found = run(Tasks.of(240, compute=5.0), Cluster(machines=4, slots=6))
    assert found.seconds == pytest.approx(240 * 5 / 24)
    assert (found.executions, found.wasted, found.busy) == (240, 0, 240 * 5)
    # 241 tasks: a last one alone.
    assert run(Tasks.of(241, compute=5.0), Cluster(machines=4, slots=6)).seconds == pytest.approx(240 * 5 / 24 + 5)


def test_uneven_tasks_take_work_over_workers_to_within_one_task():
    work = np.random.default_rng(0).exponential(3.0, 500)
    found = run(Tasks.of(500, compute=work), Cluster(machines=5, slots=2)).seconds
    assert work.sum() / 10 <= found <= work.sum() / 10 + work.max()


def test_the_slowest_of_compute_reading_and_writing_decides_and_requests_are_waited_for():
    machines = Cluster(machines=2, slots=4, inward=400.0, outward=200.0, request=0.5)
    tasks = Tasks.of(3, compute=[7.0, 1.0, 1.0], read=[100.0, 900.0, 100.0], written=[50.0, 50.0, 400.0], requests=2.0)
    assert machines.seconds(tasks).tolist() == [8.0, 10.0, 9.0]
    # The store serves all slots of all machines: 8 of them get 10 bytes/s each.
    narrow = dataclasses.replace(machines, store=80.0)
    assert narrow.seconds(tasks).tolist() == [11.0, 91.0, 41.0]


@pytest.mark.parametrize("p", [0.05, 0.3, 0.6])
def test_a_task_that_fails_with_probability_p_is_executed_one_over_one_minus_p_times(p):
    n = 20_000
    found = run(Tasks.of(n, compute=1.0), Cluster(failure=p, retries=10**6))
    spread = np.sqrt(p) / (1 - p) / np.sqrt(n)
    assert found.executions / n == pytest.approx(1 / (1 - p), abs=4 * spread)
    # A failure comes at any point of the execution, on average after half of it.
    assert found.wasted == pytest.approx((found.executions - n) / 2, rel=0.05)
    assert found.done.tolist() == [1] * n
    assert found.given_up == 0


def test_a_task_that_fails_too_often_is_given_up_and_counted():
    n, p, retries = 20_000, 0.4, 3
    found = run(Tasks.of(n, compute=1.0), Cluster(failure=p, retries=retries))
    assert found.given_up == pytest.approx(n * p**retries, abs=4 * np.sqrt(n * p**retries))
    assert found.done.sum() == n - found.given_up


@pytest.mark.parametrize("sigma", ["machine_sigma", "task_sigma"])
def test_the_more_speeds_differ_the_later_the_last_task_ends(sigma):
    tasks = Tasks.of(96, compute=1.0)
    means = [seconds(Cluster(4, 8, **{sigma: value}), tasks).mean() for value in (0.0, 0.3, 0.6, 1.0)]
    assert means == sorted(means)
    assert means[-1] > 1.5 * means[0]


def test_differing_speeds_leave_the_work_as_it_was():
    found = [run(Tasks.of(5000, compute=1.0), Cluster(4, 8, task_sigma=0.8), [seed]).busy for seed in range(5)]
    assert np.mean(found) == pytest.approx(5000, rel=0.03)


def test_second_executions_lose_nothing_and_shorten_the_tail():
    tasks = Tasks.of(200, compute=1.0)
    once = Cluster(4, 8, task_sigma=1.2, machine_sigma=0.3)
    twice = dataclasses.replace(once, speculate=True)
    assert seconds(twice, tasks).mean() < 0.8 * seconds(once, tasks).mean()
    for seed in range(20):
        rough = dataclasses.replace(twice, failure=0.2, between_losses=5.0, replacement=1.0)
        found = run(tasks, rough, [seed])
        assert found.done.tolist() == [1] * 200
        assert found.executions > 200
        assert found.losses > 0


def test_a_task_runs_at_most_twice_at_a_time():
    eager = Cluster(machines=1, slots=4, failure=0.6, retries=10**6, speculate=True, late=0.0)
    for seed in range(20):
        found = run(Tasks.of(1, compute=1.0), eager, [seed])
        assert found.busy <= 2 * found.seconds + 1e-9
        # Only when both have failed do two more begin.
        assert found.executions % 2 == 0


def test_work_of_a_lost_machine_is_done_again():
    tasks = Tasks.of(400, compute=1.0, read=10.0)
    sound, rough = Cluster(4, 2), Cluster(4, 2, between_losses=10.0, replacement=5.0)
    found = run(tasks, rough)
    assert found.done.tolist() == [1] * 400
    assert found.losses > 5
    assert found.executions > 400
    assert found.wasted == pytest.approx(found.again / 10)
    assert found.busy == pytest.approx(400 + found.wasted)
    # A machine works 10 of 15 seconds, and then without the half second each of its slots loses.
    assert seconds(rough, tasks).mean() == pytest.approx(run(tasks, sound).seconds * 1.5, rel=0.15)


def test_the_same_seed_gives_the_same_outcome_and_another_one_another():
    rough = ASSUMED.cluster()
    tasks = Tasks.of(5000, compute=600.0)
    first, second, other = (run(tasks, rough, [seed]) for seed in (1, 1, 2))
    assert dataclasses.replace(first, done=()) == dataclasses.replace(second, done=())
    assert first.seconds != other.seconds


# The jobs


def named(stages, name):
    (found,) = (stage.tasks for stage in stages if stage.name == name)
    return found


def test_what_is_shuffled_arrives():
    whole = dataclasses.replace(ASSUMED, split=0)
    stages = scale_jobs.lint(whole, RATES)
    written, read = named(stages, "assign").written.sum(), named(stages, "compare").read.sum()
    assert read == pytest.approx(written, rel=1e-9)
    rows = whole.images * (1 - whole.exact)
    assert written == pytest.approx(rows * (1 + whole.copies) * (512 * 2 + 8), rel=1e-9)
    # Split cells are read again by each of their tasks, never less.
    assert named(scale_jobs.lint(ASSUMED, RATES), "compare").read.sum() > written


def test_what_an_audit_shuffles_arrives():
    stages = scale_jobs.audit(ASSUMED, RATES)
    for before, after in (("search", "best of all cells"),):
        assert named(stages, after).read.sum() == pytest.approx(named(stages, before).written.sum(), rel=1e-9)
    route, vectors = named(stages, "route"), named(stages, "search").read.sum()
    assert vectors > route.written.sum()
    exact = scale_jobs.audit(ASSUMED, RATES, exact=True)
    assert named(exact, "best of all cells").read.sum() == pytest.approx(named(exact, "search").written.sum(), rel=1e-9)


@pytest.mark.parametrize("images", [1e6, 2.3e9])
def test_the_work_of_the_stages_is_that_of_the_sums(images):
    a = dataclasses.replace(ASSUMED, images=images, hot=ASSUMED.hot * images / ASSUMED.images)
    stages = scale_jobs.lint(a, RATES)
    assert named(stages, "describe").compute.sum() == pytest.approx(images * RATES.describe)
    assert named(stages, "describe").read.sum() == pytest.approx(images * a.image_bytes)
    plan = scale_jobs.Plan(a, RATES)
    assert named(stages, "assign").compute.sum() == pytest.approx(1024 * plan.rows * plan.cells / RATES.search_flops)
    own, other = plan.sizes(0)
    assert named(stages, "compare").compute.sum() == pytest.approx(
        1024 * (own**2 / 2 + own * other).sum() / RATES.pairs_flops
    )
    assert (own.sum(), other.sum()) == pytest.approx((plan.rows, a.copies * plan.rows))
    exact = named(scale_jobs.audit(a, RATES, exact=True), "search")
    assert exact.compute.sum() == pytest.approx(1024 * a.generations * plan.rows / RATES.search_flops)


def test_a_hot_cell_dominates_unless_it_is_split():
    a = dataclasses.replace(ASSUMED, hot=1e7, collapse=0)
    found = {}
    for split in (0, 1):
        tasks = named(scale_jobs.lint(dataclasses.replace(a, split=split), RATES), "compare")
        found[split] = run(tasks, a.cluster().smooth()).seconds, tasks.compute.max(), tasks.compute.sum()
    (whole, longest, work), (parted, longest_part, same) = found[0], found[1]
    assert work == pytest.approx(same)
    assert longest > 1e14 / 2 * 1024 / RATES.pairs_flops
    assert whole > longest > 20 * work / (a.machines * a.cores)
    assert longest_part < 0.01 * longest
    assert parted < 0.02 * whole


def test_equal_files_made_one_row_first_shrink_the_hot_cell():
    for collapse, rows in ((0, 1e6), (1, 1e5)):
        assert scale_jobs.Plan(dataclasses.replace(ASSUMED, collapse=collapse), RATES).hot == pytest.approx(rows)


def test_the_number_of_cells_is_where_assigning_and_comparing_are_equally_dear():
    plan = scale_jobs.Plan(ASSUMED, RATES)
    assert plan.rows * plan.cells == pytest.approx(plan.rows**2 / plan.cells * (0.5 + ASSUMED.copies), rel=1e-3)


def test_merging_ends_in_one_file():
    plan = scale_jobs.Plan(ASSUMED, RATES)
    sizes = [len(stage.tasks) for stage in scale_jobs.merged(plan, 100_000)]
    assert sizes == [1563, 25, 1]
    assert [len(stage.tasks) for stage in scale_jobs.merged(plan, 64**3 + 1)] == [4097, 65, 2, 1]
    assert [len(stage.tasks) for stage in scale_jobs.merged(plan, 1)] == [1]


def test_a_limit_is_where_more_is_asked_than_there_is():
    limit = scale_limits.Limit("", "", "", 5e8, "", lambda n: n * n / 2)
    assert limit.breaks_at() == pytest.approx(np.sqrt(1e9), rel=0.01)
    assert scale_limits.Limit("", "", "", 1.0, "", lambda n: 0.0).breaks_at() == np.inf
    found = {each.what: each.breaks_at() for each in scale_limits.limits(ASSUMED, RATES)}
    patience = ASSUMED.patience * 3600 * ASSUMED.cores
    compared = found["each row in the cells nearest to it"]
    assert compared**1.5 * 8 * 2 * RATES.dim == pytest.approx(patience * RATES.pairs_flops, rel=0.02)


def test_the_bottleneck_is_what_alone_would_take_longest():
    machines = Cluster(machines=2, slots=2, inward=100.0, outward=100.0, request=1.0)
    for name, tasks in {
        "compute": Tasks.of(40, compute=9.0, read=10.0),
        "reading": Tasks.of(40, compute=1.0, read=1000.0),
        "writing": Tasks.of(40, compute=1.0, written=1000.0),
        "requests": Tasks.of(40, compute=1.0, requests=5.0),
        "one task": Tasks.of(2, compute=9.0),
    }.items():
        assert scale.bottleneck(scale_jobs.Stage("s", tasks), machines) == name


def test_every_assumption_is_an_argument_with_a_source():
    assumed, seed, runs = scale.arguments(["--machines", "7", "--task-sigma", "0.8", "--speculate", "0", "--seed", "3"])
    assert (assumed.machines, assumed.task_sigma, assumed.speculate, seed, runs) == (7, 0.8, 0, 3, 3)
    assert scale.arguments([])[0] == ASSUMED
    assert all(len(field.metadata["said"]) >= 15 for field in dataclasses.fields(ASSUMED))


def test_a_small_job_is_summed_up(monkeypatch):
    a = dataclasses.replace(ASSUMED, images=1e6, hot=400.0, generations=1e4)
    found = scale.job(scale_jobs.lint(a, RATES), a, seed=0, runs=2)
    stages, total = found["stages"], found["total"]
    assert total["hours"] == pytest.approx(sum(each["hours"] for each in stages.values()), rel=1e-2)
    assert total["core_hours"] == pytest.approx(1e6 * RATES.describe / 3600, rel=0.01)
    assert total["dollars"]["machines"] == pytest.approx(total["hours"] * 25 * 64 * 0.04, rel=1e-2)
    for each in stages.values():
        assert each["hours"] == pytest.approx(
            each["ideal_hours"] + each["straggler_hours"] + each["failure_hours"], rel=1e-2, abs=1e-6
        )
    again = scale.job(scale_jobs.lint(a, RATES), a, seed=0, runs=2)
    assert again == found


def test_modules_are_those_of_the_benchmarks():
    assert Path(cluster.__file__).parent == Path(BENCHMARKS)
