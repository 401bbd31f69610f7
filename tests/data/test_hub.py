"""Corpora on the Hugging Face Hub, `hf://`: huggingface_hub itself, against a server that answers as the Hub does."""

from __future__ import annotations

import json
import re
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

import fsspec.config
import pytest

from copyscope.data.corpus import Corpus
from copyscope.detection.embedding.embed import embed
from copyscope.errors import InputError
from tests.data.test_object_store import LAYOUTS
from tests.pictures import fill, write

NAME = "datasets/me/set"


class Hub(ThreadingHTTPServer):
    """Has one data set, the folder `root`. `most`: how many files were asked for at once, at most."""

    root: Path
    delay: float
    most: int
    _here = 0
    _lock = threading.Lock()

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Answer)

    def counted(self, more: int) -> None:
        with self._lock:
            self._here += more
            self.most = max(self.most, self._here)


class _Answer(BaseHTTPRequestHandler):
    server: Hub
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        path = unquote(urlsplit(self.path).path).strip("/")
        tree = re.fullmatch(rf"api/{NAME}/tree/main/?(.*)", path)
        file = re.fullmatch(rf"{NAME}/resolve/main/(.+)", path)
        if path in (f"api/{NAME}", f"api/{NAME}/revision/main"):
            self._json({"id": "me/set", "sha": "0" * 40, "siblings": [], "tags": []})
        elif tree and (folder := self.server.root / tree[1]).is_dir():
            self._json([_entry(each, self.server.root) for each in sorted(folder.iterdir())])
        elif file and (self.server.root / file[1]).is_file():
            self.server.counted(1)
            time.sleep(self.server.delay)
            self.server.counted(-1)
            self._bytes((self.server.root / file[1]).read_bytes())
        else:
            self._json({"error": "Not found"}, 404, "EntryNotFound" if NAME in path else "RepoNotFound")

    def _bytes(self, data: bytes) -> None:
        asked = re.fullmatch(r"bytes=(\d+)-(\d+)", self.headers.get("Range", ""))
        some = data[int(asked[1]) : int(asked[2]) + 1] if asked else data
        span = {"Content-Range": f"bytes {asked[1]}-{int(asked[1]) + len(some) - 1}/{len(data)}"} if asked else {}
        self._send(some, 206 if asked else 200, span)

    def _json(self, value: Any, status: int = 200, code: str = "") -> None:
        self._send(json.dumps(value).encode(), status, {"X-Error-Code": code} if code else {})

    def _send(self, data: bytes, status: int, headers: dict[str, str]) -> None:
        self.send_response(status)
        for name, value in {"Content-Length": str(len(data)), **headers}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, *_: object) -> None:
        pass


def _entry(path: Path, root: Path) -> dict[str, Any]:
    entry = {"path": str(path.relative_to(root)), "oid": "0" * 40}
    return entry | ({"type": "directory"} if path.is_dir() else {"type": "file", "size": path.stat().st_size})


@pytest.fixture(scope="module")
def server() -> Iterator[Hub]:
    with Hub() as found:
        thread = threading.Thread(target=found.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
        thread.start()
        yield found
        found.shutdown()
        thread.join()


@pytest.fixture
def hub(server: Hub, tmp_path, monkeypatch) -> Hub:
    """The server as what `hf://` means, with a data set of its own."""
    server.root, server.delay, server.most = tmp_path / "hub", 0.0, 0
    options = {"endpoint": f"http://127.0.0.1:{server.server_port}", "token": False, "skip_instance_cache": True}
    monkeypatch.setitem(fsspec.config.conf, "hf", options)
    return server


@pytest.mark.parametrize("layout", LAYOUTS)
def test_the_same_rows_bytes_and_vectors_as_from_disk(tmp_path, hub: Hub, layout: str) -> None:
    LAYOUTS[layout](hub.root / "train")
    local, remote = Corpus.open(hub.root / "train"), Corpus.open(f"hf://{NAME}/train")
    assert remote.table.drop_columns("image").equals(local.table.drop_columns("image"))
    assert list(remote.stream()) == list(local.stream())
    here, there = (embed(corpus, "phash", cache=tmp_path / str(local is corpus)) for corpus in (local, remote))
    assert there.vectors.tobytes() == here.vectors.tobytes()
    assert there.n_missing == 0


def test_captions_beside_images_are_read_by_many(hub: Hub) -> None:
    fill(hub.root, *(f"{number:02d}.png" for number in range(40)))
    write(hub.root, {f"{number:02d}.txt": f"caption {number}" for number in range(40)})
    hub.delay = 0.05
    assert Corpus.open(f"hf://{NAME}").captions == [[f"caption {number}"] for number in range(40)]
    assert hub.most >= 4


@pytest.mark.parametrize(("url", "hint"), [(f"{NAME}/tran", f"hf://{NAME}/train"), ("datasets/you/set", "Check")])
def test_what_is_not_there_is_told(hub: Hub, url: str, hint: str) -> None:
    fill(hub.root / "train", "a.png")
    with pytest.raises(InputError, match="no such file or folder") as told:
        Corpus.open(f"hf://{url}")
    assert hint in str(told.value)
