"""What breaks as a set grows: on one machine as Copyscope is today, and on a cluster with and without each answer."""

from __future__ import annotations

import dataclasses
from typing import Any

from copyscope.detection.search.ivf import NEAR
from scale_jobs import EDGE, HOUR, Assumed, Plan, Rates


@dataclasses.dataclass(frozen=True)
class Limit:
    """A way of doing it, what it asks at N images, how much there is, and what is done instead."""

    where: str
    what: str
    unit: str
    there: float
    answer: str
    asks: Any

    def breaks_at(self) -> float:
        """The number of images at which it asks for more than there is, within a hundredth; infinite above 10^13."""
        low, high = 0.0, 13.0
        if self.asks(10.0**high) <= self.there:
            return float("inf")
        while high - low > 0.004:
            middle = (low + high) / 2
            low, high = (middle, high) if self.asks(10.0**middle) <= self.there else (low, middle)
        return float(10.0**high)


def limits(a: Assumed, r: Rates) -> list[Limit]:
    """What breaks as the set grows: on one machine as Copyscope is today, and on the cluster without each answer."""
    hot_share, slots = a.hot / a.images, a.machines * a.cores

    def plan(n: float) -> Plan:
        return Plan(dataclasses.replace(a, images=n, hot=hot_share * n), r)

    def unsplit(n: float) -> float:
        p = Plan(dataclasses.replace(a, images=n, hot=hot_share * n, collapse=0), r)
        mean = p.rows / p.cells
        own = mean + p.hot
        return float(p.flops(own**2 / 2 + own * a.copies * mean)) / r.pairs_flops / HOUR

    def assign(n: float) -> float:
        p = plan(n)
        return float(p.flops(p.rows * p.cells)) / r.search_flops / slots / HOUR

    one, hours = "one machine, today", "h"
    cluster = f"{a.machines:g} machines"
    return [
        Limit(one, "describing every image", hours, a.patience, "more machines: the work is in shards",
              lambda n: n * r.describe / a.cores / HOUR),
        Limit(one, "each row in the cells nearest to it", hours, a.patience, "stretches of cells by an engine",
              lambda n: 2 * r.dim * NEAR * n**1.5 / 2 / r.pairs_flops / a.cores / HOUR),
        Limit(one, "all vectors read once for each stretch of cells that memory holds", "bytes read in that time",
              a.patience * HOUR * a.disk, "cells that are near one another in one stretch",
              lambda n: n * r.dim * 2 * (n * r.dim * 4 / (a.memory / 8))),
        Limit(one, "what is as long as the set: places, labels, digests", "bytes of memory", a.memory,
              "these in shards, too", lambda n: n * a.held),
        Limit(one, "a card a group, in one table", "bytes of memory", a.memory,
              "cards of the largest groups and of a sample", lambda n: n * a.duplicated / 3 * a.card_bytes),
        Limit(cluster, "a cell with the most duplicated image, as one task", hours, a.patience,
              "equal files made one row first; a large cell compared block by block", unsplit),
        Limit(cluster, "its edges, not merged within the cell", "bytes of network in that time",
              a.patience * HOUR * a.network, "edges merged within each task: at most one an image",
              lambda n: (hot_share * n) ** 2 / 2 * EDGE),
        Limit(cluster, "one piece a shard and cell in the shuffle", "requests in that time",
              a.patience * HOUR * slots * a.at_once / a.request, "one file a task of many shards, sorted by cell",
              lambda n: n / a.shard * plan(n).cells),
        Limit(cluster, "the manifest written anew at every shard", "bytes of network in that time",
              a.patience * HOUR * a.network, "a manifest a shard; one that names them, last",
              lambda n: (n / a.shard) ** 2 / 2 * 200),
        Limit(cluster, "the last merge, of all edges within and between cells", "bytes of memory", a.memory,
              "only edges between cells leave a cell", lambda n: n * a.duplicated * a.edge_memory),
        Limit(f"{cluster}, with the answers", "describing every image", hours, a.patience,
              "more machines, GPUs, or the student's model", lambda n: n * r.describe / slots / HOUR),
        Limit(f"{cluster}, with the answers", "the last merge, of edges between cells", "bytes of memory", a.memory,
              "rounds of label propagation over shards of the labels",
              lambda n: n * a.duplicated * a.crossing * a.edge_memory),
        Limit(f"{cluster}, with the answers", "assigning to cells", hours, a.patience, "centres in two levels", assign),
        Limit(f"{cluster}, with the answers", "one manifest that names every shard's", "bytes of memory",
              a.memory / a.cores, "two levels of it", lambda n: n / a.shard * 200),
    ]  # fmt: skip
