"""Every built-in keeps what is asked of every plugin."""

from __future__ import annotations

import pytest

from lorakit.builtin.fourbit import FP4, NF4
from lorakit.builtin.int8 import Int8
from lorakit.testing import Check, quantizer_checks

QUANTIZERS = {
    "nf4": quantizer_checks(NF4),
    "nf4-double": quantizer_checks(NF4, double=True),
    "nf4-4096": quantizer_checks(NF4, blocksize=4096),
    "fp4": quantizer_checks(FP4),
    "int8": quantizer_checks(Int8),
}


def named(checks: dict[str, list[Check]]) -> list[object]:
    return [pytest.param(check, id=f"{name}-{check}") for name, found in checks.items() for check in found]


@pytest.mark.parametrize("check", named(QUANTIZERS))
def test_quantizers(check: Check) -> None:
    check()
