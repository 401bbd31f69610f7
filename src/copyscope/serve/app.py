"""HTTP service: an image in, verdict and matches out.

Nothing a client sends may take it down: bodies, pixels, time and the number of requests under way are bounded, images
are decoded by images.py alone, and the work is done in threads beside the event loop.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import hmac
import ipaddress
import logging
import math
import signal
import socket
import threading
import time
from collections.abc import AsyncIterator, Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Annotated, Any

import numpy as np

from copyscope._version import __version__
from copyscope.console import note
from copyscope.detection.index.index import Index
from copyscope.errors import CopyscopeError, ImageError, InputError, MissingExtra
from copyscope.machine import cores

from .check import Answer, OutOfTime, answer

try:
    import uvicorn
    from fastapi import Depends, FastAPI, HTTPException, Query, Request
    from fastapi.exceptions import RequestValidationError
    from fastapi.responses import JSONResponse, PlainTextResponse
    from fastapi.security import HTTPAuthorizationCredentials, HTTPBearer
    from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, Counter, Gauge, Histogram, generate_latest
    from starlette.exceptions import HTTPException as AnyHTTPException
    from starlette.requests import ClientDisconnect
    from starlette.types import ASGIApp, Message, Receive, Scope, Send

    from .connections import bound_logs, most_connections, protocol
except ModuleNotFoundError as missing:
    raise MissingExtra("`copyscope serve`", missing.name or "fastapi", "serve") from None

HEADER_SECONDS = 10.0
"""A whole header must come within these, before anybody looks at its token, and within the time of a request."""
BACKLOG = 128
END_SECONDS = 1.0
LINGER = 2.0
"""Seconds for which the rest of a refused body is taken in and thrown away: closing at once would lose the answer."""


@dataclasses.dataclass(frozen=True)
class Settings:
    """What the service allows, and the defaults of a request.

    Args:
        host: address to listen at.
        port: 0 = any that is free.
        token: that clients must send; None = nothing, on loopback only.
        max_bytes: of one image as sent.
        max_pixels: of one image.
        seconds: for one request, from the first byte of its body to its answer.
        k: matches, where a request names no number.
        rate: false-alarm rate, where a request names none.
        local: look at windows, where a request does not say.
        workers: threads that look images up.
        queue: requests that may wait for one.
        max_aspect: longer side over shorter one, of one image.
    """

    host: str = "127.0.0.1"
    port: int = 8321
    token: str | None = dataclasses.field(default=None, repr=False)
    max_bytes: int = 20 << 20
    max_pixels: int = 50_000_000
    seconds: float = 30.0
    k: int = 10
    rate: float = 0.01
    local: bool = True
    workers: int = dataclasses.field(default_factory=cores)
    queue: int = 16
    max_aspect: float = 100.0


@dataclasses.dataclass(frozen=True)
class Health:
    """The service is ready, and for what."""

    status: str
    copyscope: str
    n_index: int
    protocol: str
    fingerprint: str


@dataclasses.dataclass(frozen=True)
class Problem:
    """Why there is no answer, in words."""

    error: str


PARAMETERS = {"k", "local", "rate"}
BODY = {"schema": {"type": "string", "format": "binary"}}
SAYS = {
    400: "The body is no image that can be read",
    401: "The token is missing or wrong",
    403: "Without a token, only this machine is answered",
    408: "The body came too slowly",
    413: "The image is too large, in bytes, in pixels, or from end to end",
    415: "The content type is not that of an image",
    422: "A parameter is not what it may be, or the image cannot be looked up",
    503: "Too many requests are under way, or the index cannot be read",
    504: "The answer took too long",
}


def app(index: Index, settings: Settings) -> FastAPI:
    """Service over an index: POST /check, GET /health, GET /metrics, GET /openapi.json."""
    meters = _Meters()
    desk = _Desk(settings, meters)
    bound_logs()

    @contextlib.asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        yield
        desk.close()

    # The pages of /docs load their scripts from a host on the internet: they are left out.
    api = FastAPI(title="Copyscope", version=__version__, docs_url=None, redoc_url=None, lifespan=lifespan)
    api.state.desk = desk
    api.add_middleware(_Meter, meters=meters)
    api.add_exception_handler(AnyHTTPException, _said)
    api.add_exception_handler(RequestValidationError, _invalid)
    api.add_exception_handler(CopyscopeError, _broken)
    api.add_exception_handler(Exception, _unforeseen)

    def here(request: Request) -> None:
        # A page on the internet can have its name resolve to this machine; the browser then names that host.
        if settings.token is None and not is_loopback(_host_of(request)):
            raise HTTPException(403, "Without a token, only requests to localhost are answered.")

    def known(given: Annotated[HTTPAuthorizationCredentials | None, Depends(HTTPBearer(auto_error=False))]) -> None:
        assert settings.token is not None
        sent = given.credentials.encode() if given else b""
        if not hmac.compare_digest(sent, settings.token.encode()):
            raise HTTPException(
                401, "Send the header `Authorization: Bearer TOKEN`.", headers={"WWW-Authenticate": "Bearer"}
            )

    def spelt(request: Request) -> None:
        # A parameter that is spelt wrong would else be left at its default, unsaid.
        if unknown := sorted(set(request.query_params) - PARAMETERS):
            raise HTTPException(422, f"There is no parameter {unknown[0]!r}, only {', '.join(sorted(PARAMETERS))}.")

    # Where no token is asked for, the description of the service must not say so.
    guarded = [Depends(here), *([] if settings.token is None else [Depends(known)])]

    @api.post(
        "/check",
        dependencies=[*guarded, Depends(spelt)],
        responses=_problems(400, 401, 403, 408, 413, 415, 422, 503, 504),
        openapi_extra={
            "requestBody": {
                "required": True,
                "content": dict.fromkeys(("application/octet-stream", "image/png", "image/jpeg", "image/webp"), BODY),
            }
        },
    )
    async def check(
        request: Request,
        k: Annotated[int, Query(ge=1, le=100, description="Matches.")] = settings.k,
        local: Annotated[bool, Query(description="Look for copies in parts of the image too.")] = settings.local,
        rate: Annotated[
            float, Query(gt=0, lt=1, allow_inf_nan=False, description="Of unseen images, the share called copies.")
        ] = settings.rate,
    ) -> Answer:
        """Is the image in the body a copy of one in the index?"""

        def work(body: bytes, seconds: float) -> Answer:
            limits = {"max_aspect": settings.max_aspect, "seconds": seconds}
            return answer(index, body, settings.max_pixels, k, local, rate, **limits)

        return await desk.serve(request, work)

    @api.get("/health", dependencies=[Depends(here)], responses=_problems(403, 503))
    def health() -> Health:
        """Ready: how many images can be found, and by what."""
        about = index.summary()
        return Health("ready", __version__, about["n"], about["protocol"], about["fingerprint"])

    @api.get(
        "/metrics",
        dependencies=guarded,
        response_class=PlainTextResponse,
        responses=_problems(401, 403),
    )
    def metrics() -> PlainTextResponse:
        """Requests, seconds and copies, for Prometheus."""
        return PlainTextResponse(generate_latest(meters.registry), media_type=CONTENT_TYPE_LATEST)

    return api


def run(index: Index, settings: Settings) -> bool:
    """Serve until SIGINT or SIGTERM; requests under way are then finished, within `settings.seconds` and 5 more.

    Args:
        index: the index.
        settings: address and limits.

    Returns:
        Whether all threads have ended: one that hangs in a library would hold up the end of the process.

    Raises:
        InputError: another machine could reach the service without a token, or the address cannot be had.
    """
    if settings.token is None and not is_loopback(settings.host):
        raise InputError(
            f"Without a token the service is for this machine only, and {settings.host} is open to others.\n"
            "Put a token into the environment as COPYSCOPE_TOKEN, or into a file and name it with --token-file"
        )
    smallest = 1 / (index.summary()["calibration"]["n"] + 1)
    if settings.rate < smallest:
        note(
            f"The calibration images of this index cannot tell at a rate of {settings.rate:g}, only from "
            f"{smallest:.2g} on: `copy` will be null but for images that are in the index."
        )
    # The weights are loaded before the first request, not by it.
    index.match([np.full((64, 64, 3), 128, np.uint8)], 1, local=False, workers=1)
    with _listening(settings) as listener:
        host, port = listener.getsockname()[:2]
        note(f"Copyscope answers at http://{f'[{host}]' if ':' in host else host}:{port}, {len(index)} images.")
        api = app(index, settings)
        config = uvicorn.Config(
            api,
            http=protocol(min(settings.seconds, HEADER_SECONDS), most_connections()),
            backlog=BACKLOG,
            ws="none",
            log_level="warning",
            access_log=False,
            server_header=False,
            timeout_graceful_shutdown=math.ceil(settings.seconds) + 1,
        )
        # Uvicorn raises the signal again once all is finished; stopping is how a service ends, and no failure.
        before = {each: signal.signal(each, lambda *_: None) for each in (signal.SIGINT, signal.SIGTERM)}
        try:
            uvicorn.Server(config).run(sockets=[listener])
        finally:
            for each, handler in before.items():
                signal.signal(each, handler)
    desk: _Desk = api.state.desk
    return desk.ended(END_SECONDS)


def is_loopback(host: str) -> bool:
    """Whether a host is this machine, seen from itself."""
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


class _Desk:
    """Where requests are taken in: so many at a time, each with its time, and looked up in threads."""

    def __init__(self, settings: Settings, meters: _Meters) -> None:
        self._settings = settings
        self._meters = meters
        self._threads = ThreadPoolExecutor(settings.workers, "check")
        # Taken before the body is read, so that what bodies take of memory is bounded too.
        self._places = threading.BoundedSemaphore(settings.workers + settings.queue)

    async def serve(self, request: Request, work: Callable[[bytes, float], Answer]) -> Answer:
        """What `work` makes of the body and the seconds left, in a thread. Raises HTTPException at a limit."""
        _refuse_type(request)
        if not self._places.acquire(blocking=False):
            raise HTTPException(503, "Too many requests are under way; try again.", headers={"Retry-After": "1"})
        self._meters.under_way.inc()
        job = None
        end = time.monotonic() + self._settings.seconds
        try:
            async with asyncio.timeout(self._settings.seconds):
                body = await self._body(request)
                # The work looks at the clock, and ends soon after its time.
                job = self._threads.submit(lambda: work(body, end - time.monotonic()))
                job.add_done_callback(lambda _: self._leave())
                found = await asyncio.wrap_future(job)
        except ImageError as error:
            raise HTTPException(413 if str(error).startswith("too large") else 400, str(error)) from None
        except MemoryError:
            raise HTTPException(413, "The image is too large for the memory there is.") from None
        except OutOfTime:
            raise HTTPException(504, f"There was no answer within {self._settings.seconds:g} seconds.") from None
        except ClientDisconnect:
            raise HTTPException(400, "The body ended early.") from None
        except TimeoutError:
            limit = f"{self._settings.seconds:g} seconds"
            if job is None:
                raise HTTPException(408, f"The body did not come within {limit}.") from None
            raise HTTPException(504, f"There was no answer within {limit}.") from None
        except (CopyscopeError, HTTPException):
            raise
        except Exception as error:
            logging.getLogger("uvicorn.error").exception("An image could not be looked up")
            raise HTTPException(422, f"This image cannot be looked up: {type(error).__name__}.") from None
        finally:
            if job is None:
                self._leave()
        self._meters.seconds.observe(found.seconds)
        self._meters.copies.inc(bool(found.copy))
        return found

    def close(self) -> None:
        self._threads.shutdown(wait=False, cancel_futures=True)

    def ended(self, seconds: float) -> bool:
        """Whether all threads end within so many seconds, once it is closed."""
        end = time.monotonic() + seconds
        for thread in list(self._threads._threads):
            thread.join(max(0.0, end - time.monotonic()))
        return not any(thread.is_alive() for thread in self._threads._threads)

    def _leave(self) -> None:
        self._places.release()
        self._meters.under_way.dec()

    async def _body(self, request: Request) -> bytes:
        limit = self._settings.max_bytes
        too_large = HTTPException(413, f"The image is larger than {limit:,} bytes.")
        length = request.headers.get("content-length", "")
        if length.isascii() and length.isdigit() and int(length) > limit:
            raise too_large
        body = bytearray()
        async for chunk in request.stream():
            body += chunk
            if len(body) > limit:
                raise too_large
        return bytes(body)


class _Meters:
    """What Prometheus is told, in a registry of its own."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self.requests = Counter(
            "copyscope_requests", "Requests by path and status.", ("path", "status"), registry=self.registry
        )
        self.seconds = Histogram("copyscope_check_seconds", "Seconds that a check took.", registry=self.registry)
        self.copies = Counter("copyscope_copies", "Images called copies.", registry=self.registry)
        self.under_way = Gauge(
            "copyscope_under_way", "Checks under way, waiting ones included.", registry=self.registry
        )


class _Meter:
    """ASGI middleware: counts answers, and takes in the rest of a refused body so that its sender hears why."""

    PATHS = ("/check", "/health", "/metrics", "/openapi.json")

    def __init__(self, app: ASGIApp, meters: _Meters) -> None:
        self._app = app
        self._meters = meters

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        # A client that waits for `100 Continue` has not begun to send.
        unread = not any(name == b"expect" for name, _ in scope["headers"])

        async def receiving() -> Message:
            nonlocal unread
            message = await receive()
            unread = message["type"] == "http.request" and message.get("more_body", False)
            return message

        async def sending(message: Message) -> None:
            if message["type"] == "http.response.start":
                # Paths are the client's: only ours become labels, or there would be one a request.
                path = scope["path"] if scope["path"] in self.PATHS else "other"
                self._meters.requests.labels(path, message["status"]).inc()
                if message["status"] >= 400:
                    with contextlib.suppress(TimeoutError):
                        async with asyncio.timeout(LINGER):
                            while unread:
                                await receiving()
            await send(message)

        await self._app(scope, receiving, sending)


def _refuse_type(request: Request) -> None:
    # No other type, so that a page in a browser of this machine cannot send one without asking first.
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind and kind != "application/octet-stream" and not kind.startswith("image/"):
        raise HTTPException(415, "Send the bytes of an image, as image/png, image/jpeg or application/octet-stream.")


def _host_of(request: Request) -> str:
    """The host that a request names, without its port."""
    host = request.headers.get("host", "")
    if host.startswith("["):
        return host[1:].partition("]")[0]
    return host.partition(":")[0]


def _listening(settings: Settings) -> socket.socket:
    family = socket.AF_INET6 if ":" in settings.host else socket.AF_INET
    try:
        return socket.create_server((settings.host, settings.port), family=family, backlog=1024)
    except OSError as error:
        raise InputError(
            f"Cannot listen at {settings.host}, port {settings.port}: {error.strerror}.\n"
            "Name another with --host or --port; --port 0 takes any that is free"
        ) from None


def _problems(*statuses: int) -> dict[int | str, dict[str, Any]]:
    return {status: {"model": Problem, "description": SAYS[status]} for status in statuses}


async def _said(_: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, AnyHTTPException)
    return JSONResponse({"error": error.detail}, error.status_code, error.headers)


async def _invalid(_: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, RequestValidationError)
    words = "; ".join(f"{each['loc'][-1]}: {each['msg']}" for each in error.errors())
    return JSONResponse({"error": words}, 422)


async def _broken(_: Request, error: Exception) -> JSONResponse:
    return JSONResponse({"error": str(error)}, 503)


async def _unforeseen(_: Request, error: Exception) -> JSONResponse:
    return JSONResponse({"error": f"{type(error).__name__}; the service's log says more."}, 500)
