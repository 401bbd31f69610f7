"""Formats of images by their first bytes; what to install for those that Pillow cannot read; PNG without its texts."""

from __future__ import annotations

import functools
import importlib
from io import BytesIO
from typing import Any

# Only formats that decode pixels inside this process: Pillow would also hand EPS files to Ghostscript.
FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "AVIF", "PPM")
HEAD = 256
"""Bytes of a file that tell its format."""

# First bytes of each format: tells a damaged image from a file that never was one.
_MAGIC = {
    b"\xff\xd8\xff": "JPEG",
    b"\x89PNG\r\n\x1a\n": "PNG",
    b"GIF8": "GIF",
    b"II*\x00": "TIFF",
    b"MM\x00*": "TIFF",
    b"BM": "BMP",
}
_HEIC = (b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"mif1", b"msf1")
_NEEDS = {"HEIC": "pillow-heif", "JPEG XL": "pillow-jxl-plugin"}
_RAW = "a camera's raw file: develop it to TIFF or JPEG"
_DNG_VERSION, _SUBFILE, _SUB_IFDS = 50706, 254, 330


@functools.cache
def plugins() -> tuple[str, ...]:
    """Formats that Pillow reads with packages which are installed beside it: HEIC, JPEG XL."""
    found = []
    try:
        importlib.import_module("pillow_heif").register_heif_opener()
        found.append("HEIF")
    except Exception:  # absent, or of no use on this system
        pass
    try:
        importlib.import_module("pillow_jxl")
        found.append("JXL")
    except Exception:
        pass
    return tuple(found)


def format_of(head: bytes) -> str:
    """The format that is read, by the first bytes of a file; "" where they are of none."""
    if head[:4] == b"RIFF" and head[8:12] == b"WEBP":
        return "WebP"
    if head[4:12] in (b"ftypavif", b"ftypavis"):
        return "AVIF"
    if head[:1] == b"P" and head[1:2] in b"123456" and head[2:3].isspace():
        return "PPM"
    return next((name for magic, name in _MAGIC.items() if head.startswith(magic)), "")


def why_unread(head: bytes) -> str:
    """Name an image of a format that is not read, and what to do, by its first HEAD bytes; "" for other files."""
    if format_of(head) == "AVIF":
        from PIL import features

        return "" if features.check("avif") else "AVIF image: this Pillow cannot read it; install a newer one"
    name = ""
    if head[4:8] == b"ftyp" and head[8:12] in _HEIC:
        name = "HEIC"
    elif head.startswith((b"\xff\x0a", b"\0\0\0\x0cJXL \r\n\x87\n")):
        name = "JPEG XL"
    if name:
        package = _NEEDS[name]
        installed = {"HEIC": "HEIF", "JPEG XL": "JXL"}[name] in plugins()
        return "" if installed else f"{name} image: to read it, pip install {package}"
    if head.startswith(b"8BPS"):
        return "Photoshop file (PSD): save it as PNG or TIFF"
    if head.startswith((b"\0\0\0\x0cjP  ", b"\xff\x4f\xff\x51")):
        return "JPEG 2000 image: convert it to PNG or TIFF"
    raw = head.startswith((b"FUJIFILMCCD-RAW", b"IIRO", b"IIRS", b"IIU\0", b"\0MRM", b"FOVb"))
    if raw or head[4:12] == b"ftypcrx " or (head.startswith(b"II*\0") and head[8:10] == b"CR"):
        return _RAW
    start = head.lstrip(b"\xef\xbb\xbf \r\n\t").lower()
    if start.startswith(b"<svg") or (start.startswith((b"<?xml", b"<!--", b"<!doctype svg")) and b"<svg" in start):
        return "not an image of pixels but a drawing (SVG): convert it to PNG"
    return ""


def why_raw(picture: Any) -> str:
    """As `why_unread`, of a TIFF that Pillow has opened: a raw file of a camera shows as the thumbnail in it."""
    tags = getattr(picture, "tag_v2", {})
    if _DNG_VERSION in tags or (_SUB_IFDS in tags and tags.get(_SUBFILE) == 1):
        return _RAW
    return ""


def too_much_text(error: str) -> bool:
    """Whether Pillow refused a PNG for the size of its texts or colour profile, which are no part of the picture."""
    return "MAX_TEXT_CHUNK" in error or "Too much memory used in text chunks" in error


_TEXTS = (b"iCCP", b"tEXt", b"zTXt", b"iTXt")
_XMP = b"XML:com.adobe.xmp\0\0"
_XMP_BYTES = 1 << 20
MOST_WITH_TEXTS = 128 << 20
"""Bytes of a PNG that are read where its texts are too large for Pillow (128 MiB)."""


def without_texts(png: bytes) -> bytes:
    """A PNG without colour profile and texts, but for XMP that is not compressed, which may turn the picture."""
    kept, at, view = BytesIO(), 8, memoryview(png)
    kept.write(view[:8])
    while at + 12 <= len(png):
        length, kind = int.from_bytes(png[at : at + 4], "big"), png[at + 4 : at + 8]
        end = at + 12 + length
        xmp = length <= _XMP_BYTES and png[at + 8 : at + 8 + len(_XMP)] == _XMP
        if kind not in _TEXTS or xmp:
            kept.write(view[at:end])
        at = end
    return kept.getvalue()


NO_END = "JPEG without its end marker"
_END, _SCAN = b"\xff\xd9", b"\xff\xda"


def without_end(content: bytes) -> bool:
    """Whether a file is a JPEG whose last scan is not followed by the end marker."""
    if not content.startswith(b"\xff\xd8\xff"):
        return False
    return (scan := content.rfind(_SCAN)) >= 0 and content.rfind(_END) < scan


def with_end(content: bytes) -> bytes:
    """A JPEG with its end marker; what is missing before it shows as grey."""
    return content.removesuffix(b"\xff") + _END
