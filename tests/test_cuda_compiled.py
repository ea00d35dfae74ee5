"""Compiled blocks on a GPU: the kernel that merges, Inductor's code, what is sent away, and graphs of all of it."""

from __future__ import annotations

from typing import Any

import bitsandbytes.functional as bnb
import pytest
import torch
from torch import Tensor

import lorakit
from helpers import make_llama
from lorakit.layers.kernels.merging import _merged

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")

SPEC = "adapt @linear rank 16 alpha 16 quant nf4 double"
SIZES: dict[str, Any] = {
    "hidden_size": 512, "intermediate_size": 1376, "num_attention_heads": 8, "num_hidden_layers": 3,
    "vocab_size": 1024, "max_position_embeddings": 512,
}  # fmt: skip


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
@pytest.mark.parametrize("double", [True, False])
@pytest.mark.parametrize(
    ("rows", "columns", "rank", "blocksize", "quant_type"),
    [
        (4096, 4096, 16, 64, "nf4"),
        (1000, 672, 5, 32, "fp4"),
        (129, 416, 0, 32, "nf4"),
        (77, 96, 33, 32, "nf4"),
        (512, 1024, 128, 128, "nf4"),
        (40, 64, 200, 64, "nf4"),
    ],
)
def test_merged_weights_are_those_of_float64(
    rows: int, columns: int, rank: int, blocksize: int, quant_type: str, double: bool, dtype: torch.dtype
) -> None:
    generator = torch.Generator("cuda").manual_seed(rows)
    weight = torch.randn(rows, columns, device="cuda", generator=generator)
    packed, state = bnb.quantize_4bit(weight, blocksize=blocksize, compress_statistics=double, quant_type=quant_type)
    stored = [packed, state.absmax]
    if double:
        stored += [state.state2.absmax, state.offset.view(1)]
    lora_A = torch.randn(rank, columns, device="cuda", generator=generator).to(dtype)
    lora_B = torch.randn(rows, rank, device="cuda", generator=generator).to(dtype)
    arguments = (stored, len(stored), [lora_A, lora_B], [0.3], blocksize, quant_type, columns, dtype)
    found = torch.ops.lorakit.merged_4bit(*arguments)
    exact = bnb.dequantize_4bit(packed, state).double() + 0.3 * (lora_B.double() @ lora_A.double())
    eps = torch.finfo(dtype).eps
    assert bool(((found.double() - exact).abs() <= eps * exact.abs() + 2e-5).all())
    # as where there is no kernel, but for sums in another order
    assert float((found != _merged(*arguments)).float().mean()) < (2e-3 if dtype != torch.float32 else 1.0)
    if not rank and dtype == torch.float32:
        assert torch.equal(found, bnb.dequantize_4bit(packed, state).float())


def model_of(dtype: torch.dtype) -> Any:
    model: Any = lorakit.apply(SPEC, make_llama(**SIZES).to("cuda", dtype)).train()
    generator = torch.Generator().manual_seed(1)
    for name, value in model.named_parameters():
        if "lora_" in name:
            scale = 0.05 if "lora_B" in name else 0.1
            drawn = (torch.randn(value.shape, generator=generator) * scale).bfloat16()
            value.data = drawn.to("cuda", torch.float32 if dtype == torch.float32 else torch.bfloat16)
    return model


def gradients(model: Any) -> dict[str, Tensor]:
    ids = torch.randint(0, 1024, (2, 256), generator=torch.Generator().manual_seed(2)).cuda()
    model.zero_grad()
    model(input_ids=ids, labels=ids, use_cache=False).loss.backward()
    return {name: value.grad.double() for name, value in model.named_parameters() if value.grad is not None}


def error(found: dict[str, Tensor], wanted: dict[str, Tensor]) -> float:
    return max(float((found[name] - value).norm() / value.norm()) for name, value in wanted.items())


@pytest.mark.parametrize("kept", [0.0, 1.0])
def test_bf16_is_no_worse_than_eager_code_and_fp32_the_same(kept: float) -> None:
    exact_model = model_of(torch.float32)
    exact = gradients(exact_model)
    lorakit.compile_blocks(exact_model, kept=kept)
    assert error(gradients(exact_model), exact) < 1e-5
    model = model_of(torch.bfloat16)
    eager = error(gradients(model), exact)
    lorakit.compile_blocks(model, kept=kept)
    assert error(gradients(model), exact) < 1.1 * eager


def test_what_is_sent_away_comes_back_as_it_was() -> None:
    model = model_of(torch.bfloat16)
    lorakit.compile_blocks(model, kept=0.35)
    stayed = gradients(model)
    lorakit.compile_blocks(model, send=True)
    away = model.model.layers[0]._compiled_call_impl._away
    for _ in range(3):
        assert error(gradients(model), stayed) < 2e-2
    assert away.bytes > 0 and not away._flying


def test_compiled_blocks_are_captured() -> None:
    model = model_of(torch.bfloat16)
    lorakit.compile_blocks(model)
    said: list[str] = []
    optimizer = torch.optim.AdamW([one for one in model.parameters() if one.requires_grad], lr=1e-3, fused=True)
    step = lorakit.Step(model, optimizer, say=said.append).capture()
    ids = torch.randint(0, 1024, (2, 128), generator=torch.Generator().manual_seed(3))
    losses = [float(step({"input_ids": ids, "labels": ids})) for _ in range(6)]
    assert not said and losses[-1] < losses[0]
