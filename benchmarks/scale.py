"""A lint of LAION-2B and an audit of ten million generations: core hours, bytes and wall hours, as sums.

    python benchmarks/scale.py
    python benchmarks/scale.py --machines 100 --images 1e9

Nothing of this size was run. Rates are those of one core, read from results/ (benchmarks embed, search and
scale_rates); all else is an assumption, an argument with its source (`--help`). A stage takes what its arithmetic or
its bytes take, whichever is longer; stragglers, failures, requests and the start of tasks are left out.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from record import record

RESULTS = Path(__file__).parents[1] / "results"
HOUR, ID, DAY = 3600.0, 8, 24.0


def _assumed(default: float, said: str) -> Any:
    return dataclasses.field(default=default, metadata={"said": said})


@dataclasses.dataclass(frozen=True)
class Assumed:
    """What was not measured here, each an argument."""

    images: float = _assumed(2.3e9, "images to lint: LAION-2B, by its name two thousand million, as usually given 2.3")
    generations: float = _assumed(1e7, "images to audit: the task this page answers")
    image_bytes: float = _assumed(60e3, "bytes of an image file: a JPEG of 512 px; a guess of ours")
    duplicated: float = _assumed(0.3, "share of images with a near-duplicate: Webster et al. 2023 (arXiv 2303.12733)")
    copies: float = _assumed(2, "further cells an image is compared in: what that finds is in benchmark-scale-rates")
    probes: float = _assumed(64, "cells a generation is searched in; what that finds must be measured on the set")
    uneven: float = _assumed(1.6, "mean of squared cell sizes over the square of the mean: lognormal, sigma 0.7")
    value_bytes: float = _assumed(2, "bytes of one number of a vector: 2 is fp16, 1 is int8; the error is measured")
    thumbnail: float = _assumed(3072, "bytes of a thumbnail: 32 x 32 x 3, the default of the second look")
    row: float = _assumed(100, "bytes of an image's row: docs/index.md says about so many")
    held: float = _assumed(140, "bytes of memory a training image, today, while embedded: benchmark-whole")
    machines: float = _assumed(25, "machines: the task this page answers in about a day")
    cores: float = _assumed(64, "cores of a machine, as fast as the one measured, also when all work")
    memory: float = _assumed(256e9, "bytes of memory of a machine: 4 GB a core, usual for rented ones")
    network: float = _assumed(25e9 / 8, "bytes/s of a machine, each way: 25 Gbit/s, usual for rented ones of that size")
    store: float = _assumed(40e9, "bytes/s of the object store, all machines together; a guess of ours")
    core_price: float = _assumed(0.04, "dollars a core and hour: the order of list prices; put in your own")


@dataclasses.dataclass(frozen=True)
class Rates:
    """What was measured here, of one core: seconds an image; operations, pictures and edges a second."""

    describe: float
    dim: int
    search_flops: float
    pairs_flops: float
    second_looks: float
    candidates: int
    edges: float

    @classmethod
    def read(cls) -> Rates:
        """From the results of the other benchmarks."""
        embed, search, more = (
            json.loads((RESULTS / f"benchmark-{name}.json").read_text()) for name in ("embed", "search", "scale-rates")
        )
        products = 2 * search["dim"] * search["queries"] * search["references"]
        return cls(
            describe=embed["threads"] / float(np.median(embed["images_per_second"])),
            dim=search["dim"],
            search_flops=products / (search["threads"] * float(np.median(search["seconds"]))),
            pairs_flops=more["pairs_flops"],
            second_looks=more["second_looks_per_second"],
            candidates=more["candidates"],
            edges=more["edges_per_second"],
        )


@dataclasses.dataclass(frozen=True)
class Work:
    """A stage: seconds of one core, bytes read and written."""

    seconds: float
    read: float = 0.0
    written: float = 0.0

    def summed(self, a: Assumed) -> dict[str, Any]:
        """Its core hours, bytes and wall hours, and what it is bound by."""
        compute = self.seconds / (a.machines * a.cores)
        bytes_ = max(self.read, self.written) / min(a.store, a.machines * a.network)
        found = {"core_hours": self.seconds / HOUR, "read": self.read, "written": self.written}
        found |= {"hours": max(compute, bytes_) / HOUR}
        return {name: number(value) for name, value in found.items()} | {
            "bound_by": "compute" if compute >= bytes_ else "bytes"
        }


def number(value: float) -> float:
    """Four digits: more would be pretence."""
    return float(f"{value:.4g}")


def cells(a: Assumed) -> float:
    """Assigning costs rows x cells, comparing rows^2 / cells x (1/2 + copies): the sum is least where they meet."""
    return math.sqrt(a.images * (0.5 + a.copies))


def lint(a: Assumed, r: Rates) -> dict[str, Work]:
    """The stages of a lint of `a.images` images."""
    n, vector = a.images, r.dim * a.value_bytes + ID
    moved = n * vector * (1 + a.copies)
    pairs = a.uneven * n * n / cells(a) * (0.5 + a.copies)
    edges = n * a.duplicated
    return {
        "describe": Work(n * r.describe, n * a.image_bytes, n * (vector + a.thumbnail + a.row)),
        "assign": Work(2 * r.dim * n * cells(a) / r.search_flops, n * vector, moved),
        "compare": Work(2 * r.dim * pairs / r.pairs_flops, moved, edges * 2 * ID),
        "merge": Work(edges / r.edges, edges * 2 * ID, n * 2 * ID),
    }


def audit(a: Assumed, r: Rates, exact: bool = False) -> dict[str, Work]:
    """The stages of an audit of `a.generations`, after a lint of the same set. exact: against every vector."""
    n, g, vector = a.images, a.generations, r.dim * a.value_bytes + ID
    looked_at = n if exact else a.uneven * n * min(1.0, a.probes / cells(a))
    return {
        "describe": Work(g * r.describe, g * a.image_bytes, g * (vector + a.thumbnail + a.row)),
        "search": Work(2 * r.dim * g * looked_at / r.search_flops, n * vector),
        "second look": Work(g / r.second_looks, min(g * r.candidates, n) * a.thumbnail),
    }


def limits(a: Assumed, r: Rates) -> list[dict[str, Any]]:
    """The number of images from which on each takes a day or more than a machine's memory."""
    of = dataclasses.replace
    one = of(a, machines=1)

    def hours(a: Assumed, stage: str) -> Callable[[float], float]:
        return lambda n: lint(of(a, images=n), r)[stage].seconds / (a.machines * a.cores) / HOUR

    asks: list[tuple[str, str, float, Callable[[float], float]]] = [
        ("one machine", "describing in a day", DAY, hours(one, "describe")),
        ("one machine", "comparing in a day", DAY, hours(one, "compare")),
        ("one machine", "places, labels and digests in memory", a.memory, lambda n: n * a.held),
        (f"{a.machines:g} machines", "describing in a day", DAY, hours(a, "describe")),
        (f"{a.machines:g} machines", "comparing in a day", DAY, hours(a, "compare")),
    ]
    return [
        {"where": where, "what": what, "breaks_at": number(_largest(ask, there))} for where, what, there, ask in asks
    ]


def _largest(asks: Callable[[float], float], there: float) -> float:
    """The largest number of images, within a hundredth, for which no more is asked than there is."""
    low, high = 0.0, 15.0
    while high - low > 0.004:
        middle = (low + high) / 2
        low, high = (middle, high) if asks(10.0**middle) <= there else (low, middle)
    return float(10.0**low)


def arguments(given: list[str] | None = None) -> Assumed:
    """What is assumed, each value an option of its own."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    for field in dataclasses.fields(Assumed):
        name = f"--{field.name.replace('_', '-')}"
        parser.add_argument(name, type=float, default=field.default, help=field.metadata["said"])
    return Assumed(**vars(parser.parse_args(given)))


def main() -> None:
    a, r = arguments(), Rates.read()
    jobs = {"lint": lint(a, r), "audit": audit(a, r), "audit_exact": audit(a, r, exact=True)}
    found = {job: {name: work.summed(a) for name, work in stages.items()} for job, stages in jobs.items()}
    assumed = {
        each.name: {"value": getattr(a, each.name), "source": each.metadata["said"]} for each in dataclasses.fields(a)
    }
    record("scale", {"measured": dataclasses.asdict(r), "assumed": assumed, "jobs": found, "limits": limits(a, r)})


if __name__ == "__main__":
    main()
