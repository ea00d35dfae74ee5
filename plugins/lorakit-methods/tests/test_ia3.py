"""`ia3` against PEFT's IA3."""

from __future__ import annotations

import pytest
from peft import IA3Config
from peft_twin import check_against_peft

from lorakit.testing import Check, method_checks
from lorakit_methods import IA3

CHECKS = [*method_checks(IA3), *method_checks(IA3, feedforward=True)]
BASES = [
    ("linear", ""),
    ("linear", "quant nf4 double"),
    ("linear", "quant hqq"),
    ("linear_transposed", ""),
    ("conv2d", ""),
]


@pytest.mark.parametrize("check", CHECKS, ids=str)
def test_conformance(check: Check) -> None:
    check()


@pytest.mark.parametrize("feedforward", [False, True])
@pytest.mark.parametrize(("kind", "quant"), BASES)
def test_it_starts_and_trains_as_in_peft(kind: str, quant: str, feedforward: bool) -> None:
    config = IA3Config(target_modules=["layer"], feedforward_modules=["layer"] if feedforward else [])
    option = "(feedforward=true)" if feedforward else ""
    check_against_peft(f"method ia3{option} {quant}", kind, config, same_start="ia3_l")
