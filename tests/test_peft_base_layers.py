"""Base weights that PEFT saves beside its adapters: of embeddings and heads, whole, resized, or some rows of them."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from torch import nn

import lorakit
from helpers import make_llama, randomize
from lorakit.application.state import adapter_of
from lorakit.artifacts.inspection import inspect_adapter

WEIGHTS = "adapter_model.safetensors"
EMBEDDING, HEAD = ["q_proj", "embed_tokens"], ["q_proj", "lm_head"]


def base(tied: bool = False, vocabulary: int = 128) -> Any:
    return make_llama(tie_word_embeddings=tied, vocab_size=vocabulary).eval()


def wrapped(model: nn.Module, **config: Any) -> Any:
    adapted = get_peft_model(model, LoraConfig(r=4, lora_alpha=6, **config))
    randomize(adapted)
    return adapted.eval()


def saved(model: Any, folder: Path, **how: Any) -> Path:
    model.save_pretrained(str(folder), **how)
    return folder


def off(one: nn.Module, other: nn.Module, tokens: torch.Tensor) -> float:
    return float((one(tokens).logits - other(tokens).logits).detach().abs().max())


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize(
    ("targets", "layers"),
    [(["q_proj"], True), (EMBEDDING, "auto"), (HEAD, True), (["embed_tokens", "lm_head"], "auto"), (EMBEDDING, False)],
)
def test_ends_that_peft_saves_with_an_adapter(
    tied: bool, targets: list[str], layers: bool | str, tokens: torch.Tensor, tmp_path: Path
) -> None:
    theirs = wrapped(base(tied), target_modules=targets)
    folder = saved(theirs, tmp_path / "peft", save_embedding_layers=layers)
    ours = lorakit.load(folder, base(tied))
    assert off(ours, theirs, tokens) <= 1e-5
    # they are the model's own: nothing to keep, and nothing to train
    assert not any(entry.is_whole for entry in adapter_of(ours).plan.entries)
    again = lorakit.save(ours, tmp_path / "ours")
    assert not any("base_layer" in name for name in load_file(again / WEIGHTS))
    assert off(PeftModel.from_pretrained(base(tied), str(again)).eval(), theirs, tokens) <= 1e-5


@pytest.mark.parametrize("targets", [["q_proj"], EMBEDDING, HEAD], ids="-".join)
@pytest.mark.parametrize("tied", [False, True])
def test_ends_of_another_base_come_with_the_adapter(
    targets: list[str], tied: bool, tokens: torch.Tensor, tmp_path: Path
) -> None:
    """As after resizing: what the new rows of the base are is drawn anew wherever it is resized."""
    changed = base(tied)
    with torch.no_grad():
        changed.model.embed_tokens.weight += 0.1
        if not tied:
            changed.lm_head.weight -= 0.1
    theirs = wrapped(changed, target_modules=targets)
    folder = saved(theirs, tmp_path / "peft", save_embedding_layers=True)
    ours = lorakit.load(folder, base(tied))
    assert off(ours, PeftModel.from_pretrained(base(tied), str(folder)).eval(), tokens) <= 1e-5
    carried = [entry.path for entry in adapter_of(ours).plan.entries if entry.carried]
    assert carried
    trainable = {name for name, value in ours.named_parameters() if value.requires_grad}
    assert trainable and all("lora_" in name for name in trainable)
    again = lorakit.save(ours, tmp_path / "ours")
    assert off(lorakit.load(again, base(tied)), ours, tokens) == 0.0
    assert off(PeftModel.from_pretrained(base(tied), str(again)).eval(), ours, tokens) <= 1e-5
    merged = lorakit.merge(lorakit.load(folder, base(tied)))
    assert off(merged, ours, tokens) <= 1e-5
    with lorakit.adapters(ours).disabled():
        assert off(ours, base(tied), tokens) == 0.0


def test_a_resized_vocabulary(tokens: torch.Tensor, tmp_path: Path) -> None:
    grown = base()
    grown.resize_token_embeddings(131)
    theirs = wrapped(grown, target_modules=EMBEDDING)
    folder = saved(theirs, tmp_path / "peft")
    with pytest.raises(lorakit.AdapterError, match=r"resize_token_embeddings\(131\)"):
        lorakit.load(folder, base())
    torch.manual_seed(5)
    other = base()
    other.resize_token_embeddings(131)
    last = torch.full_like(tokens, 130)
    assert off(lorakit.load(folder, other), theirs, last) <= 1e-5


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("layers", [True, "auto"])
@pytest.mark.parametrize("indices", [[3, 100, 7], {"embed_tokens": [5, 6]}], ids=["list", "by module"])
def test_tokens_that_train_by_themselves(
    tied: bool, layers: bool | str, indices: Any, tokens: torch.Tensor, tmp_path: Path
) -> None:
    theirs = wrapped(base(tied), target_modules=["q_proj"], trainable_token_indices=copy.deepcopy(indices))
    with torch.no_grad():
        for name, value in theirs.named_parameters():
            if "trainable_tokens_delta" in name:
                value.normal_(0, 0.5)
    folder = saved(theirs, tmp_path / "peft", save_embedding_layers=layers)
    every = torch.arange(128).reshape(4, 32)
    ours = lorakit.load(folder, base(tied))
    assert off(ours, theirs, every) <= 1e-5
    assert off(ours, base(tied), every) > 1e-2
    again = lorakit.save(ours, tmp_path / "ours")
    assert off(PeftModel.from_pretrained(base(tied), str(again)).eval(), theirs, every) <= 1e-5


@pytest.mark.parametrize("targets", [["q_proj"], EMBEDDING], ids="-".join)
def test_tokens_of_a_head_that_is_tied(targets: list[str], tmp_path: Path) -> None:
    """PEFT gives the head rows of its own then, which one tensor cannot hold."""
    folders = {}
    for tied in (False, True):
        theirs = wrapped(base(tied), target_modules=targets, trainable_token_indices={"lm_head": [5, 6]})
        with torch.no_grad():
            for name, value in theirs.named_parameters():
                if "trainable_tokens_delta" in name:
                    value.normal_(0, 0.5)
        folders[tied] = saved(theirs, tmp_path / str(tied))
        if not tied:
            assert off(lorakit.load(folders[tied], base(tied)), theirs, torch.arange(128).reshape(4, 32)) <= 1e-5
    with pytest.raises(lorakit.AdapterError, match=r"some rows of `lm_head` alone.*`model.embed_tokens.weight`.*untie"):
        lorakit.load(folders[True], base(True))


def test_modules_to_save_with_all_that_is_around_them(tokens: torch.Tensor, tmp_path: Path) -> None:
    theirs = wrapped(base(), target_modules=["q_proj"], modules_to_save=["embed_tokens", "lm_head"])
    with torch.no_grad():
        for name, value in theirs.named_parameters():
            if "modules_to_save" in name:
                value += 0.1
    folder = saved(theirs, tmp_path / "peft", save_embedding_layers=True)
    names = load_file(folder / WEIGHTS)
    assert any("original_module" in name for name in names)
    ours = lorakit.load(folder, base())
    assert off(ours, theirs, tokens) <= 1e-5
    assert [entry.path for entry in adapter_of(ours).plan.entries if entry.train] == ["model.embed_tokens", "lm_head"]


@pytest.mark.parametrize("change", [0.1, 0.0])
def test_ends_that_peft_trained_as_one(change: float, tokens: torch.Tensor, tmp_path: Path) -> None:
    theirs = wrapped(base(True), target_modules=["q_proj"], modules_to_save=["embed_tokens"], ensure_weight_tying=True)
    with torch.no_grad():
        theirs.base_model.model.model.embed_tokens.modules_to_save.default.weight += change
    ours = lorakit.load(saved(theirs, tmp_path / "peft"), base(True))
    assert off(ours, theirs, tokens) <= 1e-5


def _shorter(tensors: dict[str, torch.Tensor]) -> None:
    tensors["base_model.model.model.embed_tokens.base_layer.weight"] = torch.ones(127, 64)


def _strange(tensors: dict[str, torch.Tensor]) -> None:
    tensors["base_model.model.model.embed_tokens.base_layer.scale"] = torch.ones(2)


def _elsewhere(tensors: dict[str, torch.Tensor]) -> None:
    tensors["base_model.model.model.nowhere.base_layer.weight"] = torch.ones(2)


@pytest.mark.parametrize(
    ("change", "complaint"),
    [(_shorter, r"resize_token_embeddings\(127\)"), (_strange, "scale"), (_elsewhere, "nowhere")],
)
def test_base_weights_that_fit_nothing(
    change: Callable[[dict[str, torch.Tensor]], None], complaint: str, tmp_path: Path
) -> None:
    folder = saved(wrapped(base(), target_modules=EMBEDDING), tmp_path / "peft")
    tensors = load_file(folder / WEIGHTS)
    change(tensors)
    save_file(tensors, folder / WEIGHTS)
    model = base()
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(lorakit.AdapterError, match=complaint):
        lorakit.load(folder, model)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


@pytest.mark.parametrize("alpha", [None, 0, 5])
def test_an_alpha_that_is_absent_or_nought(alpha: int | None, tokens: torch.Tensor, tmp_path: Path) -> None:
    theirs = wrapped(base(), target_modules=["q_proj"])
    folder = saved(theirs, tmp_path / "peft")
    path = folder / "adapter_config.json"
    config = json.loads(path.read_text())
    config.pop("lora_alpha")
    path.write_text(json.dumps(config | ({} if alpha is None else {"lora_alpha": alpha})))
    theirs = PeftModel.from_pretrained(base(), str(folder)).eval()
    assert off(lorakit.load(folder, base()), theirs, tokens) <= 1e-5
    wanted = (8 if alpha is None else alpha) / 4
    assert {row.scaling for row in inspect_adapter(folder).adapters} == {wanted}
