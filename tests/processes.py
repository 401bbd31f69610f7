"""Trainings in two processes."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]


def in_two_processes(module: str, folder: Path, out: Path) -> None:
    """Calls `together(folder, out)` of a test module in each of two processes that find each other, and waits."""
    code = out / "together.py"
    code.write_text(f"import sys\nimport {module} as t\nt.together(*sys.argv[1:])\n")
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    path = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
    environment = os.environ | {"PYTHONPATH": path, "OMP_NUM_THREADS": "1"}
    done = subprocess.run([*launch, code, folder, out], env=environment, cwd=ROOT, capture_output=True, timeout=120)
    assert done.returncode == 0, done.stderr.decode()[-2000:]
