"""A low-rank method that is sound, and ways to plant a fault in its table, its start or its adapter."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar

from planted import variant
from torch import Tensor, nn
from torch.nn import functional

from lorakit.hooks import (
    LayerShape,
    ParameterPlan,
    PlanEntry,
    Settings,
    StartContext,
    low_rank_fields,
    low_rank_table,
    start_low_rank,
)


class Sound(nn.Module):
    """h = W₀x + strength · scaling · B · A · dropout(x)."""

    lora_A: Tensor
    lora_B: Tensor

    def __init__(self, base_layer: nn.Module, scaling: float, dropout: float, **parameters: nn.Parameter) -> None:
        super().__init__()
        self.base_layer = base_layer
        self.strength: float | Tensor = 1.0
        self.scaling, self.dropout = scaling, dropout
        for name, parameter in parameters.items():
            self.register_parameter(name, parameter)

    def change(self, x: Tensor) -> Tensor:
        x = functional.dropout(x.to(self.lora_A.dtype), self.dropout, self.training)
        return x @ self.lora_A.T @ self.lora_B.T

    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = self.base_layer(x)
        change, strength = self.change(x), self.strength
        if isinstance(strength, Tensor):
            strength = strength.view(-1, *(1 for _ in change.shape[1:]))
        return result + (self.scaling * strength * change).to(result.dtype)

    def delta(self) -> Tensor:
        return self.scaling * self.lora_B.float() @ self.lora_A.float()

    def exact_weight(self, weight: Tensor) -> Tensor:
        return weight + self.strength * self.delta()


@dataclasses.dataclass(frozen=True)
class Low:
    """A low-rank method on linear layers."""

    name: ClassVar[str] = "low"
    clauses: ClassVar[frozenset[str]] = frozenset({"rank", "alpha", "scaling", "dropout", "init", "lr_ratio"})
    adapter: ClassVar[type[Sound]] = Sound

    def parameters(self, layer: LayerShape, settings: Settings) -> Sequence[ParameterPlan]:
        return low_rank_table(layer, settings) if layer.kind == "linear" else ()

    def start(self, parameters: Mapping[str, Tensor], context: StartContext) -> None:
        start_low_rank(parameters, context)

    def adapt(self, layer: nn.Module, entry: PlanEntry, parameters: Mapping[str, nn.Parameter]) -> nn.Module | None:
        assert entry.adapter is not None
        settings = entry.adapter.settings
        return self.adapter(layer, settings.factor, settings.dropout or 0.0, **parameters)

    def peft(self, entries: Sequence[PlanEntry]) -> Mapping[str, Any] | None:
        return low_rank_fields(entries)


def low(**changes: Any) -> type:
    """Return the method with these differences."""
    return variant(Low, **changes)


def built(**changes: Any) -> type:
    """Return the method with an adapter that has these differences."""
    return low(adapter=type("Wrong", (Sound,), changes))


def table(*more: ParameterPlan, **changes: Any) -> Callable[..., Any]:
    """Return a table with these parameters more, and others for lora_A."""

    def parameters(self: Any, layer: LayerShape, settings: Settings) -> Any:
        if layer.kind != "linear":
            return ()
        lora_A, lora_B = low_rank_table(layer, settings)
        return (dataclasses.replace(lora_A, **changes), lora_B, *more)

    return parameters


def starting(fill: Callable[[Tensor, StartContext], object]) -> Callable[..., None]:
    """Return a start that fills lora_A so, and nothing else."""

    def start(self: Any, parameters: Mapping[str, Tensor], context: StartContext) -> None:
        fill(parameters["lora_A"], context)
        for name in parameters.keys() - {"lora_A", "lora_B"}:
            parameters[name].fill_(1)

    return start
