"""The product that fits every quantizer: dequantize, multiply, and dequantize again in the backward pass."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.nn import functional

from lorakit.layers.kernels.low_rank import add_low_rank_, as_rows
from lorakit.values import LowRank, QuantizedWeight, Storage

if TYPE_CHECKING:
    from lorakit.hooks.protocols import Linear

# from a quantizer's tensors by name to the weight (out_features, in_features) in a dtype
Dequantize = Callable[[Mapping[str, Tensor], torch.dtype], Tensor]


def dequantizing(storage: Storage) -> Linear:
    """Return what multiplies with a weight by dequantizing it as its quantizer does."""

    def dequantize(tensors: Mapping[str, Tensor], dtype: torch.dtype) -> Tensor:
        return storage.quantizer.dequantize(QuantizedWeight(tensors, storage.shape, storage.dtype)).to(dtype)

    return functools.partial(dequantized_linear, dequantize=dequantize)


def dequantized_linear(
    x: Tensor,
    base: Mapping[str, Tensor],
    bias: Tensor | None,
    low_rank: Sequence[LowRank],
    *,
    dequantize: Dequantize,
) -> Tensor:
    """Return x (..., in_features) @ weightᵀ + bias + what adapters add, in the dtype that a plain Linear would give.

    Autograd keeps the quantized weight alone, never the dequantized one.
    """
    device = x.device.type
    if torch.is_autocast_enabled(device):
        x = x.to(torch.get_autocast_dtype(device))
    result: Tensor = _Product.apply(as_rows(x), bias, base, dequantize)
    if low_rank:
        result = add_low_rank_(result, x, low_rank)
    return result if x.ndim == 2 else result.view(*x.shape[:-1], result.shape[1])


class _Product(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x: Tensor, bias: Tensor | None, tensors: Mapping[str, Tensor], dequantize: Dequantize
    ) -> Tensor:
        # held as they are and not saved: what packs saved tensors away is to leave weights in their place
        ctx.tensors, ctx.dequantize = tensors, dequantize
        ctx.bias_dtype = None if bias is None else bias.dtype
        with _exactly(x.device.type):
            weight = dequantize(tensors, x.dtype)
            return functional.linear(x, weight, None if bias is None else bias.to(x.dtype))

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor | None, Tensor | None, None, None]:
        (gradient,) = grad_outputs
        of_x = of_bias = None
        if ctx.needs_input_grad[0]:
            with _exactly(gradient.device.type):
                of_x = gradient @ ctx.dequantize(ctx.tensors, gradient.dtype)
        if ctx.needs_input_grad[1]:
            of_bias = gradient.sum(0, dtype=ctx.bias_dtype)
        return of_x, of_bias, None, None


def _exactly(device: str) -> contextlib.AbstractContextManager[Any]:
    """Return a block in which what a quantizer multiplies keeps its dtype; entering one costs time."""
    return torch.autocast(device, enabled=False) if torch.is_autocast_enabled(device) else _NOTHING


_NOTHING = contextlib.nullcontext()
