"""Quantized layers: bitsandbytes is the reference, and nothing that a model stores may change under evaluation."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import bitsandbytes as bnb
import bitsandbytes.functional as bnb_functional
import pytest
import torch
from torch import nn

import lorakit
from helpers import bitsandbytes_weight, make_llama, randomize
from lorakit.builtin.fourbit import FP4, NF4
from lorakit.layers.kernels.fourbit import dequantize_4bit
from lorakit.layers.kernels.fourbit_cpu import writer
from lorakit.layers.kernels.quantizing import PIECE, PIECES_A_THREAD, quantize_4bit

QUANTIZERS = ["nf4", "nf4 double", "nf4(blocksize=128) double", "fp4", "fp4 double", "int8"]
# square, wide, and odd enough that the last block and the last byte are not full; the last in more than one piece
SHAPES = [(64, 64), (96, 160), (63, 65), (1, 1), (130, 33), (1031, 1033)]


def quantized(quant: str, shape: tuple[int, int], dtype: torch.dtype = torch.bfloat16) -> tuple[nn.Module, Any]:
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
    assert torch.equal(layer.weight, bitsandbytes_weight(packed, state))


@pytest.mark.parametrize("quant", ["nf4", "fp4"])
def test_weights_at_the_thresholds_are_bitsandbytes_own(quant: str) -> None:
    levels = bnb_functional.get_4bit_type(quant, device="cpu").sort().values
    thresholds = (levels[:-1] + levels[1:]) / 2
    beside = [torch.nextafter(thresholds, torch.tensor(end)) for end in (-1.0, 1.0)]
    values = torch.cat([thresholds, *beside, levels, torch.linspace(-1, 1, 2**16)])
    values = nn.functional.pad(values, (0, -len(values) % 63)).view(-1, 63)
    # a block whose largest weight is 1 is scaled by 1
    weights = torch.cat([torch.ones(len(values), 1), values], 1).view(-1)
    packed, _ = bnb_functional.quantize_4bit(weights, blocksize=64, quant_type=quant)
    assert torch.equal(quantize_4bit(weights, 64, quant)[0], packed)


@pytest.mark.parametrize("threads", [1, 3])
def test_threads_that_share_a_weight_give_the_same_bits(threads: int, monkeypatch: pytest.MonkeyPatch) -> None:
    weights = nn.Parameter(torch.randn(4 * PIECES_A_THREAD * PIECE + 33, generator=torch.Generator().manual_seed(0)))
    packed, state = bnb_functional.quantize_4bit(weights.detach(), blocksize=64, quant_type="nf4")
    monkeypatch.setattr(torch, "get_num_threads", lambda: threads)
    for grads in (torch.enable_grad(), torch.inference_mode()):
        with grads:
            ours, scales = quantize_4bit(weights, 64, "nf4")
        assert torch.equal(ours, packed) and torch.equal(scales, state.absmax)


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
    assert x.grad is not None and float((x.grad.double() - exact).norm() / exact.norm()) < tolerance


@pytest.mark.parametrize("quant", QUANTIZERS)
def test_a_state_dict_goes_back_strictly(quant: str) -> None:
    model, layer = quantized(quant, (64, 96))
    x = torch.randn(3, 96, dtype=torch.bfloat16)
    before = model(x)
    torch.manual_seed(99)
    other: Any = nn.Sequential(nn.Linear(96, 64)).to(torch.bfloat16)
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
    assert model.float().get_submodule("0").weight.dtype == torch.float32


def test_autograd_keeps_no_dequantized_weight() -> None:
    model, _ = quantized("nf4 double", (256, 512), torch.float32)
    kept: list[int] = []
    x = torch.randn(2, 512, requires_grad=True)

    def keep(value: torch.Tensor) -> torch.Tensor:
        kept.append(value.numel())
        return value

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda value: value):
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
    layer: Any = model.model.layers[0].self_attn.q_proj
    assert isinstance(layer, bnb.nn.Linear8bitLt if kind == "int8" else bnb.nn.Linear4bit)
    weight: Any = layer.weight
    stored = (weight.CB if kind == "int8" else weight.data).clone()
    lorakit.apply("adapt q_proj rank 4", model)
    own: Any = model.get_submodule("model.layers.0.self_attn.q_proj.base_layer")
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


def closed_form(
    tensors: dict[str, torch.Tensor], quant_type: str, blocksize: int, shape: tuple[int, int]
) -> torch.Tensor:
    """Return a four-bit weight from its definition: level times scale, the scales running on over the rows."""
    count = shape[0] * shape[1]
    absmax = tensors["absmax"]
    if "nested_absmax" in tensors:
        nested = tensors["nested_absmax"].repeat_interleave(256)[: absmax.numel()]
        absmax = bnb.functional.create_dynamic_map()[absmax.int()] * nested + tensors["nested_offset"]
    packed = tensors["packed"].view(-1).int()
    codes = torch.stack((packed >> 4, packed & 15), 1).view(-1)[:count]
    levels = bnb.functional.get_4bit_type(quant_type, device="cpu")
    return (levels[codes] * absmax.repeat_interleave(blocksize)[:count]).view(shape)


@pytest.mark.parametrize("double", [False, True])
@pytest.mark.parametrize("kind", [NF4, FP4])
@pytest.mark.parametrize("blocksize", [32, 64, 128, 4096])
def test_four_bits_are_level_times_scale_whatever_the_width_of_a_row(
    kind: type[NF4 | FP4], blocksize: int, double: bool
) -> None:
    quantizer = kind(blocksize=blocksize, double=double)  # type: ignore[arg-type]
    for shape in ((1, 1), (3, 63), (7, 126), (31, 130), (33, 100), (64, 96), (64, 64), (2, 8256)):
        for dtype in (torch.float32, torch.bfloat16):
            stored = quantizer.quantize(torch.randn(shape, generator=torch.Generator().manual_seed(1)).to(dtype))
            wanted = closed_form(dict(stored.tensors), quantizer.name, blocksize, shape).to(dtype)
            assert torch.equal(quantizer.dequantize(stored), wanted), (shape, dtype)


def near_thresholds(quant_type: str) -> torch.Tensor:
    """Return blocks of 32 and 64 that hold every threshold between two levels, and its neighbours, at many scales."""
    levels = bnb.functional.get_4bit_type(quant_type, device="cpu").sort()[0]
    middles = (levels[1:] + levels[:-1]) / 2
    above, below = (torch.nextafter(middles, torch.full_like(middles, end)) for end in (9.0, -9.0))
    values = torch.cat([middles, above, below, levels]).repeat(8)[: 31 * 8].view(8, 31)
    blocks = torch.cat([torch.ones(8, 1), values], 1)
    return (blocks * torch.tensor([1.0, 0.5, 3.0, 1e-3, 5e4, 1e-39, 1e-30, 0.1]).unsqueeze(1)).view(-1)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("blocksize", [32, 64, 4096])
@pytest.mark.parametrize("quant_type", ["nf4", "fp4"])
def test_quantizing_on_the_cpu_gives_the_bits_of_bitsandbytes(
    quant_type: str, blocksize: int, dtype: torch.dtype
) -> None:
    torch.manual_seed(0)
    cases = [torch.randn(count) for count in (1, 2, 63, 64, 65, 129, 4097, 65536, 65537, 150_001)]
    cases += [near_thresholds(quant_type), torch.zeros(131), torch.zeros(4096), 1e-40 * torch.randn(512)]
    cases += [torch.full((64,), -0.0), -torch.ones(65), torch.full((33,), 1e-45)]
    quantizer = {"nf4": NF4, "fp4": FP4}[quant_type](blocksize=blocksize)  # type: ignore[arg-type]
    for case in cases:
        weight = case.to(dtype)
        packed, state = bnb.functional.quantize_4bit(weight, blocksize=blocksize, quant_type=quant_type)
        own = quantizer.quantize(weight.view(1, -1)).tensors
        assert torch.equal(own["packed"], packed) and own["packed"].shape == packed.shape, len(case)
        assert torch.equal(own["absmax"].view(torch.int32), state.absmax.view(torch.int32)), len(case)


def test_a_state_dict_that_holds_a_scalar_without_a_dimension_is_read() -> None:
    model, layer = quantized("nf4 double", (64, 96), torch.float32)
    state = {name: value.clone() for name, value in model.state_dict().items()}
    wanted, offset = layer.weight, state["0.weight_nested_offset"]
    assert offset.shape == (1,)
    layer.weight_nested_offset.zero_()
    model.load_state_dict({**state, "0.weight_nested_offset": offset.view(())}, strict=True)
    assert layer.weight_nested_offset.shape == (1,) and torch.equal(layer.weight, wanted)


@pytest.mark.parametrize(
    "quant", ["", "nf4", "nf4 double", "fp4 double", "int8", "int8(threshold=0)", "hqq", "ao_int8", "ao_nvfp4"]
)
def test_an_adapted_layer_compiles_to_one_graph(quant: str) -> None:
    from torch._dynamo.testing import CompileCounterWithBackend

    torch._dynamo.reset()
    torch.manual_seed(0)
    model: Any = lorakit.apply(f"adapt 0 rank 4 {'quant ' * bool(quant)}{quant}", nn.Sequential(nn.Linear(64, 48)))
    nn.init.normal_(model[0].lora_B)
    x = torch.randn(3, 5, 64, requires_grad=True)
    graphs = CompileCounterWithBackend("aot_eager")
    results = []
    for call in (model, torch.compile(model, fullgraph=True, backend=graphs)):
        y = call(x)
        y.square().sum().backward()
        results.append([y.detach(), x.grad, model[0].lora_A.grad, model[0].lora_B.grad])
        x.grad = model[0].lora_A.grad = model[0].lora_B.grad = None
    assert graphs.frame_count == 1
    for eager, compiled in zip(*results, strict=True):
        torch.testing.assert_close(compiled, eager)


def test_a_float32_adapter_multiplies_in_the_dtype_of_a_bfloat16_base_and_gets_float32_gradients() -> None:
    torch.manual_seed(0)
    model: Any = lorakit.apply("adapt 0 rank 4 dtype fp32", nn.Sequential(nn.Linear(64, 48)).to(torch.bfloat16))
    nn.init.normal_(model[0].lora_B)
    x = torch.randn(5, 64).to(torch.bfloat16)
    kept: list[torch.dtype] = []

    def keep(value: torch.Tensor) -> torch.Tensor:
        kept.append(value.dtype)
        return value

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda value: value):
        y = model(x)
    assert y.dtype == torch.bfloat16 and set(kept) == {torch.bfloat16}
    y.float().sum().backward()
    assert model[0].lora_A.grad.dtype == model[0].lora_B.grad.dtype == torch.float32
    rounded = [matrix.detach().to(torch.bfloat16).double() for matrix in (model[0].lora_A, model[0].lora_B)]
    exact = model[0].base_layer(x).double() + model[0].scaling * x.double() @ rounded[0].T @ rounded[1].T
    torch.testing.assert_close(y.double(), exact, rtol=2e-2, atol=2e-2)


@pytest.mark.parametrize("use_reentrant", [False, True])
def test_recomputed_blocks_give_the_same_gradients(use_reentrant: bool, tokens: torch.Tensor) -> None:
    found = []
    for recompute in (False, True):
        model = lorakit.apply("adapt @linear rank 4 quant nf4 double dtype fp32", make_llama()).train()
        randomize(model)
        if recompute:
            model.gradient_checkpointing_enable({"use_reentrant": use_reentrant})  # type: ignore[operator]
            model.enable_input_require_grads()  # type: ignore[operator]
        model(input_ids=tokens, labels=tokens).loss.backward()
        found.append({name: value.grad for name, value in model.named_parameters() if value.grad is not None})
    kept, again = found
    assert kept.keys() == again.keys() and len(kept) == 28
    assert all(torch.equal(kept[name], again[name]) for name in kept)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("blocksize", [32, 64, 1024])
@pytest.mark.parametrize("kind", [NF4, FP4])
def test_what_is_written_for_a_product_has_the_bits_of_the_op(
    kind: type[NF4 | FP4], blocksize: int, dtype: torch.dtype
) -> None:
    for shape in ((2, 1024), (96, 2048), (1, 4096)):
        stored = kind(blocksize=blocksize).quantize(torch.randn(shape).to(dtype))  # type: ignore[arg-type]
        write = writer(shape, blocksize, kind.name, dtype)
        assert write is not None
        weight = dequantize_4bit(stored.tensors, blocksize, kind.name, shape, dtype)
        assert torch.equal(write(stored.tensors["packed"], stored.tensors["absmax"]), weight)


def test_a_product_writes_over_no_weight_that_anyone_holds() -> None:
    (_, layer), (_, other) = quantized("nf4 double", (64, 64)), quantized("nf4", (64, 64))
    held, x = layer.weight, torch.randn(3, 64).bfloat16()
    copy, first = held.clone(), layer(x)
    # another thread has memory of its own
    with ThreadPoolExecutor() as pool:
        results = list(pool.map(lambda one: one(x), [other, layer] * 8))
    assert torch.equal(held, copy) and torch.equal(layer(x), first)
    assert all(torch.equal(one, first) for one in results[1::2])
    with torch.inference_mode():
        quantized("nf4", (128, 128))[1](torch.randn(3, 128).bfloat16())
    x.requires_grad_()
    layer(x).sum().backward()
    torch.testing.assert_close(x.grad, held.sum(0).expand(3, 64), rtol=0.02, atol=0.02)


def test_weights_that_bitsandbytes_has_another_way_for_go_by_its_op() -> None:
    for shape, blocksize in (((63, 65), 64), ((2, 4096), 2048), ((0, 64), 64), ((8192, 8192), 64)):
        assert writer(shape, blocksize, "nf4", torch.float32) is None
