"""Checkpoints: what is read is what was written, and what is not whole is not there."""

from __future__ import annotations

import errno
import json
import os
import shutil

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from copyscope import files
from copyscope.files import write_bytes, write_json, write_table

pytest.importorskip("torch")
import torch

from copyscope.diffusion.training import checkpoints
from copyscope.errors import TrainingError


def network(seed=0, channels=4):
    """A frozen layer, and convolutions whose memory is laid out by channel, as fast networks have it."""
    torch.manual_seed(seed)
    layers = [torch.nn.Conv2d(3, channels, 3), torch.nn.Conv2d(channels, 2, 3), torch.nn.Linear(2, 2)]
    layers[2].requires_grad_(False)
    return torch.nn.Sequential(*layers).to(memory_format=torch.channels_last)


def trained(steps, seed=0, *, start=None):
    """A network and its fused optimizer after some steps."""
    net, optimizer = start or (made := network(seed), torch.optim.AdamW(made.parameters(), 0.01, fused=True))
    for _ in range(steps):
        generator = torch.Generator().manual_seed(int(optimizer.state_dict()["state"].get(0, {}).get("step", 0)))
        x = torch.randn(4, 3, 8, 8, generator=generator).to(memory_format=torch.channels_last)
        optimizer.zero_grad()
        net[1](net[0](x)).square().mean().backward()
        optimizer.step()
    return net, optimizer


def test_going_on_from_a_checkpoint_gives_the_same_bits(tmp_path):
    net, optimizer = trained(3)
    assert net[0].weight.stride()[1] == 1
    average = {name: value * 2 for name, value in checkpoints.trained(net).items()}
    path = checkpoints.write(tmp_path, 3, net, average, optimizer, keep=2, seconds=1.5)
    assert path == tmp_path / "step-00000003"
    other, fresh = trained(1, seed=5)
    read = {name: torch.zeros_like(value) for name, value in average.items()}
    assert checkpoints.read(path, other, read, fresh) == 1.5
    assert all(torch.equal(read[name], value) for name, value in average.items())
    trained(4, start=(net, optimizer))
    trained(4, start=(other, fresh))
    for one, two in zip(net[:2].parameters(), other[:2].parameters(), strict=True):
        assert torch.equal(one, two)
    for one, two in zip(optimizer.state.values(), fresh.state.values(), strict=True):
        assert all(torch.equal(one[key], two[key]) for key in one)


def test_only_what_is_trained_is_written_and_set(tmp_path):
    net, optimizer = trained(1)
    assert sorted(checkpoints.trained(net)) == ["0.bias", "0.weight", "1.bias", "1.weight"]
    path = checkpoints.write(tmp_path, 1, net, {}, optimizer, keep=1)
    assert sorted(each.name for each in path.iterdir()) == [
        "network.safetensors", "optimizer.safetensors", "state.json"
    ]  # fmt: skip
    other = network(3)
    frozen = other[2].weight.clone()
    checkpoints.read(path, other, {}, torch.optim.AdamW(other.parameters(), fused=True))
    assert torch.equal(other[0].weight, net[0].weight)
    assert torch.equal(other[2].weight, frozen)


def test_what_mitigations_remember_is_written_and_read_in_place(tmp_path):
    net, optimizer = trained(1)
    memory = torch.tensor([1 / 3, 2.0], dtype=torch.float64)
    path = checkpoints.write(tmp_path, 1, net, {}, optimizer, keep=1, memories={"1": memory})
    held = torch.zeros(2, dtype=torch.float64)
    checkpoints.read(path, net, {}, optimizer, {"1": held})
    assert torch.equal(held, memory)
    for wrong in ({"0": held}, {"1": torch.zeros(3, dtype=torch.float64)}):
        with pytest.raises(TrainingError, match=r"memories of mitigations .* another model"):
            checkpoints.read(path, net, {}, optimizer, wrong)
    memory[0] = float("nan")
    with pytest.raises(TrainingError, match="step 2 are not finite"):
        checkpoints.write(tmp_path, 2, net, {}, optimizer, keep=1, memories={"1": memory})
    (path / "mitigations.safetensors").unlink()
    with pytest.raises(TrainingError, match="damaged"):
        checkpoints.read(path, net, {}, optimizer, {"1": held})


def test_the_last_few_are_kept(tmp_path):
    net, optimizer = trained(1)
    for step in (5, 10, 100_000_000, 20):
        checkpoints.write(tmp_path, step, net, {}, optimizer, keep=2)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["step-00000020", "step-100000000"]
    assert checkpoints.latest(tmp_path) == (100_000_000, tmp_path / "step-100000000")


def test_what_is_not_whole_is_not_there(tmp_path):
    assert checkpoints.latest(tmp_path / "nothing") is None
    net, optimizer = trained(1)
    for step in (5, 10):
        checkpoints.write(tmp_path, step, net, {}, optimizer, keep=2)
    (tmp_path / "step-00000010" / "state.json").unlink()
    (tmp_path / ".step-00000015.part").mkdir()
    (tmp_path / "step-old").mkdir()
    assert checkpoints.latest(tmp_path)[0] == 5
    for step in (10, 15):
        checkpoints.write(tmp_path, step, net, {}, optimizer, keep=2)
    assert checkpoints.latest(tmp_path)[0] == 15
    assert not (tmp_path / ".step-00000015.part").exists()


def test_a_checkpoint_stops_being_one_before_it_is_removed(tmp_path, monkeypatch):
    net, optimizer = trained(1)
    checkpoints.write(tmp_path, 5, net, {}, optimizer, keep=1)

    def stopped(path, **options):
        if path.name == "step-00000005":
            raise KeyboardInterrupt

    monkeypatch.setattr(shutil, "rmtree", stopped)
    with pytest.raises(KeyboardInterrupt):
        checkpoints.write(tmp_path, 10, net, {}, optimizer, keep=1)
    monkeypatch.undo()
    assert (tmp_path / "step-00000005" / "network.safetensors").exists()
    shutil.rmtree(tmp_path / "step-00000010")
    assert checkpoints.latest(tmp_path) is None


@pytest.mark.parametrize("part", ["network", "average", "optimizer"])
def test_numbers_that_are_not_finite_are_not_written(tmp_path, part):
    net, optimizer = trained(2)
    average = {name: value.clone() for name, value in checkpoints.trained(net).items()}
    checkpoints.write(tmp_path, 5, net, average, optimizer, keep=1)
    wrong = {
        "network": net[0].weight.data, "average": average["1.bias"],
        "optimizer": optimizer.state[net[0].weight]["exp_avg_sq"],
    }[part]  # fmt: skip
    wrong[(0,) * wrong.ndim] = float("inf")
    with pytest.raises(TrainingError, match="step 10 are not finite"):
        checkpoints.write(tmp_path, 10, net, average, optimizer, keep=1)
    assert [path.name for path in tmp_path.iterdir()] == ["step-00000005"]


@pytest.mark.parametrize("call", ["save_file", "replace"])
def test_a_full_disk_leaves_the_checkpoint_before(tmp_path, monkeypatch, call):
    net, optimizer = trained(1)
    checkpoints.write(tmp_path, 5, net, {}, optimizer, keep=1)

    def full(*arguments, **options):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(checkpoints if call == "save_file" else os, call, full)
    with pytest.raises(TrainingError, match=r"checkpoint of step 10 .*the disk is full.*\n.*Make room"):
        checkpoints.write(tmp_path, 10, net, {}, optimizer, keep=1)
    assert [path.name for path in tmp_path.iterdir()] == ["step-00000005"]


def test_the_words_of_a_full_disk_and_of_no_permission():
    from safetensors import SafetensorError

    for error, words in (
        (OSError(errno.EDQUOT, "quota"), "the disk is full"),
        (SafetensorError("I/O error: No space left on device (os error 28)"), "the disk is full"),
        (SafetensorError("Os { code: 28, kind: StorageFull }"), "the disk is full"),
        (SafetensorError("I/O error: Read-only file system (os error 30)"), "I/O error: Read-only"),
        (PermissionError(errno.EACCES, "Permission denied"), "Permission denied"),
    ):
        with (
            pytest.raises(TrainingError, match=f"The run could not be written: {words}"),
            checkpoints.writing("The run"),
        ):
            raise error
    with pytest.raises(FileNotFoundError), checkpoints.writing("The run"):
        raise FileNotFoundError(errno.ENOENT, "no business of writing")


@pytest.mark.parametrize("damage", ["cut", "text", "keys", "gone"])
def test_a_damaged_checkpoint_is_told(tmp_path, damage):
    net, optimizer = trained(1)
    path = checkpoints.write(tmp_path, 5, net, {}, optimizer, keep=1)
    weights, state = path / "network.safetensors", path / "state.json"
    if damage == "cut":
        weights.write_bytes(weights.read_bytes()[:-10])
    elif damage == "gone":
        (path / "optimizer.safetensors").unlink()
    else:
        state.write_text("{" if damage == "text" else json.dumps({"step": 5}))
    with pytest.raises(TrainingError, match=r"damaged: .*\nRemove it"):
        checkpoints.read(path, net, {}, optimizer)


@pytest.mark.parametrize(
    "moments", [{"99.step": torch.zeros(())}, {"x": torch.zeros(())}, {"0.exp_avg": torch.zeros(7)}]
)
def test_an_optimizer_that_does_not_go_with_its_model_is_told(tmp_path, moments):
    net, optimizer = trained(1)
    path = checkpoints.write(tmp_path, 5, net, {}, optimizer, keep=1)
    state = json.loads((path / "state.json").read_text())
    checkpoints.save_file(moments, path / "optimizer.safetensors")
    state["sha256"]["optimizer"] = checkpoints.file_sha256(path / "optimizer.safetensors")
    about = {key: value for key, value in state.items() if key != "digest"}
    (path / "state.json").write_text(json.dumps(about | {"digest": checkpoints._digest(about)}))
    with pytest.raises(TrainingError, match=r"damaged: .*\nRemove it"):
        checkpoints.read(path, net, {}, optimizer)


def test_a_checkpoint_says_nothing_of_learning_rates_and_the_like(tmp_path):
    net, optimizer = trained(1)
    path = checkpoints.write(tmp_path, 5, net, {}, optimizer, keep=1)
    state = json.loads((path / "state.json").read_text())
    about = {key: value for key, value in state.items() if key != "digest"} | {"groups": [{"lr": "x"}, None]}
    (path / "state.json").write_text(json.dumps(about | {"digest": checkpoints._digest(about)}))
    before = optimizer.state_dict()["param_groups"]
    checkpoints.read(path, net, {}, optimizer)
    assert optimizer.state_dict()["param_groups"] == before


def test_a_checkpoint_of_another_model_is_refused(tmp_path):
    net, optimizer = trained(1)
    average = checkpoints.trained(net)
    path = checkpoints.write(tmp_path, 5, net, average, optimizer, keep=1)
    other = network(channels=5)
    with pytest.raises(TrainingError, match="another model"):
        checkpoints.read(path, other, {}, torch.optim.AdamW(other.parameters(), fused=True))
    with pytest.raises(TrainingError, match=r"averaged weights .* another model"):
        checkpoints.read(path, net, {"0.weight": average["0.weight"]}, optimizer)


def test_files_are_whole_or_not_there(tmp_path, monkeypatch):
    write_json({"a": "é"}, tmp_path / "a.json")
    write_bytes(b"abc", tmp_path / "a.png")
    write_table(pa.table({"a": [1]}), tmp_path / "a.parquet")
    assert json.loads((tmp_path / "a.json").read_text(encoding="utf-8")) == {"a": "é"}
    assert (tmp_path / "a.png").read_bytes() == b"abc"
    assert pq.read_table(tmp_path / "a.parquet")["a"].to_pylist() == [1]
    with pytest.raises(TypeError):
        write_json({"a": object()}, tmp_path / "a.json")

    def torn(table, path):
        path.write_bytes(b"to")
        raise KeyboardInterrupt

    monkeypatch.setattr(files, "write_parquet", torn)
    with pytest.raises(KeyboardInterrupt):
        write_table(pa.table({"a": [2]}), tmp_path / "a.parquet")
    assert json.loads((tmp_path / "a.json").read_text(encoding="utf-8")) == {"a": "é"}
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.json", "a.parquet", "a.png"]


def test_a_checkpoint_that_rotted_is_named_and_one_without_checksums_is_read(tmp_path):
    net, optimizer = trained(1)
    path = checkpoints.write(tmp_path, 5, net, {}, optimizer, keep=1)
    for name in ("network.safetensors", "optimizer.safetensors", "state.json"):
        whole = (path / name).read_bytes()
        some = np.random.default_rng(0).integers(1, len(whole) - 1, 8).tolist()
        # Of a short text each: the name of a key may be hit.
        for offset in range(2, len(whole)) if name == "state.json" else some:
            data = bytearray(whole)
            data[-offset] ^= 1
            (path / name).write_bytes(data)
            with pytest.raises(TrainingError, match=r"damaged: .*\nRemove it"):
                checkpoints.read(path, net, {}, optimizer)
        (path / name).write_bytes(whole)
    state = json.loads((path / "state.json").read_text())
    del state["digest"], state["sha256"]
    (path / "state.json").write_text(json.dumps(state))
    checkpoints.read(path, net, {}, optimizer)
