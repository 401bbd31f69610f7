"""The layers of the package: imports point down, without circles; torch and Pillow stay where they are needed."""

from __future__ import annotations

import ast
import functools
import importlib
import pkgutil
from pathlib import Path

import copyscope

SOURCE = Path(copyscope.__file__).parent
# A package imports those before it alone.
LAYERS = [
    "base", "data", "report", "curation",
    "detection/measures", "detection/descriptors", "detection/embedding", "detection/search", "detection/matching",
    "detection/dedup", "detection/verdict", "detection/causes", "detection/index", "detection",
    "diffusion", "nearest", "guard", "serve", "experiment", "top", "cli", "main",
]  # fmt: skip
FILES = {"": "main", "__main__": "main", "demo": "top", "doctor": "top", "nearest_image": "nearest"}
"""Files beside the packages that are no base."""
TORCH = (
    "diffusion/",
    "guard/",
    "detection/descriptors/sscd.py",
    "detection/descriptors/clip.py",
    "detection/descriptors/_device.py",
)
PILLOW = ("imaging/", "guard/", "detection/descriptors/phash.py", "detection/verdict/alterations.py")
SHELVES = {
    "detection/descriptors",
    "detection/measures",
    "diffusion/mitigations",
    "diffusion/models",
    "diffusion/signals",
}
MOST_FILES = 16


def module_of(path: Path) -> str:
    """ "detection.audit" of its file, "" of the package itself."""
    parts = path.relative_to(SOURCE).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {module_of(path): path for path in sorted(SOURCE.rglob("*.py"))}


def imported(path: Path, text: str) -> set[str]:
    """Dotted names that a file imports, those inside functions too, those for type checkers alone left out."""
    package = ["copyscope", *path.relative_to(SOURCE).parts[:-1]]
    tree = ast.parse(text)
    typing_only = {
        id(inner)
        for node in ast.walk(tree)
        if isinstance(node, ast.If) and isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING"
        for inner in ast.walk(node)
    }
    found = set()
    for node in ast.walk(tree):
        if id(node) in typing_only:
            continue
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else []
            module = ".".join([*base, *([node.module] if node.module else [])])
            found |= {f"{module}.{alias.name}" for alias in node.names}
    return found


def own(name: str) -> str | None:
    """The module of ours that an imported name is, or is of; None where it is not ours."""
    parts = name.split(".")
    if parts[0] != "copyscope":
        return None
    return next(".".join(parts[1:stop]) for stop in range(len(parts), 0, -1) if ".".join(parts[1:stop]) in MODULES)


@functools.cache
def graph() -> dict[str, set[str]]:
    """Module -> the modules it imports."""
    return {
        module: {found for name in imported(path, path.read_text()) if (found := own(name)) is not None} - {module}
        for module, path in MODULES.items()
    }


def layer(module: str) -> int:
    """Place of a module's package in LAYERS."""
    if module in FILES:
        return LAYERS.index(FILES[module])
    parts = module.split(".")
    names = ("/".join(parts[:2]), parts[0])
    return next((LAYERS.index(name) for name in names if name in LAYERS), 0)


def upward(edges: dict[str, set[str]]) -> list[str]:
    """Imports of a higher layer; and between the towers, which never meet."""
    found = []
    for module, reached in edges.items():
        for other in reached:
            towers = {module.partition(".")[0], other.partition(".")[0]} == {"detection", "diffusion"}
            if towers or layer(other) > layer(module):
                found.append(f"{module} -> {other}")
    return found


def circles(edges: dict[str, set[str]]) -> list[str]:
    """Modules that reach themselves."""

    def reaches(start: str) -> bool:
        seen, left = set(), list(edges[start])
        while left:
            here = left.pop()
            if here not in seen:
                seen.add(here)
                left.extend(edges[here])
        return start in seen

    # The package itself only loads names on first use.
    return [module for module in edges if module and reaches(module)]


def test_imports_point_down_without_circles():
    edges = {module: reached - {""} for module, reached in graph().items()}
    assert not upward(edges)
    assert not circles(edges)


def test_the_checks_see_what_they_forbid():
    path = SOURCE / "diffusion" / "generate.py"
    text = "def f():\n    from ..detection.audit import audit\n    from copyscope import cli\n"
    edges = {"diffusion.generate": {own(name) for name in imported(path, text)}}
    assert sorted(upward(edges)) == ["diffusion.generate -> cli", "diffusion.generate -> detection.audit"]
    assert circles({"a": {"b"}, "b": {"c"}, "c": {"a"}, "d": {"a"}}) == ["a", "b", "c"]


def test_folders_are_small_libraries_are_imported_where_they_belong_and_no_pickle():
    files = {folder: list(folder.glob("*.py")) for folder in {SOURCE, *(path.parent for path in MODULES.values())}}
    full = {
        str(folder.relative_to(SOURCE)): len(found)
        for folder, found in files.items()
        if folder.relative_to(SOURCE).as_posix() not in SHELVES
        and len([path for path in found if not path.name.startswith("__")]) > MOST_FILES
    }
    assert not full
    wrong = []
    for path in MODULES.values():
        where, text = path.relative_to(SOURCE).as_posix(), path.read_text()
        libraries = {name.split(".")[0] for name in imported(path, text)}
        wrong += [where] if libraries & {"torch", "transformers", "diffusers"} and not where.startswith(TORCH) else []
        wrong += [where] if "PIL" in libraries and not where.startswith(PILLOW) else []
        wrong += [where] if libraries & {"pickle", "shelve", "marshal", "dill", "joblib"} else []
        wrong += [where] if "allow_pickle=True" in text else []
    assert not wrong


def test_every_module_imports_and_has_a_docstring():
    for module in pkgutil.walk_packages([str(SOURCE)], "copyscope."):
        if not module.name.endswith("__main__"):
            assert importlib.import_module(module.name).__doc__, module.name
