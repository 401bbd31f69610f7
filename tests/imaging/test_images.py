"""Decoding: every kind of image against an independent route, and hostile bytes that must only raise ImageError."""

from __future__ import annotations

import os
import struct
import threading
import warnings
import zlib
from io import BytesIO

import numpy as np
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from PIL import Image as Pillow
from PIL import ImageOps, features

from copyscope.errors import ImageError
from copyscope.imaging import images


def ramp(height: int = 12, width: int = 20) -> np.ndarray:
    """A picture without any symmetry, uint8 [h w 3]."""
    y, x = np.mgrid[:height, :width]
    return np.stack([y * 255 // height, x * 255 // width, (x * y) % 251], axis=2).astype(np.uint8)


def saved(picture: Pillow.Image, format: str, **options: object) -> bytes:
    file = BytesIO()
    picture.save(file, format, **options)
    return file.getvalue()


def chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png(width: int, height: int, depth: int, colour: int, rows: bytes, *, before: bytes = b"") -> bytes:
    """A PNG written by hand, for what Pillow cannot write."""
    header = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0)
    body = chunk(b"IHDR", header) + before + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + body


@pytest.mark.parametrize("format", ["PNG", "WEBP", "BMP", "TIFF", "PPM"])
def test_lossless_formats_give_the_very_pixels(format: str) -> None:
    options = {"lossless": True} if format == "WEBP" else {}
    image = images.decode(saved(Pillow.fromarray(ramp()), format, **options))
    assert image.dtype == np.uint8
    assert image.flags.writeable
    np.testing.assert_array_equal(image, ramp())


@pytest.mark.parametrize("format", ["JPEG", *(["AVIF"] if features.check("avif") else [])])
def test_lossy_formats_give_what_pillow_gives(format: str) -> None:
    data = saved(Pillow.fromarray(ramp(64, 48)), format)
    with Pillow.open(BytesIO(data)) as picture:
        np.testing.assert_array_equal(images.decode(data), np.asarray(picture.convert("RGB")))


def test_paths_of_either_type(tmp_path) -> None:
    # A PNG by content, whatever its name says.
    path = tmp_path / "a.jpg"
    path.write_bytes(saved(Pillow.fromarray(ramp()), "PNG"))
    np.testing.assert_array_equal(images.decode(path), ramp())
    np.testing.assert_array_equal(images.decode(str(path)), ramp())


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("format", ["JPEG", "PNG", "WEBP", "TIFF"])
def test_exif_orientation_as_image_ops_applies_it(format: str, orientation: int) -> None:
    exif = Pillow.Exif()
    exif[0x0112] = orientation
    data = saved(Pillow.fromarray(ramp()), format, exif=exif)
    with Pillow.open(BytesIO(data)) as picture:
        expected = np.asarray(ImageOps.exif_transpose(picture).convert("RGB"))
    image = images.decode(data)
    np.testing.assert_array_equal(image, expected)
    assert image.shape[:2] == ((12, 20) if orientation < 5 else (20, 12))
    assert image.flags.c_contiguous


@pytest.mark.parametrize("exif", [b"Exif\0\0junk", b"Exif\0\0II*\0\xff\xff\xff\xff", b"\xff" * 40])
def test_damaged_exif_does_not_lose_the_image(exif: bytes) -> None:
    np.testing.assert_array_equal(images.decode(saved(Pillow.fromarray(ramp()), "PNG", exif=exif)), ramp())


def over_white(colour: np.ndarray, alpha: np.ndarray) -> np.ndarray:
    """Exact compositing over white: (c * a + 255 * (255 - a)) / 255, rounded."""
    alpha = alpha.astype(np.int64)[..., None]
    return ((2 * (colour.astype(np.int64) * alpha + 255 * (255 - alpha)) + 255) // 510).astype(np.uint8)


@given(st.integers(0, 2**32 - 1))
@settings(max_examples=20, deadline=None)
def test_alpha_is_composited_over_white(seed: int) -> None:
    pixels = np.random.default_rng(seed).integers(0, 256, (6, 5, 4), dtype=np.uint8)
    rgba = images.decode(saved(Pillow.fromarray(pixels), "PNG"))
    np.testing.assert_array_equal(rgba, over_white(pixels[..., :3], pixels[..., 3]))
    grey = images.decode(saved(Pillow.fromarray(pixels[..., 2:].copy(), "LA"), "PNG"))
    np.testing.assert_array_equal(grey, over_white(np.repeat(pixels[..., 2:3], 3, axis=2), pixels[..., 3]))


def test_palettes() -> None:
    palette = Pillow.new("P", (3, 1))
    palette.putpalette([255, 0, 0, 0, 128, 0, 0, 0, 255])
    palette.putdata([0, 1, 2])
    expected = np.array([[[255, 0, 0], [0, 128, 0], [0, 0, 255]]], dtype=np.uint8)
    np.testing.assert_array_equal(images.decode(saved(palette, "PNG")), expected)
    # One entry see-through, as in a GIF; then one alpha an entry, as in a PNG.
    np.testing.assert_array_equal(images.decode(saved(palette, "GIF", transparency=1))[0, 1], [255, 255, 255])
    image = images.decode(saved(palette, "PNG", transparency=bytes([255, 0, 51])))
    np.testing.assert_array_equal(image, over_white(expected, np.array([[255, 0, 51]], dtype=np.uint8)))
    with_alpha = palette.convert("PA")
    np.testing.assert_array_equal(images.decode(saved(with_alpha, "TIFF")), expected)


def test_a_colour_key_is_see_through() -> None:
    rgb = Pillow.fromarray(np.array([[[10, 20, 30], [40, 50, 60]]], dtype=np.uint8))
    image = images.decode(saved(rgb, "PNG", transparency=(10, 20, 30)))
    np.testing.assert_array_equal(image, [[[255, 255, 255], [40, 50, 60]]])


def test_premultiplied_alpha() -> None:
    pixels = np.array([[[50, 100, 0, 100], [10, 20, 30, 255]]], dtype=np.uint8)
    data = bytearray(saved(Pillow.fromarray(pixels), "TIFF"))
    where = data.index(struct.pack("<HHIHH", 338, 3, 1, 2, 0))  # ExtraSamples: 2 is plain alpha, 1 premultiplied
    data[where + 8] = 1
    np.testing.assert_allclose(images.decode(bytes(data)), [[[205, 255, 155], [10, 20, 30]]], atol=1)


def test_grey_and_one_bit() -> None:
    grey = ramp()[..., 1]
    expected = np.repeat(grey[..., None], 3, axis=2)
    np.testing.assert_array_equal(images.decode(saved(Pillow.fromarray(grey), "PNG")), expected)
    bits = Pillow.fromarray(grey > 100)
    np.testing.assert_array_equal(images.decode(saved(bits, "PNG"))[..., 0], (grey > 100) * 255)


@pytest.mark.parametrize(("format", "mode"), [("PNG", "I;16"), ("TIFF", "I;16"), ("TIFF", "I;16B")])
def test_sixteen_bit_grey_is_rescaled(format: str, mode: str) -> None:
    values = np.linspace(0, 65535, 3000).astype(np.uint16).reshape(30, 100)
    picture = Pillow.frombytes(mode, (100, 30), values.astype(">u2" if mode == "I;16B" else "<u2").tobytes())
    image = images.decode(saved(picture, format))
    np.testing.assert_array_equal(image, np.repeat(np.rint(values / 257.0)[..., None], 3, axis=2))


def test_sixteen_bit_grey_of_tiff_where_zero_is_white() -> None:
    picture = Pillow.frombytes("I;16", (2, 1), np.array([0, 65535], dtype="<u2").tobytes())
    data = bytearray(saved(picture, "TIFF"))
    where = data.index(struct.pack("<HHIHH", 262, 3, 1, 1, 0))
    data[where + 8] = 0
    assert images.decode(bytes(data))[0, :, 0].tolist() == [255, 0]


def test_sixteen_bit_png_in_colour_and_with_alpha() -> None:
    values = np.array([[0x1234, 0x80FF, 0xFFFF], [0, 0x0100, 0xABCD]], dtype=">u2")
    image = images.decode(png(2, 1, 16, 2, b"\0" + values.tobytes()))
    np.testing.assert_array_equal(image[0], values >> 8)
    alpha = np.array([0x1234, 0xFFFF, 0x5678, 0], dtype=">u2")
    np.testing.assert_array_equal(images.decode(png(2, 1, 16, 4, b"\0" + alpha.tobytes()))[0, 1], [255, 255, 255])
    key = chunk(b"tRNS", struct.pack(">H", 500))
    keyed = images.decode(png(2, 1, 16, 0, b"\0" + struct.pack(">HH", 500, 501), before=key))
    assert keyed[0, :, 0].tolist() == [255, 2]


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ([0.0, 0.5, 1.0], [0, 128, 255]),
        ([0.0, 100.0, 255.0], [0, 100, 255]),
        ([0.0, 257.0, 65535.0], [0, 1, 255]),
        ([-1.0, 0.0, 1.0], [0, 128, 255]),
        ([float("nan"), float("inf"), 1.0], [0, 0, 255]),
        ([7.5e30, 7.5e30, 7.5e30], [0, 0, 0]),
    ],
)
def test_float_images(values: list[float], expected: list[int]) -> None:
    picture = Pillow.fromarray(np.array([values], dtype=np.float32))
    assert images.decode(saved(picture, "TIFF"))[0, :, 0].tolist() == expected


@pytest.mark.parametrize(
    ("values", "expected"),
    [([0, 100, 255], [0, 100, 255]), ([0, 257, 65535], [0, 1, 255]), ([-1000, 0, 1000], [0, 128, 255])],
)
def test_integer_images_of_32_bits(values: list[int], expected: list[int]) -> None:
    picture = Pillow.fromarray(np.array([values], dtype=np.int32))
    assert images.decode(saved(picture, "TIFF"))[0, :, 0].tolist() == expected


def test_a_dark_pgm_of_16_bits_stays_dark() -> None:
    assert images.decode(b"P5 2 1 65535\n" + struct.pack(">HH", 200, 255))[0, :, 0].tolist() == [1, 1]


def test_cmyk_jpeg_is_not_inverted() -> None:
    pixels = np.zeros((16, 16, 4), dtype=np.uint8)
    pixels[..., 0] = 255  # full cyan
    data = saved(Pillow.frombytes("CMYK", (16, 16), pixels.tobytes()), "JPEG", quality=95)
    np.testing.assert_allclose(images.decode(data)[8, 8], [0, 255, 255], atol=4)
    assert b"Adobe" in data  # Adobe stores CMYK inverted


@pytest.mark.parametrize("format", ["GIF", "WEBP", "PNG", "TIFF"])
def test_the_first_frame_stands_for_the_file(format: str) -> None:
    frames = [Pillow.new("RGB", (8, 8), colour) for colour in ("red", "lime", "blue")]
    options = {"lossless": True} if format == "WEBP" else {}
    data = saved(frames[0], format, save_all=True, append_images=frames[1:], **options)
    np.testing.assert_array_equal(images.decode(data)[4, 4], [255, 0, 0])


BOMB = png(30000, 30000, 8, 2, b"x")
VP8X = b"VP8X" + struct.pack("<I", 10) + bytes(4) + struct.pack("<I", 16382)[:3] * 2


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "empty file"),
        (b"<!DOCTYPE html><html>", "not an image: starts with b'<!DOCTYP'"),
        (b"\0" * 100, "not an image"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\nshowpage\n", "not an image"),
        (b"\x89PNG\r\n\x1a\n", "truncated or corrupt PNG"),
        (b"\xff\xd8\xff\xe0", "JPEG"),
        (b"GIF89a", "truncated or corrupt GIF"),
        (b"RIFF\x10\0\0\0WEBPVP8 ", "WebP"),
        (BOMB, "too large: 30000 x 30000 pixels"),
        (png(13400, 13400, 8, 0, b"x"), "too large: 13400 x 13400 pixels"),
        (b"RIFF" + struct.pack("<I", len(VP8X) + 4) + b"WEBP" + VP8X, "too large: 268402689 pixels"),
    ],
)
def test_reasons(data: bytes, reason: str) -> None:
    with pytest.raises(ImageError) as caught:
        images.decode(data)
    assert reason in str(caught.value)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 200


@pytest.mark.parametrize("format", [name for name in images.FORMATS if name != "AVIF" or features.check("avif")])
@pytest.mark.parametrize("share", [0.5, 0.9])
def test_truncated_files_say_so(format: str, share: float) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    data = saved(Pillow.fromarray(noise), format)
    with pytest.raises(ImageError, match=r"truncated|corrupt"):
        images.decode(data[: int(len(data) * share)])


def test_the_limit_holds_where_somebody_lifted_pillows(monkeypatch) -> None:
    monkeypatch.setattr(Pillow, "MAX_IMAGE_PIXELS", None)
    with pytest.raises(ImageError, match="too large: 30000 x 30000 pixels"):
        images.decode(BOMB)


def test_a_large_image_that_pillow_only_warns_of_warns_nobody() -> None:
    data = png(9600, 9600, 8, 0, b"x")  # more than Pillow's own limit, and truncated
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        with pytest.raises(ImageError, match="truncated"):
            images.decode(data)
    assert caught == []


def test_only_decoding_threads_are_silenced() -> None:
    data = png(9600, 9600, 8, 0, b"x")
    decoded, others = [], []

    def work() -> None:
        for _ in range(5):
            with pytest.raises(ImageError, match="truncated"):
                images.decode(data)
            decoded.append(1)

    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        threads = [threading.Thread(target=work) for _ in range(3)]
        for thread in threads:
            thread.start()
        while any(thread.is_alive() for thread in threads):
            if len(others) < 50:
                warnings.warn("mine", UserWarning, stacklevel=1)
                others.append(1)
            threads[0].join(0.001)
    assert len(decoded) == 15
    assert [str(warning.message) for warning in caught] == ["mine"] * len(others)


def test_files_that_cannot_be_opened(tmp_path) -> None:
    os.mkfifo(tmp_path / "pipe.jpg")
    for name, reason in (("absent.jpg", "no such file"), ("pipe.jpg", "regular"), (".", "regular"), ("a\0b", "null")):
        with pytest.raises(ImageError, match=reason):
            images.decode(tmp_path / name)


FORMATS = [format for format in images.FORMATS if format != "AVIF" or features.check("avif")]
WHOLE = {format: saved(Pillow.fromarray(ramp(24, 16)), format) for format in FORMATS}
FUZZ = settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.too_slow])


def decode_or_refuse(data: bytes) -> None:
    try:
        image = images.decode(data)
    except ImageError:
        return
    assert image.dtype == np.uint8
    assert image.ndim == 3
    assert image.shape[2] == 3


@FUZZ
@given(
    st.binary(max_size=200), st.sampled_from([b"", b"\xff\xd8\xff", b"BM", b"II*\0", b"P6 ", b"GIF89a", WHOLE["PNG"]])
)
@example(b"3 1 99999999999999999999\n", b"P6 ")
def test_random_bytes_raise_nothing_else(data: bytes, head: bytes) -> None:
    decode_or_refuse(head + data)


@FUZZ
@given(st.sampled_from(FORMATS), st.data())
def test_mutated_images_raise_nothing_else(format: str, draw: st.DataObject) -> None:
    data = bytearray(WHOLE[format])
    for _ in range(draw.draw(st.integers(1, 8))):
        data[draw.draw(st.integers(0, len(data) - 1))] = draw.draw(st.integers(0, 255))
    decode_or_refuse(bytes(data[: draw.draw(st.integers(1, len(data)))]))
    decode_or_refuse(bytes(data))


def test_resize_is_pillows_and_takes_height_first() -> None:
    for filter in images.FILTERS:
        expected = Pillow.fromarray(ramp()).resize((7, 5), Pillow.Resampling[filter.upper()])
        np.testing.assert_array_equal(images.resize(ramp(), (5, 7), filter), np.asarray(expected))
    with pytest.raises(ValueError, match="bilinear"):
        images.resize(ramp(), (5, 7), "cubic")
    with pytest.raises(ValueError, match="0 pixels high"):
        images.resize(ramp(), (0, 7))


@given(st.integers(1, 90), st.integers(1, 90), st.integers(1, 40))
@settings(max_examples=40, deadline=None)
def test_resize_short_and_centre_crop(height: int, width: int, size: int) -> None:
    image = images.resize_short(np.zeros((height, width, 3), dtype=np.uint8), size)
    assert min(image.shape[:2]) == size
    assert max(image.shape[:2]) == int(size * max(height, width) / min(height, width))
    assert images.centre_crop(image, size).shape == (size, size, 3)
    assert max(images.thumbnail(image, size).shape[:2]) == min(size, max(image.shape[:2]))


def test_centre_crop_takes_the_middle() -> None:
    np.testing.assert_array_equal(images.centre_crop(ramp(), 6), ramp()[3:9, 7:13])
    with pytest.raises(ValueError, match="resize first"):
        images.centre_crop(ramp(), 13)


def test_a_sliver_is_not_blown_up_into_a_bomb() -> None:
    with pytest.raises(ImageError, match="too large"):
        images.resize_short(np.zeros((1, 60000, 3), dtype=np.uint8), 288)


def test_luma_thumbnail_encode() -> None:
    image = ramp(64, 40)
    weights = image.astype(np.float64) @ [0.299, 0.587, 0.114]
    assert np.abs(images.luma(image) - weights).max() <= 1
    assert images.thumbnail(image, 32).shape == (32, 20, 3)
    np.testing.assert_array_equal(images.thumbnail(image, 64), image)
    np.testing.assert_array_equal(images.decode(images.encode(image, "png")), image)
    for format in ("jpeg", "webp"):
        assert len(images.encode(image, format, quality=20)) < len(images.encode(image, format, quality=95))
        assert images.decode(images.encode(image, format)).shape == image.shape
    with pytest.raises(ValueError, match="jpeg, webp, png"):
        images.encode(image, "gif")
    with pytest.raises(ImageError, match="cannot be written as webp"):
        images.encode(np.zeros((1, 20000, 3), dtype=np.uint8), "webp")
    with pytest.raises(ValueError, match="uint8"):
        images.luma(image.astype(np.float32))


def transparent(colour, path):
    picture = Pillow.new("RGBA", (20, 10), (0, 0, 0, 0))
    picture.paste(colour, (5, 2, 15, 8))
    picture.save(path)
    return path


def test_a_transparent_image_is_decoded_over_both_backgrounds(tmp_path):
    seen, behind = images.decode_layers(transparent((200, 40, 30, 255), tmp_path / "red.png"))
    assert seen[0, 0].tolist() == [255, 255, 255]
    assert behind[0, 0].tolist() == [0, 0, 0]
    assert seen[5, 10].tolist() == behind[5, 10].tolist() == [200, 40, 30]
    Pillow.fromarray(seen).save(tmp_path / "opaque.png")
    assert images.decode_layers(tmp_path / "opaque.png")[1] is None
    Pillow.fromarray(seen).convert("RGBA").save(tmp_path / "opaque-rgba.png")
    assert images.decode_layers(tmp_path / "opaque-rgba.png")[1] is None


def test_a_white_drawing_on_transparency_is_seen_over_black(tmp_path):
    seen, behind = images.decode_layers(transparent((255, 255, 255, 255), tmp_path / "white.png"))
    assert (seen[0, 0].tolist(), seen[5, 10].tolist()) == ([0, 0, 0], [255, 255, 255])
    assert behind.min() == 255
    np.testing.assert_array_equal(images.decode(tmp_path / "white.png"), seen)
    assert images.decode(transparent((0, 0, 0, 255), tmp_path / "black.png"))[0, 0].tolist() == [255, 255, 255]


@pytest.mark.parametrize("shape", [(40, 61), (61, 40), (33, 33), (7, 90)])
def test_a_central_square_is_cropped_and_resized_as_in_two_steps(shape):
    picture = np.random.default_rng(0).integers(0, 256, (*shape, 3), dtype=np.uint8)
    two_steps = images.resize(images.centre_crop(picture, min(shape)), (16, 16))
    np.testing.assert_array_equal(images.resize_square(picture, 16), two_steps)


def test_shared_images_are_converted_and_resized_once_and_come_out_the_same(monkeypatch):
    rng = np.random.default_rng(0)
    first, second = rng.integers(0, 256, (2, 50, 70, 3), dtype=np.uint8)
    expected = [images.resize(each, (20, 30)) for each in (first, second)]
    pillow, converted = images._pillow(), []
    real = pillow.fromarray
    monkeypatch.setattr(pillow, "fromarray", lambda array: converted.append(id(array)) or real(array))
    with images.shared([first]):
        found = images.resize(first, (20, 30))
        found[:] = 0  # what one function does to its result, the next must not see
        np.testing.assert_array_equal(images.resize(first, (20, 30)), expected[0])
        np.testing.assert_array_equal(images.resize(second, (20, 30)), expected[1])
        images.resize(first, (20, 30), "bicubic")
        assert converted == [id(first), id(second)]
    first[:] = second
    np.testing.assert_array_equal(images.resize(first, (20, 30)), expected[1])


def test_a_preview_looks_like_the_image_and_says_why_there_is_none():
    picture = images.resize(np.random.default_rng(0).integers(0, 256, (9, 12, 3), dtype=np.uint8), (600, 800))
    content = images.encode(picture, "jpeg", 95)
    found = images.preview(content, 100)
    assert found.shape == (75, 100, 3)
    assert np.abs(found.astype(int) - images.thumbnail(images.decode(content), 100)).mean() < 2
    small = images.encode(picture[:5, :8], "png")
    np.testing.assert_array_equal(images.preview(small, 100), picture[:5, :8])
    with pytest.raises(ImageError):
        images.preview(content[:300], 100)
