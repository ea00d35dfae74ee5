"""The quantizer: how codes, scales and zero points are stored and come back.

Source: Badri and Shaji 2023, "Half-Quadratic Quantization of Large Machine Learning Models",
https://mobiusml.github.io/hqq_blog/, and `optimize_weights_proximal_legacy` in github.com/mobiusml/hqq (Apache-2.0).
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, ClassVar, Literal

import lorakit
from lorakit.hooks import QuantizedWeight, Quantizer, require_finite

if TYPE_CHECKING:
    from torch import Tensor

# a bfloat16 scale and a float16 zero point for each group
GROUP_BITS = 16 + 16


@dataclass(frozen=True)
class HQQ(Quantizer):
    """Half-quadratic quantization: 2, 3, 4 or 8 bits, with zero points fitted so that few weights are far off."""

    name: ClassVar[str] = "hqq"
    bits: Literal[2, 3, 4, 8] = field(default=4, metadata={"help": "bits of one weight"})
    group_size: Literal[8, 16, 32, 64, 128, 256, 512, 1024] = field(
        default=64, metadata={"help": "weights, in the order of the rows, that share a scale and a zero point"}
    )
    iterations: int = field(default=20, metadata={"help": "rounds of the solver; 0 leaves rounding to nearest"})
    p: float = field(
        default=0.7, metadata={"help": "the norm of the error that is made small; below 1 forgives outliers"}
    )
    beta: float = field(default=10.0, metadata={"help": "how closely the solver follows the error, in steps of a code"})
    kappa: float = field(default=1.01, metadata={"help": "what beta is multiplied by after each round"})

    def __post_init__(self) -> None:
        if self.iterations < 0:
            raise ValueError("iterations must not be negative")
        if not 0 < self.p <= 1:
            raise ValueError("p lies above 0 and is at most 1")
        if self.beta <= 0:
            raise ValueError("beta must be above 0")
        if self.kappa < 1:
            raise ValueError("kappa must be at least 1")

    def quantize(self, weight: Tensor) -> QuantizedWeight:
        """Return weight (out_features, in_features) as `packed` codes uint8, `scale` bfloat16 and `zero` float16.

        Shapes: scale and zero (groups,). Raises: ValueError if the weight is not finite.
        """
        from lorakit.hooks.packing import pack
        from lorakit_hqq.solver import solve

        require_finite(weight)
        codes, scale, zero = solve(
            weight, self.bits, self.group_size, rounds=self.iterations, p=self.p, beta=self.beta, kappa=self.kappa
        )
        tensors = {"packed": pack(codes, self.bits), "scale": scale, "zero": zero}
        return QuantizedWeight(tensors, (weight.shape[0], weight.shape[1]), weight.dtype)

    def dequantize(self, quantized: QuantizedWeight) -> Tensor:
        """Return the weight (out_features, in_features): (code - zero) * scale."""
        from lorakit.hooks.packing import unpack

        scale, zero = (quantized.tensors[name].float().unsqueeze(1) for name in ("scale", "zero"))
        rows, columns = quantized.shape
        codes = unpack(quantized.tensors["packed"], self.bits, len(scale) * self.group_size)
        groups = (codes.view(-1, self.group_size) - zero) * scale
        return groups.flatten()[: rows * columns].view(rows, columns).to(quantized.dtype)

    def bits_per_weight(self, shape: tuple[int, int]) -> float:
        """Return the bits of the codes and the share of the scales; odd sizes pay for the last, unfilled group."""
        weights = shape[0] * shape[1]
        if not weights:
            return float(self.bits)
        groups = -(-weights // self.group_size)
        return groups * (self.group_size * self.bits + GROUP_BITS) / weights


@lorakit.hookimpl
def lorakit_quantizers() -> list[type[Quantizer]]:
    return [HQQ]
