"""Docstrings in Google style: every argument of the public surface, what comes back, what is raised, the source."""

from __future__ import annotations

import ast
import dataclasses
import functools
import importlib
import inspect
import itertools
import re
import textwrap
from pathlib import Path
from types import FunctionType

import copyscope
from copyscope import errors, parts

DOCS = Path(__file__).parents[1] / "docs"
SOURCE = Path(copyscope.__file__).parent
SECTIONS = ("Args", "Attributes", "Returns", "Yields", "Raises")
CALLS = ("__call__",)
MADE_BY_METHODS = ("Index",)
"""Classes that nobody constructs but their own classmethods."""
NAMED = (
    "curation.captions",
    "curation.curate",
    "curation.export.write",
    "data.assets.fetch",
    "data.assets.known",
    "data.removals.Removed",
    "data.removals.leave_out",
    "data.removals.read_list",
    "detection.dedup.caption_overlap.caption_sharing",
    "detection.embedding.parquet.load",
    "detection.embedding.parquet.write",
    "detection.index.hits.Hit",
    "detection.lookup.Lookup",
    "detection.lookup.lookup",
    "detection.matching.ncc.Verify",
    "diffusion.CaptionPolicy",
    "diffusion.CaptionedImages",
    "diffusion.WeightedSampler",
    "diffusion.collate",
    "diffusion.conditioning.Conditioning",
    "diffusion.denoiser.DenoiseQuery",
    "diffusion.denoiser.DenoiseResult",
    "diffusion.denoiser.GuidedDenoiser",
    "diffusion.denoiser.SamplingContext",
    "diffusion.prompts.attribution.by_gradient",
    "diffusion.prompts.attribution.by_leaving_out",
    "diffusion.prompts.signal_scores.calibrate",
    "diffusion.prompts.signal_scores.scores",
    "diffusion.thresholds.Thresholds",
    "engine.Engine",
    "errors",
    "experiment.plan.AuditRecipe",
    "experiment.plan.ExperimentRecipe",
    "experiment.prepare.DataRecipe",
    "experiment.run.collect",
    "experiment.run.run",
    "experiment.run.status",
    "guard.log.Record",
    "guard.log.load",
    "guard.log.read_log",
    "imaging.blank.is_blank",
    "parts.load",
    "parts.names",
)
"""What the pages of docs/ name besides `copyscope.__all__` and the parts; of a module all that is public in it."""
SOURCED = (
    "detection.causes.firth.firth",
    "detection.verdict.baselines.classical_tests",
    "detection.verdict.quality.quality",
    "diffusion.sampling.noise_levels",
    "stats.benjamini_hochberg",
    "stats.conformal_p_values",
    "stats.corrected_proportion",
    "stats.proportion",
)
"""Algorithms of the literature outside the shelves; the docstring says whose."""


def find(name: str) -> object:
    """The object of a dotted name below `copyscope`."""
    path = name.split(".")
    for stop in range(len(path), 0, -1):
        try:
            found = importlib.import_module(".".join(["copyscope", *path[:stop]]))
        except ModuleNotFoundError:
            continue
        return functools.reduce(getattr, path[stop:], found)
    return getattr(copyscope, name)


def of_module(module: object) -> list[object]:
    """The public functions and classes that a module defines."""
    return [
        value
        for name, value in vars(module).items()
        if not name.startswith("_")
        and (inspect.isclass(value) or inspect.isfunction(value))
        and value.__module__ == module.__name__
    ]


def is_ours(value: object) -> bool:
    """Whether it is a function or class of the package, and no alias of types."""
    return callable(value) and value.__module__.startswith("copyscope")


def part_classes() -> list[type]:
    """Every part of every shelf."""
    return [parts.part_class(shelf, name) for shelf in parts.SHELVES for name in parts.names(shelf)]


def surface() -> list[object]:
    """What is public: `__all__`, what the documentation names, the base classes of the shelves and the parts."""
    found = [getattr(copyscope, name) for name in copyscope.__all__ if name != "__version__"]
    for name in NAMED:
        each = find(name)
        found += of_module(each) if inspect.ismodule(each) else [each]
    for package in parts.SHELVES.values():
        found += of_module(importlib.import_module(package))
    return list(dict.fromkeys(each for each in [*found, *part_classes()] if is_ours(each)))


def sections(doc: str) -> dict[str, str]:
    """The text of each section of a cleaned docstring; "" is what stands outside them all."""
    found, name = {"": ""}, ""
    for line in doc.splitlines():
        heading = re.fullmatch(r"(\w+):", line)
        if heading and heading[1] in SECTIONS:
            name = heading[1]
            found[name] = ""
        elif name and line and not line.startswith(" "):
            name = ""
        if not (heading and heading[1] == name):
            found[name] += line + "\n"
    return found


def entries(section: str) -> dict[str, str]:
    """Name -> text of the entries of a section, `name: text` each, with lines after the first indented further."""
    parted = re.split(r"^    (?! )([^:\n]+):\s", section, flags=re.MULTILINE)
    return {
        name.partition(" (")[0].lstrip("*"): text.strip() for name, text in zip(parted[1::2], parted[2::2], strict=True)
    }


def run_on(doc: str, names: set[str]) -> list[str]:
    """Arguments that the text outside the sections describes, as `name: ...` at the start of a sentence."""
    return [name for name in re.findall(r"(?:^|[.;]\s+|\n\s*)(\w+): ", sections(doc)[""]) if name in names]


def first_line(doc: str) -> list[str]:
    """Offences of the first line."""
    line, _, rest = doc.partition("\n")
    begins = line[:1].isupper() or line[:1].isdigit() or line[:1] in "`\"'("
    ends = line.endswith((".", "?")) and (not rest or rest.startswith("\n"))
    return ["first line begins no sentence"] * (not begins) + ["first line ends no sentence"] * (not ends)


def raised(function: FunctionType) -> set[str]:
    """Subclasses of CopyscopeError that a function raises, or a function of its module that it calls."""
    module, found, left, seen = inspect.getmodule(function), set(), [function], set()
    while left:
        here = inspect.unwrap(left.pop())
        if here in seen:
            continue
        seen.add(here)
        for node in ast.walk(ast.parse(textwrap.dedent(inspect.getsource(here)))):
            if isinstance(node, ast.Raise) and isinstance(node.exc, ast.Call) and isinstance(node.exc.func, ast.Name):
                kind = getattr(module, node.exc.func.id, None)
                if inspect.isclass(kind) and issubclass(kind, errors.CopyscopeError):
                    found.add(kind.__name__)
            elif isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
                called = getattr(module, node.func.id, None)
                if inspect.isfunction(called) and called.__module__ == module.__name__:
                    left.append(called)
    return found


def offences_of_function(function: FunctionType, is_property: bool = False) -> list[str]:
    """What the docstring of a function or method lacks."""
    doc = inspect.cleandoc(function.__doc__ or "")
    if not doc:
        return ["no docstring"]
    there, signature = sections(doc), inspect.signature(function)
    names = {name for name in signature.parameters if name not in ("self", "cls")}
    described = entries(there.get("Args", ""))
    found = first_line(doc)
    found += [f"no Args entry for {name}" for name in sorted(names - set(described))]
    found += [f"Args names {name}, which is no argument" for name in sorted(set(described) - names)]
    found += [f"Args says nothing of {name}" for name, text in described.items() if not text]
    found += [f"{name} is described outside Args" for name in run_on(doc, names)]
    found += ["what it raises is told outside Raises"] * bool(re.search(r"\bRaises [A-Z]\w*", there[""]))
    returns, path = signature.return_annotation, function.__qualname__.split(".")
    # Nothing, an object of the method's own class, a truth that the first line states.
    obvious = returns in (None, "None", inspect.Signature.empty, *path[:-1]) or doc.startswith("Whether ")
    if names and not (is_property or obvious or {"Returns", "Yields"} & set(there)):
        found.append("no Returns")
    listed = entries(there.get("Raises", ""))
    found += [f"Raises lacks {name}" for name in sorted(raised(function) - set(listed))]
    return found


def fields_described(cls: type) -> set[str]:
    """Fields of a class that have an entry in its docstring, or a string below them, in it or a class it is made of."""
    found = set()
    for each in cls.__mro__:
        if not each.__module__.startswith("copyscope"):
            continue
        there = sections(inspect.cleandoc(each.__dict__.get("__doc__") or ""))
        found |= set(entries(there.get("Args", ""))) | set(entries(there.get("Attributes", "")))
        body = ast.parse(textwrap.dedent(inspect.getsource(each))).body[0].body
        for field, below in itertools.pairwise(body):
            if (
                isinstance(field, ast.AnnAssign)
                and isinstance(below, ast.Expr)
                and isinstance(below.value, ast.Constant)
            ):
                found.add(field.target.id)
    return found


def members(cls: type) -> dict[str, tuple[FunctionType, bool]]:
    """Name -> (function, whether a property) of the public methods of a class, inherited ones of ours too."""
    found = {}
    for each in reversed([each for each in cls.__mro__ if each.__module__.startswith("copyscope")]):
        for name, value in vars(each).items():
            if name.startswith("_") and name not in CALLS:
                continue
            value = getattr(value, "__func__", value)
            if isinstance(value, property | functools.cached_property):
                found[name] = (getattr(value, "fget", None) or value.func, True)
            elif inspect.isfunction(value):
                found[name] = (value, False)
    return found


def offences_of_class(cls: type) -> dict[str, list[str]]:
    """Member ("" for the class) -> what its docstring lacks."""
    doc = inspect.cleandoc(cls.__dict__.get("__doc__") or "")
    if cls.__name__ in MADE_BY_METHODS:
        names = set()
    elif dataclasses.is_dataclass(cls):
        names = {field.name for field in dataclasses.fields(cls) if field.init}
    else:
        names = set(inspect.signature(cls.__init__).parameters) - {"self", "args", "kwargs"}
    own = first_line(doc) if doc else ["no docstring"]
    own += [f"no Args entry for {name}" for name in sorted(names - fields_described(cls))]
    own += [f"{name} is described outside Args" for name in run_on(doc, names)]
    made = cls.__dict__.get("__post_init__" if dataclasses.is_dataclass(cls) else "__init__")
    listed = entries(sections(doc).get("Raises", ""))
    own += [f"Raises lacks {name}" for name in sorted((raised(made) if made else set()) - set(listed))]
    found = {"": own}
    # A part's methods are those of its base class, which are described there.
    if not (issubclass(cls, parts.Part) and cls in part_classes()):
        found |= {f".{name}": offences_of_function(*each) for name, each in members(cls).items()}
    return found


def offences(objects: list[object]) -> list[str]:
    """One line an offence."""
    found = []
    for each in objects:
        name = f"{each.__module__}.{each.__qualname__}"
        of_each = offences_of_class(each) if inspect.isclass(each) else {"": offences_of_function(each)}
        found += [f"{name}{member}: {said}" for member, all_said in of_each.items() for said in all_said]
    return sorted(set(found))


def test_the_public_surface_is_documented():
    found = offences(surface())
    assert not found, f"{len(found)} docstrings fall short:\n" + "\n".join(found)


def test_parts_and_algorithms_name_their_source():
    of_parts = [cls for cls in part_classes() if not cls.__module__.startswith("copyscope.diffusion.models")]
    lacking = [cls.__name__ for cls in of_parts if not re.search(r"\b(19|20)\d\d\b|arXiv", inspect.getdoc(cls) or "")]
    lacking += [name for name in SOURCED if not re.search(r"\b(19|20)\d\d\b|arXiv", inspect.getdoc(find(name)) or "")]
    assert not lacking, f"without a source: {', '.join(lacking)}"


def test_the_surface_holds_what_the_documentation_imports():
    known, lacking = surface(), set()
    for page in DOCS.glob("*.md"):
        for module, names in re.findall(r"from (copyscope[\w.]*) import ([\w, ]+)", page.read_text(encoding="utf-8")):
            for name in names.replace(" ", "").split(","):
                try:
                    found = importlib.import_module(f"{module}.{name}")
                except ModuleNotFoundError:
                    found = getattr(importlib.import_module(module), name)
                if is_ours(found) and found not in known:
                    lacking.add(f"{page.name}: {module}.{name}")
    assert not lacking, "\n".join(sorted(lacking))


def test_no_docstring_of_the_package_describes_arguments_in_running_text():
    found = []
    for path in sorted(SOURCE.rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                arguments = {each.arg for each in (*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs)}
            elif isinstance(node, ast.ClassDef):
                arguments = {each.target.id for each in node.body if isinstance(each, ast.AnnAssign)}
            else:
                continue
            said = run_on(ast.get_docstring(node) or "", arguments)
            found += [f"{path.relative_to(SOURCE)}:{node.lineno} {node.name}: {name}" for name in said]
    assert not found, f"{len(found)} arguments are described outside Args:\n" + "\n".join(found)
