"""Retry policy for remote file systems: which errors are transient, how often to try again."""

from __future__ import annotations

import dataclasses
import errno
import random
import time
from collections.abc import Callable
from typing import TypeVar

_ERRNOS = {
    getattr(errno, name, None)
    for name in ("EBUSY", "EAGAIN", "EREMOTEIO", "ENETUNREACH", "ENETDOWN", "EHOSTUNREACH", "ENETRESET")
} - {None}
# Not all network libraries say ConnectionError or OSError; these are of aiohttp, botocore, httpx, urllib3, http.client.
_NETWORK = {"ClientConnectionError", "ClientPayloadError", "HTTPClientError", "TransportError", "HTTPError"}
_NETWORK |= {"IncompleteRead", "IncompleteReadError", "ResponseStreamingError"}

T = TypeVar("T")


@dataclasses.dataclass(frozen=True)
class RetryPolicy:
    """Retry policy: how often and how long a read that failed for a while is tried again.

    Attributes:
        tries: at most.
        seconds: after these, counted from the first try, no other begins.
        first: before try n + 1 it waits between half and all of first * 2**(n - 1) seconds, by chance, so that readers
            who failed at once do not come again at once.
        longest: seconds of a wait, at most.
        sleep: waits.
        clock: tells the time.
    """

    tries: int = 4
    seconds: float = 60.0
    first: float = 0.5
    longest: float = 10.0
    sleep: Callable[[float], object] = time.sleep
    clock: Callable[[], float] = time.monotonic

    def __call__(self, read: Callable[[], T]) -> T:
        """Call `read` until it succeeds. Raises its error where that will not pass, or has not by the last try."""
        start = self.clock()
        for number in range(1, self.tries):
            try:
                return read()
            except Exception as error:
                # Jitter decides no result, so it needs no seed.
                wait = min(self.first * 2 ** (number - 1), self.longest) * (0.5 + random.random() / 2)
                if not is_transient(error) or self.clock() + wait - start > self.seconds:
                    raise
            self.sleep(wait)
        return read()


PATIENCE = RetryPolicy()
"""That of every file system but the local one."""


def is_transient(error: BaseException) -> bool:
    """Whether an error may be gone when one asks again: a lost connection, a timeout, a server that is too busy.

    What is not there, not allowed or wrongly asked stays so.
    """
    cause: BaseException | None = error
    while cause is not None:
        if (status := _status(cause)) is not None:
            return status in (408, 425, 429) or status >= 500
        if isinstance(cause, (ConnectionError, TimeoutError)) or (
            isinstance(cause, OSError) and cause.errno in _ERRNOS
        ):
            return True
        if _NETWORK & {kind.__name__ for kind in type(cause).__mro__}:
            return True
        cause = cause.__cause__
    return False


def _status(error: BaseException) -> int | None:
    """The HTTP status that an error of a network library carries."""
    response = getattr(error, "response", None)
    if isinstance(response, dict):  # botocore
        found = response.get("ResponseMetadata", {}).get("HTTPStatusCode")
    else:
        found = getattr(response, "status_code", getattr(error, "status", getattr(error, "code", None)))
    try:
        return int(found) if found is not None and 100 <= int(found) < 600 else None
    except (TypeError, ValueError):
        return None
