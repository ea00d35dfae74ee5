"""What adapters add to a product, in one pass over the outputs: scaling lies on the narrow side.

Adapters are multiplied in the dtype of the inputs, as the frozen weight is; their own matrices are narrow enough to cast.
Source: Hu et al. 2021, "LoRA", arXiv:2106.09685, section 4.1.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor
from torch.nn import functional

from lorakit.values import LowRank


def add_low_rank(result: Tensor, x: Tensor, low_rank: Sequence[LowRank]) -> Tensor:
    """Return result (..., out_features) + Σ scaling · B · A · dropout(x), in the result's dtype; x (..., in_features)."""
    for one in low_rank:
        result = add_wide(result, _thin(x, one), one.B, one.scaling)
    return result


def add_wide(result: Tensor, thin: Tensor, lora_B: Tensor, scaling: float | Tensor) -> Tensor:
    """Return result (..., out_features) + scaling · B · thin, in the result's dtype; thin (..., rank)."""
    thin, alpha = _scaled(thin, scaling)
    lora_B = _like(lora_B, thin)
    if thin.dtype != result.dtype:
        return result + (functional.linear(thin, lora_B) * alpha).to(result.dtype)
    if result.ndim == 2:
        return result.addmm(thin, lora_B.t(), alpha=alpha)
    return as_rows(result).addmm(as_rows(thin), lora_B.t(), alpha=alpha).view(result.shape)


def add_low_rank_(result: Tensor, x: Tensor, low_rank: Sequence[LowRank]) -> Tensor:
    """Add the same in place to a result (rows, out_features) in the dtype of x, which nobody else holds; return it."""
    for one in low_rank:
        thin, alpha = _scaled(_thin(x, one), one.scaling)
        result = result.addmm_(as_rows(thin), _like(one.B, thin).t(), alpha=alpha)
    return result


def as_rows(x: Tensor) -> Tensor:
    """Return x (..., features) as a matrix (rows, features)."""
    return x if x.ndim == 2 else x.reshape(x.shape[:-1].numel(), x.shape[-1])


def _thin(x: Tensor, one: LowRank) -> Tensor:
    """Return A · dropout(x) (..., rank)."""
    return functional.linear(functional.dropout(x, one.dropout) if one.dropout else x, _like(one.A, x))


def _scaled(thin: Tensor, scaling: float | Tensor) -> tuple[Tensor, float]:
    """Return A · x as far as it is multiplied by now, and the number that the wide product multiplies it by."""
    return (thin * scaling.to(thin.dtype), 1.0) if isinstance(scaling, Tensor) else (thin, scaling)


def _like(matrix: Tensor, x: Tensor) -> Tensor:
    return matrix if matrix.dtype == x.dtype else matrix.to(x.dtype)
