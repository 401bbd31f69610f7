"""Engines: processes of this machine and a real Ray cluster of several nodes give what one machine gives, to the bit.

Workers are killed, a node is lost, shards cannot be read: all else is done, and what is missing is said.
"""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import fsspec.config
import numpy as np
import psutil
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import s3fs
from typer.testing import CliRunner

import copyscope
from copyscope import engine as engine_module
from copyscope.cli import main
from copyscope.data.corpus import Corpus
from copyscope.detection.dedup import distributed as spread_components
from copyscope.detection.dedup import ivf_components as components_module
from copyscope.detection.dedup import near_pairs
from copyscope.detection.embedding import batches
from copyscope.detection.embedding import parquet as sharded
from copyscope.detection.embedding.embed import embed
from copyscope.detection.embedding.embeddings import Embeddings
from copyscope.detection.search import distributed
from copyscope.detection.search import exact as search_module
from copyscope.detection.search.exact import search
from copyscope.detection.search.ivf import IVF
from copyscope.engine import ENGINES, TRIES, Engine, Processes, TaskFailure, open_engine
from copyscope.errors import CopyscopeError, InputError, MissingExtra, PartError
from copyscope.imaging import images
from copyscope.ray_engine import Ray
from tests import engine_tasks as tasks
from tests import worlds
from tests.data.test_shards import parquet, write_tar
from tests.engine_tasks import DEADLY, Logged, described
from tests.object_store import BUCKET, ObjectStore
from tests.pictures import write

ROOT = Path(__file__).parents[1]
RAY_NODES = {"raylet", "gcs_server"}


@pytest.fixture(scope="module")
def store() -> Iterator[ObjectStore]:
    """An S3 server that is what `s3://` means here and in every worker: they are told by the environment."""
    with ObjectStore() as found, pytest.MonkeyPatch.context() as patch:
        found.put({})
        patch.setenv("FSSPEC_S3", json.dumps(found.options()))
        patch.setitem(fsspec.config.conf, "s3", found.options())
        patch.setattr(s3fs.S3FileSystem, "retries", 1)
        yield found


@pytest.fixture(scope="module")
def cluster(store: ObjectStore) -> Iterator[Any]:
    """Ray with a head that does no tasks and two nodes of one processor, each with a process of its own."""
    ray = pytest.importorskip("ray")
    from ray.cluster_utils import Cluster

    before = nodes()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_USAGE_STATS_ENABLED", "0")
        patch.setenv("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
        patch.setenv("PYTHONPATH", os.pathsep.join([str(ROOT / "src"), str(ROOT), os.environ.get("PYTHONPATH", "")]))
        small = {"object_store_memory": 100 << 20, "include_dashboard": False}
        found = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, **small})
        for _ in range(2):
            found.add_node(num_cpus=1, object_store_memory=100 << 20)
        patch.setenv("RAY_ADDRESS", found.address)
        found.wait_for_nodes()
        yield found
        ray.shutdown()
        found.shutdown()
    until = time.time() + 20
    while nodes() > before and time.time() < until:
        time.sleep(0.1)
    assert nodes() <= before, "no process of Ray is left behind"


def nodes() -> set[int]:
    """Processes of Ray's nodes that this one started."""
    return {each.pid for each in psutil.Process().children(recursive=True) if each.name() in RAY_NODES}


@pytest.fixture(scope="module")
def processes(store: ObjectStore) -> Iterator[Engine]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", os.pathsep.join([str(ROOT / "src"), str(ROOT), os.environ.get("PYTHONPATH", "")]))
        yield Processes(2)


@pytest.fixture(params=ENGINES)
def engine(request, store: ObjectStore) -> Engine:
    if request.param == "processes":
        return request.getfixturevalue("processes")
    request.getfixturevalue("cluster")
    return Ray()


@dataclasses.dataclass(frozen=True)
class Backwards(Engine):
    """Does tasks here, hands them back in the wrong order, and loses some."""

    lose: tuple[int, ...] = ()

    @property
    def threads(self) -> int:
        return 1

    def width(self) -> int:
        return 2

    def map(self, function, shared, tasks):
        for number, task in reversed(list(enumerate(tasks))):
            yield number, TaskFailure("as asked for by the test") if number in self.lose else function(shared, task)


def colour(*rgb: int) -> bytes:
    return images.encode(np.full((9, 9, 3), rgb, np.uint8), "png")


def noise(number: int, side: int = 24) -> bytes:
    pixels = np.random.default_rng(number).integers(0, 256, (side, side, 3), dtype=np.uint8)
    return images.encode(pixels, "png")


def as_folder(folder: Path) -> None:
    write(folder, {f"{number % 2}/{number:02d}.png": noise(number, 20 + number) for number in range(14)})
    write(folder, {"0/again.png": noise(3, 23), "0/bad.png": b"no image", "1/02.txt": "a caption\n"})


def as_tars(folder: Path) -> None:
    for shard in range(2):
        write_tar(folder / f"{shard}.tar", {f"{shard}{number}.png": noise(number + 9 * shard) for number in range(8)})


def as_parquet(folder: Path) -> None:
    for shard in range(2):
        data = [noise(10 * shard + number) for number in range(7)] + [b"no image"]
        columns = {"image": data, "key": [f"{shard}{number}" for number in range(8)], "caption": list("abcdefgh")}
        parquet(folder / f"{shard}.parquet", columns, rows=3)


LAYOUTS = {"folder": as_folder, "tars": as_tars, "parquet": as_parquet}


@pytest.fixture
def log(tmp_path) -> Path:
    folder = tmp_path / "log"
    folder.mkdir()
    return folder


def same(one: Embeddings, other: Embeddings) -> None:
    assert one.vectors.tobytes() == other.vectors.tobytes()
    assert one.corpus.table.equals(other.corpus.table)
    assert (one.ids, one.descriptor, one.fingerprint) == (other.ids, other.descriptor, other.fingerprint)
    assert one.rows.tolist() == other.rows.tolist()


def errors(found: Embeddings) -> dict[str, str]:
    return {row["id"]: row["error"] for row in found.corpus.table.to_pylist() if row["error"]}


# The contract


def test_every_task_is_answered_once_with_its_number(engine: Engine) -> None:
    assert dict(engine.map(tasks.times, 3, range(30))) == {number: 3 * number for number in range(30)}
    assert list(engine.map(tasks.times, 3, [])) == []


def test_tasks_are_taken_as_they_are_needed(engine: Engine) -> None:
    taken: list[int] = []

    def numbers() -> Iterator[int]:
        for number in range(40):
            taken.append(number)
            yield number

    found = engine.map(tasks.sized, b"shared", numbers())
    for done, (number, answer) in enumerate(found, 1):
        assert answer == (number, b"sh" + bytes(200_000))
        assert len(taken) <= done + 2 * engine.width()
    assert len(taken) == 40


def test_a_worker_that_is_killed_costs_nothing_but_time(engine: Engine, tmp_path) -> None:
    given = [1, 101, 2, 3, 102, 4]
    found = dict(engine.map(tasks.die, str(tmp_path), given))
    assert [found[number] for number in range(len(given))] == given
    assert len(list(tmp_path.glob("101-*"))) == len(list(tmp_path.glob("102-*"))) == 2


def test_what_kills_its_worker_each_time_is_lost_alone(engine: Engine, tmp_path) -> None:
    given = [1, 2, 3, 201, 4, 5, 6, 7]
    found = dict(engine.map(tasks.die, str(tmp_path), given))
    lost = found.pop(3)
    assert isinstance(lost, TaskFailure)
    assert "died 4 times" in lost.why
    assert sorted(found.values()) == [1, 2, 3, 4, 5, 6, 7]
    # A pool cannot tell whose fault the first death was.
    assert TRIES <= len(list(tmp_path.glob("201-*"))) <= TRIES + 1


def test_what_raises_is_tried_again_unless_it_was_said_on_purpose(engine: Engine, tmp_path) -> None:
    found = dict(engine.map(tasks.fail, str(tmp_path), range(5)))
    assert found[2] == TaskFailure("No such thing. Try another", told=True)
    assert found[3] == TaskFailure("ValueError: three is wrong")
    assert [found[number] for number in (0, 1, 4)] == [0, 1, 4]
    assert len(list(tmp_path.glob("2-*"))) == 1
    assert len(list(tmp_path.glob("3-*"))) == TRIES


def test_a_node_that_is_lost_costs_what_it_was_doing(cluster, tmp_path) -> None:
    node = cluster.add_node(num_cpus=1, object_store_memory=100 << 20)
    cluster.wait_for_nodes()
    assert Ray().width() == 3

    def lose() -> None:
        """Once it is in the middle of a task, the node goes; then the others may go on."""
        until = time.time() + 60
        while not any(int(path.name.partition("-")[0]) >= 3 for path in tmp_path.glob(f"*-{node.node_id}-*")):
            assert time.time() < until
            time.sleep(0.02)
        cluster.remove_node(node, allow_graceful=False)
        (tmp_path / "go").write_text("")

    with ThreadPoolExecutor() as pool:
        losing = pool.submit(lose)
        found = dict(Ray().map(tasks.held, str(tmp_path), range(12)))
        losing.result()
    assert not [each for each in found.values() if isinstance(each, TaskFailure)]
    assert sorted(found) == list(range(12))
    begun = [path.name.split("-")[:2] for path in tmp_path.glob("*-*-*")]
    assert len(begun) > 12, "what the node was doing is done again"
    twice = [int(number) for number, where in begun if where == node.node_id and int(number) >= 3]
    assert twice
    assert all(found[number] != node.node_id for number in twice)


def test_specs_of_engines() -> None:
    for spec in ("processes", "processes(workers=3)", "ray", "ray(address='auto', cpus=2)"):
        assert str(open_engine(spec)) == spec
    assert open_engine("copyscope.engine:Processes(workers=2)") == Processes(2)
    assert open_engine(Ray()) == Ray()
    for spec, message in {
        "rai": "No engine 'rai'.\nDid you mean 'ray'\\? There are: processes, ray",
        "ray(cpu=2)": "does not fit.*ray\\(address: str \\| None = None, cpus: int = 1\\)",
        "processes(workers=-1)": "workers must be at least 0",
        "ray(": "the engines are: processes, ray",
        "copyscope.errors:Refused": "is not an engine",
        "no.such:Thing": "Cannot load the engine",
    }.items():
        with pytest.raises(PartError, match=f"(?s){message}"):
            open_engine(spec)


def test_without_ray_it_says_how_to_install_it(monkeypatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(MissingExtra, match=r"pip install 'copyscope\[ray\]'"):
        list(Ray().map(tasks.times, 1, [1]))


def test_a_cluster_that_is_not_there_is_told(monkeypatch) -> None:
    ray = pytest.importorskip("ray")

    def init(*_: Any, **__: Any) -> None:
        raise ConnectionError("ray.init() failed: no cluster at 10.0.0.1:6379")

    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    monkeypatch.setattr(ray, "init", init)
    with pytest.raises(CopyscopeError, match=r"(?s)Cannot connect to Ray at '10.0.0.1:6379': .*no cluster.*ray status"):
        list(Ray("10.0.0.1:6379").map(tasks.times, 1, [1]))


def test_ray_sends_no_reports_of_its_use(cluster) -> None:
    Ray().width()
    from ray._common.usage.usage_lib import usage_stats_enabled

    assert not usage_stats_enabled()


# Describing


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("where", ["disk", "store"])
def test_the_same_vectors_and_rows_as_on_one_machine(
    tmp_path, engine: Engine, store: ObjectStore, layout: str, where: str, monkeypatch
) -> None:
    monkeypatch.setattr(batches, "SIZES", (5, 2, 1))
    LAYOUTS[layout](tmp_path / "data")
    origin = tmp_path / "data" if where == "disk" else store.upload(tmp_path / "data", f"{engine}-{layout}")
    told: list[tuple[str, int, int]] = []
    one = embed(Corpus.open(origin), "phash", cache=tmp_path / "a")
    other = embed(
        Corpus.open(origin),
        "phash",
        cache=tmp_path / "b",
        engine=engine,
        progress=lambda *values: told.append(values),
    )
    same(one, other)
    assert told[-1] == ("phash", len(one.corpus), len(one.corpus))
    sharded.write(Corpus.open(origin), tmp_path / "out", "phash", engine=engine)
    same(one, Embeddings.load(tmp_path / "out"))


@pytest.mark.sscd
def test_a_network_gives_the_same_bits_whatever_the_pieces(tmp_path, engine: Engine, monkeypatch) -> None:
    monkeypatch.setattr(batches, "SIZES", (6, 2, 1))
    rng = np.random.default_rng(0)
    write(tmp_path / "data", {f"{n:02d}.png": images.encode(worlds.picture(rng)[0], "png") for n in range(20)})
    one = embed(tmp_path / "data", "sscd-distilled", cache=tmp_path / "a")
    other = embed(tmp_path / "data", "sscd-distilled", cache=tmp_path / "b", engine=engine)
    same(one, other)


def test_nothing_is_described_twice_and_new_images_alone_are(tmp_path, log: Path, engine: Engine, monkeypatch) -> None:
    monkeypatch.setattr(batches, "SIZES", (5, 2, 1))
    as_tars(tmp_path / "data")
    descriptor = Logged(str(log))
    first = embed(tmp_path / "data", descriptor, cache=tmp_path / "cache", engine=engine)
    assert described(log) == 16
    embed(tmp_path / "data", descriptor, cache=tmp_path / "cache", engine=engine)
    assert described(log) == 16
    write_tar(tmp_path / "data" / "2.tar", {f"2{number}.png": noise(100 + number) for number in range(3)})
    more = embed(tmp_path / "data", descriptor, cache=tmp_path / "cache", engine=engine)
    assert described(log) == 19
    assert more.vectors[:16].tobytes() == first.vectors.tobytes()


def test_an_image_that_kills_its_worker_is_a_row_and_tried_again(
    tmp_path, log: Path, engine: Engine, monkeypatch
) -> None:
    monkeypatch.setattr(engine_module, "TRIES", 2)
    monkeypatch.setattr(batches, "SIZES", (6, 1))
    monkeypatch.setattr(batches, "split", lambda corpus, rows, size: np.split(rows, range(size, len(rows), size)))
    write(
        tmp_path / "data", {f"{number:02d}.png": noise(number) for number in range(12)} | {"06a.png": colour(*DEADLY)}
    )
    found = embed(tmp_path / "data", Logged(str(log), deadly=True), cache=tmp_path / "cache", engine=engine)
    assert found.n_missing == 1
    assert "not described: its worker died 2 times" in errors(found)["06a.png"]
    # What is beside it may be done twice, for a pool cannot tell who killed a worker: of two workers the other has a
    # piece of six when the whole piece is tried, and an image when its images are.
    assert 12 <= (n := described(log)) <= 12 + 6 + 1
    again = embed(tmp_path / "data", Logged(str(log), deadly=True), cache=tmp_path / "cache", engine=engine)
    assert errors(again) == errors(found)
    assert described(log) == n, "what was described is kept"
    cured = Logged(str(log), deadly=True)
    monkeypatch.setattr(tasks, "DEADLY", ())  # here, where it is described now without an engine
    whole = embed(tmp_path / "data", cured, cache=tmp_path / "cache")
    assert (whole.n_missing, described(log)) == (0, n + 1)


def test_a_shard_that_cannot_be_read_is_its_rows(tmp_path, log: Path, engine: Engine) -> None:
    as_tars(tmp_path / "tars")
    as_parquet(tmp_path / "parquet")
    for name, damaged in (("tars", "1.tar"), ("parquet", "1.parquet")):
        corpus = Corpus.open(tmp_path / name)
        whole = (tmp_path / name / damaged).read_bytes()
        (tmp_path / name / damaged).write_bytes(whole[:700])
        found = embed(corpus, "phash", cache=tmp_path / f"{name}-cache", engine=engine)
        wrong = {id: error for id, error in errors(found).items() if id.startswith("1")}
        assert set(wrong) == {id for id in corpus.ids if id.startswith("1")}
        assert all(word in " ".join(wrong.values()) for word in (("truncated",) if name == "tars" else ("Parquet",)))
        sharded.write(corpus, tmp_path / f"{name}-out", Logged(str(log)), engine=engine)
        assert errors(Embeddings.load(tmp_path / f"{name}-out")) == errors(found)
        n = described(log)
        (tmp_path / name / damaged).write_bytes(whole)
        # The shard's own stamp is another one now; a store that failed for a while keeps it.
        found = embed(corpus, "phash", cache=tmp_path / f"{name}-cache", engine=engine)
        assert not [id for id in errors(found) if id.startswith("1") and id != "17"]
        sharded.write(corpus, tmp_path / f"{name}-out", Logged(str(log)), engine=engine)
        assert errors(Embeddings.load(tmp_path / f"{name}-out")) == errors(found)
        assert described(log) > n


def test_where_nothing_can_be_done_it_stops(tmp_path, log: Path, engine: Engine, monkeypatch) -> None:
    monkeypatch.setattr(batches, "GIVE_UP", 1)
    monkeypatch.setattr(engine_module, "TRIES", 1)
    write(tmp_path / "data", {f"{number}.png": noise(number) for number in range(8)})
    (tmp_path / "weights-pid").write_text("x")
    # Its fingerprint is another one in each process.
    other = Logged(str(log), weights=str(tmp_path / "weights-pid"))
    with pytest.raises(CopyscopeError, match="Install the same versions and weights"):
        embed(tmp_path / "data", other, cache=tmp_path / "cache", engine=engine)
    write(tmp_path / "deadly", {f"{number}.png": colour(*DEADLY) + bytes(number) for number in range(8)})
    with pytest.raises(CopyscopeError, match="can do nothing of what it is given: its worker died"):
        embed(tmp_path / "deadly", Logged(str(log), deadly=True), cache=tmp_path / "cache", engine=engine)
    assert described(log) == 0


def test_pieces_are_neighbours_and_added_images_move_few_of_them(tmp_path) -> None:
    as_parquet(tmp_path / "parquet")
    as_tars(tmp_path / "tars")
    for name in ("parquet", "tars"):
        corpus = Corpus.open(tmp_path / name)
        found = list(batches.split(corpus, np.arange(16), 6))
        assert np.concatenate(found).tolist() == list(range(16))
        paths = corpus.paths()
        assert all(len({paths[row] for row in piece}) == 1 and len(piece) <= 6 for piece in found)
    ids = [f"{number:05d}.png" for number in range(4000)]

    def cut(names: list[str]) -> set[tuple[str, ...]]:
        table = pa.table({"id": names, "image": [f"/data/{name}" for name in names]})
        return {
            tuple(names[row] for row in piece)
            for piece in batches.split(Corpus(table, "/data", "folder"), np.arange(len(names)), 64)
        }

    before, after = cut(ids), cut(sorted([*ids, "02000a.png"]))
    assert 60 < len(before) < 200
    assert len(after - before) <= 3
    few = dataclasses.replace(Corpus.open(tmp_path / "tars"))
    assert len(list(batches.split(few, np.arange(16), 1))) == 16


def test_a_small_corpus_has_a_piece_for_every_worker(tmp_path, log: Path) -> None:
    write(tmp_path / "data", {f"{number:03d}.png": noise(number, 8) for number in range(150)})
    engine = Counts()
    embed(tmp_path / "data", Logged(str(log)), cache=tmp_path / "cache", engine=engine)
    assert 5 <= len(engine.sizes) <= 16
    assert max(engine.sizes) <= batches.LEAST
    assert described(log) == sum(engine.sizes) == 150


@dataclasses.dataclass(frozen=True)
class Counts(Backwards):
    """Keeps how many images each piece has."""

    sizes: list[int] = dataclasses.field(default_factory=list)

    def map(self, function, shared, tasks):
        for number, task in enumerate(tasks):
            self.sizes.append(len(task))
            yield number, function(shared, task)


def test_processes_end_without_a_word(tmp_path) -> None:
    guarded = "def main():\n    {}\nif __name__ == '__main__':\n    main()\n"
    for _ in range(2):
        done = script(tmp_path, guarded)
        assert (done.stdout, done.stderr) == ("[(0, 0), (1, 2), (2, 4)]\n", "")


def test_a_script_whose_workers_begin_it_anew_is_told_so_once(tmp_path) -> None:
    done = script(tmp_path, "{}")
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.count("has no worker") == 1
    # Python's own resource tracker may have the last word.
    assert "if __name__" in done.stderr.rpartition("has no worker")[2]


def script(folder: Path, frame: str) -> subprocess.CompletedProcess[str]:
    """Run a script that has tasks done by processes."""
    path = folder / "script.py"
    path.write_text(
        "from copyscope.engine import Processes\nfrom tests import engine_tasks as tasks\n"
        + frame.format("print(sorted(Processes(2).map(tasks.times, 2, range(3))))")
    )
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(ROOT / "src"), str(ROOT)])}
    return subprocess.run([sys.executable, str(path)], env=environment, capture_output=True, text=True, timeout=120)


def test_a_piece_of_a_tar_holds_so_many_bytes(tmp_path, monkeypatch) -> None:
    write_tar(tmp_path / "a.tar", {f"{number}.png": noise(number, 40) for number in range(9)})
    corpus = Corpus.open(tmp_path / "a.tar")
    monkeypatch.setattr(batches, "BYTES", 3 * len(noise(0, 40)) + 100)
    assert max(len(piece) for piece in batches.split(corpus, np.arange(9), 10**6)) == 3


# Searching


@pytest.mark.parametrize("labels", [False, True])
def test_a_search_in_ranges_is_the_search(engine: Engine, monkeypatch, labels: bool) -> None:
    monkeypatch.setattr(distributed, "SCORES", 0)
    monkeypatch.setattr(distributed, "RANGE", 1)
    rng = np.random.default_rng(0)
    # A product with one row rounds otherwise: the last block of references, and below one query a worker.
    n, m = 300, 3 * search_module.REFERENCE_BLOCK + 1
    queries, references = (rng.standard_normal((size, 24), dtype=np.float32) for size in (n, m))
    # The same vectors in several ranges: ties, which the first wins.
    references[9000:9200] = references[:200]
    queries[:100] = references[:100]
    queries[100:] = references[-1] + queries[100:] / 4
    own: dict[str, Any] = {}
    if labels:
        own = {"query_labels": rng.integers(0, 50, n), "reference_labels": rng.integers(0, 50, m)}
    told: list[tuple[str, int, int]] = []
    for some, k in ((n, 1), (n, 7), (2, 7)):
        mine = own | ({"query_labels": own["query_labels"][:some]} if labels else {})
        one = search(queries[:some], references, k, workers=2, **mine)
        other = distributed.search_by(
            engine, queries[:some], references, k, workers=2, progress=lambda *values: told.append(values), **mine
        )
        assert other.score.tobytes() == one.score.tobytes()
        assert other.index.tobytes() == one.index.tobytes()
        assert other.index.dtype == one.index.dtype
    assert told[-1] == ("search", m, m)


def test_the_order_of_answers_changes_nothing(monkeypatch, tmp_path) -> None:
    monkeypatch.setattr(distributed, "SCORES", 0)
    monkeypatch.setattr(search_module, "REFERENCE_BLOCK", 4)
    rng = np.random.default_rng(1)
    queries, references = (rng.integers(-1, 2, (size, 3)).astype(np.float32) for size in (9, 50))
    for m, k in ((50, 4), (3, 5), (0, 2)):
        one = search(queries, references[:m], k, workers=1)
        other = distributed.search_by(Backwards(), queries, references[:m], k, workers=1)
        assert other.index.tobytes() == one.index.tobytes()
        assert other.score.tobytes() == one.score.tobytes()
    as_folder(tmp_path / "data")
    monkeypatch.setattr(sharded, "SIZES", (3, 1))
    sharded.write(tmp_path / "data", tmp_path / "out", "phash", engine=Backwards())
    same(embed(tmp_path / "data", "phash", cache=tmp_path / "cache"), Embeddings.load(tmp_path / "out"))


def test_a_search_that_lost_a_range_is_no_answer(monkeypatch) -> None:
    monkeypatch.setattr(distributed, "SCORES", 0)
    monkeypatch.setattr(search_module, "REFERENCE_BLOCK", 4)
    vectors = np.eye(10, dtype=np.float32)
    message = "References 4 to 7 of 10 were not searched: as asked for by the test"
    with pytest.raises(CopyscopeError, match=message):
        distributed.search_by(Backwards(lose=(1,)), vectors, vectors, 2)


@pytest.fixture
def in_stretches(monkeypatch) -> Any:
    """Rows of which twelve stretches of cells are made, and groups of them without an engine."""
    rng = np.random.default_rng(0)
    centres = rng.standard_normal((60, 32))
    rows = centres[rng.integers(0, 60, 6000)] + 0.6 * rng.standard_normal((6000, 32))
    rows[5500:] = rows[:500] + 0.03 * rng.standard_normal((500, 32))
    rows[100:130] = rows[7]
    vectors = (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)
    monkeypatch.setattr(near_pairs, "LOT", 500)
    monkeypatch.setattr(components_module, "_stretch", lambda *_: 500)
    return vectors, components_module.ivf_components(IVF.build(vectors, 64), 0.9, k=2, floor=0.7)


def same_groups(found: Any, wanted: Any) -> bool:
    pairs = set(zip(found[0].tolist(), wanted[0].tolist(), strict=True))
    return len(pairs) == len(set(found[0].tolist())) == len(set(wanted[0].tolist())) > 100


def test_groups_are_those_of_one_machine(in_stretches, tmp_path, engine: Engine) -> None:
    vectors, wanted = in_stretches
    made = IVF.build(vectors, 64, folder=tmp_path)
    found = components_module.ivf_components(made, 0.9, k=2, floor=0.7, engine=engine)
    assert same_groups(found, wanted)
    np.testing.assert_array_equal(found[1].index, wanted[1].index)
    np.testing.assert_allclose(found[1].score, wanted[1].score, atol=1e-6)
    assert (found[1].index[:, 1] >= 0).mean() > 0.5


def test_groups_that_lost_a_stretch_are_no_answer_and_go_on(in_stretches, tmp_path) -> None:
    vectors, wanted = in_stretches
    made = IVF.build(vectors, 64, folder=tmp_path)
    told: list[int] = []
    with pytest.raises(CopyscopeError, match=r"1,000 to 1,499 of 6,000, in the order .* not looked for: as asked for"):
        components_module.ivf_components(made, 0.9, k=2, floor=0.7, engine=Backwards((2,)))
    options = {"k": 2, "floor": 0.7, "progress": lambda label, done, total: told.append(done)}
    found = components_module.ivf_components(made, 0.9, engine=Backwards(), **options)
    assert told == list(range(500, 6001, 500))
    assert same_groups(found, wanted)
    np.testing.assert_array_equal(found[1].index, wanted[1].index)


def test_pairs_that_halves_cannot_tell_are_told_by_the_vectors(in_stretches, tmp_path, monkeypatch) -> None:
    vectors, _ = in_stretches
    monkeypatch.setattr(near_pairs, "ROUNDING", 0.05)  # as if halves were worse
    made = IVF.build(vectors, 64, folder=tmp_path)
    wanted = components_module.ivf_components(IVF.build(vectors, 64), 0.9)
    asked: list[int] = []
    real = np.einsum
    monkeypatch.setattr(np, "einsum", lambda *given: asked.append(len(given[1])) or real(*given))
    found = components_module.ivf_components(made, 0.9, engine=Backwards())
    assert sum(asked) > 100
    assert same_groups(found, wanted)


def test_cells_that_a_worker_does_not_have_are_told(tmp_path) -> None:
    with pytest.raises(InputError, match="COPYSCOPE_CACHE name a folder that all machines share"):
        spread_components.stretch(spread_components.PairTask(str(tmp_path / "none"), 0.9, 0, 1.0, 1), (0, 10))


def test_an_audit_and_a_lint_are_the_same(world, tmp_path, store: ObjectStore, monkeypatch) -> None:
    monkeypatch.setattr(distributed, "SCORES", 0)
    options = {"cache": tmp_path / "cache", "workers": 2}
    calls: list[int] = []
    plain = distributed.search_by
    monkeypatch.setattr(distributed, "search_by", lambda *given, **known: calls.append(1) or plain(*given, **known))
    for work in (
        lambda **more: copyscope.audit(world.generated, world.train, world.held_out, "phash", **options, **more),
        lambda **more: copyscope.lint(world.train, "phash", **options, **more),
    ):
        options["cache"] = tmp_path / "one"
        one = work()
        options["cache"] = tmp_path / "other"
        other = work(engine=Backwards())
        assert {**one.summary, "seconds": 0, "created": ""} == {**other.summary, "seconds": 0, "created": ""}
        assert all(table.equals(other.tables[name]) for name, table in one.tables.items())
    assert len(calls) >= 4


# Parts


def entries(out: Any) -> list[dict[str, Any]]:
    return json.loads((Path(out) / "embeddings.json").read_text())["parts"]


def test_parts_at_a_url(tmp_path, log: Path, engine: Engine, store: ObjectStore, monkeypatch) -> None:
    monkeypatch.setattr(sharded, "SIZES", (6, 1))
    as_parquet(tmp_path / "data")
    data, out = store.upload(tmp_path / "data", f"in-{engine}"), f"s3://{BUCKET}/out-{engine}"
    manifest, _ = sharded.write(data, out, Logged(str(log)), engine=engine)
    assert described(log) == 14
    found = Embeddings.load(out)
    same(found, embed(data, Logged(str(log)), cache=tmp_path / "cache"))
    assert (manifest["n"], manifest["n_missing"]) == (14, 2)
    n = described(log)
    assert sharded.write(data, out, Logged(str(log)), engine=engine)[0] == manifest
    assert described(log) == n, "nothing is made twice"


def test_new_shards_add_parts_and_change_none(tmp_path, log: Path, engine: Engine) -> None:
    as_tars(tmp_path / "data")
    sharded.write(tmp_path / "data", tmp_path / "out", Logged(str(log)), engine=engine)
    before = entries(tmp_path / "out")
    write_tar(tmp_path / "data" / "2.tar", {f"2{n}.png": noise(50 + n) for n in range(3)} | {"20.json": b'{"x": 1}'})
    sharded.write(tmp_path / "data", tmp_path / "out", Logged(str(log)), engine=engine)
    assert described(log) == 19
    after = entries(tmp_path / "out")
    assert after[: len(before)] == before
    assert sum(part["rows"] for part in after) == 19
    found = Embeddings.load(tmp_path / "out")
    assert found.corpus.table["x"].to_pylist() == [None] * 16 + [1, None, None]
    # One that was replaced by another file of the same names and places is made again.
    write_tar(tmp_path / "data" / "2.tar", {f"2{n}.png": noise(60 + n) for n in range(3)} | {"20.json": b'{"x": 1}'})
    sharded.write(tmp_path / "data", tmp_path / "out", Logged(str(log)), engine=engine)
    assert described(log) == 22
    assert Embeddings.load(tmp_path / "out").vectors[16:].tobytes() != found.vectors[16:].tobytes()


def test_a_removal_list_makes_no_part_again(tmp_path, log: Path) -> None:
    as_parquet(tmp_path / "data")
    out, by = tmp_path / "out", Processes(1)
    whole = embed(tmp_path / "data", "phash", cache=tmp_path / "cache")
    sharded.write(tmp_path / "data", out, Logged(str(log)), engine=by)
    parts, n = entries(out), described(log)
    digest = whole.corpus.table["sha256"][4].as_py()
    (tmp_path / "list.txt").write_text(f"03\n{digest}\n17\nnobody\n")
    manifest, removed = sharded.write(
        tmp_path / "data", out, Logged(str(log)), engine=by, without=tmp_path / "list.txt"
    )
    assert removed
    assert removed.summary() == {"n_listed": 4, "n_removed": 3, "n_unmatched": 1}
    assert manifest["without"] == {"list": str(tmp_path / "list.txt"), **removed.summary()}
    assert entries(out) == parts
    assert described(log) == n
    found = Embeddings.load(out)
    left = [row for row in range(16) if whole.corpus.ids[row] not in ("03", "04", "17")]
    assert found.corpus.table.equals(whole.corpus.take(left).table)
    keep = np.isin(whole.rows, left)
    assert found.vectors.tobytes() == whole.vectors[keep].tobytes()
    assert (manifest["n"], manifest["n_missing"]) == (len(found.rows), found.n_missing) == (12, 1)
    sharded.write(tmp_path / "data", out, Logged(str(log)), engine=by)
    assert len(Embeddings.load(out).corpus) == 16, "the list is of one run"


KILLED = """
import sys
from pathlib import Path
from copyscope.detection.embedding import parquet as sharded
from copyscope.engine import Processes
from tests.engine_tasks import Logged
if __name__ == "__main__":
    sharded.SIZES = (4, 1)
    sharded.write(sys.argv[1], sys.argv[2], Logged(sys.argv[3]), engine=Processes(1))
"""


def test_a_job_that_was_killed_goes_on_and_no_part_is_made_twice(tmp_path, log: Path) -> None:
    write(tmp_path / "data", {f"{number:03d}.png": noise(number) for number in range(120)})
    script = tmp_path / "killed.py"
    script.write_text(KILLED)
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(ROOT / "src"), str(ROOT)])}
    command = [sys.executable, str(script), *map(str, (tmp_path / "data", tmp_path / "out", log))]
    victim = subprocess.Popen(command, env=environment, start_new_session=True)
    while len(list((tmp_path / "out").glob("part-*"))) < 8 and victim.poll() is None:
        time.sleep(0.01)
    os.killpg(victim.pid, signal.SIGKILL)
    victim.wait()
    made = len(list((tmp_path / "out").glob("part-*")))
    assert 8 <= made < 50
    assert not (tmp_path / "out" / "embeddings.json").exists()
    with pytest.raises(InputError, match="No finished embeddings"):
        Embeddings.load(tmp_path / "out")
    assert subprocess.run(command, env=environment, timeout=120).returncode == 0
    # What it was in the middle of: one part of four images at most.
    assert 120 <= described(log) <= 124
    same(Embeddings.load(tmp_path / "out"), embed(tmp_path / "data", Logged(str(log)), cache=tmp_path / "cache"))


def test_what_is_lost_is_said_and_made_the_next_time(tmp_path, log: Path, monkeypatch) -> None:
    monkeypatch.setattr(sharded, "SIZES", (6, 1))
    monkeypatch.setattr(batches, "split", lambda corpus, rows, size: np.split(rows, range(size, len(rows), size)))
    write(tmp_path / "data", {f"{number:02d}.png": noise(number) for number in range(12)})
    manifest, _ = sharded.write(tmp_path / "data", tmp_path / "out", "phash", engine=Loses("07.png"))
    assert (manifest["n"], manifest["n_missing"]) == (11, 1)
    found = Embeddings.load(tmp_path / "out")
    assert errors(found) == {"07.png": "not described: as asked for by the test"}
    assert "07.png" not in found.ids
    manifest, _ = sharded.write(tmp_path / "data", tmp_path / "out", "phash", engine=Backwards())
    assert (manifest["n"], manifest["n_missing"], len(manifest["parts"])) == (12, 0, 2)
    same(Embeddings.load(tmp_path / "out"), embed(tmp_path / "data", "phash", cache=tmp_path / "cache"))


@dataclasses.dataclass(frozen=True)
class Loses(Backwards):
    """Loses every piece that holds one image."""

    id: str = ""

    def __init__(self, id: str) -> None:
        object.__setattr__(self, "id", id)

    def map(self, function, shared, tasks):
        for number, task in enumerate(tasks):
            yield number, TaskFailure("as asked for by the test") if self.id in task.ids else function(shared, task)


def test_files_that_could_not_be_read_are_tried_again_alone(tmp_path, log: Path) -> None:
    write(tmp_path / "data", {f"{number}.png": noise(number) for number in range(6)})
    corpus = Corpus.open(tmp_path / "data")
    asked = sharded.EmbedTask(str(tmp_path / "out"), Logged(str(log)), "", 1, {}, {})
    kept = (tmp_path / "data" / "4.png").read_bytes()
    stamp = os.stat(tmp_path / "data" / "4.png")
    with pytest.MonkeyPatch.context() as patch:
        # As a store that is away for a while: the listing is there, the bytes are not.
        patch.setattr(sharded, "_stamp", lambda storage, path: [path])
        (tmp_path / "data" / "4.png").unlink()
        entry = sharded.make(asked, corpus)
        assert entry["name"].startswith("some-")
        assert entry["name"].endswith("-5.parquet")
        assert (entry["rows"], entry["errors"], described(log)) == (6, 1, 5)
        asked = dataclasses.replace(asked, some=sharded._some(asked.out))
        assert sharded.make(asked, corpus) == entry, "still not there"
        assert described(log) == 5
        (tmp_path / "data" / "4.png").write_bytes(kept)
        os.utime(tmp_path / "data" / "4.png", ns=(stamp.st_atime_ns, stamp.st_mtime_ns))
        entry = sharded.make(asked, corpus)
        assert (entry["rows"], entry["errors"], described(log)) == (6, 0, 6)
        assert entry["name"].startswith("part-")
    table = pq.read_table(tmp_path / "out" / entry["name"])
    expected = embed(corpus, Logged(str(log)), cache=tmp_path / "cache")
    assert table.drop_columns(["vector"]).equals(expected.corpus.table)
    assert np.stack(table["vector"].to_pylist()).astype(np.float32).tobytes() == expected.vectors.tobytes()


def test_a_part_that_cannot_be_read_is_named(tmp_path) -> None:
    as_tars(tmp_path / "data")
    out = tmp_path / "out"
    sharded.write(tmp_path / "data", out, "phash", engine=Backwards())
    name = entries(out)[1]["name"]
    whole = (out / name).read_bytes()
    for damage in (whole[:-40], whole[:400] + b"x" + whole[401:]):
        (out / name).write_bytes(damage)
        with pytest.raises(InputError, match=rf"Cannot read {name} of .*not what was written.\nDelete that file"):
            Embeddings.load(out)
    (out / name).unlink()
    with pytest.raises(InputError, match=f"Cannot read {name} of .*: no such file"):
        Embeddings.load(out)
    sharded.write(tmp_path / "data", out, "phash", engine=Backwards())
    assert len(Embeddings.load(out).rows) == 16
    (out / "stray.parquet").write_bytes(b"what no manifest names")
    assert len(Embeddings.load(out).rows) == 16
    (out / "embeddings.json").write_text("{")
    with pytest.raises(InputError, match=r"Cannot read embeddings.json"):
        Embeddings.load(out)


@pytest.fixture(scope="module")
def embedded(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("embedded")
    as_tars(folder / "data")
    sharded.write(folder / "data", folder / "out", "phash", engine=Backwards())
    return folder / "out"


PART = {"name": "part-" + "0" * 32 + ".parquet", "rows": 16, "errors": 0, "bytes": 9, "sha256": ""}
WRONG = {
    "n": [None, -1, "16", 17, 10**15, True], "dim": [None, 0.5, -1, 3, 10**12], "corpus": [None, 1, []], "kind": [{}],
    "descriptor": [None, ["phash"]], "fingerprint": [7], "removed": [7, {}, {"name": "../x.parquet"}],
    "parts": [None, {}, "x", [7], [{}], [PART | {"name": "../part.parquet"}], [PART | {"rows": -1}], [PART]],
}  # fmt: skip


@pytest.mark.parametrize(("key", "value"), [(key, value) for key, values in WRONG.items() for value in values])
def test_a_manifest_of_parts_with_wrong_values_is_two_lines(tmp_path, embedded, key, value) -> None:
    out = shutil.copytree(embedded, tmp_path / "out")
    manifest = json.loads((out / "embeddings.json").read_text())
    (out / "embeddings.json").write_text(json.dumps(manifest | {key: value}))
    with pytest.raises(InputError) as found:
        Embeddings.load(out)
    assert len(str(found.value).splitlines()) == 2
    if key in ("parts", "removed") and value != [PART]:
        with pytest.raises(InputError, match="nothing usable"):
            sharded.write(embedded.parent / "data", out, "phash", engine=Backwards())


def test_a_part_that_is_a_bomb_is_made_again(tmp_path, embedded, monkeypatch) -> None:
    from copyscope.data import parquet_pages

    out = shutil.copytree(embedded, tmp_path / "out")
    name = entries(out)[0]["name"]
    before = (out / name).read_bytes()
    pq.write_table(pa.table({"error": pa.array(["x" * 1000] * 40_000)}), out / name)
    (out / "embeddings.json").unlink()
    monkeypatch.setattr(parquet_pages, "MAX_TABLE", 1 << 20)
    sharded.write(embedded.parent / "data", out, "phash", engine=Backwards())
    assert (out / name).read_bytes() == before
    assert len(Embeddings.load(out).rows) == 16


def test_where_nothing_can_be_written_it_is_told_before_the_work(tmp_path, log: Path, store: ObjectStore) -> None:
    as_tars(tmp_path / "data")
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match=r"(?s)Cannot write .* to .*file.*Give another folder"):
        sharded.write(tmp_path / "data", tmp_path / "file" / "out", Logged(str(log)), engine=Backwards())
    with pytest.raises(InputError, match=r"Cannot (write|read) .*s3://nowhere"):
        sharded.write(tmp_path / "data", "s3://nowhere/out", Logged(str(log)), engine=Backwards())
    embed(tmp_path / "data", "phash", cache=tmp_path / "cache").save(tmp_path / "plain")
    with pytest.raises(InputError, match="of another form"):
        sharded.write(tmp_path / "data", tmp_path / "plain", Logged(str(log)), engine=Backwards())
    assert described(log) == 0
    with pytest.raises(InputError, match="No finished embeddings in s3://"):
        Embeddings.load(f"s3://{BUCKET}/nothing-here")


# The command line


def run(*arguments: object) -> Any:
    return CliRunner().invoke(main.app, [*map(str, arguments)])


def test_the_engine_of_the_command_line(tmp_path, monkeypatch) -> None:
    as_parquet(tmp_path / "data")
    (tmp_path / "list.txt").write_text("03\n")
    here = "tests.test_engine:Backwards"
    listed = ("--without", tmp_path / "list.txt")
    found = run("embed", tmp_path / "data", "-p", "phash", "-o", tmp_path / "out", "--engine", here, "--json", *listed)
    assert found.exit_code == 0, found.output
    summary = json.loads(found.stdout)
    assert summary == json.loads((tmp_path / "out" / "embeddings.json").read_text())
    assert (summary["schema"], summary["n"], summary["n_missing"]) == ("copyscope.embeddings-parts/1", 13, 2)
    assert summary["without"]["n_removed"] == 1
    assert "1 images are left out" in found.stderr
    assert len(Embeddings.load(tmp_path / "out").rows) == 13
    for command in (("lint", tmp_path / "data"), ("match", tmp_path / "data", tmp_path / "data")):
        texts = [run(*command, "-p", "phash", "--json", *more) for more in ((), ("--engine", here))]
        one, other = (json.loads(text.stdout) | {"created": 0, "seconds": 0} for text in texts)
        assert one == other
    found = run(
        "index", "build", tmp_path / "data", "-p", "phash", "-o", tmp_path / "index", "--engine", here, "--json"
    )
    assert json.loads(found.stdout)["n"] == 14


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("embed", "{data}", "-o", "s3://bucket/out"), "Add --engine processes"),
        (("lint", "{data}", "--engine", "rai"), "Did you mean 'ray'"),
        (("audit", "{data}", "{data}", "--engine", "ray(cpu=1)"), "does not fit"),
        (("match", "{data}", "--index", "{data}", "--engine", "ray"), "--engine has no effect with --index"),
        (("index", "build", "{data}", "-o", "{data}/x", "--engine", "rai"), "There are: processes, ray"),
    ],
)
def test_a_wrong_engine_is_told(tmp_path, arguments: tuple[str, ...], message: str) -> None:
    as_tars(tmp_path / "data")
    found = run(*(each.format(data=tmp_path / "data") for each in arguments))
    assert found.exit_code != 0
    assert message in f"{found.output} {found.exception}"


def test_ray_keeps_stdout_for_results(cluster, tmp_path) -> None:
    script = "\n".join(
        [
            "from copyscope.ray_engine import Ray",
            "from tests import engine_tasks as tasks",
            f"found = dict(Ray().map(tasks.die, {str(tmp_path)!r}, [1, 201]))",
            "import time; time.sleep(1)",
            "print(len(found))",
        ]
    )
    done = subprocess.run([sys.executable, "-W", "error", "-c", script], capture_output=True, text=True, timeout=120)
    assert done.stdout == "2\n", done.stdout + done.stderr
    assert "worker died" in done.stderr
