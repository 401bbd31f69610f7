"""Where benchmarks put what they measured: `results/benchmark-NAME.json`, with the machine and the versions."""

from __future__ import annotations

import importlib.metadata
import json
import platform
import sys
from pathlib import Path
from typing import Any

from copyscope.machine import cores

RESULTS = Path(__file__).parent.parent / "results"


def record(name: str, found: dict[str, Any], *, show: bool = True) -> None:
    """Write what was found with the command and the machine it was found on, and print it."""
    model = next(
        (line.partition(":")[2].strip() for line in _cpu() if line.startswith("model name")), platform.machine()
    )
    versions = {
        package: importlib.metadata.version(package)
        for package in ("numpy", "onnxruntime", "pillow", "pyarrow", "torch")
    }
    command = " ".join(["python", f"benchmarks/{Path(sys.argv[0]).name}", *sys.argv[1:]])
    whole = {"command": command, "cpu": model, "cores": cores(), "python": platform.python_version()} | versions | found
    text = json.dumps(whole, indent=1)
    if show:
        print(text)
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / f"benchmark-{name}.json").write_text(text + "\n")


def _cpu() -> list[str]:
    try:
        return Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return []
