"""No training image passes a guard in any form: it is found, or the form is refused, or what comes out is another."""

from __future__ import annotations

import collections
import dataclasses
import io
import itertools
import types

import hypothesis
import hypothesis.strategies as st
import numpy as np
import pytest
import torch
from PIL import Image

from copyscope import Guard, Policy
from copyscope.detection.index.index import Hit
from copyscope.errors import InputError, Refused
from copyscope.guard import pictures, returned

CASES = hypothesis.settings(max_examples=300, deadline=None, derandomize=True)


class ByPixels:
    """An index of one picture, which knows it, its eight turns and its grey by correlation."""

    def __init__(self, picture, line=0.75):
        self.line = line
        self.known = [np.rot90(each, turns) for each in (picture, picture[:, ::-1]) for turns in range(4)]

    def match(self, shown):
        return [[Hit("t.png", 0.9, 0.8, 0.85, 0.5 - 0.499 * self.is_copy(each), None, None, "t")] for each in shown]

    def is_copy(self, picture):
        assert picture.dtype == np.uint8
        assert picture.ndim == 3
        assert picture.shape[2] == 3
        grey = picture.mean(2)
        return any(correlation(each.mean(2), grey) > self.line for each in self.known if each.shape == picture.shape)


def correlation(one, other):
    if one.std() == 0 or other.std() == 0:
        return 0.0
    return abs(np.corrcoef(one.ravel(), other.ravel())[0, 1])


def training_picture(height=16, width=16, seed=0):
    """Smooth shapes, whose channels go together, as those of photographs do."""
    rng = np.random.default_rng(seed)
    grey = np.kron(rng.integers(0, 180, (4, 4)), np.ones((-(-height // 4), -(-width // 4))))[:height, :width]
    return (grey[..., None] + rng.integers(0, 60, (height, width, 3))).astype(np.uint8)


def pillow(picture, mode="RGB"):
    return Image.fromarray(picture).convert(mode)


def with_alpha(picture, alpha):
    return np.dstack([picture, np.full(picture.shape[:2], alpha, np.uint8)])


def delivered_by_guard(form, training, refuse="none"):
    """What a guarded function hands out that returns this form whenever it is called."""
    policy = Policy(ladder=((),), tries=2, refuse=refuse)
    return Guard(ByPixels(training), policy)(lambda prompt: form() if callable(form) else form)("a")


def leaks(out, training):
    """Whether a person finds the training picture in what was handed out, in whatever way it is read."""
    # Above the line of the guard's index: to stretch a faint picture rounds it once more.
    index, readings = ByPixels(training, 0.8), []

    def gather(value, depth=4):
        if value is None or isinstance(value, (bool, int, float, complex, str, np.generic)) or depth == 0:
            return
        if isinstance(value, Image.Image):
            readings.append(np.asarray(value.convert("RGBA"))[..., :3])
            readings.append(np.repeat(np.asarray(value.convert("RGBA"))[..., 3:], 3, 2))
            assert not value.info
            assert getattr(value, "n_frames", 1) == 1
        elif isinstance(value, (np.ndarray, torch.Tensor)):
            read_array(value)
        elif isinstance(value, dict):
            gather(list(value.values()), depth - 1)
        elif isinstance(value, (list, tuple)):
            for each in value:
                gather(each, depth - 1)
        else:
            gather(returned.fields(value), depth - 1)

    def read_array(value):
        array = np.asarray(value.detach().float() if isinstance(value, torch.Tensor) else value)
        assert getattr(array, "mask", None) is None
        if array.dtype == object:
            return gather(list(array.ravel()))
        array = array.astype(np.float64)
        finite = array[np.isfinite(array)]
        low, high = (finite.min(), finite.max()) if finite.size else (0, 0)
        scaled = (np.nan_to_num(array, nan=low, posinf=high, neginf=low) - low) / ((high - low) or 1) * 255
        height, width = training.shape[:2]
        if scaled.size % (height * width):
            return None
        planes = [scaled.reshape(-1, height, width)]
        if scaled.size % (height * width * 3) == 0:
            planes.append(scaled.reshape(-1, height, width, 3).mean(3))
            planes.append(scaled.reshape(-1, 3, height, width).mean(1))
        if scaled.ndim > 2:
            planes += [np.moveaxis(scaled, axis, 0).reshape(-1, height, width) for axis in range(scaled.ndim)]
        readings.extend(np.repeat(plane[..., None], 3, 2).astype(np.uint8) for each in planes for plane in each)
        return None

    gather(out)
    return any(index.is_copy(reading) for reading in readings)


# Arrays of any shape, type and range

DTYPES = ("uint8", "int8", "int16", "uint16", "int32", "int64", "float16", "float32", "float64", "bool", "object")
SCALES = {
    "0..255": lambda x: x,
    "0..1": lambda x: x / 255,
    "-1..1": lambda x: x / 127.5 - 1,
    "0..65535": lambda x: x * 257.0,
    "divided twice": lambda x: x / 255 / 255,
    "standardised": lambda x: (x - x.mean()) / (x.std() or 1),
    "faint": lambda x: 0.5 + x / 255 / 100,
}
AXES = {
    "h w c": lambda x: x,
    "c h w": lambda x: np.moveaxis(x, 2, 0),
    "h c w": lambda x: np.moveaxis(x, 2, 1),
    "1 h w c": lambda x: x[None],
    "1 c h w": lambda x: np.moveaxis(x, 2, 0)[None],
    "1 1 h w c": lambda x: x[None, None],
    "h w 1": lambda x: x[..., :1],
    "h w": lambda x: x[..., 0],
    "1 h w": lambda x: x[None, ..., 0],
    "h w 1 c": lambda x: x[:, :, None],
    "hw c": lambda x: x.reshape(-1, 3),
    "h wc": lambda x: x.reshape(len(x), -1),
    "ch w": lambda x: np.moveaxis(x, 2, 0).reshape(-1, x.shape[1]),
    "hwc": lambda x: x.ravel(),
    "3 of grey": lambda x: np.stack([np.roll(x[..., 0], 5, 1), x[..., 0], x[::-1, :, 0]]),
    "4 h w": lambda x: np.concatenate([np.moveaxis(x, 2, 0), np.full((1, *x.shape[:2]), 255.0)]),
    "h w 4, clear": lambda x: np.dstack([x, np.zeros(x.shape[:2])]),
    "h w 4, alpha is it": lambda x: np.dstack([x * 0, x.mean(2)]),
    "h w 4, opaque": lambda x: np.dstack([x, np.full(x.shape[:2], 1.0 if x.max() <= 1 else 255.0)]),
    "h w 4, alpha is it, in noise": lambda x: np.dstack(
        [np.random.default_rng(0).random(x.shape) * x.max(), x.mean(2)]
    ),
    "a h w, alpha is it": lambda x: np.concatenate([x.mean(2)[None], np.moveaxis(x * 0, 2, 0)]),
    "b g r": lambda x: x[..., ::-1],
    "b g r a": lambda x: np.dstack([x[..., ::-1], np.full(x.shape[:2], x.max() / 2)]),
    "g, noise, noise": lambda x: np.dstack([np.random.default_rng(0).random((*x.shape[:2], 2)) * x.max(), x[..., 1]]),
    "h w 4, half": lambda x: np.dstack([x, np.full(x.shape[:2], x.max() / 2)]),
    "h w 2": lambda x: x[..., :2],
    "2 h w c": lambda x: np.stack([x[::-1] * 0, x]),
    "4 h w c": lambda x: np.stack([x] * 4),
    "n h w 3, n is 3": lambda x: np.stack([x * 0, x, x * 0]),
    "n 3 h w, n is 3": lambda x: np.moveaxis(np.stack([x * 0, x, x * 0]), 3, 1),
    "f h w c in a list": lambda x: np.stack([x, x]),
}


@CASES
@hypothesis.given(
    axes=st.sampled_from(sorted(AXES)),
    scale=st.sampled_from(sorted(SCALES)),
    dtype=st.sampled_from(DTYPES),
    library=st.sampled_from(["numpy", "torch", "bfloat16", "list", "nested", "memory order", "view", "big endian"]),
    container=st.sampled_from(["bare", "list", "tuple", "iterator", "images", "dict", "namedtuple"]),
    size=st.sampled_from([(16, 16), (16, 12), (12, 24), (20, 9)]),
)
def test_no_array_of_a_training_image_passes(axes, scale, dtype, library, container, size):
    training = training_picture(*size)
    with np.errstate(all="ignore"):
        array = AXES[axes](SCALES[scale](training.astype(np.float64))).astype(dtype)
    found = check(training, in_container(container, lambda: in_library(library, array)))
    assert found in ("refused", "found", "another")


@CASES
@hypothesis.given(
    axes=st.sampled_from(sorted(AXES)),
    scale=st.sampled_from(["0..1", "divided twice", "faint"]),
    dtype=st.sampled_from(["float16", "float32", "float64"]),
    library=st.sampled_from(["numpy", "torch", "bfloat16", "float8_e4m3fn", "float8_e5m2", "floor", "ceil"]),
    size=st.sampled_from([(16, 16), (16, 12), (12, 24), (20, 9)]),
    seed=st.integers(0, 200),
)
@hypothesis.example(axes="h w 4, alpha is it", scale="faint", dtype="float32", library="torch", size=(16, 16), seed=0)
@hypothesis.example(
    axes="h w 4, opaque", scale="divided twice", dtype="float64", library="numpy", size=(16, 16), seed=0
)
def test_no_rounding_of_a_training_image_passes(axes, scale, dtype, library, size, seed):
    training = training_picture(*size, seed=seed)
    array = AXES[axes](SCALES[scale](training.astype(np.float64))).astype(dtype)
    assert check(training, lambda: in_library(library, array)) in ("refused", "found", "another")


BATCHES = [
    ("".join(order), n, channels)
    for order in itertools.permutations("nhwc")
    for n in (1, 2, 3, 4, 5)
    for channels in (1, 3, 4)
]


@pytest.mark.parametrize("make", [np.ascontiguousarray, lambda x: torch.from_numpy(x / 255)], ids=["numpy", "torch"])
@pytest.mark.parametrize(("order", "n", "channels"), BATCHES)
def test_no_batch_passes_whatever_the_order_of_its_axes(order, n, channels, make):
    training = training_picture(16, 12)
    some = [training, *(training_picture(16, 12, seed) for seed in range(1, n))]
    opaque = np.full((16, 12, 1), 255, np.uint8)
    batch = np.stack([np.dstack([each, opaque])[..., :channels] for each in [*some[1:], some[0]]])
    array = np.ascontiguousarray(batch.transpose(["nhwc".index(axis) for axis in order]))
    assert check(training, lambda: make(array)) in ("refused", "found")


def in_library(library, array):
    if library in ("floor", "ceil"):
        return getattr(np, library)(np.clip(array, 0, 1) * 255).astype(np.uint8)
    if library not in ("numpy", "list", "nested", "memory order", "view", "big endian"):
        if array.dtype == object:
            array = array.astype(np.float32)
        found = torch.from_numpy(np.ascontiguousarray(array))
        return found if library == "torch" else found.to(getattr(torch, library))
    if library == "nested":
        return array.tolist()
    if library == "list":
        return list(array)
    if library == "memory order":
        return np.asfortranarray(array)
    if library == "view":
        return np.pad(array, 2)[tuple(slice(2, 2 + n) for n in array.shape)]
    if library == "big endian" and array.dtype != object:
        return array.astype(array.dtype.newbyteorder(">"))
    return array


Named = collections.namedtuple("Named", ["images", "flag"])


def in_container(container, form):
    return {
        "bare": form,
        "list": lambda: [form()],
        "tuple": lambda: (form(),),
        "iterator": lambda: iter([form()]),
        "images": lambda: types.SimpleNamespace(images=[form()], seed=3),
        "dict": lambda: {"images": [form()], "seed": 3},
        "namedtuple": lambda: Named([form()], False),
    }[container]


def check(training, form):
    try:
        out = delivered_by_guard(form, training)
    except InputError as error:
        return "refused" if str(error).count("\n") == 1 else f"refused without what to do: {error}"
    assert not leaks(out, training)
    images = [None] if out is None else returned.listed(out)
    return "found" if any(image is None for image in images) else "another"


# Pillow


def saved(image, format="PNG", **options):
    file = io.BytesIO()
    image.save(file, format, **options)
    return Image.open(io.BytesIO(file.getvalue()))


def quantised(picture):
    return pillow(picture).quantize(64)


def clear_palette(picture):
    image = quantised(picture)
    image.info["transparency"] = bytes(64)
    return image


def colour_key(picture):
    """A picture with one colour declared transparent: the one that fills it."""
    image = pillow(np.where(picture > 90, picture, 90).astype(np.uint8))
    image.info["transparency"] = (90, 90, 90)
    return image


def turned(picture):
    """Upright by its EXIF tag alone."""
    exif = Image.Exif()
    exif[0x0112] = 6
    return saved(pillow(np.rot90(picture)), exif=exif)


def second_frame(picture):
    frames = [pillow(np.zeros_like(picture)), pillow(picture)]
    return saved(frames[0], "GIF", save_all=True, append_images=frames[1:])


def in_its_text(picture):
    image = pillow(np.zeros_like(picture))
    image.info["thumbnail"] = picture.tobytes()
    image.hidden = picture
    return image


PILLOW = {
    "RGB": pillow,
    "L": lambda x: pillow(x, "L"),
    "1": lambda x: pillow(x).convert("1", dither=Image.Dither.NONE),
    "P": quantised,
    "CMYK": lambda x: pillow(x, "CMYK"),
    "YCbCr": lambda x: pillow(x, "YCbCr"),
    "HSV": lambda x: pillow(x, "HSV"),
    "I": lambda x: Image.fromarray(x[..., 0].astype(np.int32)),
    "I;16": lambda x: Image.fromarray(x[..., 0].astype(np.uint16) * 257),
    "F": lambda x: Image.fromarray(x[..., 0].astype(np.float32)),
    "RGBA, opaque": lambda x: Image.fromarray(with_alpha(x, 255)),
    "RGBA, clear": lambda x: Image.fromarray(with_alpha(x, 0)),
    "RGBA, nearly clear": lambda x: Image.fromarray(with_alpha(x, 3)),
    "RGBA, half": lambda x: Image.fromarray(with_alpha(x, 128)),
    "RGBA, alpha is it": lambda x: Image.fromarray(np.dstack([x * 0, x[..., 1]])),
    "RGBA, alpha is it, in white": lambda x: Image.fromarray(np.dstack([x * 0 + 255, x[..., 1]])),
    "RGBa": lambda x: Image.fromarray(with_alpha(x, 99)).convert("RGBa"),
    "LA, alpha is it": lambda x: Image.fromarray(np.dstack([x[..., 0] * 0, x[..., 0]])),
    "La": lambda x: Image.fromarray(np.dstack([x[..., 0], x[..., 0] // 2 + 100])).convert("La"),
    "PA": lambda x: Image.fromarray(np.dstack([x[..., 0], x[..., 0] * 0 + 90])).convert("PA"),
    "I;16B": lambda x: Image.fromarray(x[..., 0].astype(np.uint16) * 257).convert("I;16B"),
    "LA, clear": lambda x: Image.fromarray(np.dstack([x[..., 0], x[..., 0] * 0])),
    "P, clear": clear_palette,
    "RGB, a colour is clear": colour_key,
    "EXIF": turned,
    "second frame": second_frame,
    "attributes": in_its_text,
    "not loaded": lambda x: saved(pillow(x)),
    "truncated": lambda x: Image.open(io.BytesIO(encoded(x)[:-200])),
    "mirrored": lambda x: pillow(x[:, ::-1].copy()),
    "LAB": lambda x: Image.merge("LAB", [pillow(x, "L")] * 3),
    "RGBX": lambda x: pillow(x, "RGBX"),
}


def encoded(picture):
    file = io.BytesIO()
    pillow(picture).save(file, "PNG")
    return file.getvalue()


PASSED = {"second frame", "attributes"}
"""Forms whose own pixels are no copy: they are handed out, without what they brought."""
UNREAD = {"I", "I;16", "I;16B", "F", "La", "truncated"}


@pytest.mark.parametrize("name", PILLOW)
def test_no_image_of_pillow_passes(name):
    training = training_picture(24, 16)
    found = check(training, lambda: PILLOW[name](training))
    assert found == ("another" if name in PASSED else "refused" if name in UNREAD else "found")


# What else may come back


@dataclasses.dataclass
class Held:
    images: list
    more: object = None


class Slotted:
    __slots__ = ("hidden", "images")

    def __init__(self, images, hidden):
        self.images, self.hidden = images, hidden


class Computed:
    def __init__(self, x):
        self._raw, self._blank = x, np.zeros_like(x)

    @property
    def images(self):
        return [self._blank]


class Listing(list):
    pass


class Text(str):
    def __new__(cls, text, hidden):
        found = super().__new__(cls, text)
        found.hidden = hidden
        return found


def listing(x):
    found = Listing([blank(x)])
    found.hidden = x
    return found


class Pretending(np.ndarray):
    pass


class Masked(torch.Tensor):
    pass


def blank(x):
    return np.zeros_like(x)


def structured(x):
    return np.ascontiguousarray(x).view([("r", "u1"), ("g", "u1"), ("b", "u1")])[..., 0]


OTHERS = {
    "bytes": encoded,
    "bytes in a list": lambda x: [encoded(x)],
    "a buffer": lambda x: io.BytesIO(encoded(x)),
    "memoryview": lambda x: memoryview(x),
    "a path": lambda x: "/tmp/image.png",
    "base64": lambda x: ["iVBORw0KGgo"],
    "None": lambda x: None,
    "a number": lambda x: 7,
    "a dict of rows": lambda x: {0: x},
    "images and a flag": lambda x: ([x], False),
    "images and themselves": lambda x: ([blank(x)], [x]),
    "list of lists of arrays": lambda x: [[x]],
    "images are a path": lambda x: Held("/tmp/image.png"),
    "a masked array": lambda x: np.ma.masked_array(x, mask=np.ones_like(x)),
    "a matrix": lambda x: np.ndarray.view(x[..., 0], np.matrix),
    "an array class": lambda x: x.view(Pretending),
    "a tensor class": lambda x: torch.from_numpy(x).as_subclass(Masked),
    "a parameter": lambda x: torch.nn.Parameter(torch.from_numpy(x / 255)),
    "sparse": lambda x: torch.from_numpy(x / 255).to_sparse(),
    "complex": lambda x: x / 255 + 0j,
    "NaN": lambda x: np.where(np.arange(16)[:, None] < 1, np.nan, x / 255),
    "infinite": lambda x: np.where(x > 200, np.inf, x / 255),
    "above 1": lambda x: x / 127,
    "below 0": lambda x: x / 127.5 - 1,
    "structured": structured,
    "strings": lambda x: x.astype(str),
    "latents": lambda x: torch.randn(1, 4, 16, 16),
    "latents of 16 channels": lambda x: torch.rand(1, 16, 16, 16),
    "latents from 0 to 1": lambda x: torch.rand(1, 4, 16, 16),
    "packed latents": lambda x: torch.randn(1, 64, 64),
    "frames": lambda x: np.stack([[x]]),
    "stacked on the third axis": lambda x: np.stack([x] * 2, 2),
    "rows of pixels": lambda x: x.reshape(-1, 3),
    "no pixels": lambda x: x[:0],
    "held: an array besides": lambda x: Held([blank(x)], x),
    "held: a Pillow image besides": lambda x: Held([blank(x)], pillow(x)),
    "held: latents besides": lambda x: Held([blank(x)], torch.from_numpy(x / 255)),
    "held: nested lists besides": lambda x: Held([blank(x)], x.tolist()),
    "held: bytes besides": lambda x: Held([blank(x)], encoded(x)),
    "held: base64 besides": lambda x: Held([blank(x)], x.tobytes().hex()),
    "held: in a dict besides": lambda x: Held([blank(x)], {"np": [x]}),
    "held: a function besides": lambda x: Held([blank(x)], lambda: x),
    "held: in a large integer": lambda x: Held([blank(x)], int.from_bytes(x.tobytes())),
    "held: in keys": lambda x: {"images": [blank(x)], "more": {(tuple(row), 0): 1 for row in x[..., 0].tolist()}},
    "held: private": lambda x: types.SimpleNamespace(images=[blank(x)], _images_np=x),
    "held: in a slot": lambda x: Slotted([blank(x)], x),
    "held: behind a property": Computed,
    "held: in digits": lambda x: Held([blank(x)], " ".join(map(str, x[..., 0].ravel()))),
    "held: on a text": lambda x: Held([blank(x)], Text("a", x)),
    "a nested tensor": lambda x: torch.nested.nested_tensor([torch.from_numpy(x / 255)], layout=torch.jagged),
    "floats of 8 bits": lambda x: torch.from_numpy(x / 255).to(torch.float8_e4m3fn),
    "stacked on the third axis, many": lambda x: np.stack([np.tile(x, (2, 2, 1))] * 20, 2),
    "stacked on the third axis, one": lambda x: x[:, :, None],
    "held: many small fields": lambda x: types.SimpleNamespace(
        images=[blank(x)], **{f"row{n}": row.tolist() for n, row in enumerate(x[..., 0])}
    ),
}


@pytest.mark.parametrize("name", OTHERS)
def test_what_is_no_image_is_refused(name):
    training = training_picture()
    assert check(training, lambda: OTHERS[name](training)) == "refused"


def test_attributes_of_a_list_are_not_handed_out():
    training = training_picture()
    assert check(training, lambda: listing(training)) == "another"


def test_what_is_handed_out_is_a_copy_of_what_was_looked_up():
    training, clean = training_picture(), training_picture(seed=1)
    for made in (clean.copy(), torch.from_numpy(clean.copy()), np.pad(clean, 1)[1:-1, 1:-1, 1:-1], pillow(clean)):
        out = delivered_by_guard(made, training)
        if isinstance(made, Image.Image):
            made.paste(pillow(training))
        else:
            made[:] = torch.from_numpy(training) if isinstance(made, torch.Tensor) else training
        assert type(out) is (Image.Image if isinstance(made, Image.Image) else type(made))
        assert np.array_equal(np.asarray(out), clean)
        assert getattr(out, "base", None) is None, "no view of a larger array"


@pytest.mark.parametrize(
    ("form", "shape"),
    [(lambda x: np.stack([x, x]), (2, 16, 16, 3)), (lambda x: torch.from_numpy(x / 255).permute(2, 0, 1), (3, 16, 16)),
     (lambda x: torch.from_numpy(x / 255).permute(2, 0, 1)[None].half(), (1, 3, 16, 16)),
     (lambda x: x[..., 0] / 255, (16, 16)), (lambda x: x[..., :1], (16, 16, 1))],
)  # fmt: skip
def test_clean_arrays_come_out_in_their_own_form_bit_by_bit(form, shape):
    clean = form(training_picture(seed=1))
    out = delivered_by_guard(clean, training_picture())
    assert type(out) is type(clean)
    assert tuple(out.shape) == shape
    assert out.dtype == clean.dtype
    assert np.array_equal(np.asarray(out), np.asarray(clean))


def test_holders_are_handed_out_anew():
    clean, training = training_picture(seed=1), training_picture()
    for made in (Held([clean], "a seed"), {"images": [clean], "n": 3}, Named([clean], True), Slotted([clean], 3.0)):
        out = delivered_by_guard(made, training)
        assert type(out) is type(made)
        assert out is not made
        held = returned.fields(out)
        assert np.array_equal(held.pop("images")[0], clean)
        assert held == {name: value for name, value in returned.fields(made).items() if name != "images"}


def test_floats_whose_fractions_hold_a_picture_are_handed_out_as_they_were_looked_up():
    training = training_picture()
    for made in (
        training / 255 / 600,
        torch.from_numpy(training / 255 / 600),
        (training / 255 / 600).astype(np.float16),
    ):
        out = delivered_by_guard(made, training)
        assert out.dtype == made.dtype
        assert not np.asarray(out).any()


def test_a_blank_image_in_place_of_a_refused_one_has_its_form():
    training = training_picture()
    for made in (
        training,
        torch.from_numpy(training / 255),
        pillow(training),
        Image.fromarray(with_alpha(training, 9)),
    ):
        out = delivered_by_guard(made, training, refuse="blank")
        assert type(out) is type(made)
        assert not np.asarray(out).any()
    with pytest.raises(Refused):
        delivered_by_guard(torch.from_numpy(training).permute(2, 0, 1), training, refuse="raise")


def shows(views, picture):
    return any(np.array_equal(view, picture) for view in views)


@pytest.mark.parametrize("first", [False, True])
def test_channels_of_unknown_order_are_looked_up_reversed_and_alone(first):
    training = training_picture(16, 12)
    arranged = np.moveaxis(training, 2, 0) if first else training
    known, unknown = (pictures.delivered(arranged, colours).views for colours in (True, False))
    assert len(known) == 1
    for views in (known, unknown):
        assert np.array_equal(views[0], training)
    assert shows(unknown, training[..., ::-1])
    for channel in range(3):
        assert shows(unknown, np.repeat(training[..., channel : channel + 1], 3, 2))
    assert shows(pictures.delivered(with_alpha(training, 9)).views, training[..., ::-1])


@pytest.mark.parametrize("levels", [1, 4, 15])
def test_few_levels_are_looked_up_at_full_contrast(levels):
    picture = np.kron(np.arange(levels + 1, dtype=np.uint8)[:, None, None], np.ones((4, 16, 3), np.uint8))
    stretched = picture * (255 // levels)
    tinted = picture + np.array([3, 100, 255 - levels], np.uint8)
    for made in (picture, tinted, pillow(tinted), torch.from_numpy(tinted / 255)):
        views = pictures.delivered(made, True).views
        assert shows(views[1:], stretched)
        assert len(views) == 2
    clear = np.dstack([picture * 0, tinted[..., 1]])
    assert shows(pictures.delivered(clear).views, stretched)
    assert len(pictures.delivered(np.full((8, 8, 3), 3, np.uint8), True).views) == 1, "one colour shows nothing"
    wide = picture.copy()
    wide[0, 0] = 40
    assert len(pictures.delivered(wide, True).views) == 1


def test_a_channel_of_few_levels_is_handed_out_as_it_was_looked_up():
    training = training_picture()
    red, green, blue = np.moveaxis(training / 255, 2, 0)
    for made in (
        np.stack([0.5 + red / 40, green, blue]),
        np.dstack([red, green, 0.5 + blue / 40]),
        np.dstack([red, green, blue, red / 40]),
    ):
        assert np.array_equal(pictures.delivered(made).image, (made * 255).round() / 255)
    # A channel of one value holds nothing.
    made = np.dstack([training / 255, np.full((16, 16), 0.3)])
    assert np.array_equal(pictures.delivered(made).image, made)


@pytest.mark.parametrize("size", [(1, 1), (1, 5), (2, 3), (5, 2), (3, 4)])
@pytest.mark.parametrize("mode", [*Image.MODES, "PA", "La", "I;16", "I;16B", "I;16L"])
def test_every_mode_of_pillow_is_read_or_refused_at_any_size(mode, size):
    try:
        views = pictures.delivered(Image.new(mode, size)).views
    except InputError as error:
        assert str(error).count("\n") == 1  # noqa: PT017
        assert mode.startswith(("I", "F", "La"))
    else:
        assert all(view.shape == (*size[::-1], 3) for view in views)


@pytest.mark.parametrize(
    "shape", [(3, 64, 3), (3, 64, 4), (4, 64, 4), (1, 64, 3), (4, 64, 64), (5, 64, 64), (64, 64, 2)]
)
def test_axes_that_may_be_read_in_two_ways_are_refused(shape):
    for made in (np.zeros(shape, np.uint8), torch.zeros(shape)):
        with pytest.raises(InputError, match="shape"):
            pictures.delivered(made)
