"""`loftq` against the decomposition of what quantizing lost, and what becomes of its folder in PEFT."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from peft_twin import inputs_of, model_of
from torch import Tensor

import lorakit
from lorakit.testing import Check, initializer_checks
from lorakit_methods import LoftQ

RULE = "rank 4 alpha 8 dtype fp32 init loftq"


@pytest.mark.parametrize("check", initializer_checks(LoftQ), ids=str)
def test_conformance(check: Check) -> None:
    check()


def weight_of(model: Any, path: str) -> Tensor:
    weight: Tensor = model.get_submodule(path).weight
    return weight.detach().double()


@pytest.mark.parametrize("quant", ["nf4 double", "int8", "hqq"])
@pytest.mark.parametrize("scaling", ["standard", "rslora"])
def test_no_update_of_its_rank_comes_nearer_to_the_weight(quant: str, scaling: str) -> None:
    plain = weight_of(model_of("linear"), "layer")
    model: Any = lorakit.apply(f"adapt layer {RULE} scaling {scaling} quant {quant}", model_of("linear"))
    stored = weight_of(model, "layer.base_layer")
    begun = stored + model.layer.scaling * (model.layer.lora_B @ model.layer.lora_A).detach().double()
    # Eckart and Young: what is left is the rest of the singular values
    rest = torch.linalg.svdvals(plain - stored)[4:].norm()
    assert float((plain - begun).norm()) == pytest.approx(float(rest), rel=1e-4)
    assert float((plain - begun).norm()) < 0.9 * float((plain - stored).norm())


def test_the_base_stores_what_it_would_without() -> None:
    with_it, without = (
        lorakit.apply(f"adapt layer rank 4 quant nf4 {init}", model_of("linear")) for init in ("init loftq", "")
    )
    assert torch.equal(weight_of(with_it, "layer.base_layer"), weight_of(without, "layer.base_layer"))


def test_where_nothing_is_lost_nothing_changes() -> None:
    inputs = inputs_of("linear")
    model = lorakit.apply(f"adapt layer {RULE}", model_of("linear"))
    with torch.no_grad():
        torch.testing.assert_close(model(inputs), model_of("linear")(inputs))
    assert model.get_parameter("layer.lora_A").std() > 0


def test_peft_loads_what_it_saves(tmp_path: Path) -> None:
    model = lorakit.apply(f"adapt layer {RULE} quant nf4", model_of("linear"))
    lorakit.save(model, tmp_path / "adapter")
    base = model_of("linear")
    with torch.no_grad():
        base.get_parameter("layer.weight").copy_(weight_of(model, "layer.base_layer"))
    theirs, inputs = PeftModel.from_pretrained(base, str(tmp_path / "adapter")), inputs_of("linear")
    with torch.no_grad():
        torch.testing.assert_close(theirs(inputs), model(inputs), rtol=1e-5, atol=1e-5)
