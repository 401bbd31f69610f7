"""The two jobs at scale as stages of tasks: a lint of N training images, an audit of G generations against them.

What is assumed is a field of `Assumed`, with its source; what was measured here is in `Rates`, read from results/. The
sums are in seconds of one core, bytes, and multiplications and additions (a product of two vectors of d is 2 d).
"""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cluster import Cluster, Tasks

Floats = NDArray[np.float64]

RESULTS = Path(__file__).parents[1] / "results"
ID = 8
DIGEST = 32
EDGE = 2 * ID
HOUR = 3600.0
# Rows in float32 at a time while others are compared with them.
BLOCK = 65_536


def _assumed(default: Any, said: str) -> Any:
    return dataclasses.field(default=default, metadata={"said": said})


@dataclasses.dataclass(frozen=True)
class Assumed:
    """What was not measured here, each an argument of benchmarks/scale.py."""

    images: float = _assumed(2.3e9, "images to lint: LAION-2B, by its name two thousand million, as usually given 2.3")
    generations: float = _assumed(1e7, "images to audit: the task this page answers")
    image_bytes: float = _assumed(60e3, "bytes of an image file: a JPEG of 512 px; a guess of ours")
    shard: float = _assumed(10_000, "images a shard: what img2dataset writes, in the set-up of Somepalli et al. 2023")
    duplicated: float = _assumed(0.3, "share of images with a near-duplicate: Webster et al. 2023 (arXiv 2303.12733)")
    exact: float = _assumed(0.1, "share of images whose file another has too, byte for byte; a guess of ours")
    hot: float = _assumed(1e6, "times the most duplicated image stands in the set; a guess of ours")
    hot_exact: float = _assumed(0.9, "share of these that are the same file; a guess of ours")
    crossing: float = _assumed(0.2, "share of the duplicated images whose group lies in several cells; a guess of ours")
    cells: float = _assumed(0, "cells of vectors; 0: as many as make assigning and comparing equally dear")
    cell_sigma: float = _assumed(0.7, "sigma of the lognormal sizes of cells; a guess of ours")
    copies: float = _assumed(2, "further cells an image is compared in: what that finds is in benchmark-scale-rates")
    probes: float = _assumed(64, "cells a generation is searched in; what that finds must be measured on the set")
    value_bytes: float = _assumed(2, "bytes of one number of a vector: 2 is fp16, 1 is int8; the error is measured")
    thumbnail: float = _assumed(3072, "bytes of a thumbnail: 32 x 32 x 3, the default of the second look")
    row: float = _assumed(100, "bytes of an image's row: docs/index.md says about so many")
    held: float = _assumed(140, "bytes of memory a training image, today, while embedded: benchmark-whole")
    card_bytes: float = _assumed(2000, "bytes of a risk card, today; a guess of ours")
    kept: float = _assumed(50, "nearest training images kept of a generation: the default of an audit")
    sample: float = _assumed(64, "vectors a cell from which centres are made; faiss asks for 39 to 256")
    sweeps: float = _assumed(10, "rounds of k-means")
    collapse: int = _assumed(1, "1: equal files become one row before anything is compared")
    split: int = _assumed(1, "1: a cell with too many pairs for a task is compared block by block, by several")
    tasks: float = _assumed(50_000, "most tasks of a stage, which then get larger")
    waves: float = _assumed(20, "tasks a core where there is enough to do, so that none is long beside its stage")
    shuffle_waves: float = _assumed(2, "the same where each task's file is read by every task of the next stage")
    least: float = _assumed(500, "fewest images of a task")
    exact_rows: float = _assumed(4e6, "training vectors that a task of the exact search reads")
    partition: float = _assumed(500_000, "rows that one task assigns to cells and writes as one file, sorted by cell")
    fan_in: float = _assumed(64, "files that one task merges")
    edge_memory: float = _assumed(64, "bytes of memory an edge takes while it is merged; a guess of ours")

    machines: float = _assumed(25, "machines: the task this page answers in about a day")
    cores: float = _assumed(64, "cores of a machine, as fast as the one measured, also when all work; see the limits")
    memory: float = _assumed(256e9, "bytes of memory of a machine: 4 GB a core, usual for rented ones")
    disk: float = _assumed(1e9, "bytes/s that a machine's disk is read at: that of the machine measured here")
    network: float = _assumed(25e9 / 8, "bytes/s of a machine, each way: 25 Gbit/s, usual for rented ones of that size")
    store: float = _assumed(40e9, "bytes/s of the object store, all machines together; a guess of ours")
    request: float = _assumed(0.03, "seconds until an object store answers; a guess of ours, of the usual order")
    at_once: float = _assumed(16, "requests a task has under way at once")
    gpus: float = _assumed(0, "GPUs of a machine, which then describe; none was at hand, nothing of them is measured")
    gpu_images: float = _assumed(1500, "images/s of a GPU by SSCD at 288 px, decoded elsewhere; a guess of ours")
    machine_sigma: float = _assumed(0.15, "sigma of the lognormal speeds of machines; a guess of ours")
    task_sigma: float = _assumed(0.4, "sigma of the lognormal length of one and the same task; a guess of ours")
    failure: float = _assumed(0.005, "probability that an execution fails; a guess of ours")
    between_losses: float = _assumed(
        500, "hours until a machine is lost, on average: a cheap, interruptible one; a guess"
    )
    replacement: float = _assumed(600, "seconds until another machine stands in its place; a guess of ours")
    retries: float = _assumed(10, "executions of a task that may fail before it is given up")
    speculate: int = _assumed(1, "1: what runs late is started a second time once a slot is idle")
    late: float = _assumed(1.5, "how many times its expected length a task runs until it is late")
    core_price: float = _assumed(0.04, "dollars a core and hour: the order of list prices; put in your own")
    gpu_price: float = _assumed(1.0, "dollars a GPU and hour: the order of list prices; put in your own")
    get_price: float = _assumed(4e-7, "dollars a read request: the order of list prices; put in your own")
    put_price: float = _assumed(5e-6, "dollars a write request: the order of list prices; put in your own")
    month_price: float = _assumed(0.023e-9, "dollars a byte and month kept: the order of list prices; put in your own")
    patience: float = _assumed(24, "hours after which a way of doing it counts as broken")

    def cluster(self, gpu: bool = False) -> Cluster:
        """The machines; with `gpu`, a slot is a GPU and the cores that feed it."""
        return Cluster(
            machines=int(self.machines),
            slots=int(self.gpus if gpu else self.cores),
            inward=self.network,
            outward=self.network,
            store=self.store,
            request=self.request / self.at_once,
            machine_sigma=self.machine_sigma,
            task_sigma=self.task_sigma,
            failure=self.failure,
            between_losses=self.between_losses * HOUR,
            replacement=self.replacement,
            retries=int(self.retries),
            speculate=bool(self.speculate),
            late=self.late,
        )


@dataclasses.dataclass(frozen=True)
class Rates:
    """What was measured here, of one core. Seconds an image, operations, pictures, edges and digests a second."""

    describe: float
    decode: float
    dim: int
    search_flops: float
    pairs_flops: float
    second_looks: float
    candidates: int
    edges: float
    digests: float
    process: float

    @classmethod
    def read(cls) -> Rates:
        """From the results of the other benchmarks."""
        embed, search, audit, more = (
            json.loads((RESULTS / f"benchmark-{name}.json").read_text())
            for name in ("embed", "search", "audit", "scale-rates")
        )
        describe = embed["threads"] / float(np.median(embed["images_per_second"]))
        bare = embed["threads"] / float(np.median(embed["bare_onnx_two_callers_images_per_second"]))
        products = search["queries"] * search["references"]
        return cls(
            describe=describe,
            decode=describe - bare,
            dim=search["dim"],
            search_flops=2 * search["dim"] * products / (search["threads"] * float(np.median(search["seconds"]))),
            pairs_flops=more["pairs_flops"],
            second_looks=more["second_looks_per_second"],
            candidates=more["candidates"],
            edges=more["edges_per_second"],
            digests=more["digests_per_second"],
            # Of an audit of few images: nearly all of it is the process itself, its model and libraries.
            process=audit["memory"][0]["anonymous_mb"] * 2**20,
        )


@dataclasses.dataclass(frozen=True)
class Stage:
    """Tasks that can run in any order; the next stage waits for all of them. rounds: so often, one after another."""

    name: str
    tasks: Tasks
    gpu: bool = False
    rounds: int = 1


def parts(total: float, each: float) -> Floats:
    """`total` things in tasks of `each`, the last one smaller."""
    n = max(1, int(np.ceil(total / each)))
    sizes = np.full(n, float(each))
    sizes[-1] = total - each * (n - 1)
    return sizes


@dataclasses.dataclass(frozen=True)
class Plan:
    """The sums that both jobs rest on: how many rows and cells, how large they are."""

    a: Assumed
    r: Rates

    @property
    def vector(self) -> float:
        """Bytes of a vector as it is kept, with its id."""
        return self.r.dim * self.a.value_bytes + ID

    @property
    def gone(self) -> float:
        """Images that equal files make one row of."""
        return self.a.exact * self.a.images if self.a.collapse else 0.0

    @property
    def rows(self) -> float:
        """Vectors that are compared."""
        return self.a.images - self.gone

    @property
    def hot(self) -> float:
        """Vectors of the most duplicated image among them."""
        return min(self.a.hot * (1 - self.a.hot_exact if self.a.collapse else 1.0), 0.5 * self.rows)

    @property
    def cells(self) -> int:
        """Assigning costs rows x cells, comparing rows^2 / cells x (1/2 + copies): the sum is least where they meet."""
        return int(self.a.cells) or max(1, round(float(np.sqrt(self.rows * (0.5 + self.a.copies)))))

    def sizes(self, seed: int) -> tuple[Floats, Floats]:
        """Rows [c] that lie in each cell, and those [c] that come from other cells to be compared there."""
        rng = np.random.default_rng(np.random.SeedSequence([seed, 77]))
        own = np.exp(self.a.cell_sigma * rng.standard_normal(self.cells))
        own *= (self.rows - self.hot) / own.sum()
        other = own * self.a.copies
        own[0] += self.hot
        # One image's duplicates all go to the same further cells.
        for copy in range(int(self.a.copies)):
            other[min(1 + copy, self.cells - 1)] += self.hot
        return own, other

    def tasks_of(self, n: float, most: float, waves: float) -> Floats:
        """n images or rows in tasks of at most `most`, but for `a.tasks`; smaller ones where that feeds all cores."""
        a = self.a
        small = max(a.least, np.ceil(n / (waves * a.machines * a.cores)))
        return parts(n, max(min(most, small), np.ceil(n / a.tasks)))

    def flops(self, products: float | Floats) -> Any:
        """Multiplications and additions of so many inner products."""
        return 2 * self.r.dim * products

    def described(self, name: str, n: float) -> Stage:
        """Read, decode, describe; vectors, thumbnails and rows written, digests in files by their first bits."""
        a, r = self.a, self.r
        images = self.tasks_of(n, a.shard, a.waves)
        each = max(1 / a.gpu_images, r.decode * a.gpus / a.cores) if a.gpus else r.describe
        written = images * (self.vector + a.thumbnail + a.row)
        requests = 4 * np.ceil(images / a.shard)
        return Stage(
            name,
            Tasks.of(len(images), images * each, images * a.image_bytes, written, requests, r.process),
            bool(a.gpus),
        )

    def assigned(self, name: str, rows: float, cells: float) -> Stage:
        """Rows to the `cells` nearest centres each; one file a task, sorted by cell."""
        a = self.a
        each = self.tasks_of(rows, a.partition, a.shuffle_waves)
        centres = self.cells * self.vector
        return Stage(
            name,
            Tasks.of(
                len(each),
                self.flops(each * self.cells) / self.r.search_flops,
                each * self.vector + centres,
                each * self.vector * cells,
                2 + each / a.shard,
                self.r.process + each * self.vector * cells + centres,
            ),
        )


def lint(a: Assumed, r: Rates, seed: int = 0) -> list[Stage]:
    """The stages of a lint of `a.images` images."""
    p = Plan(a, r)
    shards = np.ceil(a.images / a.shard)
    described = p.described("describe", a.images)
    stages = [Stage("list", Tasks.of(1, read=shards * 200, written=shards * 200, requests=shards / 1000)), described]
    if a.collapse:
        digests = p.tasks_of(a.images, 1e6, a.shuffle_waves)
        row = DIGEST + ID
        # Each reads its part of every file that the stage before wrote.
        pieces = float(len(described.tasks))
        stages.append(
            Stage(
                "equal files",
                Tasks.of(len(digests), digests / r.digests, digests * row, digests * ID, pieces, digests * row * 3),
            )
        )
    sample = min(p.rows, a.sample * p.cells)
    slots = a.machines * a.cores
    stages.append(
        Stage(
            "centres",
            Tasks.of(
                int(slots),
                p.flops(sample / slots * p.cells) / r.search_flops,
                (sample / slots + p.cells) * p.vector,
                p.cells * p.vector / slots,
                4,
                r.process + (sample / slots + p.cells) * r.dim * 4,
            ),
            rounds=int(a.sweeps),
        )
    )
    assign = p.assigned("assign", p.rows, 1 + a.copies)
    compare = compared(p, seed, len(assign.tasks))
    stages += [assign, compare, *merged(p, len(compare.tasks))]
    labelled = p.tasks_of(a.images, 1e6, a.shuffle_waves)
    crossing = a.duplicated * a.crossing * p.rows * EDGE
    stages.append(
        Stage("label", Tasks.of(len(labelled), labelled / r.digests, labelled * EDGE, labelled * EDGE, 2, crossing))
    )
    stages.append(Stage("report", Tasks.of(1, read=len(labelled) * 1e5, requests=len(labelled), memory=r.process)))
    return stages


def compared(p: Plan, seed: int, files: int) -> Stage:
    """All pairs of a cell, and of it with what comes from other cells. A large cell is many tasks, or one."""
    a, r = p.a, p.r
    own, other = p.sizes(seed)
    products = own**2 / 2 + own * other
    rows = own + other
    most = products.sum() / (a.waves * a.machines * a.cores)
    pieces = np.maximum(1, np.ceil(products / most)).astype(np.int64) if a.split else np.ones(len(own), np.int64)
    products = np.repeat(products / pieces, pieces)
    # A piece of a split cell reads the two sides of a square of pairs.
    size = np.minimum(np.repeat(rows, pieces), np.where(np.repeat(pieces, pieces) > 1, 2 * np.sqrt(products), np.inf))
    # Neighbouring small cells go into one task, so that there are not too many.
    cuts = np.flatnonzero(np.diff(np.floor(np.cumsum(products) / most), prepend=-1.0))
    products, size = np.add.reduceat(products, cuts), np.add.reduceat(size, cuts)
    edges = a.duplicated * p.rows * EDGE / len(size)
    memory = r.process + size * r.dim * (4 + a.value_bytes)
    return Stage(
        "compare",
        Tasks.of(len(size), p.flops(products) / r.pairs_flops, size * p.vector, edges, files + 1.0, memory),
    )


def merged(p: Plan, files: int) -> list[Stage]:
    """Components out of the edges between cells, as a tree: of `fan_in` files one, until one is left."""
    a, r = p.a, p.r
    edges = a.duplicated * a.crossing * p.rows
    stages: list[Stage] = []
    while files > 1 or not stages:
        n = int(np.ceil(files / a.fan_in))
        each = edges / n
        stages.append(
            Stage(
                f"merge {len(stages) + 1}",
                Tasks.of(n, each / r.edges, each * EDGE, each * EDGE, files / n + 1, each * a.edge_memory),
            )
        )
        files = n
    return stages


def audit(a: Assumed, r: Rates, seed: int = 0, exact: bool = False) -> list[Stage]:
    """The stages of an audit of `a.generations`, where a lint left vectors in cells and thumbnails by shard.

    exact: against every vector, instead of those of `a.probes` cells.
    """
    p = Plan(a, r)
    queries = a.generations
    hit = ID + 4
    stages = [p.described("describe", queries)]
    if exact:
        rows = parts(p.rows, a.exact_rows)
        # A grid of rows and queries: as many parts of the queries as make enough tasks.
        asked = parts(queries, np.ceil(queries / max(1.0, np.ceil(a.waves * a.machines * a.cores / len(rows)))))
        blocks, asked = np.repeat(rows, len(asked)), np.tile(asked, len(rows))
        read, written = (blocks + asked) * p.vector, asked * a.kept * hit
        compute = p.flops(blocks * asked) / r.search_flops
        memory = r.process + (np.minimum(blocks, BLOCK) * r.dim * 4 + asked * (p.vector + a.kept * hit))
        requests = 2 + blocks / a.shard
        stages.append(Stage("search", Tasks.of(len(blocks), compute, read, written, requests, memory)))
        lists = float(len(rows))
    else:
        probes = min(a.probes, p.cells)
        route = p.assigned("route", queries, probes)
        own, _ = p.sizes(seed)
        # Generations fall into cells as training images do; a cell with many is searched by several tasks.
        asked = queries * probes * own / own.sum()
        most = (own * asked).sum() / (a.waves * a.machines * a.cores)
        pieces = np.ceil(own * asked / most).astype(np.int64)
        rows, asked = np.repeat(own, pieces), np.repeat(asked / pieces, pieces)
        cuts = np.arange(0, len(rows), max(1, int(np.ceil(len(rows) / a.tasks))))
        products, rows, asked = (np.add.reduceat(values, cuts) for values in (rows * asked, rows, asked))
        read, written = (rows + asked) * p.vector, asked * a.kept * hit
        compute = p.flops(products) / r.search_flops
        memory = r.process + np.minimum(rows, BLOCK) * r.dim * 4 + asked * (p.vector + a.kept * hit)
        requests = len(route.tasks) + rows / rows.mean()
        stages += [route, Stage("search", Tasks.of(len(cuts), compute, read, written, requests, memory))]
        lists = probes
    top = p.tasks_of(queries, a.shard, a.shuffle_waves)
    found = top * lists * a.kept * hit
    files = float(len(stages[-1].tasks))
    stages.append(
        Stage(
            "best of all cells",
            # Each list is sorted: what is selected among is `lists` times as long as what is kept.
            Tasks.of(
                len(top), top * lists * a.kept / r.digests, found, top * a.kept * hit, files, r.process + found / 16
            ),
        )
    )
    candidates = queries * r.candidates
    shards = max(1.0, np.ceil(a.images / a.shard))
    # By shard order: a shard's thumbnails are read from end to end where that is less than one request each.
    touched = min(shards, candidates)
    n = int(min(touched, a.tasks))
    stages.append(
        Stage(
            "thumbnails",
            Tasks.of(
                n,
                0.0,
                min(touched * a.shard, a.images) * a.thumbnail / n,
                candidates * a.thumbnail / n,
                2 * touched / n,
                r.process + a.shard * a.thumbnail,
            ),
        )
    )
    look = p.tasks_of(queries, a.shard, a.waves)
    stages.append(
        Stage(
            "second look",
            Tasks.of(
                len(look),
                look / r.second_looks,
                look * (r.candidates + 1) * a.thumbnail,
                look * r.candidates * 4,
                float(min(n, a.fan_in)),
                r.process + look * (r.candidates + 1) * a.thumbnail,
            ),
        )
    )
    stages.append(
        Stage(
            "verdict",
            Tasks.of(1, queries / r.digests, queries * a.row, queries * a.row, len(look), queries * 5 * a.row),
        )
    )
    return stages
