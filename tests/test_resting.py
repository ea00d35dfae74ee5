"""What a start took from the base is given back whatever method started so."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import pytest
import torch
from plugged import plugins_of
from torch import Tensor, nn

import lorakit
from lorakit.hooks import LayerShape, ParameterPlan, Plugins, Settings, StartContext, low_rank_table, start_low_rank

TEXT = "adapt 0,2 rank 3 alpha 6 method turned init rows dtype fp32"


class TurnedLayer(nn.Module):
    """h = g ⊙ (W₀x + b + s · B · A · x): what it adds hangs on what its base holds."""

    def __init__(
        self, base_layer: nn.Module, scaling: float, lora_A: nn.Parameter, lora_B: nn.Parameter, gain: nn.Parameter
    ) -> None:
        super().__init__()
        self.base_layer = base_layer
        self.strength: float | Tensor = 1.0
        self.scaling, self.lora_A, self.lora_B, self.gain = scaling, lora_A, lora_B, gain

    def forward(self, x: Tensor) -> Tensor:
        base: Tensor = self.base_layer(x)
        low = self.scaling * (x @ self.lora_A.T @ self.lora_B.T)
        strength = self.strength.view(-1, 1) if isinstance(self.strength, Tensor) else self.strength
        return base + strength * (self.gain * (base + low) - base)

    def exact_weight(self, weight: Tensor) -> Tensor:
        whole = self.gain[:, None] * (weight + self.scaling * self.lora_B @ self.lora_A)
        return torch.lerp(weight, whole, float(self.strength))

    def exact_bias(self, bias: Tensor) -> Tensor:
        return torch.lerp(bias, self.gain * bias, float(self.strength))


@dataclass(frozen=True)
class Turned:
    """A low-rank change, and a gain for every output of it all."""

    name: ClassVar[str] = "turned"
    clauses: ClassVar[frozenset[str]] = frozenset({"rank", "alpha", "init"})

    def parameters(self, layer: LayerShape, settings: Settings) -> Sequence[ParameterPlan]:
        return (*low_rank_table(layer, settings), ParameterPlan("gain", (layer.out_features,)))

    def start(self, parameters: Mapping[str, Tensor], context: StartContext) -> None:
        start_low_rank(parameters, context)
        parameters["gain"].fill_(1)

    def adapt(self, layer: nn.Module, entry: Any, parameters: Mapping[str, nn.Parameter]) -> nn.Module:
        return TurnedLayer(layer, entry.adapter.settings.factor, **parameters)

    def peft(self, entries: Sequence[Any]) -> None:
        return None


@dataclass(frozen=True)
class Rows:
    """Starts with rows of the weight, which it takes from the base."""

    name: ClassVar[str] = "rows"
    changes_base: ClassVar[bool] = True

    def initialize(self, lora_A: Tensor, lora_B: Tensor, context: StartContext) -> None:
        lora_A.copy_(context.weight()[: lora_A.shape[0]])
        lora_B.normal_(generator=context.generator)


@pytest.fixture
def plugins() -> Plugins:
    return plugins_of(lorakit_methods=lambda: [Turned], lorakit_initializers=lambda: [Rows])


def made() -> Any:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(8, 6), nn.Tanh(), nn.Linear(6, 5))


def adapted(plugins: Plugins) -> Any:
    model = lorakit.apply(lorakit.parse(TEXT, plugins=plugins), made(), plugins=plugins)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.requires_grad:
                parameter.add_(torch.linspace(-0.1, 0.2, parameter.numel()).view_as(parameter))
                assert any(own in name for own in ("lora_A", "lora_B", "gain"))
    return model


def test_a_method_of_a_third_party_rests_and_serves_parts_and_rows(plugins: Plugins) -> None:
    x, model = torch.randn(4, 8, generator=torch.Generator().manual_seed(1)), adapted(plugins)
    adapters, used, base = lorakit.adapters(model), model(x).detach(), made()(x).detach()
    assert not torch.allclose(used, base, atol=1e-2)
    with adapters.disabled():
        torch.testing.assert_close(model(x), base)
    with adapters.rows(["default", None, None, "default"]):
        torch.testing.assert_close(model(x), torch.stack([used[0], base[1], base[2], used[3]]))
    adapters.use({"default": 0.25})
    part = model(x).detach()
    with adapters.merged():
        torch.testing.assert_close(model(x), part)
    adapters.use("default")
    assert torch.equal(model(x), used)
    plain, merged = made(), lorakit.merge(model)
    with torch.no_grad():
        for own, whole in zip(plain.parameters(), merged.parameters(), strict=True):
            own.lerp_(whole, 0.25)
    torch.testing.assert_close(part, plain(x))


def test_a_second_adapter_stands_around_what_is_given_back(plugins: Plugins) -> None:
    x, model = torch.randn(4, 8, generator=torch.Generator().manual_seed(1)), adapted(plugins)
    lorakit.apply(lorakit.parse(TEXT.replace("rows", "kaiming"), plugins=plugins), model, plugins=plugins, name="two")
    adapters = lorakit.adapters(model)
    torch.testing.assert_close(model(x), made()(x))
    with torch.no_grad():
        model[0].gain.mul_(2)
    alone = made()
    with torch.no_grad():
        alone[0].weight.mul_(2)
        alone[0].bias.mul_(2)
    torch.testing.assert_close(model(x), alone(x))
    with adapters.rows([None, "two", None, "two"]):
        torch.testing.assert_close(model(x), torch.where(torch.tensor([[0.0], [1.0]] * 2) > 0, alone(x), made()(x)))
