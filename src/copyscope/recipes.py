"""Recipes: frozen dataclasses to and from plain values, TOML and JSON, with provenance.

A recipe's fields are plain (text, numbers, booleans, tuples or a dict of these); its `__post_init__` checks the values,
this module names and types. Defaults are in the dataclass and nowhere else.
"""

from __future__ import annotations

import dataclasses
import difflib
import importlib.metadata
import os
import platform
import subprocess
import tomllib
import types
import typing
from collections.abc import Mapping, Sequence
from typing import Any, Literal, TypeVar

from . import documents
from .errors import InputError

T = TypeVar("T")

#: Packages that the numbers may depend on; those not installed are left out of the provenance.
PACKAGES = (
    "numpy", "scipy", "pyarrow", "pillow", "onnxruntime", "torch", "diffusers", "transformers", "tokenizers",
    "accelerate", "peft", "safetensors",
)  # fmt: skip
_NAMES = {int: "a whole number", float: "a number", bool: "true or false", str: "text", type(None): "absent"}


def as_dict(recipe: Any) -> dict[str, Any]:
    """Fields of a recipe as plain values, tuples as lists: what `from_dict` reads, and JSON and TOML can hold."""
    return {field.name: _plain(getattr(recipe, field.name)) for field in dataclasses.fields(recipe)}


def from_dict(cls: type[T], values: Mapping[str, Any]) -> T:
    """Make a recipe from plain values; fields left out take their defaults.

    Args:
        cls: the recipe's class, a dataclass.
        values: field -> value.

    Raises:
        InputError: names an unknown key and the closest known one, or the field whose value has a wrong type.
    """
    known = {field.name: field for field in dataclasses.fields(cls) if field.init}  # type: ignore[arg-type]
    for key in values:
        if key not in known:
            raise InputError(_unknown(cls.__name__, key, list(known)))
    hints = typing.get_type_hints(cls)
    absent = [
        name
        for name, field in known.items()
        if name not in values and field.default is field.default_factory is dataclasses.MISSING
    ]
    if absent:
        raise InputError(f"{cls.__name__} lacks {', '.join(absent)}.\nGive each a value: it has no default")
    return cls(**{key: _typed(key, value, hints[key]) for key, value in values.items()})


def changed(recipe: T, settings: Sequence[str]) -> T:
    """Apply settings such as `steps=500` or `betas=[0.9, 0.99]` to a recipe, in order.

    Args:
        recipe: a dataclass.
        settings: `key=value` each. Values are TOML; bare words are text, and a text field takes text without quotes.

    Raises:
        InputError: a setting is malformed, or its key or value does not fit.
    """
    hints = typing.get_type_hints(type(recipe))
    values = as_dict(recipe)
    for text in settings:
        key, value = setting(text)
        if hints.get(key) is str and not isinstance(value, str):
            value = text.partition("=")[2].strip()
        values[key] = value
    return from_dict(type(recipe), values)


def setting(text: str) -> tuple[str, Any]:
    """Parse a setting `key=value`: the value is TOML, or else the text as it stands.

    Raises:
        InputError: there is no `=` or no key.
    """
    key, equals, written = (piece.strip() for piece in text.partition("="))
    if not key or not equals:
        raise InputError(f"{text!r} sets nothing.\nWrite it as name=value, e.g. steps=500")
    try:
        parsed = documents.parse_toml(f"value = {written}")
    except tomllib.TOMLDecodeError:
        return key, written
    except ValueError as error:
        raise InputError(
            f"The value of {key} cannot be read: {error}.\nWrite it as name=value, e.g. steps=500"
        ) from None
    return key, parsed["value"] if parsed.keys() == {"value"} else written


def override(tables: Mapping[str, Any], settings: Sequence[str]) -> dict[str, Any]:
    """Apply settings such as `train.steps=500` to nested tables; a dotted key is the path to a value.

    Raises:
        InputError: a setting is malformed, or its path leads through a value.
    """
    found = _copied(tables)
    for text in settings:
        path, value = setting(text)
        *ways, last = path.split(".")
        table = found
        for way in ways:
            table = table.setdefault(way, {})
            if not isinstance(table, dict):
                raise InputError(f"{path} cannot be set: {way} is a value and no table.\nThere is {way} = {table!r}")
        table[last] = value
    return found


def read_toml(path: str | os.PathLike[str]) -> dict[str, Any]:
    """Read the tables of a TOML file.

    Raises:
        InputError: the file cannot be read, or is no TOML; the message then has the line.
    """
    try:
        return documents.read_toml(path)
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror or error}.\nName a TOML file") from None
    except UnicodeDecodeError:
        raise InputError(f"{path} is no text in UTF-8.\nName a TOML file") from None
    except tomllib.TOMLDecodeError as error:
        raise InputError(f"{path} is no TOML: {error}.\nCorrect that line") from None
    except ValueError as error:
        raise InputError(f"{path} cannot be read: {error}.\nName a TOML file as one writes it by hand") from None


def provenance() -> dict[str, Any]:
    """Versions and commit for a recipe: what decided the numbers.

    Returns:
        `versions` of Python, Copyscope and the packages that decide numbers; git `commit` of the working directory
        ("-dirty" where files differ from it), None outside a repository. Imports none of the packages.
    """
    from ._version import __version__

    versions = {"python": platform.python_version(), "copyscope": __version__}
    for name in PACKAGES:
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return {"versions": versions, "commit": _commit()}


def _commit() -> str | None:
    command = ["git", "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=10, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip() or None


def _unknown(what: str, key: str, known: list[str]) -> str:
    close = difflib.get_close_matches(key, known, 1)
    hint = f"Did you mean {close[0]!r}? " if close else ""
    return f"{what} has no setting {key!r}.\n{hint}There are: {', '.join(known)}"


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return _copied(value)
    return [_plain(each) for each in value] if isinstance(value, (tuple, list)) else value


def _copied(tables: Mapping[str, Any]) -> dict[str, Any]:
    return {key: _copied(value) if isinstance(value, Mapping) else value for key, value in tables.items()}


def _typed(name: str, value: Any, hint: Any) -> Any:
    """`value` as the type `hint` says, so that a list becomes a tuple and 1 becomes 1.0; InputError where it is not."""
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin in (types.UnionType, typing.Union):
        for each in arguments:
            try:
                return _typed(name, value, each)
            except InputError:
                continue
    elif origin is Literal:
        if value in arguments:
            return value
    elif origin is tuple and isinstance(value, (list, tuple)):
        kinds = [arguments[0]] * len(value) if arguments[-1] is Ellipsis else list(arguments)
        if len(kinds) == len(value):
            return tuple(_typed(name, each, kind) for each, kind in zip(value, kinds, strict=True))
    elif origin is dict and isinstance(value, Mapping):
        return _copied(value)
    elif hint is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    elif isinstance(hint, type) and isinstance(value, hint) and (hint is bool or not isinstance(value, bool)):
        return value
    raise InputError(f"{name} must be {_said(hint)}, not {value!r}.\nWrite it as the recipe's documentation does")


def _said(hint: Any) -> str:
    """A type in words: `one of 'no', 'bf16'`."""
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin in (types.UnionType, typing.Union):
        return " or ".join(_said(each) for each in arguments)
    if origin is Literal:
        return "one of " + ", ".join(repr(each) for each in arguments)
    if origin is tuple:
        many = "any number" if arguments[-1] is Ellipsis else str(len(arguments))
        return f"a list of {many}, each {_said(arguments[0])}"
    if origin is dict:
        return "a table"
    return _NAMES.get(hint, str(getattr(hint, "__name__", hint)))
