"""What torchao's weight-only formats share: torchao quantizes, and its tensor subclass comes apart into plain tensors.

Source: Or et al. 2025, "TorchAO", arXiv:2507.16099.
"""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from lorakit.hooks import QuantizedWeight, Quantizer, require_finite

if TYPE_CHECKING:
    import torch
    from torch import Tensor


@dataclass(frozen=True)
class WeightOnly(Quantizer):
    """A weight stored in fewer bits by torchao; inputs keep their dtype and the weight is dequantized to multiply."""

    name: ClassVar[str]

    def quantize(self, weight: Tensor) -> QuantizedWeight:
        """Return weight (out_features, in_features) as the tensors that torchao's subclass holds, by their names.

        torchao reads the weight in float32; zeros fill up the last group of a row, for it takes whole groups only.
        Raises: ValueError if the weight is not finite, or torchao missing or too old.
        """
        import torch
        from torch.nn import functional

        require_finite(weight)
        rows, columns = weight.shape
        if not weight.numel():
            # torchao looks for the largest weight of a group, and there is none
            nothing = torch.empty_like(weight, dtype=torch.uint8)
            return QuantizedWeight({"qdata": nothing}, (rows, columns), weight.dtype)
        filled = functional.pad(weight.detach().float(), (0, self.stored_columns(columns) - columns)).contiguous()
        compressed = self.compress(filled)
        names, _ = compressed.__tensor_flatten__()
        tensors = self.pack({name: getattr(compressed, name) for name in names})
        return QuantizedWeight(tensors, (rows, columns), weight.dtype)

    def dequantize(self, quantized: QuantizedWeight) -> Tensor:
        """Return the weight (out_features, in_features)."""
        columns = quantized.shape[1]
        if not math.prod(quantized.shape):
            return quantized.tensors["qdata"].to(quantized.dtype)
        weight: Tensor = self.rebuild(quantized.tensors, self.stored_columns(columns), quantized.dtype).dequantize()
        return weight[:, :columns].contiguous()

    def bits_per_weight(self, shape: tuple[int, int]) -> float:
        """Return the bits of a weight with scales, zero points and filling."""
        return self.stored_bits(shape[0], self.stored_columns(shape[1])) / max(1, math.prod(shape))

    def stored_columns(self, columns: int) -> int:
        """Return the columns with the last group filled up."""
        size = max(1, self.group(columns))
        return -(-columns // size) * size

    def pack(self, tensors: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
        """Return what is stored of the tensors that torchao's subclass holds: all of them as they are."""
        return tensors

    @abstractmethod
    def group(self, columns: int) -> int:
        """Return how many weights of a row of so many columns share one scale."""

    @abstractmethod
    def compress(self, weight: Tensor) -> Any:
        """Return torchao's tensor subclass for weight (rows, columns), float32 and in whole groups."""

    @abstractmethod
    def stored_bits(self, rows: int, columns: int) -> int:
        """Return the bits of everything that is stored for so many rows and columns of whole groups."""

    @abstractmethod
    def rebuild(self, tensors: Mapping[str, Tensor], columns: int, dtype: torch.dtype) -> Any:
        """Return torchao's tensor subclass again, now one that dequantizes to `dtype`, from what `pack` gave."""


def whole_row(columns: int) -> int:
    """Return the size of the group that a row is, which is two at least: for rows of one torchao 0.18 has no scales."""
    return max(2, columns)
