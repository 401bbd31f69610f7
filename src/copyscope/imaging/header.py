"""Read width and height from an image header, before decoding."""

from __future__ import annotations

from io import BytesIO

from . import images
from .formats import FORMATS, plugins, too_much_text


def size_of(data: bytes) -> tuple[int, int] | None:
    """(width, height) in pixels from the header of an image file; None where the header cannot be read."""
    with images._quiet:
        try:
            with images._pillow().open(BytesIO(data), formats=(*FORMATS, *plugins())) as picture:
                width, height = picture.size
        except Exception as error:  # hostile bytes make Pillow raise almost anything; decoding says why
            if not too_much_text(str(error)):
                return None
            width, height = (int.from_bytes(data[at : at + 4], "big") for at in (16, 20))
    return int(width), int(height)
