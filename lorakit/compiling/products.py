"""Several products of one input as one: a compiler takes these functions apart, and sees plain matrices."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from lorakit.layers.kernels.merging import merged
from lorakit.layers.kernels.product import FourBits


class Group(NamedTuple):
    """What is fixed of products that read one input, in their order: traced code writes such tuples down.

    `counts` are their adapters, `scalings` those adapters' one after the other.
    """

    quant_type: str
    blocksize: int
    rows: tuple[int, ...]
    columns: int
    counts: tuple[int, ...]
    scalings: tuple[float, ...]


def together(
    x: Tensor,
    biases: Sequence[Tensor | None],
    stored: Sequence[Sequence[Tensor]],
    pairs: Sequence[Tensor],
    group: Group,
) -> list[Tensor]:
    """Return the products (..., out_features) of x (..., in_features); pairs are A, B, A, B, … of all."""
    flat = [tensor for one in stored for tensor in one]
    wide = _Together.apply(x.reshape(-1, group.columns), group, len(stored[0]), len(flat), *flat, *pairs)
    parts = wide.split(group.rows, 1) if len(group.rows) > 1 else (wide,)
    return [
        (part if bias is None else part + bias.to(part.dtype)).view(*x.shape[:-1], part.shape[1])
        for part, bias in zip(parts, biases, strict=True)
    ]


class _Together(torch.autograd.Function):
    """y = x W'ᵀ with W' = W + Σ scaling · B · A of all, and the gradients of A and B as if they were multiplied apart.

    W' is no tensor to keep: it is written again for the backward pass.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, group: Group, kinds: int, count: int, *held: Tensor) -> Tensor:
        ctx.group, ctx.kinds, ctx.count = group, kinds, count
        ctx.save_for_backward(x, *held)
        return x @ _weight(group, kinds, held[:count], held[count:], x.dtype).t()

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor | None, ...]:
        (gradient,) = grad_outputs
        group, count = ctx.group, ctx.count
        x, *held = ctx.saved_tensors
        pairs = held[count:]
        of_x = None
        if ctx.needs_input_grad[0]:
            of_x = gradient @ _weight(group, ctx.kinds, held[:count], pairs, gradient.dtype)
        of_pairs = _of_pairs(group, gradient, x, pairs)
        return of_x, None, None, None, *[None] * count, *of_pairs


def _of_pairs(group: Group, gradient: Tensor, x: Tensor, pairs: Sequence[Tensor]) -> list[Tensor]:
    """Return the gradients of A, B, A, B, …: one product makes all of A's, since they read the same x."""
    if not pairs:
        return []
    dtype = gradient.dtype
    ranks = [lora_A.shape[0] for lora_A in pairs[::2]]
    thin = (x @ _side_by_side([lora_A.to(dtype) for lora_A in pairs[::2]], 0).t()).split(ranks, 1)
    parts = gradient.split(group.rows, 1) if len(group.rows) > 1 else (gradient,)
    owners = [part for part, adapters in zip(parts, group.counts, strict=True) for _ in range(adapters)]
    of_thin = [
        _scaled(part @ lora_B.to(dtype), scaling)
        for part, lora_B, scaling in zip(owners, pairs[1::2], group.scalings, strict=True)
    ]
    of_A = (_side_by_side(of_thin, 1).t() @ x).split(ranks, 0)
    of_B = [_scaled(part.t() @ one, scaling) for part, one, scaling in zip(owners, thin, group.scalings, strict=True)]
    both = [one for pair in zip(of_A, of_B, strict=True) for one in pair]
    return [one.to(own.dtype) for one, own in zip(both, pairs, strict=True)]


def _weight(group: Group, kinds: int, flat: Sequence[Tensor], pairs: Sequence[Tensor], dtype: torch.dtype) -> Tensor:
    stored = [flat[first : first + kinds] for first in range(0, len(flat), kinds)]
    one_each: list[tuple[Tensor, Tensor]] = []
    scalings: list[float] = []
    first = 0
    for rows, adapters in zip(group.rows, group.counts, strict=True):
        own = [one.to(dtype) for one in pairs[2 * first : 2 * (first + adapters)]]
        factors = group.scalings[first : first + adapters]
        first += adapters
        if not own:
            none = flat[0].new_empty(0, dtype=dtype)
            own, factors = [none.view(0, group.columns), none.view(rows, 0)], (1.0,)
        one_each.append(
            (
                _side_by_side(own[::2], 0),
                own[1]
                if adapters < 2
                else _side_by_side([_scaled(one, factor) for one, factor in zip(own[1::2], factors, strict=True)], 1),
            )
        )
        scalings.append(factors[0] if len(factors) == 1 else 1.0)
    return merged(FourBits(group.quant_type, group.blocksize), stored, one_each, scalings, group.columns, dtype)


def _side_by_side(tensors: Sequence[Tensor], dim: int) -> Tensor:
    return tensors[0] if len(tensors) == 1 else torch.cat(list(tensors), dim)


def _scaled(tensor: Tensor, scaling: float) -> Tensor:
    return tensor if scaling == 1.0 else tensor * scaling
