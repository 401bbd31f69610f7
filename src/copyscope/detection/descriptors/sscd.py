"""SSCD, the field's copy descriptor, from packaged ONNX weights or the authors' TorchScript file.

Pizzi et al., *A Self-Supervised Descriptor for Image Copy Detection*, CVPR 2022.
"""

from __future__ import annotations

import dataclasses
import functools
import warnings
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from copyscope.errors import InputError

from . import Descriptor, Image, _device, _onnx

IMAGENET = (np.array([0.485, 0.456, 0.406], np.float32), np.array([0.229, 0.224, 0.225], np.float32))
HALF = (np.full(3, 0.5, np.float32), np.full(3, 0.5, np.float32))


@dataclasses.dataclass(frozen=True)
class Sscd(Descriptor):
    """SSCD ResNet-50: the packaged weights, or the authors' TorchScript file given as `weights`.

    Source: Pizzi et al. 2022, *A Self-Supervised Descriptor for Image Copy Detection* (CVPR).

    Args:
        weights: path of an authors' `*.torchscript.pt` (needs torch; TorchScript is code, which runs here: give one
            that you trust); "" = sscd_disc_mixup as packaged (int8 ONNX).
        size: the shorter side is resized to this many pixels, bilinear, aspect kept (the authors: 288).
        crop: side of the central square then cut out; 0 = none (the authors).
        square: resize to `size` x `size` instead, whatever the aspect (the authors' other choice, with 320).
        norm: "imagenet" (the authors) or "half": mean and deviation 0.5, as DCR feeds it.
    """

    weight_files: ClassVar[tuple[str, ...]] = ("weights",)

    weights: str = ""
    size: int = 288
    crop: int = 0
    square: bool = False
    norm: str = "imagenet"

    def __post_init__(self) -> None:
        if self.size < 32 or self.crop < 0 or self.crop > self.size:
            raise ValueError(f"size must be at least 32 and crop in 0..size, not {self.size} and {self.crop}")
        if self.norm not in ("imagenet", "half"):
            raise ValueError(f'norm must be "imagenet" or "half", not {self.norm!r}')

    @property
    def dim(self) -> int:
        """Length of the vectors: 512 for the packaged weights."""
        return 512 if not self.weights else _torchscript_dim(self.weights)

    def describe(self, images: list[Image]) -> NDArray[np.float32]:
        """SSCD vectors; see `Descriptor.describe`."""
        prepared = [_onnx.prepare(image, self.size, self.crop, self.square) for image in images]
        if self.weights:
            return self._torchscript(prepared)
        if self.norm == "half":
            # The packaged model normalises by ImageNet's statistics itself; this table makes that come out as
            # (x - 0.5) / 0.5, to within half a grey level of rounding.
            prepared = [
                np.take_along_axis(_HALF_TABLE, image.reshape(-1, 3), 0).reshape(image.shape) for image in prepared
            ]
        return _onnx.run(_onnx.packaged("sscd.onnx"), prepared)

    @property
    def device(self) -> str:
        """Device of torch for TorchScript, of ONNX Runtime for the packaged weights."""
        return _device.torch_device() if self.weights else _device.onnx_device()

    def fingerprint(self) -> str:
        """Digest of the weights, and the kind of device."""
        path = _weights_file(self.weights) if self.weights else _onnx.packaged("sscd.onnx")
        return _device.with_device(_onnx.sha256(path), self.device)

    def _torchscript(self, prepared: list[Image]) -> NDArray[np.float32]:
        device = _device.torch_device()
        import torch

        mean, deviation = IMAGENET if self.norm == "imagenet" else HALF
        model = _torchscript(self.weights, device)

        def run(images: NDArray[np.uint8]) -> NDArray[np.float32]:
            scaled = torch.from_numpy((images.astype(np.float32) / 255 - mean) / deviation).permute(0, 3, 1, 2)
            with torch.inference_mode():
                return np.asarray(model(scaled.to(device)).cpu().numpy())

        return _onnx.unit(_device.batched(prepared, device, run))


def _half_table() -> NDArray[np.uint8]:
    levels = np.arange(256, dtype=np.float32)[:, None] / 255
    mean, deviation = IMAGENET
    return np.rint(255 * (mean + deviation * (levels - 0.5) / 0.5)).astype(np.uint8)


_HALF_TABLE = _half_table()


@functools.cache
def _torchscript(weights: str, device: str) -> Any:
    import torch

    path = _weights_file(weights)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)  # TorchScript is what the authors publish
            return torch.jit.load(str(path), map_location=device).eval()  # type: ignore[no-untyped-call]
    except (RuntimeError, ValueError) as error:
        raise InputError(
            f"{weights} is not a TorchScript file ({str(error).splitlines()[0]}).\n"
            "Use the authors' *.torchscript.pt, not their *.classy.pt checkpoint"
        ) from None


def _weights_file(weights: str) -> Path:
    if not Path(weights).is_file():
        raise InputError(f"No SSCD weights at {weights}.\nGive the path of an authors' *.torchscript.pt file")
    return Path(weights)


@functools.cache
def _torchscript_dim(weights: str) -> int:
    device = _device.torch_device()
    import torch

    with torch.inference_mode():
        return int(_torchscript(weights, device)(torch.zeros(1, 3, 64, 64, device=device)).shape[1])
