"""Measures: one number about a training image: complexity of the picture, uniqueness of the caption.

They are the causes `explain` weighs against copying. One file a measure; `unit` says what the number counts. Picture
measures look at DCR's complexity view (shorter side to 224, middle 224 x 224), so that images of any size compare.
"""

from __future__ import annotations

import abc
import dataclasses
from typing import ClassVar

from copyscope.imaging.images import Image, centre_crop, resize_short
from copyscope.parts import Part

VIEW_SIZE = 224
"""Side in pixels of the complexity view."""


@dataclasses.dataclass(frozen=True, eq=False)
class Item:
    """One training image as the measures see it."""

    image: Image | None
    """The complexity view, uint8 [224 224 3]; None where the image was not read."""
    captions: list[str]
    """All its captions, possibly none."""
    shared: int = 0
    """How many other images of the corpus have one of its captions."""
    near_shared: int = 0
    """How many further images have nearly one of its captions; none of them is counted in `shared`."""


class Measure(Part, abc.ABC):
    """Item -> number. Depends on that item alone; NaN where there is nothing to measure."""

    unit: ClassVar[str]
    """What the number counts, e.g. "KiB"."""
    needs_image: ClassVar[bool]
    """Whether it looks at the picture: if not, no image need be read for it."""

    @abc.abstractmethod
    def measure(self, item: Item) -> float:
        """Measure one training image.

        Args:
            item: the image and its captions.

        Returns:
            The number, in the unit of the measure; NaN if it needs a picture or a caption that is not there.
        """


def complexity_view(image: Image) -> Image:
    """Complexity view of an image, the size at which DCR measures: shorter side to 224, then the middle 224 x 224.

    Args:
        image: uint8 [h w 3].

    Returns:
        uint8 [224 224 3], resized by the bilinear filter.

    Raises:
        ImageError: the image is too elongated to be resized so.
    """
    return centre_crop(resize_short(image, VIEW_SIZE), VIEW_SIZE)


SHELF = Measure
