"""A real S3 server on loopback (moto over werkzeug), with a record of every request and faults on demand."""

from __future__ import annotations

import dataclasses
import socket
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

from moto.server import DomainDispatcherApplication, create_backend_app
from werkzeug.serving import WSGIRequestHandler, make_server

KEY, SECRET, BUCKET = "copyscope", "secret", "bucket"
_ERROR = "<?xml version='1.0'?><Error><Code>{}</Code><Message>{}</Message></Error>"
_STATUS = {
    "InternalError": "500 Internal Server Error",
    "SlowDown": "503 Slow Down",
    "InvalidAccessKeyId": "403 Forbidden",
}


@dataclasses.dataclass(frozen=True)
class Asked:
    """A request that came: method, path with the bucket, the bytes asked for ("" = all), bytes of the answer."""

    method: str
    path: str
    range: str
    query: str
    answered: int


@dataclasses.dataclass
class ObjectStore:
    """The server. `fault(request number of that key, method, path, range)` names what goes wrong with a request, or is
    "": an S3 error code, "reset" (the connection is closed) or "cut" (half of the body). delay: seconds before each
    answer. pace: seconds a byte of it, as a connection to a distant store has its limit. most: how many requests were
    answered at once, at most.
    """

    url: str = ""
    asked: list[Asked] = dataclasses.field(default_factory=list)
    fault: Callable[[int, str, str, str], str] = lambda number, method, path, range: ""
    delay: float = 0.0
    pace: float = 0.0
    most: int = 0
    _here: int = 0
    _gathered: threading.Barrier | None = None
    _lock: threading.Lock = dataclasses.field(default_factory=threading.Lock)
    _seen: dict[str, int] = dataclasses.field(default_factory=dict)

    def __enter__(self) -> ObjectStore:
        self._app = DomainDispatcherApplication(create_backend_app)
        self._server = make_server("127.0.0.1", 0, self._answer, threaded=True, request_handler=_Quiet)
        self._server.daemon_threads = True
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
        self._thread.start()
        self.url = f"http://127.0.0.1:{self._server.port}"
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    def options(self, key: str = KEY) -> dict[str, Any]:
        """What s3fs must be told to come here, and to leave trying again to us."""
        # What s3fs and botocore would else add to this dict, and then take it for the options of another file system.
        times = {"connect_timeout": 5, "read_timeout": 15}
        return {
            "key": key,
            "secret": SECRET,
            "endpoint_url": self.url,
            "config_kwargs": times
            | {"retries": {"total_max_attempts": 1, "mode": "legacy"}, "s3": {"addressing_style": "path"}},
            "client_kwargs": {"region_name": "us-east-1"},
        }

    def forget(self) -> None:
        """Begins a new record, without faults."""
        with self._lock:
            self.asked, self._seen, self.fault, self.most = [], {}, lambda number, method, path, range: "", 0

    def gather(self, n: int) -> None:
        """The next n requests are answered when all of them are there; where they never are, they fail."""
        self._gathered = threading.Barrier(n, timeout=20)

    def put(self, files: dict[str, bytes]) -> None:
        """Puts objects by their keys into the bucket, past the network."""
        from moto.backends import get_backend

        backend = get_backend("s3")["123456789012"]["aws"]
        if BUCKET not in backend.buckets:
            backend.create_bucket(BUCKET, "us-east-1")
        for key, content in files.items():
            backend.put_object(BUCKET, key, content)

    def upload(self, folder: Path, prefix: str) -> str:
        """Puts the files of a folder below `prefix`; returns its URL."""
        self.put(
            {
                f"{prefix}/{path.relative_to(folder).as_posix()}": path.read_bytes()
                for path in folder.rglob("*")
                if path.is_file()
            }
        )
        return f"s3://{BUCKET}/{prefix}"

    def delete(self, key: str) -> None:
        """Takes an object away."""
        from moto.backends import get_backend

        get_backend("s3")["123456789012"]["aws"].delete_object(BUCKET, key)

    def _answer(self, environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
        with self._lock:
            self._here += 1
            self.most = max(self.most, self._here)
            gathered = self._gathered
        try:
            if gathered and not gathered.broken:
                gathered.wait()
                self._gathered = None
            return self._answered(environ, start_response)
        finally:
            with self._lock:
                self._here -= 1

    def _answered(self, environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
        method, path = environ["REQUEST_METHOD"], environ["PATH_INFO"]
        if self.delay:
            time.sleep(self.delay)
        with self._lock:
            number = self._seen[path] = self._seen.get(path, 0) + 1
            wrong = self.fault(number, method, path, environ.get("HTTP_RANGE", ""))
        if f"Credential={KEY}/" not in environ.get("HTTP_AUTHORIZATION", ""):
            wrong = "InvalidAccessKeyId"
        if wrong == "reset":
            self._note(environ, 0)
            environ["werkzeug.socket"].shutdown(socket.SHUT_RDWR)
            start_response("200 OK", [("Content-Length", "0")])  # which nobody will hear
            return []
        if wrong in _STATUS:
            body = _ERROR.format(wrong, "as asked for by the test").encode()
            start_response(_STATUS[wrong], [("Content-Type", "application/xml"), ("Content-Length", str(len(body)))])
            self._note(environ, 0)
            return [] if method == "HEAD" else [body]
        body = b"".join(self._app(environ, start_response))
        self._note(environ, len(body))
        if self.pace:
            time.sleep(self.pace * len(body))
        if wrong == "cut":
            return _cut(body, environ["werkzeug.socket"])
        return [body]

    def _note(self, environ: dict[str, Any], size: int) -> None:
        with self._lock:
            self.asked.append(
                Asked(
                    environ["REQUEST_METHOD"],
                    environ["PATH_INFO"].lstrip("/"),
                    environ.get("HTTP_RANGE", ""),
                    environ.get("QUERY_STRING", ""),
                    size,
                )
            )


class _Quiet(WSGIRequestHandler):
    protocol_version = "HTTP/1.1"  # connections are kept, as every real store does

    def log(self, *_: object) -> None:
        pass


def _cut(body: bytes, connection: socket.socket) -> Iterator[bytes]:
    yield body[: len(body) // 2]
    connection.shutdown(socket.SHUT_RDWR)
