"""Both ways with PEFT: it computes what we saved, and we compute what it saved."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from torch import nn

import lorakit
from helpers import make_gpt2, make_llama, randomize

TOLERANCE = 1e-5

SPECS = {
    "one line": "adapt q_proj,v_proj rank 4",
    "ranks and alphas": "adapt @linear rank 4 alpha 12\nadapt layers[1].@mlp rank 2 alpha 1\nadapt o_proj rank 8",
    "rslora": "adapt @attention rank 4 alpha 6 scaling rslora",
    "mixed scalings": "adapt @attention rank 4 alpha 6 scaling rslora\nadapt @mlp rank 3 alpha 5",
    "some layers": "adapt q_proj rank 4 layers 1",
    "trained norms and head": "adapt q_proj rank 4\ntrain model.norm\ntrain @head",
    "head": "adapt @head rank 4",
}


def peft_logits(base: nn.Module, folder: Path, tokens: torch.Tensor) -> torch.Tensor:
    return PeftModel.from_pretrained(base, str(folder)).eval()(tokens).logits


@pytest.mark.parametrize("name", SPECS)
def test_peft_computes_what_we_saved(name: str, tokens: torch.Tensor, tmp_path: Path) -> None:
    ours = lorakit.apply(SPECS[name], make_llama().eval())
    randomize(ours)
    with torch.no_grad():
        for parameter in ours.parameters():
            if parameter.requires_grad:
                parameter.add_(0.01)
    lorakit.save(ours, tmp_path / "adapter")
    difference = (peft_logits(make_llama(), tmp_path / "adapter", tokens) - ours(tokens).logits).abs().max()
    assert float(difference) <= TOLERANCE
    # an adapter that changes nothing would pass as well
    assert float((make_llama().eval()(tokens).logits - ours(tokens).logits).abs().max()) > 1e-2


@pytest.mark.parametrize("spec", ["adapt c_attn,c_proj rank 4", "adapt c_attn rank 4 bias adapter"])
def test_conv1d(spec: str, tokens: torch.Tensor, tmp_path: Path) -> None:
    ours = lorakit.apply(spec, make_gpt2().eval())
    randomize(ours)
    with torch.no_grad():
        for parameter in ours.parameters():
            if parameter.requires_grad:
                parameter.add_(0.01)
    lorakit.save(ours, tmp_path / "adapter")
    theirs = peft_logits(make_gpt2(), tmp_path / "adapter", tokens)
    assert float((theirs - ours(tokens).logits).abs().max()) <= TOLERANCE
    again = lorakit.load(tmp_path / "adapter", make_gpt2())
    assert torch.equal(again(tokens).logits, ours(tokens).logits)


@pytest.mark.parametrize(
    "config",
    [
        {"target_modules": ["q_proj", "v_proj"], "r": 4, "lora_alpha": 8},
        {"target_modules": "all-linear", "r": 4, "use_rslora": True, "lora_alpha": 3},
        {
            "target_modules": r".*\.(q|gate)_proj",
            "r": 4,
            "rank_pattern": {"layers.1.self_attn.q_proj": 8},
            "alpha_pattern": {"gate_proj": 1},
        },
        {"target_modules": ["q_proj"], "r": 4, "modules_to_save": ["lm_head"], "lora_dropout": 0.1},
        {"target_modules": ["q_proj"], "r": 4, "layers_to_transform": [1], "init_lora_weights": "gaussian"},
    ],
)
def test_we_compute_what_peft_saved(config: dict[str, Any], tokens: torch.Tensor, tmp_path: Path) -> None:
    theirs = get_peft_model(make_llama(), LoraConfig(**config)).eval()
    randomize(theirs)
    with torch.no_grad():
        for parameter in theirs.parameters():
            if parameter.requires_grad:
                parameter.add_(0.01)
    theirs.save_pretrained(str(tmp_path / "adapter"))
    ours = lorakit.load(tmp_path / "adapter", make_llama())
    assert float((ours(tokens).logits - theirs(tokens).logits).abs().max()) <= TOLERANCE
    merged = lorakit.merge(ours)
    assert float((merged(tokens).logits - theirs(tokens).logits).abs().max()) <= 1e-4


def test_what_we_saved_we_load_bit_for_bit(tokens: torch.Tensor, tmp_path: Path) -> None:
    spec = "adapt @attention rank 4 alpha 6 scaling rslora dropout 0.1 quant nf4 double\nquantize @mlp fp4\ntrain @norm"
    ours = lorakit.apply(spec, make_llama().to(torch.bfloat16))
    randomize(ours)
    ours.eval()
    lorakit.save(ours, tmp_path / "adapter")
    again = lorakit.load(tmp_path / "adapter", make_llama().to(torch.bfloat16))
    assert not again.training
    assert torch.equal(again(tokens).logits, ours(tokens).logits)
    assert lorakit.summary(again) == lorakit.summary(ours)
    plain = lorakit.load(tmp_path / "adapter", make_llama().to(torch.bfloat16), quantize=False)
    assert {row.weight_dtype for row in lorakit.summary(plain).modules} == {"bfloat16"}


def test_the_config_is_short_where_names_suffice(tmp_path: Path) -> None:
    ours = lorakit.apply("adapt q_proj,v_proj rank 4\nadapt k_proj rank 4 layers 1", make_llama())
    lorakit.save(ours, tmp_path / "adapter")
    config = json.loads((tmp_path / "adapter" / "adapter_config.json").read_text())
    assert config["target_modules"] == ["model.layers.1.self_attn.k_proj", "q_proj", "v_proj"]
    assert (config["r"], config["lora_alpha"], config["rank_pattern"]) == (4, 4, {})


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        ({"use_dora": True}, "sets `use_dora` to True"),
        ({"peft_type": "IA3"}, "of PEFT type 'IA3'"),
        ({"init_lora_weights": "pissa"}, "init_lora_weights='pissa'"),
        ({"brand_new_switch": 3}, "sets `brand_new_switch` to 3"),
    ],
)
def test_a_config_that_we_cannot_honour_is_refused(
    change: dict[str, object], complaint: str, tokens: torch.Tensor, tmp_path: Path
) -> None:
    ours = lorakit.apply("adapt q_proj rank 4", make_llama())
    folder = lorakit.save(ours, tmp_path / "adapter")
    path = folder / "adapter_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **change}))
    with pytest.raises(lorakit.AdapterError, match=complaint):
        lorakit.load(folder, make_llama())


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_the_dtype_of_the_plan_is_the_dtype_everywhere(dtype: str, tmp_path: Path) -> None:
    short = {"float32": "fp32", "bfloat16": "bf16"}[dtype]
    ours = lorakit.apply(f"adapt q_proj rank 4 quant nf4 dtype {short}", make_llama().to(torch.bfloat16))
    again = lorakit.load(lorakit.save(ours, tmp_path / "adapter"), make_llama().to(torch.bfloat16))
    for model in (ours, again):
        assert {str(value.dtype) for name, value in model.named_parameters() if "lora_" in name} == {f"torch.{dtype}"}


def test_same_training_as_peft(tokens: torch.Tensor) -> None:
    """The same A and B on both sides, then 20 steps of AdamW: the losses agree step by step."""
    ours = lorakit.apply("adapt q_proj,v_proj rank 4 alpha 8", make_llama())
    theirs = get_peft_model(make_llama(), LoraConfig(r=4, lora_alpha=8, target_modules=["q_proj", "v_proj"]))
    own = {name: value for name, value in ours.named_parameters() if value.requires_grad}
    with torch.no_grad():
        for name, value in theirs.named_parameters():
            if value.requires_grad:
                inner = name.removeprefix("base_model.model.").replace(".default.weight", "")
                value.copy_(own.pop(inner))
    assert not own
    curves = []
    for model in (ours, theirs):
        model.train()
        trained = [value for value in model.parameters() if value.requires_grad]
        optimizer = torch.optim.AdamW(trained, lr=5e-3, weight_decay=0.0)
        losses = []
        for _ in range(20):
            optimizer.zero_grad()
            loss = model(tokens, labels=tokens).loss
            loss.backward()
            optimizer.step()
            losses.append(float(loss.detach()))
        curves.append(losses)
    assert max(abs(one - two) for one, two in zip(*curves, strict=True)) <= TOLERANCE
    assert curves[0][-1] < curves[0][0] - 0.05


def test_merging_peft_way(tokens: torch.Tensor, tmp_path: Path) -> None:
    """Our merge against PEFT's own merge of the same adapter."""
    ours = lorakit.apply("adapt @linear rank 4 alpha 8", make_llama().eval())
    randomize(ours)
    folder = lorakit.save(copy.deepcopy(ours), tmp_path / "adapter")
    theirs = PeftModel.from_pretrained(make_llama(), str(folder)).merge_and_unload().eval()
    mine = lorakit.merge(ours)
    for name, value in theirs.named_parameters():
        torch.testing.assert_close(mine.get_parameter(name), value, rtol=0, atol=1e-6)
    assert not [module for module in mine.modules() if type(module).__module__.startswith("lorakit")]
