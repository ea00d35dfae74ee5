"""The adapters of the companion methods."""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional


class VectorLayer(nn.Module):
    """h = (1 + strength · (l - 1)) ⊙ (W₀x + b). Shapes: factors (out_features,)."""

    def __init__(self, base_layer: nn.Module, factors: nn.Parameter) -> None:
        super().__init__()
        self.base_layer = base_layer
        self.strength: float | Tensor = 1.0
        self.factors = factors

    def forward(self, x: Tensor) -> Tensor:
        """Return h (..., out_features)."""
        result: Tensor = self.base_layer(x)
        return result + ((self.factors - 1) * _rows(self.strength, result) * result).to(result.dtype)

    def exact_weight(self, weight: Tensor) -> Tensor:
        """Return the effective weight (out_features, in_features)."""
        return self._grown()[:, None] * weight

    def exact_bias(self, bias: Tensor) -> Tensor:
        """Return the effective bias (out_features,)."""
        return self._grown() * bias

    def _grown(self) -> Tensor:
        return 1 + self.strength * (self.factors.detach().float() - 1)


class SharedLayer(nn.Module):
    """h = W₀x + strength · d ⊙ B · (e ⊙ A · x), with the first columns of A and rows of B that fit the layer.

    Shapes: A (rank, widest in_features); B (widest out_features, rank); e (rank,); d (out_features,).
    """

    def __init__(
        self,
        base_layer: nn.Module,
        A: nn.Parameter,
        B: nn.Parameter,
        e: nn.Parameter,
        d: nn.Parameter,
        *,
        in_features: int,
    ) -> None:
        super().__init__()
        self.base_layer = base_layer
        self.in_features = in_features
        self.strength: float | Tensor = 1.0
        self.A, self.B, self.e, self.d = A, B, e, d

    def forward(self, x: Tensor) -> Tensor:
        """Return h (..., out_features)."""
        result: Tensor = self.base_layer(x)
        inner = functional.linear(x.to(self.e.dtype), self.A[:, : self.in_features]) * self.e
        update = functional.linear(inner, self.B[: self.d.shape[0]]) * self.d
        return result + (update * _rows(self.strength, update)).to(result.dtype)

    def exact_weight(self, weight: Tensor) -> Tensor:
        """Return the effective weight (out_features, in_features)."""
        A, B = self.A.float()[:, : self.in_features], self.B.float()[: self.d.shape[0]]
        return weight + self.strength * (self.d.float()[:, None] * B) @ (self.e.float()[:, None] * A)


def _rows(strength: float | Tensor, update: Tensor) -> float | Tensor:
    if not isinstance(strength, Tensor):
        return strength
    return strength.to(update.dtype).view(-1, *(1 for _ in update.shape[1:]))
