"""On CUDA devices: paging, quantized training, a split model, and the forecast against what the allocator saw."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import lorakit
from helpers import QLORA, adapters, make_llama
from lorakit.builtin.fourbit import FP4, NF4
from lorakit.layers.kernels import fourbit

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")


@pytest.mark.parametrize(("name", "kind"), [("adamw", "PagedAdamW"), ("adamw8bit", "PagedAdamW8bit")])
def test_paged_takes_the_paged_optimizer(name: str, kind: str) -> None:
    model = lorakit.apply(f"{QLORA}\noptimizer {name} lr 1e-2", make_llama().to("cuda", torch.bfloat16))
    optimizer = lorakit.optimizer(model)
    assert type(optimizer).__name__ == kind
    ids = torch.randint(0, 128, (4, 16), device="cuda")
    losses = []
    for _ in range(30):
        optimizer.zero_grad()
        loss = model(ids, labels=ids).loss
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < losses[0] - 0.1


@pytest.mark.parametrize("quant", ["", "quant nf4 double", "quant int8"])
def test_fp16_products_learn_as_bf16_products_do(quant: str) -> None:
    ids = torch.randint(0, 128, (4, 16), device="cuda", generator=torch.Generator("cuda").manual_seed(1))
    losses: dict[str, list[float]] = {}
    for compute in ("fp16", "bf16"):
        spec = f"adapt @linear rank 4 {quant}\nstep compute {compute}\noptimizer adamw lr 5e-3"
        model = lorakit.apply(spec, make_llama().to("cuda", torch.bfloat16), seed=2)
        assert model(ids).logits.dtype == {"fp16": torch.float16, "bf16": torch.bfloat16}[compute]
        assert {value.dtype for value in adapters(model).values()} == {
            {"fp16": torch.float32, "bf16": torch.bfloat16}[compute]
        }
        optimizer = lorakit.optimizer(model)
        losses[compute] = []
        for _ in range(20):
            loss = model(ids, labels=ids).loss
            losses[compute].append(float(loss.detach()))
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    assert losses["fp16"][-1] < losses["fp16"][0] - 0.1
    assert losses["fp16"] == pytest.approx(losses["bf16"], abs=4e-2)


def test_the_same_seed_gives_the_same_bits_on_every_device() -> None:
    plan = lorakit.plan("adapt @linear rank 4", make_llama())
    here = adapters(lorakit.apply(plan, make_llama(), seed=3))
    there = adapters(lorakit.apply(plan, make_llama().to("cuda"), seed=3))
    assert all(value.is_cuda and torch.equal(value.cpu(), here[name]) for name, value in there.items())


@pytest.mark.parametrize("quant", ["nf4 double", "fp4", "int8"])
def test_quantized_layers_compute_and_move(quant: str) -> None:
    model = lorakit.apply(f"adapt q_proj rank 4 quant {quant}", make_llama().to("cuda", torch.bfloat16)).eval()
    ids = torch.randint(0, 128, (2, 16), device="cuda")
    there = model(ids).logits
    here = copy.deepcopy(model).to("cpu")(ids.cpu()).logits
    assert float((there.cpu() - here).norm() / here.norm()) < 2e-2


def test_the_forecast_is_what_the_allocator_sees() -> None:
    from transformers import LlamaConfig, LlamaForCausalLM

    shape = LlamaConfig(
        num_hidden_layers=6, hidden_size=2048, intermediate_size=5632, num_attention_heads=16, num_key_value_heads=4,
        vocab_size=32000, tie_word_embeddings=False,
    )  # fmt: skip
    with torch.device("cuda"):
        model: Any = LlamaForCausalLM(shape)
        model.to(torch.bfloat16)
    batch, tokens = 2, 1024
    plan = lorakit.plan("adapt @linear rank 16 quant nf4 double", model, batch=batch, tokens=tokens)
    lorakit.apply(plan, model).train()
    optimizer = lorakit.optimizer(model)
    ids = torch.randint(0, 32000, (batch, tokens), device="cuda")
    for _ in range(2):
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
        model(ids, labels=ids).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    assert abs(plan.memory.peak / torch.cuda.max_memory_allocated() - 1) < 0.1


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two CUDA devices")
@pytest.mark.parametrize("quant", ["", "quant nf4 double dtype fp32"])
def test_a_model_split_over_two_devices(quant: str, tmp_path: Path) -> None:
    from transformers import LlamaForCausalLM

    make_llama().save_pretrained(tmp_path / "base")
    first, second = (
        ("model.embed_tokens", "model.rotary_emb", "model.layers.0"),
        ("model.layers.1", "model.norm", "lm_head"),
    )
    places = {**dict.fromkeys(first, 0), **dict.fromkeys(second, 1)}

    def base(places: dict[str, int]) -> nn.Module:
        return LlamaForCausalLM.from_pretrained(tmp_path / "base", device_map=places, dtype=torch.float32)

    spec = f"adapt @linear rank 4 {quant}\nadapt @head rank 4\noptimizer adamw lr 1e-2"
    model = lorakit.apply(spec, base(places)).train()
    for path, place in places.items():
        assert {str(value.device) for value in model.get_submodule(path).state_dict().values()} <= {f"cuda:{place}"}
    ids = torch.randint(0, 128, (4, 16), generator=torch.Generator().manual_seed(1)).to("cuda:0")
    optimizer = lorakit.optimizer(model)
    losses = []
    for _ in range(3):
        optimizer.zero_grad()
        loss = model(ids, labels=ids).loss
        loss.backward()
        losses.append(float(loss.detach()))
        optimizer.step()
    assert losses[-1] < losses[0]
    assert all(value.grad is not None for value in model.parameters() if value.requires_grad)
    said = model.eval()(ids).logits.detach()
    lorakit.save(model, tmp_path / "adapter")
    alone = lorakit.load(tmp_path / "adapter", base({"": 0}))
    again = lorakit.load(tmp_path / "adapter", base(places))
    for other in (alone, again, lorakit.merge(model)):
        torch.testing.assert_close(other(ids).logits.to("cuda:0"), said, rtol=1e-3, atol=1e-4)
    with torch.no_grad():
        assert float((base({"": 0})(ids).logits - said).abs().max()) > 1e-2


@pytest.mark.parametrize("blocksize", [32, 64, 128, 4096])
@pytest.mark.parametrize("quant_type", ["nf4", "fp4"])
def test_one_kernel_for_doubled_scales_gives_the_bits_of_bitsandbytes_two(quant_type: str, blocksize: int) -> None:
    pytest.importorskip("triton")
    quantizer = {"nf4": NF4, "fp4": FP4}[quant_type](blocksize=blocksize, double=True)  # type: ignore[arg-type]
    for shape in ((1, 1), (3, 63), (7, 126), (64, 96), (33, 100), (300, 300), (1031, 1033), (4096, 1024), (0, 64)):
        for dtype in (torch.float32, torch.bfloat16, torch.float16):
            stored = quantizer.quantize(torch.randn(shape, device="cuda").to(dtype))
            tensors: list[Any] = list(stored.tensors.values())
            form: tuple[Any, ...] = (blocksize, quant_type, list(shape), dtype)
            wanted = fourbit._in_two_steps(*tensors, *form)
            assert torch.equal(quantizer.dequantize(stored), wanted), (shape, dtype)


@pytest.mark.parametrize("quant", ["nf4", "nf4 double", "fp4 double", "int8", "int8(threshold=0)"])
def test_an_adapted_layer_compiles_to_one_graph_on_cuda(quant: str) -> None:
    torch._dynamo.reset()
    torch.manual_seed(0)
    model: Any = nn.Sequential(nn.Linear(128, 256)).to("cuda", torch.bfloat16)
    model = lorakit.apply(f"adapt 0 rank 16 quant {quant}", model)
    nn.init.normal_(model[0].lora_B, std=0.02)
    x = torch.randn(4, 8, 128, device="cuda", dtype=torch.bfloat16, requires_grad=True)
    results = []
    for call in (model, torch.compile(model, fullgraph=True)):
        y = call(x)
        y.square().sum().backward()
        results.append([y.detach(), x.grad, model[0].lora_A.grad, model[0].lora_B.grad])
        x.grad = model[0].lora_A.grad = model[0].lora_B.grad = None
    for eager, compiled in zip(*results, strict=True):
        assert float((compiled - eager).norm() / eager.norm()) < 2e-2
