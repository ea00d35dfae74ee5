"""`ao_int8`: eight bits a weight, symmetric, as torchao's Int8WeightOnlyConfig."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from lorakit_torchao import library
from lorakit_torchao.weight_only import WeightOnly, whole_row

if TYPE_CHECKING:
    import torch
    from torch import Tensor


@dataclass(frozen=True)
class Int8(WeightOnly):
    """torchao's int8: a row or a group of weights shares one float32 scale; runs on every device."""

    name: ClassVar[str] = "ao_int8"
    group_size: Literal[32, 64, 128, 256] | None = field(
        default=None, metadata={"help": "weights that share one scale; a whole row unless given"}
    )

    def group(self, columns: int) -> int:
        """Return the group size, or a whole row."""
        return self.group_size or whole_row(columns)

    def compress(self, weight: Tensor) -> Any:
        """Return an Int8Tensor."""
        torchao = library.module("torchao.quantization")
        granularity = torchao.PerGroup(self.group_size) if self.group_size else torchao.PerRow()
        return torchao.Int8Tensor.from_hp(weight, granularity)

    def stored_bits(self, rows: int, columns: int) -> int:
        """Return the bits of the codes, and of a float32 scale and an int8 zero point a group."""
        return 8 * rows * columns + (32 + 8) * rows * columns // self.group(columns)

    def rebuild(self, tensors: Mapping[str, Tensor], columns: int, dtype: torch.dtype) -> Any:
        """Return an Int8Tensor."""
        torchao = library.module("torchao.quantization")
        return torchao.Int8Tensor(**tensors, block_size=[1, self.group(columns)], dtype=dtype)
