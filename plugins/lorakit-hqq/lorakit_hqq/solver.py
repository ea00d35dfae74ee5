"""The half-quadratic solver: zero points that make the l_p norm of the error small, group by group.

With W in steps of a code, q = round(W + z) and the error e = W - (q - z), the problem min over z of ‖e‖_p^p, p < 1, is
split by an auxiliary error u: min over z and u of ‖u‖_p^p + β/2 ‖u - e‖². In turns, u is e shrunk (the generalized soft
threshold), and z the mean of q - (W - u). Large errors stay in u, so that outliers do not pull z away from the many.
"""

from __future__ import annotations

import torch
from torch import Tensor


def solve(
    weight: Tensor, bits: int, group_size: int, *, rounds: int, p: float, beta: float, kappa: float
) -> tuple[Tensor, Tensor, Tensor]:
    """Return (codes, scale, zero) of a weight cut, in the order of its rows, into groups of one scale each.

    Shapes: codes (groups, group_size) uint8, scale (groups,) bfloat16, zero (groups,) float16, in codes. What is beyond
    the weight in the last group has code 0.
    """
    groups, inside = _grouped(weight, group_size)
    top = 2**bits - 1
    # 0 is in every range: so zeros stay zeros, and the zero point is a code
    low, high = groups.aminmax(dim=1, keepdim=True)
    low, high = low.clamp(max=0), high.clamp(min=0)
    scale = (high / top - low / top).to(torch.bfloat16)
    scale = torch.where(scale == 0, torch.ones_like(scale), scale)
    step = scale.to(groups.dtype)
    steps = groups / step
    zero = best = -low / step
    least = torch.full_like(zero, torch.inf)
    count = inside.sum(dim=1, keepdim=True)
    for _ in range(rounds + 1):
        codes = (steps + zero).round().clamp(0, top)
        error = steps - (codes - zero)
        mean = (error.abs() * inside).sum(dim=1, keepdim=True) / count
        best, least = torch.where(mean < least, zero, best), torch.minimum(mean, least)
        zero = ((codes - (steps - shrink(error, beta, p))) * inside).sum(dim=1, keepdim=True) / count
        beta *= kappa
    stored = best.to(torch.float16)
    codes = (steps + stored.to(groups.dtype)).round().clamp(0, top) * inside
    return codes.to(torch.uint8), scale.flatten(), stored.flatten()


def shrink(error: Tensor, beta: float, p: float) -> Tensor:
    """Return errors made smaller by |e|^(p - 1) / β, and 0 for those below: the step towards a small l_p norm."""
    size = error.abs()
    return error.sign() * (size - size.pow(p - 1) / beta).relu()


def _grouped(weight: Tensor, group_size: int) -> tuple[Tensor, Tensor]:
    """Return the weight as groups (groups, group_size), float32 or wider, filled up with 0, and which are weights."""
    flat = weight.detach().to(torch.promote_types(weight.dtype, torch.float32)).flatten()
    missing = -flat.numel() % group_size
    inside = torch.ones_like(flat, dtype=torch.bool)
    groups, is_weight = (
        torch.nn.functional.pad(values, (0, missing)).view(-1, group_size) for values in (flat, inside)
    )
    return groups, is_weight
