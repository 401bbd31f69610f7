"""Patience: what is asked for again, when, and how often at most; no test waits."""

from __future__ import annotations

import errno

import pytest

from copyscope.data.retry import RetryPolicy, is_transient


class Clock:
    """A clock that only sleeping moves."""

    def __init__(self) -> None:
        self.now, self.slept = 100.0, list[float]()

    def sleep(self, seconds: float) -> None:
        self.slept.append(seconds)
        self.now += seconds

    def patience(self, **changed: float) -> RetryPolicy:
        return RetryPolicy(sleep=self.sleep, clock=lambda: self.now, **changed)


def failing(times: int, error: Exception):
    """A function that raises `error` so many times, then gives how often it was called."""
    calls = 0

    def read() -> int:
        nonlocal calls
        calls += 1
        if calls <= times:
            raise error
        return calls

    return read


def test_a_fault_that_passes_is_waited_for_ever_longer() -> None:
    clock = Clock()
    assert clock.patience(tries=6, first=1.0, longest=4.0)(failing(5, ConnectionResetError())) == 6
    assert len(clock.slept) == 5
    for slept, most in zip(clock.slept, [1.0, 2.0, 4.0, 4.0, 4.0], strict=True):
        assert most / 2 <= slept <= most
    assert len({slept / most for slept, most in zip(clock.slept, [1, 2, 4, 4, 4], strict=True)}) == 5, "by chance"


def test_tries_are_bounded() -> None:
    clock = Clock()
    read = failing(99, TimeoutError("slow"))
    with pytest.raises(TimeoutError, match="slow"):
        clock.patience(tries=4)(read)
    assert len(clock.slept) == 3
    assert read.__closure__[0].cell_contents == 4


def test_seconds_are_bounded() -> None:
    clock = Clock()

    def slow() -> None:
        clock.now += 20
        raise TimeoutError

    with pytest.raises(TimeoutError):
        clock.patience(tries=99, seconds=60)(slow)
    assert clock.now - 100 <= 80
    assert len(clock.slept) == 2


@pytest.mark.parametrize("error", [FileNotFoundError(2, "x"), PermissionError(13, "x"), ValueError("x"), KeyError("x")])
def test_what_stays_is_not_asked_for_again(error: Exception) -> None:
    clock = Clock()
    with pytest.raises(type(error)):
        clock.patience()(failing(1, error))
    assert not clock.slept


class Coded(Exception):
    """As network libraries do it: the status of an answer on the error."""

    def __init__(self, **fields: object) -> None:
        self.__dict__ |= fields


class Answer:
    def __init__(self, status_code: int) -> None:
        self.status_code = status_code


def caused(error: Exception, cause: Exception) -> Exception:
    error.__cause__ = cause
    return error


class TransportError(Exception):
    """Named as in httpx."""


@pytest.mark.parametrize(
    ("error", "again"),
    [
        (ConnectionError(), True),
        (TimeoutError(), True),
        (OSError(errno.EBUSY, "slow down"), True),
        (OSError(errno.EINVAL, "wrong"), False),
        (OSError(errno.ENOSPC, "full"), False),
        (OSError("no number"), False),
        (Coded(status=503), True),
        (Coded(status=404), False),
        (Coded(code=429), True),
        (Coded(code="NoSuchKey"), False),
        (Coded(response=Answer(502)), True),
        (Coded(response=Answer(403)), False),
        (Coded(response={"ResponseMetadata": {"HTTPStatusCode": 500}}), True),
        (Coded(response={"ResponseMetadata": {"HTTPStatusCode": 400}}), False),
        (Coded(response={}), False),
        (caused(OSError(errno.EIO, "?"), Coded(status=504)), True),
        (caused(FileNotFoundError("x"), Coded(status=404)), False),
        (caused(RuntimeError("x"), TransportError()), True),
        (type("ClientPayloadError", (Exception,), {})(), True),
        (RuntimeError("?"), False),
    ],
)
def test_which_errors_pass(error: Exception, again: bool) -> None:
    assert is_transient(error) is again
