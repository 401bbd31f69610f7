"""Add to slow.txt, the list of tests that `pytest -m "not slow"` leaves out, from the durations of a run.

    python -m pytest -m "not slow" --durations=0 --durations-min=0.1 | tee times.txt
    python tests/slow.py times.txt

A test function is slow where its calls and set-ups, parameters together, take LONGEST seconds or more. A file on a line
of its own is left out whole. A fixture counts for the first test that uses it, so run both again for what is left. To
make the list anew, empty it first. Numbers of a busy machine only make the list longer.
"""

from __future__ import annotations

import re
import sys
from collections import defaultdict
from pathlib import Path

LIST = Path(__file__).parent / "slow.txt"
LONGEST = 1.5


def names() -> frozenset[str]:
    """Files, and tests as `file::function`, that are slow."""
    return frozenset(line for line in LIST.read_text(encoding="utf-8").splitlines() if line and line[0] != "#")


def is_slow(nodeid: str, found: frozenset[str]) -> bool:
    file, _, function = nodeid.partition("::")
    return file in found or f"{file}::{function.partition('[')[0]}" in found


def slowest(text: str) -> list[str]:
    """Lines for slow.txt out of what pytest printed."""
    seconds: dict[str, float] = defaultdict(float)
    for took, nodeid in re.findall(r"^([\d.]+)s (?:call|setup) +(\S+?::\w+)", text, re.MULTILINE):
        seconds[nodeid] += float(took)
    return sorted(name for name, took in seconds.items() if took >= LONGEST)


if __name__ == "__main__":
    found = sorted(names().union(slowest(Path(sys.argv[1]).read_text(encoding="utf-8"))))
    head = "# Tests that `-m 'not slow'` leaves out; see slow.py."
    LIST.write_text("\n".join([head, *found]) + "\n", encoding="utf-8")
