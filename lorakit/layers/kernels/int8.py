"""LLM.int8(): inputs are quantized to eight bits a row, and columns with outliers multiplied in their own dtype.

Source: Dettmers et al. 2022, "LLM.int8()", arXiv:2208.07339, section 3.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import bitsandbytes  # noqa: F401  (registers torch.ops.bitsandbytes)
import torch
from torch import Tensor

from lorakit.layers.kernels.dequantized import linear_of
from lorakit.layers.kernels.low_rank import add_low_rank_, as_rows
from lorakit.values import LowRank, Storage

if TYPE_CHECKING:
    from lorakit.hooks.protocols import Linear

# where bitsandbytes has no product of eight-bit codes that is worth it
DEQUANTIZING_DEVICES = ("cpu", "xpu", "meta")


def llm_int8(storage: Storage) -> Linear:
    """Return what multiplies with a weight that `int8` stored."""
    quantizer: Any = storage.quantizer
    dequantizing = linear_of(storage, _dequantize)
    if storage.device.type in DEQUANTIZING_DEVICES or not math.prod(storage.shape):
        return dequantizing
    return functools.partial(_linear, threshold=quantizer.threshold, empty=dequantizing)


def _dequantize(tensors: Mapping[str, Tensor], dtype: torch.dtype) -> Tensor:
    """Return the weight rounded once, from the codes to the dtype that is multiplied in."""
    return tensors["CB"].to(dtype).mul_(tensors["SCB"].unsqueeze(1) * (1.0 / 127.0))


def _linear(
    x: Tensor,
    base: Mapping[str, Tensor],
    bias: Tensor | None,
    low_rank: Sequence[LowRank],
    *,
    threshold: float,
    empty: Linear,
) -> Tensor:
    device = x.device.type
    if torch.is_autocast_enabled(device):
        x = x.to(torch.get_autocast_dtype(device))
    if not x.numel():
        return empty(x, base, bias, low_rank)
    rows = as_rows(x)
    result = add_low_rank_(_Product.apply(rows, bias, base, threshold), rows, low_rank)
    return result if x.ndim == 2 else result.view(*x.shape[:-1], result.shape[1])


class _Product(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, bias: Tensor | None, tensors: Mapping[str, Tensor], threshold: float) -> Tensor:
        ctx.tensors, ctx.bias_dtype = tensors, None if bias is None else bias.dtype
        ops, stored, scales = torch.ops.bitsandbytes, tensors["CB"], tensors["SCB"]
        codes, row_scales, outliers = ops.int8_vectorwise_quant.default(x.to(torch.float16), threshold)
        result: Tensor
        if threshold:
            result, _ = ops.int8_mixed_scaled_mm.default(x, codes, stored, row_scales, scales, outliers, bias)
        else:
            result = ops.int8_scaled_mm.default(codes, stored, row_scales, scales, bias=bias, dtype=x.dtype)
        return result

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor | None, Tensor | None, None, None]:
        (gradient,) = grad_outputs
        of_x = gradient @ _dequantize(ctx.tensors, gradient.dtype) if ctx.needs_input_grad[0] else None
        of_bias = gradient.sum(0, dtype=ctx.bias_dtype) if ctx.needs_input_grad[1] else None
        return of_x, of_bias, None, None
