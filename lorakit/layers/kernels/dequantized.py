"""The linear forward that any quantizer can use: dequantize, multiply, and dequantize again in the backward pass."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from lorakit.values import QuantizedWeight

Dequantize = Callable[[QuantizedWeight], Tensor]


def dequantized_linear(x: Tensor, quantized: QuantizedWeight, bias: Tensor | None, dequantize: Dequantize) -> Tensor:
    """Return x (..., in_features) @ weightᵀ + bias, in the dtype that a plain Linear would give.

    Autograd keeps the quantized weight alone, never the dequantized one.
    """
    if torch.is_autocast_enabled(x.device.type):
        x = x.to(torch.get_autocast_dtype(x.device.type))
    result: Tensor = _DequantizedMatmul.apply(x, quantized, dequantize)
    return result if bias is None else result + bias.to(result.dtype)


class _DequantizedMatmul(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, quantized: QuantizedWeight, dequantize: Dequantize) -> Tensor:
        ctx.quantized, ctx.dequantize = quantized, dequantize
        with torch.autocast(x.device.type, enabled=False):
            return functional.linear(x, dequantize(quantized).to(x.dtype))

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor | None, None, None]:
        if not ctx.needs_input_grad[0]:
            return None, None, None
        (gradient,) = grad_outputs
        return gradient @ ctx.dequantize(ctx.quantized).to(gradient.dtype), None, None
