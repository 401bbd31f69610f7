"""Time and memory of each stage against the number of rows, each size in processes of its own.

    python benchmarks/growth.py --n 10000 30000 100000 300000 1000000 --memory 4GB
    python benchmarks/growth.py --n 3000000 10000000 --stages cells search recall groups --memory 4GB    # 35 GB

Vectors and queries are those of benchmarks/large.py. `cells`, `search`, `recall`, `groups` run one after the other in
one process, as in an audit and a lint; `exact` (as many queries, every row compared), `all_pairs` (groups) and `faiss`
(an inverted file with as many cells and probes; `faiss_range`: pairs by it) in one each. What needs every pair, or its
vectors in memory, is left out above a size: `--most-exact`, `--most-all-pairs`, `--most-faiss`.

A result is written after each process: killed and started again, it goes on with what is not there yet. `--memory` is
told to Copyscope as COPYSCOPE_MEMORY; `peak_mb` is the most memory of the process's own (no pages of files) during a
stage, `start_mb` what it had before. `--again` measures anew what is there.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import measured
from record import RESULTS, record
from vectors import DIM

QUERIES, K, DUPLICATES, THREADS, BLOCK = 10_000, 50, 0.75, 2, 50_000
PARTS = {
    "ours": ("cells", "search", "recall", "groups"),
    "exact": ("exact",),
    "all_pairs": ("all_pairs",),
    "faiss": ("faiss", "faiss_search", "faiss_range"),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--n", type=int, nargs="+", default=[10_000, 30_000, 100_000, 300_000, 1_000_000])
    parser.add_argument("--stages", nargs="+", default=list(PARTS), help=f"any of {', '.join(all_stages())}")
    parser.add_argument("--memory", default="4GB", help="given to Copyscope")
    parser.add_argument("--most-exact", type=int, default=1_000_000)
    parser.add_argument("--most-all-pairs", type=int, default=100_000)
    parser.add_argument("--most-faiss", type=int, default=1_000_000)
    parser.add_argument("--seconds", type=float, default=6 * 3600, help="after which a process is stopped")
    parser.add_argument("--again", action="store_true")
    parser.add_argument("--name", default="growth", help="of the result")
    options = parser.parse_args()
    most = {"exact": options.most_exact, "all_pairs": options.most_all_pairs, "faiss": options.most_faiss}
    path = RESULTS / f"benchmark-{options.name}.json"
    kept = json.loads(path.read_text()) if path.is_file() else {}
    sizes = {int(n): found for n, found in kept.get("sizes", {}).items()}
    for n in sorted(options.n):
        parts = [part for part in wanted(options.stages) if n <= most.get(part, n)]
        parts = [part for part in parts if options.again or not done(sizes.get(n, {}), part, options.memory)]
        for part, found in grown(n, parts, options):
            sizes[n] = sizes.get(n, {}) | found
            print(f"{n:,} {part}: {json.dumps(found)}", flush=True)
            record(options.name, {"dim": DIM, "threads": THREADS, "queries": QUERIES, "k": K, "duplicates": DUPLICATES,
                                  "sizes": {str(each): sizes[each] for each in sorted(sizes)}}, show=False)  # fmt: skip


def all_stages() -> list[str]:
    return [stage for stages in PARTS.values() for stage in stages]


def wanted(names: list[str]) -> list[str]:
    """The parts in which the named stages are."""
    for name in names:
        if name not in PARTS and name not in all_stages():
            raise SystemExit(f"No stage {name!r}; there are {', '.join(all_stages())}")
    return [part for part, stages in PARTS.items() if part in names or set(stages) & set(names)]


def done(found: dict[str, Any], part: str, memory: str) -> bool:
    """Whether a size's part is in the result, finished and with this much memory."""
    first = found.get(PARTS[part][0], {})
    return PARTS[part][-1] in found and (part != "ours" or first.get("memory") == memory)


def grown(n: int, parts: list[str], options: argparse.Namespace) -> Iterator[tuple[str, dict[str, Any]]]:
    """(part, its stages) of each part at one size."""
    if not parts:
        return
    with tempfile.TemporaryDirectory() as folder:
        environment = os.environ | {"COPYSCOPE_MEMORY": options.memory}
        for part in ("make", *parts):
            command = [sys.executable, str(Path(__file__).resolve().parent / "growth_stages.py"), part, str(n), folder]
            ran = measured.run(command, environment, options.seconds)
            if part == "make":
                if ran.code:
                    raise SystemExit(ran.errors)
                continue
            found = of_lines(ran.text)
            if ran.code != 0:
                why = f"stopped after {options.seconds:.0f} s" if ran.code is None else f"ended with {ran.code}"
                failed = next(stage for stage in PARTS[part] if stage not in found)
                # Not `done`: it is tried again.
                print(f"{n:,} {failed}: {why}\n{ran.errors[-2000:]}", file=sys.stderr, flush=True)
            if part == "ours" and "cells" in found:
                found["cells"]["memory"] = options.memory
            yield part, found | {f"process of {part}": ran.as_dict()}


def of_lines(text: str) -> dict[str, Any]:
    """Stages as the process told them, a line of JSON each."""
    found: dict[str, Any] = {}
    for line in text.splitlines():
        if line.startswith("{"):
            found |= json.loads(line)
    return found


if __name__ == "__main__":
    main()
