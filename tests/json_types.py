"""Check that the JSON of a command is what its type says: no key missing, none undocumented, each of its type."""

from __future__ import annotations

import json
import typing
from collections.abc import Iterator, Mapping
from typing import Any

from tests.test_docs import GENERATE

PAGE = GENERATE._beside("json_page")
LEFT_OUT = ("without", "n_outside")
"""Keys that many commands add where images are left out or lie outside the folder: `removal lists` of the page."""


def misfits(value: Any, kind: Any, at: str = "") -> Iterator[str]:
    """Where a value is not of a type, as lines."""
    choices = [list(_misfits(value, each, at)) for each in PAGE.options(kind)]
    if all(choices):
        yield from min(choices, key=len)


def _misfits(value: Any, kind: Any, at: str) -> Iterator[str]:
    origin, inner = typing.get_origin(kind) or kind, typing.get_args(kind)
    if PAGE.has_keys(kind):
        if not isinstance(value, dict):
            yield f"{at}: {value!r} is no object"
            return
        known = {key.name: key for key in PAGE.keys(kind)}
        yield from (f"{at}.{name}: not documented" for name in value.keys() - known.keys())
        yield from (f"{at}.{name}: missing" for name, key in known.items() if name not in value and not key.optional)
        for name in value.keys() & known.keys():
            yield from misfits(value[name], known[name].kind, f"{at}.{name}")
    elif origin in (list, tuple):
        if not isinstance(value, list):
            yield f"{at}: {value!r} is no list"
            return
        for each in value:
            yield from misfits(each, inner[0], f"{at}[]")
    elif origin in (dict, Mapping):
        if not isinstance(value, dict):
            yield f"{at}: {value!r} is no object"
            return
        for each in value.values():
            yield from misfits(each, inner[1], f"{at}.*")
    elif kind is not Any:
        fits = {float: (int, float), type(None): type(None)}.get(kind, kind)
        if not isinstance(value, fits) or (isinstance(value, bool) and kind is not bool):
            yield f"{at}: {value!r} is no {PAGE.word(kind)}"


def check(name: str, value: Any) -> None:
    """Asserts that the JSON of a section of docs/json.md is of its type."""
    plain = json.loads(json.dumps(value))
    rest = {
        key: plain.pop(key) for key in LEFT_OUT if key in plain and name != "removal lists" and key not in fields(name)
    }
    decided = {"decisions": plain.pop("decisions")} if "decisions" in plain else {}
    found = [
        *misfits(plain, PAGE.KINDS[name]),
        *misfits(rest, PAGE.KINDS["removal lists"]),
        *misfits(decided, PAGE.KINDS["decisions"]),
    ]
    if name in PAGE.SCHEMAS:
        found = [each for each in found if each != ".schema: not documented"]
        assert plain["schema"] == PAGE.SCHEMAS[name]
    assert not found, "\n".join(found)


def fields(name: str) -> set[str]:
    """Keys of the type of a section."""
    return {key.name for key in PAGE.keys(PAGE.KINDS[name])}
