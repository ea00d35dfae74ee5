"""`dora` beyond what the matrix compares: its dropout, its zero rows, its parents."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from peft import LoraConfig
from peft_twin import copied, in_peft, inputs_of, model_of, train
from torch import nn

import lorakit
from lorakit.testing import Check, method_checks
from lorakit_methods import DoRA


@pytest.mark.parametrize("check", method_checks(DoRA), ids=str)
def test_conformance(check: Check) -> None:
    check()


def test_a_fresh_adapter_with_16_bits_leaves_a_quantized_base_as_it_is() -> None:
    inputs = inputs_of("linear")
    layer = lorakit.apply("adapt layer rank 3 method dora quant nf4 double", model_of("linear")).get_submodule("layer")
    assert layer.lora_A.dtype == torch.bfloat16
    torch.testing.assert_close(layer(inputs), layer.get_submodule("base_layer")(inputs), rtol=1e-6, atol=1e-6)


def test_dropout_acts_on_the_whole_product_as_in_peft() -> None:
    inputs = inputs_of("linear")
    ours = lorakit.apply("adapt layer rank 3 alpha 6 dropout 0.5 method dora dtype fp32", model_of("linear"))
    config = LoraConfig(r=3, lora_alpha=6, target_modules=["layer"], use_dora=True, lora_dropout=0.5)
    theirs = in_peft(model_of("linear"), config)
    with torch.no_grad():
        ours.get_submodule("layer").lora_B.normal_(generator=torch.Generator().manual_seed(3))  # type: ignore[operator]
    copied(ours, theirs)
    found = []
    for model in (ours.train(), theirs.train()):
        torch.manual_seed(4)
        found.append(model(inputs))
    torch.testing.assert_close(*found, rtol=1e-5, atol=1e-5)


def test_an_output_that_nothing_reaches_is_its_bias_and_leaves_the_others_finite() -> None:
    model, inputs = model_of("linear"), inputs_of("linear")
    bias = model.get_submodule("layer").bias
    with torch.no_grad():
        model.get_parameter("layer.weight")[5] = 0.0
    model = lorakit.apply("adapt layer rank 3 method dora dtype fp32", model)
    train(model, inputs)
    outputs = model.get_submodule("layer")(inputs)
    assert bool(outputs.isfinite().all())
    torch.testing.assert_close(outputs[..., 5], bias[5].expand(4, 3))  # type: ignore[index]


def test_a_parent_that_computes_with_the_weight_sees_the_adapter() -> None:
    torch.manual_seed(0)
    attention = nn.MultiheadAttention(16, 2, batch_first=True)
    x = torch.randn(2, 5, 16)
    model: Any = lorakit.apply("adapt out_proj rank 2 method dora dtype fp32", attention)
    with torch.no_grad():
        model.out_proj.lora_B.normal_()
    found = {}
    for training in (True, False):
        found[training], _ = model.train(training)(x, x, x)
    found[True].square().sum().backward()
    assert bool(model.out_proj.magnitude.grad.any())
    plain = lorakit.merge(model)
    wanted, _ = plain(x, x, x)
    for outputs in found.values():
        torch.testing.assert_close(outputs, wanted, rtol=1e-5, atol=1e-5)
