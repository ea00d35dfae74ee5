"""`ao_int4`: four bits a weight in groups, as torchao's IntxWeightOnlyConfig with weight_dtype=torch.int4.

torchao's Int4WeightOnlyConfig is the same idea bound to one GPU kernel or another; this one is bound to none.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from lorakit_torchao import library
from lorakit_torchao.weight_only import WeightOnly

if TYPE_CHECKING:
    import torch
    from torch import Tensor

# the smallest of the sixteen codes
LOWEST = -8


@dataclass(frozen=True)
class Int4(WeightOnly):
    """torchao's int4: groups of weights, each with a float32 scale and a zero point; runs on every device."""

    name: ClassVar[str] = "ao_int4"
    group_size: Literal[32, 64, 128, 256] = field(
        default=128, metadata={"help": "weights that share one scale and one zero point"}
    )
    symmetric: bool = field(default=False, metadata={"help": "keep every zero point at 0"})

    def group(self, columns: int) -> int:
        """Return the group size."""
        return self.group_size

    def compress(self, weight: Tensor) -> Any:
        """Return an IntxUnpackedToInt8Tensor."""
        import torch

        torchao = library.module("torchao.quantization")
        mapping = torchao.MappingType.SYMMETRIC if self.symmetric else torchao.MappingType.ASYMMETRIC
        four = torch.int4  # type: ignore[attr-defined]
        return torchao.IntxUnpackedToInt8Tensor.from_hp(weight, (1, self.group_size), four, mapping_type=mapping)

    def stored_bits(self, rows: int, columns: int) -> int:
        """Return the bits of the codes, and of a float32 scale and an int8 zero point a group."""
        return 4 * rows * columns + (32 + 8) * rows * columns // self.group_size

    def pack(self, tensors: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
        """Return the tensors with two codes a byte, the even column in the low half; torchao keeps one a byte."""
        import torch

        codes = (tensors["qdata"] - LOWEST).to(torch.uint8)
        return {**tensors, "qdata": codes[:, 0::2] | codes[:, 1::2] << 4}

    def rebuild(self, tensors: Mapping[str, Tensor], columns: int, dtype: torch.dtype) -> Any:
        """Return an IntxUnpackedToInt8Tensor."""
        import torch

        packed = tensors["qdata"]
        codes = torch.stack((packed & 15, packed >> 4), dim=-1).flatten(1).to(torch.int8) + LOWEST
        return library.module("torchao.quantization").IntxUnpackedToInt8Tensor(
            **{**tensors, "qdata": codes},
            target_dtype=torch.int4,  # type: ignore[attr-defined]
            block_size=(1, self.group_size),
            dtype=dtype,
            activation_quantization=None,
        )
