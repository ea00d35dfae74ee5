"""What adapters add to a product, in one pass over the outputs: scaling lies on the narrow side.

Adapters are multiplied in the dtype of the inputs, as the frozen weight is: their matrices are narrow enough to cast.
Source: Hu et al. 2021, "LoRA", arXiv:2106.09685, section 4.1.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor
from torch.nn import functional

from lorakit.values import LowRank


def add_low_rank(result: Tensor, x: Tensor, low_rank: Sequence[LowRank]) -> Tensor:
    """Return result (..., out_features) + Σ scaling · B · A · dropout(x) in its dtype; x (..., in_features)."""
    for lora_A, lora_B, scaling, dropout in low_rank:
        result = add_wide(result, _thin(x, lora_A, dropout), lora_B, scaling)
    return result


def add_wide(result: Tensor, thin: Tensor, lora_B: Tensor, scaling: float | Tensor) -> Tensor:
    """Return result (..., out_features) + scaling · B · thin, in the result's dtype; thin (..., rank)."""
    dtype = thin.dtype
    if isinstance(scaling, Tensor):
        thin, scaling = thin * scaling.to(dtype), 1.0
    if lora_B.dtype != dtype:
        lora_B = lora_B.to(dtype)
    if dtype != result.dtype:
        return result + (functional.linear(thin, lora_B) * scaling).to(result.dtype)
    # a number is multiplied inside the product
    if result.ndim == 2:
        return result.addmm(thin, lora_B.t(), alpha=scaling)
    return as_rows(result).addmm(as_rows(thin), lora_B.t(), alpha=scaling).view(result.shape)


def add_low_rank_(result: Tensor, rows: Tensor, low_rank: Sequence[LowRank]) -> Tensor:
    """Add the same in place to a result (rows, out_features) that nobody else holds, in the dtype of what is added.

    Shapes: rows (rows, in_features), which are those of the batch or some for each of the batch's.
    """
    for lora_A, lora_B, scaling, dropout in low_rank:
        thin = _thin(rows, lora_A, dropout)
        dtype = thin.dtype
        if isinstance(scaling, Tensor):
            by_factor = thin.view(scaling.shape[0], -1) * scaling.to(dtype).view(-1, 1)
            thin, scaling = by_factor.view(thin.shape), 1.0
        result.addmm_(thin, (lora_B if lora_B.dtype == dtype else lora_B.to(dtype)).t(), alpha=scaling)
    return result


def _thin(x: Tensor, lora_A: Tensor, dropout: float) -> Tensor:
    """Return A · dropout(x) (..., rank) from x (..., in_features)."""
    seen = functional.dropout(x, dropout) if dropout else x
    return functional.linear(seen, lora_A if lora_A.dtype == x.dtype else lora_A.to(x.dtype))


def as_rows(x: Tensor) -> Tensor:
    """Return x (..., features) as a matrix (rows, features)."""
    return x if x.ndim == 2 else x.reshape(x.shape[:-1].numel(), x.shape[-1])
