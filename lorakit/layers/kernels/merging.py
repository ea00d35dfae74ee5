"""Weights of several layers that read one input, written as one matrix with what adapters add: W + Σ scaling · B · A.

A product with it is one product for all of them, and has nothing to add afterwards. The sum is rounded once, from
float32, so that a change smaller than a rounding still tells in the mean over a row's weights; added to a product it is
lost where it is smaller than the product's own rounding. That holds where dequantized weights lie between the numbers
of the dtype, as four-bit codes times a scale of float32 do.
"""

from __future__ import annotations

import functools
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor

from lorakit.layers.kernels import fourbit
from lorakit.layers.kernels.nvrtc import Kernel, NoCompilerError, available, bits_of, compiled
from lorakit.layers.kernels.product import FourBits

logger = logging.getLogger("lorakit")

# columns of a strip that have one scale, and ranks that tensor cores multiply at once
PIECE, NARROW = 32, 16
# more would not fit a strip's registers
MOST_RANKS = 8
WARPS, THREADS = 8, 256
# warps that keep a large device busy
ENOUGH = 3072
# tensor cores multiply bf16 since
CAPABILITY = (8, 0)

_LIBRARY = torch.library.Library("lorakit", "FRAGMENT")
_LIBRARY.define(
    "merged_4bit(Tensor[] stored, int kinds, Tensor[] pairs, float[] scalings, int blocksize, str quant_type, "
    "int columns, ScalarType dtype) -> Tensor",
    tags=(torch.Tag.pt2_compliant_tag,),
)
# tensors of one weight, in this order; the last two where scales are doubled
NAMES = ("packed", "absmax", "nested_absmax", "nested_offset")


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
        (
            dict(zip(NAMES, stored[kinds * index : kinds * (index + 1)], strict=False)),
            pairs[2 * index],
            pairs[2 * index + 1],
        )
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
    members = _members(stored, kinds, pairs)
    result = members[0][0]["packed"].new_empty((sum(B.shape[0] for _, _, B in members), columns), dtype=dtype)
    first = 0
    for (tensors, lora_A, lora_B), scaling in zip(members, scalings, strict=True):
        rows = lora_B.shape[0]
        weight = fourbit.dequantize_4bit(tensors, blocksize, quant_type, (rows, columns), torch.float32)
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
    arguments = (stored, kinds, pairs, scalings, blocksize, quant_type, columns, dtype)
    members = _members(stored, kinds, pairs)
    if not all(_readable(tensors, lora_A, lora_B, columns, dtype) for tensors, lora_A, lora_B in members):
        return _merged(*arguments)
    device = stored[0].device
    try:
        kernels = [_kernel(lora_A.shape[0], kinds == len(NAMES), dtype, device) for _, lora_A, _ in members]
    except NoCompilerError as error:
        _say_once(str(error))
        return _merged(*arguments)
    result = stored[0].new_empty((sum(lora_B.shape[0] for _, _, lora_B in members), columns), dtype=dtype)
    first = 0
    # kernels are launched on the current device, wherever the tensors lie: a model may be split over several
    with torch.cuda.device(device):
        for kernel, (tensors, lora_A, lora_B), scaling in zip(kernels, members, scalings, strict=True):
            rows, rank = lora_B.shape
            strips = -(-columns // (PIECE * _pieces(rank)))
            chunk = _chunk(rows, strips)
            kernel.launch(
                (strips, -(-rows // (chunk * WARPS)), 1),
                THREADS,
                (
                    tensors["packed"], tensors["absmax"], tensors.get("nested_absmax"), tensors.get("nested_offset"),
                    fourbit.levels(quant_type, device), fourbit.levels(fourbit.DOUBLE, device), lora_A.contiguous(),
                    lora_B.contiguous(), result[first:], rows, columns, blocksize.bit_length() - 1, rank,
                    bits_of(scaling), chunk,
                ),
            )  # fmt: skip
            first += rows
    return result


def _readable(tensors: Mapping[str, Tensor], lora_A: Tensor, lora_B: Tensor, columns: int, dtype: torch.dtype) -> bool:
    packed = tensors["packed"]
    return (
        available()
        and dtype in (torch.bfloat16, torch.float16)
        and lora_A.dtype == lora_B.dtype == dtype
        and lora_A.shape[0] <= MOST_RANKS * NARROW
        and columns % PIECE == 0
        and lora_B.shape[0] > 0
        and packed.is_contiguous()
        and packed.data_ptr() % 4 == 0
        and lora_A.data_ptr() % 16 == 0
        and torch.cuda.get_device_capability(packed.device) >= CAPABILITY
    )


def _pieces(rank: int) -> int:
    """Return how many times 32 columns a strip has: registers hold a whole strip's part of A."""
    return max(1, 4 // max(1, -(-rank // (2 * NARROW))))


def _chunk(rows: int, strips: int) -> int:
    """Return how many rows a warp goes down, so that there are some thousand warps."""
    wanted = rows * strips / ENOUGH
    return max(NARROW, min(256, round(wanted / NARROW) * NARROW))


@functools.cache
def _kernel(rank: int, doubled: bool, dtype: torch.dtype, device: torch.device) -> Kernel:
    defines = (
        f"RANKS={-(-rank // NARROW)}",
        f"WHOLE={int(rank % NARROW == 0)}",
        f"PIECES={_pieces(rank)}",
        f"HALF={int(dtype == torch.float16)}",
        f"DOUBLED={int(doubled)}",
    )
    return compiled(Path(__file__).with_suffix(".cu").read_text(), "merged", defines, device)


@functools.cache
def _say_once(why: str) -> None:
    logger.info("merged weights: they are dequantized and added to in two steps, since %s", why)
