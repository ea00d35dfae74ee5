"""Adapter files that came out of a state dict: names of adapters, wrappers and prefixes in every tensor's name."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file
from torch import nn

import lorakit
from helpers import make_llama, randomize
from lorakit.application.state import adapter_of
from lorakit.artifacts.inspection import inspect_adapter

WEIGHTS, PREFIX = "adapter_model.safetensors", "base_model.model."


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Any]:
    """A folder that PEFT saved, and its model: layers, an embedding, and a norm that trained in full."""
    config = LoraConfig(r=4, target_modules=["q_proj", "embed_tokens"], modules_to_save=["model.norm"])
    theirs: Any = get_peft_model(make_llama().eval(), config, adapter_name="mine")
    randomize(theirs)
    with torch.no_grad():
        for name, value in theirs.named_parameters():
            if "modules_to_save" in name:
                value += 0.1
    folder = tmp_path_factory.mktemp("peft")
    theirs.save_pretrained(str(folder), selected_adapters=["mine"])
    return folder / "mine", theirs.eval()


def renamed(source: Path, folder: Path, tensors: dict[str, torch.Tensor]) -> Path:
    folder.mkdir()
    (folder / "adapter_config.json").write_bytes((source / "adapter_config.json").read_bytes())
    save_file({name: value.contiguous() for name, value in tensors.items()}, folder / WEIGHTS)
    return folder


def between(segment: str) -> Callable[[str], str]:
    return lambda name: name.replace("layers.", f"layers.{segment}.").replace(
        "embed_tokens.", f"embed_tokens.{segment}."
    )


WAYS: dict[str, Callable[[str], str]] = {
    "no prefix": lambda name: name.removeprefix(PREFIX),
    "half a prefix": lambda name: name.removeprefix("base_model."),
    "twice the prefix": lambda name: PREFIX + name,
    "a prefix before": lambda name: f"policy.{name}",
    "module": lambda name: f"module.{name}",
    "module alone": lambda name: f"module.{name.removeprefix(PREFIX)}",
    "compiled": lambda name: f"_orig_mod.{name}",
    "checkpointed": between("_checkpoint_wrapped_module"),
    "sharded": lambda name: f"_fsdp_wrapped_module.{between('_fsdp_wrapped_module')(name)}",
}


@pytest.mark.parametrize("way", WAYS)
def test_names_with_more_or_less_around_them(
    way: str, saved: tuple[Path, Any], tokens: torch.Tensor, tmp_path: Path
) -> None:
    source, theirs = saved
    tensors = {WAYS[way](name): value for name, value in load_file(source / WEIGHTS).items()}
    folder = renamed(source, tmp_path / "renamed", tensors)
    ours = lorakit.load(folder, make_llama())
    assert float((ours(tokens).logits - theirs(tokens).logits).detach().abs().max()) <= 1e-5
    assert [entry.path for entry in adapter_of(ours).plan.entries if entry.train] == ["model.norm"]
    assert len(inspect_adapter(folder).adapters) == 3


@pytest.mark.parametrize("every", [True, False], ids=["all of it", "what is the adapter's"])
def test_a_whole_state_dict(every: bool, saved: tuple[Path, Any], tokens: torch.Tensor, tmp_path: Path) -> None:
    source, theirs = saved
    state = {name: value.clone() for name, value in theirs.state_dict().items()}
    kept = {name: value for name, value in state.items() if every or ".mine" in name}
    assert any("lora_embedding_A.mine" in name for name in kept) and any(
        "modules_to_save.mine" in name for name in kept
    )
    ours = lorakit.load(renamed(source, tmp_path / "state", kept), make_llama())
    assert float((ours(tokens).logits - theirs(tokens).logits).detach().abs().max()) <= 1e-5
    assert [entry.path for entry in adapter_of(ours).plan.entries if entry.is_whole] == ["model.norm"]


def test_several_adapters_in_one_file_are_refused(saved: tuple[Path, Any], tmp_path: Path) -> None:
    source, theirs = saved
    tensors: dict[str, torch.Tensor] = {}
    for name, value in theirs.state_dict().items():
        if "lora_" in name:
            tensors |= {name: value.clone(), name.replace(".mine", ".other"): value + 1}
    with pytest.raises(lorakit.AdapterError, match="several adapters, 'mine', 'other'"):
        lorakit.load(renamed(source, tmp_path / "two", tensors), make_llama())


def test_one_tensor_under_two_names_is_refused(saved: tuple[Path, Any], tmp_path: Path) -> None:
    source, _ = saved
    tensors = load_file(source / WEIGHTS)
    tensors |= {name.removeprefix(PREFIX): value + 1 for name, value in tensors.items() if "q_proj" in name}
    with pytest.raises(lorakit.AdapterError, match="twice, under two names"):
        lorakit.load(renamed(source, tmp_path / "two", tensors), make_llama())


class Outer(nn.Module):
    """A model whose own modules are called as PEFT's prefix and DistributedDataParallel's are."""

    def __init__(self) -> None:
        super().__init__()
        self.base_model: Any = nn.Module()
        self.base_model.model = nn.Linear(8, 8)
        self.module = nn.Linear(8, 8)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.module(self.base_model.model(x))


def test_a_model_that_is_called_like_a_prefix_keeps_its_names(tmp_path: Path) -> None:
    torch.manual_seed(0)
    plain = Outer()
    theirs: Any = get_peft_model(Outer(), LoraConfig(r=2, target_modules=["base_model.model", "module"])).eval()
    theirs.base_model.model.load_state_dict(
        {name.replace(".weight", ".base_layer.weight").replace(".bias", ".base_layer.bias"): value
         for name, value in plain.state_dict().items()}, strict=False,
    )  # fmt: skip
    randomize(theirs)
    theirs.save_pretrained(str(tmp_path / "peft"))
    ours = lorakit.load(tmp_path / "peft", plain)
    assert float((ours(torch.eye(8)) - theirs(torch.eye(8))).detach().abs().max()) <= 1e-6


@pytest.mark.parametrize("shape", [(), (0,), (0, 64), (4, 0)])
def test_tensors_of_no_elements_in_every_place(shape: tuple[int, ...], saved: tuple[Path, Any], tmp_path: Path) -> None:
    source, _ = saved
    for number, name in enumerate(load_file(source / WEIGHTS)):
        tensors = load_file(source / WEIGHTS)
        tensors[name] = torch.ones(shape)
        folder = renamed(source, tmp_path / str(number), tensors)
        with pytest.raises(lorakit.AdapterError) as caught:
            lorakit.load(folder, make_llama())
        assert name in str(caught.value) and str(tuple(shape)) in str(caught.value)
        if 0 in shape:
            with pytest.raises(lorakit.AdapterError, match="no elements"):
                inspect_adapter(folder)
