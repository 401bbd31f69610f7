"""Tiny models built from configuration and saved to disk, as stand-ins for the real ones of the same classes."""

from __future__ import annotations

import json
import warnings
from pathlib import Path


def tiny_clip(folder: Path) -> Path:
    """A CLIP of random weights: `save_pretrained` layout, tokenizer and image processor included."""
    import torch
    from transformers import CLIPConfig, CLIPImageProcessor, CLIPModel, CLIPProcessor, CLIPTokenizer

    torch.manual_seed(0)
    text = {"vocab_size": 514, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2}
    text |= {"num_attention_heads": 2, "max_position_embeddings": 20, "bos_token_id": 512, "eos_token_id": 513}
    vision = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
    vision |= {"image_size": 32, "patch_size": 8}
    CLIPModel(CLIPConfig(text_config=text, vision_config=vision, projection_dim=16)).save_pretrained(folder)
    letters = [chr(code) for code in range(256)] + [f"{chr(code)}</w>" for code in range(256)]
    vocabulary = {token: index for index, token in enumerate([*letters, "<|startoftext|>", "<|endoftext|>"])}
    (folder / "vocab.json").write_text(json.dumps(vocabulary))
    (folder / "merges.txt").write_text("#version: 0.2\n")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        tokenizer = CLIPTokenizer(str(folder / "vocab.json"), str(folder / "merges.txt"), model_max_length=20)
        processor = CLIPImageProcessor(size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32})
        CLIPProcessor(processor, tokenizer).save_pretrained(folder)
    return folder


def tiny_torchscript(path: Path, dim: int = 24) -> Path:
    """A TorchScript file with the interface of the authors' SSCD ones: float [n 3 h w], any size -> [n dim]."""
    import torch

    torch.manual_seed(0)
    layers = [torch.nn.Conv2d(3, 16, 5, 4), torch.nn.ReLU(), torch.nn.AdaptiveAvgPool2d(3), torch.nn.Flatten()]
    model = torch.nn.Sequential(*layers, torch.nn.Linear(144, dim)).eval()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        torch.jit.trace(model, torch.zeros(1, 3, 64, 64)).save(str(path))
    return path
