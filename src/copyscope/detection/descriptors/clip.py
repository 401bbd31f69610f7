"""CLIP image and text embeddings (Radford et al. 2021) from a local transformers model folder."""

from __future__ import annotations

import dataclasses
import functools
import hashlib
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from copyscope.errors import InputError, MissingExtra
from copyscope.model_folders import refuse_code

from . import Descriptor, Image, _device, _onnx


@dataclasses.dataclass(frozen=True)
class Clip(Descriptor):
    """CLIP image embeddings of a local model folder, by the model's own preprocessing; nothing is downloaded.

    Source: Radford et al. 2021, *Learning Transferable Visual Models From Natural Language Supervision* (arXiv
    2103.00020).

    Args:
        model: path of the folder as `save_pretrained` writes it: config.json, weights, tokenizer,
            preprocessor_config.json.
    """

    weight_files: ClassVar[tuple[str, ...]] = ("model",)

    model: str

    @property
    def dim(self) -> int:
        """Length of the joint embedding."""
        return int(_load(self.model, _device.torch_device())[0].config.projection_dim)

    def describe(self, images: list[Image]) -> NDArray[np.float32]:
        """CLIP image vectors; see `Descriptor.describe`."""
        device = _device.torch_device()
        import torch

        model, processor = _load(self.model, device)

        def run(pixels: NDArray[np.float32]) -> NDArray[np.float32]:
            with torch.inference_mode():
                return _tensor(model.get_image_features(pixel_values=torch.from_numpy(pixels).to(device)))

        prepared = [
            np.asarray(processor.image_processor(images=[image], return_tensors="np")["pixel_values"][0])
            for image in images
        ]
        # One at a time on a processor: a matrix product over a batch may round a vector differently than alone.
        return _onnx.unit(_device.batched(prepared, device, run))

    def describe_text(self, texts: list[str]) -> NDArray[np.float32]:
        """CLIP text vectors [n dim], unit length, in the space of the images; texts are cut at the model's limit."""
        device = _device.torch_device()
        import torch

        model, processor = _load(self.model, device)
        with torch.inference_mode():
            found = [
                _tensor(
                    model.get_text_features(
                        **processor.tokenizer([text], truncation=True, return_tensors="pt").to(device)
                    )
                )
                for text in texts
            ]
        return _onnx.unit(np.concatenate(found))

    @property
    def device(self) -> str:
        """Device of torch."""
        return _device.torch_device()

    def fingerprint(self) -> str:
        """Digest over the files of the model folder, and the kind of device."""
        digest = hashlib.sha256()
        for path in sorted(Path(self.model).glob("*")):
            if path.suffix in {".json", ".safetensors", ".txt"}:
                digest.update(path.name.encode() + bytes.fromhex(_onnx.sha256(path)))
        return _device.with_device(digest.hexdigest(), self.device)


@functools.cache
def _load(folder: str, device: str) -> tuple[Any, Any]:
    try:
        from transformers import CLIPModel, CLIPProcessor
    except ImportError:
        raise MissingExtra("The descriptor 'clip'", "transformers", "diffusion") from None
    if not (Path(folder) / "config.json").is_file():
        raise InputError(f"No CLIP model in {folder}.\nGive a local folder with config.json and safetensors weights")
    refuse_code(folder)
    try:
        model = CLIPModel.from_pretrained(folder, local_files_only=True, use_safetensors=True)
        processor = CLIPProcessor.from_pretrained(folder, local_files_only=True)
    except (OSError, ValueError) as error:
        raise InputError(
            f"Cannot load the CLIP model in {folder}: {str(error).splitlines()[0]}.\n"
            "It must hold safetensors weights, a tokenizer and preprocessor_config.json"
        ) from None
    return model.eval().to(device), processor  # type: ignore[no-untyped-call]


def _tensor(output: Any) -> NDArray[np.float32]:
    """Features [1 d]; newer transformers wrap them in an output object."""
    features = getattr(output, "pooler_output", output)
    return np.asarray(features.cpu().numpy(), dtype=np.float32)
