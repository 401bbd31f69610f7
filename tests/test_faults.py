"""Faults of the machine: what is not on the disk gets no name that says it is, and a system that refuses is quoted in
two lines. benchmarks/faults.py tries many more; a short run of it is at the end."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from copyscope import Corpus, audit, embed, files, machine
from copyscope.cli import main
from copyscope.data import storage
from copyscope.detection.embedding.embed import without_unreadable
from copyscope.detection.matching.ncc import Verify
from copyscope.detection.search import ivf, ivf_files
from copyscope.diffusion.thresholds import Threshold, Thresholds
from copyscope.errors import ImageError, InputError
from copyscope.files import write_table
from copyscope.imaging import images
from tests.pictures import fill, picture, write

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


# What killed processes leave

WRITES = {
    "data set": "from copyscope import Corpus; from copyscope.curation import export;"
    "export.write(Corpus.open('in'), 'out')",
    "prepared images": "import pathlib; from copyscope.experiment import prepare;"
    "prepare.prepare({'train': 'in'}, pathlib.Path('out'))",
    "table": "import pathlib, pyarrow as pa; from copyscope import files;"
    "files.write_file(pathlib.Path('out'), lambda path: files.write_parquet(pa.table({'a': [1]}), path))",
    "cache": "import copyscope; copyscope.embed('in', 'phash', cache='cache')",
}


STOP = "import os\ndef stop(*_):\n    print(flush=True)\n    input()\nos.replace = stop\n"


def begun(code, folder):
    """A process that runs code in a folder."""
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    return subprocess.Popen(
        [sys.executable, "-c", code], cwd=folder, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )


@pytest.mark.skipif(sys.platform == "win32", reason="nothing is swept there")
@pytest.mark.parametrize("name", WRITES)
def test_what_a_killed_process_left_is_swept_and_what_a_living_one_has_is_not(tmp_path, name):
    def hidden():
        return {path.name for path in tmp_path.rglob(".*.tmp")}

    def write():
        with begun(WRITES[name], tmp_path) as process:
            assert process.wait() == 0

    fill(tmp_path / "in", "a.png", "b.png", "c.png")
    with begun(STOP + WRITES[name], tmp_path) as process:
        assert process.stdout.readline() == b"\n"
        left = hidden()
        assert len(left) == 1
        write()
        assert hidden() == left, "it lives"
        process.kill()
    if (tmp_path / "out").is_dir():
        shutil.rmtree(tmp_path / "out")
    assert hidden() == left
    strange = {".out.0123456789abcdef.tmp", ".out.00000000-0123456789abcdef.tmp"}
    for each in strange:  # a person's, and of another machine
        (tmp_path / each).write_text("")
    write()
    assert hidden() == strange


def test_what_is_taken_away_before_it_is_held_is_made_again(tmp_path, monkeypatch):
    lock, taken = files._lock, []

    def late(file, *, alone):
        if not taken:
            taken.extend(tmp_path.iterdir())
            taken[0].unlink()
        lock(file, alone=alone)

    monkeypatch.setattr(files, "_lock", late)
    with files.temporary_path(tmp_path / "a") as temporary:
        assert temporary.exists()
        assert temporary not in taken
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("name", ["a" * 250, "ä" * 120, "a[b]*", "a\nb"])
def test_any_name_that_a_file_may_have_can_be_replaced(tmp_path, name):
    (tmp_path / name).write_text("old")
    files.write_file(tmp_path / name, lambda path: path.write_text("new"))
    assert [path.name for path in tmp_path.iterdir()] == [name]
    assert (tmp_path / name).read_text() == "new"


def test_a_run_that_was_killed_before_its_recipe_had_a_name_can_begin_again(tmp_path):
    (tmp_path / "run").mkdir()
    assert files.is_bare(tmp_path / "run")
    (tmp_path / "run" / ".recipe.json.part").write_text("{")
    (tmp_path / "run" / ".recipe.json.0123456789abcdef.tmp").write_text("{")
    assert files.is_bare(tmp_path / "run")
    (tmp_path / "run" / "a.png").write_text("")
    assert not files.is_bare(tmp_path / "run")


AUDIT = """
from copyscope import Corpus, audit
sets = [Corpus.open(name).take(range(n)) for name, n in (("generated", 12), ("train", 16), ("held-out", 20))]
print(flush=True)
audit(*sets, protocol="phash", sensitivity=0, parts="off", cache="cache").save({out!r})
"""


@pytest.mark.parametrize("seed", range(2))
def test_two_audits_on_one_cache_at_once_one_of_them_killed_say_what_one_says(tmp_path, world, seed):
    for folder in (world.generated, world.train, world.held_out):
        os.symlink(folder, tmp_path / folder.name)
    rng = np.random.default_rng(seed)
    with contextlib.ExitStack() as stack:
        one, other, dead = (
            stack.enter_context(begun(AUDIT.format(out=out), tmp_path)) for out in ("a", "b", "dead")
        )  # fmt: skip
        dead.stdout.readline()
        time.sleep(rng.uniform(0.1, 2))
        dead.kill()
        assert [one.wait(), other.wait()] == [0, 0]
    shutil.rmtree(tmp_path / "cache")
    with begun(AUDIT.format(out="alone"), tmp_path) as alone:
        assert alone.wait() == 0
    tables = [path.name for path in (tmp_path / "alone").glob("*.parquet")]
    assert len(tables) > 5
    for name in tables:
        wanted = (tmp_path / "alone" / name).read_bytes()
        assert (tmp_path / "a" / name).read_bytes() == wanted, name
        assert (tmp_path / "b" / name).read_bytes() == wanted, name


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
    given = vectors()
    given[58:] = given[:6]  # a lost key shows where the same vector is there twice
    wanted = ivf.IVF.build(given, 4, folder=tmp_path / "a")
    assert (wanted.first != np.arange(len(given))).sum() == 6

    def die(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(ivf_files, "_scatter", die)
    with pytest.raises(KeyboardInterrupt):
        ivf.IVF.build(given, 4, folder=tmp_path / "b")
    monkeypatch.undo()
    monkeypatch.setattr(ivf_files, "BLOCK", 16)
    with (tmp_path / "b" / name).open("r+b") as file:
        size = file.seek(0, 2)
        file.seek(size * 7 // 8)
        file.write(bytes(size // 8))  # half of the last block has its length, and none of its bytes
    found = ivf.IVF.build(given, 4, folder=tmp_path / "b")
    for name in ("near", "rows", "halves", "first"):
        np.testing.assert_array_equal(getattr(found, name), getattr(wanted, name))


def test_each_block_of_cells_is_on_the_disk_before_the_next_is_begun(tmp_path, small_blocks, monkeypatch):
    fsync, on_disk, seen = os.fsync, {}, []

    def remember(file):
        fsync(file)
        on_disk[os.fstat(file).st_ino] = os.fstat(file).st_size

    def look(label, done, total):
        if done <= total // 2:
            found = [(tmp_path / "a" / name).stat() for name in ("near.part", "keys.part")]
            seen.append([on_disk.get(each.st_ino) == each.st_size > 0 for each in found])

    monkeypatch.setattr(os, "fsync", remember)
    ivf.IVF.build(vectors(), 4, folder=tmp_path / "a", progress=look)
    assert seen == [[True, True]] * 4


@pytest.mark.parametrize("how", ["empty", "half", "zeros"])
def test_cells_and_components_that_are_not_whole_are_made_again(tmp_path, small_blocks, how):
    from copyscope.detection.dedup.ivf_components import ivf_components

    whole = ivf.IVF.build(vectors(), 4, folder=tmp_path / "a")
    label, closest = ivf_components(whole, 0.5, k=2, floor=0.1)
    wanted = {path.name: path.read_bytes() for path in (tmp_path / "a").glob("*.np[yz]")}
    assert len(wanted) == 7
    for name, data in wanted.items():
        (tmp_path / "a" / name).write_bytes(
            {"empty": b"", "half": data[: len(data) // 2], "zeros": bytes(len(data))}[how]
        )
        found = ivf.IVF.build(vectors(), 4, folder=tmp_path / "a")
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
    ivf.IVF.build(vectors(), 4, folder=tmp_path / "a")
    assert (tmp_path / "a" / ivf_files.DONE).is_file()
    assert missing == []


def test_cells_on_a_full_disk_are_an_error_and_do_not_end_the_process(tmp_path, small_blocks, monkeypatch):
    def full(*_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "posix_fallocate", full)
    with pytest.raises(InputError, match="No space left on device"):
        ivf.IVF.build(vectors(), 4, folder=tmp_path / "a")


# Locks, clocks, files that go away


@pytest.mark.parametrize("number", [errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOSYS])
def test_a_file_system_without_locks_is_said_in_two_lines(tmp_path, monkeypatch, number):
    def none(*_):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(fcntl, "flock", none)
    with pytest.raises(InputError) as found, machine.file_lock(tmp_path / "a" / ".lock"):
        pass
    assert os.strerror(number) in str(found.value)
    assert len(str(found.value).splitlines()) == 2


def test_a_clock_that_jumps_back_makes_no_run_of_less_than_no_time(tmp_path, monkeypatch):
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


@pytest.fixture
def failing(monkeypatch):
    """Files that can be read so many times and no more, by path: [times, faults so far]."""
    known, plain = {}, storage.Storage.read

    def read(self, path, *where):
        if path in known:
            known[path][0] -= 1
            if known[path][0] < 0:
                known[path][1] += 1
                raise ImageError("input/output error")
        return plain(self, path, *where)

    monkeypatch.setattr(storage.Storage, "read", read)
    return known


@pytest.mark.parametrize(("name", "most"), [("a picture", 1), ("blank.png", 2)])
def test_a_held_out_image_that_can_be_read_some_times_only_is_missing(tmp_path, world, failing, name, most):
    from copyscope import Index

    train = Corpus.open(world.train).take(range(6))
    shutil.copytree(world.held_out, tmp_path / "held")
    write(tmp_path / "held", {"blank.png": images.encode(np.full((64, 64, 3), 200, np.uint8), "png")})
    held = Corpus.open(tmp_path / "held")
    bad = held.ids.index(name) if name in held.ids else 3
    others = held.take([row for row in range(len(held)) if row != bad])
    wanted = Index.build(train, tmp_path / "without", "phash", held_out=others).summary()["calibration"]
    assert wanted["n_missing"] == 0
    for times in range(most + 1):
        failing[held.paths()[bad]] = state = [times, 0]
        cache, out = tmp_path / f"cache-{times}", tmp_path / str(times)
        found = Index.build(train, out, "phash", held_out=held, cache=cache).summary()["calibration"]
        assert (state[1] > 0) == (times < most), "the images are read so often"
        if state[1]:
            assert found == wanted | {"n_missing": 1}


@pytest.mark.parametrize("times", [0, 1])
def test_an_image_that_cannot_be_read_again_is_whole_in_an_audit_or_missing(tmp_path, world, failing, times):
    held = Corpus.open(world.held_out)
    failing[held.paths()[3]] = state = [times, 0]
    how = {"protocol": "phash", "sensitivity": 0, "cache": tmp_path / "cache"}
    found = audit(world.generated, world.train, held, **how).summary
    others = held.take([row for row in range(len(held)) if row != 3 or times])
    assert found["failures"] == {"generated": 0, "train": 0, "held-out": 1 - times}
    assert state[1] <= 1 - times, "what was read is not read again"
    state[0] = 10
    assert found["calibration"] == audit(world.generated, world.train, others, **how).summary["calibration"]


def test_an_image_that_was_exchanged_meanwhile_is_an_error(tmp_path):
    fill(tmp_path / "in", "a.png", "b.png")
    described = embed(tmp_path / "in", "phash", cache=tmp_path / "cache")
    (tmp_path / "in" / "a.png").write_bytes(picture(7))
    found = without_unreadable(described, Verify().work(), cache=tmp_path / "cache")
    assert found.corpus.table["error"].to_pylist() == ["another file than when it was first read", None]
    assert found.ids == ["b.png"]
    np.testing.assert_array_equal(found.vectors, described.vectors[1:])


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
