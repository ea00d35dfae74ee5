"""Four-bit weights with doubled scales, dequantized by one Triton kernel: bitsandbytes' bits in one pass.

Two kernels write the undoubled scales to memory and read them again, and leave the launch of each to the host.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import triton
import triton.language as tl
from torch import Tensor

# bytes that are sure to share a scale: half of the smallest block
GROUP = 16
# groups of one program: the fastest on an H100, where 128 and 256 read and write at 2.8 of 3.0 TB/s
GROUPS = 128


@triton.jit  # type: ignore[untyped-decorator]
def _kernel(  # type: ignore[no-untyped-def]
    packed,
    absmax,
    nested_absmax,
    nested_offset,
    levels,
    nested_levels,
    out,
    count,
    block_bytes: tl.constexpr,
    nested_blocksize: tl.constexpr,
    group: tl.constexpr,
    groups: tl.constexpr,
):
    first = tl.program_id(0).to(tl.int64) * groups + tl.arange(0, groups)
    # a group's first byte holds a weight, or all of the group lies beyond the last
    held = first * (2 * group) < count
    block = (first * group) // block_bytes
    code = tl.load(absmax + block, mask=held, other=0).to(tl.int32)
    scale = tl.load(nested_levels + code) * tl.load(nested_absmax + block // nested_blocksize, mask=held, other=0.0)
    scale = scale + tl.load(nested_offset)
    byte_at = first[:, None] * group + tl.arange(0, group)[None, :]
    byte = tl.load(packed + byte_at, mask=byte_at * 2 < count, other=0).to(tl.int32)
    # the first of two weights lies in the high half
    high = tl.load(levels + (byte >> 4)) * scale[:, None]
    low = tl.load(levels + (byte & 15)) * scale[:, None]
    both = tl.interleave(high, low)
    at = first[:, None] * (2 * group) + tl.arange(0, 2 * group)[None, :]
    tl.store(out + at, both.to(out.dtype.element_ty), mask=at < count)


def dequantize(
    packed: Tensor,
    absmax: Tensor,
    nested_absmax: Tensor,
    nested_offset: Tensor,
    levels: Tensor,
    nested_levels: Tensor,
    blocksize: int,
    shape: Sequence[int],
    dtype: torch.dtype,
    nested_blocksize: int = 256,
) -> Tensor:
    """Return the weight of this shape, levels[code] · (nested_levels[absmax] · nested_absmax + nested_offset).

    Shapes: packed (n / 2, 1) uint8; absmax (n / blocksize,) uint8; nested_absmax (blocks / nested_blocksize,) float32;
    nested_offset (1,) float32; levels (16,) and nested_levels (256,) float32.
    """
    out = torch.empty(tuple(shape), dtype=dtype, device=packed.device)
    count = math.prod(shape)
    if not count:
        return out
    grid = (triton.cdiv(count, 2 * GROUP * GROUPS),)
    tables = levels, nested_levels
    # Triton launches on the current device and its stream, wherever the tensors lie: a model may be split over several
    with torch.cuda.device(packed.device):
        # a fused multiply-add would round once where bitsandbytes' two kernels round twice
        _kernel[grid](
            packed, absmax, nested_absmax, nested_offset, *tables, out, count, blocksize // 2, nested_blocksize, GROUP,
            GROUPS, num_warps=4, enable_fp_fusion=False,
        )  # fmt: skip
    return out
