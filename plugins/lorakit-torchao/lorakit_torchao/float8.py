"""`ao_float8`: eight bits of floating point a weight, as torchao's Float8WeightOnlyConfig."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from lorakit_torchao import library
from lorakit_torchao.weight_only import WeightOnly, whole_row

if TYPE_CHECKING:
    import torch
    from torch import Tensor

# torchao divides by the largest weight of a group, which is 0 where a model was pruned
SMALLEST = 1e-30


@dataclass(frozen=True)
class Float8(WeightOnly):
    """torchao's float8: a row or a group of weights shares one float32 scale; runs on every device."""

    name: ClassVar[str] = "ao_float8"
    format: Literal["e4m3", "e5m2"] = field(
        default="e4m3", metadata={"help": "bits of exponent and mantissa: e4m3 is finer, e5m2 reaches further"}
    )
    group_size: Literal[32, 64, 128, 256] | None = field(
        default=None, metadata={"help": "weights that share one scale; a whole row unless given"}
    )

    def group(self, columns: int) -> int:
        """Return the group size, or a whole row."""
        return self.group_size or whole_row(columns)

    def compress(self, weight: Tensor) -> Any:
        """Return a Float8Tensor."""
        torchao = library.module("torchao.quantization")
        return torchao.Float8Tensor.from_hp(
            weight,
            float8_dtype=self._dtype,
            granularity=torchao.PerGroup(self.group_size) if self.group_size else torchao.PerRow(),
            hp_value_lb=SMALLEST,
        )

    def stored_bits(self, rows: int, columns: int) -> int:
        """Return the bits of the values and of a float32 scale a group."""
        return 8 * rows * columns + 32 * rows * columns // self.group(columns)

    def pack(self, tensors: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
        """Return the tensors with the values as bytes, which copy, pickle and shard everywhere, as float8 does not."""
        import torch

        return {**tensors, "qdata": tensors["qdata"].view(torch.uint8)}

    def rebuild(self, tensors: Mapping[str, Tensor], columns: int, dtype: torch.dtype) -> Any:
        """Return a Float8Tensor."""
        torchao = library.module("torchao.quantization")
        values = tensors["qdata"].view(self._dtype)
        return torchao.Float8Tensor(values, tensors["scale"], block_size=[1, self.group(columns)], dtype=dtype)

    @property
    def _dtype(self) -> torch.dtype:
        import torch

        return torch.float8_e4m3fn if self.format == "e4m3" else torch.float8_e5m2
