"""Checks of values that several parts have."""

from __future__ import annotations


def check_probability(value: float) -> None:
    """Check that a value is a probability.

    Raises:
        ValueError: it is not.
    """
    if not 0 <= value <= 1:
        raise ValueError("probability must be from 0 to 1")


def check_whole(name: str, value: int, least: int = 0) -> None:
    """Check that a value is a whole number, at least `least`.

    Raises:
        ValueError: it is not.
    """
    if not isinstance(value, int) or value < least:
        raise ValueError(f"{name} must be a whole number of {least} or more")
