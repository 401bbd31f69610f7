"""Device of the descriptors: the accelerator that ONNX Runtime and torch use, and batches of one size for it.

Where vectors are computed is no part of a descriptor's spec, but it moves their last digits, and those of a model in
int8 by more. So the device is part of the fingerprint: vectors of two devices are never mixed.
"""

from __future__ import annotations

import functools
import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from copyscope.errors import InputError, MissingExtra
from copyscope.machine import DEVICE

PROVIDERS = {
    "cuda": "CUDA",
    "rocm": "ROCM",
    "migraphx": "MIGraphX",
    "dml": "Dml",
    "openvino": "OpenVINO",
    "mps": "CoreML",
}
"""ONNX Runtime's providers by device. `auto` takes the first installed one, but not CoreML, which is in every build for
macOS, installed for this or not."""
TORCH = ("cuda", "mps", "xpu")
"""Devices that torch knows beside the CPU. A build of torch for ROCm calls its devices cuda, too."""
BATCH = 32
"""Images that a GPU gets at once. Always so many, the last one repeated, because kernels are chosen by the size of a
batch: an image's vector then does not depend on how many others there are."""


def wished() -> tuple[str, int]:
    """Device that the user asked for, name and number; ("auto", 0) if none.

    Raises:
        InputError: COPYSCOPE_DEVICE (`--device`) is no device's name.
    """
    text = os.environ.get(DEVICE, "").strip().lower() or "auto"
    found = re.fullmatch(r"([a-z]+)(?::(\d{1,3}))?", text)
    if not found or found[1] not in {"auto", "cpu", *PROVIDERS, *TORCH}:
        raise InputError(
            f"There is no device {text!r}.\nGive --device (in Python: os.environ['{DEVICE}']) auto, cpu, "
            f"{', '.join(PROVIDERS)} or xpu, with a number where there are several: cuda:1"
        )
    return found[1], int(found[2] or 0)


def option(device: str) -> str:
    """Option by which a person asks for a device."""
    return f"--device {device} (in Python: os.environ['{DEVICE}'] = '{device}')"


def onnx_device() -> str:
    """Device on which ONNX Runtime runs models: "cpu" if there is no other, "cuda:0".

    Raises:
        InputError: the device asked for is not one of this build of ONNX Runtime.
    """
    import onnxruntime

    name, number = wished()
    installed = set(onnxruntime.get_available_providers())
    there = [device for device, short in PROVIDERS.items() if f"{short}ExecutionProvider" in installed]
    if name == "auto":
        name = next((device for device in there if device != "mps"), "cpu")
    if name not in {"cpu", *there}:
        raise InputError(
            f"This build of ONNX Runtime cannot use {name}; it has: {', '.join(['cpu', *there])}.\n"
            "Install the build for your device in place of onnxruntime (onnxruntime-gpu, onnxruntime-openvino, "
            "onnxruntime-directml), or give " + option("cpu")
        )
    return name if name in ("cpu", "openvino", "mps") else f"{name}:{number}"


def torch_device() -> str:
    """Device on which torch runs descriptors, as torch writes it: "cpu", "cuda:0".

    Raises:
        MissingExtra: torch is not installed.
        InputError: the device asked for is not there.
    """
    try:
        import torch
    except ImportError:
        raise MissingExtra("A descriptor that runs in torch", "torch", "diffusion") from None

    name, number = wished()
    counts = {"cuda": torch.cuda.device_count(), "xpu": torch.xpu.device_count()}
    counts["mps"] = int(torch.backends.mps.is_available())
    if name == "auto":
        name = next((device for device in ("cuda", "xpu") if counts[device]), "cpu")
    # Torch calls the devices of ROCm cuda; it has none of the others.
    name = "cuda" if name in ("rocm", "migraphx") else name
    if name == "cpu":
        return name
    if number >= counts.get(name, 0):
        raise InputError(
            f"Torch finds no device {name}:{number}; it has: cpu"
            f"{''.join(f', {n} x {device}' for device, n in counts.items() if n)}.\n"
            f"Install the build of torch for your device, or give {option('cpu')}"
        )
    return f"{name}:{number}"


@functools.cache
def session(path: Path, device: str) -> Any:
    """ONNX Runtime session of the model at `path` on a device of `onnx_device`.

    On the CPU it has one intra-op thread: N callers in N threads are faster than N threads in one call.

    Raises:
        InputError: the device cannot be used: no driver, or no free memory.
    """
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    chosen: list[Any] = ["CPUExecutionProvider"]
    name, _, number = device.partition(":")
    if name != "cpu":
        chosen.insert(0, (f"{PROVIDERS[name]}ExecutionProvider", {"device_id": number} if number else {}))
    made = onnxruntime.InferenceSession(str(path), options, providers=chosen)
    # ONNX Runtime takes the CPU without a word to its caller where a provider cannot start.
    if name != "cpu" and made.get_providers()[0] == "CPUExecutionProvider":
        raise InputError(
            f"ONNX Runtime has the provider {PROVIDERS[name]} but cannot start it on {device}.\n"
            f"Check the driver, or give {option('cpu')}"
        )
    return made


def is_gpu(device: str) -> bool:
    """Whether a device computes beside the processor, which can decode meanwhile."""
    return device.partition(":")[0] not in ("cpu", "openvino")


def with_device(fingerprint: str, device: str) -> str:
    """Fingerprint of weights, with the kind of device where that is not the CPU."""
    kind = device.partition(":")[0]
    return fingerprint if kind == "cpu" else f"{fingerprint} on {kind}"


def batched(
    prepared: list[NDArray[Any]], device: str, run: Callable[[NDArray[Any]], NDArray[np.float32]], on_cpu: int = 1
) -> NDArray[np.float32]:
    """Run a model on images of several shapes: those of one shape together, on a GPU in batches of BATCH.

    Args:
        prepared: n arrays of any shapes, at least one.
        device: where the model runs; its number does not matter.
        run: arrays [k ...] of one shape -> vectors [k d].
        on_cpu: images in a batch, at most, on a processor; 1 unless the model gives the same bits for more.

    Returns:
        float32 [n d], in the order of `prepared`.
    """
    gpu = is_gpu(device)
    size = BATCH if gpu else on_cpu
    by_shape: dict[tuple[int, ...], list[int]] = {}
    for place, array in enumerate(prepared):
        by_shape.setdefault(array.shape, []).append(place)
    found: list[NDArray[np.float32] | None] = [None] * len(prepared)
    for places in by_shape.values():
        for start in range(0, len(places), size):
            some = places[start : start + size]
            filled = [*some, *[some[-1]] * (size - len(some) if gpu else 0)]
            vectors = run(np.stack([prepared[each] for each in filled]))
            for place, vector in zip(some, vectors, strict=False):
                found[place] = vector
    return np.stack(found)  # type: ignore[arg-type]
