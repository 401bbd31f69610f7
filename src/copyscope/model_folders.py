"""Check model folders of others: refuse those with code or foreign classes.

diffusers and transformers load weights and settings by names that stand in JSON files. Older versions of diffusers run
the `.py` files that `model_index.json` names, and import whatever package it names for a component.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from .documents import MAX_JSON_BYTES, parse_json, read_bytes
from .errors import InputError

MOST_FILES = 10_000
"""Files that a folder of a model may have: it is no tree to be walked through."""

PIPELINE = "model_index.json"
_CODE = (".py", ".pyc", ".pyd", ".so", ".dll", ".dylib", ".pkl", ".pickle")
_LIBRARIES = ("diffusers", "transformers", "stable_diffusion")  # the last holds the safety checker, in diffusers


def refuse_code(folder: str | os.PathLike[str]) -> None:
    """Refuse the folder of a model that would run code of its own when loaded.

    Args:
        folder: of a diffusers or transformers model. Weights are for the caller to load as safetensors.

    Raises:
        InputError: a file of code lies in the folder, or a JSON file names classes of its own or of a package that is
            neither diffusers nor transformers.
    """
    n = 0
    # Links are followed, as the libraries do; round in a loop they end at MOST_FILES.
    for where, folders, names in os.walk(folder, followlinks=True):
        n += len(folders)
        for name in names:
            n += 1
            path = Path(where) / name
            if n > MOST_FILES:
                raise InputError(f"{folder} has more than {MOST_FILES:,} files.\nName the folder of one model")
            if path.suffix.lower() in _CODE:
                raise _refused(folder, f"holds the file {path.relative_to(folder)}, which is code")
            if path.suffix.lower() == ".json":
                _refuse_names(Path(folder), path)


def _refuse_names(folder: Path, path: Path) -> None:
    inside = path.relative_to(folder)
    try:
        found = parse_json(read_bytes(path, MAX_JSON_BYTES))
    except (OSError, ValueError) as error:
        # A tokenizer's vocabulary may be beyond the bounds of a document, and names no class.
        if path.name not in (PIPELINE, "config.json") and "more than" in str(error):
            return
        raise InputError(f"{path} cannot be read: {error}.\nSave the model again with save_pretrained") from None
    if not isinstance(found, dict):
        return
    if found.get("auto_map"):
        raise _refused(folder, f"asks in {inside} (auto_map) for classes of its own")
    if path.name == PIPELINE:
        for name, value in found.items():
            if not name.startswith("_") and isinstance(value, list) and not _is_known(value):
                raise _refused(folder, f"asks in {inside} for the {name} {value!r:.80}, which is of no library we know")
        if not isinstance(found.get("_class_name", ""), str):
            raise _refused(folder, f"asks in {inside} for a pipeline class of its own")


def _is_known(value: list[Any]) -> bool:
    """Whether a list is [library, class] of a library we know, or [null, null]; numbers and such are settings."""
    return len(value) != 2 or not any(isinstance(each, str) for each in value) or value[0] in (None, *_LIBRARIES)


def _refused(folder: str | os.PathLike[str], what: str) -> InputError:
    return InputError(
        f"The model in {folder} {what}; Copyscope runs no code of a model's folder.\n"
        "Name a folder that save_pretrained wrote, with weights in safetensors and without custom code"
    )
