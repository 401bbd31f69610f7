"""Prompts that generators write into their images."""

from __future__ import annotations

import io
import json

import pytest
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from copyscope.data.captions.embedded import made_with, parameters
from copyscope.data.corpus import Corpus
from tests.data.test_shards import write_tar
from tests.pictures import picture, write

A1111 = (
    "a fox, <lora:x:0.7>\nin snow\nNegative prompt: blurry, Steps\n"
    'Steps: 20, Sampler: DPM++ 2M Karras, CFG scale: 7, Seed: 123, Model hash: abc, Model: dream, TI: "a: b, c"'
)
RIGHT = {"prompt": "a fox, <lora:x:0.7>\nin snow", "seed": 123, "model": "dream", "sampler": "DPM++ 2M Karras"}
GRAPH = {
    "3": {"class_type": "KSampler", "inputs": {
        "seed": 5, "sampler_name": "euler", "model": ["10", 0], "positive": ["12", 0], "negative": ["7", 0]}},
    "4": {"class_type": "CheckpointLoaderSimple", "inputs": {"ckpt_name": "v1.safetensors"}},
    "10": {"class_type": "LoraLoader", "inputs": {"model": ["4", 0], "clip": ["4", 1], "lora_name": "l"}},
    "6": {"class_type": "CLIPTextEncode", "inputs": {"text": ["20", 0], "clip": ["10", 1]}},
    "7": {"class_type": "CLIPTextEncode", "inputs": {"text": "ugly", "clip": ["10", 1]}},
    "12": {"class_type": "ControlNetApply", "inputs": {"conditioning": ["6", 0], "strength": 1.0}},
    "20": {"class_type": "PrimitiveString", "inputs": {"value": "a hen"}},
}  # fmt: skip
FLUX = {
    "1": {"class_type": "SamplerCustomAdvanced", "inputs": {
        "noise": ["2", 0], "guider": ["3", 0], "sampler": ["4", 0], "sigmas": ["9", 0]}},
    "2": {"class_type": "RandomNoise", "inputs": {"noise_seed": 9}},
    "3": {"class_type": "BasicGuider", "inputs": {"model": ["5", 0], "conditioning": ["6", 0]}},
    "4": {"class_type": "KSamplerSelect", "inputs": {"sampler_name": "heun"}},
    "5": {"class_type": "UNETLoader", "inputs": {"unet_name": "flux.safetensors"}},
    "6": {"class_type": "FluxGuidance", "inputs": {"guidance": 3.5, "conditioning": ["7", 0]}},
    "7": {"class_type": "CLIPTextEncodeFlux", "inputs": {"clip_l": "short", "t5xxl": "a long hen", "guidance": 3.5}},
}  # fmt: skip
LOOP = {"1": {"class_type": "KSampler", "inputs": {"positive": ["2", 0], "seed": 1}},
        "2": {"class_type": "X", "inputs": {"conditioning": ["2", 0]}}}  # fmt: skip
INVOKE = {"positive_prompt": "an owl", "seed": 7, "model": {"name": "sdxl", "hash": "h"}, "scheduler": "euler_a"}
OLD_INVOKE = {
    "model_weights": "sd-1.5",
    "image": {"prompt": [{"prompt": "an owl", "weight": 1}], "seed": 7, "sampler": "lms"},
}


def png(texts, form="tEXt", number=0):
    info = PngInfo()
    for key, text in texts.items():
        if form == "iTXt":
            info.add_itxt(key, text)
        else:
            info.add_text(key, text, zip=form == "zTXt")
    file = io.BytesIO()
    with Image.open(io.BytesIO(picture(number))) as image:
        image.save(file, "PNG", pnginfo=info)
    return file.getvalue()


def with_exif(comment: bytes, format: str, tag: int = 0x9286):
    exif = Image.Exif()
    if tag == 0x9286:
        exif.get_ifd(0x8769)[tag] = comment
    else:
        exif[tag] = comment
    file = io.BytesIO()
    with Image.open(io.BytesIO(picture())) as image:
        image.save(file, format, exif=exif)
    return file.getvalue()


CASES = {
    "a1111": (png({"parameters": A1111}), RIGHT),
    "a1111 zTXt": (png({"parameters": A1111}, "zTXt"), RIGHT),
    "a1111 iTXt": (png({"parameters": A1111}, "iTXt"), RIGHT),
    "a1111 jpeg": (with_exif(b"UNICODE\0" + A1111.encode("utf-16-be"), "JPEG"), RIGHT),
    "a1111 jpeg other order": (with_exif(b"UNICODE\0" + A1111.encode("utf-16-le"), "JPEG"), RIGHT),
    "a1111 webp": (with_exif(b"UNICODE\0" + A1111.encode("utf-16-be"), "WEBP"), RIGHT),
    "ascii": (with_exif(b"ASCII\0\0\0" + A1111.encode(), "JPEG"), RIGHT),
    "comfy": (png({"prompt": json.dumps(GRAPH), "workflow": "{}"}),
              {"prompt": "a hen", "seed": 5, "sampler": "euler", "model": "v1.safetensors"}),
    "comfy flux": (png({"prompt": json.dumps(FLUX)}),
                   {"prompt": "a long hen", "seed": 9, "sampler": "heun", "model": "flux.safetensors"}),
    "comfy webp": (with_exif(b"prompt:" + json.dumps(GRAPH).encode(), "WEBP", 0x010F),
                   {"prompt": "a hen", "seed": 5, "sampler": "euler", "model": "v1.safetensors"}),
    "comfy loop": (png({"prompt": json.dumps(LOOP)}), {}),
    "invoke": (png({"invokeai_metadata": json.dumps(INVOKE)}),
               {"prompt": "an owl", "seed": 7, "model": "sdxl", "sampler": "euler_a"}),
    "invoke 2": (png({"sd-metadata": json.dumps(OLD_INVOKE)}),
                 {"prompt": "an owl", "seed": 7, "model": "sd-1.5", "sampler": "lms"}),
    "invoke 1": (png({"Dream": '"an owl" -s 50 -S 7 -W 8 -C 7.5 -A k_lms'}),
                 {"prompt": "an owl", "seed": 7, "sampler": "k_lms"}),
    "novel": (png({"Description": "an owl", "Source": "NAI v3", "Comment": '{"seed": 7, "sampler": "k_e"}'}),
              {"prompt": "an owl", "seed": 7, "model": "NAI v3", "sampler": "k_e"}),
    "plain keys": (png({"prompt": "an owl", "seed": "7", "model_id": "x/y", "scheduler": "DDIM"}),
                   {"prompt": "an owl", "seed": 7, "model": "x/y", "sampler": "DDIM"}),
    "others": (png({"Comment": "made with a tool", "Software": "x", "Title": "prompt"}), {}),
    "none": (picture(), {}),
    "no image": (b"", {}),
    "cut": (png({"parameters": A1111})[:60], {}),
}  # fmt: skip


@pytest.mark.parametrize("name", CASES)
def test_what_an_image_was_made_with(name):
    content, right = CASES[name]
    assert made_with(io.BytesIO(content)) == right
    assert made_with(io.BytesIO(b"xx" + content + b"yy"), 2, len(content)) == right


def test_a_text_without_end_is_none():
    assert made_with(io.BytesIO(png({"parameters": "x" * 9_000_000 + "\n" + A1111}, "zTXt"))) == {}


def test_damage_of_any_byte_raises_nothing():
    for name in ("a1111 jpeg", "comfy webp", "a1111 zTXt"):
        content = CASES[name][0]
        for at in range(0, min(len(content), 400), 3):
            made_with(io.BytesIO(content[:at] + b"\xff\xfe" + content[at + 2 :]))


def test_columns_of_a_generated_set(tmp_path):
    write(tmp_path, {"a.png": CASES["a1111"][0], "b.jpg": CASES["ascii"][0], "c.png": picture(9), "c.txt": "mine"})
    corpus = Corpus.open(tmp_path)
    assert corpus.captions == [[RIGHT["prompt"]], [RIGHT["prompt"]], ["mine"]]
    assert corpus.prompts[:2] == [RIGHT["prompt"]] * 2
    for name in ("seed", "model", "sampler"):
        assert corpus.table[name].to_pylist() == [RIGHT[name], RIGHT[name], None]
    assert corpus.account.sources == {"inside the image": 2, "NAME.txt": 1}


def test_a_caption_in_a_file_goes_before_the_prompt_in_the_image(tmp_path):
    corpus = Corpus.open(write(tmp_path, {"a.png": CASES["a1111"][0], "a.txt": "mine"}))
    assert (corpus.captions, corpus.prompts) == ([["mine"]], [RIGHT["prompt"]])


def test_the_text_that_automatic1111_writes_beside_an_image(tmp_path):
    corpus = Corpus.open(write(tmp_path, {"a.png": picture(), "a.txt": A1111}))
    assert (corpus.captions, corpus.table["seed"].to_pylist()) == ([[RIGHT["prompt"]]], [123])


def test_prompts_within_a_tar(tmp_path):
    write_tar(tmp_path / "a.tar", {"a.png": CASES["comfy"][0], "b.png": picture(1)})
    corpus = Corpus.open(tmp_path / "a.tar")
    assert (corpus.captions, corpus.table["seed"].to_pylist()) == ([["a hen"], []], [5, None])


def test_text_that_only_looks_like_parameters_is_none():
    assert parameters("Steps: carved in stone") == {}
    assert parameters("") == {}
