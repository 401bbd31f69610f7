"""PDQ, Meta's 256-bit perceptual hash, by the library pdqhash."""

from __future__ import annotations

import dataclasses
import importlib.metadata

import numpy as np
from numpy.typing import NDArray

from . import Descriptor, Image


@dataclasses.dataclass(frozen=True)
class Pdq(Descriptor):
    """PDQ hash, 256 bits as +-1/16: inner product = 1 - hamming / 128. Its authors' bound for alike is 31 bits."""

    @property
    def dim(self) -> int:
        return 256

    def describe(self, images: list[Image]) -> NDArray[np.float32]:
        import pdqhash

        bits = np.stack([pdqhash.compute(np.ascontiguousarray(image))[0] for image in images])
        return np.where(bits.astype(bool), 1, -1).astype(np.float32) / np.float32(16)

    def fingerprint(self) -> str:
        return f"pdqhash {importlib.metadata.version('pdqhash')}"
