"""Four-bit weights written with what an adapter adds, by one Triton kernel: each is read once and written once."""

from __future__ import annotations

from collections.abc import Mapping

import torch
import triton
import triton.language as tl
from torch import Tensor

# columns that are sure to share a scale
ALIGNED = 32
# of one program: rows, columns, warps
TILE = 16, 256, 4
# the narrowest that tensor cores multiply
NARROWEST = 16


@triton.jit  # type: ignore[untyped-decorator]
def _kernel(  # type: ignore[no-untyped-def]
    packed,
    absmax,
    nested_absmax,
    nested_offset,
    levels,
    nested_levels,
    lora_A,
    lora_B,
    out,
    rows,
    columns,
    scaling,
    rank: tl.constexpr,
    ranks: tl.constexpr,
    nested: tl.constexpr,
    precision: tl.constexpr,
    by_dot: tl.constexpr,
    block_groups: tl.constexpr,
    nested_blocksize: tl.constexpr,
    tile_rows: tl.constexpr,
    tile_columns: tl.constexpr,
    aligned: tl.constexpr,
):
    half: tl.constexpr = tile_columns // 2
    groups: tl.constexpr = tile_columns // aligned
    row = tl.program_id(0) * tile_rows + tl.arange(0, tile_rows)
    first = tl.program_id(1) * tile_columns
    # which scale: one for each group of columns
    column = first + tl.arange(0, groups) * aligned
    held = (row[:, None] < rows) & (column[None, :] < columns)
    block = (row[:, None].to(tl.int64) * (columns // aligned) + (column // aligned)[None, :]) // block_groups
    if nested:
        code = tl.load(absmax + block, mask=held, other=0).to(tl.int32)
        scale = tl.load(nested_levels + code) * tl.load(nested_absmax + block // nested_blocksize, mask=held, other=0.0)
        scale = scale + tl.load(nested_offset)
    else:
        scale = tl.load(absmax + block, mask=held, other=0.0)
    wide = tl.broadcast_to(scale[:, :, None], (tile_rows, groups, aligned // 2))
    scale = tl.reshape(wide, (tile_rows, half))
    pair = first // 2 + tl.arange(0, half)
    inside = (row[:, None] < rows) & (pair[None, :] * 2 < columns)
    byte = tl.load(
        packed + row[:, None].to(tl.int64) * (columns // 2) + pair[None, :], mask=inside, other=0
    ).to(tl.int32)
    # the first of two weights lies in the high half
    even = tl.load(levels + (byte >> 4)) * scale
    odd = tl.load(levels + (byte & 15)) * scale
    if rank > 0:
        # products of tensor cores lie otherwise and have to be moved; few columns are summed as fast where they are
        if by_dot:
            k = tl.arange(0, ranks)
            thin = tl.load(
                lora_B + row[:, None].to(tl.int64) * rank + k[None, :],
                mask=(row[:, None] < rows) & (k[None, :] < rank),
                other=0.0,
            )
            at = lora_A + k[:, None].to(tl.int64) * columns + pair[None, :] * 2
            there = (k[:, None] < rank) & (pair[None, :] * 2 < columns)
            even += scaling * tl.dot(thin, tl.load(at, mask=there, other=0.0), input_precision=precision)
            odd += scaling * tl.dot(thin, tl.load(at + 1, mask=there, other=0.0), input_precision=precision)
        else:
            change_even = tl.zeros((tile_rows, half), tl.float32)
            change_odd = tl.zeros((tile_rows, half), tl.float32)
            for k in tl.static_range(rank):
                own = tl.load(lora_B + row.to(tl.int64) * rank + k, mask=row < rows, other=0.0).to(tl.float32)[:, None]
                at = lora_A + k * columns + pair * 2
                change_even += own * tl.load(at, mask=pair * 2 < columns, other=0.0).to(tl.float32)[None, :]
                change_odd += own * tl.load(at + 1, mask=pair * 2 < columns, other=0.0).to(tl.float32)[None, :]
            even += scaling * change_even
            odd += scaling * change_odd
    both = tl.interleave(even, odd)
    where = first + tl.arange(0, tile_columns)
    tl.store(
        out + row[:, None].to(tl.int64) * columns + where[None, :],
        both.to(out.dtype.element_ty),
        mask=(row[:, None] < rows) & (where[None, :] < columns),
    )


def write(
    out: Tensor,
    tensors: Mapping[str, Tensor],
    lora_A: Tensor,
    lora_B: Tensor,
    scaling: float,
    levels: Tensor,
    nested_levels: Tensor,
    blocksize: int,
    nested_blocksize: int = 256,
    tile: tuple[int, int, int] = TILE,
    by_dot: bool = True,
) -> None:
    """Write weight + scaling · B @ A to `out` (out_features, in_features), whose rows lie one after the other.

    Shapes: lora_A (rank, in_features), lora_B (out_features, rank), of one dtype; packed, absmax and what doubles it as
    `nested_triton.dequantize` takes them.
    """
    rows, columns = out.shape
    rank = lora_A.shape[0]
    if not out.numel():
        return
    tile_rows, tile_columns, warps = tile
    nested = "nested_absmax" in tensors
    absmax = tensors["absmax"]
    grid = (triton.cdiv(rows, tile_rows), triton.cdiv(columns, tile_columns))
    # Triton launches on the current device and its stream, wherever the tensors lie: a model may be split over several
    with torch.cuda.device(out.device) if out.is_cuda else torch.no_grad():
        # a fused multiply-add would round once where bitsandbytes rounds twice
        _kernel[grid](
            tensors["packed"], absmax, tensors["nested_absmax"] if nested else absmax,
            tensors["nested_offset"] if nested else absmax, levels, nested_levels, lora_A.contiguous(),
            lora_B.contiguous(), out, rows, columns, scaling, rank=rank,
            ranks=max(NARROWEST, triton.next_power_of_2(rank)), nested=nested,
            precision="tf32" if out.dtype != torch.float32 else "ieee", by_dot=by_dot, block_groups=blocksize // ALIGNED,
            nested_blocksize=nested_blocksize, tile_rows=tile_rows, tile_columns=tile_columns, aligned=ALIGNED,
            num_warps=warps, enable_fp_fusion=False,
        )  # fmt: skip
