"""LoRA around a layer that computes y = x Wᵀ + b.

Source: Hu et al. 2021, "LoRA", arXiv:2106.09685, section 4.1.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from lorakit.layers.kernels.low_rank import add_low_rank, add_low_rank_, as_rows
from lorakit.layers.lora_layer import LoRALayer
from lorakit.layers.plain_calls import is_watched, parameter
from lorakit.layers.quantized_linear import QuantizedLinear
from lorakit.layers.strength import factor, is_off
from lorakit.values import LowRank


def lora_delta(lora_A: Tensor, lora_B: Tensor, scaling: float) -> Tensor:
    """Return the weight update ``scaling * lora_B @ lora_A``.

    Shapes: lora_A (rank, in_features); lora_B (out_features, rank); result (out_features, in_features).
    Units: scaling is dimensionless, alpha / rank (rsLoRA: alpha / sqrt(rank)).
    """
    return scaling * (lora_B @ lora_A)


class LoRALinear(LoRALayer):
    """h = W₀x + scaling · B · A · dropout(x), with W₀ frozen in `base_layer`.

    Shapes: lora_A (rank, in_features); lora_B (out_features, rank); x (..., in_features); h (..., out_features).
    """

    @property
    def in_features(self) -> int:
        return self.lora_A.shape[1]

    @property
    def out_features(self) -> int:
        return self.lora_B.shape[0]

    def change(self, lora_A: Tensor, lora_B: Tensor) -> Tensor:
        """Return the change of the weight (out_features, in_features)."""
        return lora_delta(lora_A, lora_B, self.scaling)

    def forward(self, x: Tensor, low_rank: Sequence[LowRank] = ()) -> Tensor:
        """Return h (..., out_features) from x (..., in_features), in the base layer's dtype.

        What adapters around this one add comes in `low_rank`, and goes on to a base layer that adds it itself.
        """
        base: Any = self._modules["base_layer"]
        if not is_off(self.strength):
            low_rank = (self.low_rank(x), *low_rank)
        if not low_rank:
            return base(x)  # type: ignore[no-any-return]
        return _ADDING.get(type(base).forward, _apart)(base, x, low_rank)

    def low_rank(self, x: Tensor) -> LowRank:
        """Return what this adapter adds to a product with x (..., in_features)."""
        scaling = self.scaling * factor(self, self.strength, x)
        return LowRank(parameter(self, "lora_A"), parameter(self, "lora_B"), scaling, self.dropped)


def _apart(base: Any, x: Tensor, low_rank: Sequence[LowRank]) -> Tensor:
    return add_low_rank(base(x), x, low_rank)


def _inside(base: Any, x: Tensor, low_rank: Sequence[LowRank]) -> Tensor:
    return base(x, low_rank)  # type: ignore[no-any-return]


def _in_place(base: nn.Linear, x: Tensor, low_rank: Sequence[LowRank]) -> Tensor:
    """Add to the product of a plain Linear while nobody else holds it: the wide side is not copied."""
    weight = parameter(base, "weight")
    # what watches the base layer is to see it called, other classes of tensors multiply by rules of their own, and vmap
    # cannot add several changes to one product in place
    if is_watched(base) or type(weight) not in _DENSE or torch._C._are_functorch_transforms_active():
        return _apart(base, x, low_rank)
    rows = as_rows(x)
    result = add_low_rank_(functional.linear(rows, weight, parameter(base, "bias")), rows, low_rank)
    return result if x.ndim == 2 else result.view(*x.shape[:-1], result.shape[1])


_DENSE = (nn.Parameter, Tensor)

# how adapters are added to what a base layer computes, by its forward
_ADDING: Mapping[Any, Callable[[Any, Tensor, Sequence[LowRank]], Tensor]] = {
    nn.Linear.forward: _in_place,
    LoRALinear.forward: _inside,
    QuantizedLinear.forward: _inside,
}


class LoRATransposedLinear(LoRALinear):
    """The same around transformers' Conv1D, whose weight lies as (in_features, out_features) unless it is quantized."""

    def _as_held(self, weight: Tensor) -> Tensor:
        return weight if isinstance(self.bare_layer, QuantizedLinear) else weight.T
