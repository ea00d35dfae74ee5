"""Every check of kernels finds the one that it is there for, and says so in words."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import pytest
from planted import failures
from test_conformance_quantizers import QUANTIZERS
from torch import Tensor, nn

from lorakit.builtin.int8 import Int8
from lorakit.builtin.kernels import LLMInt8
from lorakit.hooks import QuantizedWeight
from lorakit.testing import kernel_checks, quantizer_checks


def dequantized(x: Tensor, base: Mapping[str, Tensor]) -> Tensor:
    weight = Int8().dequantize(QuantizedWeight(base, tuple(base["CB"].shape), x.dtype))  # type: ignore[arg-type]
    return nn.functional.linear(x, weight)


def growing(x: Tensor, base: Mapping[str, Tensor], bias: Any, low_rank: Any) -> Tensor:
    base["SCB"].mul_(1.001)
    return dequantized(x, base)


@dataclasses.dataclass(frozen=True)
class Kernel:
    """Multiplies as it is told, or not at all."""

    multiply: Any
    name: str = "mine"

    def linear(self, storage: Any) -> Any:
        return self.multiply


KERNELS: dict[str, tuple[Kernel, str]] = {
    "kernel-name": (Kernel(None, "no name"), "a kernel is an instance with a name"),
    "kernel-fits": (Kernel(None), "returned None for a layer of int8"),
    "forward": (Kernel(lambda x, base, bias, low: dequantized(x, base)), "`linear` is off by"),
    "no-outputs": (Kernel(lambda x, base, bias, low: x), "expected (2, 0)"),
    "input-gradient": (Kernel(lambda x, base, bias, low: dequantized(x.detach(), base)), "need no gradient although"),
    "autocast": (Kernel(lambda x, base, bias, low: dequantized(x, base).float()), "under autocast"),
    "adapters": (Kernel(lambda x, base, bias, low: dequantized(x, base)), "with adapters the outputs are off by"),
    "forward-stores-nothing": (Kernel(growing), "a forward changed what is stored"),
    "state-dict": (Kernel(lambda x, base, bias, low: x[..., :48]), "two layers of different weights"),
}


@pytest.mark.parametrize("name", KERNELS)
def test_kernels(name: str) -> None:
    kernel, words = KERNELS[name]
    found = failures(kernel_checks(kernel, Int8), name)
    assert found and words in found[0], found


def test_every_check_of_quantizers_and_kernels_is_seen_to_fail() -> None:
    names = {check.name for check in (*quantizer_checks(Int8), *kernel_checks(LLMInt8(), Int8))}
    assert names == QUANTIZERS.keys() | KERNELS.keys()
