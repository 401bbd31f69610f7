"""Part registry: classes in shelf folders, named by specs such as `pdq` or `sscd(size=288)`.

`load("descriptors", "sscd(size=224)")` parses the spec with `ast` (literals only), imports the file `sscd.py` of that
shelf and calls the one public class defined there. `str(part)` gives back the shortest spec that rebuilds it, so that a
result always carries the recipe that made it. A dotted spec, `mypackage.mymodule:MyPart(k=1)`, loads a part from
outside.
"""

from __future__ import annotations

import ast
import dataclasses
import difflib
import importlib
import importlib.util
import inspect
import pkgutil
from typing import Any, ClassVar

from .errors import MissingExtra, PartError

SHELVES = {
    "descriptors": "copyscope.detection.descriptors",
    "measures": "copyscope.detection.measures",
    "models": "copyscope.diffusion.models",
    "mitigations": "copyscope.diffusion.mitigations",
    "signals": "copyscope.diffusion.signals",
}

LONGEST_SPEC = 100_000
"""Characters: what a signal learned is a number a step."""


class Part:
    """Base of every shelf's abstract class: a frozen dataclass whose `str` is the spec that rebuilds it."""

    weight_files: ClassVar[tuple[str, ...]] = ()
    """Arguments that name weights, which may be code; a spec that a file asks for may not give them (trust.py)."""

    def __str__(self) -> str:
        cls = type(self)
        name = cls.__module__.rpartition(".")[2]
        if not any(cls.__module__.startswith(package + ".") for package in SHELVES.values()):
            name = f"{cls.__module__}:{cls.__qualname__}"
        return written(name, self)


def names(shelf: str) -> list[str]:
    """Names of all parts on a shelf, sorted; imports neither the shelf nor a part.

    Args:
        shelf: a key of `SHELVES`, such as "descriptors".

    Returns:
        The names, as they are written in specs.

    Raises:
        PartError: there is no such shelf.
    """
    found = importlib.util.find_spec(_package(shelf))
    folders = found.submodule_search_locations if found else []
    return sorted(module.name for module in pkgutil.iter_modules(folders) if not module.name.startswith("_"))


def load(shelf: str, spec: str) -> Any:
    """Load the part that a spec describes, e.g. `load("descriptors", "sscd(size=224)")`.

    Args:
        shelf: a key of `SHELVES`, such as "descriptors".
        spec: `name`, `name(key=value, ...)` with plain values, or `package.module:Class(...)` for a part of your own.

    Returns:
        The part. Its weights load on first use.

    Raises:
        PartError: the spec is malformed, names no part, or gives arguments that the part does not take.
        MissingExtra: the part needs torch, which is not installed.
    """
    path, arguments, options = parse(spec, shelf, names(shelf))
    cls = _outside(shelf, path) if ":" in path else part_class(shelf, path)
    return made(cls, path, arguments, options)


def made(cls: type, path: str, arguments: list[Any], options: dict[str, Any]) -> Any:
    """Call the class of a part with the arguments of its spec.

    Args:
        cls: the class.
        path: its name in specs, for messages.
        arguments: positional arguments.
        options: keyword arguments.

    Raises:
        PartError: the class does not take them.
    """
    try:
        inspect.signature(cls).bind(*arguments, **options)
        return cls(*arguments, **options)
    except (TypeError, ValueError) as error:
        given = [*map(repr, arguments), *(f"{name}={value!r}" for name, value in options.items())]
        raise PartError(
            f"'{path}({', '.join(given)})' does not fit its part: {error}.\n"
            f"The part is called as {signature(cls, path)}"
        ) from None


def written(name: str, part: Any) -> str:
    """The shortest spec that rebuilds a frozen dataclass which specs call `name`."""
    changed = [
        f"{field.name}={getattr(part, field.name)!r}"
        for field in dataclasses.fields(part)
        if field.init and getattr(part, field.name) != field.default
    ]
    return f"{name}({', '.join(changed)})" if changed else name


def part_class(shelf: str, name: str) -> type:
    """Class of the part in the file `name` of a shelf.

    Raises:
        PartError: there is no such part.
        MissingExtra: the file needs torch, which is not installed.
    """
    known = names(shelf)
    if name not in known:
        close = difflib.get_close_matches(name, known, 1)
        hint = f"Did you mean {close[0]!r}? " if close else ""
        raise PartError(f"No part {name!r} among the {shelf}.\n{hint}There are: {', '.join(known)}")
    try:
        return _only_class(importlib.import_module(f"{_package(shelf)}.{name}"))
    except ModuleNotFoundError as error:
        if str(error.name).partition(".")[0] != "torch":
            raise
        raise MissingExtra(f"The part {name!r}", "torch", "diffusion") from None


def signature(cls: type, name: str) -> str:
    """Signature of a part as text: `sscd(size: int = 288)`."""
    taken = []
    for parameter in inspect.signature(cls).parameters.values():
        default = "" if parameter.default is parameter.empty else f" = {parameter.default!r}"
        taken.append(f"{parameter.name}: {parameter.annotation}{default}")
    return f"{name}({', '.join(taken)})"


def base(cls: type, shelf: str) -> str:
    """Name of the shelf's own class that a part derives from: of a mitigation, its hook."""
    return next(each.__name__ for each in cls.__mro__ if each.__module__ == _package(shelf))


def _package(shelf: str) -> str:
    if shelf not in SHELVES:
        raise PartError(f"No shelf {shelf!r}.\nThere are: {', '.join(SHELVES)}")
    return SHELVES[shelf]


def _outside(shelf: str, path: str) -> type:
    module, _, attribute = path.partition(":")
    try:
        cls = getattr(importlib.import_module(module), attribute)
    except (ImportError, AttributeError) as error:
        raise PartError(f"Cannot load the part {path!r}: {error}.\nWrite it as package.module:Class(...)") from None
    base = importlib.import_module(_package(shelf)).SHELF
    if not (isinstance(cls, type) and issubclass(cls, base)):
        raise PartError(f"{path!r} is not a part of the shelf {shelf}.\nMake it a subclass of {base.__name__}")
    return cls


def _only_class(module: Any) -> type:
    classes = [
        value
        for key, value in vars(module).items()
        if isinstance(value, type)
        and value.__module__ == module.__name__
        and issubclass(value, Part)
        and not key.startswith("_")
    ]
    if len(classes) != 1:
        raise PartError(f"{module.__name__} must define exactly one public part, and defines {len(classes)}")
    return classes[0]


def parse(spec: str, kind: str, known: list[str]) -> tuple[str, list[Any], dict[str, Any]]:
    """Parse a part spec into its name, arguments and keyword arguments; literals only.

    Args:
        spec: the text.
        kind: what is named, for messages: "descriptors".
        known: the names there are, for messages.

    Raises:
        PartError: the text is no spec.
    """
    path, bracket, _ = spec.strip().partition("(")
    said = spec if len(spec) <= 200 else f"{spec[:200]}..."
    malformed = PartError(
        f"{said!r} is not a part spec.\nWrite it as name or name(key=value), with plain values; "
        f"the {kind} are: {', '.join(known)}"
    )
    if (
        len(spec) > LONGEST_SPEC
        or not path
        or not all(piece.isidentifier() for piece in path.replace(":", ".").split("."))
    ):
        raise malformed
    if not bracket:
        return path, [], {}
    try:
        call = ast.parse("f" + spec.strip()[len(path) :], mode="eval").body
        if not isinstance(call, ast.Call) or any(keyword.arg is None for keyword in call.keywords):
            raise malformed
        arguments = [ast.literal_eval(argument) for argument in call.args]
        options = {str(keyword.arg): ast.literal_eval(keyword.value) for keyword in call.keywords}
    except (SyntaxError, ValueError, RecursionError, MemoryError):  # of a parser that is nested too deep
        raise malformed from None
    return path, arguments, options
