"""LoRA around a convolution: a thin convolution of the same geometry, then one of size 1."""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional

from lorakit.layers.lora_layer import LoRALayer


class LoRAConv(LoRALayer):
    """h = W₀ ∗ x + scaling · B ∗ (A ∗ dropout(x)), A with the kernel, stride, padding and dilation of the base layer.

    Shapes: lora_A (rank, in_channels, *kernel); lora_B (out_channels, rank, 1, …); x (batch, in_channels, *space).
    """

    def change(self, lora_A: Tensor, lora_B: Tensor) -> Tensor:
        """Return the change of the weight (out_channels, in_channels, *kernel)."""
        product = lora_B.flatten(1) @ lora_A.flatten(1)
        return self.scaling * product.view(lora_B.shape[0], *lora_A.shape[1:])

    def forward(self, x: Tensor) -> Tensor:
        """Return h (batch, out_channels, *space) from x (batch, in_channels, *space), in the base layer's dtype."""
        result: Tensor = self.base_layer(x)
        if self.is_off:
            return result
        # in the dtype that the frozen weight is multiplied in
        x = functional.dropout(x, self.dropped)
        # the base layer's own convolution, so that its padding mode and dilation hold for A as well
        thin = self.bare_layer._conv_forward(x, self.lora_A.to(x.dtype), None)  # type: ignore[operator]
        thin = thin * self.scaling_of(thin)
        # channels lie before as many dimensions as the kernel has, behind a batch or not
        channels = 1 - self.lora_A.ndim
        wide = functional.linear(thin.movedim(channels, -1), self.lora_B.flatten(1).to(thin.dtype))
        return result + wide.movedim(-1, channels).to(result.dtype)
