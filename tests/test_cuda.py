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
from lorakit.paging import Paged

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")


@pytest.mark.parametrize("name", ["adamw", "adamw8bit", "sgd(momentum=0.9)"])
def test_a_paged_run_has_the_bits_of_an_unpaged_one(name: str) -> None:
    ids = torch.randint(0, 128, (4, 16), device="cuda", generator=torch.Generator("cuda").manual_seed(1))
    runs = []
    for paged in ("", " paged"):
        spec = f"{QLORA}\noptimizer {name} lr 1e-2{paged}".replace("double paged", "double")
        model = lorakit.apply(spec, make_llama().to("cuda", torch.bfloat16))
        optimizer: Any = lorakit.optimizer(model)
        assert isinstance(optimizer, Paged) == bool(paged)
        for number in range(10):
            for index, parameter in enumerate(p for p in model.parameters() if p.requires_grad):
                generator = torch.Generator("cuda").manual_seed(100 * number + index)
                parameter.grad = torch.randn(parameter.shape, dtype=parameter.dtype, device="cuda", generator=generator)
            optimizer.step()
            if paged and number % 3 == 0:
                before = torch.cuda.memory_allocated()
                left = optimizer.page_out()
                assert left > 0 and torch.cuda.memory_allocated() <= before - left
        runs.append(adapters(model))
        assert torch.isfinite(model(ids, labels=ids).loss)
    assert all(torch.equal(value, runs[1][path]) for path, value in runs[0].items())


def test_a_model_that_moves_after_its_optimizer_was_made_takes_its_state_along() -> None:
    spec = "adapt q_proj rank 4 dtype fp32\noptimizer adamw8bit lr 1e-2 paged"
    model = lorakit.apply(spec, make_llama())
    optimizer: Any = lorakit.optimizer(model)
    ids = torch.randint(0, 128, (2, 16))
    for device in ("cuda", "cpu", "cuda"):
        model.to(device)
        model(ids.to(device), labels=ids.to(device)).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        held = [
            value for kept in optimizer.state.values() for value in kept.values() if isinstance(value, torch.Tensor)
        ]
        assert held and {value.device.type for value in held} == {device}


def paged_pair(
    share: float | None, count: int = 48, *, fused: bool = True
) -> tuple[list[nn.Parameter], torch.optim.Optimizer, Paged]:
    """Return parameters, an optimizer over their twins, and a paged one over them, with a share of its state near."""
    generator = torch.Generator("cuda").manual_seed(0)
    values = [torch.randn(512, 1024, device="cuda", generator=generator) for _ in range(count)]
    plain, twins = ([nn.Parameter(value.clone()) for value in values] for _ in range(2))
    reference = torch.optim.AdamW(plain, lr=1e-3, fused=fused)
    budget = None if share is None else int(share * 2 * sum(value.nbytes for value in values))
    return twins, reference, Paged(torch.optim.AdamW(twins, lr=1e-3, fused=fused), budget)


def step_both(twins: list[nn.Parameter], reference: torch.optim.Optimizer, optimizer: Paged, number: int) -> None:
    plain = reference.param_groups[0]["params"]
    for index, (one, other) in enumerate(zip(plain, twins, strict=True)):
        generator = torch.Generator("cuda").manual_seed(100 * number + index)
        one.grad = torch.randn(one.shape, device="cuda", generator=generator)
        other.grad = one.grad.clone()
    reference.step()
    optimizer.step()


def test_pages_that_come_and_go_leave_the_bits_alone() -> None:
    twins, reference, optimizer = paged_pair(0.1)
    for number in range(20):
        step_both(twins, reference, optimizer, number)
    assert all(map(torch.equal, twins, reference.param_groups[0]["params"]))
    assert optimizer.traffic.pages_in > 100 and optimizer.near_bytes < optimizer.far_bytes
    torch.cuda.synchronize()
    # what came in for the first slice of a step was waited for
    assert 0 < optimizer.traffic.stalled < 60
    for one, other in zip(twins, reference.param_groups[0]["params"], strict=True):
        for name, value in reference.state[other].items():
            assert torch.equal(optimizer.state[one][name].cpu(), value.cpu()), name


def test_a_paged_step_synchronizes_nothing() -> None:
    twins, reference, optimizer = paged_pair(0.3)
    for number in range(2):
        step_both(twins, reference, optimizer, number)
    torch.cuda.synchronize()
    moved = optimizer.traffic.pages_in
    torch.cuda.set_sync_debug_mode("error")
    try:
        optimizer.step()
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert optimizer.traffic.pages_in > moved


def test_pages_move_beside_each_other_and_what_is_computed() -> None:
    twins, reference, optimizer = paged_pair(0.5, count=96)
    for number in range(2):
        step_both(twins, reference, optimizer, number)
    torch.cuda.synchronize()
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as seen:
        optimizer.step()
        torch.cuda.synchronize()
    spans = [(event.time_range.start, event.time_range.end, event.name) for event in seen.events()]
    copies = [(start, end) for start, end, name in spans if "HtoD" in name or "DtoH" in name]
    others = [(start, end) for start, end, name in spans if "HtoD" not in name and "DtoH" not in name]
    assert copies and any(s < end and start < e for start, end in copies for s, e in others)


def test_memory_that_is_short_pages_out_and_the_step_goes_on() -> None:
    # one that asks for memory in each step
    twins, reference, optimizer = paged_pair(None, fused=False)
    step_both(twins, reference, optimizer, 0)
    held = optimizer.near_bytes
    total = torch.cuda.get_device_properties(0).total_memory
    torch.cuda.empty_cache()
    # room for what is held, and beside it for less than what a slice of a step takes
    torch.cuda.set_per_process_memory_fraction((torch.cuda.memory_reserved() + (8 << 20)) / total)
    try:
        for number in range(1, 4):
            step_both(twins, reference, optimizer, number)
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)
    assert optimizer.traffic.bytes_out > 0 and optimizer.near_bytes <= held
    assert all(map(torch.equal, twins, reference.param_groups[0]["params"]))


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
