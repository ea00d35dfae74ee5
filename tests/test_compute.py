"""What a model computes in follows the hardware: one whose 16-bit products are slow, one whose are not, and a GPU."""

from __future__ import annotations

import io
import json
import os
import platform
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from test_rwkv import rwkv
from test_training import trainer
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import AutoModelForCausalLM

import lorakit
from architectures import ARCHITECTURES
from helpers import QLORA, make_gpt2, make_llama, randomize
from lorakit.application.hardware import hardware as machine
from lorakit.application.hardware import is_quick
from lorakit.layers.quantized_linear import QuantizedLinear
from lorakit.planning.hardware import Hardware
from lorakit.planning.plan import Plan

SLOW = Hardware("cpu", frozenset(), "this CPU")
QUICK = Hardware("cpu", frozenset({"bfloat16"}), "this CPU")
TURING = Hardware("cuda", frozenset({"float16"}), "Tesla T4")
AMPERE = Hardware("cuda", frozenset({"float16", "bfloat16"}), "A100")
IDS = torch.arange(24).view(2, 12)
HALVES = (torch.bfloat16, torch.float16)


def half(make: Any = make_llama, **settings: Any) -> Any:
    return make(**settings).to(torch.bfloat16)


class Products(TorchDispatchMode):
    """Takes note of the dtypes that matrices are multiplied in."""

    NAMES = ("mm", "addmm", "bmm", "baddbmm", "linear", "convolution", "scaled_dot_product", "flash_attention")

    def __init__(self) -> None:
        super().__init__()
        self.dtypes: set[torch.dtype] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if any(name in func.__name__ for name in self.NAMES):
            self.dtypes |= {one.dtype for one in args if isinstance(one, Tensor) and one.is_floating_point()}
        return func(*args, **(kwargs or {}))


def base_tensors(model: nn.Module) -> dict[str, Tensor]:
    """Return copies of what a model holds beside its adapters, by name."""
    return {name: value.clone() for name, value in model.state_dict().items() if "lora_" not in name}


def assert_same(one: dict[str, Tensor], other: dict[str, Tensor]) -> None:
    assert one.keys() == other.keys()
    for name, value in one.items():
        assert value.dtype == other[name].dtype and torch.equal(value, other[name]), name


def files(folder: Path) -> dict[str, Tensor]:
    return {name: value for path in folder.rglob("*.safetensors") for name, value in load_file(path).items()}


DECISIONS = [
    ("bf16", SLOW, "", "float32", "bfloat16"),
    ("bf16", QUICK, "", "bfloat16", "bfloat16"),
    ("bf16", AMPERE, "", "bfloat16", "bfloat16"),
    ("bf16", TURING, "", "float16", "float32"),
    ("bf16", TURING, "train model.norm", "float32", "bfloat16"),
    ("bf16", QUICK, "step compute fp32", "float32", "bfloat16"),
    ("bf16", AMPERE, "step compute fp16", "float16", "float32"),
    ("fp16", QUICK, "", "float32", "bfloat16"),
    ("fp16", AMPERE, "", "float16", "float32"),
    ("fp32", SLOW, "", "float32", "bfloat16"),
    ("fp32", AMPERE, "", "float32", "bfloat16"),
    ("fp32", QUICK, "step compute bf16", "bfloat16", "bfloat16"),
]


@pytest.mark.parametrize(("own", "hardware", "more", "computes", "adapters"), DECISIONS)
def test_the_hardware_and_the_spec_decide(
    own: str, hardware: Hardware, more: str, computes: str, adapters: str
) -> None:
    dtype = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}[own]
    plan = lorakit.plan(f"{QLORA}\n{more}", make_llama().to(dtype), hardware=hardware)
    assert plan.compute is not None and plan.compute.dtype == computes
    assert {entry.adapter.dtype for entry in plan.entries if entry.adapter} == {adapters}
    assert Plan.from_json(plan.to_json()) == plan
    assert bool(plan.compute.words) == (plan.compute.dtype != plan.compute.own)


def test_adapters_on_fp16_weights_are_fp32_unless_the_spec_says_otherwise() -> None:
    model = make_llama().half()
    for words, dtype in (("", "float32"), ("dtype fp16", "float16")):
        plan = lorakit.plan(f"adapt q_proj rank 4 {words}", model, hardware=AMPERE)
        assert {entry.adapter.dtype for entry in plan.entries if entry.adapter} == {dtype}


def test_the_plan_says_why_it_computes_in_another_dtype() -> None:
    from rich.console import Console

    from lorakit.planning.report import plan_view

    console = Console(record=True, width=120, file=io.StringIO())
    console.print(plan_view(lorakit.plan(QLORA, half(), hardware=SLOW)))
    assert "computes in fp32: this CPU has no bf16 products" in console.export_text()
    assert "no bf16 products" in lorakit.plan(QLORA, half(), hardware=SLOW)._repr_html_()
    assert "computes" not in lorakit.plan(QLORA, half(), hardware=QUICK)._repr_html_()


def test_an_older_plan_leaves_a_model_in_its_dtypes() -> None:
    plain = json.loads(lorakit.plan(QLORA, half(), hardware=SLOW).to_json())
    del plain["compute"]
    plan = Plan.from_json(json.dumps(plain))
    model = lorakit.apply(plan, half())
    stored = {id(one) for layer in model.modules() if isinstance(layer, QuantizedLinear) for one in layer.parameters()}
    assert stored
    assert {value.dtype for value in model.parameters() if id(value) not in stored} == {torch.bfloat16}
    assert torch.isfinite(model(IDS).logits).all()


@pytest.mark.parametrize("spec", [QLORA, "adapt q_proj rank 4", "adapt @linear rank 4 quant nf4\ntrain model.norm"])
@pytest.mark.parametrize("hardware", [SLOW, QUICK, TURING])
def test_the_forecast_counts_what_the_weights_grow_by(spec: str, hardware: Hardware) -> None:
    model = half(tie_word_embeddings=True)
    plan = lorakit.plan(spec, model, hardware=hardware)
    held = lorakit.summary(lorakit.apply(plan, model))
    # rotary frequencies are buffers, which the forecast leaves out
    buffers = sum(value.nbytes for name, value in model.named_buffers() if "weight_" not in name)
    assert plan.memory.weights == pytest.approx(held.weight_bytes - buffers, rel=1e-3)
    trained = sum(value.nbytes for value in model.parameters() if value.requires_grad)
    assert plan.memory.gradients == trained


@pytest.mark.parametrize(
    ("make", "spec"),
    [
        (make_llama, "adapt @linear rank 4 quant nf4 double"),
        (make_llama, "adapt @linear,@embedding rank 4\nadapt q_proj rank 4 dropout 0.1"),
        (make_llama, "adapt q_proj rank 4 quant nf4\ntrain @norm,@head"),
        (make_gpt2, "adapt c_attn rank 4 quant nf4 double\nadapt wte rank 4"),
        (ARCHITECTURES["mixtral"].build, "adapt @linear,@experts rank 4"),
        (rwkv, "adapt @linear rank 4 quant nf4 double"),
    ],
)
def test_nothing_is_multiplied_in_the_slow_dtype(make: Any, spec: str) -> None:
    model = lorakit.apply(spec, half(make), hardware=SLOW).train()
    randomize(model)
    with Products() as products:
        model(IDS, labels=IDS).loss.backward()
    assert products.dtypes == {torch.float32}
    own = {name: value for name, value in model.named_parameters() if "lora_" in name}
    assert {value.dtype for value in own.values()} == {torch.bfloat16}
    assert {value.grad.dtype for value in own.values() if value.grad is not None} == {torch.bfloat16}
    others = [value for name, value in model.named_parameters() if name not in own]
    floats = {value.dtype for value in (*others, *model.buffers()) if value.is_floating_point()}
    assert floats == {torch.float32}


def test_a_widened_model_computes_what_its_weights_in_float32_do() -> None:
    wanted = half().float()(IDS).logits
    got = lorakit.apply("adapt @linear rank 4", half(), hardware=SLOW)(IDS).logits
    assert got.dtype == torch.float32 and torch.equal(got, wanted)


def test_a_tied_weight_stays_tied() -> None:
    model: Any = lorakit.apply(QLORA, half(tie_word_embeddings=True), hardware=SLOW)
    assert model.lm_head.weight is model.model.embed_tokens.weight
    assert model.lm_head.weight.dtype == torch.float32


@pytest.mark.parametrize("quant", ["nf4", "nf4 double", "fp4", "int8"])
def test_the_stored_bits_are_the_same_whatever_is_computed_in(quant: str) -> None:
    stored = []
    for hardware in (SLOW, QUICK, TURING):
        model = lorakit.apply(f"quantize @linear {quant}", half(), hardware=hardware)
        layers = {name: one for name, one in model.named_modules() if isinstance(one, QuantizedLinear)}
        assert layers
        stored.append({f"{p}.{k}": v for p, one in layers.items() for k, v in one.quantized.tensors.items()})
    assert_same(stored[0], stored[1])
    assert_same(stored[0], stored[2])


def test_both_kinds_of_hardware_learn_alike() -> None:
    losses: dict[Hardware, list[float]] = {}
    for hardware in (SLOW, QUICK):
        model = lorakit.apply(QLORA, half(), hardware=hardware)
        optimizer = lorakit.optimizer(model, lr=5e-3)
        losses[hardware] = []
        for _ in range(10):
            loss = model(IDS, labels=IDS).loss
            losses[hardware].append(float(loss.detach()))
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    slow, quick = losses[SLOW], losses[QUICK]
    assert slow[-1] < slow[0] - 0.1
    # bfloat16 has 8 bits: logits of 0.1 to 1 are off by some thousandths
    assert slow == pytest.approx(quick, abs=2e-2)


# merging for good rounds what is only quantized as well, merging for a while leaves it
ONLY = "\nquantize @linear none"
CASES = [
    (make_llama, f"adapt q_proj,v_proj rank 4 quant nf4 double{ONLY}"),
    (make_llama, "adapt q_proj,v_proj rank 4"),
    (make_llama, "adapt @linear rank 4 quant int8\nadapt @embedding rank 4"),
    (make_gpt2, f"adapt c_attn rank 4 quant nf4 double{ONLY}"),
    (ARCHITECTURES["mixtral"].build, "adapt @linear,@experts rank 4"),
    (rwkv, "adapt @linear rank 4 quant nf4 double"),
]


@pytest.mark.parametrize("other", [SLOW, TURING])
@pytest.mark.parametrize(("make", "spec"), CASES)
def test_merged_weights_are_those_of_a_model_in_its_own_dtypes(make: Any, spec: str, other: Hardware) -> None:
    merged = []
    for hardware in (other, QUICK):
        model = lorakit.apply(spec.replace("rank 4", "rank 4 dtype bf16"), half(make), hardware=hardware)
        randomize(model)
        merged.append(dict(lorakit.merge(model).state_dict()))
        assert model(IDS).logits.dtype == torch.bfloat16
    assert_same(*merged)


@pytest.mark.parametrize(("make", "spec"), CASES)
def test_merging_for_a_while_computes_in_what_the_model_does(make: Any, spec: str) -> None:
    model, other = (lorakit.apply(spec, half(make), hardware=SLOW).eval() for _ in range(2))
    randomize(model)
    randomize(other)
    before, apart = base_tensors(model), model(IDS).logits
    for_good = lorakit.merge(other)
    with lorakit.adapters(model).merged(), Products() as products:
        together = model(IDS).logits
    assert products.dtypes == {torch.float32}
    assert torch.equal(together, for_good.float()(IDS).logits)
    assert float((together - apart).norm() / apart.norm()) < 2e-2
    assert_same(base_tensors(model), before)
    assert torch.equal(model(IDS).logits, apart)


@pytest.mark.parametrize(
    "spec", [QLORA, "adapt q_proj rank 4 quant nf4(blocksize=128)\ntrain @norm,@head", "adapt q_proj rank 4 quant int8"]
)
def test_what_is_saved_is_the_same_whatever_is_computed_in(spec: str, tmp_path: Path) -> None:
    for name, hardware in (("slow", SLOW), ("quick", QUICK)):
        model: Any = lorakit.apply(spec, half(), hardware=hardware)
        before, config = base_tensors(model), model.config.to_dict()
        lorakit.save(model, tmp_path / name, with_base=True)
        assert_same(base_tensors(model), before)
        assert model.config.to_dict() == config
    assert_same(files(tmp_path / "slow"), files(tmp_path / "quick"))
    one, other = ((tmp_path / name / "base" / "config.json").read_text() for name in ("slow", "quick"))
    assert one == other


def test_saving_a_base_keeps_the_bits_of_what_trains(tmp_path: Path) -> None:
    model = lorakit.apply("adapt q_proj rank 4 quant nf4\ntrain @norm", half(), hardware=SLOW)
    norm = model.get_parameter("model.norm.weight")
    with torch.no_grad():
        norm.add_(1e-5)
    before = norm.detach().clone()
    lorakit.save(model, tmp_path / "adapter", with_base=True)
    assert norm.dtype == torch.float32 and torch.equal(norm, before)
    assert not torch.equal(before, before.bfloat16().float())


@pytest.mark.parametrize("spec", [QLORA, "adapt q_proj rank 4\ntrain model.norm"])
def test_an_adapter_is_trained_on_one_kind_and_loaded_on_the_other(spec: str, tmp_path: Path) -> None:
    model = lorakit.apply(spec, half(), hardware=QUICK)
    randomize(model)
    folder = lorakit.save(model, tmp_path / "adapter")
    wanted = model.eval()(IDS).logits.float()
    for hardware, dtype in ((SLOW, torch.float32), (QUICK, torch.bfloat16)):
        loaded = lorakit.load(folder, half(), hardware=hardware)
        logits = loaded(IDS).logits
        assert logits.dtype == dtype
        assert float((logits.float() - wanted).norm() / wanted.norm()) < 2e-2
        again = lorakit.save(loaded, tmp_path / str(dtype))
        assert_same(files(again), files(folder))


def test_streaming_leaves_the_same_model(tmp_path: Path) -> None:
    half().save_pretrained(tmp_path / "model")
    streamed = lorakit.apply(QLORA, tmp_path / "model", seed=2, hardware=SLOW)
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "model")
    in_memory = lorakit.apply(QLORA, loaded, seed=2, hardware=SLOW)
    assert_same(dict(streamed.state_dict()), dict(in_memory.state_dict()))
    assert torch.equal(streamed(IDS).logits, in_memory.eval()(IDS).logits)


def test_training_resumes_on_widened_weights(tmp_path: Path) -> None:
    def make() -> nn.Module:
        return lorakit.apply(QLORA, half(), hardware=SLOW)

    whole = make()
    trainer(whole, tmp_path / "run", steps=12, save_strategy="steps", save_steps=6).train()
    saved = load_file(tmp_path / "run" / "checkpoint-6" / "adapter_model.safetensors")
    assert {value.dtype for value in saved.values()} == {torch.bfloat16}
    resumed = make()
    run = trainer(resumed, tmp_path / "run", steps=12)
    run.train(resume_from_checkpoint=str(tmp_path / "run" / "checkpoint-6"))
    assert_same(dict(resumed.state_dict()), dict(whole.state_dict()))


def test_a_second_adapter_computes_as_the_first(tmp_path: Path) -> None:
    model = lorakit.apply("adapt q_proj rank 4", half(), hardware=SLOW)
    lorakit.apply("adapt q_proj,v_proj rank 2", model, name="second", hardware=SLOW)
    randomize(model)
    assert {value.dtype for name, value in model.named_parameters() if "lora_" in name} == {torch.bfloat16}
    with Products() as products:
        model(IDS)
    assert products.dtypes == {torch.float32}
    state = {name: value.clone() for name, value in model.state_dict().items()}
    with pytest.raises(lorakit.ModelError, match="computes in fp32 .* `step compute bf16`"):
        lorakit.apply("adapt q_proj rank 4\nstep compute bf16", model, name="third")
    assert_same(dict(model.state_dict()), state)
    lorakit.adapters(model).use({"default": 1.0, "second": 1.0})
    merged = lorakit.merge(model)
    assert {value.dtype for value in merged.parameters()} == {torch.bfloat16}


def test_fp16_gives_back_the_weights_that_it_rounds() -> None:
    model = half()
    with torch.no_grad():
        model.lm_head.weight[:, ::3] *= 2.0**-18
    before = base_tensors(model)
    lorakit.apply("adapt q_proj rank 4", model, hardware=TURING)
    assert model.lm_head.weight.dtype == torch.float16
    assert not torch.equal(model.lm_head.weight.bfloat16(), before["lm_head.weight"])
    assert {value.dtype for name, value in model.named_parameters() if "lora_" in name} == {torch.float32}
    # B is zero
    assert_same(base_tensors(lorakit.merge(model)), before)


def test_weights_beyond_fp16_are_refused_and_stay() -> None:
    model = half()
    with torch.no_grad():
        model.lm_head.weight[0, 0] = 1e6
    before = base_tensors(model)
    with pytest.raises(lorakit.ModelError, match="lm_head.weight.*beyond the range of fp16"):
        lorakit.apply(QLORA, model, hardware=TURING)
    assert_same(base_tensors(model), before)


def test_the_machine_says_what_it_is_quick_in() -> None:
    assert is_quick(torch.float32)
    assert machine() is machine()
    assert machine().is_cpu == (not torch.accelerator.is_available())


@pytest.mark.skipif(platform.machine() not in ("x86_64", "AMD64"), reason="limits what an x86 processor shows")
def test_a_processor_without_bf16_is_found_out() -> None:
    code = "from lorakit.application.hardware import hardware; print(*hardware().fast)"
    limited = {"ONEDNN_MAX_CPU_ISA": "AVX2", "ATEN_CPU_CAPABILITY": "avx2", "CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, env={**os.environ, **limited}
    )
    assert done.stdout.split() == []
