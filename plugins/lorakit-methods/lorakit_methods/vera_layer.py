"""The adapter of `vera`."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor, nn
from torch.nn import functional

from lorakit.hooks import LayerShape
from lorakit.layers.strength import factor, one_factor
from lorakit_methods.adapter_layer import AdapterLayer


class VeRALayer(AdapterLayer):
    """h = W₀x + b ⊙ B(d ⊙ A · dropout(x)), with A and B cut to the layer's size.

    Shapes: vera_A (rank or more, in_features or more); vera_B (out_features or more, rank or more); vera_lambda_d
    (rank,); vera_lambda_b (out_features,).
    """

    vera_A: nn.Parameter
    vera_B: nn.Parameter
    vera_lambda_b: nn.Parameter
    vera_lambda_d: nn.Parameter

    def __init__(
        self, base_layer: nn.Module, shape: LayerShape, parameters: Mapping[str, nn.Parameter], *, dropout: float
    ) -> None:
        super().__init__(base_layer, shape, parameters)
        self.dropout = nn.Dropout(dropout)

    @property
    def _matrices(self) -> tuple[Tensor, Tensor]:
        rank = len(self.vera_lambda_d)
        return self.vera_A[:rank, : self.shape.in_features], self.vera_B[: self.shape.out_features, :rank]

    def forward(self, x: Tensor) -> Tensor:
        """Return h (..., out_features) from x (..., in_features), in the base layer's dtype."""
        result: Tensor = self.base_layer(x)
        if self.is_off:
            return result
        first, second = self._matrices
        x = self.dropout(x.to(first.dtype))
        thin = self.vera_lambda_d * functional.linear(x, first)
        update = self.vera_lambda_b * functional.linear(thin.to(second.dtype), second)
        return result + (factor(self, self.strength, update) * update).to(result.dtype)

    def exact_weight(self, weight: Tensor) -> Tensor:
        """Return the weight plus diag(b) · B · diag(d) · A."""
        first, second = (matrix.float() for matrix in self._matrices)
        product = (self.vera_lambda_b.float()[:, None] * second) @ (self.vera_lambda_d.float()[:, None] * first)
        return weight + one_factor(self, self.strength) * product
