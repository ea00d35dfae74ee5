"""The adapters of `dora`, one a kind of layer."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping
from typing import ClassVar

from torch import Tensor, nn
from torch.nn import functional

from lorakit.hooks import LayerShape
from lorakit.layers.strength import factor, one_factor
from lorakit_methods.adapter_layer import AdapterLayer


class DoRALayer(AdapterLayer):
    """h = g ⊙ (W₀x + scaling · B · A · x) + b with g = magnitude / ‖W₀ + scaling · B · A‖, the norm by output.

    Shapes: lora_A and lora_B as LoRA has them; magnitude (outputs,), or (1, outputs, 1, …) for a convolution.
    """

    lora_A: nn.Parameter
    lora_B: nn.Parameter
    magnitude: nn.Parameter
    # the dimension of the outputs in the weight
    along: ClassVar[int] = 0

    def __init__(
        self,
        base_layer: nn.Module,
        shape: LayerShape,
        parameters: Mapping[str, nn.Parameter],
        *,
        scaling: float,
        dropout: float,
    ) -> None:
        super().__init__(base_layer, shape, parameters)
        self.scaling = scaling
        self.dropout = nn.Dropout(dropout)

    @abstractmethod
    def low_rank(self, x: Tensor) -> Tensor:
        """Return B · A · x."""

    @abstractmethod
    def change(self) -> Tensor:
        """Return B · A as the layer holds its weight, in float32."""

    def forward(self, x: Tensor) -> Tensor:
        """Return h from x, in the base layer's dtype."""
        result: Tensor = self.base_layer(x)
        if self.is_off:
            return result
        weight, bias = self.beneath()
        direct = result
        if self.dropout.training and self.dropout.p and x.is_floating_point():
            # the whole product sees what is dropped, not the update alone
            x = self.dropout(x)
            direct = self.base_layer(x)
        if bias is not None:
            direct = direct - self._by_output(bias).to(direct.dtype)
        gain = self._by_output(self._gain(weight))
        update = self.scaling * self.low_rank(x)
        change = (gain - 1) * direct + gain * update
        scaled: Tensor = factor(self, self.strength, change) * change
        return result + scaled.to(result.dtype)

    def exact_weight(self, weight: Tensor) -> Tensor:
        """Return the weight that goes the way of the strength from this one to magnitude · V / ‖V‖."""
        directed = weight + self.scaling * self.change()
        sizes = [1] * weight.ndim
        sizes[self.along] = -1
        whole = self._gain(weight).view(sizes) * directed
        return weight + one_factor(self, self.strength) * (whole - weight)

    def _gain(self, weight: Tensor) -> Tensor:
        """Return magnitude / ‖V‖ (outputs,), with the norm as a constant."""
        directed = weight + self.scaling * self.change().detach()
        norm: Tensor = directed.transpose(0, self.along).flatten(1).norm(dim=1)
        # an output that nothing reaches has no direction, and the magnitude 0
        lengths: Tensor = self.magnitude.flatten().float()
        return lengths / norm.masked_fill(norm == 0, 1.0)

    def _by_output(self, values: Tensor) -> Tensor:
        """Return values (outputs,) as they go along the outputs of this layer."""
        return values.view(-1, *(1 for _ in self.shape.kernel))


class DoRALinear(DoRALayer):
    """DoRA around a layer that computes y = x Wᵀ + b."""

    def low_rank(self, x: Tensor) -> Tensor:
        """Return B · A · x (..., out_features)."""
        return functional.linear(functional.linear(x.to(self.lora_A.dtype), self.lora_A), self.lora_B)

    def change(self) -> Tensor:
        """Return B · A (out_features, in_features)."""
        return self.lora_B.float() @ self.lora_A.float()


class DoRAConv(DoRALayer):
    """DoRA around a convolution."""

    def low_rank(self, x: Tensor) -> Tensor:
        """Return B ∗ (A ∗ x) (batch, out_channels, *space)."""
        # the base layer's own convolution, so that its padding mode and dilation hold for A as well
        thin = self.bare_layer._conv_forward(x.to(self.lora_A.dtype), self.lora_A, None)  # type: ignore[operator]
        channels = 1 - self.lora_A.ndim
        return functional.linear(thin.movedim(channels, -1), self.lora_B.flatten(1)).movedim(-1, channels)

    def change(self) -> Tensor:
        """Return B · A (out_channels, in_channels, *kernel)."""
        product = self.lora_B.float().flatten(1) @ self.lora_A.float().flatten(1)
        return product.view(len(self.lora_B), *self.lora_A.shape[1:])


class DoRAEmbedding(DoRALayer):
    """DoRA around a lookup: an output is a column of the weight, and dropout does not apply to tokens."""

    along = 1

    def low_rank(self, x: Tensor) -> Tensor:
        """Return (B · A)[:, i] for tokens i, times what the class multiplies what it looks up by."""
        padding: int | None = getattr(self.bare_layer, "padding_idx", None)
        rows = functional.linear(functional.embedding(x, self.lora_A.T, padding), self.lora_B)
        scale: float | Tensor = getattr(self.bare_layer, "embed_scale", 1.0)
        return rows * scale

    def change(self) -> Tensor:
        """Return (B · A)ᵀ (num_embeddings, embedding_dim)."""
        return (self.lora_B.float() @ self.lora_A.float()).T
