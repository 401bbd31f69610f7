"""Parse JSON and TOML from untrusted sources: size, depth, values and digits are bounded.

What is beyond a bound, or no JSON or TOML, raises ValueError with a short reason, whatever the parser raised; callers
make a row's `error` or an InputError of it, as `read_json` does. A document within the bounds needs less than 1.5 GiB
of memory to be read.
"""

from __future__ import annotations

import json
import os
import re
import tomllib
from typing import Any

from .errors import InputError
from .files import AGAIN, open_regular

MAX_JSON_BYTES = 128 << 20
"""Of a JSON document (128 MiB); of what lists more images, a table of JSON lines or Parquet is read in pieces."""

MAX_TOML_BYTES = 1 << 20
"""Of a TOML document (1 MiB): nobody writes more by hand."""

MAX_LINE = 8 << 20
"""Characters of a line of a table of JSON lines or CSV."""

MAX_VALUES = 4_000_000
"""Values of a JSON document: each may be an object of 200 bytes in memory and three in the file."""

MAX_DEPTH = 100
"""Containers within one another."""

MAX_KEYS = 16
"""Keys of a dotted key of TOML: the parser takes time by their square."""

MAX_DIGITS = 100
"""Digits of a whole number: Python refuses more than 4,300 by itself, and few things take more than 309."""

_STRIDE = MAX_DIGITS // 4
_DIGITS, _LONG = re.compile("[0-9]{3}"), re.compile(f"[0-9]{{{MAX_DIGITS + 1}}}")
_STRINGS = re.compile(r'"""(?s:.*?)"""|' + r"'''(?s:.*?)'''|" + r'"(?:[^"\\\n]|\\.)*"|' + r"'[^'\n]*'|#[^\n]*")
_JSON_STRINGS = re.compile(r'"(?:[^"\\]|\\.)*"')
_KEYS = re.compile(r"[=\n,{}\[\]]")


def parse_json(text: str | bytes) -> Any:
    """Parse a JSON document, or one line of JSON Lines, within bounds of size and depth.

    Raises:
        ValueError: with the reason, in a few words.
    """
    if len(text) > MAX_JSON_BYTES:
        raise ValueError(f"larger than {MAX_JSON_BYTES >> 20} MiB")
    if isinstance(text, bytes):
        text = text.decode("utf-8-sig")
    nested = text.count("[") + text.count("{")
    # Strings may hold any number of these: they are left out where it would matter.
    if nested + text.count(",") > MAX_VALUES and _n_values(_JSON_STRINGS.sub("", text)) > MAX_VALUES:
        raise ValueError(f"more than {MAX_VALUES:,} values")
    long_number = _has_long_number(text)
    try:
        found = json.loads(text, parse_int=_whole_number) if long_number else json.loads(text)
    except RecursionError:
        raise ValueError(f"nested more than {MAX_DEPTH} deep") from None
    if nested > MAX_DEPTH:
        _refuse_depth(found)
    return found


def read_json(path: str | os.PathLike[str], then: str = AGAIN) -> dict[str, Any]:
    """Read the object in a JSON file.

    Args:
        path: the file.
        then: second line of the error: what to do where there is no such file.

    Raises:
        InputError: the file is missing, damaged, beyond the bounds, or holds no object; the message names it.
    """
    try:
        found = parse_json(read_bytes(path, MAX_JSON_BYTES))
        if not isinstance(found, dict):
            raise ValueError("it holds no object")
    except (OSError, ValueError) as error:
        why = error.strerror if isinstance(error, OSError) else error
        raise InputError(f"Cannot read {os.fspath(path)}: {why}.\n{then}") from None
    return found


def parse_toml(text: str) -> dict[str, Any]:
    """Parse a TOML document within bounds of size and depth.

    Raises:
        ValueError: with the reason; its subclass TOMLDecodeError where the text is no TOML.
    """
    if len(text) > MAX_TOML_BYTES:
        raise ValueError(f"larger than {MAX_TOML_BYTES >> 20} MiB")
    if _has_long_number(bare := _STRINGS.sub("''", text)):
        raise ValueError(f"a number of more than {MAX_DIGITS} digits")
    if any(key.count(".") >= MAX_KEYS for key in _KEYS.split(bare)):
        raise ValueError(f"a dotted key of more than {MAX_KEYS} keys")
    try:
        found = tomllib.loads(text)
        _refuse_depth(found)
    except RecursionError:
        raise ValueError(f"nested more than {MAX_DEPTH} deep") from None
    return found


def read_toml(path: str | os.PathLike[str]) -> dict[str, Any]:
    """Read the tables of a TOML file.

    Raises:
        OSError: the file cannot be read.
        ValueError: as in `parse_toml`.
    """
    return parse_toml(read_bytes(path, MAX_TOML_BYTES).decode("utf-8"))


def read_bytes(path: str | os.PathLike[str], most: int) -> bytes:
    """Read the bytes of a regular file.

    Args:
        path: the file.
        most: largest size allowed, in bytes.

    Raises:
        OSError: the file cannot be read, or is no regular file.
        ValueError: it has more than `most` bytes.
    """
    with open_regular(path) as file:
        data = file.read(most + 1)
    if len(data) > most:
        raise ValueError(f"larger than {most >> 20} MiB")
    return data


def _n_values(text: str) -> int:
    return sum(map(text.count, ",[{"))


def _has_long_number(text: str) -> bool:
    """Whether there is a run of more than MAX_DIGITS digits; only where every 25th character allows one is looked."""
    return bool(_DIGITS.search(text[::_STRIDE]) and _LONG.search(text))


def _whole_number(digits: str) -> int:
    if len(digits) > MAX_DIGITS:
        raise ValueError(f"a number of more than {MAX_DIGITS} digits")
    return int(digits)


def _refuse_depth(value: Any) -> None:
    level, depth = [value], 0
    while level := [each for each in level if isinstance(each, (dict, list))]:
        if (depth := depth + 1) > MAX_DEPTH:
            raise ValueError(f"nested more than {MAX_DEPTH} deep")
        level = [inner for each in level for inner in (each.values() if isinstance(each, dict) else each)]
