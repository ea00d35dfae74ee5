"""Folders: whole after a crash at any byte or a full disk, and never trusted when they are read."""

from __future__ import annotations

import json
import os
import pickle
import shutil
import signal
import struct
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from forked import Nursery
from safetensors.torch import load_file, save_file
from torch import nn

import lorakit
from helpers import make_gpt2, make_llama
from lorakit.artifacts import folders

SAVER = """
import pathlib, resource, signal, sys, torch, lorakit
from torch import nn
folder, limit = {folder!r}, {limit}
torch.manual_seed(1)
model = lorakit.apply("adapt 0 rank 16", nn.Sequential(nn.Linear(64, 64)), seed=1)
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
pathlib.Path(folder + "-begun").touch()
if limit >= 0:
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
    try:
        lorakit.save(model, folder)
    except lorakit.WriteError as error:
        sys.exit(f"WriteError: {{error}}")
else:
    while True:
        lorakit.save(model, folder)
"""


def linear(seed: int = 0) -> Any:
    torch.manual_seed(0)
    return lorakit.apply("adapt 0 rank 16", nn.Sequential(nn.Linear(64, 64)), seed=seed)


def content(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


def plain() -> Any:
    return nn.Sequential(nn.Linear(64, 64))


@pytest.mark.parametrize("limit", [0, 1, 7, 100, 511, 4000, 8191])
def test_a_write_that_fails_at_any_byte_leaves_the_old_folder(limit: int, tmp_path: Path, nursery: Nursery) -> None:
    folder = lorakit.save(linear(), tmp_path / "adapter")
    before = content(folder)
    assert len(before["adapter_model.safetensors"]) > 8191
    saver = nursery.start(SAVER.format(folder=str(folder), limit=limit))
    assert saver.wait() == 1 and "WriteError: writing" in saver.err, saver.err
    assert content(folder) == before
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".")] == []
    lorakit.load(folder, plain())


@pytest.mark.parametrize("delay", [0.0, 0.003, 0.011, 0.04])
def test_a_process_killed_while_it_saves_leaves_a_whole_folder(delay: float, tmp_path: Path, nursery: Nursery) -> None:
    folder = lorakit.save(linear(), tmp_path / "adapter")
    saver = nursery.start(SAVER.format(folder=str(folder), limit=-1))
    while not folder.with_name("adapter-begun").exists():
        time.sleep(0.001)
    time.sleep(delay)
    saver.kill()
    assert saver.wait() == -signal.SIGKILL, saver.err
    lorakit.load(folder, plain())


def test_without_an_atomic_exchange_the_old_folder_is_set_aside(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = lorakit.save(linear(), tmp_path / "adapter")
    monkeypatch.setattr(folders, "_exchange", lambda one, other: False)
    lorakit.save(linear(seed=1), folder)
    assert [path.name for path in tmp_path.iterdir()] == ["adapter"]
    assert torch.equal(lorakit.load(folder, plain()).get_parameter("0.lora_A"), linear(seed=1)[0].lora_A)


def test_a_full_disk(tmp_path: Path) -> None:
    disk = tmp_path / "disk"
    disk.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", str(disk)], capture_output=True, check=False
    )
    if mounted.returncode != 0:
        pytest.skip("mounting a small disk takes root")
    try:
        folder = lorakit.save(linear(), disk / "adapter")
        before = content(folder)
        (disk / "filler").write_bytes(b"x" * shutil.disk_usage(disk).free)
        with pytest.raises(lorakit.WriteError, match="No space left.*untouched"):
            lorakit.save(linear(seed=1), folder)
        assert content(folder) == before
    finally:
        subprocess.run(["umount", str(disk)], check=True)


def test_save_replaces_an_adapter_and_nothing_else(tmp_path: Path) -> None:
    folder = lorakit.save(linear(), tmp_path / "adapter")
    lorakit.save(linear(seed=1), folder)
    (folder / "thesis.txt").write_text("years of work")
    with pytest.raises(lorakit.OutputError, match="thesis.txt"):
        lorakit.save(linear(), folder)
    with pytest.raises(lorakit.OutputError, match="is a file"):
        lorakit.save(linear(), folder / "thesis.txt")
    mask = os.umask(0o22)
    os.umask(mask)
    assert folder.stat().st_mode & 0o777 == 0o777 & ~mask
    assert (folder / "adapter_model.safetensors").stat().st_mode & 0o777 == 0o666 & ~mask


def altered(folder: Path, change: Callable[[dict[str, torch.Tensor]], object]) -> None:
    path = folder / "adapter_model.safetensors"
    tensors = load_file(path)
    change(tensors)
    save_file(tensors, path)


KEY = "base_model.model.0.lora_{}.weight"


@pytest.mark.parametrize(
    ("damage", "complaint"),
    [
        (lambda folder: shutil.rmtree(folder), "no such adapter folder"),
        (lambda folder: (folder / "adapter_config.json").unlink(), "no adapter_config.json"),
        (lambda folder: (folder / "adapter_config.json").write_text("{"), "no JSON"),
        (lambda folder: (folder / "adapter_config.json").write_text("[]"), "JSON list"),
        (lambda folder: (folder / "adapter_model.safetensors").unlink(), "no adapter_model.safetensors"),
        (lambda folder: os.truncate(folder / "adapter_model.safetensors", 5000), "damaged or cut short"),
        (lambda folder: os.truncate(folder / "adapter_model.safetensors", 3), "damaged or cut short"),
        (lambda folder: (folder / "adapter_model.safetensors").write_bytes(pickle.dumps({"a": 1})), "damaged"),
        (
            lambda folder: (folder / "adapter_model.safetensors").write_bytes(struct.pack("<Q", 2**60) + b"{}"),
            "damaged",
        ),
        (
            lambda folder: altered(folder, lambda tensors: tensors.pop(KEY.format("B"))),
            "lacks 1 tensors, first .*lora_B",
        ),
        (
            lambda folder: altered(folder, lambda tensors: tensors.update(extra=torch.ones(1))),
            "tensors that nothing here takes",
        ),
        (
            lambda folder: altered(folder, lambda tensors: tensors.update({"../../etc/passwd": torch.ones(1)})),
            "tensors that nothing here takes",
        ),
        (
            lambda folder: altered(folder, lambda tensors: tensors[KEY.format("A")].fill_(float("nan"))),
            "holds NaN or infinite",
        ),
    ],
)
@pytest.mark.parametrize("by", ["lorakit", "PEFT"])
def test_damaged_and_hostile_folders_change_no_model(
    damage: Callable[[Path], object], complaint: str, by: str, tmp_path: Path
) -> None:
    folder = lorakit.save(linear(), tmp_path / "adapter")
    if by == "PEFT":
        (folder / "plan.json").unlink()
    damage(folder)
    model = plain()
    with pytest.raises(lorakit.AdapterError, match=complaint if by == "lorakit" else f"{complaint}|for another model"):
        lorakit.load(folder, model)
    assert type(model[0]) is nn.Linear and model[0].weight.requires_grad


def test_pickle_is_read_only_where_allowed(tmp_path: Path) -> None:
    folder = lorakit.save(linear(), tmp_path / "adapter")
    torch.save(load_file(folder / "adapter_model.safetensors"), folder / "adapter_model.bin")
    (folder / "adapter_model.safetensors").unlink()
    with pytest.raises(lorakit.AdapterError, match="--allow-pickle"):
        lorakit.load(folder, plain())
    assert torch.equal(lorakit.load(folder, plain(), allow_pickle=True).get_parameter("0.lora_A"), linear()[0].lora_A)


def test_an_adapter_for_another_model_names_the_first_shapes_that_differ(tmp_path: Path) -> None:
    folder = lorakit.save(lorakit.apply("adapt q_proj,v_proj rank 4", make_llama()), tmp_path / "adapter")
    other = make_llama(hidden_size=32, head_dim=16)
    with pytest.raises(
        lorakit.AdapterError, match=r"`model.layers.0.self_attn.q_proj` is 64 × 64 there and 64 × 32 here"
    ):
        lorakit.load(folder, other)
    with pytest.raises(lorakit.AdapterError, match="has no `model.layers.0.self_attn.q_proj`"):
        lorakit.load(folder, make_gpt2())
    (folder / "plan.json").unlink()
    with pytest.raises(lorakit.AdapterError, match=r"lora_A.weight` is \(4, 64\) and this model takes \(4, 32\)"):
        lorakit.load(folder, other)
    assert not any("lora" in name for name, _ in other.named_parameters())


def test_missing_tensors_can_be_allowed(tmp_path: Path) -> None:
    folder = lorakit.save(linear(), tmp_path / "adapter")
    altered(folder, lambda tensors: tensors.pop(KEY.format("B")))
    model: Any = lorakit.load(folder, plain(), allow_missing=True)
    assert torch.equal(model[0].lora_A, linear()[0].lora_A) and not model[0].lora_B.any()


def test_merging_that_overflows_is_refused_and_changes_nothing(tmp_path: Path) -> None:
    model: Any = lorakit.apply("adapt 0 rank 2 alpha 1000", nn.Sequential(nn.Linear(4, 4).to(torch.float16)))
    with torch.no_grad():
        model[0].lora_B.fill_(6e4)
    before = model[0].base_layer.weight.clone()
    with pytest.raises(lorakit.AdapterError, match="not finite in torch.float16"):
        lorakit.merge(model)
    assert torch.equal(model[0].base_layer.weight, before) and lorakit.summary(model)


def test_merging_one_end_of_a_tie_unties_it(tokens: torch.Tensor) -> None:
    model: Any = lorakit.apply("adapt @head rank 4", make_llama(tie_word_embeddings=True).eval())
    with torch.no_grad():
        model.lm_head.lora_B.fill_(0.3)
    expected, embeddings = model(tokens).logits, model.get_input_embeddings().weight.clone()
    merged: Any = lorakit.merge(model)
    torch.testing.assert_close(merged(tokens).logits, expected, rtol=0, atol=1e-5)
    assert torch.equal(merged.get_input_embeddings().weight, embeddings)
    assert merged.config.tie_word_embeddings is False


def test_the_config_is_plain_json(tmp_path: Path) -> None:
    folder = lorakit.save(linear(), tmp_path / "adapter")
    config = json.loads((folder / "adapter_config.json").read_text())
    assert config["peft_type"] == "LORA" and config["target_modules"] == ["0"]


def test_merging_states_the_error_that_it_makes() -> None:
    from helpers import randomize
    from lorakit.artifacts.merge import merge_model

    torch.manual_seed(0)
    model: Any = lorakit.apply("adapt 0 rank 4 quant nf4", nn.Sequential(nn.Linear(64, 64).to(torch.bfloat16)))
    randomize(model)
    layer = model[0]
    exact = layer.base_layer.weight.double() + layer.scaling * layer.lora_B.double() @ layer.lora_A.double()
    merged, report = merge_model(model)
    error = merged.get_parameter("0.weight").double() - exact
    assert report.max_error == pytest.approx(float(error.detach().abs().max()), rel=1e-3)
    assert report.relative_error == pytest.approx(float((error.norm() / exact.norm()).detach()), rel=1e-3)
    assert report.relative_error > 1e-4


def test_a_plan_that_is_none_is_refused(tmp_path: Path) -> None:
    folder = lorakit.save(linear(), tmp_path / "adapter")
    (folder / "plan.json").write_text("[]")
    with pytest.raises(lorakit.AdapterError, match="no plan"):
        lorakit.load(folder, plain())
