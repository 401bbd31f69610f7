"""The lots of fuzz.py that read what Copyscope itself has written, changed; and those that ask the service."""

from __future__ import annotations

import contextlib
import copy
import hashlib
import io
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from fuzz import mutated, pictures

VALUES: tuple[Any, ...] = (
    None, True, False, 0, -1, 1, 2**31, 10**30, -(10**18), 0.5, 1e308, -1e-308, float("nan"), float("inf"), "", "x",
    "x" * 100_000, "../../etc/passwd", "a\nb\x1b[31m", "\ud800", "0123456789abcdef", [], {}, [None], [[[]]], [1, "a"],
    {"": None}, {"value": 1}, ["x"] * 2000,
)  # fmt: skip
LATE = 30
"""Seconds in which the service must have answered, or a manifest been read."""


def spoilt(document: Any, rng: np.random.Generator) -> Any:
    """A JSON value with one to three changes: a value of another type, size or sense, a key or a member that is
    missing, renamed, doubled, or in the place of another."""
    document = json.loads(json.dumps(document))
    for _ in range(int(rng.integers(1, 4))):
        places = list(_places(document))
        if not places:
            return _value(rng)
        holder, key = places[int(rng.integers(len(places)))]
        match int(rng.integers(6)):
            case 0 | 1 | 2:
                holder[key] = _value(rng)
            case 3:
                del holder[key]
            case 4:
                other, name = places[int(rng.integers(len(places)))]
                with contextlib.suppress(KeyError, IndexError):
                    holder[key], other[name] = other[name], holder[key]
            case _:
                if isinstance(holder, dict):
                    holder[f"{key}x"] = holder.pop(key)
                else:
                    holder.insert(key, holder[key])
    return document


def _value(rng: np.random.Generator) -> Any:
    # A copy: what is spoilt next may lie within.
    return copy.deepcopy(VALUES[int(rng.integers(len(VALUES)))])


def _places(value: Any, depth: int = 0) -> Any:
    """(container, key) of every value within, those further out more often."""
    if depth < 8:
        for key in list(value) if isinstance(value, dict) else range(len(value)) if isinstance(value, list) else ():
            for _ in range(max(1, 4 - 2 * depth)):
                yield value, key
            yield from _places(value[key], depth + 1)


class Written:
    """One of each thing that Copyscope writes and reads back, in `folder`."""

    def __init__(self, folder: Path) -> None:
        import torch

        import worlds
        from copyscope import Corpus, Index, TrainRecipe, embed, train
        from copyscope.detection.audit import audit
        from copyscope.detection.lint import lint
        from copyscope.diffusion.thresholds import Threshold, Thresholds
        from copyscope.diffusion.training import checkpoints
        from copyscope.guard.log import Record

        self.folder = folder
        made = worlds.world(folder / "world", n_train=16, n_generated=6, n_held_out=20, seed=5)
        self.train = Corpus.open(made.train)
        Index.build(self.train, folder / "index", "phash", held_out=made.held_out)
        lint(self.train, "phash").save(folder / "lint")
        audit(made.generated, self.train, made.held_out, "phash", parts="off", sensitivity=0).save(folder / "audit")
        embed(self.train, "phash").save(folder / "embeddings")
        model = "small_unet(size=16, components=4, channels=[32])"
        recipe = TrainRecipe(model=model, steps=2, batch_size=4, tracker="none", warmup_steps=0)
        train(self.train, folder / "run", recipe)
        network = torch.nn.Linear(2, 2)
        optimizer = torch.optim.AdamW(network.parameters())
        network(torch.ones(1, 2)).sum().backward()
        optimizer.step()
        checkpoints.write(folder / "checkpoints", 1, network, {}, optimizer, keep=1)
        self.network, self.optimizer = network, optimizer
        Thresholds("m", "s", {"trajectory_curvature": Threshold(0.5, 0.01, 200, 0)}).save(folder / "thresholds.json")
        row = Record(
            call=0, row=0, attempt=0, rung=("a",), prompt="p", seed=1, score=0.5, combined=0.5, p_value=0.1,
    match="a.png",
            box=(0.0, 0.0, 1.0, 1.0), signals={"s": 0.5}, flagged=("s",), copy=True, look=None, action="refused",
            seconds=0.1, time="2026-01-01T00:00:00+00:00",
        )  # fmt: skip
        (folder / "guard.jsonl").write_text("".join(json.dumps(row.as_dict()) + "\n" for _ in range(3)))

    def readers(self) -> dict[str, tuple[str, Callable[[Path], Any]]]:
        """By a name: what is copied, with the file in it that is changed; and how it is read."""
        return {
            "index": ("index/index.json", self._index),
            "audit": ("audit/summary.json", self._result),
            "lint": ("lint/summary.json", self._result),
            "audit table": ("audit/generated.parquet", self._result),
            "run recipe": ("run/recipe.json", self._run),
            "run summary": ("run/summary.json", self._run),
            "model": ("run/model/small_unet.json", self._run),
            "history": ("run/history.parquet", self._run),
            "train table": ("run/train.parquet", self._run),
            "checkpoint": ("checkpoints/step-00000001/state.json", self._checkpoint),
            "thresholds": ("thresholds.json", self._thresholds),
            "decisions": ("guard.jsonl", self._decisions),
            "embeddings": ("embeddings/embeddings.json", self._embeddings),
        }

    def _index(self, folder: Path) -> None:
        from copyscope import Index
        from copyscope.imaging import images

        index = Index.open(folder)
        index.summary()
        index.match([images.decode(self.train.read(0))], 2, local=False)
        index.check()

    def _result(self, folder: Path) -> None:
        from copyscope.cli.main import report

        report(folder)

    def _run(self, folder: Path) -> None:
        from copyscope.diffusion.run import Run

        run = Run.open(folder)
        # What the commands read of a run.
        for each in ("table", "history", "model"):
            getattr(run, each)

    def _checkpoint(self, folder: Path) -> None:
        from copyscope.diffusion.training import checkpoints

        checkpoints.read(folder, self.network, {}, self.optimizer)

    def _thresholds(self, folder: Path) -> None:
        from copyscope.diffusion.thresholds import Thresholds

        found = Thresholds.load(folder / "thresholds.json", "m", "s")
        found.flagged({spec: np.array([0.1, np.nan]) for spec in found.signals})

    def _decisions(self, folder: Path) -> None:
        from copyscope.cli.main import report

        report(folder / "guard.jsonl")

    def _embeddings(self, folder: Path) -> None:
        from copyscope.detection.embedding.embeddings import Embeddings

        found = Embeddings.load(folder)
        found.vectors[:2] @ found.vectors[:2].T
        assert len(found.ids) + found.n_missing == len(found.corpus)


def resealed(path: Path, document: Any) -> bytes:
    """The document as JSON, with the checksums that its reader compares made right again."""
    if isinstance(document, dict) and "digest" in document:
        rest = {key: value for key, value in document.items() if key != "digest"}
        document["digest"] = hashlib.sha256(json.dumps(rest, sort_keys=True).encode()).hexdigest()
    return json.dumps(document).encode("utf-8", "surrogatepass")


def run_manifests(seed: int, n: int, folder: Path) -> dict[str, int]:
    """Read n changed manifests and tables; raises where one ends in anything but a result or an error of two lines."""
    from copyscope.errors import CopyscopeError

    rng = np.random.default_rng([seed, 3])
    readers = Written(folder / "whole").readers()
    found = {"read": 0, "refused": 0}
    longest, faults = 0.0, []
    for number in range(n):
        name = list(readers)[number % len(readers)]
        file, read = readers[name]
        work = folder / "work"
        shutil.rmtree(work, ignore_errors=True)
        source = folder / "whole" / file
        top = source.parent if source.parent != folder / "whole" else None
        if file.startswith("run/"):
            top = folder / "whole" / "run"
        if top:
            shutil.copytree(top, work)
        else:
            work.mkdir()
            shutil.copy(source, work)
        path = work / source.relative_to(top or folder / "whole")
        data = path.read_bytes()
        if path.suffix in (".json", ".jsonl") and rng.random() < 0.75:
            lines = data.splitlines() if path.suffix == ".jsonl" else [data]
            at = int(rng.integers(len(lines)))
            lines[at] = resealed(path, spoilt(json.loads(lines[at]), rng))
            data = b"\n".join(lines)
        else:
            data = mutated(data, rng, data[::-1])
        path.write_bytes(data)
        sums = work / "SHA256SUMS"
        if sums.is_file():
            lines = [line.split("  ") for line in sums.read_text().splitlines()]
            digest = hashlib.sha256(data).hexdigest()
            sums.write_text("".join(f"{digest if each == path.name else old}  {each}\n" for old, each in lines))
        began = time.monotonic()
        try:
            with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
                signal.alarm(LATE)
                read(work)
            found["read"] += 1
        except CopyscopeError as error:
            if len(str(error).splitlines()) != 2:
                faults.append(f"{name}, number {number}: not two lines: {error}")
            found["refused"] += 1
        except Exception as error:
            where = traceback.extract_tb(error.__traceback__)[-1]
            faults.append(f"{name}, number {number}: {error!r:.300} at {where.filename}:{where.lineno}: {_told(data)}")
        finally:
            signal.alarm(0)
        longest = max(longest, time.monotonic() - began)
    if faults:
        raise AssertionError("\n".join(faults))
    return found | {"longest_ms": int(longest * 1000)}


def _told(data: bytes) -> str:
    return f"{data[:600]!r}"


# Requests


class Service:
    """`copyscope serve` on an index of a few images, in a process of its own."""

    def __init__(self, folder: Path) -> None:
        import worlds
        from copyscope import Corpus, Index

        made = worlds.world(folder / "world", n_train=16, n_generated=4, n_held_out=40, seed=6)
        self.image = Corpus.open(made.train).read(2)
        Index.build(made.train, folder / "index", "phash", held_out=made.held_out)
        options = "--port 0 --seconds 3 --max-megabytes 1 --max-megapixels 4 --workers 1 --no-local --rate 0.05"
        command = [sys.executable, "-m", "copyscope", "serve", str(folder / "index"), *options.split()]
        self.log = folder / "log"
        with self.log.open("wb") as log:
            self.process = subprocess.Popen(command, stderr=log, env=os.environ | {"COPYSCOPE_TOKEN": "right"})
        end = time.monotonic() + 120
        while not (found := re.search(r"127\.0\.0\.1:(\d+)", self.log.read_text(errors="replace"))):
            if self.process.poll() is not None or time.monotonic() > end:
                raise RuntimeError(self.log.read_text())
            time.sleep(0.1)
        self.port = int(found[1])

    def send(self, data: bytes, half: bool, seconds: float) -> bytes:
        """What comes back for these bytes; half: close at once after them."""
        with socket.create_connection(("127.0.0.1", self.port), timeout=seconds) as line:
            with contextlib.suppress(OSError):  # a service may close before it has all
                line.sendall(data)
            if half:
                return b""
            found = b""
            with contextlib.suppress(OSError):
                while not _whole(found) and (piece := line.recv(65536)):
                    found += piece
            return found

    def peak_mib(self) -> int:
        """Most memory that the service has had."""
        status = Path(f"/proc/{self.process.pid}/status").read_text()
        return int(re.search(r"VmHWM:\s+(\d+)", status)[1]) >> 10  # type: ignore[index]


def _whole(said: bytes) -> bool:
    """Whether an answer is all there, so that nobody waits for the end of its connection."""
    head, found, body = said.partition(b"\r\n\r\n")
    length = re.search(rb"(?i)content-length: *(\d+)", head)
    return bool(found and length and not head.startswith(b"HTTP/1.1 100") and len(body) >= int(length[1]))


ODD_HEADERS = (
    b"Content-Length: -1", b"Content-Length: 99999999999999999999", b"Content-Length: 1\r\nContent-Length: 2",
    b"Transfer-Encoding: chunked", b"Transfer-Encoding: chunked\r\nContent-Length: 3",
    b"Transfer-Encoding: gzip, chunked",
    b"Expect: 100-continue", b"Upgrade: websocket\r\nConnection: Upgrade", b"Content-Encoding: gzip", b"Host:",
    b"Host: [",
    b"Host: evil.example", b"Content-Type: text/html", b"Content-Type:", b"Content-Type: image/png; charset=\xff\xfe",
    b"Authorization: Bearer", b"Authorization: Bearer wrong", b"Authorization: Basic cmlnaHQ=", b"Authorization: \xff",
    b"Range: bytes=0-", b"X: " + b"a" * 70_000, b"\0: a", b" folded", b"A" * 300, b"Connection: close, keep-alive",
    b"Accept: " + b"*/*," * 500, b"Cookie: " + b"a=b;" * 500, b"Content-Length: 0x10", b"Content-Length: +5",
)  # fmt: skip
METHODS = (
    b"GET",
    b"PUT",
    b"DELETE",
    b"HEAD",
    b"OPTIONS",
    b"PATCH",
    b"TRACE",
    b"CONNECT",
    b"post",
    b"PO ST",
    b"\xff",
    b"",
)
PATHS = (
    b"/check?k=5", b"/check?k=0", b"/check?k=1e9", b"/check?k=5&k=6", b"/check?rate=nan", b"/check?rate=1e-300",
    b"/check?local=maybe", b"/check?odd=1", b"/check?%ff=%00", b"/check/", b"/CHECK", b"/health", b"/metrics",
    b"/openapi.json",
    b"/docs", b"/../../etc/passwd", b"//check", b"*", b"http:///check", b"/check?" + b"k=1&" * 3000,
    b"/" + b"a" * 70_000,
    b"/\xff\xfe", b"/check#a", b"", b"/check?k=\xd9\xa3",
)  # fmt: skip


def request(image: bytes, whole: dict[str, list[bytes]], rng: np.random.Generator) -> tuple[bytes, bool, str]:
    """A request that is right, or has one to three faults; whether it is cut off; what it is, in a word."""
    method, path, version = b"POST", b"/check", b"HTTP/1.1"
    headers = [b"Host: 127.0.0.1", b"Authorization: Bearer right", b"Content-Type: image/png", b"Connection: close"]
    body, length, half, kind = image, None, False, "right"
    for _ in range(int(rng.integers(4))):
        match int(rng.integers(10)):
            case 0:
                method, kind = METHODS[int(rng.integers(len(METHODS)))], "method"
            case 1:
                path, kind = PATHS[int(rng.integers(len(PATHS)))], "path"
            case 2:
                headers.append(ODD_HEADERS[int(rng.integers(len(ODD_HEADERS)))])
                kind = "header"
            case 3:
                del headers[int(rng.integers(len(headers)))]
                headers = headers or [b"A: b"]
                kind = "header"
            case 4 | 5:
                name = list(whole)[int(rng.integers(len(whole)))]
                body, kind = mutated(whole[name][int(rng.integers(3))], rng, image), "image"
            case 6:
                sizes = (0, 1, 100, 5000, 1_100_000)
                body, kind = rng.bytes(sizes[int(rng.integers(len(sizes)))]), "body"
            case 7:
                length = int(rng.choice((0, 1, len(body) // 2, len(body) + 1, len(body) + 10**6, 2**31, 2**62)))
                kind = "length"
            case 8:
                version, kind = (
                    (b"HTTP/1.0", b"HTTP/2.0", b"HTTP/9", b"", b"HTTP/1.1 x")[int(rng.integers(5))],
                    "version",
                )
            case _:
                half, kind = True, "half"
    headers.append(b"Content-Length: %d" % (len(body) if length is None else length))
    data = b" ".join((method, path, version)) + b"\r\n" + b"\r\n".join(headers) + b"\r\n\r\n" + body
    if rng.random() < 0.15:
        data, kind = mutated(data[:2000], rng, data[:200]) + data[2000:], "bytes"
    if half:
        data = data[: int(rng.integers(len(data) + 1))]
    return data, half, kind


def run_requests(seed: int, n: int, folder: Path) -> dict[str, int]:
    """Send n changed requests; raises where the service answers with a 500, or not at all, or does not end in time."""
    rng = np.random.default_rng([seed, 4])
    whole = pictures(rng)
    service = Service(folder)
    found = {"answered": 0, "closed": 0, "half": 0}
    longest = 0.0
    right = (
        b"POST /check HTTP/1.1\r\nHost: 127.0.0.1\r\nAuthorization: Bearer right\r\nContent-Type: image/png\r\n"
        b"Connection: close\r\nContent-Length: %d\r\n\r\n" % len(service.image)
    ) + service.image
    try:
        for number in range(n):
            data, half, kind = request(service.image, whole, rng)
            began = time.monotonic()
            said = service.send(data, half, LATE)
            longest = max(longest, time.monotonic() - began)
            status = re.match(rb"HTTP/1\.[01] (\d\d\d)", said)
            found["half" if half else "answered" if status else "closed"] += 1
            shown = f"{kind}, number {number}: {data[:1500]!r} -> {said[:500]!r}"
            assert service.process.poll() is None, f"the service ended: {shown}"
            assert not (status and status[1].startswith(b"5") and status[1] not in (b"503", b"504")), shown
            assert longest < LATE, f"no answer in {LATE} s: {shown}"
            if number % 50 == 49:
                said = service.send(right, False, LATE)
                # Of requests that were cut off some may be under way still.
                assert re.match(rb"HTTP/1\.1 (200|503)", said), f"the service does not go on: {said[:500]!r}"
        time.sleep(4)
        assert service.send(right, False, LATE).startswith(b"HTTP/1.1 200"), "the service does not go on"
        assert "Traceback" not in (log := service.log.read_text(errors="replace")), log[-3000:]
        peak = service.peak_mib()
        began = time.monotonic()
        service.process.send_signal(signal.SIGTERM)
        assert service.process.wait(3 + 5 + 5) == 0, "the service does not end with 0"
        ended = time.monotonic() - began
    finally:
        service.process.kill()
        service.process.wait()
    return found | {
        "longest_ms": int(longest * 1000), "longest_end_ms": int(ended * 1000), "peak_service_mib": peak,
    }  # fmt: skip
