"""torchao's weight-only formats as quantizers of lorakit: `ao_int4`, `ao_int8`, `ao_float8` and `ao_nvfp4`."""

from __future__ import annotations

from lorakit import hookimpl
from lorakit.hooks import Kernel, Quantizer
from lorakit_torchao.float8 import Float8
from lorakit_torchao.int4 import Int4
from lorakit_torchao.int8 import Int8
from lorakit_torchao.kernel import Untraced
from lorakit_torchao.nvfp4 import NVFP4

__all__ = ["NVFP4", "Float8", "Int4", "Int8", "lorakit_kernels", "lorakit_quantizers"]


@hookimpl
def lorakit_quantizers() -> list[type[Quantizer]]:
    return [Int4, Int8, Float8, NVFP4]


@hookimpl
def lorakit_kernels() -> list[Kernel]:
    return [Untraced()]
