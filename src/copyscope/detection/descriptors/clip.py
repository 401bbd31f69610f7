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

from . import Descriptor, Image, _onnx


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
        return int(_load(self.model)[0].config.projection_dim)

    def describe(self, images: list[Image]) -> NDArray[np.float32]:
        """CLIP image vectors; see `Descriptor.describe`."""
        import torch

        model, processor = _load(self.model)
        with torch.inference_mode():
            # One at a time: a matrix product over a batch may round an image's vector differently than alone.
            found = [
                _tensor(model.get_image_features(**processor.image_processor(images=[image], return_tensors="pt")))
                for image in images
            ]
        return _onnx.unit(np.concatenate(found))

    def describe_text(self, texts: list[str]) -> NDArray[np.float32]:
        """CLIP text vectors [n dim], unit length, in the space of the images; texts are cut at the model's limit."""
        import torch

        model, processor = _load(self.model)
        with torch.inference_mode():
            found = [
                _tensor(model.get_text_features(**processor.tokenizer([text], truncation=True, return_tensors="pt")))
                for text in texts
            ]
        return _onnx.unit(np.concatenate(found))

    def fingerprint(self) -> str:
        """sha256 over the files of the model folder."""
        digest = hashlib.sha256()
        for path in sorted(Path(self.model).glob("*")):
            if path.suffix in {".json", ".safetensors", ".txt"}:
                digest.update(path.name.encode() + bytes.fromhex(_onnx.sha256(path)))
        return digest.hexdigest()


@functools.cache
def _load(folder: str) -> tuple[Any, Any]:
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
    return model.eval(), processor  # type: ignore[no-untyped-call]


def _tensor(output: Any) -> NDArray[np.float32]:
    """Features [1 d]; newer transformers wrap them in an output object."""
    features = getattr(output, "pooler_output", output)
    return np.asarray(features.numpy(), dtype=np.float32)
