"""Faults of the machine, one at a time: a kill, a full disk, a failing write or read, a power cut, locks that there are
none of, a clock that jumps. What does the run say, and does the next one give what a run without a fault gives?

    python benchmarks/faults.py kill --n 200 --out kills.jsonl
    python benchmarks/faults.py full --every 3 --out full.jsonl
    python benchmarks/faults.py all --every 50

A job is a command of the command line on a few small images; it runs in a process forked from one that has imported
everything. `faults.c`, loaded before libc, counts the calls that write (or read) below the folder of the trial and lets
one of them fail, or kills the process there; times of kills and calls are drawn by the seed. After it the same command
runs again, without a fault. A fault of ours is a run that ends with a traceback or without a word, and a second run
whose files differ from those of a run without a fault in anything but times. `--out` has a line a trial; a trial whose
line is there is not run again.

Power cut: the process ends at a call, and then each file that was written since its last fsync is emptied, filled with
zeros or cut to a half; and of the renames and removals some of the last are undone, as the journal of a file system
would lose them.
"""

from __future__ import annotations

import argparse
import collections
import ctypes
import dataclasses
import errno
import hashlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

HERE = Path(__file__).parent
OFF, COUNT, FAIL, FULL, KILL, TEAR, CLOCK = range(7)
SECONDS = 300
"""A run that takes longer hangs."""
TIMES = {"created", "seconds", "train_seconds", "images_per_second", "copyscope", "digest", "time", "seconds_per_image"}
TIMES |= {"run_sha256"}  # of a summary that holds seconds
NOISE = re.compile(r"\d{4}-\d\d-\d\d[T ]\d\d:\d\d(:\d\d)?(\+00:00|Z| UTC)?|\d+(\.\d+)? (s|seconds|min|ms)\b")
LEFT = re.compile(r"\.tmp$|\.part$|^\.lock$|\.lock$|tfevents|^\.")
HEX = re.compile(r"[0-9a-f]{16}(?=\.)")


@dataclasses.dataclass(frozen=True)
class Job:
    """A command. argv: with {data} and {work} for folders. start: the job whose result it begins with, or none. out:
    what is compared, below the folder of the trial."""

    argv: str
    start: str = ""
    out: str = "out"
    torch: bool = False


TRAINING = (
    "--set model=small_unet(size=16,components=4,channels=[32]) --set steps=8 --set batch_size=4"
    " --set checkpoint_every=2 --set tracker=none --set warmup_steps=0"
    " --set sample_every=4 --set sample_images=2 --set sample_steps=2"
)
JOBS = {
    "audit": Job(
        "audit {data}/generated {data}/train --held-out {data}/held-out -p phash --parts off --sensitivity 0"
        " -o {work}/out"
    ),
    "duplicates": Job("duplicates {data}/train -p phash -o {work}/out"),
    "index": Job("index build {data}/train --held-out {data}/held-out -p phash -o {work}/out"),
    "train": Job(f"train {{data}}/train -o {{work}}/out {TRAINING}", torch=True),
    "experiment": Job("experiment run {data}/grid.toml -o {work}/out", torch=True),
    "add": Job("index add {work}/out {data}/more", start="index"),
    "compact": Job("index compact {work}/out", start="index"),
    "match": Job("match {data}/generated --index {work}/out -o {work}/found", start="index", out="found"),
    "lint": Job("lint {data}/train -p phash -o {work}/out"),
    "embed": Job("embed {data}/train -p phash -o {work}/out"),
    "curate": Job("curate {data}/train -p phash --layout webdataset -o {work}/out"),
    "generate": Job(
        "generate {work}/out -o {work}/made --set n_images=6 --set steps=2 --set batch_size=2",
        start="train", out="made", torch=True,
    ),
}  # fmt: skip
KILLED = ("duplicates", "index", "train", "audit", "duplicates", "index", "train", "experiment")
"""In turn; what takes long comes half as often."""
GRID = """
name = "small"
[data]
train = "{data}/train"
held_out = "{data}/held-out"
size = 16
[train]
model = "small_unet(size=16, components=4, channels=[32])"
steps = 4
batch_size = 4
checkpoint_every = 2
tracker = "none"
warmup_steps = 0
[sample]
n_images = 6
steps = 2
[audit]
protocol = "phash"
[grid]
"train.conditioning" = ["fixed", "instance"]
"""


def inputs(folder: Path) -> None:
    """The images that all jobs have: a small world, and more training images to be added."""
    import worlds

    made = worlds.world(folder / "world", n_train=16, n_generated=8, n_held_out=20, seed=3)
    for name, path in (("train", made.train), ("generated", made.generated), ("held-out", made.held_out)):
        shutil.copytree(path, folder / name)
        for file in (folder / name).glob("*.png"):
            with Image.open(file) as picture:
                small = picture.resize((64, 64))
            small.save(file)
    other = worlds.world(folder / "other", n_train=24, n_generated=1, n_held_out=1, seed=4)
    (folder / "more").mkdir()
    for number, path in enumerate(sorted(other.train.glob("*.png"))[:8]):
        shutil.copy(path, folder / "more" / f"more-{number}.png")
    (folder / "grid.toml").write_text(GRID.format(data=folder))


def library(folder: Path) -> Path:
    """`faults.c`, compiled."""
    path = folder / "faults.so"
    subprocess.run(["cc", "-shared", "-fPIC", "-O1", "-o", path, HERE / "faults.c", "-ldl"], check=True)
    return path


@dataclasses.dataclass(frozen=True)
class Fault:
    """What happens at call `at`; see `faults_arm` in faults.c. after: seconds until a kill, in the place of a call."""

    mode: int = OFF
    at: int = -1
    error: int = 0
    locks: int = 0
    reads: bool = False
    jump: float = 0.0
    after: float = 0.0
    journal: str = ""


@dataclasses.dataclass(frozen=True)
class Ended:
    """How a run ended: its status (below 0: the signal), what it said on stderr, how many calls counted."""

    status: int
    said: str
    calls: int
    seconds: float

    @property
    def wrong(self) -> str:
        """Why this is no way to end; "" if it is one."""
        if "Traceback (most recent call last)" in self.said:
            return "a traceback"
        lines = self.said.strip().splitlines()
        start = max((place for place, line in enumerate(lines) if line.startswith("copyscope: ")), default=None)
        if self.status == 0:
            return ""
        if self.status == 3 or start is None or len(lines) - start > 2:
            return f"status {self.status} and not two lines"
        return ""


class Bench:
    """Jobs run in processes forked from this one, in folders below `root`."""

    def __init__(self, root: Path) -> None:
        self.root, self.data = root, root / "data"
        self.shim = ctypes.CDLL(None)
        self.shim.faults_arm.argtypes = [
            ctypes.c_int, ctypes.c_long, ctypes.c_int, ctypes.c_char_p, ctypes.c_char_p, ctypes.c_int, ctypes.c_int,
            ctypes.c_double,
        ]  # fmt: skip
        self.shim.faults_calls.restype = ctypes.c_long
        self.clean: dict[str, tuple[dict[str, str], Ended]] = {}

    def run(self, job: Job, work: Path, fault: Fault = Fault(), modules: bool = False) -> Ended:
        """Run a job in `work`, in a process of its own."""
        for name in ("cache", "tmp"):
            (work / name).mkdir(parents=True, exist_ok=True)
        notes = work.with_name(f"{work.name}.notes")
        notes.mkdir(exist_ok=True)
        began = time.monotonic()
        child = os.fork()
        if child == 0:
            self._child(job, work, notes, fault, modules)
        end = began + (fault.after or SECONDS)
        while True:
            found, status = os.waitpid(child, os.WNOHANG)
            if found:
                break
            if time.monotonic() > end:
                os.kill(child, signal.SIGKILL)
                _, status = os.waitpid(child, 0)
                break
            time.sleep(0.005)
        code = os.waitstatus_to_exitcode(status)
        hung = time.monotonic() - began > SECONDS
        said = "no end" if hung else (notes / "stderr").read_text(errors="replace")
        calls = int((notes / "calls").read_text() or 0) if (notes / "calls").exists() else 0
        return Ended(3 if hung else code, said, calls, time.monotonic() - began)

    def _child(self, job: Job, work: Path, notes: Path, fault: Fault, modules: bool) -> None:
        code = 3
        try:
            for number, name in ((1, "stdout"), (2, "stderr")):
                os.dup2(os.open(notes / name, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), number)
            os.environ.update(COPYSCOPE_CACHE=str(work / "cache"), TMPDIR=str(work / "tmp"))
            tempfile.tempdir = None
            # Spaces in a spec would be taken for the next word.
            sys.argv = ["copyscope", *(word.format(data=self.data, work=work) for word in job.argv.split())]
            from copyscope.cli import main as cli

            if fault.mode or fault.locks:
                where = self.data if fault.reads else work
                self.shim.faults_arm(
                    fault.mode or COUNT, fault.at, fault.error, str(where).encode(), fault.journal.encode(),
                    fault.locks, fault.reads, fault.jump,
                )  # fmt: skip
            try:
                cli.main()
                code = 0
            except SystemExit as stop:
                code = stop.code if isinstance(stop.code, int) else 0
            except BaseException:
                import traceback

                traceback.print_exc()
                code = 1
            calls = self.shim.faults_calls()
            self.shim.faults_arm(OFF, -1, 0, b"", b"", 0, 0, 0.0)
            (notes / "calls").write_text(str(calls))
            if modules:
                (notes / "modules").write_text("\n".join(sys.modules))
            sys.stdout.flush()
            sys.stderr.flush()
        finally:
            os._exit(code)

    def begin(self, name: str) -> None:
        """Run a job without a fault: what it gives, how many calls it makes; and import what it imported."""
        job = JOBS[name]
        if name in self.clean:
            return
        if job.start:
            self.begin(job.start)
        work = self.fresh(job)
        ended = self.run(job, work, Fault(COUNT), modules=True)
        assert ended.status == 0, (name, ended)
        for module in (work.with_name(f"{work.name}.notes") / "modules").read_text().splitlines():
            if module not in sys.modules and not module.startswith(("__", "_pytest")):
                try:
                    __import__(module)
                except Exception:  # a part of something that cannot be imported alone
                    continue
        state = contents(work / job.out)
        if (work / "out").is_dir():
            shutil.copytree(work / "out", self.root / f"clean-{name}")
        warm = self.run(job, self.fresh(job), Fault(COUNT))
        other = contents(work / job.out)
        assert state == other, (name, differ(state, other))
        self.clean[name] = state, warm
        print(f"{name}: {warm.calls} calls, {warm.seconds:.1f} s", file=sys.stderr, flush=True)

    def fresh(self, job: Job) -> Path:
        """A new folder for a run, with what the job begins with in it; the same for all, since results name it."""
        work = self.root / "trial"
        for path in (work, work.with_name(f"{work.name}.notes")):
            shutil.rmtree(path, ignore_errors=True)
        work.mkdir()
        if job.start:
            shutil.copytree(self.root / f"clean-{job.start}", work / "out")
        return work

    def trial(self, name: str, faults: list[Fault], power: np.random.Generator | None = None) -> dict[str, Any]:
        """Faults one after the other, each in a run of its own, then a run without; what was wrong, "" if nothing."""
        job, (wanted, _) = JOBS[name], self.clean[name]
        work = self.fresh(job)
        wrong, ended = "", []
        for fault in faults:
            if power is not None:
                fault = dataclasses.replace(fault, journal=str(self.root / "trial.notes" / "journal"))
            found = self.run(job, work, fault)
            ended.append(found.status)
            if found.status != -signal.SIGKILL:
                wrong = wrong or found.wrong
            if power is not None:
                cut_power(Path(fault.journal), work, power)
        if faults[0].reads and found.status == 0 and not job.start:
            # A row that could not be read is no reason to go on from it: what is compared is what the cache remembers.
            shutil.rmtree(work / job.out, ignore_errors=True)
        last = self.run(job, work)
        now = contents(work / job.out)
        if wrong:
            pass
        elif last.wrong:
            wrong = f"the next run: {last.wrong}"
        elif now != wanted:
            wrong = f"the next run (status {last.status}) differs in {', '.join(differ(wanted, now))[:300]}"
        said = "\n".join([found.said, last.said]) if wrong else found.said
        left = sorted(str(path.relative_to(work)) for path in work.rglob("*.tmp*"))[:5]
        return {"wrong": wrong, "ended": ended, "next": last.status, "said": said[-3000:], "left": left}


def contents(folder: Path) -> dict[str, str]:
    """A digest of each file without times; names that are drawn anew in every run are numbered."""
    found, names, orphans = {}, dict[str, str](), set[str]()
    if (folder / "index.json").is_file():
        text = (folder / "index.json").read_text(errors="replace")
        for name in HEX.findall(text):
            names.setdefault(name, f"name-{len(names)}")
        # A file that the manifest does not name is no part of an index; the next writer takes it away.
        orphans = {path.name for path in folder.iterdir() if HEX.match(path.name) and path.name not in text}
    for path in sorted(folder.rglob("*")):
        inner = path.relative_to(folder)
        if path.is_file() and path.name not in orphans and not any(LEFT.search(part) for part in inner.parts):
            name = HEX.sub(lambda hit: names.get(hit[0], hit[0]), str(inner))
            found[name] = digest(path, names)
    return found


def digest(path: Path, names: dict[str, str]) -> str:
    """Of what is in a file, without times."""
    data = path.read_bytes()
    try:
        if path.suffix in (".json", ".jsonl"):
            text = re.sub(r"[0-9a-f]{16}(?=[.\"])", lambda hit: names.get(hit[0], hit[0]), data.decode())
            lines = text.splitlines() if path.suffix == ".jsonl" else [text]
            data = "\n".join(json.dumps(timeless(json.loads(line)), sort_keys=True) for line in lines).encode()
        elif path.suffix == ".parquet":
            import pyarrow.parquet as pq

            table = pq.read_table(path)
            data = repr(
                table.drop_columns(
                    [each for each in table.column_names if each in TIMES or "second" in each]
                ).to_pydict()
            ).encode()
        elif path.suffix == ".html":
            data = NOISE.sub("", data.decode()).encode()
        elif path.name == "SHA256SUMS":
            data = b"\n".join(sorted(line.split()[-1] for line in data.splitlines()))
    except (ValueError, KeyError, OSError) as error:
        return f"cannot be read: {error}"
    return hashlib.sha256(data).hexdigest()


def timeless(value: Any) -> Any:
    """A JSON value without its times."""
    if isinstance(value, dict):
        return {key: timeless(each) for key, each in value.items() if key not in TIMES and key != "sha256"}
    if isinstance(value, list):
        return [timeless(each) for each in value]
    return value


def differ(one: dict[str, str], other: dict[str, str]) -> list[str]:
    """Names of the files that are not the same."""
    return sorted(name for name in one.keys() | other.keys() if one.get(name) != other.get(name))


def cut_power(journal: Path, work: Path, rng: np.random.Generator) -> None:
    """Make of the files what a power cut leaves of them; see the top."""
    entries = [line.split("\t") for line in journal.read_text().splitlines()]
    synced_upto: dict[str, int] = {}
    dirty: dict[str, bool] = {}
    changes: list[tuple[int, str, str, str, int]] = []
    for place, (what, one, other, kept) in enumerate(entries):
        if what == "dirty":
            dirty[one] = True
        elif what == "sync":
            dirty.pop(one, None)
            synced_upto[one] = place
        elif what == "rename":
            for path in list(dirty):
                if path == one or path.startswith(f"{one}/"):
                    dirty[other + path[len(one) :]] = dirty.pop(path)
            if one not in dirty and other in dirty and not any(path.startswith(f"{one}/") for path in dirty):
                dirty.pop(other, None)
            changes.append((place, what, one, other, int(kept)))
        elif what == "unlink":
            dirty.pop(one, None)
            changes.append((place, what, one, other, int(kept)))
    how = int(rng.integers(3))
    for path in dirty:
        # Numpy's temporary files and the like are gone, and deleted ones are of no interest.
        if not os.path.isfile(path) or os.path.islink(path):
            continue
        size = os.path.getsize(path)
        with open(path, "r+b") as file:
            if how == 0:
                file.truncate(0)
            elif how == 1:
                file.write(bytes(size))
            else:
                file.truncate(size // 2)
    # In the order of the journal of a file system: the last ones are lost together.
    undone = int(rng.integers(len(changes) + 1)) if rng.random() < 0.5 and changes else 0
    for place, what, one, other, kept in reversed(changes[len(changes) - undone :]):
        parent = os.path.dirname(other or one)
        if synced_upto.get(parent, -1) > place:
            break
        saved = f"{journal}.{kept}"
        if what == "rename" and os.path.exists(other) and os.path.isdir(os.path.dirname(one)):
            if not os.path.exists(one):
                os.rename(other, one)
            if kept and os.path.exists(saved) and not os.path.exists(other):
                os.link(saved, other)
        elif what == "unlink" and kept and os.path.exists(saved) and os.path.isdir(parent) and not os.path.exists(one):
            os.link(saved, one)


def some(calls: int, every: int, rng: np.random.Generator) -> list[int]:
    """One call of every so many, drawn; all of them where `every` is 1."""
    return [min(start + int(rng.integers(every)), calls - 1) for start in range(0, calls, every)]


Trial = tuple[str, str, list[Fault], bool]
"""A name that no other trial has, its job, its faults, and whether the power goes."""


def kills(bench: Bench, given: argparse.Namespace) -> Iterator[Trial]:
    """n moments: before a call, in the midst of a write, or after a time; in each trial one to three in a row."""
    rng = np.random.default_rng([given.seed, 1])
    left, number = given.n, 0
    while left > 0:
        name = given.jobs[number % len(given.jobs)]
        bench.begin(name)
        clean = bench.clean[name][1]
        faults = []
        for _ in range(min(left, int(rng.choice((1, 2, 3), p=(0.6, 0.25, 0.15))))):
            kind, at = rng.random(), int(rng.integers(max(clean.calls, 1)))
            after = float(rng.uniform(0.02, clean.seconds))
            faults.append(Fault(after=after) if kind < 1 / 3 else Fault(KILL if kind < 2 / 3 else TEAR, at))
        left -= len(faults)
        yield f"{number}", name, faults, False
        number += 1


def failures(kind: str, mode: int, error: int, reads: bool = False) -> Callable[..., Iterator[Trial]]:
    """Trials of one failing call each."""

    def trials(bench: Bench, given: argparse.Namespace) -> Iterator[Trial]:
        for place, name in enumerate(given.jobs):
            bench.begin(name)
            rng = np.random.default_rng([given.seed, 2, error, place])
            calls = bench.clean[name][1].calls
            if reads:
                calls = bench.run(JOBS[name], bench.fresh(JOBS[name]), Fault(COUNT, reads=True)).calls
            for at in some(calls, given.every, rng):
                yield f"{at}", name, [Fault(mode, at, error, reads=reads)], False

    return trials


def power_cuts(bench: Bench, given: argparse.Namespace) -> Iterator[Trial]:
    """A power cut at one call each, and one after the end."""
    for place, name in enumerate(given.jobs):
        bench.begin(name)
        rng = np.random.default_rng([given.seed, 3, place])
        calls = bench.clean[name][1].calls
        for at in [*some(calls, given.every, rng), calls]:
            yield f"{at}", name, [Fault(KILL, at)], True


def clocks(bench: Bench, given: argparse.Namespace) -> Iterator[Trial]:
    """The clock jumps at one call each: by a day, a year or to 1970, back or on."""
    for place, name in enumerate(given.jobs):
        bench.begin(name)
        rng = np.random.default_rng([given.seed, 4, place])
        for at in some(bench.clean[name][1].calls, given.every, rng):
            jump = float(rng.choice((-86400, 86400, -31536000, 31536000, -1.7e9)))
            yield f"{at}", name, [Fault(CLOCK, at, jump=jump)], False


def no_locks(bench: Bench, given: argparse.Namespace) -> Iterator[Trial]:
    """flock that fails, as on a mount without locks."""
    for name in given.jobs:
        bench.begin(name)
        for error in (errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOSYS):
            yield f"{error}", name, [Fault(locks=error)], False


KINDS: dict[str, Callable[..., Iterator[Trial]]] = {
    "kill": kills,
    "full": failures("full", FULL, errno.ENOSPC),
    "enospc": failures("enospc", FAIL, errno.ENOSPC),
    "eio": failures("eio", FAIL, errno.EIO),
    "read": failures("read", FAIL, errno.EIO, reads=True),
    "power": power_cuts,
    "clock": clocks,
    "locks": no_locks,
}


def main() -> None:
    """All trials of some kinds, one after the other; what came of them."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("kind", choices=[*KINDS, "all"])
    parser.add_argument("--n", type=int, default=200, help="Moments of kills.")
    parser.add_argument("--every", type=int, default=1, help="Try one call of so many.")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--jobs", default="", help=f"Some of {', '.join(JOBS)}, with commas between.")
    parser.add_argument("--out", type=Path, help="A line of JSON a trial; those that are there are not run again.")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="copyscope-faults-") as folder:
        root = Path(folder)
        if "faults.so" not in os.environ.get("LD_PRELOAD", ""):
            environment = os.environ | {"LD_PRELOAD": str(library(root)), "OMP_NUM_THREADS": "1"}
            environment |= {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
            sys.exit(subprocess.run([sys.executable, __file__, *sys.argv[1:]], env=environment, check=False).returncode)
        from copyscope.detection import audit
        from copyscope.detection.search import ivf

        ivf.EXACT_ROWS = 10  # so that a few images are searched by cells
        (audit.audit.__kwdefaults__ or {})["sensitivity"] = 0  # planted copies take ten times the rest of an audit
        bench = Bench(root)
        inputs(bench.data)
        done = {}
        if given.out and given.out.exists():
            done = {row["key"]: row for row in map(json.loads, given.out.read_text().splitlines())}
        faults = 0
        for kind in KINDS if given.kind == "all" else [given.kind]:
            jobs = given.jobs.split(",") if given.jobs else list(KILLED if kind == "kill" else JOBS)
            settings = argparse.Namespace(**vars(given) | {"jobs": jobs})
            counts: dict[str, collections.Counter[str]] = collections.defaultdict(collections.Counter)
            for place, (name, job, what, power) in enumerate(KINDS[kind](bench, settings)):
                key = f"{kind} {job} {name} seed {given.seed}"
                row = done.get(key)
                if row is None:
                    rng = np.random.default_rng([given.seed, 5, place]) if power else None
                    row = {"key": key} | bench.trial(job, what, rng)
                    if given.out:
                        with given.out.open("a") as file:
                            file.write(json.dumps(row) + "\n")
                counts[job].update(
                    trials=1, kills=row["ended"].count(-signal.SIGKILL), faults=bool(row["wrong"]),
                    failed=row["ended"][-1] > 0, left=bool(row["left"]),
                )  # fmt: skip
                if row["wrong"]:
                    faults += 1
                    print(f"{key}: {row['wrong']}\n{row['said'][-1500:]}", file=sys.stderr, flush=True)
            for job, count in counts.items():
                print(json.dumps({"kind": kind, "job": job, "seed": given.seed} | count), flush=True)
    sys.exit(bool(faults))


if __name__ == "__main__":
    main()
