"""Weights of several layers that read one input, written as one matrix with what adapters add: W + Σ scaling · B · A.

A product with it is one product for all of them, and has nothing to add afterwards. The sum is rounded once, from
float32, so that a change smaller than a rounding still tells in the mean over a row's weights; added to a product it is
lost where it is smaller than the product's own rounding. That holds where dequantized weights lie between the numbers of
the dtype, as four-bit codes times a scale of float32 do.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

_LIBRARY = torch.library.Library("lorakit", "FRAGMENT")
_LIBRARY.define(
    "merged_4bit(Tensor[] stored, int kinds, Tensor[] pairs, float[] scalings, int blocksize, str quant_type, "
    "int columns, ScalarType dtype) -> Tensor",
    tags=(torch.Tag.pt2_compliant_tag,),
)
# tensors of one weight, in this order; the last two where scales are doubled
NAMES = ("packed", "absmax", "nested_absmax", "nested_offset")


@dataclass(frozen=True, slots=True)
class FourBits:
    """What weights have to share to be written as one: the format, and the size of blocks."""

    quant_type: str
    blocksize: int


def merged(
    form: FourBits,
    stored: Sequence[Sequence[Tensor]],
    pairs: Sequence[tuple[Tensor, Tensor]],
    scalings: Sequence[float],
    columns: int,
    dtype: torch.dtype,
) -> Tensor:
    """Return the weights below each other, (Σ out_features, in_features), each with scaling · B @ A added.

    Shapes: A (rank, in_features), B (out_features, rank), in `dtype`; rank may be 0.
    """
    result: Tensor = torch.ops.lorakit.merged_4bit.default(
        [tensor for one in stored for tensor in one],
        len(stored[0]),
        [tensor for pair in pairs for tensor in pair],
        list(scalings),
        form.blocksize,
        form.quant_type,
        columns,
        dtype,
    )
    return result


def _members(
    stored: Sequence[Tensor], kinds: int, pairs: Sequence[Tensor]
) -> list[tuple[dict[str, Tensor], Tensor, Tensor]]:
    return [
        (dict(zip(NAMES, stored[kinds * index : kinds * (index + 1)], strict=False)), pairs[2 * index], pairs[2 * index + 1])
        for index in range(len(stored) // kinds)
    ]


@torch.library.impl(_LIBRARY, "merged_4bit", "CompositeExplicitAutograd")
def _merged(
    stored: Sequence[Tensor],
    kinds: int,
    pairs: Sequence[Tensor],
    scalings: Sequence[float],
    blocksize: int,
    quant_type: str,
    columns: int,
    dtype: torch.dtype,
) -> Tensor:
    from lorakit.layers.kernels.fourbit import dequantize_4bit

    members = _members(stored, kinds, pairs)
    result = members[0][0]["packed"].new_empty((sum(B.shape[0] for _, _, B in members), columns), dtype=dtype)
    first = 0
    for (tensors, lora_A, lora_B), scaling in zip(members, scalings, strict=True):
        rows = lora_B.shape[0]
        weight = dequantize_4bit(tensors, blocksize, quant_type, (rows, columns), torch.float32)
        if lora_A.shape[0]:
            weight.addmm_(lora_B.float(), lora_A.float(), alpha=scaling)
        result[first : first + rows].copy_(weight)
        first += rows
    return result


@torch.library.register_fake("lorakit::merged_4bit", lib=_LIBRARY)  # type: ignore[untyped-decorator]
def _shaped(
    stored: Sequence[Tensor],
    kinds: int,
    pairs: Sequence[Tensor],
    scalings: Sequence[float],
    blocksize: int,
    quant_type: str,
    columns: int,
    dtype: torch.dtype,
) -> Tensor:
    return stored[0].new_empty((sum(lora_B.shape[0] for lora_B in pairs[1::2]), columns), dtype=dtype)


if torch.cuda.is_available() and importlib.util.find_spec("triton"):
    from lorakit.layers.kernels import merging_triton

    @torch.library.impl(_LIBRARY, "merged_4bit", "CUDA")
    def _in_one_pass(
        stored: Sequence[Tensor],
        kinds: int,
        pairs: Sequence[Tensor],
        scalings: Sequence[float],
        blocksize: int,
        quant_type: str,
        columns: int,
        dtype: torch.dtype,
    ) -> Tensor:
        from lorakit.layers.kernels.fourbit import DOUBLE, levels

        if columns % merging_triton.ALIGNED or blocksize % merging_triton.ALIGNED:
            return _merged(stored, kinds, pairs, scalings, blocksize, quant_type, columns, dtype)
        device = stored[0].device
        tables = levels(quant_type, device), levels(DOUBLE, device)
        result = stored[0].new_empty((sum(B.shape[0] for B in pairs[1::2]), columns), dtype=dtype)
        first = 0
        for (tensors, lora_A, lora_B), scaling in zip(_members(stored, kinds, pairs), scalings, strict=True):
            out = result[first : first + lora_B.shape[0]]
            merging_triton.write(out, tensors, lora_A, lora_B, scaling, *tables, blocksize)
            first += lora_B.shape[0]
        return result
