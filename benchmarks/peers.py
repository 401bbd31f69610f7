"""Near-duplicates of the same vectors and of the same files by Copyscope and by what else there is, in one run.

    copyscope fetch fluent-emoji && copyscope fetch photographs
    python -m venv imagededup && imagededup/bin/pip install imagededup       # and so on, each in its own
    python benchmarks/peers.py --peer imagededup=imagededup/bin/python --peer cleanvision=cleanvision/bin/python

Every rival runs in a process of its own, one after the other, with as many threads, in the Python given by `--peer` for
its distribution, or else in this one. One that is not installed, takes more than `--seconds` or would need more memory
than `--memory` (told from its code, or from what it asked for) is in the result with the reason.

Vectors are those of benchmarks/large.py: clusters alike by 0.5, one row in 50 planted as another's twin at 0.9; pairs
from 0.75 on are near-duplicates. Files are emoji and tiles of photographs as JPEG, of which one in three is a planted
copy of another. `found`: planted pairs that are in one group. `false_pairs`: pairs in one group that were not planted;
of files, those of different emoji families and photographs, for within one nobody knows which are. Of a rival that
tells pairs, groups are their connected components, made outside the clock; `told` judges its pairs as they are.
`seconds` is the work without imports, `whole_seconds` the process; memory is its own, of all its processes together.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

import measured
from copyscope import stats
from copyscope.detection.search.ivf import NEAR
from peer_jobs import FILES, THRESHOLD, VECTORS, Rival
from record import RESULTS, record

GB = 10**9
KINDS = ("exact", "jpeg", "light_copy", "colour", "overlay", "crop")
TILE, COPIES = 160, 3
PLAIN = 8.0
"""Tiles whose grey values deviate by less are a piece of wall: any two of them are alike."""
HERE = Path(__file__).resolve().parent


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--peer", action="append", default=[], metavar="NAME=PYTHON", help="the Python of a peer")
    parser.add_argument("--vectors", type=int, nargs="*", default=[10_000, 30_000, 100_000], help="numbers of rows")
    parser.add_argument("--files", type=int, nargs="*", default=[1_000, 3_000, 10_000], help="numbers of files")
    parser.add_argument("--only", nargs="*", help="rivals whose name has one of these in it; the others' results stay")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--seconds", type=float, default=1800, help="after which a rival is stopped")
    parser.add_argument("--memory", type=float, default=8, help="GB that a rival may need")
    options = parser.parse_args()
    pythons = dict(each.split("=", 1) for each in options.peer)
    path = RESULTS / "benchmark-peers.json"
    kept = json.loads(path.read_text()) if path.is_file() else {}
    found: dict[str, Any] = {name: kept.get(name, {}) for name in ("vectors", "files")}
    for what, sizes, rivals in (("vectors", options.vectors, VECTORS), ("files", options.files, FILES)):
        for n in sizes:
            chosen = [each for each in rivals if not options.only or any(part in each.name for part in options.only)]
            rows = found[what].setdefault(str(n), {})
            for name, row in compare(what, n, chosen, pythons, options):
                rows[name] = row
                print(f"{what} {n:,} {name}: {json.dumps(row)}", flush=True)
                record("peers", settings(options) | found, show=False)


def settings(options: argparse.Namespace) -> dict[str, Any]:
    return {"threads": options.threads, "threshold": THRESHOLD, "probes": NEAR, "allowed_seconds": options.seconds,
            "allowed_gb": options.memory, "kinds": list(KINDS)}  # fmt: skip


def compare(what: str, n: int, rivals: list[Rival], pythons: dict[str, str], options: argparse.Namespace) -> Any:
    """(name, row of the result) of each rival, on the same `n` vectors or files."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        # Made by a process of its own: the memory of one that is started is at least that of the one that starts it.
        made = measured.run([sys.executable, str(HERE / "peer_data.py"), what, str(n), name], os.environ, 3600)
        if made.code:
            raise SystemExit(made.errors)
        truth = np.load(folder / "truth.npz")
        for rival in rivals:
            yield rival.name, one(rival, folder, n, truth, pythons.get(rival.needs, sys.executable), options)


def one(rival: Rival, folder: Path, n: int, truth: Any, python: str, options: argparse.Namespace) -> dict[str, Any]:
    needed = rival.square * n**2 / GB
    if needed > options.memory:
        return {"needs": rival.needs, "not_run": f"would need {needed:.0f} GB"}
    (folder / "found.npy").unlink(missing_ok=True)
    with tempfile.TemporaryDirectory() as cache:
        environment = os.environ | {
            "COPYSCOPE_CACHE": cache, "SENTRY_OPT_OUT": "1",
            **{f"{each}_NUM_THREADS": str(options.threads) for each in ("OMP", "OPENBLAS", "MKL")},
        }  # fmt: skip
        # -P: the folder of the benchmarks has names that peers may mean otherwise.
        ran = measured.run(
            [python, "-P", str(HERE / "peer_jobs.py"), rival.name, str(folder)], environment, options.seconds
        )
    row: dict[str, Any] = {"needs": rival.needs}
    if ran.code is None:
        return row | {"not_run": f"stopped after {options.seconds:.0f} s", **ran.as_dict()}
    if ran.code:
        last = (ran.errors.strip().splitlines() or ["killed"])[-1]
        missing = "ModuleNotFoundError" in last
        return row | {"not_run": "not installed" if missing else f"failed: {without_paths(last)[:200]}"}
    row |= json.loads(ran.text.strip().splitlines()[-1]) | ran.as_dict()
    return row | judged(np.load(folder / "found.npy"), n, truth)


def without_paths(text: str) -> str:
    return " ".join(word for word in text.split() if "/" not in word)


def judged(found: np.ndarray, n: int, truth: Any) -> dict[str, Any]:
    """What of the truth was found. found: a group for each row [n], or pairs [p 2], the lower row first.

    Pairs are judged as told, and by the groups that they make (their connected components): `found`, `false_pairs`.
    """
    twins, family, kind = np.sort(truth["twins"], axis=1), truth["family"], truth["kind"]
    told = {}
    if found.ndim == 2:
        keys = np.unique(found[:, 0] * n + found[:, 1])
        one, other = keys // n, keys % n
        told["told"] = {
            "found": share(np.isin(twins[:, 0] * n + twins[:, 1], keys)),
            "pairs": len(keys),
            "false_pairs": int((family[one] != family[other]).sum()),
        }
        graph = coo_array((np.ones(len(keys), bool), (one, other)), shape=(n, n))
        found = connected_components(graph, directed=False)[1]
    hit = found[twins[:, 0]] == found[twins[:, 1]]
    together = pairs_of(found)
    of_one_family = pairs_of(np.unique(np.stack([found, family]), axis=1, return_inverse=True)[1])
    row: dict[str, Any] = {"found": share(hit), "pairs": together, "false_pairs": together - of_one_family} | told
    if len(np.unique(kind)) > 1:
        row["found_by_kind"] = {name: share(hit[kind == place]) for place, name in enumerate(KINDS)}
    return row


def pairs_of(label: np.ndarray) -> int:
    """How many pairs are in one group."""
    sizes = np.bincount(np.unique(label, return_inverse=True)[1].ravel()).astype(np.int64)
    return int((sizes * (sizes - 1) // 2).sum())


def share(those: np.ndarray) -> dict[str, Any]:
    return stats.proportion(int(those.sum()), len(those)).as_dict()


if __name__ == "__main__":
    main()
