"""`hqq`: its solver against the reference algorithm, what it stores, and the whole way of an adapter on it."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import LlamaConfig, LlamaForCausalLM

import lorakit
from lorakit.testing import quantizer_checks
from lorakit_hqq import HQQ
from lorakit_hqq.solver import solve

SPEC = "adapt q_proj rank 8 quant hqq(bits=3, group_size=64)"


@pytest.mark.parametrize(
    "check",
    [*quantizer_checks(HQQ), *quantizer_checks(HQQ, bits=3, group_size=16)],
    ids=str,
)
def test_conformance(check) -> None:  # type: ignore[no-untyped-def]
    check()


def weights(rows: int, columns: int, seed: int = 0) -> Tensor:
    """Return weights with a few outliers, as trained layers have them."""
    generator = torch.Generator().manual_seed(seed)
    normal = torch.randn(rows, columns, generator=generator)
    return 0.02 * torch.where(torch.rand(rows, columns, generator=generator) < 0.01, 6 * normal, normal)


def mean_error(steps: list[float], zero: float, top: int) -> float:
    """Return the mean error, in steps of a code, of the codes that this zero point gives."""
    return sum(abs(value - (min(top, max(0, round(value + zero))) - zero)) for value in steps) / len(steps)


def reference(steps: list[float], bits: int, rounds: int, p: float, beta: float, kappa: float) -> list[float]:
    """Return the zero points that the reference algorithm visits on one group, number by number."""
    top = 2**bits - 1
    zeros = [-min(steps)]
    for _ in range(rounds):
        codes = [min(top, max(0, round(value + zeros[-1]))) for value in steps]
        errors = [value - (code - zeros[-1]) for value, code in zip(steps, codes, strict=True)]
        split = [
            math.copysign(max(0.0, abs(error) - abs(error) ** (p - 1) / beta), error) if error else 0.0
            for error in errors
        ]
        zeros.append(sum(code - (value - u) for code, value, u in zip(codes, steps, split, strict=True)) / len(steps))
        beta *= kappa
    return zeros


@pytest.mark.parametrize("bits", [2, 3, 4])
def test_the_solver_finds_the_best_zero_point_of_the_reference_algorithm(bits: int) -> None:
    weight = weights(16, 64).double()
    _, scale, zero = solve(weight, bits, 32, rounds=20, p=0.7, beta=10.0, kappa=1.01)
    top = 2**bits - 1
    plain = found = 0.0
    for index, group in enumerate(weight.view(-1, 32).tolist()):
        wanted_scale = float(torch.tensor((max(group) - min(group)) / top).bfloat16())
        assert float(scale[index]) == wanted_scale
        steps, own = [value / wanted_scale for value in group], float(zero[index])
        visited = [mean_error(steps, candidate, top) for candidate in reference(steps, bits, 20, 0.7, 10.0, 1.01)]
        # the error is flat where as many weights lie above their codes as below, so zero points that differ may tie;
        # the mean error changes no faster than the zero point, which float16 rounds
        assert mean_error(steps, own, top) == pytest.approx(min(visited), abs=abs(own) * 2**-11 + 1e-9)
        plain, found = plain + visited[0], found + min(visited)
    assert found < 0.97 * plain


def nearest(weight: Tensor, bits: int, group_size: int) -> Tensor:
    """Return plain rounding to nearest between each group's minimum and maximum, in float64."""
    groups = weight.double().view(-1, group_size)
    low, high = groups.aminmax(dim=1, keepdim=True)
    scale = (high - low) / (2**bits - 1)
    return (((groups - low) / scale).round() * scale + low).view_as(weight)


@pytest.mark.parametrize("size", [1.0, 1e-3, 1e3])
@pytest.mark.parametrize("bits", [2, 3, 4])
def test_the_error_is_lower_than_that_of_rounding_to_nearest(bits: Any, size: float) -> None:
    weight = size * weights(128, 256)
    quantizer = HQQ(bits=bits)
    ours = quantizer.dequantize(quantizer.quantize(weight)).double() - weight
    plain = nearest(weight, bits, 64) - weight
    assert float(ours.abs().mean()) < 0.97 * float(plain.abs().mean())
    assert float(ours.norm()) < 0.98 * float(plain.norm())


def test_what_is_stored() -> None:
    quantized = HQQ(bits=3, group_size=64).quantize(weights(8, 128))
    kinds = {name: (tensor.dtype, tensor.numel()) for name, tensor in quantized.tensors.items()}
    assert kinds == {
        "packed": (torch.uint8, 8 * 128 * 3 // 8),
        "scale": (torch.bfloat16, 16),
        "zero": (torch.float16, 16),
    }
    assert HQQ(bits=3, group_size=64).bits_per_weight((8, 128)) == 3.5
    # one weight pays for a whole group: 8 codes of 2 bits, a scale and a zero point
    assert HQQ(bits=2, group_size=8).bits_per_weight((1, 1)) == 48


def test_zeros_stay_zeros_and_constants_constant() -> None:
    weight = weights(4, 64)
    weight[1], weight[2], weight[3] = 0, 0.5, -0.25
    back = HQQ(bits=2, iterations=0).dequantize(HQQ(bits=2, iterations=0).quantize(weight))
    assert not bool(back[1].any())
    torch.testing.assert_close(back[2:], weight[2:], rtol=2**-8, atol=0)


@pytest.mark.parametrize("options", ["bits=5", "group_size=60", "iterations=-1", "p=0", "p=1.5", "beta=0", "kappa=0.5"])
def test_options_that_make_no_sense_are_errors_at_their_place(options: str) -> None:
    with pytest.raises(lorakit.SpecError, match=options.partition("=")[0]):
        lorakit.parse(f"quantize q_proj hqq({options})")


def llama() -> nn.Module:
    torch.manual_seed(0)
    return LlamaForCausalLM(
        LlamaConfig(
            num_hidden_layers=2, hidden_size=64, intermediate_size=96, num_attention_heads=4, num_key_value_heads=2,
            vocab_size=128, max_position_embeddings=64,
        )
    )  # fmt: skip


def test_apply_train_save_load_merge(tmp_path: Path) -> None:
    tokens = torch.randint(0, 128, (3, 12), generator=torch.Generator().manual_seed(1))
    model = lorakit.apply(SPEC, llama()).train()
    assert {row.bits_per_weight for row in lorakit.summary(model).modules} == {3.5}
    optimizer = lorakit.optimizer(model, lr=1e-2)
    losses = []
    for _ in range(3):
        loss = model(tokens, labels=tokens).loss
        losses.append(float(loss.detach()))
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    assert losses[2] < losses[0]
    model.eval()
    trained = model(tokens).logits
    lorakit.save(model, tmp_path / "adapter")
    loaded = lorakit.load(tmp_path / "adapter", llama())
    assert torch.equal(loaded(tokens).logits, trained)
    merged = lorakit.merge(loaded)
    assert not [module for module in merged.modules() if type(module).__module__.startswith("lorakit")]
    torch.testing.assert_close(merged(tokens).logits, trained, rtol=1e-2, atol=1e-2)
