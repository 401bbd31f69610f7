"""What an index says of one image that came as bytes: the answer of the service."""

from __future__ import annotations

import dataclasses
import time

from . import images
from .copying.hits import Hit, is_copy
from .copying.index import Index

SCHEMA = "copyscope.check/1"


@dataclasses.dataclass(frozen=True)
class Answer:
    """What is said of one image.

    copy: it is a training image itself, or its p-value is at most `rate`; null where so few calibration images cannot
    tell at that rate. identical: it is the first match itself. blank: it is of one colour to within noise, and copies
    nothing. p_value, combined: those of the best match; null where there is none.
    """

    schema: str
    copy: bool | None
    identical: bool
    blank: bool
    p_value: float | None
    combined: float | None
    rate: float
    local: bool
    n_index: int
    protocol: str
    seconds: float
    matches: list[Hit]


def answer(index: Index, body: bytes, max_pixels: int, k: int, local: bool, rate: float) -> Answer:
    """What the index says of the image in `body`. Raises ImageError where it cannot be read."""
    began = time.perf_counter()
    picture = images.decode(body, max_pixels)
    about = index.summary()
    # The requests share the processors: one thread each.
    (hits,) = index.match([picture], k, local=local, workers=1)
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
        images.is_blank(picture),
        p_value,
        best.combined if best else None,
        rate,
        local,
        about["n"],
        about["protocol"],
        round(time.perf_counter() - began, 4),
        hits,
    )
