"""Quantized layers: bitsandbytes is the reference, and nothing that a model stores may change under evaluation."""

from __future__ import annotations

from pathlib import Path

import bitsandbytes as bnb
import bitsandbytes.functional as bnb_functional
import pytest
import torch
from torch import nn

import lorakit
from helpers import make_llama
from lorakit.layers.quantized_linear import QuantizedLinear

QUANTIZERS = ["nf4", "nf4 double", "nf4(blocksize=128) double", "fp4", "fp4 double", "int8"]
# square, wide, and odd enough that the last block and the last byte are not full; the last in more than one piece
SHAPES = [(64, 64), (96, 160), (63, 65), (1, 1), (130, 33), (1031, 1033)]


def quantized(
    quant: str, shape: tuple[int, int], dtype: torch.dtype = torch.bfloat16
) -> tuple[nn.Module, QuantizedLinear]:
    """Return a model of one quantized layer, and that layer."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(shape[1], shape[0])).to(dtype)
    lorakit.apply(f"quantize 0 {quant}", model)
    return model, model[0]


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("quant", QUANTIZERS[:-1])
def test_four_bits_are_bitsandbytes_own(quant: str, shape: tuple[int, int]) -> None:
    torch.manual_seed(0)
    weight = nn.Linear(shape[1], shape[0]).to(torch.bfloat16).weight.detach()
    packed, state = bnb_functional.quantize_4bit(
        weight,
        blocksize=128 if "128" in quant else 64,
        compress_statistics="double" in quant,
        quant_type=quant[:3],
    )
    _, layer = quantized(quant, shape)
    assert torch.equal(layer.weight_packed, packed)
    assert torch.equal(layer.weight, bnb_functional.dequantize_4bit(packed, state))


@pytest.mark.parametrize("shape", SHAPES)
def test_eight_bits_are_bitsandbytes_own(shape: tuple[int, int]) -> None:
    torch.manual_seed(0)
    weight = nn.Linear(shape[1], shape[0]).to(torch.bfloat16).weight.detach()
    codes, scales, _ = bnb_functional.int8_vectorwise_quant(weight.to(torch.float16))
    _, layer = quantized("int8", shape)
    assert torch.equal(layer.weight_CB, codes) and torch.equal(layer.weight_SCB, scales)


@pytest.mark.parametrize("quant", QUANTIZERS)
def test_forward_and_gradient_against_the_dequantized_weight(quant: str) -> None:
    model, layer = quantized(quant, (96, 160), torch.float32)
    x = torch.randn(4, 7, 160, requires_grad=True)
    out = model(x)
    reference = x.detach().double() @ layer.weight.double().T + layer.bias.double()
    # int8 quantizes its inputs too: 1 part in 127 of the largest, each
    tolerance = 2e-2 if quant == "int8" else 1e-5
    assert float((out.detach().double() - reference).norm() / reference.norm()) < tolerance
    gradient = torch.randn_like(out)
    out.backward(gradient)
    exact = gradient.double() @ layer.weight.double()
    assert float((x.grad.double() - exact).norm() / exact.norm()) < tolerance


@pytest.mark.parametrize("quant", QUANTIZERS)
def test_a_state_dict_goes_back_strictly(quant: str) -> None:
    model, layer = quantized(quant, (64, 96))
    x = torch.randn(3, 96, dtype=torch.bfloat16)
    before = model(x)
    torch.manual_seed(99)
    other = nn.Sequential(nn.Linear(96, 64)).to(torch.bfloat16)
    lorakit.apply(f"quantize 0 {quant}", other)
    assert not torch.equal(other(x), before)
    other.load_state_dict(model.state_dict())
    assert torch.equal(other(x), before)
    assert torch.equal(other[0].weight, layer.weight)


@pytest.mark.parametrize("quant", QUANTIZERS)
def test_evaluation_changes_nothing_that_is_stored(quant: str) -> None:
    # 64 × 64 and double quantization are where a CPU with AVX512-BF16 repacks bitsandbytes' own layer, wrongly
    model, _ = quantized(quant, (64, 64))
    before = {name: value.clone() for name, value in model.state_dict().items()}
    model.eval()
    with torch.no_grad():
        results = [model(torch.ones(2, 64, dtype=torch.bfloat16)) for _ in range(3)]
    assert torch.equal(results[0], results[2])
    after = model.state_dict()
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)
    model.train()
    torch.testing.assert_close(model(torch.ones(2, 64, dtype=torch.bfloat16)), results[0])


@pytest.mark.parametrize("quant", ["nf4 double", "int8"])
def test_casting_a_model_leaves_the_scales_alone(quant: str) -> None:
    model, layer = quantized(quant, (64, 96), torch.float32)
    before = {name: value.clone() for name, value in layer.tensors.items()}
    model.half()
    for name, value in layer.tensors.items():
        assert value.dtype == before[name].dtype
        assert torch.equal(value, before[name])
    assert layer.bias.dtype == torch.float16
    assert layer.weight.dtype == torch.float16
    assert model(torch.randn(2, 96, dtype=torch.float16)).dtype == torch.float16
    assert model.float()[0].weight.dtype == torch.float32


def test_autograd_keeps_no_dequantized_weight() -> None:
    model, _ = quantized("nf4 double", (256, 512), torch.float32)
    kept: list[int] = []
    x = torch.randn(2, 512, requires_grad=True)
    with torch.autograd.graph.saved_tensors_hooks(
        lambda value: kept.append(value.numel()) or value, lambda value: value
    ):
        model(x)
    assert sum(kept) < 256 * 512 // 4


def test_autocast() -> None:
    model, _ = quantized("nf4 double", (64, 96), torch.float32)
    x = torch.randn(2, 96, requires_grad=True)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        out = model(x)
    assert out.dtype == torch.bfloat16
    out.float().sum().backward()
    assert x.grad is not None and x.grad.dtype == torch.float32


def test_double_is_refused_where_a_quantizer_has_none() -> None:
    with pytest.raises(lorakit.SpecError, match="double"):
        lorakit.parse("quantize fc int8 double")


@pytest.mark.parametrize("kind", ["nf4", "fp4", "int8"])
def test_a_base_in_bitsandbytes_layers_hands_its_weights_over(kind: str, tokens: torch.Tensor, tmp_path: Path) -> None:
    from transformers import BitsAndBytesConfig, LlamaForCausalLM

    source = make_llama().to(torch.bfloat16)
    config = (
        BitsAndBytesConfig(load_in_8bit=True)
        if kind == "int8"
        else BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type=kind, bnb_4bit_use_double_quant=True)
    )
    source.save_pretrained(tmp_path)
    model = LlamaForCausalLM.from_pretrained(
        tmp_path, quantization_config=config, dtype=torch.bfloat16, device_map="cpu"
    )
    layer = model.model.layers[0].self_attn.q_proj
    assert isinstance(layer, bnb.nn.Linear8bitLt if kind == "int8" else bnb.nn.Linear4bit)
    stored = (layer.weight.CB if kind == "int8" else layer.weight.data).clone()
    lorakit.apply("adapt q_proj rank 4", model)
    own = model.get_submodule("model.layers.0.self_attn.q_proj.base_layer")
    assert torch.equal(own.weight_CB if kind == "int8" else own.weight_packed, stored)
    assert not [module for module in model.modules() if type(module).__module__.startswith("bitsandbytes")]
    model.train()
    loss = model(tokens, labels=tokens).loss
    loss.backward()
    assert torch.isfinite(loss)
    with pytest.raises(lorakit.PlanError, match="quantized already"):
        lorakit.plan("adapt q_proj rank 4 quant nf4", _packed(kind))


def _packed(kind: str) -> nn.Module:
    layer = bnb.nn.Linear8bitLt(8, 8, has_fp16_weights=False) if kind == "int8" else bnb.nn.Linear4bit(8, 8)
    layer.weight.data = layer.weight.data.to(torch.int8 if kind == "int8" else torch.uint8)
    model = nn.Module()
    model.q_proj = layer
    return model
