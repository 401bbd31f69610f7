"""Caption images with a local image-to-text model such as BLIP (Li et al. 2022)."""

from __future__ import annotations

import dataclasses
import functools
import hashlib
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from copyscope.errors import InputError
from copyscope.imaging.images import Image
from copyscope.model_folders import refuse_code

from .encoder import quiet


@dataclasses.dataclass(frozen=True)
class Captioner:
    """Image captioning by a local image-to-text model of transformers, with its processor.

    Captions are drawn by nucleus sampling (Holtzman et al. 2020), as BLIP's authors do for varied captions.

    Attributes:
        folder: as `save_pretrained` writes it.
        device: where it computes.
        top_p: at each token, the likeliest tokens are drawn from that together have this probability.
        tokens: of a caption, at most.
    """

    folder: str
    device: str = "cpu"
    top_p: float = 0.9
    tokens: int = 30

    def caption(self, pictures: Sequence[Image], n: int = 1, *, seed: int = 0) -> list[list[str]]:
        """Caption pictures; some captions may be alike. They depend on the picture and `seed` alone.

        Args:
            pictures: uint8 [h w 3] each.
            n: captions of each.
            seed: of the draws.

        Raises:
            InputError: the folder holds no such model.
        """
        return [self._caption(picture, n, seed) for picture in pictures]

    def _caption(self, picture: Image, n: int, seed: int) -> list[str]:
        from transformers import LogitsProcessorList, TopPLogitsWarper

        model, processor = self._loaded
        digest = hashlib.sha256(np.ascontiguousarray(picture).tobytes()).digest()
        stream = np.random.SeedSequence([seed, int.from_bytes(digest)])
        inputs = processor(images=picture, return_tensors="pt").to(self.device)
        drawn = LogitsProcessorList(
            [TopPLogitsWarper(self.top_p), _Draw(int(stream.generate_state(1, np.uint64)[0] >> 1))]
        )
        # generate() draws from the global generator; what _Draw leaves it is certain, and the state is put back.
        with torch.inference_mode(), torch.random.fork_rng(devices=[]):
            found = model.generate(
                **inputs,
                do_sample=True,
                num_return_sequences=n,
                max_new_tokens=self.tokens,
                logits_processor=drawn,
                top_k=0,
                top_p=1.0,
                temperature=1.0,
                num_beams=1,
            )
        return [" ".join(text.split()) for text in processor.batch_decode(found, skip_special_tokens=True)]

    @functools.cached_property
    def _loaded(self) -> tuple[Any, Any]:
        from transformers import AutoModelForImageTextToText, AutoProcessor

        refuse_code(self.folder)
        try:
            with quiet():
                processor = AutoProcessor.from_pretrained(self.folder, local_files_only=True)  # type: ignore[no-untyped-call]
                model: Any = AutoModelForImageTextToText.from_pretrained(
                    self.folder, local_files_only=True, use_safetensors=True, dtype=torch.float32
                )
        except (OSError, ValueError) as error:
            raise InputError(
                f"{self.folder} holds no image-to-text model with its processor: {str(error).splitlines()[0]}.\n"
                "Name a folder that transformers' save_pretrained wrote, of BLIP for instance, with safetensors weights"
            ) from None
        return model.eval().to(self.device), processor


class _Draw:
    """Draws one token a sequence from the logits [n vocabulary], and makes it the only one that is left.

    The largest of logit + Gumbel noise is a draw from the softmax; with a generator of its own, on the CPU, it is the
    same on all devices.
    """

    def __init__(self, seed: int) -> None:
        self._generator = torch.Generator().manual_seed(seed)

    def __call__(self, tokens: torch.Tensor, logits: torch.Tensor) -> torch.Tensor:
        uniform = torch.rand(logits.shape, generator=self._generator, dtype=torch.float64)
        noise = -torch.log(-torch.log(uniform)).to(logits.device)
        best = (logits + noise).argmax(dim=-1, keepdim=True)
        return torch.full_like(logits, -torch.inf).scatter(-1, best, 0.0)
