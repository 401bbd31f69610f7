"""One image, one row: whatever a decoder, resizer, descriptor or measure raises on one image is that row's error."""

from __future__ import annotations

import contextlib
import dataclasses
import io
import struct
import threading
import zlib

import numpy as np
import pytest
from PIL import Image

from copyscope.detection.descriptors import Descriptor
from copyscope.detection.embedding.each_image import values_of_each
from copyscope.detection.embedding.embed import embed
from copyscope.detection.embedding.fill import AHEAD_BYTES
from copyscope.detection.matching.ncc import Verify
from copyscope.detection.matching.windows import extract
from copyscope.errors import CopyscopeError, ImageError
from copyscope.imaging import images, rgb


def grey_png(width, height):
    """A black PNG of these measures, of a few bytes a thousand pixels."""

    def chunk(kind, data):
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    packed = zlib.compressobj(9)
    rows = bytes((1 + width) * max(1, (1 << 20) // (1 + width)))
    left, pieces = (1 + width) * height, []
    while left:
        pieces.append(packed.compress(rows[:left]))
        left -= min(left, len(rows))
    data = b"".join([*pieces, packed.flush()])
    header = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", data) + chunk(b"IEND", b"")


def folder_of(tmp_path, **files):
    folder = tmp_path / "images"
    folder.mkdir()
    rng = np.random.default_rng(0)
    for name in ("a", "b"):
        Image.fromarray(rng.integers(0, 256, (40, 50, 3), np.uint8)).save(folder / f"{name}.png")
    for name, data in files.items():
        (folder / f"{name}.png").write_bytes(data)
    return folder


def errors_of(described):
    return dict(zip(described.corpus.ids, described.corpus.table["error"].to_pylist(), strict=True))


# What the header tells


@pytest.mark.sscd
@pytest.mark.parametrize("size", [(3000, 1), (2731, 1), (1, 1001), (60_000, 50)])
def test_a_strip_is_the_error_of_its_row_under_the_protocol_of_the_paper(tmp_path, size):
    strip = io.BytesIO()
    Image.new("RGB", size).save(strip, "PNG")
    described = embed(folder_of(tmp_path, strip=strip.getvalue()), "dcr-2023", cache=tmp_path / "cache")
    assert (len(described.rows), described.n_missing) == (2, 1)
    assert errors_of(described)["strip.png"].startswith("too elongated: ")


@pytest.mark.parametrize("size", [(1000, 1), (1, 1000), (2, 2000)])
def test_an_image_of_a_thousand_to_one_is_described(tmp_path, size):
    strip = io.BytesIO()
    Image.new("RGB", size).save(strip, "PNG")
    folder = folder_of(tmp_path, strip=strip.getvalue())
    for name in ("phash", "sscd_distilled"):
        assert not embed(folder, name, cache=tmp_path / "cache").n_missing


@pytest.mark.parametrize("descriptor", ["phash", "pdq", "sscd_distilled"])
def test_a_png_of_one_by_170_million_is_refused_by_its_header(tmp_path, descriptor, monkeypatch):
    bomb = bombs["tall"] if bombs else bombs.setdefault("tall", grey_png(1, 170_000_000))
    assert len(bomb) < 400_000
    described = embed(folder_of(tmp_path, bomb=bomb), descriptor, cache=tmp_path / "cache")
    assert described.n_missing == 1
    assert errors_of(described)["bomb.png"] == "too large: 1 x 170000000 pixels"
    # Neither its pixels nor those of a shorter one are decoded.
    monkeypatch.setattr("PIL.ImageFile.ImageFile.load", None)
    with pytest.raises(ImageError, match="too elongated"):
        images.decode(grey_png(1, 16_000_000))


bombs: dict[str, bytes] = {}


def test_a_jpeg_of_very_many_scans_is_refused():
    file = io.BytesIO()
    Image.new("RGB", (64, 64)).save(file, "JPEG", progressive=True)
    data = file.getvalue()
    assert images.decode(data).shape == (64, 64, 3)
    start = data.rindex(b"\xff\xda")
    with pytest.raises(ImageError, match="more than 100 scans"):
        images.decode(data[:start] + data[start:-2] * 150 + data[-2:])


def test_webp_has_a_bound_of_its_own(monkeypatch):
    file = io.BytesIO()
    Image.new("RGB", (100, 100)).save(file, "WEBP")
    monkeypatch.setattr(images, "MAX_WEBP_PIXELS", 9_999)
    with pytest.raises(ImageError, match="too large: 100 x 100 pixels"):
        images.decode(file.getvalue())


# Memory


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "L", "LA", "P", "CMYK", "1", "I;16", "I", "F", "transparent P"])
def test_a_picture_is_the_same_strip_by_strip(mode, monkeypatch):
    rng = np.random.default_rng(1)
    picture = Image.fromarray(rng.integers(0, 256, (37, 23, 4), np.uint8), "RGBA")
    if mode in ("I;16", "I", "F"):
        kind = {"I;16": np.uint16, "I": np.int32, "F": np.float32}[mode]
        picture = Image.fromarray(rng.integers(0, 60_000, (37, 23)).astype(kind))
    elif mode == "transparent P":
        picture = picture.convert("RGB").quantize(16)
        picture.info["transparency"] = 3
    else:
        picture = picture.convert(mode)
    whole = rgb.layers(picture)
    monkeypatch.setattr(rgb, "STRIP_PIXELS", 100)
    for one, other in zip(whole, rgb.layers(picture), strict=True):
        assert one is other is None or np.array_equal(one, other)


def test_large_images_are_decoded_one_at_a_time(monkeypatch):
    monkeypatch.setattr(images, "LARGE_PIXELS", 99)
    data = grey_png(10, 10)
    done = []
    other = threading.Thread(target=lambda: done.append(images.decode(data)))
    with contextlib.ExitStack() as turn:
        images.decode_layers(data, turn=turn)
        images.decode_layers(data, turn=turn)
        other.start()
        other.join(0.2)
        assert not done
        images.decode(data)
    other.join()
    assert len(done) == 1


def test_batches_wait_where_their_files_are_large(tmp_path, monkeypatch):
    from copyscope.detection.embedding import fill as module

    assert AHEAD_BYTES <= 128 << 20
    folder = folder_of(tmp_path, **{f"x{n}": grey_png(30, 30 + n) for n in range(20)})
    plain = embed(folder, "phash", cache=tmp_path / "one").vectors
    for name, value in (("BATCH_BYTES", 1), ("AHEAD_BYTES", 1), ("CALL_PIXELS", 1)):
        monkeypatch.setattr(module, name, value)
    assert np.array_equal(plain, embed(folder, "phash", cache=tmp_path / "two").vectors)


# What a descriptor or a measure raises


@dataclasses.dataclass(frozen=True)
class Fragile(Descriptor):
    """Raises of images of 77 pixels' width."""

    what: str = "MemoryError"

    @property
    def dim(self):
        return 2

    def describe(self, images):
        if any(image.shape[1] == 77 for image in images):
            if self.what == "CopyscopeError":
                raise CopyscopeError("no weights\nget some")
            raise {"ImageError": ImageError, **vars(__import__("builtins"))}[self.what]("it broke")
        return np.tile(np.array([[1, 0]], np.float32), (len(images), 1))


@pytest.mark.parametrize(
    ("what", "says"),
    [
        ("MemoryError", "Fragile failed: out of memory"),
        ("ValueError", "Fragile failed: ValueError: it broke"),
        ("OverflowError", "Fragile failed: OverflowError: it broke"),
        ("RuntimeError", "Fragile failed: RuntimeError: it broke"),
        ("ZeroDivisionError", "Fragile failed: ZeroDivisionError: it broke"),
        ("ImageError", "it broke"),
    ],
)
@pytest.mark.parametrize("workers", [1, 3])
def test_what_a_descriptor_raises_is_the_error_of_the_image_it_raises_of(tmp_path, what, says, workers):
    folder = folder_of(tmp_path, **{f"x{n}": grey_png(20 + n, 30) for n in range(20)}, bad=grey_png(77, 30))
    described = embed(folder, Fragile(what), cache=tmp_path / "cache", workers=workers)
    assert (len(described.rows), described.n_missing) == (22, 1)
    found = errors_of(described)
    assert found.pop("bad.png").endswith(says)
    assert not any(found.values())


def test_what_is_no_fault_of_an_image_stops_the_run(tmp_path):
    with pytest.raises(CopyscopeError, match="no weights"):
        embed(folder_of(tmp_path, bad=grey_png(77, 30)), Fragile("CopyscopeError"), cache=tmp_path / "cache")


def test_a_picture_in_memory_that_cannot_be_described_says_so():
    good, bad = np.zeros((40, 40, 3), np.uint8), np.zeros((40, 77, 3), np.uint8)
    with pytest.raises(ImageError, match="77 x 40 pixels cannot be described: out of memory"):
        extract([good, bad], Fragile(), Verify(), False)


def test_values_that_are_no_numbers_are_those_of_their_image_alone():
    def halves(given):
        return np.array([[1 / each] if each else [np.nan] for each in given])

    found = values_of_each("halves", halves, 1, np.float64, [2, 0, 4])
    assert found[1] == "halves gave values that are not numbers"
    assert [found[0][0, 0], found[2][0, 0]] == [0.5, 0.25]
