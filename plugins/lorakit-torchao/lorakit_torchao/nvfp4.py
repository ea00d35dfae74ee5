"""`ao_nvfp4`: NVIDIA's four-bit floating point, as torchao's NVFP4WeightOnlyConfig.

Source: NVIDIA 2025, "Pretraining Large Language Models with NVFP4", arXiv:2509.25149.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from lorakit_torchao import library
from lorakit_torchao.weight_only import WeightOnly

if TYPE_CHECKING:
    import torch
    from torch import Tensor

BLOCK = 16
# torchao divides by the largest weight, which is 0 where a layer was zeroed
SMALLEST = 1e-30


@dataclass(frozen=True)
class NVFP4(WeightOnly):
    """torchao's NVFP4: 16 weights share a float8 scale, and all of them a float32 one; runs on every device."""

    name: ClassVar[str] = "ao_nvfp4"

    def group(self, columns: int) -> int:
        """Return the block that the format has."""
        return BLOCK

    def compress(self, weight: Tensor) -> Any:
        """Return an NVFP4Tensor, its scales by row and not in the tiles that Blackwell's tensor cores read."""
        torchao = library.module("torchao.prototype.mx_formats.nvfp4_tensor")
        largest = weight.abs().amax().clamp(min=SMALLEST)
        return torchao.NVFP4Tensor.to_nvfp4(weight, per_tensor_scale=torchao.per_tensor_amax_to_scale(largest))

    def stored_bits(self, rows: int, columns: int) -> int:
        """Return the bits of the values, of a float8 scale a block, and of the float32 scale of all."""
        return 4 * rows * columns + 8 * rows * columns // BLOCK + 32

    def pack(self, tensors: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
        """Return the tensors with the scales as bytes, which copy, pickle and shard everywhere, as float8 does not.

        The scale of all has one dimension, since nothing can be sharded that has none.
        """
        import torch

        scale, of_all = tensors["scale"].view(torch.uint8), tensors["per_tensor_scale"].view(1)
        return {**tensors, "scale": scale, "per_tensor_scale": of_all}

    def rebuild(self, tensors: Mapping[str, Tensor], columns: int, dtype: torch.dtype) -> Any:
        """Return an NVFP4Tensor."""
        import torch

        torchao = library.module("torchao.prototype.mx_formats.nvfp4_tensor")
        scale = tensors["scale"].view(torch.float8_e4m3fn)
        of_all = tensors["per_tensor_scale"].view(())
        held = {**tensors, "scale": scale, "per_tensor_scale": of_all}
        return torchao.NVFP4Tensor(**held, block_size=BLOCK, orig_dtype=dtype)
