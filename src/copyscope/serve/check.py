"""Check one uploaded image against an index."""

from __future__ import annotations

import dataclasses
import math
import time
from typing import Annotated

from copyscope.detection.index.hits import Hit, is_copy
from copyscope.detection.index.index import Index
from copyscope.errors import CopyscopeError, ImageError
from copyscope.imaging import images
from copyscope.imaging.blank import is_blank
from copyscope.imaging.header import size_of

SCHEMA = "copyscope.check/1"


@dataclasses.dataclass(frozen=True)
class Answer:
    """Answer of the service about one image.

    Attributes:
        schema: name and version of this form.
        copy: it is a training image itself, or its p-value is at most `rate`; null where so few calibration images
            cannot tell at that rate.
        identical: it is the first match itself.
        blank: it is of one colour to within noise, and copies nothing.
        p_value: of the best match; null where there is none.
        combined: of the best match; null where there is none.
        rate: false-alarm rate.
        local: windows were looked at.
        n_index: training images.
        protocol: of the index.
        seconds: of the look-up.
        matches: best first.
    """

    schema: Annotated[str, "`copyscope.check/1`"]
    copy: Annotated[
        bool | None,
        "it is a training image itself, or `p_value` is at most `rate`; null = too few calibration images to tell "
        "at that rate",
    ]
    identical: Annotated[bool, "it is the same image as the first match"]
    blank: Annotated[bool, "it is of one colour to within noise: `copy` is false, and there are no matches"]
    p_value: Annotated[float | None, "conformal p-value of the first match; null where there is none"]
    combined: Annotated[float | None, "combined score of the first match"]
    rate: Annotated[float, "share of images that copy nothing which may be called copies"]
    local: Annotated[bool, "parts of the image were looked at too"]
    n_index: Annotated[int, "images in the index"]
    protocol: Annotated[str, "protocol of the index"]
    seconds: Annotated[float, "how long decoding and looking up took"]
    matches: Annotated[list[Hit], "the first matches, highest combined score first"]


class OutOfTime(CopyscopeError):
    """A look-up took longer than allowed."""


def answer(
    index: Index,
    body: bytes,
    max_pixels: int,
    k: int,
    local: bool,
    rate: float,
    *,
    max_aspect: float = math.inf,
    seconds: float = math.inf,
) -> Answer:
    """Look an image up in an index, within bounds of size and time.

    Args:
        index: the index.
        body: bytes of the image file.
        max_pixels: of the image, compared with the header before pixels are decoded.
        k: matches.
        local: look at windows too.
        rate: false-alarm rate, 0 to 1.
        max_aspect: longer side over shorter one, likewise compared with the header.
        seconds: looked at between the steps and blocks of the work.

    Raises:
        ImageError: the image cannot be read or is too large.
        OutOfTime: the time is over.
    """
    began = time.perf_counter()

    def clock(label: str = "", done: int = 0, total: int = 0) -> None:
        if time.perf_counter() - began > seconds:
            raise OutOfTime(
                f"There was no answer within {seconds:g} seconds.\nSend a smaller image, or allow more time"
            )

    if size := size_of(body):
        width, height = size
        if width * height > max_pixels:
            raise ImageError(f"too large: {width} x {height} pixels")
        if max(size) > max_aspect * max(1, min(size)):
            raise ImageError(f"too large: {width} x {height} pixels are more elongated than {max_aspect:g} : 1")
    picture = images.decode(body, max_pixels)
    clock()
    about = index.summary()
    # The requests share the processors: one thread each. What would tell progress tells when time is over.
    (hits,) = index.match([picture], k, local=local, workers=1, progress=clock)
    clock()
    best = hits[0] if hits else None
    p_value = best.p_value if best else None
    # No p-value is smaller than this.
    smallest = 1 / (about["calibration"]["n"] + 1)
    copy = is_copy(hits, rate)
    # Few calibration images tell nothing at a low rate but that the image is there.
    known = copy or best is None or rate >= smallest
    return Answer(
        SCHEMA,
        copy if known else None,
        bool(best and best.identical),
        is_blank(picture),
        p_value,
        best.combined if best else None,
        rate,
        local,
        about["n"],
        about["protocol"],
        round(time.perf_counter() - began, 4),
        hits,
    )
