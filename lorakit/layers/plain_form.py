"""What a quantized layer was before: its class and all that it holds but its tensors."""

from __future__ import annotations

import copy
from dataclasses import dataclass

from torch import Tensor, nn


@dataclass(frozen=True, slots=True)
class PlainForm:
    """A layer without its tensors; where it is `transposed` its weight lies as (in_features, out_features)."""

    layer: nn.Module
    transposed: bool = False

    @classmethod
    def of(cls, layer: nn.Module, *, transposed: bool = False) -> PlainForm:
        """Return the form of a layer, which stays as it is."""
        husk = copy.copy(layer)
        husk._parameters = dict.fromkeys(layer._parameters)
        return cls(husk, transposed)

    def filled(self, weight: Tensor, bias: Tensor | None) -> nn.Module:
        """Return a layer of this form with a frozen weight, given as (out_features, in_features), and a bias."""
        layer = copy.copy(self.layer)
        held = {"weight": weight.T.contiguous() if self.transposed else weight, "bias": bias}
        layer._parameters = {
            name: None if tensor is None else nn.Parameter(tensor, requires_grad=False) for name, tensor in held.items()
        }
        return layer
