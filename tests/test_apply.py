"""Applying a plan: nothing changes before the first step, only adapters train, equal seeds give equal bits."""

from __future__ import annotations

import copy
import gc
import weakref
from typing import Any

import pytest
import torch
from torch import nn

import lorakit
from helpers import adapters, make_gpt2, make_llama, randomize
from lorakit.layers.lora_linear import LoRALinear


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("init", ["gaussian", "gaussian(sigma=3.0)", "kaiming"])
def test_a_fresh_adapter_changes_no_bit(tokens: torch.Tensor, dtype: torch.dtype, init: str) -> None:
    model = make_llama().to(dtype).eval()
    before = model(tokens).logits
    lorakit.apply(f"adapt @linear rank 4 init {init} dropout 0.1", model)
    model.eval()
    assert torch.equal(model(tokens).logits, before)


def test_conv1d_too(gpt2: nn.Module, tokens: torch.Tensor) -> None:
    before = gpt2(tokens).logits
    lorakit.apply("adapt c_attn,c_fc rank 4", gpt2)
    assert torch.equal(gpt2(tokens).logits, before)
    randomize(gpt2)
    layer: Any = gpt2.get_submodule("transformer.h.0.attn.c_attn")
    x = torch.randn(5, 64)
    expected = x @ (layer.base_layer.weight + layer.scaling * (layer.lora_B @ layer.lora_A).T) + layer.base_layer.bias
    torch.testing.assert_close(layer(x), expected)


def test_the_forward_is_the_papers_formula() -> None:
    model = nn.Sequential(nn.Linear(12, 7))
    lorakit.apply("adapt 0 rank 3 alpha 6", model)
    randomize(model)
    layer: Any = model[0]
    x = torch.randn(4, 12, dtype=torch.float64)
    weight, bias = layer.base_layer.weight.double(), layer.base_layer.bias.double()
    expected = x @ weight.T + bias + 2.0 * (x @ layer.lora_A.double().T) @ layer.lora_B.double().T
    torch.testing.assert_close(layer(x.float()).double(), expected, rtol=1e-5, atol=1e-5)


def test_only_adapters_and_train_targets_learn(llama: nn.Module, tokens: torch.Tensor) -> None:
    start = {name: value.detach().clone() for name, value in llama.named_parameters()}
    lorakit.apply("adapt q_proj,v_proj rank 4\ntrain model.norm", llama)
    learned = {name for name, value in llama.named_parameters() if value.requires_grad}
    assert learned == {"model.norm.weight"} | {
        f"model.layers.{n}.self_attn.{name}_proj.lora_{side}" for n in range(2) for name in "qv" for side in "AB"
    }
    optimizer = lorakit.optimizer(llama, lr=1e-2)
    for _ in range(3):
        optimizer.zero_grad()
        llama(tokens, labels=tokens).loss.backward()
        optimizer.step()
    for name, value in llama.named_parameters():
        original = name.replace("base_layer.", "")
        if name not in learned:
            assert value.grad is None
            assert torch.equal(value, start[original])
        elif original in start:
            assert not torch.equal(value, start[original])


def test_adapter_biases_train_where_asked(gpt2: nn.Module) -> None:
    lorakit.apply("adapt c_attn rank 2 bias adapter", gpt2)
    learned = {name for name, value in gpt2.named_parameters() if value.requires_grad and name.endswith("bias")}
    assert learned == {f"transformer.h.{n}.attn.c_attn.base_layer.bias" for n in range(2)}


def test_the_same_seed_gives_the_same_bits(llama: nn.Module) -> None:
    plan = lorakit.plan("adapt q_proj,v_proj rank 4 quant nf4 double", llama)
    one, two, other = (copy.deepcopy(llama) for _ in range(3))
    first = adapters(lorakit.apply(plan, one, seed=7))
    torch.manual_seed(12345)
    second = adapters(lorakit.apply(plan, two, seed=7))
    third = adapters(lorakit.apply(plan, other, seed=8))
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert not any(torch.equal(first[name], third[name]) for name in first if "lora_A" in name)


def test_a_module_draws_the_same_whatever_else_is_adapted(llama: nn.Module) -> None:
    alone = adapters(lorakit.apply("adapt layers.1.self_attn.v_proj rank 4", copy.deepcopy(llama)))
    among = adapters(lorakit.apply("adapt @linear rank 4", copy.deepcopy(llama)))
    assert all(torch.equal(alone[name], among[name]) for name in alone)


@pytest.mark.parametrize("init", ["gaussian", "gaussian(sigma=0.5)", "kaiming"])
def test_start_values_have_the_stated_spread(init: str) -> None:
    model: Any = nn.Sequential(nn.Linear(1024, 512))
    lorakit.apply(f"adapt 0 rank 256 init {init}", model)
    spread = float(model[0].lora_A.detach().std())
    expected = {"gaussian": 1024**-0.5, "gaussian(sigma=0.5)": 0.5, "kaiming": (3 * 1024) ** -0.5}[init]
    # 262,144 draws: the standard error of the estimate is under 0.2 %
    assert abs(spread / expected - 1) < 0.01
    assert not model[0].lora_B.any()


def test_a_failure_leaves_the_model_untouched(llama: nn.Module) -> None:
    plan = lorakit.plan("adapt @attention rank 4 quant nf4", llama)
    before = {name: (value, value.requires_grad) for name, value in llama.named_parameters()}
    modules = [type(module) for module in llama.modules()]
    # a weight that no quantizer takes, met after other layers were built already
    broken: Any = llama.get_submodule("model.layers.1.self_attn.o_proj")
    broken.weight = nn.Parameter(broken.weight.to(torch.float64))
    with pytest.raises(
        lorakit.PluginError, match=r"quantizer `nf4` of lorakit .* failed on `model.layers.1.self_attn.o_proj`"
    ):
        lorakit.apply(plan, llama)
    assert [type(module) for module in llama.modules()] == modules
    after = {name: (value, value.requires_grad) for name, value in llama.named_parameters()}
    assert all(
        after[name][0] is before[name][0] and after[name][1] for name in before if "1.self_attn.o_proj" not in name
    )


def test_what_cannot_be_applied_is_refused(llama: nn.Module) -> None:
    plan = lorakit.plan("adapt q_proj rank 4", llama)
    with pytest.raises(lorakit.PlanError, match="for another model"):
        lorakit.apply(plan, make_gpt2())
    with torch.device("meta"):
        empty = make_llama()
    with pytest.raises(lorakit.ModelError, match="no weights"):
        lorakit.apply(plan, empty)
    lorakit.apply(plan, llama)
    with pytest.raises(lorakit.ModelError, match="adapted already"):
        lorakit.apply(plan, llama)
    with pytest.raises(lorakit.ModelError, match="has no adapters"):
        lorakit.optimizer(make_gpt2())


def test_a_module_under_two_names_is_adapted_under_both() -> None:
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first = nn.Linear(4, 4)
            self.second = self.first

    model = lorakit.apply("adapt first rank 2", Twice())
    assert isinstance(model.first, LoRALinear)
    assert model.second is model.first


def test_learning_rates_by_rule(llama: nn.Module) -> None:
    text = "adapt q_proj rank 2 lr 1e-3 lr_ratio 16\nadapt v_proj rank 2\ntrain model.norm lr 5e-5\n"
    lorakit.apply(f"{text}optimizer sgd lr 0.5", llama)
    rates = {
        name: group["lr"]
        for group in lorakit.optimizer(llama).param_groups
        for name, value in llama.named_parameters()
        if any(value is parameter for parameter in group["params"])
    }
    layer = "model.layers.0.self_attn"
    assert rates[f"{layer}.q_proj.lora_A"] == 1e-3
    assert rates[f"{layer}.q_proj.lora_B"] == 1.6e-2
    assert rates[f"{layer}.v_proj.lora_B"] == 0.5
    assert rates["model.norm.weight"] == 5e-5
    overridden = {group["lr"] for group in lorakit.optimizer(llama, lr=0.25).param_groups}
    assert overridden == {1e-3, 1.6e-2, 0.25, 5e-5}


@pytest.mark.parametrize(
    ("name", "kind"), [("adamw", "AdamW"), ("adamw8bit", "AdamW8bit"), ("sgd(momentum=0.9, nesterov=true)", "SGD")]
)
def test_optimizers_step(llama: nn.Module, tokens: torch.Tensor, name: str, kind: str) -> None:
    lorakit.apply(f"adapt q_proj rank 4\noptimizer {name} lr 1e-2", llama)
    optimizer = lorakit.optimizer(llama)
    assert type(optimizer).__name__ == kind
    start = adapters(llama)
    llama(tokens, labels=tokens).loss.backward()
    optimizer.step()
    assert any(not torch.equal(value, start[name]) for name, value in adapters(llama).items())


def test_a_copy_is_a_model_of_its_own(llama: nn.Module, tokens: torch.Tensor) -> None:
    lorakit.apply("adapt q_proj rank 4 quant nf4 double", llama)
    twin = copy.deepcopy(llama)
    randomize(twin)
    assert not torch.equal(twin(tokens).logits, llama(tokens).logits)
    assert lorakit.summary(twin) == lorakit.summary(llama)


@pytest.mark.parametrize("init", ["gaussian", "spectral"])
def test_a_weight_goes_as_soon_as_it_is_quantized(init: str) -> None:
    model = make_llama()
    originals = [weakref.ref(value) for name, value in model.named_parameters() if "_proj" in name]
    # Python would find rings of objects when it gets round to it, which a device with little memory cannot await
    gc.collect()
    gc.disable()
    try:
        lorakit.apply(f"adapt @linear rank 2 init {init} quant nf4 double", model)
        assert originals and [one() for one in originals] == [None] * len(originals)
    finally:
        gc.enable()
