"""The house: imports point down, the towers never meet, torch stays where it is needed, files stay small."""

from __future__ import annotations

import ast
import importlib
import pkgutil
from pathlib import Path

import pytest

import copyscope

SOURCE = Path(copyscope.__file__).parent
MODULES = sorted(SOURCE.rglob("*.py"))
TOWERS = ("copying", "diffusion")
# What stands on the towers; everything else outside them is the ground floor.
ROOF = {
    "arms", "check", "cli", "cli_auditing", "cli_looking", "cli_searching", "cli_making", "cli_options", "cli_guarding",
    "cli_serving", "doctor", "demo", "deduplication", "experiment", "plan", "prepare", "recheck", "watch", "finding",
    "guard", "serve", "serve_connections", "__init__", "__main__",
}  # fmt: skip
TORCH = {"detection/descriptors/sscd.py", "detection/descriptors/clip.py"}


def imports(path):
    """Absolute dotted names that a file imports, anywhere in it, but for type checkers only."""
    package = ["copyscope", *path.relative_to(SOURCE).parts[:-1]]
    tree = ast.parse(path.read_text())
    typing_only = {
        id(inner)
        for node in ast.walk(tree)
        if isinstance(node, ast.If) and isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING"
        for inner in ast.walk(node)
    }
    for node in ast.walk(tree):
        if id(node) in typing_only:
            continue
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else []
            module = ".".join([*base, *([node.module] if node.module else [])])
            yield module
            yield from (f"{module}.{alias.name}" for alias in node.names)


def room(name):
    """Which room of the house a dotted name is in."""
    parts = name.split(".")
    return parts[1] if len(parts) > 1 and parts[0] == "copyscope" else None


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(SOURCE)))
def test_imports_point_down(path):
    own = path.relative_to(SOURCE)
    floor = own.parts[0] if len(own.parts) > 1 else own.stem
    reached = {room(name) for name in imports(path)} - {None}
    if floor in TOWERS:
        assert not reached & (set(TOWERS) - {floor}), "a tower imports the other"
        assert not reached & (ROOF - {"__init__", "__main__"}), "a tower imports the roof"
    elif floor == "report":
        assert not reached & {*TOWERS, *ROOF}, "the report is a function of what it is given"
    elif floor not in ROOF:
        assert not reached & {*TOWERS, *ROOF, "report"}, "the ground floor imports what stands on it"


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(SOURCE)))
def test_torch_is_imported_where_it_is_needed_only(path):
    where = path.relative_to(SOURCE).as_posix()
    heavy = {name.split(".")[0] for name in imports(path)} & {"torch", "transformers", "diffusers"}
    assert not heavy or where in TORCH or where.startswith("diffusion/")


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(SOURCE)))
def test_no_pickle_and_no_file_much_above_400_lines(path):
    text = path.read_text()
    assert len(text.splitlines()) <= 440
    assert not {name.split(".")[0] for name in imports(path)} & {"pickle", "shelve", "marshal", "dill", "joblib"}
    assert "allow_pickle=True" not in text


def test_every_module_imports_and_has_a_docstring():
    for module in pkgutil.walk_packages([str(SOURCE)], "copyscope."):
        if not module.name.endswith("__main__"):
            assert importlib.import_module(module.name).__doc__, module.name


def test_the_check_sees_a_tower_that_imports_the_other(tmp_path, monkeypatch):
    fake = SOURCE / "diffusion" / "train.py"
    monkeypatch.setattr(Path, "read_text", lambda self: "from ..copying.audit import audit\nimport torch\n")
    assert "copying" in {room(name) for name in imports(fake)}
    with pytest.raises(AssertionError, match="tower"):
        test_imports_point_down(fake)
