"""What every adapter here is: a module in the place of a layer, which shows the weight that it computes with."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping

import torch
from torch import Tensor, nn

from lorakit.hooks import LayerShape
from lorakit.layers.quantized_linear import QuantizedLinear
from lorakit.layers.shown import shown
from lorakit.layers.strength import Strength, is_off


class AdapterLayer(nn.Module, ABC):
    """A frozen `base_layer`, which may be an adapter itself, and the parameters of a method around it."""

    def __init__(self, base_layer: nn.Module, shape: LayerShape, parameters: Mapping[str, nn.Parameter]) -> None:
        super().__init__()
        self.base_layer = base_layer
        self.shape = shape
        self.strength: Strength = 1.0
        for name, parameter in parameters.items():
            self.register_parameter(name, parameter)

    @abstractmethod
    def exact_weight(self, weight: Tensor) -> Tensor:
        """Return the weight that computes what this adapter does over a base layer of that weight, in float32."""

    def exact_bias(self, bias: Tensor) -> Tensor:
        """Return the bias that goes with the exact weight."""
        return bias

    @property
    def is_off(self) -> bool:
        """Whether the adapter is out of use, so that its base layer alone answers."""
        return is_off(self.strength)

    @property
    def bare_layer(self) -> nn.Module:
        """The layer under all of its adapters."""
        return _layers_from(self)[-1]

    @property
    def weight(self) -> Tensor:
        """The effective weight as the base layer holds its own, for parents that compute with it by themselves."""
        base: Tensor = self.base_layer.weight  # type: ignore[assignment]
        if self.is_off:
            return base
        weight = self._turned(self.exact_weight(self._turned(base).float())).to(base.dtype)
        return shown(weight, self, getattr(self, "dropout", None))

    @property
    def bias(self) -> Tensor | None:
        """The effective bias."""
        base: Tensor | None = getattr(self.base_layer, "bias", None)
        return base if base is None or self.is_off else self.exact_bias(base.float()).to(base.dtype)

    def beneath(self) -> tuple[Tensor, Tensor | None]:
        """Return the weight and the bias that this adapter stands on, in float32, as adapters see them.

        Adapters that serve rows of their own are not in use for the rows that this one serves, and what their starts
        took from the base is back there.
        """
        bare, *adapters = reversed(_layers_from(self)[1:])
        bias: Tensor | None = getattr(bare, "bias", None)
        with torch.no_grad():
            weight = self._turned(bare.weight).float()  # type: ignore[arg-type]
            for adapter in adapters:
                if isinstance(adapter.strength, Tensor):
                    weight = weight + adapter.exact_change() if getattr(adapter, "gives_back", False) else weight  # type: ignore[operator]
                else:
                    weight = adapter.exact_weight(weight)  # type: ignore[operator]
                    bias = adapter.exact_bias(bias) if bias is not None and hasattr(adapter, "exact_bias") else bias  # type: ignore[operator]
        return weight, bias

    def _turned(self, weight: Tensor) -> Tensor:
        """Return a weight as the base layer holds it the way adapters see it, or back."""
        is_held_transposed = self.shape.kind == "linear_transposed" and not isinstance(self.bare_layer, QuantizedLinear)
        return weight.T if is_held_transposed else weight

    def extra_repr(self) -> str:
        return ", ".join(f"{name}={tuple(value.shape)}" for name, value in self.named_parameters(recurse=False))


def _layers_from(adapter: nn.Module) -> list[nn.Module]:
    """Return an adapter and what lies under it, one layer under the other."""
    layers = [adapter]
    while isinstance(inner := layers[-1]._modules.get("base_layer"), nn.Module):
        layers.append(inner)
    return layers
