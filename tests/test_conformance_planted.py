"""Faults that hide: behind an option that is off, in the hundredth step, past 16 bits of columns, in low precision."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar

import pytest
import torch
from planted import failures, variant
from torch import Tensor, nn

from lorakit.builtin.int8 import Int8
from lorakit.hooks import (
    LayerShape,
    ParameterPlan,
    PlanEntry,
    QuantizedWeight,
    Settings,
    StartContext,
    low_rank_table,
    start_low_rank,
)
from lorakit.layers.quantized_linear import QuantizedLinear
from lorakit.testing import method_checks, optimizer_checks, quantizer_checks


class Descent(torch.optim.Optimizer):
    """Goes down the gradient; `made` is the configured plugin."""

    def __init__(self, groups: Any, made: Any) -> None:
        self.made, self.steps, self.aside = made, 0, {}  # type: ignore[var-annotated]
        super().__init__(groups, {"lr": 0.01})

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        self.steps += 1
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is not None:
                    parameter.sub_(self.change(parameter, group["lr"]))

    def change(self, parameter: Tensor, lr: float) -> Any:
        return lr * parameter.grad  # type: ignore[operator]


class EveryHundredth(Descent):
    def change(self, parameter: Tensor, lr: float) -> Tensor:
        return super().change(parameter, lr) * (0.5 if self.steps % 100 == 0 else 1)


class ByLargestRate(Descent):
    def change(self, parameter: Tensor, lr: float) -> Tensor:
        self.largest = max(getattr(self, "largest", lr), lr)
        return super().change(parameter, lr) * (lr / self.largest if lr else 1)


class Momentum(Descent):
    def change(self, parameter: Tensor, lr: float) -> Tensor:
        before = self.aside.get(id(parameter), 0)
        self.aside[id(parameter)] = super().change(parameter, lr) + self.made.momentum * before
        return self.aside[id(parameter)]


class OfThreeDimensions(Descent):
    def change(self, parameter: Tensor, lr: float) -> Tensor:
        change = super().change(parameter, lr)
        if parameter.ndim >= 3:
            change = self.aside[id(parameter)] = change + 0.9 * self.aside.get(id(parameter), 0)
        return change


class IntoTheGradient(Descent):
    def change(self, parameter: Tensor, lr: float) -> Tensor:
        if self.made.decay and parameter.grad is not None:
            parameter.grad.add_(parameter, alpha=self.made.decay)
        return super().change(parameter, lr)


class FirstBeta(Descent):
    def change(self, parameter: Tensor, lr: float) -> Tensor:
        return super().change(parameter, lr) * self.made.betas[0]


def optimizer(kind: type[Descent], **fields: tuple[Any, Any]) -> type:
    """Return a plugin that builds this optimizer, with these options: a type and a default each."""
    options = {name: default for name, (_, default) in fields.items()}
    types = {"name": ClassVar[str], "default_lr": ClassVar[float], **{name: one for name, (one, _) in fields.items()}}

    @dataclasses.dataclass(frozen=True)
    class Nothing:
        name: ClassVar[str] = "nothing"
        default_lr: ClassVar[float] = 0.01

        def build(self, groups: Sequence[dict[str, Any]]) -> torch.optim.Optimizer:
            return kind(groups, self)

        def state(self, shape: tuple[int, ...], dtype: str) -> Mapping[str, Any]:
            return {}

    return variant(Nothing, **options, __annotations__=types)


@pytest.mark.parametrize(
    ("kind", "fields", "check", "words"),
    [
        (EveryHundredth, {}, "resumes-from-a-file", "after load_state_dict the weights differ"),
        (ByLargestRate, {}, "resumes-from-a-file", "after load_state_dict the weights differ"),
        (OfThreeDimensions, {}, "resumes-from-a-file", "after load_state_dict the weights differ"),
        (Momentum, {"momentum": (float, 0.0)}, "resumes-from-a-file", "after load_state_dict the weights differ"),
        (IntoTheGradient, {"decay": (float, 0.0)}, "gradients-untouched", "a step changed a gradient in place"),
        (FirstBeta, {"betas": (tuple[float, float], (0.9, 0.99))}, "option-effect", r"`betas[1]` has no effect"),
        (Descent, {"warmup": (int, 0)}, "option-effect", "`warmup` has no effect: 0 and 1, 10"),
    ],
    ids=lambda value: value.__name__ if isinstance(value, type) else "",
)
def test_optimizers(kind: type[Descent], fields: dict[str, Any], check: str, words: str) -> None:
    (found, *_) = failures(optimizer_checks(optimizer(kind, **fields)), check, 1)
    assert words in found


@pytest.mark.parametrize("check", ["resumes-from-a-file", "gradients-untouched", "option-effect"])
def test_a_sound_optimizer_passes(check: str) -> None:
    plugin = optimizer(type("Both", (FirstBeta,), {"change": both_betas}), betas=(tuple[float, float], (0.9, 0.99)))
    assert failures(optimizer_checks(plugin), check) == []


def both_betas(self: Any, parameter: Tensor, lr: float) -> Tensor:
    return Descent.change(self, parameter, lr) * sum(self.made.betas)


@pytest.mark.parametrize("axis", [0, 1])
def test_a_quantizer_whose_places_fill_16_bits(axis: int) -> None:
    def dequantize(self: Any, quantized: QuantizedWeight) -> Tensor:
        weight = Int8.dequantize(self, quantized)
        # what lies past them is read from the beginning again
        places = torch.arange(weight.shape[axis]) % 2**16
        return weight.index_select(axis, places)

    (found, *_) = failures(quantizer_checks(variant(Int8, dequantize=dequantize)), "large-weights", 1)
    assert "is off by" in found


class Halved(torch.autograd.Function):
    """The inputs, with half of their gradient."""

    @staticmethod
    def forward(context: Any, x: Tensor) -> Tensor:
        return x.clone()

    @staticmethod
    def backward(context: Any, gradient: Tensor) -> Tensor:
        return gradient / 2


class Adapter(nn.Module):
    """h = W₀x + strength · factor · B · A · x; the inputs' gradient is halved on the way where the fault says so."""

    lora_A: Tensor
    lora_B: Tensor

    def __init__(
        self, base_layer: nn.Module, factor: float, fault: Callable[[Any, Tensor], bool], **parameters: nn.Parameter
    ) -> None:
        super().__init__()
        self.base_layer, self.factor, self.fault = base_layer, factor, fault
        self.strength: float | Tensor = 1.0
        for name, parameter in parameters.items():
            self.register_parameter(name, parameter)

    def forward(self, x: Tensor) -> Tensor:
        seen = Halved.apply(x) if self.fault(self, x) else x
        change = self.factor * seen.to(self.lora_A.dtype) @ self.lora_A.T @ self.lora_B.T
        result: Tensor = self.base_layer(x)
        return result + (self.strength * change).to(result.dtype)


@dataclasses.dataclass(frozen=True)
class Low:
    """A low-rank method on linear layers."""

    name: ClassVar[str] = "low"
    clauses: ClassVar[frozenset[str]] = frozenset({"rank", "alpha", "init"})
    fault: ClassVar[Any] = staticmethod(lambda adapter, x: False)
    factor: ClassVar[Any] = staticmethod(lambda layer, factor: factor)

    def parameters(self, layer: LayerShape, settings: Settings) -> Sequence[ParameterPlan]:
        return low_rank_table(layer, settings) if layer.kind == "linear" else ()

    def start(self, parameters: Mapping[str, Tensor], context: StartContext) -> None:
        start_low_rank(parameters, context)

    def adapt(self, layer: nn.Module, entry: PlanEntry, parameters: Mapping[str, nn.Parameter]) -> nn.Module | None:
        assert entry.adapter is not None
        return Adapter(layer, self.factor(layer, entry.adapter.settings.factor), self.fault, **parameters)

    def peft(self, entries: Sequence[PlanEntry]) -> Mapping[str, Any] | None:
        return None


@pytest.mark.parametrize(
    ("fault", "check", "words"),
    [
        (lambda adapter, x: x.dtype == torch.bfloat16, "input-gradient", "in bfloat16 the gradient of the"),
        (lambda adapter, x: torch.is_autocast_enabled("cpu"), "input-gradient", "under autocast the gradient"),
        (lambda adapter, x: x.shape[:1] == (1,), "input-gradient", "the gradient of the inputs along some"),
        (
            lambda adapter, x: adapter.strength != 1.0,
            "half-strength",
            "the gradient of the inputs at half the strength",
        ),
    ],
    ids=["bfloat16", "autocast", "one-row", "strength"],
)
def test_an_input_gradient_that_is_lost_now_and_then(fault: Any, check: str, words: str) -> None:
    assert failures(method_checks(Low), check) == []
    (found, *_) = failures(method_checks(variant(Low, fault=staticmethod(fault))), check, 1)
    assert words in found


def test_an_alpha_that_is_lost_on_a_quantized_layer() -> None:
    assert failures(method_checks(Low), "alpha") == []
    lost = staticmethod(lambda layer, factor: 1.0 if isinstance(layer, QuantizedLinear) else factor)
    assert len(failures(method_checks(variant(Low, factor=lost)), "alpha")) == 1
