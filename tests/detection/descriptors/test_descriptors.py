"""Each descriptor against independent code: the preprocessing by hand, the libraries' own distances, errors in two
lines."""

from __future__ import annotations

import hashlib
import shutil
import sys
import warnings

import imagehash
import numpy as np
import onnxruntime
import pytest
from PIL import Image

from copyscope import parts
from copyscope.detection.descriptors import _onnx, sscd
from copyscope.detection.descriptors.clip import Clip
from copyscope.detection.descriptors.phash import Phash
from copyscope.detection.descriptors.sscd import HALF, IMAGENET, Sscd
from copyscope.detection.descriptors.sscd_distilled import SscdDistilled
from copyscope.errors import InputError, MissingExtra, PartError, how_to_install
from copyscope.imaging import images
from tests import worlds
from tests.errors import two_lines
from tests.models import tiny_torchscript

pytestmark = pytest.mark.sscd


@pytest.fixture(scope="module")
def scenes():
    """Six pictures of any aspect, and one 120 x 200."""
    rng = np.random.default_rng(0)
    return [*(worlds.picture(rng)[0] for _ in range(6)), images.resize(worlds.picture(rng)[0], (120, 200))]


@pytest.fixture(scope="module")
def script(tmp_path_factory):
    return tiny_torchscript(tmp_path_factory.mktemp("torchscript") / "tiny.torchscript.pt")


def resized(image, size):
    """Shorter side to `size`, by Pillow alone, the longer side rounded down as torchvision does."""
    height, width = image.shape[:2]
    scale = size / min(height, width)
    longer = int(size * max(height, width) / min(height, width))
    assert abs(longer - scale * max(height, width)) < 1
    wanted = (longer, size) if width > height else (size, longer)
    return np.array(Image.fromarray(image).resize(wanted, Image.Resampling.BILINEAR))


def middle(image, side):
    top, left = round((image.shape[0] - side) / 2), round((image.shape[1] - side) / 2)
    return image[top : top + side, left : left + side]


def run_alone(file, image):
    """The packaged model on one prepared image, in a session of our own."""
    model = onnxruntime.InferenceSession(str(_onnx.packaged(file)), providers=["CPUExecutionProvider"])
    vector = model.run(None, {"image": image[None]})[0][0].astype(np.float64)
    return vector / np.linalg.norm(vector)


@pytest.mark.parametrize(
    ("part", "prepare"),
    [
        (Sscd(), lambda image: resized(image, 288)),
        (Sscd(size=96), lambda image: resized(image, 96)),
        (Sscd(size=128, crop=96), lambda image: middle(resized(image, 128), 96)),
        (Sscd(size=96, square=True), lambda image: np.array(Image.fromarray(image).resize((96, 96), 2))),
    ],
    ids=lambda value: "" if callable(value) else str(value),
)
def test_sscd_prepares_an_image_as_pillow_does_by_hand(part, prepare, scenes):
    found = part.describe([scenes[-1], scenes[-1].transpose(1, 0, 2).copy()])
    for vector, image in zip(found, (scenes[-1], scenes[-1].transpose(1, 0, 2)), strict=True):
        np.testing.assert_allclose(vector, run_alone("sscd.onnx", prepare(np.ascontiguousarray(image))), atol=1e-5)


def test_sscd_distilled_prepares_an_image_as_pillow_does_by_hand(scenes):
    found = SscdDistilled().describe(scenes[-1:])[0]
    np.testing.assert_allclose(found, run_alone("sscd_distilled.onnx", resized(scenes[-1], 256)), atol=1e-5)


def test_the_packaged_model_normalises_by_imagenet_so_the_half_table_undoes_that():
    levels = np.arange(256) / 255
    for channel, (mean, deviation) in enumerate(zip([0.485, 0.456, 0.406], [0.229, 0.224, 0.225], strict=True)):
        table = sscd._HALF_TABLE[:, channel].astype(np.float64)
        # What the model makes of the table, against (x - 0.5) / 0.5: equal to within half a grey level.
        np.testing.assert_allclose(
            (table / 255 - mean) / deviation, (levels - 0.5) / 0.5, atol=0.5001 / 255 / deviation
        )
        assert table[0] == round(255 * (mean - deviation))
        assert table[255] == round(255 * (mean + deviation))


def test_norm_half_maps_each_channel_by_its_own_column(scenes):
    half = Sscd(size=96, norm="half").describe(scenes[-1:])[0]
    mapped = resized(scenes[-1], 96).astype(np.float64) / 255
    mapped = 255 * ([0.485, 0.456, 0.406] + np.array([0.229, 0.224, 0.225]) * (mapped - 0.5) / 0.5)
    expected = run_alone("sscd.onnx", np.rint(mapped).astype(np.uint8))
    np.testing.assert_allclose(half, expected, atol=1e-5)
    assert half @ Sscd(size=96).describe(scenes[-1:])[0] < 0.999


@pytest.mark.parametrize("norm", ["imagenet", "half"])
def test_torchscript_gets_the_float_tensor_of_the_protocol(norm, scenes, script):
    import torch

    found = Sscd(weights=str(script), size=96, norm=norm).describe(scenes[:2])
    mean, deviation = IMAGENET if norm == "imagenet" else HALF
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        model = torch.jit.load(str(script))
    for vector, image in zip(found, scenes, strict=False):
        tensor = torch.from_numpy(resized(image, 96)).permute(2, 0, 1) / 255.0 - torch.from_numpy(mean)[:, None, None]
        tensor = tensor / torch.from_numpy(deviation)[:, None, None]
        with torch.inference_mode():
            expected = model(tensor[None].float())[0].numpy()
        np.testing.assert_allclose(vector, expected / np.linalg.norm(expected), atol=1e-5)


def test_the_half_table_is_the_torchscript_path_up_to_the_rounding_of_the_table(scenes, script):
    """The two ways of DCR's normalisation, through one model: floats, and the table then ImageNet's statistics."""
    exact = Sscd(weights=str(script), size=96, norm="half").describe(scenes)
    mapped = [
        np.take_along_axis(sscd._HALF_TABLE, resized(image, 96).reshape(-1, 3), 0).reshape(*resized(image, 96).shape)
        for image in scenes
    ]
    rounded = Sscd(weights=str(script), size=96).describe(mapped)
    # Half a grey level is 1/115 of a deviation: the vectors agree to that, and other normalisations do not.
    assert np.abs(exact - rounded).max() < 0.01
    assert np.abs(exact - Sscd(weights=str(script), size=96).describe(scenes)).max() > 0.02


@pytest.mark.parametrize(
    ("shape", "expected"),
    [
        ((40, 160), (32, 128)),
        ((40, 161), (32, 128)),
        ((10, 3000), (32, 128)),
        ((3000, 10), (128, 32)),
        ((1, 1), (32, 32)),
        ((1, 5000), (32, 128)),
        ((50, 120), (32, 76)),
    ],
)
def test_an_aspect_above_four_to_one_is_squeezed_to_it(shape, expected):
    prepared = _onnx.prepare(np.zeros((*shape, 3), np.uint8), 32)
    assert prepared.shape[:2] == expected


def test_a_crop_bounds_a_strip_by_itself_and_keeps_its_middle():
    strip = np.zeros((20, 400, 3), np.uint8)
    strip[:, 190:210] = 255
    prepared = _onnx.prepare(strip, 40, crop=32)
    assert prepared.shape == (32, 32, 3)
    assert prepared[:, 4:28].min() > 250


def test_batches_follow_shapes_and_keep_the_order(scenes):
    together = SscdDistilled(size=64).describe([scenes[0], scenes[0], scenes[1], scenes[0]])
    alone = [SscdDistilled(size=64).describe([scene])[0] for scene in (scenes[0], scenes[0], scenes[1], scenes[0])]
    np.testing.assert_array_equal(together, np.stack(alone))


def test_a_zero_vector_stays_zero():
    assert _onnx.unit(np.zeros((2, 3))).tolist() == [[0, 0, 0], [0, 0, 0]]


def test_a_torchscript_file_tells_its_length_and_fingerprint(script):
    part = parts.load("descriptors", f"sscd(weights={str(script)!r})")
    assert part.dim == 24
    assert part.fingerprint() == hashlib.sha256(script.read_bytes()).hexdigest()
    assert str(part) == f"sscd(weights={str(script)!r})"
    assert Sscd().dim == 512
    assert Sscd().fingerprint() == hashlib.sha256(_onnx.packaged("sscd.onnx").read_bytes()).hexdigest()
    assert Sscd().fingerprint() != SscdDistilled().fingerprint()


def test_weights_that_are_missing_or_no_torchscript_are_told(tmp_path, scenes):
    with pytest.raises(InputError) as caught:
        Sscd(weights=str(tmp_path / "none.pt")).fingerprint()
    two_lines(caught, "No SSCD weights", "none.pt")
    with pytest.raises(InputError) as caught:
        Sscd(weights=str(tmp_path / "none.pt")).describe(scenes[:1])
    two_lines(caught, "No SSCD weights")
    (tmp_path / "text.pt").write_text("not a model")
    for call in (lambda part: part.dim, lambda part: part.describe(scenes[:1])):
        with pytest.raises(InputError) as caught:
            call(Sscd(weights=str(tmp_path / "text.pt")))
        two_lines(caught, "is not a TorchScript file", "torchscript.pt")


@pytest.mark.parametrize(
    "spec", ["sscd(size=31)", "sscd(crop=-1)", "sscd(crop=289)", "sscd(norm='zero')", "sscd_distilled(size=16)"]
)
def test_settings_out_of_range_are_told(spec):
    with pytest.raises(PartError) as caught:
        parts.load("descriptors", spec)
    two_lines(caught, "The part is called as")


def test_weights_that_are_not_installed_are_a_missing_extra(monkeypatch, scenes):
    monkeypatch.setattr(_onnx.importlib.util, "find_spec", lambda name: None)
    for part in (Sscd(), SscdDistilled()):
        with pytest.raises(MissingExtra) as caught:
            part.describe(scenes[:1])
        two_lines(caught, how_to_install("sscd"))


def test_without_torch_a_torchscript_file_is_a_missing_extra(monkeypatch, script, scenes):
    monkeypatch.setitem(sys.modules, "torch", None)
    with pytest.raises(MissingExtra) as caught:
        Sscd(weights=str(script)).describe(scenes[:1])
    two_lines(caught, "pip install 'copyscope[diffusion]'")


@pytest.mark.parametrize("side", [4, 8, 16])
def test_phash_is_one_minus_twice_hamming_over_bits(side, scenes):
    vectors = Phash(side=side).describe(scenes)
    hashes = [imagehash.phash(Image.fromarray(image), hash_size=side) for image in scenes]
    expected = [[1 - 2 * (a - b) / side**2 for b in hashes] for a in hashes]
    np.testing.assert_allclose(vectors @ vectors.T, expected, atol=1e-6)
    assert Phash(side=side).dim == side**2
    assert "imagehash" in Phash().fingerprint()


def test_clip_describes_images_and_texts_in_one_space(clip_folder, scenes):
    part = Clip(str(clip_folder))
    pictures, texts = part.describe(scenes[:2]), part.describe_text(["a cat", "a dog on a mat " * 30])
    assert pictures.shape == texts.shape == (2, part.dim) == (2, 16)
    for vectors in (pictures, texts):
        assert vectors.dtype == np.float32
        np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-5)
    assert not np.allclose(texts[0], texts[1])
    np.testing.assert_array_equal(texts[:1], part.describe_text(["a cat"]))


def test_clip_is_transformers_own_pipeline(clip_folder, scenes):
    import torch
    from transformers import CLIPModel, CLIPProcessor

    model = CLIPModel.from_pretrained(clip_folder).eval()
    processor = CLIPProcessor.from_pretrained(clip_folder)
    with torch.inference_mode():
        both = model(**processor(text=["a cat"], images=[scenes[0]], return_tensors="pt"))
    np.testing.assert_allclose(Clip(str(clip_folder)).describe(scenes[:1]), both.image_embeds.numpy(), atol=1e-5)
    np.testing.assert_allclose(Clip(str(clip_folder)).describe_text(["a cat"]), both.text_embeds.numpy(), atol=1e-5)


def test_clips_fingerprint_is_of_what_is_in_the_folder(clip_folder, tmp_path):
    other = tmp_path / "other"
    shutil.copytree(clip_folder, other)
    assert Clip(str(other)).fingerprint() == Clip(str(clip_folder)).fingerprint()
    config = next(other.glob("*processor_config.json"))
    config.write_text(config.read_text() + " ")
    _onnx.sha256.cache_clear()
    assert Clip(str(other)).fingerprint() != Clip(str(clip_folder)).fingerprint()


def test_a_folder_without_a_clip_is_told(tmp_path, clip_folder):
    with pytest.raises(InputError) as caught:
        _ = Clip(str(tmp_path)).dim
    two_lines(caught, "No CLIP model")
    shutil.copytree(clip_folder, tmp_path / "bare")
    (tmp_path / "bare" / "model.safetensors").unlink()
    with pytest.raises(InputError) as caught:
        _ = Clip(str(tmp_path / "bare")).dim
    two_lines(caught, "Cannot load the CLIP model")


def test_without_transformers_clip_is_a_missing_extra(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(MissingExtra) as caught:
        _ = Clip(str(tmp_path / "never loaded")).dim
    two_lines(caught, "pip install 'copyscope[diffusion]'")
