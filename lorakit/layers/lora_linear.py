"""LoRA around a layer that computes y = x Wᵀ + b.

Source: Hu et al. 2021, "LoRA", arXiv:2106.09685, section 4.1.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from lorakit.layers.kernels.low_rank import add_low_rank
from lorakit.layers.lora_layer import LoRALayer
from lorakit.layers.quantized_linear import QuantizedLinear
from lorakit.layers.strength import factor
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
        base = self.base_layer
        if not self.is_off:
            low_rank = (self.low_rank(x), *low_rank)
        if not low_rank:
            return base(x)  # type: ignore[no-any-return]
        if type(base).forward in _ADDING:
            return base(x, low_rank)  # type: ignore[no-any-return]
        return add_low_rank(base(x), x, low_rank)

    def low_rank(self, x: Tensor) -> LowRank:
        """Return what this adapter adds to a product with x (..., in_features)."""
        scaling = self.scaling * factor(self, self.strength, x)
        return LowRank(self.lora_A, self.lora_B, scaling, self.dropout if self.training else 0.0)


# the layers whose forward takes what adapters add
_ADDING = (LoRALinear.forward, QuantizedLinear.forward)


class LoRATransposedLinear(LoRALinear):
    """The same around transformers' Conv1D, whose weight lies as (in_features, out_features) unless it is quantized."""

    def _as_held(self, weight: Tensor) -> Tensor:
        return weight if isinstance(self.bare_layer, QuantizedLinear) else weight.T
