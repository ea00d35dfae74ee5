"""Codes of a few bits, packed into bytes without a gap: what a quantizer of any width can store its weight in.

The shortest run of whole bytes that whole codes fill is a word: 1 byte for 1, 2, 4 and 8 bits, 3 bytes for 3 and 6. The
first code takes the lowest bits, the first byte holds the lowest bits of the word.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

WIDTHS = (1, 2, 3, 4, 6, 8)


def packed_bytes(count: int, bits: int) -> int:
    """Return the bytes that `pack` takes for so many codes; the last word is filled up. Raises: ValueError."""
    codes, size = _word(bits)
    return -(-count // codes) * size


def pack(codes: Tensor, bits: int) -> Tensor:
    """Return codes of any shape, each in 0 … 2^bits - 1, packed in their order.

    Shapes: result (packed_bytes(codes.numel(), bits),) uint8. Raises: ValueError for a width that is not in WIDTHS.
    """
    per_word, size = _word(bits)
    flat = codes.flatten().to(torch.int32)
    missing = -flat.numel() % per_word
    words = torch.nn.functional.pad(flat, (0, missing)).view(-1, per_word)
    word = (words << _shifts(per_word, bits, codes.device)).sum(dim=1, keepdim=True, dtype=torch.int32)
    return ((word >> _shifts(size, 8, codes.device)) & 255).to(torch.uint8).flatten()


def unpack(packed: Tensor, bits: int, count: int) -> Tensor:
    """Return the first `count` codes that `pack` packed, as uint8 (count,). Raises: ValueError for an unknown width."""
    per_word, size = _word(bits)
    word = packed.view(-1, size)
    if size > 1:
        word = (word.to(torch.int32) << _shifts(size, 8, packed.device)).sum(dim=1, keepdim=True, dtype=torch.int32)
    codes: Tensor = (word >> _shifts(per_word, bits, packed.device).to(word.dtype)) & (2**bits - 1)
    return codes.to(torch.uint8).flatten()[:count]


def _word(bits: int) -> tuple[int, int]:
    """Return how many codes fill a word, and its bytes."""
    if bits not in WIDTHS:
        raise ValueError(f"codes are packed in {', '.join(map(str, WIDTHS))} bits, not {bits}")
    whole = math.lcm(bits, 8)
    return whole // bits, whole // 8


def _shifts(count: int, step: int, device: torch.device) -> Tensor:
    return torch.arange(0, count * step, step, dtype=torch.int32, device=device)
