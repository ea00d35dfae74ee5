"""LoRA around a layer that computes y = x Wᵀ + b.

Source: Hu et al. 2021, "LoRA", arXiv:2106.09685, section 4.1.
"""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING, Self

import torch
from torch import Tensor, nn
from torch.nn import functional

from lorakit.adapters.quantized_linear import QuantizedLinear

if TYPE_CHECKING:
    from lorakit.planning.plan import PlanEntry


def lora_delta(lora_A: Tensor, lora_B: Tensor, scaling: float) -> Tensor:
    """Return the weight update ``scaling * lora_B @ lora_A``.

    Shapes: lora_A (rank, in_features); lora_B (out_features, rank); result (out_features, in_features).
    Units: scaling is dimensionless, alpha / rank (rsLoRA: alpha / sqrt(rank)).
    """
    return scaling * (lora_B @ lora_A)


class LoRALinear(nn.Module):
    """h = W₀x + scaling · B · A · dropout(x), with W₀ frozen in `base_layer`.

    Shapes: lora_A (rank, in_features); lora_B (out_features, rank); x (..., in_features); h (..., out_features).
    """

    def __init__(
        self,
        base_layer: nn.Module,
        in_features: int,
        out_features: int,
        *,
        rank: int,
        scaling: float,
        dropout: float,
        dtype: torch.dtype,
        transposed: bool,
    ) -> None:
        super().__init__()
        device = next((tensor.device for tensor in (*base_layer.parameters(), *base_layer.buffers())), None)
        self.base_layer = base_layer
        self.in_features, self.out_features = in_features, out_features
        self.scaling = scaling
        self.dropout = dropout
        self.transposed = transposed
        self.lora_A = nn.Parameter(torch.empty(rank, in_features, dtype=dtype, device=device))
        self.lora_B = nn.Parameter(torch.empty(out_features, rank, dtype=dtype, device=device))

    @classmethod
    def around(cls, layer: nn.Module, entry: PlanEntry) -> Self:
        """Return the adapter that a plan's entry asks for, its parameters not yet set."""
        adapter = entry.adapter
        assert adapter is not None and adapter.rank is not None
        return cls(
            layer,
            entry.in_features,
            entry.out_features,
            rank=adapter.rank,
            scaling=adapter.factor,
            dropout=adapter.dropout,
            dtype=getattr(torch, adapter.dtype),
            transposed=entry.kind == "conv1d" and entry.quant is None,
        )

    @property
    def weight(self) -> Tensor:
        """The effective weight, in the base layer's orientation; dropout does not show in it.

        Some modules compute with the weights of their children instead of calling them (nn.TransformerEncoderLayer and
        nn.MultiheadAttention in evaluation mode); through this they still see the adapter.
        """
        base: Tensor = self.base_layer.weight  # type: ignore[assignment]
        delta = self.delta().to(base.dtype)
        return base + (delta.T if self.transposed else delta)

    @property
    def bias(self) -> Tensor | None:
        """The base layer's bias."""
        bias: Tensor | None = self.base_layer.bias  # type: ignore[assignment]
        return bias

    def delta(self) -> Tensor:
        """Return the update of the weight (out_features, in_features)."""
        return lora_delta(self.lora_A, self.lora_B, self.scaling)

    def forward(self, x: Tensor) -> Tensor:
        """Return h (..., out_features) from x (..., in_features), in the base layer's dtype."""
        result: Tensor = self.base_layer(x)
        x = functional.dropout(x.to(self.lora_A.dtype), self.dropout, self.training)
        update = functional.linear(functional.linear(x, self.lora_A), self.lora_B)
        return result + (update * self.scaling).to(result.dtype)

    def merged(self) -> tuple[nn.Module, Tensor]:
        """Return a plain layer of the same function without dropout, and its weight before rounding, in float32.

        The base layer stays as it is. A quantized base comes back as a Linear in the dtype that its weight had before,
        so that the model around it still runs.
        """
        delta = self.delta().float()
        base_weight: Tensor = self.base_layer.weight.detach()  # type: ignore[operator]
        exact = base_weight.float() + (delta.T if self.transposed else delta)
        if isinstance(self.base_layer, QuantizedLinear):
            return self.base_layer.plain(exact.to(self.base_layer.dequantized_dtype)), exact
        layer = copy.copy(self.base_layer)
        layer._parameters = dict(self.base_layer._parameters)
        # a new parameter: where the base weight is tied, the other end keeps its own
        layer.weight = nn.Parameter(exact.to(base_weight.dtype), requires_grad=False)
        return layer, exact

    def extra_repr(self) -> str:
        return f"rank={self.lora_A.shape[0]}, scaling={self.scaling:g}, dtype={self.lora_A.dtype}"
