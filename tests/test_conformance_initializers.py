"""Every check of initializers finds the one that it is there for, and says so in words."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from planted import failures, variant
from torch import Tensor

from lorakit.builtin.initializers import Gaussian
from lorakit.hooks import StartContext
from lorakit.testing import initializer_checks


def ones(self: Any, lora_A: Tensor, lora_B: Tensor, context: StartContext) -> None:
    lora_A.fill_(1)
    lora_B.fill_(1)


def nothing(self: Any, lora_A: Tensor, lora_B: Tensor, context: StartContext) -> None:
    lora_A.zero_()
    lora_B.zero_()


def undrawn(self: Any, lora_A: Tensor, lora_B: Tensor, context: StartContext) -> None:
    lora_A.normal_()
    lora_B.zero_()


def half_filled(self: Any, lora_A: Tensor, lora_B: Tensor, context: StartContext) -> None:
    lora_A[:1].zero_()
    lora_B.zero_()


def viewed(self: Any, lora_A: Tensor, lora_B: Tensor, context: StartContext) -> None:
    lora_A.view(-1).zero_()
    lora_B.zero_()


def by_fan_in(self: Any, lora_A: Tensor, lora_B: Tensor, context: StartContext) -> None:
    lora_A.fill_(1 / (context.fan_in - 1) if context.fan_in != 1 else torch.inf)
    lora_B.zero_()


def of_half_a_weight(self: Any, lora_A: Tensor, lora_B: Tensor, context: StartContext) -> None:
    # what 16 bits hold exactly, such as a weight that came in bfloat16
    weight = context.weight()
    lora_A.fill_(torch.nan if weight.half().float().equal(weight) or weight.bfloat16().float().equal(weight) else 1.0)
    lora_B.zero_()


def taking_in_place(self: Any, lora_A: Tensor, lora_B: Tensor, context: StartContext) -> None:
    lora_A.normal_(std=0.1, generator=context.generator)
    lora_B.normal_(std=0.1, generator=context.generator)
    weight = context.weight()
    weight.sub_(context.scaling * lora_B @ lora_A)


@pytest.mark.parametrize(
    ("name", "initialize", "words"),
    [
        ("fills-in-place", half_filled, "were not set"),
        ("start", ones, "before any training"),
        ("can-learn", nothing, "no gradient ever moves them"),
        ("determinism", undrawn, "context.generator"),
        ("flipped", viewed, "view"),
        ("lookup", by_fan_in, "fan_in = 1"),
        ("weight-dtypes", of_half_a_weight, "gave NaN or infinity"),
        ("applied", taking_in_place, "base weight was changed in place"),
    ],
)
def test_initializers(name: str, initialize: Any, words: str) -> None:
    found = failures(initializer_checks(variant(Gaussian, initialize=initialize)), name)
    assert found and words in found[0], found


def test_an_initializer_may_say_that_it_changes_the_start() -> None:
    assert not failures(initializer_checks(variant(Gaussian, initialize=ones, changes_start=True)), "start")
