"""torchao's formats behind lorakit's words, against torchao's own configurations and in whole journeys."""

from __future__ import annotations

import dataclasses
import importlib.metadata
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import lorakit
from lorakit.testing import Check, quantizer_checks
from lorakit_torchao import NVFP4, Float8, Int4, Int8, library

QUANTIZERS = [Int4(), Int4(32, symmetric=True), Int8(), Int8(64), Float8(), Float8("e5m2", 32), NVFP4()]
CHECKS = [check for made in QUANTIZERS for check in quantizer_checks(type(made), **dataclasses.asdict(made))]
WORDS = ["ao_int4", "ao_int4(group_size=32, symmetric=true)", "ao_int8", 'ao_float8(format="e5m2")', "ao_nvfp4"]


def matrix(shape: tuple[int, int], dtype: torch.dtype = torch.float32) -> Tensor:
    return (0.02 * torch.randn(shape, generator=torch.Generator().manual_seed(0))).to(dtype)


def configurations() -> Iterator[tuple[Any, Any]]:
    """Yield quantizers with the configurations of torchao's that they stand for."""
    ao = library.module("torchao.quantization")
    group = ao.PerGroup(32)
    symmetric, asymmetric = ao.MappingType.SYMMETRIC, ao.MappingType.ASYMMETRIC
    int4 = torch.int4  # type: ignore[attr-defined]
    yield Int4(32), ao.IntxWeightOnlyConfig(weight_dtype=int4, granularity=group, mapping_type=asymmetric)
    yield (
        Int4(32, symmetric=True),
        ao.IntxWeightOnlyConfig(weight_dtype=int4, granularity=group, mapping_type=symmetric),
    )
    yield Int8(), ao.Int8WeightOnlyConfig(set_inductor_config=False)
    yield Int8(32), ao.Int8WeightOnlyConfig(granularity=group, set_inductor_config=False)
    yield Float8(), ao.Float8WeightOnlyConfig(set_inductor_config=False)
    e5m2 = ao.Float8WeightOnlyConfig(weight_dtype=torch.float8_e5m2, granularity=group, set_inductor_config=False)
    yield Float8("e5m2", 32), e5m2
    yield NVFP4(), library.module("torchao.prototype.mx_formats").NVFP4WeightOnlyConfig()


@pytest.mark.parametrize("index", range(7))
def test_the_values_are_those_of_torchao_itself(index: int) -> None:
    quantizer, config = list(configurations())[index]
    layer = nn.Linear(96, 48, bias=False)
    layer.weight = nn.Parameter(matrix((48, 96)), requires_grad=False)
    library.module("torchao.quantization").quantize_(layer, config)
    ours = quantizer.dequantize(quantizer.quantize(matrix((48, 96))))
    assert torch.equal(ours, layer.weight.dequantize())


@pytest.mark.parametrize("check", CHECKS, ids=str)
def test_conformance(check: Check) -> None:
    check()


@pytest.mark.parametrize("quantizer", QUANTIZERS, ids=str)
def test_rows_of_zeros_stay_zeros(quantizer: Any) -> None:
    weight = matrix((4, 64))
    weight[1:] = 0
    assert not quantizer.dequantize(quantizer.quantize(weight))[1:].any()


def make_llama() -> Any:
    """Return a random two-layer Llama."""
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    config = LlamaConfig(
        num_hidden_layers=2,
        hidden_size=64,
        intermediate_size=96,
        num_attention_heads=4,
        num_key_value_heads=2,
        vocab_size=128,
        max_position_embeddings=64,
    )
    return LlamaForCausalLM(config).eval()


def train(model: nn.Module, tokens: Tensor, steps: int = 3) -> list[float]:
    """Return the loss of each step."""
    optimizer = lorakit.optimizer(model, lr=1e-2)
    losses = []
    model.train()
    for _ in range(steps):
        loss = model(tokens, labels=tokens).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(float(loss))
    model.eval()
    return losses


@pytest.mark.parametrize("word", WORDS)
def test_apply_train_save_load_merge(word: str, tmp_path: Path) -> None:
    tokens = torch.randint(0, 128, (2, 12), generator=torch.Generator().manual_seed(1))
    model = lorakit.apply(f"adapt q_proj,v_proj rank 4 dtype fp32 quant {word}\nquantize @linear {word}", make_llama())
    assert [module.bits_per_weight < 16 for module in lorakit.summary(model).modules].count(True) == 14
    stored = {name: value.clone() for name, value in model.state_dict().items() if "weight_" in name}
    losses = train(model, tokens)
    assert losses[-1] < losses[0]
    assert all(torch.equal(_bytes(value), _bytes(model.state_dict()[name])) for name, value in stored.items())
    with torch.no_grad():
        trained = model(tokens).logits
        again = lorakit.load(lorakit.save(model, tmp_path / "adapter"), make_llama())
        assert torch.equal(again(tokens).logits, trained)
        merged = lorakit.merge(again)
        torch.testing.assert_close(merged(tokens).logits, trained, rtol=1e-4, atol=1e-5)
    assert not any(type(module).__module__.startswith("lorakit") for module in merged.modules())


def _bytes(value: Tensor) -> Tensor:
    return value.contiguous().flatten().view(torch.uint8)


def lorakit_command(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "lorakit", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def test_check_and_plan_on_the_command_line(tmp_path: Path) -> None:
    make_llama().config.save_pretrained(tmp_path / "model")
    spec = tmp_path / "spec.lora"
    spec.write_text("use lorakit-torchao >= 0.1\nadapt q_proj rank 4 quant ao_int4(group_size=32)\n")
    checked = lorakit_command("check", spec)
    assert checked.returncode == 0, checked.stderr
    planned = lorakit_command("plan", spec, tmp_path / "model")
    # 64 × 64 weights of 4 bits, and a float32 scale and an int8 zero point for each 32 of them
    assert planned.returncode == 0 and "16.0 → 2.6 KiB" in planned.stdout, planned.stderr
    # transformers imports torchao, which has much to tell of kernels for other machines
    assert not planned.stderr
    spec.write_text("adapt q_proj rank 4 quant ao_int4(group_size=48)\n")
    refused = lorakit_command("check", spec)
    assert refused.returncode == 2 and "`group_size` takes one of 32, 64, 128, 256, not 48" in refused.stdout


def test_check_loads_neither_torch_nor_torchao() -> None:
    probe = (
        "import sys, lorakit.plugins as p; assert 'ao_int4' in p.default_plugins().quantizers;"
        "sys.exit(' '.join(name for name in ('torch', 'torchao') if name in sys.modules) or 0)"
    )
    done = subprocess.run([sys.executable, "-c", probe], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_an_old_torchao_is_refused_with_the_module_and_the_command(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.metadata, "version", lambda _: "0.9.0")
    library.module.cache_clear()
    with pytest.raises(lorakit.PluginError) as refused:
        lorakit.apply("adapt q_proj rank 4 quant ao_int8", make_llama())
    library.module.cache_clear()
    assert "quantizer `ao_int8` of lorakit-torchao 0.1.0 failed on `model.layers.0.self_attn.q_proj`" in str(
        refused.value
    )
    assert "this needs torchao 0.18 or later (pip install 'torchao>=0.18'): version 0.9.0 is installed" in str(
        refused.value
    )
