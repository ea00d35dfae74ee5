"""Bases whose files do not hold what their model needs: refused by name, and never filled at random in silence."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import LlamaConfig, LlamaForSequenceClassification

import lorakit
from helpers import QLORA, make_llama
from lorakit.cli.main import app

Tensors = dict[str, Tensor]
WEIGHTS = "model.safetensors"


def edited(folder: Path, edit: Callable[[Tensors], Tensors]) -> Path:
    """Write a folder's weights again as they are after an edit."""
    save_file(edit(load_file(folder / WEIGHTS)), folder / WEIGHTS, metadata={"format": "pt"})
    return folder


def without(part: str) -> Callable[[Tensors], Tensors]:
    return lambda tensors: {name: value for name, value in tensors.items() if part not in name}


@pytest.mark.parametrize("spec", ["adapt q_proj,v_proj rank 4", QLORA])
@pytest.mark.parametrize(
    ("edit", "named"),
    [
        (without("layers.1.mlp.up_proj"), "lack `model.layers.1.mlp.up_proj.weight`"),
        (without("layers.1.self_attn.q_proj"), "lack `model.layers.1.self_attn.q_proj.weight`"),
        (without("layers.1."), "layers.1.input_layernorm.weight`.* and 6 more"),
        (lambda held: {f"x.{name}": held[name] for name in held}, "hold `x.lm_head.weight`.* instead"),
        (lambda held: held | {"model.norm.weight": torch.ones(5)}, r"`model.norm.weight` is \(5,\).* and \(64,\)"),
    ],
    ids=["one tensor", "one that is planned", "a layer", "a prefix", "a shape"],
)
def test_what_the_files_lack_is_named_and_not_drawn(
    spec: str, edit: Callable[[Tensors], Tensors], named: str, llama_folder: Path
) -> None:
    with pytest.raises(lorakit.ModelError, match=named):
        lorakit.apply(spec, edited(llama_folder, edit))


def test_what_a_model_does_not_take_of_its_files_is_said(llama_folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    """A config that someone cut short gives a model of half its layers."""
    lorakit.apply("adapt q_proj rank 4", llama_folder)
    assert not caplog.text
    path = llama_folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"num_hidden_layers": 1}))
    for spec in ("adapt q_proj rank 4", QLORA):
        caplog.clear()
        lorakit.apply(spec, llama_folder)
        assert caplog.text.count("hold `model.layers.1.input_layernorm.weight`") == 1 and "and 6 more" in caplog.text


def test_a_tied_weight_that_is_stored_once_lacks_nothing(tmp_path: Path) -> None:
    folder = tmp_path / "tied"
    make_llama(tie_word_embeddings=True).save_pretrained(folder)
    assert "lm_head.weight" not in load_file(folder / WEIGHTS)
    model: Any = lorakit.apply("adapt q_proj rank 2", folder)
    assert torch.equal(model.lm_head.weight, load_file(folder / WEIGHTS)["model.embed_tokens.weight"])


@pytest.fixture
def headless(tmp_path: Path) -> Path:
    """A classifier's folder without the weights of its head, as a language model's looks to a classifier."""
    folder = tmp_path / "headless"
    settings: dict[str, Any] = {
        "num_hidden_layers": 1,
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_attention_heads": 4,
    }
    LlamaForSequenceClassification(LlamaConfig(**settings, vocab_size=64)).save_pretrained(folder)
    return edited(folder, without("score"))


def test_a_head_starts_anew_only_where_train_names_it(headless: Path, caplog: pytest.LogCaptureFixture) -> None:
    with pytest.raises(lorakit.ModelError, match=r"lack `score.weight`.*`train @head`"):
        lorakit.apply("adapt q_proj rank 2", headless)
    with caplog.at_level(logging.WARNING):
        heads = [lorakit.apply("adapt q_proj rank 2; train @head", headless, seed=seed) for seed in (3, 3, 4)]
    assert "lack `score.weight`: what trains there starts anew" in caplog.text
    first, again, other = (model.get_parameter("score.weight") for model in heads)
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


@pytest.mark.parametrize("keep_plan", [True, False], ids=["lorakit's", "PEFT's"])
def test_a_base_may_lack_what_the_adapter_holds_whole(headless: Path, tmp_path: Path, keep_plan: bool) -> None:
    ours = lorakit.apply("adapt q_proj rank 2; train @head", headless).eval()
    folder = lorakit.save(ours, tmp_path / "adapter")
    if not keep_plan:
        (folder / "plan.json").unlink()
    loaded = lorakit.load(folder, headless)
    assert torch.equal(loaded.get_parameter("score.weight"), ours.get_parameter("score.weight"))


def test_a_merge_does_not_write_a_model_that_lacks_a_tensor(llama_folder: Path, tmp_path: Path) -> None:
    folder = lorakit.save(lorakit.apply("adapt q_proj rank 2", llama_folder), tmp_path / "adapter")
    edited(llama_folder, without("layers.1.mlp.up_proj"))
    with pytest.raises(lorakit.ModelError, match="lack `model.layers.1.mlp.up_proj.weight`"):
        app(["merge", str(folder), str(llama_folder), "-o", str(tmp_path / "merged")], standalone_mode=False)
    assert not (tmp_path / "merged").exists()
