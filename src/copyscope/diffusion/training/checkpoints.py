"""Checkpoints of a training run: safetensors with checksums, written atomically.

A checkpoint is `network.safetensors` (what is trained), `ema.safetensors` (its average, where there is one),
`optimizer.safetensors`, `mitigations.safetensors` (what these remember, where they do) and, last, `state.json`.
Everything else of a step is drawn from (seed, step), so that this is all there is to resume.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
import re
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from copyscope.documents import read_json
from copyscope.errors import InputError, TrainingError
from copyscope.files import file_sha256, sync, write_json

_NAME = re.compile(r"step-(\d{8,})")
_FULL = (errno.ENOSPC, errno.EDQUOT)
_FULL_IN_TEXT = re.compile(rf"(?:os error|code:) (?:{errno.ENOSPC}|{errno.EDQUOT})\b")  # as safetensors says it


@contextlib.contextmanager
def writing(what: str) -> Iterator[None]:
    """Turn a full disk, or another reason why `what` cannot be written, into a TrainingError.

    Raises:
        TrainingError: in the block an OSError was raised.
    """
    try:
        yield
    except (OSError, SafetensorError) as error:
        number = error.errno if isinstance(error, OSError) else None
        full = number in _FULL or (number is None and _FULL_IN_TEXT.search(str(error)) is not None)
        if not full and number not in (None, errno.EACCES, errno.EPERM, errno.EROFS, errno.EFBIG, errno.EIO):
            raise
        why = "the disk is full" if full else (isinstance(error, OSError) and error.strerror) or str(error)
        raise TrainingError(
            f"{what} could not be written: {why}. Whole checkpoints are kept.\n"
            f"{'Make room' if full else 'Set that right'}, and run the same command again"
        ) from None


def trained(network: torch.nn.Module) -> dict[str, Tensor]:
    """Trained parameters of a network by name; they share its memory."""
    return {name: value.detach() for name, value in network.named_parameters() if value.requires_grad}


def put(network: torch.nn.Module, values: Mapping[str, Tensor]) -> None:
    """Set the trained parameters of a network.

    Raises:
        TrainingError: names or shapes are others.
    """
    _fill(trained(network), values, "The weights")


def write(
    folder: Path,
    step: int,
    network: torch.nn.Module,
    average: Mapping[str, Tensor],
    optimizer: torch.optim.Optimizer,
    *,
    keep: int,
    seconds: float = 0.0,
    memories: Mapping[str, Tensor] | None = None,
) -> Path:
    """Write the checkpoint of a step, and remove the oldest beyond `keep`.

    Args:
        folder: of the checkpoints.
        step: number of the step.
        network: whose trained parameters are written.
        average: averaged weights by name; empty = no average.
        optimizer: whose state is written.
        keep: number of checkpoints.
        seconds: what the training took so far.
        memories: of mitigations, by name; None = none.

    Raises:
        TrainingError: a number is not finite, or the checkpoint cannot be written; earlier ones stay.
    """
    state = optimizer.state_dict()
    moments = {f"{index}.{key}": value for index, values in state["state"].items() for key, value in values.items()}
    files = {"network": trained(network), "ema": average, "optimizer": moments, "mitigations": memories or {}}
    for values in files.values():
        if not all(bool(value.isfinite().all()) for value in values.values()):
            raise TrainingError(
                f"The weights at step {step} are not finite; the checkpoints before it are kept.\n"
                "Train into another folder with a lower learning_rate or in full precision"
            )
    path = folder / f"step-{step:08d}"
    work = path.with_name(f".{path.name}.part")
    _remove(work)
    try:
        with writing(f"The checkpoint of step {step}"):
            work.mkdir(parents=True)
            sums = {}
            for name, values in files.items():
                if values:
                    plain = {key: value.detach().cpu().contiguous() for key, value in values.items()}
                    save_file(plain, work / f"{name}.safetensors")
                    sums[name] = file_sha256(work / f"{name}.safetensors")
            about = {"step": step, "seconds": seconds, "sha256": sums}
            write_json(about | {"digest": _digest(about)}, work / "state.json")
            sync(work)
            _remove(path)
            os.replace(work, path)
    except BaseException:
        _remove(work)
        raise
    whole = _whole(folder)
    for old in sorted(whole)[:-keep]:
        _remove(whole[old])
    return path


def latest(folder: Path) -> tuple[int, Path] | None:
    """(step, folder) of the last whole checkpoint; None if there is none."""
    return max(_whole(folder).items(), default=None)


def read(
    path: Path,
    network: torch.nn.Module,
    average: Mapping[str, Tensor],
    optimizer: torch.optim.Optimizer,
    memories: Mapping[str, Tensor] | None = None,
) -> float:
    """Restore network, average, optimizer and memories from a checkpoint, and return the seconds it had taken.

    Args:
        path: of the checkpoint.
        network: takes the trained parameters.
        average: takes the averaged weights.
        optimizer: takes its state.
        memories: of mitigations, by name; None = none.

    Raises:
        TrainingError: the checkpoint is damaged or of another model.
    """
    try:
        state = read_json(path / "state.json")
        _check(path, state)
        files = {name: load_file(path / f"{name}.safetensors") for name in ("network", "optimizer")}
        for name, wanted in (("ema", average), ("mitigations", memories)):
            files[name] = load_file(path / f"{name}.safetensors") if wanted else {}
        seconds = float(state["seconds"])
    except (OSError, SafetensorError, ValueError, KeyError, TypeError, AttributeError, InputError) as error:
        raise _damaged(path, error) from None
    put(network, files["network"])
    _fill(average, files["ema"], "The averaged weights")
    _fill(memories or {}, files["mitigations"], "The memories of mitigations")
    try:
        states = _states(files["optimizer"], optimizer)
    except (ValueError, IndexError) as error:
        raise _damaged(path, error) from None
    # Learning rates and the like are of the recipe, which is the same.
    optimizer.load_state_dict({"state": states, "param_groups": optimizer.state_dict()["param_groups"]})
    return seconds


def _damaged(path: Path, error: Exception) -> TrainingError:
    why = (str(error).splitlines() or [type(error).__name__])[0]
    return TrainingError(f"The checkpoint {path} is damaged: {why}.\nRemove it to go on from the one before")


def _states(moments: Mapping[str, Tensor], optimizer: torch.optim.Optimizer) -> dict[int, dict[str, Tensor]]:
    """State of an optimizer for each of its parameters, by their number.

    Raises ValueError or IndexError where the moments are of other parameters.
    """
    parameters = [value for group in optimizer.param_groups for value in group["params"]]
    states: dict[int, dict[str, Tensor]] = {}
    for name, value in moments.items():
        index, _, key = name.partition(".")
        own = parameters[int(index)]
        if value.shape == own.shape:
            # A fused optimizer takes moments to lie in memory as their parameter does, and does not check.
            value = torch.empty_like(own, requires_grad=False).copy_(value)
        elif value.numel() != 1:
            raise ValueError(f"optimizer.safetensors has {tuple(value.shape)} for a parameter of {tuple(own.shape)}")
        states.setdefault(int(index), {})[key] = value
    return states


def _check(path: Path, state: dict[str, Any]) -> None:
    """Raises ValueError where a checkpoint is not what its checksums say; those of version 0.1 have none."""
    # A flipped bit may be in the name of a key.
    if not {"digest", "sha256"} & state.keys():
        return
    if state.get("digest") != _digest({key: value for key, value in state.items() if key != "digest"}):
        raise ValueError("state.json is not what its own checksum says")
    for name, digest in state["sha256"].items():
        if file_sha256(path / f"{name}.safetensors") != digest:
            raise ValueError(f"{name}.safetensors is not what its checksum says")


def _digest(about: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(json.loads(json.dumps(about)), sort_keys=True).encode()).hexdigest()


def _fill(own: Mapping[str, Tensor], values: Mapping[str, Tensor], what: str) -> None:
    if {name: value.shape for name, value in own.items()} != {name: value.shape for name, value in values.items()}:
        raise TrainingError(f"{what} in the checkpoint are of another model.\nTrain into another folder")
    with torch.no_grad():
        for name, value in values.items():
            own[name].copy_(value)


def _whole(folder: Path) -> dict[int, Path]:
    return {
        int(name[1]): path
        for path in folder.glob("step-*")
        if (name := _NAME.fullmatch(path.name)) and (path / "state.json").is_file()
    }


def _remove(path: Path) -> None:
    """Removes a checkpoint, `state.json` first, so that no reader takes the rest of it for whole."""
    (path / "state.json").unlink(missing_ok=True)
    shutil.rmtree(path, ignore_errors=True)
