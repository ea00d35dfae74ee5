"""Attention over a row of several records, one record at a time: what a mask would throw away is not computed.

transformers' `sdpa` multiplies every token of such a row with every other, and masks what belongs to other records.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

NAME = "sdpa"
# what transformers calls the places where records begin and the last one ends; all of its attentions get it
ENDS = "cu_seq_lens_q"
# tokens: up to here 16 bits take longer than float32 on a CPU, three times as long at 64, for their backward pass
SHORT = 256


@dataclass
class Seen:
    """How many calls were computed record by record."""

    calls: int = 0


@contextmanager
def attention_by_record() -> Iterator[Seen]:
    """Have transformers' `sdpa` take records one by one inside the block, in calls on one row that say where they end.

    A record keeps its part of the mask, and with it windows and chunks. All other calls stay as they are.
    """
    whole: Any = ALL_ATTENTION_FUNCTIONS[NAME]
    seen = Seen()

    def attend(
        module: nn.Module, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None, **kwargs: Any
    ) -> tuple[Tensor, None]:
        ends = kwargs.get(ENDS)
        if ends is None or len(query) != 1 or query.shape[2] != key.shape[2] or kwargs.get("position_bias") is not None:
            return whole(module, query, key, value, attention_mask, **kwargs)  # type: ignore[no-any-return]
        seen.calls += 1
        kwargs = {name: value for name, value in kwargs.items() if name != ENDS}
        parts = []
        for begin, end in pairwise(ends.tolist()):
            mask = None if attention_mask is None else attention_mask[..., begin:end, begin:end]
            records = [tensor[:, :, begin:end] for tensor in (query, key, value)]
            if end - begin <= SHORT and (mask is None or mask.dtype == torch.bool):
                records = [tensor.float() for tensor in records]
            parts.append(whole(module, *records, mask, **kwargs)[0].to(query.dtype))
        return torch.cat(parts, dim=1), None

    ALL_ATTENTION_FUNCTIONS[NAME] = attend
    try:
        yield seen
    finally:
        ALL_ATTENTION_FUNCTIONS[NAME] = whole
