"""Attention of one query as sums that a compiler puts into kernels with what makes its keys: no head is copied."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional
from torch.overrides import TorchFunctionMode

# elements of all keys in fp32, which the first run has in memory; above them attention is left as it is
MOST = 2**26


class one_query(TorchFunctionMode):  # noqa: N801
    """Within it, `scaled_dot_product_attention` of one query a sequence is computed by `attended`."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func is functional.scaled_dot_product_attention and _fits(*args, **kwargs):
            return attended(*args, **kwargs)
        return func(*args, **kwargs)


def attended(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> Tensor:
    """Return what attends (..., heads, 1, width) for keys and values (..., heads or fewer, length, width); in fp32."""
    if enable_gqa:
        key = key.repeat_interleave(query.shape[-3] // key.shape[-3], -3)
        value = value.repeat_interleave(query.shape[-3] // value.shape[-3], -3)
    scores = (query.float() * key.float()).sum(-1) * (1 / math.sqrt(query.shape[-1]) if scale is None else scale)
    if attn_mask is not None:
        mask = attn_mask.expand(*attn_mask.shape[:-2], 1, scores.shape[-1]).squeeze(-2)
        scores = scores.masked_fill(~mask, -math.inf) if mask.dtype == torch.bool else scores + mask
    shares = torch.softmax(scores, -1)
    return (shares.unsqueeze(-1) * value.float()).sum(-2, keepdim=True).to(query.dtype)


def _fits(
    query: Tensor, key: Tensor, value: Tensor, attn_mask: Tensor | None = None, dropout_p: float = 0.0,
    is_causal: bool = False, scale: float | None = None, enable_gqa: bool = False,
) -> bool:  # fmt: skip
    return (
        query.ndim == 4
        and query.shape[-2] == 1
        and not dropout_p
        and not is_causal
        and query.shape[:-2].numel() * key.shape[-2] * max(key.shape[-1], value.shape[-1]) <= MOST
    )
