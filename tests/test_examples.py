"""The examples do what they say, and those for other programs let no image through that was not checked."""

from __future__ import annotations

import contextlib
import http.server
import importlib.util
import inspect
import json
import sys
import threading
import types
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from copyscope import Corpus, Guard, Index
from copyscope.guard.log import read_log
from copyscope.imaging import images
from tests.models import tiny_stable_diffusion
from tests.pipelines import loaded, train_and_held_out
from tests.serve.test_app import FAST, Service

EXAMPLES = Path(__file__).parent.parent / "examples"
PROMPTS = ["a red fox", "two houses by the sea"]


def example(name):
    """An example as a module."""
    spec = importlib.util.spec_from_file_location(name, EXAMPLES / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


# Images in other programs


@pytest.fixture(scope="module")
def index(world, tmp_path_factory):
    train, held = Corpus.open(world.train), Corpus.open(world.held_out)
    folder = tmp_path_factory.mktemp("served") / "index"
    return Index.build(train.take(range(40)), folder, FAST, held_out=held.take(range(60)))


@pytest.fixture(scope="module")
def service(index):
    with Service(index.folder) as found:
        yield found


@pytest.fixture(scope="module")
def copied(world):
    return Image.fromarray(images.decode(Corpus.open(world.train).read(30)))


@pytest.fixture(scope="module")
def unseen(world):
    return Image.fromarray(images.decode(Corpus.open(world.held_out).read(100)))


class Processing:
    """What the web UI hands its scripts, so far as they use it."""

    def __init__(self):
        self.comments = {}

    def comment(self, text):
        self.comments[text] = 1


class WebUI:
    """AUTOMATIC1111's web UI around the example: it calls a hook, and goes on where that raises."""

    def __init__(self, patch, older=False):
        class Script:
            def postprocess_image(self, p, pp, *args):
                pass

            def postprocess_image_after_composite(self, p, pp, *args):
                pass

        if older:
            del Script.postprocess_image_after_composite
        scripts = types.ModuleType("modules.scripts")
        scripts.Script, scripts.AlwaysVisible = Script, object()
        modules = types.ModuleType("modules")
        modules.scripts = scripts
        patch.setitem(sys.modules, "modules", modules)
        patch.setitem(sys.modules, "modules.scripts", scripts)
        self.hooks = [name for name in vars(Script) if name.startswith("postprocess")]
        self.script = example("a1111_copyscope").Copyscope()
        assert self.script.show(False) is self.script.show(True) is scripts.AlwaysVisible
        assert self.script.title() == "Copyscope"

    def __call__(self, picture):
        """The image that is saved, and what is said of it."""
        p, pp = Processing(), types.SimpleNamespace(image=picture)
        for hook in self.hooks:
            with contextlib.suppress(Exception):
                getattr(self.script, hook)(p, pp)
        return pp.image, "".join(p.comments)


class ComfyUI:
    """ComfyUI around the node: no result where it raises."""

    def __init__(self, patch):
        (node,) = example("comfyui_copyscope").NODE_CLASS_MAPPINGS.values()
        self.node = node
        assert list(node.INPUT_TYPES()["required"]) == ["image"]
        assert node.RETURN_TYPES == ("IMAGE", "STRING")
        assert [node.IS_CHANGED(None)] != [node.IS_CHANGED(None)], "a service may say another thing next time"

    def run(self, batch):
        return getattr(self.node(), self.node.FUNCTION)(image=batch)

    def __call__(self, picture):
        batch = torch.from_numpy(np.asarray(picture, np.float32) / 255)[None]
        try:
            (image,), said = self.run(batch)
        except (LookupError, TypeError):
            return None, ""
        return Image.fromarray((image * 255).round().byte().numpy()), said


def is_blank(found, size):
    return found is None or (found.size == size and not np.asarray(found).any())


@pytest.fixture(params=["a1111", "older a1111", "comfyui"])
def host(request, monkeypatch):
    # A proxy of the environment is not to see the pictures.
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    for name in ("no_proxy", "NO_PROXY", "COPYSCOPE_TOKEN", "COPYSCOPE_PASS_UNKNOWN"):
        monkeypatch.delenv(name, raising=False)
    if request.param == "comfyui":
        return ComfyUI(monkeypatch)
    return WebUI(monkeypatch, "older" in request.param)


def at(monkeypatch, port):
    monkeypatch.setenv("COPYSCOPE_URL", f"http://127.0.0.1:{port}/")


@contextlib.contextmanager
def answering(status, body, **headers):
    """The port of a server that always answers the same."""

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_POST(self):
            self.rfile.read(int(self.headers["Content-Length"]))
            self.send_response(status)
            for name, value in headers.items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(body)

        do_GET = do_POST

        def log_message(self, *_):
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield server.server_port
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def test_a_clean_image_passes_as_it_is_and_a_copy_is_black(host, service, copied, unseen, index, monkeypatch):
    at(monkeypatch, service.port)
    monkeypatch.setenv("COPYSCOPE_PASS_UNKNOWN", "1")
    found, said = host(unseen)
    assert np.array_equal(np.asarray(found), np.asarray(unseen))
    assert "copy of" not in said
    found, said = host(copied)
    assert is_blank(found, copied.size)
    assert f"a copy of {index.ids[30]}, p = " in said


def test_without_a_service_nothing_passes_but_when_asked_for(host, unseen, monkeypatch):
    with http.server.HTTPServer(("127.0.0.1", 0), None) as closed:
        at(monkeypatch, closed.server_port)
    found, said = host(unseen)
    assert is_blank(found, unseen.size)
    assert "gives no answer" in said
    assert "is `copyscope serve` running?" in said
    monkeypatch.setenv("COPYSCOPE_PASS_UNKNOWN", "1")
    assert np.array_equal(np.asarray(host(unseen)[0]), np.asarray(unseen))


def test_an_error_of_the_service_lets_nothing_pass(host, index, unseen, monkeypatch):
    with Service(index.folder, COPYSCOPE_TOKEN="s3cret") as service:
        at(monkeypatch, service.port)
        found, said = host(unseen)
        assert is_blank(found, unseen.size)
        assert "answers 401" in said
        assert "Bearer TOKEN" in said
        monkeypatch.setenv("COPYSCOPE_TOKEN", "s3cret")
        assert np.array_equal(np.asarray(host(unseen)[0]), np.asarray(unseen))


def test_what_cannot_be_told_does_not_pass(host, index, unseen, monkeypatch):
    with Service(index.folder, "--rate", "0.0001") as service:
        at(monkeypatch, service.port)
        found, said = host(unseen)
        assert is_blank(found, unseen.size)
        assert "cannot tell: too few calibration images for a rate of 0.0001" in said
        monkeypatch.setenv("COPYSCOPE_PASS_UNKNOWN", "1")
        assert np.array_equal(np.asarray(host(unseen)[0]), np.asarray(unseen))


OTHERS = [
    (200, b"<html>", {}),
    (200, b'{"copy": false}', {}),
    (200, b'{"schema": "copyscope.check/2", "copy": false}', {}),
    (200, b'{"schema": "copyscope.check/1"}', {}),
    (200, b'{"schema": "copyscope.check/1", "copy": 0, "matches": [], "p_value": 0.5}', {}),
    (200, b"{", {"Content-Length": "100"}),
    (302, b"", {"Location": "/elsewhere"}),
    (500, b"\xff", {}),
]


@pytest.mark.parametrize(("status", "body", "headers"), OTHERS)
def test_what_answers_otherwise_than_the_service_lets_nothing_pass(host, status, body, headers, unseen, monkeypatch):
    with answering(status, body, **headers) as port:
        at(monkeypatch, port)
        assert is_blank(host(unseen)[0], unseen.size)


def test_of_a_batch_the_copies_alone_are_black(service, copied, unseen, monkeypatch):
    at(monkeypatch, service.port)
    pictures = [np.asarray(each.resize((128, 128)), np.float32) / 255 for each in (unseen, copied, unseen)]
    batch = torch.from_numpy(np.stack(pictures))
    found, said = ComfyUI(monkeypatch).run(batch)
    assert (found.shape, found.dtype) == (batch.shape, batch.dtype)
    assert torch.equal(found[[0, 2]], batch[[0, 2]])
    assert not found[1].any()
    first, second, third = said.split("\n")
    assert (first, third) == ("no copy", "no copy")
    assert second.startswith("a copy of")
    assert second.endswith("replaced by a black image")


def test_both_programs_judge_by_the_same_code(monkeypatch):
    WebUI(monkeypatch)
    one, other = (example(name).judge for name in ("a1111_copyscope", "comfyui_copyscope"))
    assert inspect.getsource(one) == inspect.getsource(other)


# Pipelines


@pytest.fixture(scope="module")
def sets(tmp_path_factory):
    """A tiny pipeline in `stable-diffusion/`, and images of its own in `train/`, the first of which is `copied`, and in
    `held-out/`."""
    root = tmp_path_factory.mktemp("guarded")
    pipe = loaded(tiny_stable_diffusion(root / "stable-diffusion"))
    others = pipe(
        "a dog", num_images_per_prompt=60, num_inference_steps=4, generator=torch.Generator().manual_seed(0)
    ).images
    # As a guard makes it first, without a generator.
    guarded = Guard(types.SimpleNamespace(match=lambda pictures: [[] for _ in pictures]))(pipe)
    copied = guarded(PROMPTS, num_inference_steps=30).images[0]
    # As the script makes it: the second prompt, with the seed after the first.
    second = pipe(PROMPTS[1], num_inference_steps=4, generator=torch.Generator().manual_seed(8)).images[0]
    train_and_held_out(root, [copied, second], others)
    return root


@pytest.fixture
def here(sets, tmp_path, monkeypatch):
    for each in sets.iterdir():
        (tmp_path / each.name).symlink_to(each)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_the_notebook_runs_and_its_guard_stops_a_copy(here):
    cells = json.loads((EXAMPLES / "guard.ipynb").read_text())["cells"]
    code = ["".join(cell["source"]) for cell in cells if cell["cell_type"] == "code"]
    assert not any(cell.get("outputs") for cell in cells), "outputs are not kept"
    namespace = {}
    for number, each in enumerate(code):
        exec(compile(each, f"cell {number}", "exec"), namespace)
    first, *_ = namespace["guard"].records
    assert (first.match, first.action) == ("000.png", "redone")
    assert [record.action for record in read_log("guard.jsonl")].count("delivered") == 2
    copied = np.asarray(Image.open(here / "train" / "000.png"))
    assert not any(np.array_equal(np.asarray(image), copied) for image in namespace["images"])


def test_the_script_makes_what_is_missing_and_no_copy(here, monkeypatch):
    index = Index.build("train", "index", FAST, held_out="held-out")
    (here / "prompts.txt").write_text("\n".join([*PROMPTS, "", "a dog"]) + "\n")
    (here / "policy.toml").write_text("rate = 0.02\ntries = 1\n")
    words = ["stable-diffusion", "prompts.txt", "index", "-o", "out", "--steps", "4", "--seed", "7", "--device", "cpu"]
    batch = example("guarded_batch")
    batch.main([*words, "--policy", "policy.toml"])
    out = here / "out"
    names = ["00000.png", "00001.refused", "00002.png", "guard.html", "guard.jsonl", "guard.parquet"]
    assert sorted(path.name for path in out.iterdir()) == names
    first = loaded(here / "stable-diffusion")(
        PROMPTS[0], num_inference_steps=4, generator=torch.Generator().manual_seed(7)
    ).images[0]
    assert np.array_equal(np.asarray(Image.open(out / "00000.png")), np.asarray(first))
    assert all(hits[0].p_value > 0.02 for hits in index.match([images.decode(path) for path in out.glob("*.png")]))

    whole = (out / "00002.png").read_bytes()
    (out / "00002.png").unlink()
    batch.main([*words, "--policy", "policy.toml"])
    assert (out / "00002.png").read_bytes() == whole
    assert [record.prompt for record in read_log(out / "guard.jsonl")] == [*PROMPTS, "a dog", "a dog"]
