"""`dora` against PEFT's LoRA with use_dora."""

from __future__ import annotations

import pytest
from peft import LoraConfig
from peft_twin import check_against_peft

from lorakit.testing import Check, method_checks
from lorakit_methods import DoRA

BASES = [
    ("linear", ""),
    ("linear", "quant nf4 double"),
    ("linear", "quant hqq"),
    ("linear_transposed", ""),
    ("conv2d", ""),
    ("embedding", ""),
]


@pytest.mark.parametrize("check", method_checks(DoRA), ids=str)
def test_conformance(check: Check) -> None:
    check()


@pytest.mark.parametrize("init", ["gaussian", "orthogonal"])
@pytest.mark.parametrize(("kind", "quant"), BASES)
def test_it_starts_and_trains_as_in_peft(kind: str, quant: str, init: str) -> None:
    config = LoraConfig(r=3, lora_alpha=6, target_modules=["layer"], use_dora=True)
    check_against_peft(f"rank 3 alpha 6 init {init} method dora {quant}", kind, config, same_start="magnitude")
