"""Descriptors: functions from an image to a unit vector; the inner product of two is the similarity.

One file a descriptor. A descriptor owns its preprocessing (resize, crop, normalisation), so its spec says all that
moves its numbers.
"""

from __future__ import annotations

import abc

import numpy as np
from numpy.typing import NDArray

from copyscope.parts import Part

Image = NDArray[np.uint8]


class Descriptor(Part, abc.ABC):
    """Image -> unit vector. Constructors only store; weights load on first use. Safe to call from several threads."""

    @property
    @abc.abstractmethod
    def dim(self) -> int:
        """Length of the vectors."""

    @abc.abstractmethod
    def describe(self, images: list[Image]) -> NDArray[np.float32]:
        """Describe images by one vector each.

        An image's vector depends on that image alone, never on the others in the call.

        Args:
            images: n arrays uint8 [h w 3], RGB, of any size.

        Returns:
            float32 [n dim], unit length.
        """

    @property
    def device(self) -> str:
        """Device of `describe`: "cpu", "cuda:0". On a device, several threads decode ahead and batches are larger."""
        return "cpu"

    def fingerprint(self) -> str:
        """Whatever decides the vectors beside the spec: sha256 of the weights, a library's version, the kind of device.

        May load the weights.
        """
        return ""


SHELF = Descriptor
