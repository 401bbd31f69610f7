"""Errors for people have two lines: what is wrong, and what to do."""

from __future__ import annotations

from typing import Any


def two_lines(caught: Any, *says: str) -> None:
    """The error of `pytest.raises` has two lines, not too long, that contain each of `says`."""
    text = str(caught.value)
    assert len(text.splitlines()) == 2, text
    assert len(text) < 1000
    for each in says:
        assert each in text
