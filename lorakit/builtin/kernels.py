"""Registers the built-in kernels: one for every storage, and those that know the built-in ones better."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from lorakit.builtin.fourbit import FourBit
from lorakit.builtin.int8 import Int8
from lorakit.hooks.protocols import Kernel, Linear
from lorakit.hooks.specs import hookimpl
from lorakit.values import Storage


@dataclass(frozen=True)
class Dequantized:
    """Dequantizes for each product, as the quantizer says; fits every storage."""

    name: ClassVar[str] = "dequantized"

    def linear(self, storage: Storage) -> Linear | None:
        from lorakit.layers.kernels.dequantized import dequantizing

        return dequantizing(storage)


@dataclass(frozen=True)
class FourBitKernel:
    """Dequantizes nf4 and fp4 by one op for each product, doubled scales too."""

    name: ClassVar[str] = "four_bit"

    def linear(self, storage: Storage) -> Linear | None:
        if not isinstance(storage.quantizer, FourBit):
            return None
        from lorakit.layers.kernels.fourbit import four_bit

        return four_bit(storage)


@dataclass(frozen=True)
class LLMInt8:
    """LLM.int8(): multiplies eight-bit codes of both sides, and inputs with outliers in 16 bits beside them."""

    name: ClassVar[str] = "llm_int8"

    def linear(self, storage: Storage) -> Linear | None:
        if not isinstance(storage.quantizer, Int8):
            return None
        from lorakit.layers.kernels.int8 import llm_int8

        return llm_int8(storage)


@hookimpl
def lorakit_kernels() -> list[Kernel]:
    return [Dequantized(), FourBitKernel(), LLMInt8()]
