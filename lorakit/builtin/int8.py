"""`int8`: bitsandbytes' LLM.int8().

Source: Dettmers et al. 2022, "LLM.int8()", arXiv:2208.07339.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar

from lorakit.builtin.fourbit import PIECE
from lorakit.hooks.finite import require_finite
from lorakit.hooks.protocols import Quantizer

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from lorakit.values import QuantizedWeight


def _codes(rows: Tensor) -> tuple[Tensor, Tensor]:
    import bitsandbytes.functional as bnb
    import torch

    halves = rows.to(torch.float16).contiguous()
    require_finite(halves, "the weight in float16, which LLM.int8() starts from,")
    if not rows.numel():
        # bitsandbytes ends the process over an empty tensor on CUDA
        return rows.to(torch.int8), rows.new_zeros(len(rows), dtype=torch.float32)
    codes, scales, _ = bnb.int8_vectorwise_quant(halves)
    return codes, scales


@dataclass(frozen=True)
class Int8(Quantizer):
    """Eight bits a weight with one scale a row; input columns with outliers are multiplied in 16 bits."""

    name: ClassVar[str] = "int8"
    threshold: float = field(default=6.0, metadata={"help": "inputs beyond it count as outliers; 0 turns that off"})

    def __post_init__(self) -> None:
        if self.threshold < 0:
            raise ValueError("threshold must not be negative")

    def quantize(self, weight: Tensor) -> QuantizedWeight:
        """Return weight (out_features, in_features) as `CB` int8 of that shape and `SCB` float32 (out_features,)."""
        import torch

        from lorakit.values import QuantizedWeight

        require_finite(weight)
        pieces = weight.split(max(1, PIECE // max(1, weight.shape[1])))
        parts = [_codes(rows) for rows in pieces]
        codes, scales = (torch.cat(part) for part in zip(*parts, strict=True))
        return QuantizedWeight({"CB": codes, "SCB": scales}, (weight.shape[0], weight.shape[1]), weight.dtype)

    def dequantize(self, quantized: QuantizedWeight) -> Tensor:
        """Return the weight (out_features, in_features)."""
        import bitsandbytes.functional as bnb

        codes, scales = quantized.tensors["CB"], quantized.tensors["SCB"]
        weight: Tensor = bnb.int8_vectorwise_dequant(codes, scales) if codes.numel() else codes
        return weight.to(quantized.dtype)

    def bits_per_weight(self, shape: tuple[int, int]) -> float:
        """Return 8 bits and the share of one float32 scale a row."""
        return 8 + 32 / max(1, shape[1])

    def checkpoint_tensors(self, quantized: QuantizedWeight) -> Mapping[str, Tensor]:
        """Return what bitsandbytes' Linear8bitLt saves; format 0 is row-major, the only one that there still is."""
        import torch

        stored = quantized.tensors
        return {"weight": stored["CB"], "SCB": stored["SCB"], "weight_format": torch.tensor(0, dtype=torch.uint8)}

    def checkpoint_config(self, unquantized: Sequence[str], dtype: torch.dtype) -> Mapping[str, Any]:
        """Return the settings of transformers' BitsAndBytesConfig."""
        from transformers import BitsAndBytesConfig

        config: dict[str, Any] = BitsAndBytesConfig(
            load_in_8bit=True, llm_int8_threshold=self.threshold, llm_int8_skip_modules=list(unquantized)
        ).to_dict()
        return config
