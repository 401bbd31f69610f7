"""Text-to-image pipelines of diffusers in local folders: loading, text, LoRA. Nothing is downloaded or unpickled."""

from __future__ import annotations

import contextlib
import inspect
import logging
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from copyscope.documents import read_json
from copyscope.errors import InputError, MissingExtra
from copyscope.model_folders import refuse_code

NETWORKS = {
    "StableDiffusionPipeline": "unet",
    "StableDiffusionXLPipeline": "unet",
    "StableDiffusion3Pipeline": "transformer",
    "FluxPipeline": "transformer",
}
"""Supported pipeline class -> its part that denoises."""
IMAGE_TO_IMAGE = "Img2Img"
"""What the class of the pipeline that starts from an image has in its name besides."""
INDEX = "model_index.json"
LORA = "pytorch_lora_weights.safetensors"
PROJECTIONS = ("to_q", "to_k", "to_v", "to_out.0")


def kind(folder: Path) -> str:
    """Class name of the pipeline in a folder.

    Raises:
        InputError: there is none, or none that is supported.
    """
    supported = f"Name a local diffusers folder of one of: {', '.join(NETWORKS)}"
    try:
        found = read_json(folder / INDEX)["_class_name"]
    except (InputError, KeyError):
        raise InputError(f"{folder} is no pipeline: it has no {INDEX}.\n{supported}") from None
    if not isinstance(found, str) or found not in NETWORKS:
        raise InputError(f"{folder} is a {found!s:.100}, which cannot be trained here.\n{supported}")
    return str(found)


def family(pipeline: Any) -> str:
    """Class name of a pipeline's text-to-image class in diffusers, a key of NETWORKS; "" where it is of no family.

    Its own class, one that it inherits from, or the one beside that starts from an image.
    """
    kind = _supported(pipeline)
    return "" if kind is None else kind.__name__.replace(IMAGE_TO_IMAGE, "")


def from_image(pipeline: Any) -> bool:
    """Whether a pipeline is of a family, and starts from an image."""
    kind = _supported(pipeline)
    return kind is not None and IMAGE_TO_IMAGE in kind.__name__


def is_pipeline(made_by: Any) -> bool:
    """Whether an object is a pipeline of diffusers, of whatever family."""
    return any(kind.__name__ == "DiffusionPipeline" and is_of_diffusers(kind) for kind in type(made_by).__mro__)


def takes_prompt(made_by: Any) -> bool:
    """Whether an object, no function, has calls with an argument `prompt`."""
    own = any("__call__" in vars(kind) for kind in type(made_by).__mro__ if kind.__module__ != "builtins")
    return own and "prompt" in call_signature(made_by).parameters


def call_signature(pipeline: Any) -> inspect.Signature:
    """Signature of a pipeline's call; where that only hands arguments on (*args, **kwargs), the one it overrides."""
    for kind in type(pipeline).__mro__:
        if "__call__" in vars(kind):
            signature = inspect.signature(kind.__call__.__get__(pipeline))
            if "prompt" in signature.parameters:
                return signature
    return inspect.signature(pipeline)


def named(signature: inspect.Signature, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> dict[str, Any]:
    """Arguments of a call by name.

    Raises:
        TypeError: as the call itself would.
    """
    found: dict[str, Any] = dict(signature.bind(*args, **kwargs).arguments)
    for name, parameter in signature.parameters.items():
        if parameter.kind is inspect.Parameter.VAR_KEYWORD:
            found |= found.pop(name, {})
    return found


def _supported(pipeline: Any) -> type | None:
    """The nearest class of diffusers that a pipeline is or inherits from, and whose family is one of NETWORKS."""
    for kind in type(pipeline).__mro__:
        if is_of_diffusers(kind) and kind.__name__.replace(IMAGE_TO_IMAGE, "") in NETWORKS:
            return kind
    return None


def is_of_diffusers(kind: type) -> bool:
    """Whether a class is one of diffusers itself, none derived from it."""
    return kind.__module__.partition(".")[0] == "diffusers"


def load(folder: Path, precision: torch.dtype) -> Any:
    """Load the pipeline in a folder, in evaluation mode, on the CPU; a half-precision variant where there is no other.

    Weights are cast to the precision, but those of the VAE to float32: in half of it, that of SDXL overflows.

    Raises:
        InputError: the folder cannot be loaded.
    """
    refuse_code(folder)
    network = folder / NETWORKS[kind(folder)]
    names = [path.name.removesuffix(".safetensors").split(".") for path in network.glob("*.safetensors")]
    variants = {name[1].partition("-")[0] for name in names if len(name) > 1}
    plain = any(len(name) == 1 for name in names)
    with quiet():
        from diffusers import DiffusionPipeline

        try:
            return DiffusionPipeline.from_pretrained(  # type: ignore[no-untyped-call]
                str(folder),
                local_files_only=True,
                use_safetensors=True,
                torch_dtype={"vae": torch.float32, "default": precision},
                variant=min(variants) if variants and not plain else None,
            )
        except (OSError, ValueError, RuntimeError, AttributeError, ImportError) as error:
            raise InputError(
                f"The pipeline in {folder} cannot be loaded: {str(error).splitlines()[0]}.\n"
                "It must be whole, with all weights in safetensors; save it again with save_pretrained"
            ) from None


def encode_text(pipeline: Any, caption: str, device: torch.device) -> tuple[Tensor, Tensor | None]:
    """States of a caption's tokens [1 t d] and, where the network wants it, its pooled vector [1 p].

    As the pipeline itself does; "" is the null caption of its guidance, which for SDXL may be zeros.
    """
    name = family(pipeline)
    text: Tensor
    pooled: Tensor | None = None
    with quiet(), torch.no_grad():
        if name == "StableDiffusionPipeline":
            text = pipeline.encode_prompt(caption, device, 1, False)[0]
        elif name == "FluxPipeline":
            text, pooled, _ = pipeline.encode_prompt(caption, caption, device=device)
        else:
            thrice = [caption] * (3 if name == "StableDiffusion3Pipeline" else 2)
            text, _, pooled, _ = pipeline.encode_prompt(*thrice, device=device, do_classifier_free_guidance=False)
        if not caption and getattr(pipeline.config, "force_zeros_for_empty_prompt", False):
            text, pooled = torch.zeros_like(text), None if pooled is None else torch.zeros_like(pooled)
    return text.float(), None if pooled is None else pooled.float()


def add_lora(network: nn.Module, rank: int, alpha: int, seed: int) -> None:
    """Add low-rank adapters (Hu et al. 2021) to the attention projections; from now on only they require gradients.

    Args:
        network: U-Net or transformer, changed in place.
        rank: of the adapters.
        alpha: scale times rank.
        seed: of the first weights.

    Raises:
        MissingExtra: peft is not installed.
    """
    try:
        from peft import LoraConfig
    except ImportError:
        raise MissingExtra("A LoRA", "peft", "diffusion") from None
    options = LoraConfig(r=rank, lora_alpha=alpha, init_lora_weights="gaussian", target_modules=list(PROJECTIONS))
    with quiet(), torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network.add_adapter(options)  # type: ignore[operator]
    for parameter in network.parameters():
        if parameter.requires_grad:
            parameter.data = parameter.data.float()


def save_lora(pipeline: Any, folder: Path) -> None:
    """Write the adapters as `pipeline.load_lora_weights(folder)` reads them, rank and alpha with them."""
    from diffusers.utils.state_dict_utils import convert_state_dict_to_diffusers
    from peft import get_peft_model_state_dict

    name = NETWORKS[family(pipeline)]
    network = getattr(pipeline, name)
    state = get_peft_model_state_dict(network)
    if name == "unet":
        state = convert_state_dict_to_diffusers(state)  # type: ignore[no-untyped-call]
    options = network.peft_config["default"].to_dict()
    layers = {f"{name}_lora_layers": state, f"{name}_lora_adapter_metadata": options}
    with quiet():
        pipeline.save_lora_weights(str(folder), safe_serialization=True, **layers)


def load_lora(pipeline: Any, folder: Path) -> None:
    """Load the weights that `save_lora` wrote into the adapters that `add_lora` made.

    Raises:
        InputError: they are of another model or damaged.
    """
    from diffusers.utils.state_dict_utils import convert_unet_state_dict_to_peft
    from peft import set_peft_model_state_dict
    from safetensors.torch import load_file

    name = NETWORKS[family(pipeline)]
    try:
        saved = load_file(folder / LORA)
        state = {key.removeprefix(f"{name}."): value for key, value in saved.items()}
        if name == "unet":
            state = convert_unet_state_dict_to_peft(state)  # type: ignore[no-untyped-call]
        with quiet():
            loaded: Any = set_peft_model_state_dict(getattr(pipeline, name), state)
        if loaded.unexpected_keys:
            raise RuntimeError(f"it has weights for {loaded.unexpected_keys[0]}")
    except (OSError, RuntimeError) as error:
        raise InputError(
            f"The LoRA in {folder} cannot be loaded: {str(error).splitlines()[0]}.\n"
            "Ask for the base model and the lora_rank that it was trained with"
        ) from None


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Keep progress bars, notes and warnings of diffusers and transformers off the terminal."""
    with warnings.catch_warnings(), contextlib.ExitStack() as after:
        warnings.simplefilter("ignore")
        for module in _loggers():
            after.callback(module.set_verbosity, module.get_verbosity())
            if module.is_progress_bar_enabled():
                after.callback(module.enable_progress_bar)
            module.set_verbosity(logging.CRITICAL)  # What is an error to them is an InputError of ours.
            module.disable_progress_bar()
        yield


def _loggers() -> list[Any]:
    try:
        from diffusers.utils import logging as of_diffusers
        from transformers.utils import logging as of_transformers
    except ImportError:
        raise MissingExtra("The model 'stable_diffusion'", "diffusers", "diffusion") from None
    return [of_diffusers, of_transformers]
