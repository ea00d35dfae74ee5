"""Four-bit quantization on the CPU: bitsandbytes' bits, several times as fast.

bitsandbytes' CPU code searches for each weight among the 15 thresholds between the levels; here a table gives the one
threshold that is near, and all weights of a piece, which fits a processor's cache, are compared with theirs at once.
"""

from __future__ import annotations

import functools
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import bitsandbytes.functional as bnb
import torch
from torch import Tensor

# weights at once, in whole blocks: torch shares out 2**15 and more among its threads, which wait for each other at each
# operation, and for milliseconds where something else has a core
PIECE = 7 * 2**12
# what is worth a thread; of more than so many threads some would wait for Python
PIECES_A_THREAD, MOST_THREADS = 8, 4
# parts of the range from -1 to 1, each narrower than the way from one threshold to the next
BUCKETS = 1024
# from -1 to 0 in buckets; 1, and what a largest weight may be rounded up to, is in the last of them
HALF = BUCKETS / 2 - 0.25
# a block without any weight but zeros has a scale of 0, and bitsandbytes divides by this instead
SMALLEST = 1e-38


def quantize_4bit(weights: Tensor, blocksize: int, quant_type: str) -> tuple[Tensor, Tensor]:
    """Return finite weights (n,) packed as (n / 2, 1) and their scales (n / blocksize,), both rounded up."""
    weights, count = weights.detach(), weights.numel()
    packed = torch.empty(-(-count // 2), dtype=torch.uint8)
    absmax = torch.empty(-(-count // blocksize), dtype=torch.float32)
    levels = _levels(quant_type)
    whole = count - count % blocksize
    # whoever is done with a piece takes the next
    starts = iter(range(0, whole, PIECE))
    inference = torch.is_inference_mode_enabled()

    def work(_: int) -> None:
        # which is a thread's own
        with torch.inference_mode(inference):
            for start in starts:
                blocks = weights[start : min(start + PIECE, whole)].float().view(-1, blocksize)
                scales = torch.amax(blocks.abs(), dim=1, out=absmax[start // blocksize :][: len(blocks)])
                scaled = blocks * scales.clamp(min=SMALLEST).reciprocal_().unsqueeze(1)
                levels.pack(scaled.view(-1), packed[start // 2 :][: scaled.numel() // 2])

    threads = min(torch.get_num_threads(), MOST_THREADS, whole // (PIECES_A_THREAD * PIECE))
    if threads > 1:
        with ThreadPoolExecutor(threads) as pool:
            list(pool.map(work, range(threads)))
    else:
        work(0)
    if whole < count:
        # bitsandbytes divides the weights of an unfilled block, where it multiplies others by the inverse
        rest = weights[whole:].float()
        absmax[-1] = rest.abs().max().clamp(min=SMALLEST)
        levels.pack(torch.nn.functional.pad(rest / absmax[-1], (0, len(rest) % 2)), packed[whole // 2 :])
    return packed.view(-1, 1), absmax


@dataclass(frozen=True, slots=True)
class _Levels:
    """The 16 levels of a four-bit format: of each bucket the nearest `threshold`, and how many thresholds are `below`.

    `bytes_of` is what bytes of ranks are in codes, None where codes rank as their levels do.
    """

    threshold: Tensor
    below: Tensor
    bytes_of: Tensor | None

    def pack(self, scaled: Tensor, packed: Tensor) -> None:
        """Write the codes of values (n,) from -1 to 1, n even, as bytes (n / 2,), the first in the high half."""
        bucket = (scaled * HALF).add_(HALF).int()
        # in the dtype of what is compared: to change it on the way would cost more
        near = self.threshold.index_select(0, bucket)
        ranks = torch.gt(scaled, near, out=near).add_(self.below.index_select(0, bucket))
        # by way of 16 bits, which takes a third of the time; a pair of bytes is a number whose low byte comes first
        pairs = ranks.short().to(torch.uint8).view(torch.int16)
        packed.copy_((pairs >> 8).add_(pairs, alpha=16))
        if self.bytes_of is not None:
            packed.copy_(self.bytes_of.index_select(0, packed.int()))


@functools.cache
def _levels(quant_type: str) -> _Levels:
    levels = bnb.get_4bit_type(quant_type, device="cpu")
    order = torch.argsort(levels)
    thresholds = (levels[order[:-1]] + levels[order[1:]]) / 2
    middles = (torch.arange(BUCKETS) + 0.5) / HALF - 1
    # right for a whole bucket and beyond: no second threshold is as near to its middle as its ends are
    nearest = (middles.unsqueeze(1) - thresholds).abs().argmin(1)
    codes = order.to(torch.uint8)
    every = (codes.view(16, 1) << 4 | codes).view(-1)
    in_order = torch.equal(codes, torch.arange(16, dtype=torch.uint8))
    return _Levels(thresholds[nearest], nearest.float(), None if in_order else every)
