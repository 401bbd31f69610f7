"""Errors for people have two lines: what is wrong, and what to do."""

from __future__ import annotations

import re
from typing import Any

_ACCOUNT = re.compile(r".*: [0-9,]+ images?( of the split '.*')?; (no captions|captions for |[0-9,]+ with an error).*")


def without_accounts(stderr: str) -> str:
    """What a command says besides what it found in the sets that it opened."""
    return "".join(line for line in stderr.splitlines(True) if not _ACCOUNT.fullmatch(line.rstrip("\n")))


def two_lines(caught: Any, *says: str) -> None:
    """The error of `pytest.raises` has two lines, not too long, that contain each of `says`."""
    text = str(caught.value)
    assert len(text.splitlines()) == 2, text
    assert len(text) < 1000
    for each in says:
        assert each in text
