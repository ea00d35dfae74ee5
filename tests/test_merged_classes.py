"""A merged model holds the classes that it had, whatever its weights were stored as meanwhile."""

from __future__ import annotations

import copy
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

import lorakit
from lorakit.layers.quantized_linear import QuantizedLinear


class Named(nn.Linear):
    """A Linear of another class, with something of its own."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__(inputs, outputs, bias=False)
        self.role = "named"


def made() -> nn.Sequential:
    torch.manual_seed(0)
    model = nn.Sequential(Conv1D(96, 64), Named(96, 64), nn.Linear(64, 32))
    nn.init.normal_(model[0].bias)  # type: ignore[arg-type]
    return model


def inputs() -> Tensor:
    return torch.randn(5, 64, generator=torch.Generator().manual_seed(1))


def adapted(text: str) -> Any:
    model = lorakit.apply(text, made())
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(torch.linspace(-0.1, 0.1, parameter.numel()).view_as(parameter))
    return model


@pytest.mark.parametrize("quant", ["", "quant nf4 double", "quant int8"])
def test_layers_come_back_as_what_they_were(quant: str) -> None:
    # the last is quantized alone, where the others are
    rest = f"\nquantize 2 {quant.removeprefix('quant ')}" if quant else ""
    model = adapted(f"adapt 0,1 rank 3 dtype fp32 {quant}{rest}")
    with torch.no_grad():
        wanted = model(inputs())
    for one in (copy.deepcopy(model), pickle.loads(pickle.dumps(model)), model):
        merged = lorakit.merge(one)
        assert [type(layer) for layer in merged.children()] == [Conv1D, Named, nn.Linear]
        assert merged[0].weight.shape == (64, 96) and merged[1].role == "named"  # type: ignore[index]
        assert merged.state_dict().keys() == made().state_dict().keys()
        torch.testing.assert_close(merged(inputs()), wanted, rtol=1e-5, atol=1e-5 if "int8" not in quant else 3e-2)


def test_a_layer_that_is_quantized_again_still_knows_what_it_was(tmp_path: Path) -> None:
    model = lorakit.merge(adapted("adapt 0,1 rank 3 dtype fp32 quant nf4"), requantize=True)
    assert all(isinstance(model[place], QuantizedLinear) for place in (0, 1))  # type: ignore[index]
    with torch.no_grad():
        wanted = model(inputs())
    again = lorakit.merge(lorakit.apply("adapt 0,1 rank 2", model))
    assert [type(layer) for layer in again.children()] == [Conv1D, Named, nn.Linear]
    torch.testing.assert_close(again(inputs()), wanted, rtol=1e-5, atol=1e-5)


def test_merging_for_a_while_puts_the_same_classes_under_the_adapters() -> None:
    model = adapted("adapt 0,1 rank 3 dtype fp32 quant nf4")
    with torch.no_grad():
        wanted = model(inputs())
        with lorakit.adapters(model).merged():
            assert type(model[0].base_layer) is Conv1D and type(model[1].base_layer) is Named
            torch.testing.assert_close(model(inputs()), wanted, rtol=1e-5, atol=1e-5)
        assert torch.equal(model(inputs()), wanted)
