"""LoRA around a layer that computes y = x Wᵀ + b.

Source: Hu et al. 2021, "LoRA", arXiv:2106.09685, section 4.1.
"""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional

from lorakit.layers.lora_layer import LoRALayer
from lorakit.layers.quantized_linear import QuantizedLinear


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

    def base_matrix(self) -> Tensor:
        """Return the base weight (out_features, in_features)."""
        return self.core.weight.detach()  # type: ignore[operator]

    def forward(self, x: Tensor) -> Tensor:
        """Return h (..., out_features) from x (..., in_features), in the base layer's dtype."""
        result: Tensor = self.base_layer(x)
        if self.is_off:
            return result
        lora_A, lora_B = self.lora_A.to(x.dtype), self.lora_B.to(x.dtype)
        x = functional.dropout(x, self.dropout, self.training)
        update = functional.linear(functional.linear(x, lora_A), lora_B)
        return self.added(result, update)


class LoRATransposedLinear(LoRALinear):
    """The same around transformers' Conv1D, whose weight lies as (in_features, out_features) unless it is quantized."""

    @property
    def _lies_transposed(self) -> bool:
        return not isinstance(self.core, QuantizedLinear)

    def change(self, lora_A: Tensor, lora_B: Tensor) -> Tensor:
        """Return the change of the weight in the layout of the base layer's."""
        delta = super().change(lora_A, lora_B)
        return delta.T if self._lies_transposed else delta

    def base_matrix(self) -> Tensor:
        """Return the base weight (out_features, in_features)."""
        weight = super().base_matrix()
        return weight.T if self._lies_transposed else weight
