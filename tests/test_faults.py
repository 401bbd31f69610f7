"""Faults of the machine: what is not on the disk gets no name that says it is, and a system that refuses is quoted in
two lines. benchmarks/faults.py tries many more; a short run of it is at the end."""

from __future__ import annotations

import errno
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from copyscope import Corpus, embed, files, machine
from copyscope.cli import main
from copyscope.detection.search import ivf, ivf_files
from copyscope.diffusion.thresholds import Threshold, Thresholds
from copyscope.errors import InputError
from copyscope.files import write_table
from tests.pictures import fill

fcntl = pytest.importorskip("fcntl", reason="Windows has other locks and limits")
resource = pytest.importorskip("resource")

BENCHMARK = Path(__file__).parents[1] / "benchmarks" / "faults.py"


# The disk


@pytest.fixture
def small_disk():
    """A file cannot grow beyond 9,000 bytes, as if the disk were full."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (9000, before[1]))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, before)


@pytest.mark.parametrize("n", [8900, 9100, 100_000])
def test_an_array_that_the_disk_has_no_room_for_is_an_error(tmp_path, small_disk, n):
    with pytest.raises(OSError, match=f"Errno {errno.EFBIG}"):
        files.save_array(tmp_path / "a.npy", np.ones(n, np.uint8))


@pytest.mark.parametrize(
    "array", [np.arange(6.0).reshape(2, 3), np.arange(6.0).reshape(2, 3).T, np.zeros((0, 4), np.float16),
              np.array([(b"a", 1)], [("name", "S4"), ("n", "<u4")])],
)  # fmt: skip
def test_arrays_are_written_as_numpy_writes_them(tmp_path, array):
    files.save_array(tmp_path / "a.npy", array)
    found = np.load(tmp_path / "a.npy", allow_pickle=False)
    assert found.dtype == array.dtype
    np.testing.assert_array_equal(found, array)
    np.save(tmp_path / "b.npy", np.ascontiguousarray(array))
    assert (tmp_path / "a.npy").read_bytes() == (tmp_path / "b.npy").read_bytes()


@pytest.fixture
def synced(monkeypatch):
    """Paths that were on the disk when a name was given; the names, with whether all below them was."""
    on_disk, named = set(), {}
    fsync, replace = os.fsync, os.replace

    def remember(file):
        fsync(file)
        on_disk.add(os.fstat(file).st_ino)

    def rename(one, other):
        below = [Path(one)] if Path(one).is_file() else [each for each in Path(one).rglob("*") if each.is_file()]
        named[Path(other).name] = bool(below) and all(each.stat().st_ino in on_disk for each in below)
        replace(one, other)

    monkeypatch.setattr(os, "fsync", remember)
    monkeypatch.setattr(os, "replace", rename)
    return named


def test_a_file_is_on_the_disk_before_it_has_its_name(tmp_path, synced):
    files.write_file(tmp_path / "a.json", lambda path: path.write_text("{}"))
    Thresholds("m", "s", {"a": Threshold(0.1, 0.01, 200, 0)}).save(tmp_path / "t.json")
    assert synced == {"a.json": True, "t.json": True}
    assert sorted(os.listdir(tmp_path)) == ["a.json", "t.json"]


def test_a_data_set_is_on_the_disk_before_it_has_its_name(tmp_path, synced):
    from copyscope.curation.export import write

    fill(tmp_path / "in", "a.png", "b.png")
    write(Corpus.open(tmp_path / "in"), tmp_path / "out", layout="imagefolder")
    assert synced == {"out": True}


def test_prepared_images_are_on_the_disk_before_they_have_their_names(tmp_path, synced):
    from copyscope.experiment.prepare import prepare

    fill(tmp_path / "in", "a.png", "b.png")
    prepare({"train": str(tmp_path / "in")}, tmp_path / "out")
    assert synced == {"train": True, "data.json": True}


def test_a_checkpoint_is_on_the_disk_before_it_has_its_name(tmp_path, synced):
    torch = pytest.importorskip("torch")
    from copyscope.diffusion.training import checkpoints

    network = torch.nn.Linear(2, 2)
    checkpoints.write(tmp_path, 1, network, {}, torch.optim.AdamW(network.parameters()), keep=2)
    write_table(pa.table({"a": [1]}), tmp_path / "a.parquet")
    assert synced == {"state.json": True, "step-00000001": True, "a.parquet": True}


def test_an_index_is_on_the_disk_before_its_files_have_names(tmp_path, synced, world):
    from copyscope import Index

    train, held = Corpus.open(world.train), Corpus.open(world.held_out)
    Index.build(train.take(range(6)), tmp_path / "index", "phash", held_out=held.take(range(20)))
    ours = {name: whole for name, whole in synced.items() if (tmp_path / "index" / name).exists()}
    assert "index.json" in ours
    assert len(ours) > 5
    assert all(ours.values())


def test_a_folder_of_many_files_is_synced_at_once_and_each(tmp_path, monkeypatch):
    for name in range(5):
        (tmp_path / str(name)).write_text("a")
    called = []
    monkeypatch.setattr(files, "MANY_FILES", 4)
    monkeypatch.setattr(os, "sync", lambda: called.append("all"), raising=False)
    monkeypatch.setattr(os, "fsync", lambda file: called.append("one"))
    files.sync(tmp_path)
    assert called == ["all", *["one"] * 5]


def test_a_run_that_was_killed_before_its_recipe_had_a_name_can_begin_again(tmp_path):
    (tmp_path / "run").mkdir()
    assert files.is_bare(tmp_path / "run")
    (tmp_path / "run" / ".recipe.json.part").write_text("{")
    (tmp_path / "run" / ".recipe.json.0123456789abcdef.tmp").write_text("{")
    assert files.is_bare(tmp_path / "run")
    (tmp_path / "run" / "a.png").write_text("")
    assert not files.is_bare(tmp_path / "run")


# Cells


def vectors(n=64):
    rows = np.random.default_rng(0).standard_normal((n, 8)).astype(np.float32)
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


@pytest.fixture
def small_blocks(monkeypatch):
    pytest.importorskip("faiss")
    monkeypatch.setattr(ivf_files, "BLOCK", 16)


@pytest.mark.parametrize("name", ["near.part", "keys.part"])
def test_cells_that_a_power_cut_left_half_on_the_disk_are_made_again(tmp_path, small_blocks, monkeypatch, name):
    wanted = ivf.Cells.build(vectors(), 4, folder=tmp_path / "a")

    def die(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(ivf_files, "_scatter", die)
    with pytest.raises(KeyboardInterrupt):
        ivf.Cells.build(vectors(), 4, folder=tmp_path / "b")
    monkeypatch.undo()
    monkeypatch.setattr(ivf_files, "BLOCK", 16)
    with (tmp_path / "b" / name).open("r+b") as file:
        size = file.seek(0, 2)
        file.seek(size * 7 // 8)
        file.write(bytes(size // 8))  # half of the last block has its length, and none of its bytes
    found = ivf.Cells.build(vectors(), 4, folder=tmp_path / "b")
    for name in ("near", "rows", "halves", "first"):
        np.testing.assert_array_equal(getattr(found, name), getattr(wanted, name))


@pytest.mark.parametrize("how", ["empty", "half", "zeros"])
def test_cells_and_components_that_are_not_whole_are_made_again(tmp_path, small_blocks, how):
    from copyscope.detection.dedup.ivf_components import ivf_components

    whole = ivf.Cells.build(vectors(), 4, folder=tmp_path / "a")
    label, closest = ivf_components(whole, 0.5, k=2, floor=0.1)
    wanted = {path.name: path.read_bytes() for path in (tmp_path / "a").glob("*.np[yz]")}
    assert len(wanted) == 7
    for name, data in wanted.items():
        (tmp_path / "a" / name).write_bytes(
            {"empty": b"", "half": data[: len(data) // 2], "zeros": bytes(len(data))}[how]
        )
        found = ivf.Cells.build(vectors(), 4, folder=tmp_path / "a")
        again, near = ivf_components(found, 0.5, k=2, floor=0.1)
        for one, other in ((again, label), (near.index, closest.index), (near.score, closest.score)):
            np.testing.assert_array_equal(one, other)
        assert {path.name for path in (tmp_path / "a").glob("*.np[yz]")} == set(wanted)


def test_cells_are_on_the_disk_before_they_say_that_they_are_whole(tmp_path, small_blocks, monkeypatch):
    on_disk, fsync, replace = set(), os.fsync, os.replace

    def remember(file):
        fsync(file)
        on_disk.add(os.fstat(file).st_ino)

    def rename(one, other):
        if Path(other).name == ivf_files.DONE:
            missing.extend(
                each.name for each in tmp_path.glob("a/*.npy") if each.stat().st_ino not in on_disk
            )  # fmt: skip
        replace(one, other)

    missing = []
    monkeypatch.setattr(os, "fsync", remember)
    monkeypatch.setattr(os, "replace", rename)
    ivf.Cells.build(vectors(), 4, folder=tmp_path / "a")
    assert (tmp_path / "a" / ivf_files.DONE).is_file()
    assert missing == []


def test_cells_on_a_full_disk_are_an_error_and_do_not_end_the_process(tmp_path, small_blocks, monkeypatch):
    def full(*_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "posix_fallocate", full)
    with pytest.raises(InputError, match="No space left on device"):
        ivf.Cells.build(vectors(), 4, folder=tmp_path / "a")


# Locks, clocks, files that go away


@pytest.mark.parametrize("number", [errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOSYS])
def test_a_file_system_without_locks_is_said_in_two_lines(tmp_path, monkeypatch, number):
    def none(*_):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(fcntl, "flock", none)
    with pytest.raises(InputError) as found, machine.locked(tmp_path / "a" / ".lock"):
        pass
    assert os.strerror(number) in str(found.value)
    assert len(str(found.value).splitlines()) == 2


def test_a_clock_that_jumps_back_makes_no_run_of_less_than_no_time(tmp_path, monkeypatch):
    import time

    from copyscope.detection.lint import lint

    fill(tmp_path / "in", "a.png", "b.png", "c.png")
    now = iter(range(10**6, 0, -1000))
    monkeypatch.setattr(time, "time", lambda: float(next(now)))
    assert lint(tmp_path / "in", "phash").summary["seconds"] >= 0


def test_an_image_that_vanishes_after_it_was_listed_is_a_row(tmp_path):
    fill(tmp_path / "in", "a.png", "b.png")
    corpus = Corpus.open(tmp_path / "in")
    (tmp_path / "in" / "b.png").unlink()
    described = embed(corpus, "phash", cache=tmp_path / "cache")
    assert described.corpus.table["error"].to_pylist() == [None, "no such file"]


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EIO, errno.ESTALE])
def test_what_the_system_refuses_is_said_in_two_lines(monkeypatch, capsys, number):
    def refuse():
        raise OSError(number, os.strerror(number), "/somewhere/a\nb")

    monkeypatch.setattr(main, "app", refuse)
    monkeypatch.setattr(sys, "argv", ["copyscope", "lint"])
    with pytest.raises(SystemExit) as stop:
        main.main()
    assert stop.value.code == 2
    said = capsys.readouterr().err.splitlines()
    assert len(said) == 2
    assert said[0].startswith(f"copyscope: The system says: {os.strerror(number)}")


def test_a_refusal_of_a_library_is_cut_to_a_line():
    found = main.refusal(OSError("Error writing\nbytes to file"))
    assert found.splitlines()[0] == "The system says: Error writing bytes to file."
    assert len(found.splitlines()) == 2


# A short run of the benchmark


@pytest.mark.skipif(not sys.platform.startswith("linux") or not shutil.which("cc"), reason="needs Linux and a compiler")
def test_faults_at_some_calls_leave_the_next_run_as_it_would_be(tmp_path):
    pytest.importorskip("faiss")
    command = [sys.executable, str(BENCHMARK), "all", "--jobs", "duplicates", "--every", "60", "--n", "4"]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, cwd=tmp_path, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    counts = [json.loads(line) for line in done.stdout.splitlines()]
    assert {row["kind"] for row in counts} == {"kill", "full", "enospc", "eio", "read", "power", "clock", "locks"}
    assert sum(row["trials"] for row in counts) > 12
    assert any(row["failed"] for row in counts)
