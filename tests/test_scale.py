"""The sums of benchmarks/scale.py against what can be worked out by hand."""

from __future__ import annotations

import dataclasses
import json
import sys
from pathlib import Path

import pytest

BENCHMARKS = str(Path(__file__).parents[1] / "benchmarks")
sys.path.insert(0, BENCHMARKS)
try:
    import scale
finally:
    sys.path.remove(BENCHMARKS)

ASSUMED, RATES = scale.Assumed(), scale.Rates.read()


@pytest.mark.parametrize("images", [1e6, 2.3e9])
def test_the_work_of_the_stages_is_that_of_the_sums(images):
    a = dataclasses.replace(ASSUMED, images=images, uneven=1.0)
    lint, exact = scale.lint(a, RATES), scale.audit(a, RATES, exact=True)
    assert lint["describe"].seconds == pytest.approx(images * RATES.describe)
    assert lint["describe"].read == images * a.image_bytes
    assert lint["assign"].written == lint["compare"].read == images * 3 * (512 * 2 + 8)
    assert exact["search"].seconds == pytest.approx(1024 * a.generations * images / RATES.search_flops)
    # All pairs at once would be one cell.
    products = lint["compare"].seconds * RATES.pairs_flops / 1024
    assert products == pytest.approx(images**2 * 2.5 / scale.cells(a))


def test_the_number_of_cells_is_where_assigning_and_comparing_are_equally_dear():
    n, cells = ASSUMED.images, scale.cells(ASSUMED)
    assert n * cells == pytest.approx(n**2 / cells * (0.5 + ASSUMED.copies))


def test_a_stage_takes_its_arithmetic_or_its_bytes_whichever_is_longer():
    a = dataclasses.replace(ASSUMED, machines=2, cores=4, network=100.0, store=150.0)
    computed = scale.Work(seconds=8 * 3600.0, read=100.0).summed(a)
    assert (computed["hours"], computed["bound_by"], computed["core_hours"]) == (1.0, "compute", 8.0)
    moved = scale.Work(seconds=1.0, read=150 * 7200.0, written=10.0).summed(a)
    assert (moved["hours"], moved["bound_by"]) == (2.0, "bytes")


def test_a_limit_is_where_more_is_asked_than_there_is():
    assert scale._largest(lambda n: n * n / 2, 5e8) == pytest.approx(1e9**0.5, rel=0.01)
    found = {(each["where"], each["what"]): each["breaks_at"] for each in scale.limits(ASSUMED, RATES)}
    assert found["one machine", "describing in a day"] * RATES.describe == pytest.approx(24 * 3600 * 64, rel=0.01)
    assert found["25 machines", "describing in a day"] == pytest.approx(
        25 * found["one machine", "describing in a day"], rel=0.02
    )


def test_every_assumption_is_an_argument_with_a_source():
    assert scale.arguments(["--machines", "7", "--image-bytes", "5"]) == dataclasses.replace(
        ASSUMED, machines=7, image_bytes=5
    )
    assert all(len(field.metadata["said"]) >= 15 for field in dataclasses.fields(ASSUMED))


def test_the_result_is_what_the_script_gives():
    found = json.loads((Path(BENCHMARKS).parent / "results" / "benchmark-scale.json").read_text())
    jobs = {"lint": scale.lint(ASSUMED, RATES), "audit": scale.audit(ASSUMED, RATES)}
    for job, stages in jobs.items():
        assert found["jobs"][job] == {name: work.summed(ASSUMED) for name, work in stages.items()}
    assert found["limits"] == scale.limits(ASSUMED, RATES)
