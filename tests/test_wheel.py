"""The wheel: built, installed into a fresh environment and run, without a network, on the Python of these tests."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import sysconfig
import zipfile
from pathlib import Path
from typing import Any

import pytest

from copyscope import __version__

ROOT = Path(__file__).parent.parent
PIP = [sys.executable, "-m", "pip", "--disable-pip-version-check"]
pytestmark = pytest.mark.slow


def call(command: list[Any], cwd: Path | None = None, sources: bool = False) -> str:
    # Without a folder of sources on the path, what is imported is what was installed.
    clean = {name: value for name, value in os.environ.items() if sources or name != "PYTHONPATH"}
    arguments = list(map(str, command))
    done = subprocess.run(arguments, capture_output=True, text=True, env=clean, cwd=cwd, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def wheel(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("wheelhouse")
    call(
        [*PIP, "wheel", "--quiet", "--no-index", "--no-deps", "--no-build-isolation", "-w", folder, ROOT], sources=True
    )
    (found,) = folder.glob("*.whl")
    return found


@pytest.fixture(scope="module")
def fresh(wheel, tmp_path_factory) -> Path:
    """Scripts folder of a new environment: the wheel, and by a path file the libraries that these tests use."""
    folder = tmp_path_factory.mktemp("fresh")
    call([sys.executable, "-m", "venv", folder])
    scripts = folder / ("Scripts" if os.name == "nt" else "bin")
    python = scripts / "python"
    call([python, "-m", "pip", "install", "--quiet", "--no-index", "--no-deps", wheel])
    site = Path(call([python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))"]).strip())
    libraries = dict.fromkeys(sysconfig.get_path(name) for name in ("purelib", "platlib"))
    (site / "libraries.pth").write_text("\n".join(libraries) + "\n")
    return scripts


def test_the_wheel_holds_every_file_of_the_package(wheel):
    source = ROOT / "src" / "copyscope"
    files = {f"copyscope/{path.relative_to(source).as_posix()}" for path in source.rglob("*") if path.is_file()}
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
    assert {name for name in files if "__pycache__" not in name} == {n for n in names if n.startswith("copyscope/")}
    assert f"copyscope-{__version__}.dist-info/licenses/LICENSE" in names


def test_any_python_that_is_supported_can_install_the_wheel(wheel):
    assert wheel.name == f"copyscope-{__version__}-py3-none-any.whl"


def test_installed_it_imports_and_examines_itself(fresh, tmp_path):
    code = "import copyscope; print(copyscope.__file__); print(copyscope.__version__)"
    where, version = call([fresh / "python", "-c", code], cwd=tmp_path).split()
    assert Path(where).is_relative_to(fresh.parent)
    assert version == __version__
    findings = json.loads(call([fresh / "copyscope", "doctor", "--json"], cwd=tmp_path))
    assert {"python", "cache", "memory"} <= {row["what"] for row in findings if row["ok"]}


def test_installed_it_compares_two_folders(fresh, world, tmp_path):
    out = call([fresh / "copyscope", "match", world.generated, world.train, "-p", "pdq", "--json"], cwd=tmp_path)
    assert json.loads(out)["n_missing"] == [0, 0]
    assert json.loads(out)["matches"]
