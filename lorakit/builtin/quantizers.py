"""Registers the built-in quantizers."""

from __future__ import annotations

from lorakit.builtin.fourbit import FP4, NF4
from lorakit.builtin.int8 import Int8
from lorakit.hooks.protocols import Quantizer
from lorakit.hooks.specs import hookimpl


@hookimpl
def lorakit_quantizers() -> list[type[Quantizer]]:
    return [NF4, FP4, Int8]
