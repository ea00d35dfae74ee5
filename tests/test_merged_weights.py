"""Four-bit weights written with what adapters add, against float64."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from lorakit.layers.kernels.merging import merged
from lorakit.layers.kernels.product import FourBits


@pytest.mark.parametrize("double", [False, True])
@pytest.mark.parametrize(("rank", "columns"), [(0, 96), (1, 64), (5, 192), (16, 128)])
def test_a_merged_weight_is_rounded_once(double: bool, rank: int, columns: int) -> None:
    import bitsandbytes.functional as bnb

    torch.manual_seed(rank)
    held, pairs, wanted = [], [], []
    for rows in (24, 7):
        packed, state = bnb.quantize_4bit(
            torch.randn(rows, columns), blocksize=32, compress_statistics=double, quant_type="nf4"
        )
        tensors = [packed, state.absmax]
        if double:
            tensors += [state.state2.absmax, state.offset.view(1)]
        held.append(tensors)
        pairs.append((torch.randn(rank, columns).bfloat16(), torch.randn(rows, rank).bfloat16()))
        weight = bnb.dequantize_4bit(packed, state).view(rows, columns)
        wanted.append(weight.double() + 0.7 * pairs[-1][1].double() @ pairs[-1][0].double())
    found = merged(FourBits("nf4", 32), held, pairs, [0.7, 0.7], columns, torch.bfloat16)
    exact = torch.cat(wanted)
    # half of a unit in the last place of bfloat16, and what float32 adds to it
    assert bool(((found.double() - exact).abs() <= exact.abs() * 2**-8 * 1.001 + 1e-6).all())


def test_a_small_change_tells_in_the_mean() -> None:
    """A change below the rounding of a product: added to products it is mostly lost, in merged weights it is not."""
    import bitsandbytes.functional as bnb

    torch.manual_seed(0)
    rows, columns, rank = 256, 1024, 8
    packed, state = bnb.quantize_4bit(torch.randn(rows, columns) * 0.02, blocksize=64, quant_type="nf4")
    weight = bnb.dequantize_4bit(packed, state).float().view(rows, columns)
    lora_A, lora_B = (torch.randn(rank, columns) / rank).bfloat16(), (torch.randn(rows, rank) * 1e-5).bfloat16()
    x = torch.randn(64, columns).bfloat16()
    change = x.double() @ (lora_B.double() @ lora_A.double()).t()
    held = [[packed, state.absmax]]

    def gain(product: Tensor, base: Tensor) -> float:
        return float(((product.double() - base.double()) * change).sum() / change.square().sum())

    def times(matrix: Tensor) -> Tensor:
        return x.double() @ matrix.double().t()

    both = merged(FourBits("nf4", 64), held, [(lora_A, lora_B)], [1.0], columns, torch.bfloat16)
    alone = merged(FourBits("nf4", 64), held, [(lora_A[:0], lora_B[:, :0])], [1.0], columns, torch.bfloat16)
    assert torch.equal(alone, weight.bfloat16())
    assert 0.8 < gain(times(both), times(alone)) < 1.2
    plain = times(alone).bfloat16()
    added = (plain.float() + (x.float() @ lora_A.float().t()).bfloat16().float() @ lora_B.float().t()).bfloat16()
    assert gain(added, plain) < 0.5
