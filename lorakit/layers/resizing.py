"""Two thin matrices made to fit where those of another rank or scale stand."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor


def resized(values: Mapping[str, Tensor], *, stack: int, rank: int, room: int, ratio: float) -> dict[str, Tensor]:
    """Return lora_A and lora_B of a rank filled up with zeros to `room`, lora_B times the ratio of the scalings.

    Shapes: lora_A (stack · rank, …), lora_B (…, rank · stack). Raises: ValueError if the rank is larger than the room.
    """
    if rank > room:
        raise ValueError(f"it has rank {rank}, and there is room for rank {room}: apply one of rank {rank} first")
    lora_A, lora_B = values["lora_A"], values["lora_B"]
    if ratio != 1.0:
        lora_B = (lora_B.float() * ratio).to(lora_B.dtype)
    if rank < room:
        lora_A = _filled(lora_A.unflatten(0, (stack, rank)), 1, room).flatten(0, 1)
        lora_B = _filled(lora_B.unflatten(1, (rank, stack)), 1, room).flatten(1, 2)
    return {"lora_A": lora_A, "lora_B": lora_B}


def _filled(tensor: Tensor, dimension: int, size: int) -> Tensor:
    """Return a tensor with zeros behind it along a dimension, so that it has this size there."""
    shape = list(tensor.shape)
    shape[dimension] = size - shape[dimension]
    return torch.cat([tensor, tensor.new_zeros(shape)], dimension)
