"""A Linear whose frozen weight is quantized, held as plain buffers that any state dict can carry."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Self

import torch
from torch import Tensor, nn

from lorakit.values import QuantizedWeight

if TYPE_CHECKING:
    from lorakit.hooks.protocols import Quantizer


class QuantizedLinear(nn.Module):
    """y = x Wᵀ + b with W (out_features, in_features) quantized; the quantizer stores and multiplies it."""

    def __init__(self, quantized: QuantizedWeight, quantizer: Quantizer, bias: Tensor | None) -> None:
        super().__init__()
        self.out_features, self.in_features = quantized.shape
        self.dequantized_dtype = quantized.dtype
        self.quantizer = quantizer
        # the prefix keeps a quantizer's names apart from a module's own attributes
        self._stored = {name: f"weight_{name}" for name in quantized.tensors}
        for name, tensor in quantized.tensors.items():
            self.register_buffer(self._stored[name], tensor)
        self.bias: nn.Parameter | None
        self.register_parameter("bias", None if bias is None else nn.Parameter(bias.detach(), requires_grad=False))

    @property
    def quantized(self) -> QuantizedWeight:
        """The weight as the quantizer stores it."""
        tensors = {name: self._buffers[buffer] for name, buffer in self._stored.items()}
        return QuantizedWeight(tensors, (self.out_features, self.in_features), self.dequantized_dtype)  # type: ignore[arg-type]

    @property
    def weight(self) -> Tensor:
        """The weight (out_features, in_features), dequantized anew at each call."""
        return self.quantizer.dequantize(self.quantized)

    def forward(self, x: Tensor) -> Tensor:
        """Return y (..., out_features) from x (..., in_features)."""
        return self.quantizer.linear(x, self.quantized, self.bias)

    def plain(self, weight: Tensor) -> nn.Linear:
        """Return a plain Linear with this weight (out_features, in_features) and this bias, in the weight's dtype."""
        layer = nn.Linear(self.in_features, self.out_features, bias=False, device="meta")
        layer.weight = nn.Parameter(weight.detach(), requires_grad=False)
        if self.bias is not None:
            layer.bias = nn.Parameter(self.bias.detach().to(weight.dtype), requires_grad=False)
        return layer

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        # `model.half()` means the weight that comes out and must not round the scales that are stored: buffers follow
        # to another device and never to another dtype
        self.dequantized_dtype = fn(torch.empty(0, dtype=self.dequantized_dtype)).dtype
        originals = {buffer: self._buffers[buffer] for buffer in self._stored.values()}
        super()._apply(fn, recurse)
        for buffer, original in originals.items():
            moved = self._buffers[buffer]
            if moved is not None and original is not None and moved.dtype != original.dtype:
                self._buffers[buffer] = original.to(moved.device)
        return self

    def extra_repr(self) -> str:
        return f"{self.in_features}, {self.out_features}, bias={self.bias is not None}, {self.quantizer.name}"
