"""The service: right verdicts over HTTP, limits that hold, hostile bodies that leave it standing, an orderly end."""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import re
import signal
import struct
import subprocess
import sys
import threading
import time
import zlib
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from fastapi.testclient import TestClient
from typer.testing import CliRunner

from copyscope import Corpus, Index
from copyscope.cli import main
from copyscope.errors import InputError
from copyscope.imaging import images
from copyscope.serve import app
from copyscope.serve.app import Settings

FAST = "sscd-distilled"
PNG = {"content-type": "image/png"}


@pytest.fixture(scope="module")
def index(world, tmp_path_factory):
    train, held = Corpus.open(world.train), Corpus.open(world.held_out)
    folder = tmp_path_factory.mktemp("served") / "index"
    return Index.build(train.take(range(40)), folder, FAST, held_out=held.take(range(60)))


@pytest.fixture(scope="module")
def copied(world):
    """A training image, saved again as a JPEG."""
    return images.encode(images.decode(Corpus.open(world.train).read(30)), "jpeg", 80)


@pytest.fixture(scope="module")
def unseen(world):
    """A held-out image that the index does not know."""
    return Corpus.open(world.held_out).read(100)


@contextlib.contextmanager
def served(index, **settings):
    """A client of a service in this process."""
    api = app.app(index, Settings(**{"rate": 0.05, "local": False, "workers": 1} | settings))
    with TestClient(api, base_url="http://127.0.0.1", raise_server_exceptions=False) as client:
        yield client


@pytest.fixture(scope="module")
def client(index):
    with served(index) as found:
        yield found


# Answers


def test_a_copy_is_called_one_with_its_source_and_an_unseen_image_is_not(client, index, copied, unseen):
    found = client.post("/check", content=copied, headers={"content-type": "image/jpeg"}).json()
    assert found["copy"] is True
    assert found["p_value"] <= 0.05
    assert found["schema"] == "copyscope.check/1"
    assert (found["n_index"], found["protocol"], found["local"], found["rate"]) == (40, FAST, False, 0.05)
    best = found["matches"][0]
    assert best["id"] == index.ids[30]
    assert (best["p_value"], best["combined"]) == (found["p_value"], found["combined"])
    other = client.post("/check", content=unseen, headers=PNG).json()
    assert other["copy"] is False
    assert other["p_value"] > 0.05


def test_it_says_what_the_index_says(client, index, copied):
    found = client.post("/check?k=3&local=true", content=copied, headers=PNG).json()
    (hits,) = index.match([images.decode(copied)], 3, local=True)
    assert [each["id"] for each in found["matches"]] == [hit.id for hit in hits]
    assert [each["combined"] for each in found["matches"]] == [hit.combined for hit in hits]
    assert found["matches"][0]["caption"] == hits[0].caption


def test_too_few_calibration_images_for_a_rate_cannot_tell(client, copied):
    assert client.post("/check?rate=0.0001", content=copied, headers=PNG).json()["copy"] is None


def test_a_training_image_is_a_copy_at_any_rate(client, index, world):
    found = client.post("/check?rate=0.0001", content=Corpus.open(world.train).read(30), headers=PNG).json()
    assert (found["copy"], found["identical"], found["blank"]) == (True, True, False)
    assert found["matches"][0]["identical"]


def test_an_index_of_nothing_knows_no_copy(world, copied, tmp_path):
    index = Index.build(Corpus.open(world.train).take(range(4)), tmp_path / "index", FAST)
    index.remove(index.ids)
    with served(index) as client:
        found = client.post("/check", content=copied, headers=PNG).json()
    assert (found["copy"], found["p_value"], found["matches"], found["n_index"]) == (False, None, [], 0)


def test_health_says_what_it_serves(client, index):
    found = client.get("/health").json()
    about = index.summary()
    assert found["status"] == "ready"
    assert (found["n_index"], found["protocol"]) == (40, FAST)
    assert found["fingerprint"] == about["fingerprint"]


# What must not take it down


def chunk(kind, data):
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def bomb(side):
    """A small PNG that says it is `side` x `side` pixels, and is."""
    return blank(side, side)


def blank(width, height):
    """A small PNG of width x height pixels, all black."""
    rows = zlib.compressobj(9)
    row = bytes((width + 7) // 8 + 1)
    data = b"".join(rows.compress(row * min(100_000, height - done)) for done in range(0, height, 100_000))
    data += rows.flush()
    header = struct.pack(">IIBBBBB", width, height, 1, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", data) + chunk(b"IEND", b"")


def still_answers(client, copied):
    return client.post("/check", content=copied, headers=PNG).json()["copy"] is True


HOSTILE = {
    "empty": (b"", "empty"),
    "text": (b"GET / HTTP/1.1\r\n\r\n" * 9, "not an image"),
    "svg": (b'<svg xmlns="http://www.w3.org/2000/svg"><script>1</script></svg>', "not an image"),
    "html": (b"<!doctype html><title>x</title>", "not an image"),
    "a JPEG mark alone": (b"\xff\xd8\xff", "JPEG"),
    "a PNG mark alone": (b"\x89PNG\r\n\x1a\n", "PNG"),
    "zip": (b"PK\x03\x04" + bytes(100), "not an image"),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_what_is_no_image_is_refused_in_words(name, client, copied):
    body, word = HOSTILE[name]
    found = client.post("/check", content=body, headers=PNG)
    assert found.status_code == 400
    assert word in found.json()["error"]
    assert still_answers(client, copied)


def test_images_cut_short_and_with_broken_bytes_are_refused_or_read(client, unseen, copied):
    rng = np.random.default_rng(0)
    for length in rng.integers(1, len(unseen) - 20, 6).tolist():
        assert client.post("/check", content=unseen[:length], headers=PNG).status_code == 400
    for _ in range(12):
        broken = np.frombuffer(copied, np.uint8).copy()
        broken[rng.integers(0, len(broken), 30)] = rng.integers(0, 256, 30)
        assert client.post("/check", content=broken.tobytes(), headers=PNG).status_code in (200, 400)
    assert still_answers(client, copied)


def test_a_bomb_is_refused_by_its_header(client, copied):
    found = client.post("/check", content=bomb(30_000), headers=PNG)
    assert found.status_code == 413
    assert found.json()["error"] == "too large: 30000 x 30000 pixels"
    assert still_answers(client, copied)


@pytest.mark.parametrize(("width", "height"), [(1, 16_000_000), (16_000_000, 1), (3000, 1), (1, 101)])
def test_an_elongated_image_is_refused_by_its_header(width, height, client, copied, monkeypatch):
    body = blank(width, height)
    assert len(body) < 40_000
    monkeypatch.setattr(images, "decode", lambda *_: pytest.fail("it was decoded"))
    found = client.post("/check", content=body, headers=PNG)
    assert found.status_code == 413
    assert found.json()["error"] == f"too large: {width} x {height} pixels are more elongated than 100 : 1"
    monkeypatch.undo()
    assert client.post("/check", content=blank(100, 1), headers=PNG).status_code == 200
    assert still_answers(client, copied)


@pytest.mark.parametrize(
    ("error", "status"), [(MemoryError(), 413), (ValueError("x"), 422), (IndexError("x"), 422), (OSError(5, "x"), 422)]
)
def test_whatever_an_image_sets_off_is_no_500(error, status, index, copied):
    class Failing(Slow):
        def match(self, *arguments, **options):
            raise error

    with served(Failing(index)) as client:
        found = client.post("/check", content=copied, headers=PNG)
    assert found.status_code == status
    assert found.json()["error"]


def test_the_limit_of_pixels_is_that_of_the_settings(index):
    with served(index, max_pixels=64 * 64) as client:
        assert client.post("/check", content=bomb(64), headers=PNG).status_code == 200
        assert client.post("/check", content=bomb(72), headers=PNG).json()["error"] == "too large: 72 x 72 pixels"


def test_a_large_body_is_refused_by_its_length_and_while_it_comes(index, copied):
    with served(index, max_bytes=100_000) as client:
        found = client.post("/check", content=bytes(100_001), headers=PNG)
        assert found.status_code == 413
        assert "100,000 bytes" in found.json()["error"]
        streamed = (bytes(1 << 20) for _ in range(3))
        assert client.post("/check", content=streamed, headers=PNG).status_code == 413
        exact = copied + bytes(100_000 - len(copied))
        assert client.post("/check", content=exact, headers=PNG).status_code == 200


@pytest.mark.parametrize("kind", ["application/json", "text/plain", "multipart/form-data; boundary=x", "image"])
def test_other_content_types_are_refused(kind, client, copied):
    assert client.post("/check", content=copied, headers={"content-type": kind}).status_code == 415


@pytest.mark.parametrize("kind", [None, "image/webp", "IMAGE/PNG; x=y", "application/octet-stream"])
def test_the_bytes_decide_what_an_image_is(kind, client, copied):
    headers = {"content-type": kind} if kind else {}
    assert client.post("/check", content=copied, headers=headers).status_code == 200


@pytest.mark.parametrize("query", ["k=0", "k=101", "k=x", "rate=0", "rate=1", "rate=nan", "rate=inf", "local=perhaps"])
def test_wrong_parameters_are_named(query, client, copied):
    found = client.post(f"/check?{query}", content=copied, headers=PNG)
    assert found.status_code == 422
    assert found.json()["error"].startswith(query.partition("=")[0])


def test_a_parameter_spelt_wrong_is_no_default(client, copied):
    found = client.post("/check?rte=0.5", content=copied, headers=PNG)
    assert found.status_code == 422
    assert "'rte'" in found.json()["error"]


def test_an_index_that_is_broken_is_said_and_is_served_again_once_it_is_whole(index, copied, tmp_path):
    import shutil

    there = Index.open(shutil.copytree(index.folder, tmp_path / "index"))
    manifest = there.folder / "index.json"
    whole = manifest.read_bytes()
    with served(there) as client:
        manifest.write_bytes(b"{}")
        for found in (client.get("/health"), client.post("/check", content=copied, headers=PNG)):
            assert found.status_code == 503
            assert found.json()["error"]
        manifest.write_bytes(whole)
        assert still_answers(client, copied)


# Who may ask


def test_a_token_is_asked_for_where_there_is_one(index, copied):
    with served(index, token="s3cret") as client:
        for wrong in (None, "Bearer", "Bearer s3cre", "Bearer s3cret2", "Basic s3cret", "s3cret", b"Bearer \xe9"):
            headers = PNG | ({"authorization": wrong} if wrong else {})
            found = client.post("/check", content=copied, headers=headers)
            assert found.status_code == 401, wrong
            assert found.headers["www-authenticate"] == "Bearer"
        right = {"authorization": "Bearer s3cret"}
        assert client.post("/check", content=copied, headers=PNG | right).status_code == 200
        assert client.get("/metrics").status_code == 401
        assert client.get("/metrics", headers=right).status_code == 200
        assert client.get("/health").status_code == 200


@pytest.mark.parametrize("host", ["evil.example", "127.0.0.1.evil.example", "10.0.0.1:8321", "[::2]", ""])
def test_without_a_token_a_page_elsewhere_cannot_reach_it_under_its_own_name(host, client, copied):
    assert client.post("/check", content=copied, headers=PNG | {"host": host}).status_code == 403


@pytest.mark.parametrize("host", ["localhost:8321", "127.0.0.1", "[::1]:8321"])
def test_this_machine_has_several_names(host, client):
    assert client.get("/health", headers={"host": host}).status_code == 200


def test_with_a_token_any_host_is_answered(index):
    with served(index, token="s3cret") as client:
        assert client.get("/health", headers={"host": "copies.example"}).status_code == 200


def test_others_are_not_served_without_a_token(index):
    with pytest.raises(InputError, match=r"(?s)open to others\.\nPut a token"):
        app.run(index, Settings("0.0.0.0", 0))


def test_settings_do_not_show_the_token():
    assert "s3cret" not in repr(Settings(token="s3cret"))


# Load


class Slow:
    """An index whose answers wait until they are let go."""

    def __init__(self, index):
        self._index = index
        self.begun, self.go = threading.Semaphore(0), threading.Event()

    def summary(self):
        return self._index.summary()

    def match(self, *arguments, **options):
        self.begun.release()
        assert self.go.wait(60)
        return self._index.match(*arguments, **options)


def test_where_all_places_are_taken_the_next_is_told_to_come_again(index, copied):
    slow = Slow(index)
    with served(slow, queue=1) as client:
        statuses = []

        def ask():
            statuses.append(client.post("/check", content=copied, headers=PNG).status_code)

        first = threading.Thread(target=ask)
        first.start()
        assert slow.begun.acquire(timeout=60)
        second = threading.Thread(target=ask)
        second.start()
        while under_way(client) < 2:
            pass
        refused = client.post("/check", content=copied, headers=PNG)
        assert refused.status_code == 503
        assert refused.headers["retry-after"] == "1"
        assert client.get("/health").status_code == 200
        slow.go.set()
        first.join()
        second.join()
        assert statuses == [200, 200]
        while under_way(client):
            pass
        assert still_answers(client, copied)


def under_way(client):
    return float(re.search(r"^copyscope_under_way (\S+)$", client.get("/metrics").text, re.M)[1])


def test_over_its_time_a_request_is_answered_and_keeps_its_place_until_its_thread_ends(index, copied):
    slow = Slow(index)
    with served(slow, seconds=0.2, queue=0) as client:
        found = client.post("/check", content=copied, headers=PNG)
        assert found.status_code == 504
        assert "0.2 seconds" in found.json()["error"]
        assert client.post("/check", content=copied, headers=PNG).status_code == 503
        slow.go.set()
        while under_way(client):
            pass
        assert client.post("/check", content=b"no image", headers=PNG).status_code == 400


class Endless:
    """An index whose search has no end, and tells its progress."""

    def __init__(self, index):
        self._index = index
        self.ended = threading.Event()

    def summary(self):
        return self._index.summary()

    def match(self, *_, progress, **options):
        try:
            while True:
                progress("search", 1, 2)
                time.sleep(0.01)
        finally:
            self.ended.set()


def test_a_look_up_that_is_over_its_time_gives_its_worker_back(index, copied):
    endless = Endless(index)
    with served(endless, seconds=0.2, queue=0) as client:
        for _ in range(2):
            assert client.post("/check", content=copied, headers=PNG).status_code == 504
            assert endless.ended.wait(20)
            while under_way(client):
                pass
        endless.match = index.match
        assert still_answers(client, copied)


def test_a_search_in_an_index_looks_at_the_clock(index, copied):
    from copyscope.serve.check import OutOfTime, answer

    ticks = iter([0.0, 0.5, *[0.9] * 3, *[2.0] * 1000])
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("copyscope.serve.check.time.perf_counter", lambda: next(ticks))
        with pytest.raises(OutOfTime):
            answer(index, copied, 10**6, 3, True, 0.05, seconds=1)
    assert next(ticks) == 2.0


def test_the_metrics_count_what_was_answered(index, copied, unseen):
    with served(index) as client:
        for body in (copied, copied, unseen, b"none"):
            client.post("/check", content=body, headers=PNG)
        client.get("/a-path-of-the-client/1")
        client.get("/a-path-of-the-client/2")
        text = client.get("/metrics").text
    lines = text.splitlines()
    assert 'copyscope_requests_total{path="/check",status="200"} 3.0' in lines
    assert 'copyscope_requests_total{path="/check",status="400"} 1.0' in lines
    assert 'copyscope_requests_total{path="other",status="404"} 2.0' in lines
    assert "copyscope_copies_total 2.0" in lines
    assert "copyscope_check_seconds_count 3.0" in lines
    assert "copyscope_under_way 0.0" in lines


# What it says of itself


def test_its_description_is_whole_and_nothing_is_fetched_from_elsewhere(client):
    found = client.get("/openapi.json").json()
    assert set(found["paths"]) == {"/check", "/health", "/metrics"}
    assert found["openapi"].startswith("3.")
    assert set(found["paths"]["/check"]["post"]["responses"]) >= {"200", "400", "401", "413", "503", "504"}
    assert client.get("/docs").status_code == client.get("/redoc").status_code == 404


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("token", [None, "s3cret"])
def test_no_request_that_fits_its_description_or_nearly_does_breaks_it(token, index):
    import schemathesis
    from hypothesis import HealthCheck, given, settings
    from schemathesis import GenerationMode
    from schemathesis.specs.openapi.checks import positive_data_acceptance

    schemathesis.serializer("image/png", "image/jpeg", "image/webp")(
        lambda _, value: value if isinstance(value, bytes) else str(value).encode()
    )
    api = app.app(index, Settings(local=False, workers=1, token=token))
    schema = schemathesis.openapi.from_asgi("/openapi.json", api, headers={"host": "127.0.0.1"})
    headers = {"host": "127.0.0.1"} | ({"authorization": f"Bearer {token}"} if token else {})
    seen = set()
    for operation in schema.get_all_operations():
        # Without parameters there is nothing to get wrong.
        wrong = [GenerationMode.NEGATIVE] if operation.ok().path == "/check" else []
        for mode in (GenerationMode.POSITIVE, *wrong):

            @given(case=operation.ok().as_strategy(generation_mode=mode))
            @settings(max_examples=40, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
            def holds(case):
                response = case.call(headers=headers)
                seen.add((case.operation.path, response.status_code))
                assert response.status_code < 500
                # Which bytes are an image is more than a schema can say.
                case.validate_response(response, headers=headers, excluded_checks=[positive_data_acceptance])

            holds()
    assert {("/check", 400), ("/check", 422), ("/health", 200), ("/metrics", 200)} <= seen


# A service of its own, over a socket


class Service:
    """`copyscope serve` in a process of its own."""

    def __init__(self, folder, *options, start=(sys.executable, "-m", "copyscope"), **environment):
        command = [*start, "serve", folder, "--port", "0", "--rate", "0.05", "--no-local"]
        self.process = subprocess.Popen(
            [*map(str, command), *options], stderr=subprocess.PIPE, text=True, env=os.environ | environment
        )
        for line in self.process.stderr:
            if found := re.search(r"answers at http://127.0.0.1:(\d+), 40 images", line):
                break
        self.port = int(found[1])

    def connect(self):
        return http.client.HTTPConnection("127.0.0.1", self.port, timeout=60)

    def ask(self, method, path, body=None, **headers):
        connection = self.connect()
        with contextlib.closing(connection):
            connection.request(method, path, body, headers)
            response = connection.getresponse()
            return response.status, json.loads(response.read())

    def listens(self):
        with contextlib.closing(self.connect()) as connection:
            try:
                connection.connect()
            except ConnectionError:  # Reset, where the service closes at that very moment.
                return False
            return True

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.process.kill()
        self.process.wait()
        self.process.stderr.close()


@pytest.fixture(scope="module")
def service(index):
    with Service(index.folder) as found:
        yield found


def test_over_a_socket_the_answer_is_the_same(service, client, copied):
    status, found = service.ask("POST", "/check", copied)
    here = client.post("/check", content=copied, headers=PNG).json()
    assert status == 200
    assert {**found, "seconds": 0} == {**here, "seconds": 0}


def test_windows_are_looked_at_for_many_at_once_and_every_answer_is_to_its_own_image(service, index, copied, world):
    held = Corpus.open(world.held_out)
    bodies = [Corpus.open(world.train).read(row) for row in (3, 14, 30)] + [held.read(row) for row in (100, 110)]
    bodies.append(images.encode(inset(held.read(90), copied), "png"))
    expected = []
    for body in bodies:
        (hits,) = index.match([images.decode(body)], 3)
        expected.append([(hit.id, hit.combined, hit.box and list(hit.box)) for hit in hits])
    assert expected[-1][0][2], "what is in a part is found by its windows alone"

    def ask(body):
        status, found = service.ask("POST", "/check?k=3&local=true", body)
        return status, [(each["id"], each["combined"], each["box"]) for each in found["matches"]]

    with ThreadPoolExecutor(6) as pool:
        answers = list(pool.map(ask, bodies * 2))
    assert answers == [(200, each) for each in expected * 2]


def inset(whole, part):
    """An image of which a quarter is another."""
    found = images.decode(whole)
    height, width = found.shape[:2]
    found[: height // 2, : width // 2] = images.resize(images.decode(part), (height // 2, width // 2))
    return found


def test_a_body_that_stalls_is_told_so_and_gives_its_place_back(index):
    with Service(index.folder, "--seconds", "0.2", "--workers", "1", "--queue", "0") as service:
        for _ in range(2):
            with contextlib.closing(service.connect()) as connection:
                connection.putrequest("POST", "/check")
                connection.putheader("Content-Length", "1000")
                connection.endheaders(b"the first bytes alone")
                response = connection.getresponse()
                assert response.status == 408
                assert "0.2 seconds" in json.loads(response.read())["error"]
        assert "copyscope_under_way 0.0" in metrics(service)


def test_a_hundred_megabytes_are_answered_and_not_kept(service, copied):
    block = bytes(1 << 20)
    status, found = service.ask("POST", "/check", bytes(100 << 20))
    assert (status, "larger than" in found["error"]) == (413, True)
    status, found = service.ask("POST", "/check", (block for _ in range(100)))
    assert (status, "larger than" in found["error"]) == (413, True)
    assert service.ask("POST", "/check", copied)[1]["copy"] is True


def test_a_body_that_ends_early_and_what_is_no_http_leave_it_standing(service, copied):
    for sent in (
        b"POST /check HTTP/1.1\r\nHost: localhost\r\nContent-Length: 1000\r\n\r\nshort",
        b"POST /check HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n",
        b"\x16\x03\x01\x00\xa5\x01" + bytes(200),
        b"GET /" + b"a" * 200_000,
    ):
        connection = service.connect()
        connection.connect()
        with contextlib.suppress(OSError):
            connection.sock.sendall(sent)
        connection.close()
    assert service.ask("POST", "/check", copied)[1]["copy"] is True
    assert service.process.poll() is None


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_stopped_it_finishes_what_it_has_begun_and_ends_well(number, index, copied):
    with Service(index.folder) as service, contextlib.closing(service.connect()) as connection:
        connection.putrequest("POST", "/check")
        connection.putheader("Content-Length", str(len(copied)))
        connection.endheaders(copied[:100])
        while "copyscope_under_way 1.0" not in metrics(service):
            pass
        service.process.send_signal(number)
        while service.listens():
            pass
        connection.send(copied[100:])
        assert json.loads(connection.getresponse().read())["copy"] is True
        assert service.process.wait(60) == 0
        assert service.process.stderr.read() == ""


def metrics(service):
    with contextlib.closing(service.connect()) as connection:
        connection.request("GET", "/metrics")
        return connection.getresponse().read().decode()


def test_the_token_comes_from_a_file_or_the_environment(index, copied, tmp_path):
    (tmp_path / "token").write_text("of-the-file\n")
    with Service(
        index.folder, "--token-file", str(tmp_path / "token"), COPYSCOPE_TOKEN="of-the-environment"
    ) as service:
        assert service.ask("POST", "/check", copied)[0] == 401
        assert service.ask("POST", "/check", copied, Authorization="Bearer of-the-environment")[0] == 401
        assert service.ask("POST", "/check", copied, Authorization="Bearer of-the-file")[0] == 200


def run(*words, **environment):
    found = CliRunner().invoke(main.app, ["serve", *map(str, words)], env=environment)
    return str(found.exception)


def test_what_cannot_be_served_is_said_in_two_lines(index, tmp_path, monkeypatch):
    monkeypatch.delenv("COPYSCOPE_TOKEN", raising=False)
    (tmp_path / "empty").write_text("\n")
    with app._listening(Settings(port=0)) as taken:
        port = taken.getsockname()[1]
        for words, said in {
            (index.folder, "--rate", 5): "--rate is a share between 0 and 1",
            (index.folder, "--token-file", tmp_path / "empty"): "is empty, or holds a space",
            (index.folder, "--token-file", tmp_path / "none"): "cannot be read",
            (index.folder, "--host", "0.0.0.0", "--port", 0): "open to others",
            (index.folder, "--port", port): "Cannot listen at 127.0.0.1",
            (tmp_path / "none",): "index",
        }.items():
            found = run(*words)
            assert said in found
            assert len(found.splitlines()) == 2


def test_a_missing_extra_is_named(index):
    code = (
        "import sys; sys.modules['fastapi'] = None; sys.argv[1:] = ['serve', sys.argv[1]]\n"
        "from copyscope.cli.main import main; main()"
    )
    found = subprocess.run([sys.executable, "-c", code, index.folder], capture_output=True, text=True)
    assert found.returncode == 2
    assert "pip install 'copyscope[serve]'" in found.stderr
    assert len(found.stderr.splitlines()) == 2


# Connections


def opened(service, sent):
    connection = service.connect()
    connection.connect()
    connection.sock.sendall(sent)
    return connection.sock


@pytest.mark.parametrize(
    "sent",
    [
        b"",
        b"POST /check HTTP/1.1\r\nHost: localhost\r\nX: ",
        b"GET /health HTTP/1.1\r\nHost: localhost\r\n\r\nGET /hea",
        b"GET /health HTTP/1.1\r\nHost: localhost\r\nContent-Length: 99\r\n\r\nsome",
        b"POST /check HTTP/1.1\r\nHost: localhost\r\nContent-Length: 99\r\nAuthorization: Bearer no\r\n\r\nsome",
    ],
)
def test_what_is_half_sent_is_closed_before_anybody_looks_at_its_token(sent, index):
    with Service(index.folder, "--seconds", "0.5", COPYSCOPE_TOKEN="s3cret") as service:
        sock = opened(service, sent)
        sock.settimeout(60)
        try:
            while sock.recv(4096):
                pass
        except ConnectionError:
            pass
        sock.close()


def test_two_thousand_half_sent_requests_do_not_stand_open_nor_fill_the_log(index, copied):
    script = "import resource, runpy, sys; resource.setrlimit(resource.RLIMIT_NOFILE, (200, 200)); "
    script += "sys.argv[0] = 'copyscope'; runpy.run_module('copyscope', run_name='__main__')"
    with Service(index.folder, "--seconds", "2", start=[sys.executable, "-c", script]) as service:
        socks = []
        for _ in range(2000):
            try:
                socks.append(opened(service, b"POST /check HTTP/1.1\r\n"))
            except OSError:
                break
        for sock in socks:
            sock.close()
        assert len(socks) > 500
        assert service.ask("POST", "/check", copied)[1]["copy"] is True
        service.process.send_signal(signal.SIGTERM)
        lines = service.process.stderr.read().splitlines()
        assert service.process.wait(60) == 0
    assert len(lines) < 500


def test_a_log_is_a_few_lines_however_often_it_is_written(caplog, monkeypatch):
    import logging

    from copyscope.serve import connections

    logger = logging.getLogger("copyscope-test")
    logger.addFilter(connections.FewLines())
    now = [100.0]
    monkeypatch.setattr(connections.time, "monotonic", lambda: now[0])
    with caplog.at_level(logging.ERROR):
        for _ in range(146_112):
            logger.error("socket.accept() out of system resource")
        assert len(caplog.records) == 10
        now[0] += 11
        logger.error("again")
    assert caplog.records[-1].getMessage() == "again (146,102 lines before this were left out)"


def test_it_stops_within_its_time_and_a_little_more(index):
    """Two look-ups that never look at the clock, and a connection half open."""
    script = """
import sys, threading, time
from copyscope.detection.index.index import Index
plain = Index.match
def match(self, *arguments, **options):
    if threading.current_thread() is not threading.main_thread():
        time.sleep(120)
    return plain(self, *arguments, **options)
Index.match = match
from copyscope.cli.main import main
sys.argv[0] = "copyscope"
main()
"""
    with Service(index.folder, "--seconds", "1", "--workers", "2", start=[sys.executable, "-c", script]) as service:
        body = blank(64, 64)
        head = f"POST /check HTTP/1.1\r\nHost: localhost\r\nContent-Length: {len(body)}\r\n\r\n".encode()
        socks = [opened(service, head + body) for _ in range(2)] + [opened(service, b"POST /ch")]
        while "copyscope_under_way 2.0" not in metrics(service):
            pass
        service.process.send_signal(signal.SIGTERM)
        # A bound of the service, and not of this machine: without it the sleep of two minutes is waited for.
        assert service.process.wait(60) == 0
        for sock in socks:
            sock.close()
