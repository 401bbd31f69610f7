"""Perceptual hash pHash by the library imagehash: the sign of low DCT frequencies against their median."""

from __future__ import annotations

import dataclasses
import importlib.metadata

import numpy as np
from numpy.typing import NDArray

from . import Descriptor, Image


@dataclasses.dataclass(frozen=True)
class Phash(Descriptor):
    """Perceptual hash pHash, side x side bits as +-1/sqrt(bits): inner product = 1 - 2 * hamming / bits.

    Source: Krawetz 2011, *Looks Like It*, as in the library imagehash.

    Args:
        side: bits a side, 2 or more (8 gives the usual 64-bit hash).
    """

    side: int = 8

    def __post_init__(self) -> None:
        if not 2 <= self.side <= 32:
            raise ValueError(f"side must be in 2..32, not {self.side}")

    @property
    def dim(self) -> int:
        """Number of bits."""
        return self.side**2

    def describe(self, images: list[Image]) -> NDArray[np.float32]:
        """Bits of pHash as vectors; see `Descriptor.describe`."""
        import imagehash
        from PIL import Image as Pillow

        bits = np.stack(
            [imagehash.phash(Pillow.fromarray(image), hash_size=self.side).hash.ravel() for image in images]
        )
        return np.where(bits, 1, -1).astype(np.float32) / np.float32(self.side)

    def fingerprint(self) -> str:
        """Version of imagehash."""
        return f"imagehash {importlib.metadata.version('imagehash')}"
