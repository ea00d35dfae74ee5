"""`vera` over several layers against PEFT's, and what it shares."""

from __future__ import annotations

import pytest
import torch
from peft import VeraConfig
from peft_twin import assert_same, copied, in_peft, train
from torch import nn

import lorakit
from lorakit.testing import Check, method_checks
from lorakit_methods import VeRA

CHECKS = [*method_checks(VeRA), *method_checks(VeRA, d_initial=0.5)]


@pytest.mark.parametrize("check", CHECKS, ids=str)
def test_conformance(check: Check) -> None:
    check()


def net() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(12, 30), nn.Tanh(), nn.Linear(30, 6), nn.Tanh(), nn.Linear(6, 20))


def test_layers_of_several_sizes_share_matrices_as_large_as_the_largest() -> None:
    inputs = torch.randn(4, 12, generator=torch.Generator().manual_seed(1))
    ours = lorakit.apply("adapt 0,2,4 rank 5 method vera dtype fp32", net().eval(), seed=3)
    assert ours[0].vera_A is ours[2].vera_A is ours[4].vera_A  # type: ignore[index]
    assert ours[0].vera_A.shape == (5, 30) and ours[4].vera_B.shape == (30, 5)  # type: ignore[index]
    theirs = in_peft(net().eval(), VeraConfig(r=5, target_modules=["0", "2", "4"]))
    copied(ours, theirs)
    assert_same(ours, theirs, inputs)
    train(ours, inputs)
    train(theirs, inputs)
    assert_same(ours, theirs, inputs)


def test_shared_matrices_are_counted_once_and_do_not_train() -> None:
    plan = lorakit.plan("adapt 0,2,4 rank 5 method vera", net())
    vectors = (30 + 5) + (6 + 5) + (20 + 5)
    assert plan.trainable == vectors
    assert plan.added == vectors + 5 * 30 + 30 * 5
    summary = lorakit.summary(lorakit.apply(plan, net()))
    assert summary.added_parameters == plan.added and summary.trainable_parameters == plan.trainable


def test_ranks_may_differ_and_peft_is_told_nothing_then() -> None:
    model = lorakit.apply("adapt 0 rank 5 method vera dtype fp32\nadapt 2,4 rank 3 method vera dtype fp32", net())
    assert model[2].vera_lambda_d.shape == (3,) and model[0].vera_A is model[2].vera_A  # type: ignore[index]
    inputs = torch.randn(4, 12)
    train(model, inputs)
    wanted = model(inputs)
    torch.testing.assert_close(lorakit.merge(model)(inputs), wanted, rtol=1e-5, atol=1e-5)
