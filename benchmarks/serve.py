"""`copyscope serve` under load: requests a second and p99 over real HTTP, beside calling Index.match in this process.

    python benchmarks/serve.py             # about two minutes

A service of its own process, clients in threads of this one, each with one connection that it keeps. Requests and calls
take turns, so that what else the machine does weighs on both. Lost = a request that did not bring back the id of the
very picture it sent. In the hostile part two more clients send broken bodies meanwhile.
"""

from __future__ import annotations

import argparse
import http.client
import json
import os
import re
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np

import worlds
from copyscope import Corpus, Index
from copyscope.imaging import images
from copyscope.machine import cores
from record import record

PROTOCOL = "sscd-distilled"
HOSTILE = (b"", b"no image", b"\x89PNG\r\n\x1a\n" + bytes(1000), b"\xff\xd8\xff\xe0" + bytes(100_000), bytes(30 << 20))


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("--requests", type=int, default=200, help="of a turn")
    arguments.add_argument("--turns", type=int, default=3)
    arguments.add_argument("--clients", type=int, default=8)
    options = arguments.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        world = worlds.world(Path(folder) / "world", n_train=200, n_generated=8, n_held_out=120)
        train = Corpus.open(world.train)
        index = Index.build(train, Path(folder) / "index", PROTOCOL, held_out=world.held_out)
        # Only images that are not near-duplicates of another: which of those comes back says nothing.
        pictures = [(index.ids[row], train.read(row)) for row in range(len(index))]
        sent = [(name, data) for name, data in pictures if own(index, name, data)]
        result = measure(index, sent, options.requests, options.turns, options.clients)
    record("serve", result)


def own(index: Index, name: str, data: bytes) -> bool:
    (hits,) = index.match([images.decode(data)], 2, local=False)
    return hits[0].id == name and hits[1].score < 0.75


def measure(index: Index, sent: list[tuple[str, bytes]], n: int, turns: int, clients: int) -> dict[str, Any]:
    command = [sys.executable, "-m", "copyscope", "serve", index.folder, "--port", "0", "--no-local", "--rate", "0.05"]
    # Room for all clients, so that nobody is refused.
    process = subprocess.Popen([*map(str, command), "--queue", str(clients)], stderr=subprocess.PIPE, text=True)
    try:
        assert process.stderr
        port = int(re.search(r":(\d+),", process.stderr.readline())[1])  # type: ignore[index]
        work = [sent[at % len(sent)] for at in range(n)]
        load(port, work[:20], clients)
        spent: list[float] = []
        outcomes: Counter[str] = Counter()
        ratios, speeds, alone = [], [], []
        for _ in range(turns):
            began = time.perf_counter()
            for seconds, outcome in load(port, work, clients):
                spent.append(seconds)
                outcomes[outcome] += 1
            speeds.append(n / (time.perf_counter() - began))
            began = time.perf_counter()
            with ThreadPoolExecutor(cores()) as pool:
                list(pool.map(lambda each: index.match([images.decode(each[1])], local=False, workers=1), work))
            alone.append(n / (time.perf_counter() - began))
            ratios.append(speeds[-1] / alone[-1])
        hostile = under_attack(port, work, clients)
        process.send_signal(signal.SIGTERM)
        code = process.wait(60)
    finally:
        process.kill()
    milliseconds = {f"p{each}_ms": round(1000 * float(np.percentile(spent, each)), 1) for each in (50, 99)}
    return {
        "protocol": PROTOCOL,
        "n_index": len(index),
        "clients": clients,
        "workers": cores(),
        "requests": len(spent),
        "load_average": round(os.getloadavg()[0], 1),
        "requests_a_second": round(float(np.median(speeds)), 1),
        "in_process_a_second": round(float(np.median(alone)), 1),
        "ratio_to_in_process": round(float(np.median(ratios)), 3),
        **milliseconds,
        "outcomes": dict(outcomes),
        "lost": len(spent) - outcomes["right"],
        "hostile": hostile,
        "exit_code_of_sigterm": code,
    }


def load(port: int, work: list[tuple[str, bytes]], clients: int) -> list[tuple[float, str]]:
    """Seconds and outcome of each request: `right`, `wrong`, or what went wrong."""
    queue = iter(work)
    guard = threading.Lock()
    found: list[tuple[float, str]] = []

    def client() -> None:
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=120)
        while True:
            with guard:
                each = next(queue, None)
            if each is None:
                connection.close()
                return
            name, data = each
            began = time.perf_counter()
            try:
                connection.request("POST", "/check?k=1", data, {"Content-Type": "image/png"})
                response = connection.getresponse()
                answer = json.loads(response.read())
                right = response.status == 200 and answer["copy"] and answer["matches"][0]["id"] == name
                outcome = "right" if right else "wrong" if response.status == 200 else str(response.status)
            except OSError as error:
                connection.close()
                outcome = type(error).__name__
            with guard:
                found.append((time.perf_counter() - began, outcome))

    threads = [threading.Thread(target=client) for _ in range(clients)]
    for each in threads:
        each.start()
    for each in threads:
        each.join()
    return found


def under_attack(port: int, work: list[tuple[str, bytes]], clients: int) -> dict[str, Any]:
    """What becomes of good requests while two other clients send broken bodies."""
    statuses: Counter[str] = Counter()
    over = threading.Event()

    def attack() -> None:
        while not over.is_set():
            for body in HOSTILE:
                connection = http.client.HTTPConnection("127.0.0.1", port, timeout=120)
                try:
                    connection.request("POST", "/check", body)
                    statuses[str(connection.getresponse().status)] += 1
                except OSError as error:
                    statuses[type(error).__name__] += 1
                connection.close()

    attackers = [threading.Thread(target=attack) for _ in range(2)]
    for each in attackers:
        each.start()
    good = Counter(outcome for _, outcome in load(port, work, clients))
    over.set()
    for each in attackers:
        each.join()
    return {"good": dict(good), "broken": dict(statuses)}


if __name__ == "__main__":
    main()
