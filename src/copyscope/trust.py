"""Refuse specs from files that would import or load code, unless the caller trusts them.

An index, a run, an experiment, a recipe or thresholds may come from a stranger. A dotted spec imports a module and
weights by path may be TorchScript; both are code. So they are loaded where the user typed them in this call or said
`--trust-parts`, and are else refused before anything is imported.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any

from . import parts
from .errors import PartError

SHELF_OF = {"protocol": "descriptors", "model": "models", "mitigations": "mitigations", "signals": "signals"}
"""Field of a recipe that holds specs -> their shelf."""

HOW = "If you trust whoever made it, add --trust-parts (in Python: trust_parts=True)"


def check_spec(shelf: str, spec: Any, source: str) -> None:
    """Refuse a part spec of a file that would load code: a part from outside the shelf, or weights by path.

    Text that is no spec is left to whoever loads it. Imports nothing but files of the shelf.

    Args:
        shelf: a key of `parts.SHELVES`.
        spec: the spec as it stands in the file, of any type.
        source: who asks for the part, for the message.

    Raises:
        PartError: loading it would run code.
    """
    if not isinstance(spec, str):
        return
    name = spec.strip().partition("(")[0]
    # The name of a preset, as in dcr-2023:RT, is no name of a module.
    if ":" in name and name.partition(":")[0].replace(".", "").isidentifier():
        raise _refused(source, spec, "a part from outside Copyscope: to load it runs its code")
    if name not in parts.names(shelf):
        return
    cls: Any = parts.part_class(shelf, name)
    if not cls.weight_files:
        return
    _, arguments, options = parts.parse(spec, shelf, parts.names(shelf))
    try:
        given = inspect.signature(cls).bind_partial(*arguments, **options).arguments
    except TypeError:  # which `parts.load` says
        return
    if named := next((each for each in cls.weight_files if given.get(each)), ""):
        raise _refused(source, spec, f"a part with {named} of its own: a file of weights may be code")


def check_specs(tables: Mapping[str, Any], source: str) -> None:
    """Refuse specs that would load code, as `check_spec`, anywhere in the nested tables of a recipe or experiment.

    Args:
        tables: fields by name, dotted ones by their last word; those in SHELF_OF are specs.
        source: who asks for the parts, for the message.

    Raises:
        PartError: loading one would run code.
    """
    waiting: list[tuple[str, Any]] = list(tables.items())
    while waiting:
        key, value = waiting.pop()
        if isinstance(value, Mapping):
            waiting += value.items()
        elif isinstance(value, (list, tuple)):
            waiting += [(key, each) for each in value]
        elif (field := str(key).rpartition(".")[2]) in SHELF_OF:
            check_spec(SHELF_OF[field], value, source)


def _refused(source: str, spec: str, what: str) -> PartError:
    said = spec if len(spec) <= 100 else f"{spec[:100]}..."
    return PartError(f"{source} asks for {said!r}, {what}.\n{HOW}")
