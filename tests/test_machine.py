"""What a run may take of the machine, and what it gives back."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import numpy as np
import pytest

from copyscope import machine
from copyscope.errors import InputError


@pytest.mark.parametrize(
    ("said", "size"), [("4GB", 2**32), ("1.5g", 3 * 2**29), ("512 MiB", 2**29), ("100kb", 102400), ("123456", 123456)]
)
def test_memory_is_what_was_said(said, size, monkeypatch):
    monkeypatch.setenv("COPYSCOPE_MEMORY", said)
    assert machine.memory() == size


@pytest.mark.parametrize("said", ["much", "0", "-4GB", "4 XB"])
def test_what_is_no_amount_of_memory_is_told(said, monkeypatch):
    monkeypatch.setenv("COPYSCOPE_MEMORY", said)
    with pytest.raises(InputError, match="no amount of memory"):
        machine.memory()


@pytest.mark.skipif(not os.path.exists("/proc/self/status"), reason="the system does not tell")
def test_room_is_what_is_not_held_yet(monkeypatch):
    monkeypatch.setenv("COPYSCOPE_MEMORY", "64GB")
    before = machine.memory_budget()
    assert 0 < machine.memory() - before < 2**34
    held = np.ones(2**28, np.uint8)
    assert before - machine.memory_budget() == pytest.approx(2**28, rel=0.2)
    del held
    assert before - machine.memory_budget(2**30) == pytest.approx(2**30, rel=0.1)
    monkeypatch.setenv("COPYSCOPE_MEMORY", "1KB")
    assert machine.memory_budget() == machine.LEAST


@pytest.mark.skipif(sys.platform != "linux", reason="asks the C library of Linux")
def test_room_counts_nothing_that_is_only_kept_for_later(monkeypatch):
    monkeypatch.setenv("COPYSCOPE_MEMORY", "64GB")
    before = machine.memory_budget()
    many = [bytes(3000) for _ in range(100_000)]
    pinned = many[-1]  # what lies before it stays with the process unless it is asked for
    del many
    assert before - machine.memory_budget() < 100 * 2**20
    assert len(pinned) == 3000


@pytest.mark.parametrize(
    ("line", "file", "limit"),
    [
        ("9:memory:/some/group", "memory/some/group/memory.limit_in_bytes", 3 * 2**20),
        ("0::/a.slice", "a.slice/memory.max", 5 * 2**20),
        ("0::/not/seen/from/here", "memory.max", 7 * 2**20),
    ],
)
def test_unless_said_it_is_half_of_what_the_control_group_has(tmp_path, monkeypatch, line, file, limit):
    groups = tmp_path / "groups"
    (groups / file).parent.mkdir(parents=True)
    (groups / file).write_text(f"{limit}\n")
    (tmp_path / "cgroup").write_text(f"8:pids:/\n{line}\n")
    monkeypatch.delenv("COPYSCOPE_MEMORY", raising=False)
    monkeypatch.setattr(machine, "GROUPS", groups)
    monkeypatch.setattr(machine, "OWN_GROUPS", tmp_path / "cgroup")
    machine._has.cache_clear()
    assert machine.memory() == limit // 2
    (groups / file).write_text("max\n")
    machine._has.cache_clear()
    assert machine.memory() > 2**30
    machine._has.cache_clear()


def resident():
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * 4096


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="tells the resident memory by /proc")
def test_a_mapped_file_that_is_let_go_is_not_resident_and_still_there(tmp_path):
    size = 64 * 2**20
    np.save(tmp_path / "a.npy", np.arange(size // 8))
    array = np.load(tmp_path / "a.npy", mmap_mode="r")
    for part in (array, array[100:], array.view(np.ndarray)):
        assert part.sum() > 0
        before = resident()
        machine.drop_pages(part)
        assert before - resident() > size // 2
    assert array[12345] == 12345
    written = np.memmap(tmp_path / "b", np.int64, "w+", shape=(1000,))
    written[:] = 7
    machine.drop_pages(written)
    assert (written == 7).all()


def test_changes_that_are_in_no_file_are_kept(tmp_path):
    np.save(tmp_path / "a.npy", np.zeros(100_000))
    own = np.load(tmp_path / "a.npy", mmap_mode="c")
    own[:] = 1
    for array in (own, own[5:], plain := np.ones(100_000), plain[3:]):
        machine.drop_pages(array)
        assert (array == 1).all()
