"""Codes packed into bytes, against arithmetic on whole numbers."""

from __future__ import annotations

import pytest
import torch

from lorakit.hooks.packing import WIDTHS, pack, packed_bytes, unpack


@pytest.mark.parametrize("count", [0, 1, 7, 8, 64, 101])
@pytest.mark.parametrize("bits", WIDTHS)
def test_codes_come_back_from_the_fewest_whole_words(bits: int, count: int) -> None:
    codes = torch.randint(0, 2**bits, (count,), generator=torch.Generator().manual_seed(bits), dtype=torch.uint8)
    packed = pack(codes, bits)
    # all codes as one number, the first in the lowest bits
    number = sum(code << (bits * index) for index, code in enumerate(codes.tolist()))
    assert packed.tolist() == list(number.to_bytes(packed_bytes(count, bits), "little"))
    assert torch.equal(unpack(packed, bits, count), codes)
    assert packed_bytes(count, bits) * 8 - count * bits < {3: 24, 6: 24}.get(bits, 8)


def test_the_order_is_that_of_the_rows() -> None:
    codes = torch.tensor([[1, 2], [3, 0]])
    assert pack(codes, 2).tolist() == [1 + 2 * 4 + 3 * 16]


def test_other_widths_are_refused() -> None:
    with pytest.raises(ValueError, match="not 5"):
        pack(torch.zeros(3), 5)
