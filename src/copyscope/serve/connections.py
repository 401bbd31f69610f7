"""Connection limits and timeouts of the service, bounded logs."""

from __future__ import annotations

import asyncio
import logging
import time
from typing import Any

import h11
from uvicorn.protocols.http.h11_impl import H11Protocol

LATE = b"HTTP/1.1 408 Request Timeout\r\nConnection: close\r\nContent-Length: 0\r\n\r\n"
LINES, WINDOW = 10, 10.0
"""Of one logger at most so many records are written in so many seconds."""


def most_connections() -> int:
    """Number of connections that may be open at once: fewer than this process may open files."""
    try:
        import resource
    except ImportError:  # Windows
        return 1000
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return 1000 if soft < 0 else max(8, min(1000, soft - 128))


def protocol(header_seconds: float, most: int) -> type[H11Protocol]:
    """Class of connections that close where no whole header comes in time.

    Args:
        header_seconds: for the header.
        most: connections at once.
    """
    return type("Bounded", (_Bounded,), {"header_seconds": header_seconds, "most": most})


class _Bounded(H11Protocol):
    header_seconds: float
    most: int
    _timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        if len(self.connections) > self.most:
            transport.abort()
            return
        self._time_header()

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        self._time_header()

    def on_response_complete(self) -> None:
        # Where the rest of a body may still come, it could come for ever.
        if self.conn.their_state is h11.SEND_BODY:
            self.transport.close()
        super().on_response_complete()

    def connection_lost(self, exc: Exception | None) -> None:
        if self._timer:
            self._timer.cancel()
        super().connection_lost(exc)

    def _time_header(self) -> None:
        """Have the timer run while a header is awaited, from its first byte or from the connection on."""
        awaited = self.conn.their_state is h11.IDLE and not self.transport.is_closing()
        if awaited and self._timer is None:
            self._timer = self.loop.call_later(self.header_seconds, self._too_late)
        elif not awaited and self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _too_late(self) -> None:
        self._timer = None
        if not self.transport.is_closing():
            self.transport.write(LATE)
            self.transport.close()


class FewLines(logging.Filter):
    """Logging filter that lets LINES records pass in WINDOW seconds, and says how many did not."""

    def __init__(self) -> None:
        super().__init__()
        self._since, self._passed, self._left_out = 0.0, 0, 0

    def filter(self, record: logging.LogRecord) -> bool:
        """Whether the record is written."""
        now = time.monotonic()
        if now - self._since > WINDOW:
            if self._left_out:
                record.msg = f"{record.getMessage()} ({self._left_out:,} lines before this were left out)"
                record.args = ()
            self._since, self._passed, self._left_out = now, 0, 0
        self._passed += 1
        self._left_out += self._passed > LINES
        return self._passed <= LINES


def bound_logs() -> None:
    """Bound what uvicorn and asyncio log: where files run out, asyncio says so of each connection, many times."""
    for name in ("uvicorn.error", "asyncio"):
        logger: Any = logging.getLogger(name)
        if not any(isinstance(each, FewLines) for each in logger.filters):
            logger.addFilter(FewLines())
