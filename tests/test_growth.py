"""What benchmarks/growth.py and peers.py work out, and what the page makes of it."""

from __future__ import annotations

import importlib.util
import json
import sys
from pathlib import Path

import numpy as np
import pytest

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "benchmarks"))
try:
    import growth
    import measured
    import peers
finally:
    sys.path.remove(str(ROOT / "benchmarks"))


def page():
    spec = importlib.util.spec_from_file_location("growth_page", ROOT / "docs" / "growth_page.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_slope_of_a_power_is_its_exponent():
    sizes = [10_000, 30_000, 100_000]
    assert page().slope(sizes, [3e-6 * n**1.5 for n in sizes]) == pytest.approx(1.5)
    assert page().slope(sizes, [7.0] * 3) == pytest.approx(0)
    assert page().slope(sizes[:1], [1.0]) is None


def test_the_slope_is_of_large_sizes_where_there_are_enough():
    sizes = [1_000, 10_000, 100_000, 300_000, 1_000_000]
    seconds = [5.0, 5.0, *(1e-5 * n for n in sizes[2:])]
    assert page().slope(sizes, seconds) == pytest.approx(1)
    # Two of them tell no more than a straight line through both.
    assert page().slope(sizes[:4], seconds[:4]) < 0.9


def test_a_machine_that_others_used_is_called_disturbed():
    quiet = {"whole_seconds": 10.0, "others_cpu_seconds": 0.4}
    assert page().machine({"cores": 2}, [quiet, {}]) == [
        "Other processes took 2 % of the machine's processor time meanwhile."
    ]
    assert "not to be compared" in page().machine({"cores": 2}, [quiet | {"others_cpu_seconds": 9.0}])[0]
    assert "not known" in page().machine({"cores": 2}, [{}])[0]


@pytest.fixture
def processes(monkeypatch, tmp_path):
    """Runs of growth.py of which no process is started: what each was asked for."""
    asked = []

    def run(command, environment, allowed):
        part, n = command[2], int(command[3])
        asked.append((part, n, environment["COPYSCOPE_MEMORY"]))
        stages = growth.PARTS.get(part, ())
        if (part, n) in broken:
            stages = stages[:1]
        lines = "".join(json.dumps({stage: {"seconds": 1.0}}) + "\n" for stage in stages)
        return measured.Ran(-9 if (part, n) in broken else 0, lines, "", 1.0, 1.0, 1, 0.0)

    broken = set()
    monkeypatch.setattr(measured, "run", run)
    monkeypatch.setattr(growth, "RESULTS", tmp_path)
    monkeypatch.setattr("record.RESULTS", tmp_path)

    def call(*arguments):
        asked.clear()
        monkeypatch.setattr(sys, "argv", ["growth.py", *arguments])
        growth.main()
        return list(asked)

    return call, broken, tmp_path / "benchmark-growth.json"


def test_growth_goes_on_with_what_is_not_there_yet(processes):
    call, broken, path = processes
    broken.add(("ours", 30))
    one = ["--n", "10", "30", "--stages", "cells", "faiss", "--memory", "1GB"]
    first = call(*one)
    assert [each[:2] for each in first] == [("make", 10), ("ours", 10), ("faiss", 10),
                                            ("make", 30), ("ours", 30), ("faiss", 30)]  # fmt: skip
    assert {each[2] for each in first} == {"1GB"}
    assert "groups" not in json.loads(path.read_text())["sizes"]["30"]
    broken.clear()
    assert [each[:2] for each in call(*one)] == [("make", 30), ("ours", 30)]
    assert call(*one) == []
    # Less memory is another measurement, of ours alone.
    assert [each[:2] for each in call(*one[:3], "--memory", "2GB", "--stages", "groups", "faiss")] == [
        ("make", 10), ("ours", 10), ("make", 30), ("ours", 30)]  # fmt: skip


def test_growth_leaves_out_what_is_too_large(processes):
    call, *_ = processes
    asked = call("--n", "10", "50", "--most-all-pairs", "20", "--stages", "all_pairs", "exact")
    assert [each[:2] for each in asked] == [("make", 10), ("exact", 10), ("all_pairs", 10), ("make", 50), ("exact", 50)]


TRUTH = {
    "twins": np.array([[0, 3], [4, 1]]),
    "kind": np.array([0, 1]),
    # 0 and 3, 1 and 4 are twins; 2 and 5 are of one family, nobody knows more.
    "family": np.array([0, 1, 2, 0, 1, 2]),
}


def test_groups_are_judged_by_all_their_pairs():
    found = peers.judged(np.array([7, 8, 9, 7, 9, 9]), 6, TRUTH)
    # 2, 4 and 5 in one group: three pairs, of which one is of a family.
    assert (found["found"]["value"], found["pairs"], found["false_pairs"]) == (0.5, 4, 2)
    assert [found["found_by_kind"][kind]["value"] for kind in peers.KINDS[:2]] == [1, 0]
    assert "told" not in found


def test_pairs_are_judged_as_told_and_as_groups():
    found = peers.judged(np.array([[0, 3], [0, 3], [2, 5], [2, 4]]), 6, TRUTH)
    assert (found["told"]["found"]["value"], found["told"]["pairs"], found["told"]["false_pairs"]) == (0.5, 3, 1)
    # 4 and 5 are in one group by way of 2.
    assert (found["found"]["value"], found["pairs"], found["false_pairs"]) == (0.5, 4, 2)


def test_no_pairs_are_none():
    found = peers.judged(np.zeros((0, 2), np.int64), 6, TRUTH)
    assert (found["found"]["value"], found["pairs"], found["false_pairs"]) == (0, 0, 0)


def test_a_process_is_measured_and_stopped(tmp_path):
    code = "import sys; block = bytearray(b'x') * 100_000_000; print(len(block)); import time; time.sleep(0.5)"
    ran = measured.run([sys.executable, "-c", code], {}, 60)
    assert (ran.code, ran.text) == (0, "100000000\n")
    assert 95 < ran.peak_mb < 150
    stopped = measured.run([sys.executable, "-c", "import time; time.sleep(60)"], {}, 0.3)
    assert stopped.code is None
    assert stopped.seconds < 10


def test_memory_within_a_process_is_that_of_the_block():
    import time

    def call():
        block = bytearray(b"x") * 80_000_000
        time.sleep(0.2)
        return len(block)

    size, took = measured.timed(call)
    assert size == 80_000_000
    assert 70 < took["peak_mb"] - took["start_mb"] < 120
