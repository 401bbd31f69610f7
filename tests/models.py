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


def tiny_stable_diffusion(folder: Path, kind: str = "sd1") -> Path:
    """A text-to-image pipeline of random weights, 32 px: sd1 (epsilon), sd2 (v-prediction), sdxl, sd3 or flux."""
    import diffusers
    import torch

    from copyscope.diffusion.models import _pipelines

    torch.manual_seed(0)
    with _pipelines.quiet():
        if kind in {"sd1", "sd2", "sdxl"}:
            trained = {"unet": _tiny_unet(kind)}
            options = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}
            options |= {"prediction_type": "v_prediction" if kind == "sd2" else "epsilon", "clip_sample": False}
            scheduler = diffusers.DDIMScheduler(**options, steps_offset=1, set_alpha_to_one=False)
        else:
            trained = {"transformer": _tiny_transformer(kind)}
            scheduler = diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0, use_dynamic_shifting=kind == "flux")
        parts = trained | {"vae": _tiny_vae(kind), "scheduler": scheduler}
        parts |= _tiny_texts(folder.with_name(f"{folder.name}-clip"), kind)
        classes = {"sdxl": "StableDiffusionXLPipeline", "sd3": "StableDiffusion3Pipeline", "flux": "FluxPipeline"}
        if kind in {"sd1", "sd2"}:
            parts |= {"safety_checker": None, "feature_extractor": None, "requires_safety_checker": False}
        getattr(diffusers, classes.get(kind, "StableDiffusionPipeline"))(**parts).save_pretrained(folder)
    return folder


def _tiny_vae(kind: str):
    from diffusers import AutoencoderKL

    flow = {"shift_factor": 0.06, "use_quant_conv": False, "use_post_quant_conv": False}
    return AutoencoderKL(
        block_out_channels=(8, 16),
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        latent_channels=16 if kind in {"sd3", "flux"} else 4,
        norm_num_groups=4,
        sample_size=32,
        scaling_factor=0.8,
        **(flow if kind in {"sd3", "flux"} else {}),
    )


def _tiny_unet(kind: str):
    from diffusers import UNet2DConditionModel

    added = {"addition_embed_type": "text_time", "addition_time_embed_dim": 8, "transformer_layers_per_block": (1, 2)}
    added |= {"projection_class_embeddings_input_dim": 6 * 8 + 24}
    return UNet2DConditionModel(
        sample_size=16,
        block_out_channels=(16, 32),
        layers_per_block=1,
        norm_num_groups=8,
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
        cross_attention_dim=64 if kind == "sdxl" else 32,
        attention_head_dim=8 if kind == "sd1" else (2, 4),
        use_linear_projection=kind != "sd1",
        **(added if kind == "sdxl" else {}),
    )


def _tiny_transformer(kind: str):
    import diffusers

    if kind == "sd3":
        return diffusers.SD3Transformer2DModel(
            sample_size=16,
            in_channels=16,
            num_layers=2,
            attention_head_dim=8,
            num_attention_heads=2,
            caption_projection_dim=16,
            joint_attention_dim=64,
            pooled_projection_dim=48,
            pos_embed_max_size=16,
        )
    return diffusers.FluxTransformer2DModel(
        in_channels=64,
        num_layers=1,
        num_single_layers=1,
        attention_head_dim=16,
        num_attention_heads=2,
        joint_attention_dim=32,
        pooled_projection_dim=32,
        axes_dims_rope=(4, 6, 6),
        guidance_embeds=True,
    )


def _tiny_texts(folder: Path, kind: str) -> dict:
    """Tokenizers and text encoders, each under the name it has in the pipeline."""
    import transformers as made_by

    tokenizers = tiny_clip(folder)

    def clip(number: str, projects: bool) -> dict:
        config = {"vocab_size": 514, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2}
        config |= {"num_attention_heads": 2, "max_position_embeddings": 20, "bos_token_id": 512, "eos_token_id": 513}
        config |= {"projection_dim": 24, "hidden_act": "gelu" if kind == "sd2" else "quick_gelu"}
        cls = made_by.CLIPTextModelWithProjection if projects else made_by.CLIPTextModel
        tokenizer = made_by.CLIPTokenizer.from_pretrained(tokenizers)
        return {f"text_encoder{number}": cls(made_by.CLIPTextConfig(**config)), f"tokenizer{number}": tokenizer}

    def t5(number: str, dim: int) -> dict:
        pieces = [(piece, 0.0) for piece in ("<pad>", "</s>", "<unk>")] + [("▁", -2.0)]
        pieces += [(chr(code), -3.0) for code in range(97, 123)]
        config = made_by.T5Config(vocab_size=64, d_model=dim, d_kv=8, d_ff=32, num_layers=1, num_heads=2)
        tokenizer = made_by.T5TokenizerFast(vocab=pieces, extra_ids=0)
        return {f"text_encoder{number}": made_by.T5EncoderModel(config), f"tokenizer{number}": tokenizer}

    found = clip("", projects=kind == "sd3")
    if kind in {"sdxl", "sd3"}:
        found |= clip("_2", projects=True)
    return found | (t5("_3", 64) if kind == "sd3" else t5("_2", 32) if kind == "flux" else {})


def tiny_blip(folder: Path) -> Path:
    """A BLIP captioner of random weights that knows a dozen words: `save_pretrained` layout, with its processor."""
    import torch
    from transformers import BertTokenizer, BlipConfig, BlipForConditionalGeneration, BlipProcessor
    from transformers.models.blip.image_processing_pil_blip import BlipImageProcessorPil

    torch.manual_seed(0)
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "[DEC]"]
    words += ["a", "red", "blue", "disc", "square", "on", "sand", "snow", "with", "and"]
    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
    text = sizes | {"vocab_size": len(words), "max_position_embeddings": 40, "encoder_hidden_size": 32}
    text |= {"pad_token_id": 0, "bos_token_id": 5, "eos_token_id": 2, "sep_token_id": 3, "initializer_range": 0.5}
    vision = sizes | {"image_size": 32, "patch_size": 8, "initializer_range": 0.5}
    config = BlipConfig(text_config=text, vision_config=vision, projection_dim=16)
    BlipForConditionalGeneration(config).save_pretrained(folder)
    (folder / "vocab.txt").write_text("\n".join(words))
    tokenizer = BertTokenizer(str(folder / "vocab.txt"), additional_special_tokens=["[DEC]"])
    BlipProcessor(BlipImageProcessorPil(size={"height": 32, "width": 32}), tokenizer).save_pretrained(folder)
    return folder
