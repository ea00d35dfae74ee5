"""The adapter of `ia3`."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor, nn

from lorakit.hooks import LayerShape
from lorakit.layers.strength import factor, one_factor
from lorakit_methods.adapter_layer import AdapterLayer


class IA3Layer(AdapterLayer):
    """h = l ⊙ (W₀x + b), or W₀(l ⊙ x) + b with `feedforward`; a strength s makes 1 + s · (l - 1) of l.

    Shapes: ia3_l (out_features, 1), (1, in_features) or (1, channels, 1, …).
    """

    ia3_l: nn.Parameter

    def __init__(
        self, base_layer: nn.Module, shape: LayerShape, parameters: Mapping[str, nn.Parameter], *, feedforward: bool
    ) -> None:
        super().__init__(base_layer, shape, parameters)
        self.feedforward = feedforward

    def forward(self, x: Tensor) -> Tensor:
        """Return h from x, in the base layer's dtype."""
        if self.is_off:
            return self.base_layer(x)  # type: ignore[no-any-return]
        return self.base_layer(self._scaled(x)) if self.feedforward else self._scaled(self.base_layer(x))

    def _scaled(self, x: Tensor) -> Tensor:
        """Return x (rows, …, features) or (rows, channels, *space) times the vector, in its own dtype."""
        vector = self.ia3_l.view(-1, *(1 for _ in self.shape.kernel))
        return (x * (1 + factor(self, self.strength, x) * (vector - 1))).to(x.dtype)

    def exact_weight(self, weight: Tensor) -> Tensor:
        """Return the weight with its rows, or its columns for inputs, multiplied by the vector."""
        along = (1, -1) if self.feedforward else (-1, 1)
        return weight * self._vector.view(*along, *(1 for _ in self.shape.kernel))

    def exact_bias(self, bias: Tensor) -> Tensor:
        """Return the bias times the vector, or as it is where inputs are multiplied."""
        return bias if self.feedforward else bias * self._vector

    @property
    def _vector(self) -> Tensor:
        return 1 + one_factor(self, self.strength) * (self.ia3_l.float().flatten() - 1)
