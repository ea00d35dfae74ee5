"""Four-bit quantization on the CPU: bitsandbytes' bits, several times as fast.

bitsandbytes' CPU code searches for each weight among the 15 thresholds between the levels; here all weights of a piece,
which fits a processor's cache, are compared with one threshold after the other.
"""

from __future__ import annotations

import functools

import bitsandbytes.functional as bnb
import torch
from torch import Tensor

# weights at once: 256 KiB in float32
PIECE = 2**16
# a block without any weight but zeros has a scale of 0, and bitsandbytes divides by this instead
SMALLEST = 1e-38


def quantize_4bit(weights: Tensor, blocksize: int, quant_type: str) -> tuple[Tensor, Tensor]:
    """Return finite weights (n,) packed as (n / 2, 1) and their scales (n / blocksize,), both rounded up."""
    count = weights.numel()
    packed = torch.empty((-(-count // 2), 1), dtype=torch.uint8)
    absmax = torch.empty(-(-count // blocksize), dtype=torch.float32)
    thresholds, bytes_of = _thresholds(quant_type)
    beyond = torch.empty(PIECE, dtype=torch.float32)
    whole = count - count % blocksize
    for start in range(0, whole, PIECE):
        blocks = weights[start : min(start + PIECE, whole)].float().view(-1, blocksize)
        scales = torch.amax(blocks.abs(), dim=1, out=absmax[start // blocksize :][: len(blocks)])
        scaled = blocks * (1.0 / scales.clamp(min=SMALLEST)).unsqueeze(1)
        packed.view(-1)[start // 2 :][: scaled.numel() // 2] = _packed(scaled.view(-1), thresholds, beyond)
    if whole < count:
        # bitsandbytes divides the weights of an unfilled block, where it multiplies others by the inverse
        rest = weights[whole:].float()
        absmax[-1] = rest.abs().max().clamp(min=SMALLEST)
        scaled = torch.nn.functional.pad(rest / absmax[-1], (0, len(rest) % 2))
        packed.view(-1)[whole // 2 :] = _packed(scaled, thresholds, beyond)
    if bytes_of is not None:
        packed = bytes_of.index_select(0, packed.view(-1).int()).view(-1, 1)
    return packed, absmax


def _packed(scaled: Tensor, thresholds: list[float], beyond: Tensor) -> Tensor:
    """Return the ranks among the thresholds of values (n,), n even, as bytes (n / 2,), the first in the high half."""
    # counted in the dtype of what is compared: a change of dtype on the way would cost more than all the rest
    mask, ranks = beyond[: scaled.numel()], torch.zeros_like(scaled)
    for threshold in thresholds:
        ranks += torch.gt(scaled, threshold, out=mask)
    # a pair of bytes as one number, whose low byte comes first
    pairs = ranks.to(torch.uint8).view(torch.int16)
    return ((pairs & 15) << 4 | pairs >> 8).to(torch.uint8)


@functools.cache
def _thresholds(quant_type: str) -> tuple[list[float], Tensor | None]:
    """Return the 15 values between neighbouring levels, and what bytes of ranks are in codes if not themselves."""
    levels = bnb.get_4bit_type(quant_type, device="cpu")
    order = torch.argsort(levels)
    middles = ((levels[order[:-1]] + levels[order[1:]]) / 2).tolist()
    codes = order.to(torch.uint8)
    every = (codes.view(16, 1) << 4 | codes).view(-1)
    return middles, None if torch.equal(codes, torch.arange(16, dtype=torch.uint8)) else every
