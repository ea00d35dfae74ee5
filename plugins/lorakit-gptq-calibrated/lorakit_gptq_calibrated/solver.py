"""The columns of a weight quantized one by one, the error of each made up for by those that follow.

For a row w and inputs with H = 2 Σ x xᵀ, rounding w_q to its grid costs least where the rest changes by
-(w_q - round(w_q)) / [H⁻¹]_qq · H⁻¹_q (section 3 of the paper). In a fixed order of the columns, what that takes of H⁻¹
at each is a row of the upper Cholesky factor of H⁻¹. Columns beyond a block get its changes in one product.
"""

from __future__ import annotations

import torch
from torch import Tensor

BLOCK = 128


def solve(
    weight: Tensor, hessian: Tensor | None, bits: int, group_size: int, *, damping: float, act_order: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """Return (codes, scale, zero) of a weight (out_features, in_features) for inputs with this Hessian.

    Without a Hessian each weight is rounded to nearest. With `act_order` a group's grid is that of the weight as it
    came, since its columns are no longer neighbours in time; else that of the group when its turn comes.
    Shapes: codes (out_features, in_features) uint8, scale bfloat16 and zero uint8 (out_features, groups).
    """
    rest = weight.detach().to(torch.promote_types(weight.dtype, torch.float32), copy=True)
    columns = rest.shape[1]
    groups = -(-columns // group_size)
    codes = torch.zeros(rest.shape, dtype=torch.uint8, device=rest.device)
    scale = torch.ones(len(rest), groups, dtype=torch.bfloat16, device=rest.device)
    zero = torch.zeros(len(rest), groups, dtype=torch.uint8, device=rest.device)
    for group in range(groups):
        span = slice(group * group_size, (group + 1) * group_size)
        scale[:, group], zero[:, group] = grid(rest[:, span], bits)
        codes[:, span] = nearest(rest[:, span], scale[:, group, None], zero[:, group, None], bits)
    if hessian is None:
        return codes, scale, zero
    order = torch.argsort(hessian.diagonal(), descending=True) if act_order else torch.arange(columns)
    order = order.to(rest.device)
    factor = inverse_factor(hessian[order][:, order].to(rest), damping)
    rest = rest[:, order]
    turns = order.tolist()
    for start in range(0, columns, block := max(BLOCK, group_size)):
        end = min(start + block, columns)
        errors = torch.empty_like(rest[:, start:end])
        for turn in range(start, end):
            column = turns[turn]
            group = column // group_size
            if not act_order and column % group_size == 0:
                scale[:, group], zero[:, group] = grid(rest[:, turn : turn + group_size], bits)
            step, offset = scale[:, group].to(rest), zero[:, group].to(rest)
            codes[:, column] = nearest(rest[:, turn], step, offset, bits)
            error = (rest[:, turn] - (codes[:, column] - offset) * step) / factor[turn, turn]
            rest[:, turn:end] -= torch.outer(error, factor[turn, turn:end])
            errors[:, turn - start] = error
        rest[:, end:] -= errors @ factor[start:end, end:]
    return codes, scale, zero


def grid(weight: Tensor, bits: int) -> tuple[Tensor, Tensor]:
    """Return (scale, zero), each (rows,), of a grid from the least to the largest of each row, 0 on it."""
    low, high = weight.aminmax(dim=1)
    low, high = low.clamp(max=0), high.clamp(min=0)
    top = 2**bits - 1
    scale = (high / top - low / top).to(torch.bfloat16)
    scale = torch.where(scale == 0, torch.ones_like(scale), scale)
    return scale, (-low / scale.to(weight.dtype)).round().clamp(0, top).to(torch.uint8)


def nearest(weight: Tensor, scale: Tensor, zero: Tensor, bits: int) -> Tensor:
    """Return the codes, uint8, that are nearest to weights on a grid that broadcasts with them."""
    codes = (weight / scale.to(weight.dtype)).round() + zero.to(weight.dtype)
    return codes.clamp(0, 2**bits - 1).to(torch.uint8)


def inverse_factor(hessian: Tensor, damping: float) -> Tensor:
    """Return the upper Cholesky factor of the inverse of a Hessian, `damping` times its mean added to the diagonal.

    An input that is always 0 says nothing about its column, which is rounded for itself.
    Raises: ValueError if the damped Hessian is not positive definite in this precision.
    """
    diagonal = hessian.diagonal()
    level = diagonal.mean()
    level = torch.where(level > 0, level, torch.ones_like(level))
    added = damping * level + torch.where(diagonal == 0, level, torch.zeros_like(level))
    try:
        lower = torch.linalg.cholesky(hessian + added.diag())
        factor: Tensor = torch.linalg.cholesky(torch.cholesky_inverse(lower), upper=True)
    except RuntimeError as error:
        raise ValueError(f"the inputs are too much alike for damping {damping:g}; raise it") from error
    return factor
