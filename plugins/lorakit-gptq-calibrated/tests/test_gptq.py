"""`gptq`: its solver against the greedy column formula, its point, and the whole way of an adapter on it."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import LlamaConfig, LlamaForCausalLM

import lorakit
from lorakit.testing import quantizer_checks
from lorakit_gptq_calibrated import GPTQ
from lorakit_gptq_calibrated.solver import solve

SPEC = "adapt q_proj,down_proj rank 4 quant gptq(bits=3, group_size=32)"


@pytest.mark.parametrize(
    "check",
    [*quantizer_checks(GPTQ), *quantizer_checks(GPTQ, bits=3, group_size=16, act_order=True)],
    ids=str,
)
def test_conformance(check) -> None:  # type: ignore[no-untyped-def]
    check()


def correlated(count: int, features: int, seed: int = 0) -> Tensor:
    """Return inputs (count, features) that lie near a plane of a few dimensions, as a language model's do."""
    generator = torch.Generator().manual_seed(seed)
    plane = torch.randn(features // 4, features, generator=generator)
    return torch.randn(count, features // 4, generator=generator) @ plane + 0.3 * torch.randn(
        count, features, generator=generator
    )


def weights(rows: int, columns: int, seed: int = 1) -> Tensor:
    return 0.02 * torch.randn(rows, columns, generator=torch.Generator().manual_seed(seed))


def back(codes: Tensor, scale: Tensor, zero: Tensor, group_size: int) -> Tensor:
    """Return the weight in float64, number by number."""
    return torch.tensor(
        [
            [
                (int(code) - int(zero[row, column // group_size])) * float(scale[row, column // group_size])
                for column, code in enumerate(line)
            ]
            for row, line in enumerate(codes)
        ],
        dtype=torch.float64,
    )


@pytest.mark.parametrize("act_order", [False, True])
@pytest.mark.parametrize("bits", [2, 3, 4, 8])
def test_the_solver_is_the_greedy_column_formula(bits: int, act_order: bool) -> None:
    # equation 2 and 3 of the paper on a whole inverse, made smaller by elimination; the columns are more than a block
    group_size, columns = 32, 144
    weight, x = weights(6, columns).double(), correlated(400, columns).double()
    hessian = 2 * x.T @ x
    codes, scale, zero = solve(weight, hessian, bits, group_size, damping=0.01, act_order=act_order)
    inverse = torch.linalg.inv(hessian + 0.01 * hessian.diagonal().mean() * torch.eye(columns, dtype=torch.float64))
    rest, found = weight.clone(), torch.zeros_like(weight)
    order = sorted(range(columns), key=lambda one: -float(hessian[one, one])) if act_order else list(range(columns))
    for column in order:
        group = column // group_size
        step, offset = scale[:, group].double(), zero[:, group].double()
        found[:, column] = ((rest[:, column] / step).round() + offset).clamp(0, 2**bits - 1)
        error = (rest[:, column] - (found[:, column] - offset) * step) / inverse[column, column]
        rest -= error[:, None] * inverse[column]
        inverse = inverse - torch.outer(inverse[:, column], inverse[column]) / inverse[column, column]
    assert torch.equal(found.to(torch.uint8), codes)


def nearest(weight: Tensor, bits: int, group_size: int, whole_zero: bool) -> Tensor:
    """Return plain rounding to nearest between each group's minimum and maximum, in float64."""
    groups = weight.double().view(-1, group_size)
    low, high = groups.aminmax(dim=1, keepdim=True)
    scale = (high - low) / (2**bits - 1)
    zero = (-low / scale).round() if whole_zero else -low / scale
    return (((groups / scale + zero).round().clamp(0, 2**bits - 1) - zero) * scale).view_as(weight)


@pytest.mark.parametrize("act_order", [False, True])
@pytest.mark.parametrize("bits", [2, 3, 4])
def test_outputs_are_closer_than_those_of_rounding_to_nearest(bits: Any, act_order: bool) -> None:
    weight, (x, unseen) = weights(96, 128), correlated(2560, 128).split((2048, 512))
    quantizer = GPTQ(bits=bits, group_size=64, act_order=act_order)
    observed = quantizer.observe(x[:1000], None)
    observed = quantizer.observe(x[1000:].view(4, 262, 128), observed)
    ours = quantizer.dequantize(quantizer.quantize_observed(weight, observed)).double()

    def error(found: Tensor) -> float:
        return float((unseen.double() @ (found - weight.double()).T).norm())

    for whole_zero in (True, False):
        assert error(ours) < 0.75 * error(nearest(weight, bits, 64, whole_zero))
    # what it pays for that: the weights themselves are further off
    assert float((ours - weight).norm()) > float((nearest(weight, bits, 64, False) - weight).norm())


def test_an_input_that_is_always_zero_leaves_its_column_rounded_to_nearest() -> None:
    weight, x = weights(16, 32), correlated(256, 32)
    x[:, 5] = 0
    quantizer = GPTQ(bits=4, group_size=32, act_order=True)
    calibrated = quantizer.dequantize(quantizer.quantize_observed(weight, quantizer.observe(x, None)))
    plain = quantizer.dequantize(quantizer.quantize(weight))
    assert torch.equal(calibrated[:, 5], plain[:, 5]) and not torch.equal(calibrated, plain)
    dead = quantizer.dequantize(quantizer.quantize_observed(weight, quantizer.observe(0 * x, None)))
    assert torch.equal(dead, plain)


def test_what_is_stored() -> None:
    quantized = GPTQ(bits=3, group_size=32).quantize(weights(8, 80))
    kinds = {name: (tensor.dtype, tuple(tensor.shape)) for name, tensor in quantized.tensors.items()}
    assert kinds == {
        "packed": (torch.uint8, (8 * 80 * 3 // 8,)),
        "scale": (torch.bfloat16, (8, 3)),
        "zero": (torch.uint8, (8, 3)),
    }
    codes, scale, zero = solve(weights(8, 80), None, 3, 32, damping=0.01, act_order=False)
    assert torch.equal(GPTQ(bits=3, group_size=32).dequantize(quantized), back(codes, scale, zero, 32).float())
    assert GPTQ(bits=3, group_size=32).bits_per_weight((8, 64)) == 3.75


def llama() -> nn.Module:
    torch.manual_seed(0)
    return LlamaForCausalLM(
        LlamaConfig(
            num_hidden_layers=2, hidden_size=64, intermediate_size=96, num_attention_heads=4, num_key_value_heads=2,
            vocab_size=320, max_position_embeddings=128,
        )
    ).eval()  # fmt: skip


def token_batches(count: int = 4) -> list[dict[str, Tensor]]:
    generator = torch.Generator().manual_seed(3)
    return [{"input_ids": torch.randint(0, 320, (2, 16), generator=generator)} for _ in range(count)]


def test_apply_train_save_load_merge(tmp_path: Path) -> None:
    with pytest.raises(lorakit.PlanError, match=r"gptq needs calibration data: give calibration=.*--calibration DATA"):
        lorakit.apply(SPEC, llama())
    batches = token_batches()
    model = lorakit.apply(SPEC, llama(), calibration=batches)
    assert {row.bits_per_weight for row in lorakit.summary(model).modules} == {3.75}
    exact, nearby = llama()(**batches[0]).logits, model(**batches[0]).logits
    assert 0 < float((nearby - exact).norm() / exact.norm()) < 0.5
    model.train()
    optimizer = lorakit.optimizer(model, lr=1e-2)
    losses = []
    for _ in range(3):
        loss = model(**batches[0], labels=batches[0]["input_ids"]).loss
        losses.append(float(loss.detach()))
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    assert losses[2] < losses[0]
    lorakit.save(model, tmp_path / "adapter")
    with pytest.raises(lorakit.AdapterError, match=r"gptq .*--with-base .*quantize=False"):
        lorakit.load(tmp_path / "adapter", llama())
    plain = lorakit.load(tmp_path / "adapter", llama(), quantize=False)
    model.eval()
    lora = "model.layers.0.self_attn.q_proj.lora_B"
    assert torch.equal(plain.get_parameter(lora), model.get_parameter(lora))
    trained = model(**batches[0]).logits
    merged = lorakit.merge(model)
    torch.testing.assert_close(merged(**batches[0]).logits, trained, rtol=1e-3, atol=1e-3)


Run = Callable[..., str]


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    """A function that runs `lorakit` with some arguments, expects an exit code and returns what it prints."""
    (command,) = entry_points(group="console_scripts", name="lorakit")

    def runner(*arguments: object, code: int = 0) -> str:
        monkeypatch.setattr(sys, "argv", ["lorakit", *map(str, arguments)])
        with pytest.raises(SystemExit) as left:
            command.load()()
        printed = "".join(capsys.readouterr())
        assert (left.value.code or 0) == code, printed
        return printed

    return runner


def test_the_command_line(tmp_path: Path, run: Run) -> None:
    llama().save_pretrained(tmp_path / "base")  # type: ignore[operator]
    tokenizer().save_pretrained(tmp_path / "base")
    spec, data = tmp_path / "spec.lora", tmp_path / "chats.jsonl"
    spec.write_text(SPEC)
    data.write_text("".join(json.dumps({"text": f"number {one} comes before {one + 1}"}) + "\n" for one in range(12)))
    base = tmp_path / "base"
    assert "--calibration DATA" in run("apply", spec, base, "-o", tmp_path / "a", code=2)
    applied = run("apply", spec, base, "-o", tmp_path / "a", "--calibration", data, "--calibration-rows", 8)
    assert f"calibrating gptq on 8 rows of {data}" in applied
    trained = run("train", spec, base, data, "-o", tmp_path / "b", "--steps", 2, "--batch", 2)
    assert "calibrating gptq on 11 rows of the training data" in trained
    assert (tmp_path / "b" / "adapter_model.safetensors").is_file()
    assert "merged 4 modules" in run("merge", tmp_path / "b", base, "-o", tmp_path / "merged")
    spec.write_text("adapt q_proj rank 4 quant nf4")
    left_alone = run("apply", spec, base, "-o", tmp_path / "c", "--calibration", data)
    assert f"{data} is left alone: nothing in this plan needs calibration data" in left_alone


def test_the_command_line_with_a_plain_pytorch_model(tmp_path: Path, run: Run) -> None:
    code = tmp_path / "small.py"
    code.write_text(
        "import torch\n"
        "def model():\n"
        "    torch.manual_seed(0)\n"
        "    return torch.nn.Sequential(torch.nn.Linear(16, 8), torch.nn.Tanh(), torch.nn.Linear(8, 1))\n"
        "def pairs():\n"
        "    x = torch.randn(20, 16, generator=torch.Generator().manual_seed(1))\n"
        "    return [(one, one.sum()[None]) for one in x]\n"
    )
    spec, out = tmp_path / "spec.lora", tmp_path / "out"
    spec.write_text("adapt 0 rank 2 quant gptq(group_size=16)")
    printed = run(
        "train", spec, f"{code}:model", f"{code}:pairs", "-o", out, "--steps", 3,
        "--calibration", f"{code}:pairs", "--calibration-rows", 15,
    )  # fmt: skip
    assert f"calibrating gptq on 15 rows of {code}:pairs" in printed
    assert (out / "adapter_model.safetensors").is_file()


def tokenizer():  # type: ignore[no-untyped-def]
    """Return a tokenizer with one token a byte."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    alphabet = ["<eos>", *sorted(pre_tokenizers.ByteLevel.alphabet())]
    made = Tokenizer(models.BPE(vocab={one: index for index, one in enumerate(alphabet)}, merges=[]))
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    return PreTrainedTokenizerFast(tokenizer_object=made, eos_token="<eos>")
