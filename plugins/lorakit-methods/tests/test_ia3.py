"""`ia3` beyond what the matrix compares: small steps, and what it refuses."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from peft_twin import inputs_of, model_of
from torch import nn

import lorakit
from lorakit.testing import Check, method_checks
from lorakit_methods import IA3

CHECKS = [*method_checks(IA3), *method_checks(IA3, feedforward=True)]


@pytest.mark.parametrize("check", CHECKS, ids=str)
def test_conformance(check: Check) -> None:
    check()


def test_small_steps_count_over_a_quantized_base_whose_adapters_have_16_bits() -> None:
    model = lorakit.apply("adapt layer method ia3 quant nf4 double", model_of("linear"))
    vector = model.get_parameter("layer.ia3_l")
    model(inputs_of("linear")).square().sum().backward()
    torch.optim.SGD([vector], lr=1e-6).step()
    assert 0 < float((vector - 1).abs().max()) < 2**-9


def test_what_peft_does_not_know_is_not_given_to_it(tmp_path: Path) -> None:
    model = lorakit.apply("adapt 0 method ia3", nn.Sequential(nn.Conv1d(3, 4, 3)))
    folder = lorakit.save(model, tmp_path / "adapter")
    assert json.loads((folder / "adapter_config.json").read_text())["peft_type"] == "LORAKIT_IA3"


@pytest.mark.parametrize("clause", ["rank 4"])
def test_a_clause_that_is_no_setting_of_it_is_refused(clause: str) -> None:
    with pytest.raises(lorakit.SpecError, match="`ia3` takes no `rank`"):
        lorakit.parse(f"adapt q {clause} method ia3")


def test_layers_that_it_does_not_fit_are_named_in_the_plan() -> None:
    with pytest.raises(lorakit.PlanError, match="`ia3` has no adapter for `0`, a Embedding"):
        lorakit.plan("adapt 0 method ia3", nn.Sequential(nn.Embedding(10, 4)))
