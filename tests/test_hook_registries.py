"""What plugins bring by a word: each registry, filled by a plugin that has nothing which a third party lacks."""

from __future__ import annotations

import types
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

import pytest
import torch
from plugged import one, plugins_of, run
from torch import Tensor, nn

import lorakit
from lorakit.hooks import (
    LayerShape,
    Linear,
    ParameterPlan,
    PlanEntry,
    QuantizedWeight,
    Quantizer,
    Settings,
    StartContext,
    Storage,
)


@dataclass(frozen=True)
class Half:
    """Stores weights in 16 bits."""

    name: ClassVar[str] = "half"
    scale: float = field(default=1.0, metadata={"help": "multiplies the weight"})

    def quantize(self, weight: Tensor) -> QuantizedWeight:
        return QuantizedWeight({"half": (weight * self.scale).half()}, tuple(weight.shape), weight.dtype)  # type: ignore[arg-type]

    def dequantize(self, quantized: QuantizedWeight) -> Tensor:
        return quantized.tensors["half"].to(quantized.dtype)

    def bits_per_weight(self, shape: tuple[int, int]) -> float:
        return 16.0


def test_lorakit_quantizers() -> None:
    model = run("adapt 0 rank 2 quant half(scale=2)", one(), plugins_of(lorakit_quantizers=lambda: [Half]))
    torch.testing.assert_close(model[0].base_layer.weight, 2 * one()[0].weight.detach(), rtol=1e-3, atol=1e-3)
    assert lorakit.summary(model).modules[0].bits_per_weight == 16


def test_a_quantizer_needs_no_product_of_its_own_and_all_else() -> None:
    @dataclass(frozen=True)
    class Inherits(Quantizer):
        """Stores weights as they are."""

        name: ClassVar[str] = "inherits"

        def quantize(self, weight: Tensor) -> QuantizedWeight:
            return QuantizedWeight({"same": weight.clone()}, (weight.shape[0], weight.shape[1]), weight.dtype)

        def dequantize(self, quantized: QuantizedWeight) -> Tensor:
            return quantized.tensors["same"]

        def bits_per_weight(self, shape: tuple[int, int]) -> float:
            return 32.0

    model, x = run("quantize 0 inherits", one(), plugins_of(lorakit_quantizers=lambda: [Inherits])), torch.randn(2, 8)
    torch.testing.assert_close(model(x), one()(x))
    # what the protocol leaves empty is missing
    incomplete = type("Incomplete", (Quantizer,), {"name": "incomplete", "quantize": Inherits.quantize})
    with pytest.raises(lorakit.PluginError, match=r"`incomplete` has no method `dequantize\(quantized\)`"):
        plugins_of(lorakit_quantizers=lambda: [dataclass(frozen=True)(incomplete)])


def test_lorakit_initializers() -> None:
    @dataclass(frozen=True)
    class FromWeight:
        """Starts A with rows of the base weight."""

        name: ClassVar[str] = "rows"

        def initialize(self, lora_A: Tensor, lora_B: Tensor, context: Any) -> None:
            lora_A.copy_(context.weight()[: lora_A.shape[0]])
            lora_B.fill_(context.scaling)

    model = run("adapt 0 rank 2 alpha 6 init rows", one(), plugins_of(lorakit_initializers=lambda: [FromWeight]))
    assert torch.equal(model[0].lora_A, one()[0].weight[:2]) and bool((model[0].lora_B == 3).all())


def test_an_initializer_that_raises_is_named_with_the_module() -> None:
    @dataclass(frozen=True)
    class Picky:
        """Takes even ranks only."""

        name: ClassVar[str] = "picky"

        def initialize(self, lora_A: Tensor, lora_B: Tensor, context: Any) -> None:
            raise ValueError("the rank must be even")

    model = one()
    with pytest.raises(
        lorakit.PluginError,
        match="initializer `picky` of sample 1.0 failed on `0` at rank 3: ValueError: the rank must be even",
    ):
        run("adapt 0 rank 3 init picky", model, plugins_of(lorakit_initializers=lambda: [Picky]))
    assert type(model[0]) is nn.Linear


def test_lorakit_optimizers() -> None:
    @dataclass(frozen=True)
    class Rprop:
        """Resilient backpropagation."""

        name: ClassVar[str] = "rprop"
        default_lr: ClassVar[float] = 0.125

        def build(self, groups: Sequence[dict[str, Any]]) -> torch.optim.Optimizer:
            return torch.optim.Rprop([{"params": group["params"], "lr": group["lr"]} for group in groups])

        def state(self, shape: tuple[int, ...], dtype: str) -> Mapping[str, tuple[tuple[int, ...], str]]:
            return {"odd": ((3,), "float16"), "flags": ((1,), "bool")}

    plugins = plugins_of(lorakit_optimizers=lambda: [Rprop])
    model = run("adapt 0 rank 2\noptimizer rprop", one(), plugins)
    optimizer = lorakit.optimizer(model)
    assert isinstance(optimizer, torch.optim.Rprop) and optimizer.param_groups[0]["lr"] == 0.125
    assert (
        lorakit.plan(
            lorakit.parse("adapt 0 rank 2\noptimizer rprop", plugins=plugins), one(), plugins=plugins
        ).memory.optimizer
        == 14
    )


class Scaled(nn.Module):
    def __init__(self, base_layer: nn.Module, factors: nn.Parameter) -> None:
        super().__init__()
        self.base_layer = base_layer
        self.strength = 1.0
        self.factors = factors

    def forward(self, x: Tensor) -> Tensor:
        return self.base_layer(x) * (1 + self.strength * (self.factors - 1))


@dataclass(frozen=True)
class Scale:
    """Scales the outputs."""

    name: ClassVar[str] = "scale"
    clauses: ClassVar[frozenset[str]] = frozenset()

    def parameters(self, layer: LayerShape, settings: Settings) -> tuple[ParameterPlan, ...]:
        return (ParameterPlan("factors", (layer.out_features,)),)

    def start(self, parameters: Any, context: StartContext) -> None:
        parameters["factors"].fill_(3)

    def adapt(self, layer: nn.Module, entry: PlanEntry, parameters: Any) -> nn.Module:
        return Scaled(layer, **parameters)

    def peft(self, entries: Sequence[PlanEntry]) -> None:
        return None


def test_lorakit_methods() -> None:
    plugins = plugins_of(lorakit_methods=lambda: [Scale])
    model = run("adapt 0 method scale dtype fp32", one(), plugins)
    x = torch.randn(2, 8)
    torch.testing.assert_close(model(x), 3 * one()(x))
    assert lorakit.summary(model).added_parameters == 6


def test_lorakit_roles() -> None:
    role = types.SimpleNamespace(name="first", select=lambda inventory: frozenset(["0"]))
    model = run(
        "adapt @first rank 2", nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4)), plugins_of(lorakit_roles=lambda: [role])
    )
    assert hasattr(model[0], "lora_A") and not hasattr(model[1], "lora_A")


@dataclass(frozen=True)
class Doubling:
    """Multiplies as the default does, twice as far, where it is told to fit."""

    name: str = "doubling"
    by: float = 2.0
    fits: str = "half"

    def linear(self, storage: Storage) -> Linear | None:
        if storage.quantizer.name != self.fits:
            return None
        shape, dtype, quantizer = storage.shape, storage.dtype, storage.quantizer

        def linear(x: Tensor, base: Any, bias: Tensor | None, low_rank: Any) -> Tensor:
            weight = quantizer.dequantize(QuantizedWeight(base, shape, dtype))
            result = self.by * nn.functional.linear(x, weight, bias)
            return result + sum(one.scaling * (x @ one.A.T.to(x)) @ one.B.T.to(x) for one in low_rank)

        return linear


def test_lorakit_kernels() -> None:
    x = torch.randn(3, 8)
    plain = run("adapt 0 rank 2 quant half", one(), plugins_of(lorakit_quantizers=lambda: [Half]))
    plugins = plugins_of(
        lorakit_quantizers=lambda: [Half],
        # the last that fits multiplies, and one that does not fit is passed over
        lorakit_kernels=lambda: [Doubling("first", 5.0), Doubling(), Doubling("other", 7.0, "nf4")],
    )
    model = run("adapt 0 rank 2 quant half", one(), plugins)
    torch.testing.assert_close(model(x), 2 * plain(x))
    for parameters in zip(plain[0].parameters(recurse=False), model[0].parameters(recurse=False), strict=True):
        with torch.no_grad():
            for parameter in parameters:
                parameter.fill_(0.1)
    base = plain[0].base_layer(x)
    torch.testing.assert_close(model(x) - 2 * base, plain(x) - base)
    assert [kernel.name for kernel in plugins.kernels[:3]] == ["other", "doubling", "first"]


def test_a_kernel_is_chosen_again_when_a_layer_moves_and_stays_with_its_copies() -> None:
    asked: list[Storage] = []

    class Asked:
        """Notes what it is asked and never fits."""

        name = "asked"

        def linear(self, storage: Storage) -> None:
            asked.append(storage)

    model = run("quantize 0 nf4", one(), plugins_of(lorakit_kernels=lambda: [Asked()]))
    before = len(asked)
    model(torch.randn(2, 8)).sum()
    assert len(asked) == before
    model.to(torch.bfloat16)
    assert asked[-1].dtype == torch.bfloat16 and asked[-1].shape == (6, 8)
    model.to("meta")
    assert asked[-1].device.type == "meta"
