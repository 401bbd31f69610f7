"""Read width and height from an image header, before decoding."""

from __future__ import annotations

from io import BytesIO

from . import images


def size_of(data: bytes) -> tuple[int, int] | None:
    """(width, height) in pixels from the header of an image file; None where the header cannot be read."""
    with images._quiet:
        try:
            with images._pillow().open(BytesIO(data), formats=images.FORMATS) as picture:
                width, height = picture.size
        except Exception:  # hostile bytes make Pillow raise almost anything; decoding says why
            return None
    return int(width), int(height)
