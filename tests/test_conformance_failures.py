"""Every kind of check finds the plugin that it is there for, and says so in words."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import pytest
import torch
from planted import failures, variant
from torch import Tensor, nn

from lorakit.builtin.initializers import Gaussian
from lorakit.builtin.int8 import Int8
from lorakit.builtin.kernels import LLMInt8
from lorakit.builtin.optimizers import SGD
from lorakit.hooks import QuantizedWeight, StartContext
from lorakit.testing import (
    CheckError,
    check_quantizer,
    initializer_checks,
    kernel_checks,
    optimizer_checks,
    quantizer_checks,
    role_checks,
)


def stored(self: Any, weight: Tensor, change: Callable[[dict[str, Tensor]], object]) -> QuantizedWeight:
    quantized = Int8.quantize(self, weight)
    tensors = dict(quantized.tensors)
    change(tensors)
    return dataclasses.replace(quantized, tensors=tensors)


def unchecked(self: Any, weight: Tensor) -> QuantizedWeight:
    scale = weight.float().abs().amax(1) * 127 / 127
    codes = (weight.float() / scale[:, None] * 127).round().to(torch.int8)
    return QuantizedWeight({"CB": codes, "SCB": scale}, tuple(weight.shape), weight.dtype)  # type: ignore[arg-type]


def noisy(self: Any, weight: Tensor) -> QuantizedWeight:
    return Int8.quantize(self, weight + 1e-3 * torch.randn(weight.shape).to(weight))


def dequantized(x: Tensor, base: Mapping[str, Tensor]) -> Tensor:
    weight = Int8().dequantize(QuantizedWeight(base, tuple(base["CB"].shape), x.dtype))  # type: ignore[arg-type]
    return nn.functional.linear(x, weight)


def growing(x: Tensor, base: Mapping[str, Tensor], bias: Any, low_rank: Any) -> Tensor:
    base["SCB"].mul_(1.001)
    return dequantized(x, base)


@dataclasses.dataclass(frozen=True)
class Kernel:
    """Multiplies as it is told, or not at all."""

    multiply: Any
    name: str = "mine"

    def linear(self, storage: Any) -> Any:
        return self.multiply


ASIDE: dict[tuple[int, int], Tensor] = {}


def kept_aside(self: Any, weight: Tensor) -> QuantizedWeight:
    quantized = Int8.quantize(self, weight)
    ASIDE[quantized.shape] = quantized.tensors["SCB"].clone()
    return quantized


def from_aside(self: Any, quantized: QuantizedWeight) -> Tensor:
    scales = ASIDE[quantized.shape].to(quantized.tensors["CB"].device)
    return Int8.dequantize(self, dataclasses.replace(quantized, tensors={**quantized.tensors, "SCB": scales}))


def half_of_a_wide_row(self: Any, quantized: QuantizedWeight) -> Tensor:
    weight = Int8.dequantize(self, quantized)
    weight[:, 4096:] = 0
    return weight


QUANTIZERS: dict[str, tuple[dict[str, Any], str]] = {
    "name": ({"name": "rank"}, "`rank` is a word of the language"),
    "documentation": ({"__doc__": None}, "has no docstring"),
    "copies": ({}, "attribute lookup Variant"),
    "import-without-torch": ({}, "imports torch when it is imported itself"),
    "options": ({"__annotations__": {"sizes": list[int]}, "sizes": dataclasses.field(default_factory=list)}, "list"),
    "spec-round-trip": ({"__eq__": lambda self, other: False}, "reads as"),
    "sizes-and-dtypes": ({"dequantize": lambda self, q: Int8.dequantize(self, q).float()}, "`dequantize` returned"),
    "closeness": ({"dequantize": lambda self, q: Int8.dequantize(self, q) * 2}, "off by 1.0"),
    "zeros": ({"quantize": lambda self, w: Int8.quantize(self, w + 1)}, "zeros came back with values up to"),
    "transposed": ({"quantize": lambda self, w: Int8.quantize(self, w.as_strided(w.shape, (w.shape[1], 1)))}, "bits"),
    "not-finite-weights": ({"quantize": unchecked}, "64 other values NaN or infinite"),
    "determinism": ({"quantize": noisy}, "gave other bits"),
    "weight-untouched": ({"quantize": lambda self, w: Int8.quantize(self, w.mul_(2))}, "changed the weight"),
    "declared-bits": ({"bits_per_weight": lambda self, shape: 8.0}, "the tensors hold"),
    "wanted-dtype": ({"dequantize": lambda self, q: Int8.dequantize(self, q).float()}, "`dequantize` returned"),
    "files": (
        {"quantize": lambda self, w: stored(self, w, lambda t: t.update(CB=t["CB"].to_sparse()))},
        "It raised",
    ),
    "module-copies": ({"__reduce__": lambda self: (str, ("",))}, "It raised"),
    "plain-tensors": (
        {"quantize": lambda self, w: stored(self, w, lambda t: t.update(SCB=t["SCB"].sum()))}, "has no dimension",
    ),
    "nothing-aside": ({"quantize": kept_aside, "dequantize": from_aside}, "kept aside"),
    "large-weights": ({"dequantize": half_of_a_wide_row}, "a part of a weight (2, 5003)"),
    "error-for-its-bits": ({"dequantize": lambda self, q: Int8.dequantize(self, q) * 1.1}, "at 8.125 bits"),
    "meta": ({"__deepcopy__": lambda self, memo: 1 / 0}, "ZeroDivisionError"),
}  # fmt: skip


KERNELS: dict[str, tuple[Kernel, str]] = {
    "kernel-name": (Kernel(None, "no name"), "a kernel is an instance with a name"),
    "kernel-fits": (Kernel(None), "returned None for a layer of int8"),
    "forward": (Kernel(lambda x, base, bias, low: dequantized(x, base)), "`linear` is off by"),
    "no-outputs": (Kernel(lambda x, base, bias, low: x), "expected (2, 0)"),
    "input-gradient": (Kernel(lambda x, base, bias, low: dequantized(x.detach(), base)), "need no gradient although"),
    "autocast": (Kernel(lambda x, base, bias, low: dequantized(x, base).float()), "under autocast"),
    "adapters": (Kernel(lambda x, base, bias, low: dequantized(x, base)), "with adapters the outputs are off by"),
    "forward-stores-nothing": (Kernel(growing), "a forward changed what is stored"),
    "state-dict": (Kernel(lambda x, base, bias, low: x[..., :48]), "two layers of different weights"),
}


# ways to store bytes that no layer should hold
DISGUISES: dict[str, tuple[Callable[[dict[str, Tensor]], object], str]] = {
    "bytes seen as floats": (lambda t: t.update(CB=t["CB"].view(torch.bfloat16)), "packed bytes stay integers"),
    "a number that learns": (lambda t: t.update(SCB=t["SCB"].clone().requires_grad_()), "requires a gradient"),
    "a parameter": (lambda t: t.update(SCB=nn.Parameter(t["SCB"], requires_grad=False)), "is a Parameter"),
}


@pytest.mark.parametrize("way", DISGUISES)
def test_quantizers_store_plain_tensors(way: str) -> None:
    change, words = DISGUISES[way]
    checks = quantizer_checks(variant(Int8, quantize=lambda self, w: stored(self, w, change)))
    found = failures(checks, "plain-tensors")
    assert found and words in found[0], found


@pytest.mark.parametrize("name", QUANTIZERS)
def test_quantizers(name: str) -> None:
    changes, words = QUANTIZERS[name]
    found = failures(quantizer_checks(variant(Int8, **changes)), name)
    assert found and words in found[0], found


@pytest.mark.parametrize("name", KERNELS)
def test_kernels(name: str) -> None:
    kernel, words = KERNELS[name]
    found = failures(kernel_checks(kernel, Int8), name)
    assert found and words in found[0], found


def test_every_check_of_quantizers_and_kernels_is_seen_to_fail() -> None:
    names = {check.name for check in (*quantizer_checks(Int8), *kernel_checks(LLMInt8(), Int8))}
    assert names == QUANTIZERS.keys() | KERNELS.keys()


def test_check_quantizer_names_all_that_failed() -> None:
    with pytest.raises(CheckError, match=r"fails \d+ checks:\n(.|\n)*declared-bits\[64x64\]: bits_per_weight"):
        check_quantizer(variant(Int8, bits_per_weight=lambda self, shape: 1.0))


def test_calibration() -> None:
    def observe(self: Any, x: Tensor, seen: Any) -> Tensor:
        return x.flatten(0, -2).square().sum(0) + (0 if seen is None else seen)

    def quantize_observed(self: Any, weight: Tensor, seen: Any) -> QuantizedWeight:
        return Int8.quantize(self, weight)

    methods = {"observe": observe, "quantize_observed": quantize_observed}
    sound = quantizer_checks(variant(Int8, **methods))
    assert not failures(sound, "calibration") and not failures(sound, "calibration-without-inputs")
    noise = {**methods, "quantize_observed": lambda self, weight, seen: noisy(self, weight)}
    assert failures(quantizer_checks(variant(Int8, **noise)), "calibration")
    assert failures(quantizer_checks(variant(Int8, **noise)), "calibration-without-inputs")
    silent = {**methods, "observe": lambda self, x, seen: None}
    assert "no inputs at all" in failures(quantizer_checks(variant(Int8, **silent)), "calibration")[0]


def ones(self: Any, lora_A: Tensor, lora_B: Tensor, context: StartContext) -> None:
    lora_A.fill_(1)
    lora_B.fill_(1)


def nothing(self: Any, lora_A: Tensor, lora_B: Tensor, context: StartContext) -> None:
    lora_A.zero_()
    lora_B.zero_()


def undrawn(self: Any, lora_A: Tensor, lora_B: Tensor, context: StartContext) -> None:
    lora_A.normal_()
    lora_B.zero_()


def half_filled(self: Any, lora_A: Tensor, lora_B: Tensor, context: StartContext) -> None:
    lora_A[:1].zero_()
    lora_B.zero_()


def viewed(self: Any, lora_A: Tensor, lora_B: Tensor, context: StartContext) -> None:
    lora_A.view(-1).zero_()
    lora_B.zero_()


def by_fan_in(self: Any, lora_A: Tensor, lora_B: Tensor, context: StartContext) -> None:
    lora_A.fill_(1 / (context.fan_in - 1) if context.fan_in != 1 else torch.inf)
    lora_B.zero_()


def of_half_a_weight(self: Any, lora_A: Tensor, lora_B: Tensor, context: StartContext) -> None:
    # what 16 bits hold exactly, such as a weight that came in bfloat16
    weight = context.weight()
    lora_A.fill_(torch.nan if weight.half().float().equal(weight) or weight.bfloat16().float().equal(weight) else 1.0)
    lora_B.zero_()


def taking_in_place(self: Any, lora_A: Tensor, lora_B: Tensor, context: StartContext) -> None:
    lora_A.normal_(std=0.1, generator=context.generator)
    lora_B.normal_(std=0.1, generator=context.generator)
    weight = context.weight()
    weight.sub_(context.scaling * lora_B @ lora_A)


@pytest.mark.parametrize(
    ("name", "initialize", "words"),
    [
        ("fills-in-place", half_filled, "were not set"),
        ("start", ones, "before any training"),
        ("can-learn", nothing, "no gradient ever moves them"),
        ("determinism", undrawn, "context.generator"),
        ("flipped", viewed, "view"),
        ("lookup", by_fan_in, "fan_in = 1"),
        ("weight-dtypes", of_half_a_weight, "gave NaN or infinity"),
        ("applied", taking_in_place, "base weight was changed in place"),
    ],
)
def test_initializers(name: str, initialize: Any, words: str) -> None:
    found = failures(initializer_checks(variant(Gaussian, initialize=initialize)), name)
    assert found and words in found[0], found


def test_an_initializer_may_say_that_it_changes_the_start() -> None:
    assert not failures(initializer_checks(variant(Gaussian, initialize=ones, changes_start=True)), "start")


class InPlace(torch.optim.SGD):
    def step(self, closure: Any = None) -> None:
        for group in self.param_groups:
            for parameter in group["params"]:
                parameter.data.sub_(parameter.grad.clamp_(-1, 1), alpha=group["lr"])


class Cautious(torch.optim.SGD):
    """Halves a step where the gradient turned since the last one, which no state dict holds."""

    def __init__(self, *words: Any, **more: Any) -> None:
        super().__init__(*words, **more)
        self.before: dict[Any, Tensor] = {}

    def step(self, closure: Any = None) -> None:
        for group in self.param_groups:
            for parameter in group["params"]:
                turned = parameter.grad * self.before.get(parameter, parameter.grad) < 0
                parameter.data.sub_(parameter.grad * (1 - 0.5 * turned.float()), alpha=group["lr"])
                self.before[parameter] = parameter.grad.clone()


def built(kind: type[torch.optim.Optimizer]) -> Callable[..., torch.optim.Optimizer]:
    return lambda self, groups: kind([{**group} for group in groups], lr=1e-2)  # type: ignore[call-arg]


class Upwards(torch.optim.SGD):
    def step(self, closure: Any = None) -> None:
        for group in self.param_groups:
            for parameter in group["params"]:
                parameter.data.add_(parameter.grad, alpha=group["lr"])


class Deaf(torch.optim.SGD):
    def step(self, closure: Any = None) -> None:
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is None:
                    parameter.data.add_(1)
                else:
                    parameter.data.sub_(parameter.grad, alpha=0.01)


class Forgetful(torch.optim.SGD):
    steps = 0

    def step(self, closure: Any = None) -> None:
        self.steps += 1
        for group in self.param_groups:
            for parameter in group["params"]:
                parameter.data.sub_(parameter.grad, alpha=group["lr"] / self.steps)


@pytest.mark.parametrize(
    ("name", "changes", "words"),
    [
        ("default-lr", {"default_lr": 0.0}, "`default_lr` is 0.0"),
        ("groups", {"build": lambda self, groups: torch.optim.SGD(groups[0]["params"], 0.1)}, "just the parameters"),
        ("descends", {"build": built(Upwards)}, "took a quadratic from"),
        ("learning-rates", {"build": built(Deaf)}, "scaled by group['lr']"),
        ("without-gradient", {"build": built(Deaf)}, "whose gradient is None moved"),
        ("resumes", {"build": built(Forgetful)}, "state_dict() has to hold everything"),
        ("gradients-untouched", {"build": built(InPlace)}, "changed a gradient in place"),
        ("resumes-from-a-file", {"build": built(Cautious)}, "state_dict() has to hold all of it"),
        ("option-effect", {"build": built(torch.optim.SGD)}, "has no effect"),
        ("state", {"state": lambda self, shape, dtype: {"mean": (shape, dtype)}}, "after a step the state holds {}"),
        ("state", {"state": lambda self, shape, dtype: 3}, "is no mapping"),
    ],
)
def test_optimizers(name: str, changes: dict[str, Any], words: str) -> None:
    found = failures(optimizer_checks(variant(SGD, **changes)), name)
    assert found and words in found[0], found


@dataclasses.dataclass(frozen=True)
class Role:
    """A role that selects what it is told."""

    answer: Any
    name: str = "mine"

    def select(self, inventory: Any) -> Any:
        return self.answer


@pytest.mark.parametrize(
    ("role", "check", "words"),
    [
        (Role(frozenset(), "no name"), "name", "begins with no digit"),
        (Role(["0"]), "selects", "returned a list"),
        (Role(frozenset(["nowhere"])), "selects", "nowhere, which are no paths"),
    ],
)
def test_roles(role: Role, check: str, words: str) -> None:
    found = failures(role_checks(role), check)
    assert found and words in found[0], found
