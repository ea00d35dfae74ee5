"""`nf4` and `fp4`: four bits a weight in blocks with one scale each, in bitsandbytes' layout.

Source: Dettmers et al. 2023, "QLoRA", arXiv:2305.14314, sections 2 and 3.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from lorakit.hooks.finite import require_finite
from lorakit.hooks.protocols import Quantizer

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from lorakit.values import QuantizedWeight

# bitsandbytes quantizes the scales in blocks of this many
NESTED_BLOCKSIZE = 256
# bitsandbytes may take several times a weight's memory, so it gets no more than so many numbers at once
PIECE = 2**20
# transformers' config cannot say another
CHECKPOINT_BLOCKSIZE = 64

Blocksize = Literal[32, 64, 128, 256, 512, 1024, 2048, 4096]


@dataclass(frozen=True)
class FourBit(Quantizer):
    """Blockwise four-bit quantization; `double` quantizes the scales to eight bits in blocks of 256."""

    name: ClassVar[str]
    blocksize: Blocksize = field(default=64, metadata={"help": "weights that share one scale (absmax)"})
    double: bool = False

    def quantize(self, weight: Tensor) -> QuantizedWeight:
        """Return weight (out_features, in_features) as `packed`, two a byte, and `absmax`, doubled or not."""
        from lorakit.values import QuantizedWeight

        _check_dtype(weight.dtype, self.name)
        require_finite(weight)
        packed, absmax = self._packed(weight.contiguous().view(-1))
        tensors = {"packed": packed, "absmax": absmax}
        if self.double:
            tensors.update(_doubled(absmax))
        return QuantizedWeight(tensors, (weight.shape[0], weight.shape[1]), weight.dtype)

    def _packed(self, weights: Tensor) -> tuple[Tensor, Tensor]:
        """Return weights (n,) packed as (n / 2, 1) and their scales (n / blocksize,), both rounded up."""
        if weights.device.type == "cpu":
            from lorakit.layers.kernels.quantizing import quantize_4bit

            return quantize_4bit(weights, self.blocksize, self.name)
        import bitsandbytes.functional as bnb
        import torch

        count = weights.numel()
        packed = torch.empty((-(-count // 2), 1), dtype=torch.uint8, device=weights.device)
        absmax = torch.empty(-(-count // self.blocksize), dtype=torch.float32, device=weights.device)
        for start in range(0, count, PIECE):
            piece, state = bnb.quantize_4bit(
                weights[start : start + PIECE], blocksize=self.blocksize, quant_type=self.name
            )
            packed[start // 2 :][: len(piece)] = piece
            absmax[start // self.blocksize :][: len(state.absmax)] = state.absmax
        return packed, absmax

    def dequantize(self, quantized: QuantizedWeight) -> Tensor:
        """Return the weight (out_features, in_features)."""
        from lorakit.layers.kernels.fourbit import dequantize_4bit

        return dequantize_4bit(quantized.tensors, self.blocksize, self.name, list(quantized.shape), quantized.dtype)

    def bits_per_weight(self, shape: tuple[int, int]) -> float:
        """Return 4 bits and the share of the scales; odd sizes pay for the last, unfilled block."""
        weights = shape[0] * shape[1]
        if not weights:
            return 4.0
        blocks = -(-weights // self.blocksize)
        packed = -(-weights // 2) * 8
        if not self.double:
            return (packed + 32 * blocks) / weights
        return (packed + 8 * blocks + 32 * -(-blocks // NESTED_BLOCKSIZE) + 32) / weights

    def checkpoint_tensors(self, quantized: QuantizedWeight) -> Mapping[str, Tensor]:
        """Return what bitsandbytes' Linear4bit saves."""
        import bitsandbytes.functional as bnb
        import torch

        from lorakit.layers.kernels.fourbit import DOUBLE, levels

        stored = quantized.tensors
        device = stored["packed"].device
        state = bnb.QuantState(
            absmax=stored["absmax"],
            shape=torch.Size(quantized.shape),
            # each file has its own
            code=levels(self.name, device).clone(),
            blocksize=self.blocksize,
            quant_type=self.name,
            dtype=quantized.dtype,
            # bitsandbytes holds it without a dimension
            offset=stored["nested_offset"].view(()) if self.double else None,
            state2=bnb.QuantState(
                absmax=stored["nested_absmax"],
                code=levels(DOUBLE, device),
                blocksize=NESTED_BLOCKSIZE,
                dtype=torch.float32,
            )
            if self.double
            else None,
        )
        beside = {f"weight.{name}": value for name, value in state.as_dict(packed=True).items()}
        return {"weight": stored["packed"], **beside}

    def checkpoint_config(self, unquantized: Sequence[str], dtype: torch.dtype) -> Mapping[str, Any]:
        """Return the settings of transformers' BitsAndBytesConfig."""
        if self.blocksize != CHECKPOINT_BLOCKSIZE:
            raise ValueError(
                f"transformers reads {self.name} in blocks of {CHECKPOINT_BLOCKSIZE}, and this has {self.blocksize}"
            )
        from transformers import BitsAndBytesConfig

        config: dict[str, Any] = BitsAndBytesConfig(
            load_in_4bit=True,
            bnb_4bit_quant_type=self.name,
            bnb_4bit_use_double_quant=self.double,
            bnb_4bit_compute_dtype=dtype,
            llm_int8_skip_modules=list(unquantized),
        ).to_dict()
        return config


def _doubled(absmax: Tensor) -> dict[str, Tensor]:
    """Return scales (blocks,) in eight bits, as what is left of them without their mean."""
    import bitsandbytes.functional as bnb
    import torch

    if not absmax.numel():
        # bitsandbytes ends the process over an empty tensor on CUDA
        empty = torch.empty_like(absmax)
        return {"absmax": empty.to(torch.uint8), "nested_absmax": empty, "nested_offset": absmax.new_zeros(1)}
    offset = absmax.mean()
    codes, nested = bnb.quantize_blockwise(absmax - offset, blocksize=NESTED_BLOCKSIZE)
    return {"absmax": codes, "nested_absmax": nested.absmax, "nested_offset": offset.view(1)}


def _check_dtype(dtype: torch.dtype, name: str) -> None:
    import torch

    if dtype not in (torch.float32, torch.bfloat16, torch.float16):
        raise ValueError(f"{name} stores weights of fp32, bf16 or fp16, not of {str(dtype).removeprefix('torch.')}")


@dataclass(frozen=True)
class NF4(FourBit):
    """Four-bit NormalFloat: levels at the quantiles of a normal distribution (QLoRA)."""

    name: ClassVar[str] = "nf4"


@dataclass(frozen=True)
class FP4(FourBit):
    """Four-bit floating point: one sign, two exponent and one mantissa bit."""

    name: ClassVar[str] = "fp4"
