"""The product that fits every quantizer: dequantize, multiply, and dequantize again in the backward pass."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.nn import functional

from lorakit.layers.kernels.low_rank import add_low_rank, add_low_rank_, as_rows
from lorakit.layers.kernels.product import Dequantize, FourBits, form_of, product
from lorakit.values import LowRank, QuantizedWeight, Storage

if TYPE_CHECKING:
    from lorakit.hooks.protocols import Linear


def dequantizing(storage: Storage) -> Linear:
    """Return what multiplies with a weight by dequantizing it as its quantizer does."""

    def dequantize(tensors: Mapping[str, Tensor], dtype: torch.dtype) -> Tensor:
        return storage.quantizer.dequantize(QuantizedWeight(tensors, storage.shape, storage.dtype)).to(dtype)

    return linear_of(storage, dequantize)


def linear_of(storage: Storage, dequantize: Dequantize, merge: FourBits | None = None) -> Linear:
    """Return what multiplies with a weight of this storage by what dequantizes it.

    `merge` is the layout that products of one input may share (`merging.py`).
    """
    return functools.partial(dequantized_linear, dequantize=dequantize, form=form_of(storage, dequantize, merge))


def dequantized_linear(
    x: Tensor,
    base: Mapping[str, Tensor],
    bias: Tensor | None,
    low_rank: Sequence[LowRank],
    *,
    dequantize: Dequantize,
    form: str = "",
) -> Tensor:
    """Return x (..., in_features) @ weightᵀ + bias + what adapters add, in the dtype that a plain Linear would give.

    With a `form` (`product.form_of`) a compiler sees one op, and else what `dequantize` does. Autograd keeps the
    quantized weight alone, never the dequantized one.
    """
    device = x.device.type
    if not torch.is_autocast_enabled(device):
        return _dequantized_linear(x, base, bias, low_rank, dequantize, form)
    x = x.to(torch.get_autocast_dtype(device))
    with torch.autocast(device, enabled=False):
        return _dequantized_linear(x, base, bias, low_rank, dequantize, form)


def _dequantized_linear(
    x: Tensor,
    base: Mapping[str, Tensor],
    bias: Tensor | None,
    low_rank: Sequence[LowRank],
    dequantize: Dequantize,
    form: str,
) -> Tensor:
    if form and torch.compiler.is_compiling():
        return _compiled(x, base, bias, low_rank, form)
    rows, dtype = as_rows(x), x.dtype
    scalings: list[float] = []
    pairs: list[Tensor] = []
    for lora_A, lora_B, scaling, dropout in low_rank:
        if dropout or isinstance(scaling, Tensor):
            product = _Product.apply(rows, bias, dequantize(base, dtype), base, dequantize, ())
            result: Tensor = add_low_rank_(product, rows, low_rank)
            break
        scalings.append(scaling)
        pairs += (
            lora_A if lora_A.dtype == dtype else lora_A.to(dtype),
            lora_B if lora_B.dtype == dtype else lora_B.to(dtype),
        )
    else:
        result = _Product.apply(rows, bias, dequantize(base, dtype), base, dequantize, scalings, *pairs)
    return result if x.ndim == 2 else result.view(*x.shape[:-1], result.shape[1])


def _compiled(
    x: Tensor, base: Mapping[str, Tensor], bias: Tensor | None, low_rank: Sequence[LowRank], form: str
) -> Tensor:
    """Return the product as one op, and with it what every row gets alike."""
    scalings: list[float] = []
    for _, _, scaling, dropout in low_rank:
        if dropout or isinstance(scaling, Tensor):
            return add_low_rank(product(x, bias, base, (), (), form), x, low_rank)
        scalings.append(scaling)
    return product(x, bias, base, [matrix for one in low_rank for matrix in one[:2]], scalings, form)


# where the pairs begin among what the product is given
PAIRS = 6


class _Product(torch.autograd.Function):
    """y = x Wᵀ + bias + Σ scaling · (x Aᵀ) Bᵀ, where both sums over the wide side are added in place.

    Shapes: x (rows, in_features); A (rank, in_features), B (out_features, rank); y (rows, out_features).
    The first weight is given, since ops take less time on the host out here than inside; it is gone with the call.
    """

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        bias: Tensor | None,
        weight: Tensor,
        tensors: Mapping[str, Tensor],
        dequantize: Dequantize,
        scalings: Sequence[float],
        *pairs: Tensor,
    ) -> Tensor:
        # held as they are and not saved: what packs saved tensors away is to leave weights in their place
        ctx.tensors, ctx.dequantize, ctx.scalings = tensors, dequantize, scalings
        ctx.bias_dtype = None if bias is None else bias.dtype
        result = functional.linear(x, weight, None if bias is None else bias.to(x.dtype))
        thin = [functional.linear(x, lora_A) for lora_A in pairs[::2]]
        for one, lora_B, scaling in zip(thin, pairs[1::2], scalings, strict=True):
            result.addmm_(one, lora_B.t(), alpha=scaling)
        # x is there for the gradient of A alone
        ctx.save_for_backward(*([x, *thin, *pairs] if pairs else []))
        return result

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor | None, ...]:
        (gradient,) = grad_outputs
        of_x = of_bias = None
        of_pairs: list[Tensor | None] = []
        # a tuple made anew at each look
        needed = ctx.needs_input_grad
        with _exactly(gradient.device.type):
            narrow: list[tuple[Tensor, Tensor]] = []
            if ctx.scalings:
                count = len(ctx.scalings)
                # asked for once: checkpointing gives them out once
                x, *kept = ctx.saved_tensors
                thin, pairs = kept[:count], kept[count:]
                for index, scaling in enumerate(ctx.scalings):
                    lora_A, lora_B = pairs[2 * index : 2 * index + 2]
                    of_thin = _scaled(gradient @ lora_B, scaling)
                    narrow.append((of_thin, lora_A))
                    first = PAIRS + 2 * index
                    of_pairs.append(of_thin.t() @ x if needed[first] else None)
                    of_pairs.append(_scaled(gradient.t() @ thin[index], scaling) if needed[first + 1] else None)
            if needed[0]:
                of_x = gradient @ ctx.dequantize(ctx.tensors, gradient.dtype)
                for of_thin, lora_A in narrow:
                    of_x.addmm_(of_thin, lora_A)
        if needed[1]:
            of_bias = gradient.sum(0, dtype=ctx.bias_dtype)
        return of_x, of_bias, None, None, None, None, *of_pairs


def _scaled(product: Tensor, scaling: float) -> Tensor:
    return product if scaling == 1.0 else product * scaling


def _exactly(device: str) -> contextlib.AbstractContextManager[Any]:
    """Return a block in which what a quantizer multiplies keeps its dtype; entering one costs time."""
    return torch.autocast(device, enabled=False) if torch.is_autocast_enabled(device) else _NOTHING


_NOTHING = contextlib.nullcontext()
