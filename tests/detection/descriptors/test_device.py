"""Devices of descriptors: which is taken, batches of one size, fingerprints of their own, decoding ahead."""

from __future__ import annotations

import threading

import numpy as np
import onnxruntime
import pytest
import torch

from copyscope.data.corpus import Corpus
from copyscope.detection.descriptors import Descriptor, _device, _onnx
from copyscope.detection.descriptors.sscd import Sscd
from copyscope.detection.descriptors.sscd_distilled import SscdDistilled
from copyscope.detection.embedding import fill as fill_module
from copyscope.detection.embedding.embed import embed
from copyscope.detection.index.index import Index
from copyscope.errors import InputError
from copyscope.imaging import images
from copyscope.machine import DEVICE
from tests import worlds
from tests.cli.test_main import run
from tests.errors import two_lines
from tests.models import tiny_torchscript


class FakeSession:
    """A session on a pretended GPU: records its providers and the shapes it is given; runs on the CPU."""

    starts = True
    made: list[FakeSession]

    def __init__(self, path, options, providers):
        self.providers, self.shapes = providers, []
        self.real = real_session(path, options, providers=["CPUExecutionProvider"])
        self.made.append(self)

    def get_providers(self):
        names = [each if isinstance(each, str) else each[0] for each in self.providers]
        return names if self.starts else names[-1:]

    def run(self, names, inputs):
        self.shapes.append(inputs["image"].shape)
        return self.real.run(names, inputs)


real_session = onnxruntime.InferenceSession


@pytest.fixture(autouse=True)
def unset(monkeypatch):
    monkeypatch.setenv(DEVICE, "")
    _device.session.cache_clear()
    yield
    _device.session.cache_clear()


@pytest.fixture(scope="module")
def scenes():
    rng = np.random.default_rng(0)
    return [worlds.picture(rng)[0] for _ in range(6)]


@pytest.fixture
def gpu(monkeypatch):
    """ONNX Runtime as its build for CUDA has it."""
    monkeypatch.setattr(FakeSession, "made", [], raising=False)
    monkeypatch.setattr(
        onnxruntime,
        "get_available_providers",
        lambda: ["TensorrtExecutionProvider", "CUDAExecutionProvider", "CPUExecutionProvider"],
    )
    monkeypatch.setattr(onnxruntime, "InferenceSession", FakeSession)
    return FakeSession


@pytest.mark.parametrize(
    ("installed", "asked", "taken"),
    [
        ("CPU", "", "cpu"),
        ("Azure CPU", "auto", "cpu"),
        ("CoreML CPU", "auto", "cpu"),
        ("CoreML CPU", "mps", "mps"),
        ("Tensorrt CUDA CPU", "auto", "cuda:0"),
        ("Tensorrt CUDA CPU", "cuda:1", "cuda:1"),
        ("Tensorrt CUDA CPU", "CPU", "cpu"),
        ("OpenVINO CPU", "auto", "openvino"),
        ("Dml CPU", "dml", "dml:0"),
    ],
)
def test_onnx_device_is_what_is_installed_and_asked_for(installed, asked, taken, monkeypatch):
    providers = [f"{each}ExecutionProvider" for each in installed.split()]
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: providers)
    monkeypatch.setenv(DEVICE, asked)
    assert _device.onnx_device() == taken


def test_a_device_that_is_not_there_or_no_device_is_told(monkeypatch):
    monkeypatch.setenv(DEVICE, "cuda:0")
    with pytest.raises(InputError) as caught:
        _device.onnx_device()
    two_lines(caught, "cannot use cuda", "onnxruntime-gpu")
    for name in ("cda", "cuda:x", "cuda:-1", "cuda:1:2", "0"):
        monkeypatch.setenv(DEVICE, name)
        with pytest.raises(InputError) as caught:
            _device.onnx_device()
        two_lines(caught, repr(name), "auto, cpu, cuda")


@pytest.mark.parametrize(
    ("gpus", "asked", "taken"),
    [
        (0, "auto", "cpu"),
        (2, "auto", "cuda:0"),
        (2, "cuda:1", "cuda:1"),
        (2, "rocm:1", "cuda:1"),
        (2, "cpu", "cpu"),
        (2, "cuda:2", None),
        (0, "cuda", None),
        (2, "openvino", None),
    ],
)
def test_torch_device_is_what_torch_finds(gpus, asked, taken, monkeypatch):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: gpus)
    monkeypatch.setenv(DEVICE, asked)
    if taken:
        assert _device.torch_device() == taken
    else:
        with pytest.raises(InputError) as caught:
            _device.torch_device()
        two_lines(caught, "Torch finds no device", "--device cpu")


def test_a_gpu_gets_batches_of_one_size_and_one_shape(gpu, scenes, monkeypatch):
    pictures = [*scenes[:3], np.ascontiguousarray(scenes[0][:, :40]), *scenes[3:5]] * 7
    part = SscdDistilled(size=64)
    found = part.describe(pictures)
    session = gpu.made[0]
    assert session.providers == [("CUDAExecutionProvider", {"device_id": "0"}), "CPUExecutionProvider"]
    assert {shape[0] for shape in session.shapes} == {_device.BATCH}
    monkeypatch.setenv(DEVICE, "cpu")
    np.testing.assert_allclose(found, part.describe(pictures), atol=1e-5)
    assert gpu.made[1].providers == ["CPUExecutionProvider"]


def test_a_provider_that_cannot_start_is_told(gpu, scenes, monkeypatch):
    monkeypatch.setattr(gpu, "starts", False)
    with pytest.raises(InputError) as caught:
        SscdDistilled().describe(scenes[:1])
    two_lines(caught, "cannot start it on cuda:0", "--device cpu")


def test_vectors_of_a_device_have_a_fingerprint_of_their_own(gpu, tmp_path, scenes, monkeypatch):
    for number, scene in enumerate(scenes[:3]):
        (tmp_path / f"{number}.png").write_bytes(images.encode(scene, "png"))
    part, options = SscdDistilled(size=64), {"cache": tmp_path / "cache"}
    on_gpu = embed(tmp_path, part, **options)
    assert on_gpu.fingerprint == _onnx.sha256(_onnx.packaged("sscd_distilled.onnx")) + " on cuda"
    monkeypatch.setenv(DEVICE, "cpu")
    on_cpu = embed(tmp_path, part, **options)
    assert on_cpu.fingerprint + " on cuda" == on_gpu.fingerprint
    assert sum(shape[0] for shape in gpu.made[1].shapes) == 3, "vectors of the GPU were taken for those of the CPU"


def test_an_index_of_another_device_is_refused(gpu, tmp_path, scenes, monkeypatch):
    (tmp_path / "train").mkdir()
    for number, scene in enumerate(scenes[:6]):
        (tmp_path / "train" / f"{number}.png").write_bytes(images.encode(scene, "png"))
    spec = "sscd_distilled(size=64)"
    index = Index.build(tmp_path / "train", tmp_path / "index", protocol=spec, cache=tmp_path / "cache")
    assert index.match([scenes[0]])[0][0].id == "0.png"
    monkeypatch.setenv(DEVICE, "cpu")
    with pytest.raises(InputError) as caught:
        Index.open(tmp_path / "index").match([scenes[0]])
    two_lines(caught, "was made on cuda", "--device cuda")


def test_torchscript_runs_in_batches_where_there_is_a_gpu(tmp_path, scenes, monkeypatch):
    part = Sscd(weights=str(tiny_torchscript(tmp_path / "tiny.pt")), size=32)
    alone = part.describe(scenes[:5])
    monkeypatch.setattr(_device, "is_gpu", lambda device: True)
    np.testing.assert_allclose(part.describe(scenes[:5]), alone, atol=1e-6)


class Waiting(Descriptor):
    """A GPU that is done with a batch only when more images than it has been given have been decoded."""

    dim, device = 1, "cuda:0"

    def __init__(self):
        self.decoded, self.described, self.sizes = 0, 0, []
        self.more, self.busy = threading.Condition(), threading.Lock()

    def __str__(self):
        return "waiting"

    def describe(self, pictures):
        with self.busy:
            self.sizes.append(len(pictures))
            self.described += len(pictures)
            with self.more:
                ahead = self.more.wait_for(lambda: self.decoded > self.described or self.decoded == 128, timeout=20)
        assert ahead, "nothing was decoded while the device was busy"
        return np.ones((len(pictures), 1), np.float32)


def test_images_are_decoded_while_a_device_is_busy(tmp_path, monkeypatch):
    rng = np.random.default_rng(0)
    for number in range(128):
        picture = rng.integers(0, 255, (8, 8, 3), dtype=np.uint8)
        (tmp_path / f"{number:03d}.png").write_bytes(images.encode(picture, "png"))
    part, decode = Waiting(), images.decode_layers

    def counted(content, **options):
        found = decode(content, **options)
        with part.more:
            part.decoded += 1
            part.more.notify_all()
        return found

    monkeypatch.setattr(fill_module.images, "decode_layers", counted)
    described = embed(Corpus.open(tmp_path), part, cache=tmp_path / "cache", workers=1)
    assert described.n_missing == 0
    assert part.sizes == [_device.BATCH] * 4


def test_the_option_device_is_checked_and_reaches_the_descriptor(tmp_path, scenes):
    (tmp_path / "a.png").write_bytes(images.encode(scenes[0], "png"))
    for name, said in (("cuda:0", "cannot use cuda"), ("gpu", "no device 'gpu'")):
        with pytest.raises(InputError, match=said):
            run("embed", tmp_path, "-o", tmp_path / "out", "--device", name)
