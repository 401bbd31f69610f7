"""SSCD distilled into a MobileNetV4: several times faster, a little less sure."""

from __future__ import annotations

import dataclasses

import numpy as np
from numpy.typing import NDArray

from . import Descriptor, Image, _device, _onnx


@dataclasses.dataclass(frozen=True)
class SscdDistilled(Descriptor):
    """The packaged MobileNetV4 student of sscd_disc_mixup; about five times faster on a CPU.

    size: the shorter side is resized to this many pixels, bilinear, aspect kept (256 intended).
    """

    size: int = 256

    def __post_init__(self) -> None:
        if self.size < 32:
            raise ValueError(f"size must be at least 32, not {self.size}")

    @property
    def dim(self) -> int:
        return 512

    def describe(self, images: list[Image]) -> NDArray[np.float32]:
        prepared = [_onnx.prepare(image, self.size, crop=0) for image in images]
        return _onnx.run(_onnx.packaged("sscd_distilled.onnx"), prepared)

    @property
    def device(self) -> str:
        return _device.onnx_device()

    def fingerprint(self) -> str:
        return _device.with_device(_onnx.sha256(_onnx.packaged("sscd_distilled.onnx")), self.device)
