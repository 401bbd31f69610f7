"""Formats that need a package, PNG with large texts, JPEG without an end."""

from __future__ import annotations

import io
import struct
import zlib

import numpy as np
import pytest
from PIL import Image, features

from copyscope.data.corpus import Corpus
from copyscope.errors import ImageError
from copyscope.imaging import formats, header, images
from tests.pictures import write


def chunk(kind: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))


def noise(format: str, **options) -> tuple[np.ndarray, bytes]:
    pixels = np.random.default_rng(1).integers(0, 256, (24, 32, 3), dtype=np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, format, **options)
    return pixels, file.getvalue()


LARGE = zlib.compress(np.random.default_rng(0).integers(0, 255, 1_500_000, dtype=np.uint8).tobytes())
LONG = zlib.compress(b"x" * 3_000_000)
TEXTS = {
    "iCCP": chunk(b"iCCP", b"p\0\0" + LARGE),
    "zTXt": chunk(b"zTXt", b"workflow\0\0" + LONG),
    "iTXt": chunk(b"iTXt", b"workflow\0\1\0\0\0" + LONG),
    "many": b"".join(chunk(b"zTXt", b"k\0\0" + zlib.compress(bytes([65 + n]) * 900_000)) for n in range(80)),
}


@pytest.mark.parametrize("kind", TEXTS)
@pytest.mark.parametrize("place", ["before", "after"])
def test_a_png_with_large_texts_is_read(kind, place):
    pixels, png = noise("PNG")
    at = png.find(b"IDAT") - 4 if place == "before" else png.find(b"IEND") - 4
    content = png[:at] + TEXTS[kind] + png[at:]
    assert np.array_equal(images.decode(content), pixels)
    assert header.size_of(content) == (32, 24)


def test_xmp_that_turns_the_picture_is_kept_and_the_rest_is_whole():
    _, png = noise("PNG")
    xmp = b'<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf tiff:Orientation="6"/></x:xmpmeta>'
    at = png.find(b"IDAT") - 4
    turned = png[:at] + chunk(b"iTXt", b"XML:com.adobe.xmp\0\0\0\0\0" + xmp) + png[at:]
    at = turned.find(b"IDAT") - 4
    content = turned[:at] + TEXTS["zTXt"] + turned[at:]
    assert np.array_equal(images.decode(content), images.decode(turned))
    assert images.decode(content).shape == (32, 24, 3)
    with pytest.raises(ImageError, match=r"truncated|corrupt"):
        images.decode(content[:-400])


@pytest.mark.parametrize(
    ("head", "said"),
    [
        (b"\0\0\0\x18ftypheic" + bytes(40), "pip install pillow-heif"),
        (b"\0\0\0\x18ftypmif1" + bytes(40), "pip install pillow-heif"),
        (b"\xff\x0a" + bytes(40), "pip install pillow-jxl-plugin"),
        (b"\0\0\0\x0cJXL \r\n\x87\n" + bytes(40), "pip install pillow-jxl-plugin"),
        (b"8BPS\0\1" + bytes(40), "PSD"),
        (b"\0\0\0\x0cjP  \r\n\x87\n" + bytes(40), "JPEG 2000"),
        (b"II*\0\x10\0\0\0CR\2\0" + bytes(90), "raw file"),
        (b"\0\0\0\x18ftypcrx " + bytes(40), "raw file"),
        (b"FUJIFILMCCD-RAW 0201", "raw file"),
        (b'<?xml version="1.0"?>\n<!-- x --><svg xmlns="y"/>', "SVG"),
        (b"\xef\xbb\xbf <svg/>", "SVG"),
    ],
)
def test_a_format_that_is_not_read_is_named_with_what_to_do(head, said, monkeypatch):
    monkeypatch.setattr(formats, "plugins", lambda: ())
    monkeypatch.setattr(images, "plugins", lambda: ())
    with pytest.raises(ImageError) as caught:
        images.decode(head)
    assert said in str(caught.value)


def test_avif_without_its_decoder_is_named(monkeypatch):
    monkeypatch.setattr(features, "check", lambda name: False)
    assert "AVIF" in formats.why_unread(b"\0\0\0\x1cftypavif" + bytes(20))


def test_a_raw_file_is_not_taken_for_its_thumbnail():
    from PIL.TiffImagePlugin import ImageFileDirectory_v2

    tags = ImageFileDirectory_v2()
    tags[50706] = b"\1\4\0\0"
    with pytest.raises(ImageError, match="raw file"):
        images.decode(noise("TIFF", tiffinfo=tags)[1])
    assert images.decode(noise("TIFF")[1]).shape == (24, 32, 3)


def test_a_package_that_is_installed_is_used(monkeypatch):
    pillow_heif = pytest.importorskip("pillow_heif")
    pillow_heif.register_heif_opener()
    assert images.decode(noise("HEIF", quality=90)[1]).shape == (24, 32, 3)


def test_files_of_these_formats_are_rows(tmp_path):
    write(tmp_path, {"a.heic": b"\0\0\0\x18ftypheic" + bytes(40), "b.psd": b"8BPS", "b.txt": "a drawing"})
    corpus = Corpus.open(tmp_path)
    assert (corpus.ids, corpus.captions) == (["a.heic", "b.psd"], [[], ["a drawing"]])


# JPEG without an end


@pytest.mark.parametrize("cut", [1, 2])
def test_a_jpeg_without_its_end_marker_is_read_when_asked(tmp_path, cut):
    whole = noise("JPEG", quality=95)[1]
    write(tmp_path, {"a.jpg": whole[:-cut], "b.jpg": whole, "c.jpg": whole + b"junk", "d.png": noise("PNG")[1]})
    with pytest.raises(ImageError, match="truncated"):
        images.decode(Corpus.open(tmp_path).read(0))
    corpus = Corpus.open(tmp_path, lenient=True)
    assert corpus.table["repaired"].to_pylist() == ["JPEG without its end marker", None, None, None]
    assert np.array_equal(images.decode(corpus.read(0)), images.decode(whole))
    found = dict(corpus.stream())
    assert (found[0], found[1]) == (whole, whole)
    assert "1 images are read without their end marker" in corpus.account.line()
    assert "repaired" not in Corpus.open(tmp_path / "b.jpg", lenient=True).table.column_names


def test_a_jpeg_that_is_cut_short_in_a_tar_shows_grey_when_asked(tmp_path):
    from tests.data.test_shards import write_tar

    whole = noise("JPEG", quality=95)[1]
    write_tar(tmp_path / "a.tar", {"a.jpg": whole[: len(whole) * 2 // 3], "b.jpg": whole})
    corpus = Corpus.open(tmp_path / "a.tar", lenient=True)
    assert corpus.table["repaired"].to_pylist() == ["JPEG without its end marker", None]
    assert images.decode(dict(corpus.stream())[0]).shape == (24, 32, 3)
