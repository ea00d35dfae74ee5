"""What these methods ask of lorakit beyond themselves: other methods around and under them, and clear refusals."""

from __future__ import annotations

import types
from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import pytest
import torch
from peft_twin import inputs_of, model_of
from torch import Tensor, nn

import lorakit
from lorakit import hookimpl
from lorakit.hooks import PlanEntry, Plugins
from lorakit.plugins import load_plugins
from lorakit_methods import IA3


def moved(model: nn.Module) -> nn.Module:
    """Move everything that trains, as training would."""
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(0.2 * torch.randn(parameter.shape, generator=generator))
    return model


@pytest.mark.parametrize(
    ("kind", "method"), [("linear", "vera"), ("linear_transposed", "dora"), ("conv2d", "dora"), ("embedding", "dora")]
)
def test_lora_stands_around_other_methods_and_under_them(kind: str, method: str) -> None:
    inputs, lora = inputs_of(kind), "adapt layer rank 2 dtype fp32"
    for first, second in ((lora, f"{lora} method {method}"), (f"{lora} method {method}", lora)):
        model = moved(lorakit.apply(first, model_of(kind), name="one"))
        moved(lorakit.apply(second, model, name="two"))
        lorakit.adapters(model).use({"one": 1.0, "two": 0.5})
        with torch.no_grad():
            wanted = model.eval()(inputs)
            torch.testing.assert_close(lorakit.merge(model)(inputs), wanted, rtol=1e-5, atol=1e-5)


def test_magnitudes_of_a_further_adapter_start_from_the_base_alone() -> None:
    inputs, plain = inputs_of("linear"), model_of("linear")
    model = moved(lorakit.apply("adapt layer rank 2 dtype fp32", model_of("linear"), name="one"))
    lorakit.apply("adapt layer rank 2 method dora dtype fp32", model, name="two")
    with torch.no_grad():
        torch.testing.assert_close(model(inputs), plain(inputs), rtol=1e-6, atol=1e-6)


@dataclass(frozen=True)
class Failing(IA3):
    """A method that fails as it builds."""

    name: ClassVar[str] = "failing"

    def adapt(self, layer: nn.Module, entry: PlanEntry, parameters: Mapping[str, nn.Parameter]) -> nn.Module:
        raise RuntimeError("no room")


@dataclass(frozen=True)
class Unseen(IA3):
    """A method whose adapter shows no weight."""

    name: ClassVar[str] = "unseen"

    def adapt(self, layer: nn.Module, entry: PlanEntry, parameters: Mapping[str, nn.Parameter]) -> nn.Module:
        return Bare(layer, parameters)


class Bare(nn.Module):
    def __init__(self, base_layer: nn.Module, parameters: Mapping[str, nn.Parameter]) -> None:
        super().__init__()
        self.base_layer, self.strength, self.ia3_l = base_layer, 1.0, parameters["ia3_l"]

    def forward(self, x: Tensor) -> Tensor:
        return self.base_layer(x) * (1 + self.strength * (self.ia3_l.flatten() - 1))


def plugins_of(method: type) -> Plugins:
    return load_plugins(modules={"sample 1.0": types.SimpleNamespace(lorakit_methods=hookimpl(lambda: [method]))})


def test_a_method_that_fails_to_build_is_named_and_leaves_the_model_as_it_was() -> None:
    model, plugins = model_of("linear"), plugins_of(Failing)
    spec = lorakit.parse("adapt layer method failing", plugins=plugins)
    with pytest.raises(lorakit.PluginError, match="`failing` of sample 1.0 failed to adapt `layer`.*no room"):
        lorakit.apply(spec, model, plugins=plugins)
    assert type(model.layer) is nn.Linear


def test_an_adapter_that_its_parent_would_not_see_is_refused() -> None:
    plugins = plugins_of(Unseen)
    with pytest.raises(lorakit.PluginError, match="shows no `weight` to its parent"):
        lorakit.apply(
            lorakit.parse("adapt out_proj method unseen", plugins=plugins), nn.MultiheadAttention(8, 2), plugins=plugins
        )
    called = lorakit.apply(
        lorakit.parse("adapt layer method unseen", plugins=plugins), model_of("linear"), plugins=plugins
    )
    assert called(inputs_of("linear")).shape == (4, 3, 48)
