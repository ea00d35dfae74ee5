"""The quantizer: what it sees of the inputs, and how codes, scales and zero points are stored and come back.

Source: Frantar et al. 2022, "GPTQ: Accurate Post-Training Quantization for Generative Pre-trained Transformers",
arXiv:2210.17323.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import lorakit
from lorakit.hooks import QuantizedWeight, Quantizer, require_finite

if TYPE_CHECKING:
    from torch import Tensor

# a bfloat16 scale and a zero point of eight bits for each group
GROUP_BITS = 16 + 8


@dataclass(frozen=True)
class GPTQ(Quantizer):
    """GPTQ: 2, 3, 4 or 8 bits, each column's error made up for by the columns after it; needs calibration data."""

    name: ClassVar[str] = "gptq"
    bits: Literal[2, 3, 4, 8] = field(default=4, metadata={"help": "bits of one weight"})
    group_size: Literal[16, 32, 64, 128, 256, 512, 1024] = field(
        default=128, metadata={"help": "weights of a row that share a scale and a zero point"}
    )
    damping: float = field(
        default=0.01, metadata={"help": "what is added to the Hessian's diagonal, as a share of its mean"}
    )
    act_order: bool = field(
        default=False, metadata={"help": "take the columns with the largest inputs first; groups stay where they are"}
    )

    def __post_init__(self) -> None:
        if self.damping <= 0:
            raise ValueError("damping must be above 0")

    def observe(self, x: Tensor, observed: Any) -> Tensor:
        """Return the Hessian of a row's squared output error, 2 Σ x xᵀ (in_features, in_features), float32."""
        rows = x.detach().reshape(-1, x.shape[-1]).float()
        hessian: Tensor = 2 * rows.T @ rows
        return hessian if observed is None else hessian.add_(observed)

    def quantize(self, weight: Tensor) -> QuantizedWeight:
        """Return the weight rounded to nearest, as if no input were more likely than another."""
        return self.quantize_observed(weight, None)

    def quantize_observed(self, weight: Tensor, observed: Any) -> QuantizedWeight:
        """Return weight (out_features, in_features) as `packed` uint8, `scale` bfloat16 and `zero` uint8.

        Shapes: scale and zero (out_features, groups of a row). Raises: ValueError if weight or inputs are not finite.
        """
        from lorakit.hooks.packing import pack
        from lorakit_gptq_calibrated.solver import solve

        require_finite(weight)
        if observed is not None:
            require_finite(observed, "the sum over the inputs")
        codes, scale, zero = solve(
            weight, observed, self.bits, self.group_size, damping=self.damping, act_order=self.act_order
        )
        tensors = {"packed": pack(codes, self.bits), "scale": scale, "zero": zero}
        return QuantizedWeight(tensors, (weight.shape[0], weight.shape[1]), weight.dtype)

    def dequantize(self, quantized: QuantizedWeight) -> Tensor:
        """Return the weight (out_features, in_features): (code - zero) * scale."""
        from lorakit.hooks.packing import unpack

        rows, columns = quantized.shape
        codes = unpack(quantized.tensors["packed"], self.bits, rows * columns).view(rows, columns)
        scale, zero = (
            quantized.tensors[name].float().repeat_interleave(self.group_size, dim=1)[:, :columns]
            for name in ("scale", "zero")
        )
        return ((codes - zero) * scale).to(quantized.dtype)

    def bits_per_weight(self, shape: tuple[int, int]) -> float:
        """Return the bits of the codes and the share of the scales; each row pays for a last, unfilled group."""
        from lorakit.hooks.packing import packed_bytes

        rows, columns = shape
        if not rows or not columns:
            return float(self.bits)
        groups = -(-columns // self.group_size)
        return (8 * packed_bytes(rows * columns, self.bits) + GROUP_BITS * rows * groups) / (rows * columns)


@lorakit.hookimpl
def lorakit_quantizers() -> list[type[Quantizer]]:
    return [GPTQ]
