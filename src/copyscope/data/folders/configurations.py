"""Folders that the configurations of trainers name: sd-scripts (kohya), ai-toolkit, OneTrainer, SimpleTuner."""

from __future__ import annotations

import dataclasses
import importlib
from collections.abc import Iterator
from typing import Any

from copyscope.documents import MAX_TOML_BYTES, parse_json, parse_toml
from copyscope.errors import reason

CONFIGURED = (".toml", ".yaml", ".yml")


@dataclasses.dataclass(frozen=True)
class Subset:
    """A folder of training images as a trainer's configuration names it.

    Args:
        repeats: draws of each image an epoch.
        words: the caption of images without one of their own.
        extension: suffix of caption files.
        metadata: a captions JSON.
        caption: "file" = beside the image, "name" = the file's name, "words" = `words` for all.
        regularisation: it is no part of what is learnt.
        recursive: folders within are read too.
    """

    folder: str
    repeats: float = 1
    words: str = ""
    extension: str = ".txt"
    metadata: str = ""
    caption: str = "file"
    prefix: str = ""
    suffix: str = ""
    class_words: str = ""
    regularisation: bool = False
    recursive: bool = True


def subsets_in(text: str, suffix: str) -> list[Subset]:
    """The folders that a configuration names; [] where it is none of a trainer's. Raises ValueError with the reason."""
    if suffix == ".toml":
        found: Any = parse_toml(text)
    elif suffix == ".json":
        found = parse_json(text)
    else:
        found = _yaml(text)
    made = [_kohya, _ai_toolkit] if isinstance(found, dict) else [_one_trainer, _simple_tuner]
    if isinstance(found, dict) and isinstance(found.get("concepts"), list):
        found, made = found["concepts"], [_one_trainer]
    return next((subsets for read in made if (subsets := list(read(found)))), [])


def _yaml(text: str) -> Any:
    try:
        yaml: Any = importlib.import_module("yaml")
    except ImportError:
        raise ValueError("YAML needs the package pyyaml: pip install pyyaml") from None
    if len(text) > MAX_TOML_BYTES:
        raise ValueError(f"larger than {MAX_TOML_BYTES >> 20} MiB")
    try:
        # A few lines of aliases of aliases stand for any number of values.
        if any(isinstance(event, yaml.AliasEvent) for event in yaml.parse(text, Loader=yaml.SafeLoader)):
            raise ValueError("it has aliases")
        return yaml.safe_load(text)
    except (yaml.YAMLError, RecursionError) as error:
        raise ValueError(f"not YAML ({reason(error)})") from None


def _dicts(value: Any) -> list[dict[str, Any]]:
    return [each for each in value if isinstance(each, dict)] if isinstance(value, list) else []


def _kohya(found: dict[str, Any]) -> Iterator[Subset]:
    """`dataset_config` of sd-scripts: what a subset does not say, its data set or `[general]` does."""
    general = found["general"] if isinstance(found.get("general"), dict) else {}
    for data_set in _dicts(found.get("datasets")):
        for own in _dicts(data_set.get("subsets")):
            said = general | data_set | own
            if not isinstance(said.get("image_dir"), str):
                continue
            words = _text(said.get("class_tokens"))
            yield Subset(
                folder=said["image_dir"],
                repeats=_number(said.get("num_repeats")),
                words=words,
                class_words=words,
                extension=_suffix(said.get("caption_extension", said.get("caption_extention")), ".caption"),
                metadata=_text(said.get("metadata_file")),
                prefix=_text(said.get("caption_prefix")),
                suffix=_text(said.get("caption_suffix")),
                regularisation=said.get("is_reg") is True,
                recursive=False,
            )


def _ai_toolkit(found: dict[str, Any]) -> Iterator[Subset]:
    config = found["config"] if isinstance(found.get("config"), dict) else found
    for process in _dicts(config.get("process")):
        for said in _dicts(process.get("datasets")):
            folder = said.get("folder_path", said.get("dataset_path"))
            if isinstance(folder, str):
                yield Subset(
                    folder=folder,
                    repeats=_number(said.get("num_repeats")),
                    words=_text(said.get("default_caption")) or _text(process.get("trigger_word")),
                    extension=_suffix(said.get("caption_ext"), ".txt"),
                    regularisation=said.get("is_reg") is True,
                )


_CONCEPT = ("text", "include_subdirectories", "balancing", "image_variations")
"""Keys that tell a concept from a record of an image."""


def _one_trainer(found: list[Any]) -> Iterator[Subset]:
    """`concepts.json`: "balancing" repeats a folder, or counts samples, which is no weight of an image."""
    for said in _dicts(found):
        text = said["text"] if isinstance(said.get("text"), dict) else {}
        if not isinstance(said.get("path"), str) or said.get("enabled") is False or not {*_CONCEPT} & {*said}:
            continue
        source = text.get("prompt_source", "sample")
        samples = said.get("balancing_strategy") == "SAMPLES"
        yield Subset(
            folder=said["path"],
            repeats=1 if samples else _number(said.get("balancing")),
            caption={"filename": "name", "concept": "words"}.get(source, "file"),
            metadata=_text(text.get("prompt_path")) if source == "concept" else "",
            regularisation=said.get("type") in ("VALIDATION", "PRIOR_PREDICTION"),
            recursive=said.get("include_subdirectories") is True,
        )


def _simple_tuner(found: list[Any]) -> Iterator[Subset]:
    """`multidatabackend.json`: "repeats" are those beyond the first draw."""
    for said in _dicts(found):
        folder = said.get("instance_data_dir", said.get("instance_data_root"))
        if not isinstance(folder, str) or said.get("disabled") is True or said.get("disable") is True:
            continue
        if said.get("dataset_type", "image") not in ("image", "eval"):
            continue
        strategy = said.get("caption_strategy", "filename")
        yield Subset(
            folder=folder,
            repeats=1 + _number(said.get("repeats"), 0),
            words=_text(said.get("instance_prompt")),
            caption={"filename": "name", "instanceprompt": "words"}.get(strategy, "file"),
            regularisation=said.get("is_regularisation_data") is True or said.get("dataset_type") == "eval",
        )


def _text(value: Any) -> str:
    return value.strip() if isinstance(value, str) else ""


def _suffix(value: Any, usual: str) -> str:
    text = _text(value) or usual
    return text if text.startswith(".") else f".{text}"


def _number(value: Any, usual: float = 1) -> float:
    """A number of repeats; the usual one where none is given. What is wrong is said by the row's weight."""
    return usual if value is None else value
