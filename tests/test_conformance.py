"""Every built-in keeps what is asked of every plugin."""

from __future__ import annotations

import pytest

from lorakit.builtin import roles
from lorakit.builtin.fourbit import FP4, NF4
from lorakit.builtin.initializers import Gaussian, Kaiming
from lorakit.builtin.int8 import Int8
from lorakit.builtin.lora import LoRA
from lorakit.builtin.optimizers import SGD, AdamW, AdamW8bit
from lorakit.plugins import load_plugins
from lorakit.testing import (
    Check,
    initializer_checks,
    method_checks,
    optimizer_checks,
    quantizer_checks,
    role_checks,
)
from lorakit.testing.companions import COMPANIONS

CHECKS = {
    "nf4": quantizer_checks(NF4),
    "nf4-double": quantizer_checks(NF4, double=True),
    "nf4-4096": quantizer_checks(NF4, blocksize=4096),
    "fp4": quantizer_checks(FP4),
    "fp4-double": quantizer_checks(FP4, double=True),
    "int8": quantizer_checks(Int8),
    "gaussian": initializer_checks(Gaussian),
    "gaussian-sigma": initializer_checks(Gaussian, sigma=0.5),
    "kaiming": initializer_checks(Kaiming),
    "adamw": optimizer_checks(AdamW),
    "adamw-decay": optimizer_checks(AdamW, weight_decay=0.1),
    "adamw8bit": optimizer_checks(AdamW8bit),
    "sgd": optimizer_checks(SGD),
    "sgd-nesterov": optimizer_checks(SGD, momentum=0.9, nesterov=True),
    "lora": method_checks(LoRA),
    # two methods that are not LoRA-shaped; the suite's own module may import torch
    **{one.name: [check for check in method_checks(one) if check.name != "import-without-torch"] for one in COMPANIONS},
    **{f"@{role.name}": role_checks(role) for role in roles.lorakit_roles()},
}


@pytest.mark.parametrize(
    "check", [pytest.param(check, id=f"{name}-{check}") for name, found in CHECKS.items() for check in found]
)
def test_every_built_in_keeps_what_is_asked_of_every_plugin(check: Check) -> None:
    check()


def test_no_built_in_is_left_out() -> None:
    plugins = load_plugins()
    for registry in (plugins.quantizers, plugins.initializers, plugins.optimizers, plugins.methods):
        assert set(registry) <= set(CHECKS)
    assert {f"@{name}" for name in plugins.roles} <= set(CHECKS)
