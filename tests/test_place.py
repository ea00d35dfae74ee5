"""Where entries of a plan lie in a model, against torch's own names."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import lorakit
from architectures import ARCHITECTURES
from lorakit.planning.place import Place


@pytest.mark.parametrize("name", ["llama", "mixtral", "gpt2"])
def test_every_entry_of_a_plan_names_a_parameter_and_its_module(name: str) -> None:
    model = ARCHITECTURES[name].build()
    parameters = dict(model.named_parameters())
    targets = "@linear,@experts" if name == "mixtral" else "@linear"
    places = [Place.of(entry) for entry in lorakit.plan(f"adapt {targets} rank 2", model).entries]
    assert any(place.is_parameter for place in places) == (name == "mixtral")
    for place in places:
        module = model.get_submodule(place.module)
        assert dict(module.named_parameters(recurse=False))[place.parameter] is parameters[place.weight]


def test_holder_and_leaf_lead_back_to_the_module() -> None:
    model = nn.Sequential(nn.Sequential(nn.Linear(2, 2)), nn.Linear(2, 2))
    for path, module in model.named_modules():
        place = Place(path)
        if path:
            assert getattr(model.get_submodule(place.holder), place.leaf) is module
            assert Place(place.holder).inside(place.leaf) == path
        assert place.inside("") == path


def test_the_model_itself_may_be_the_layer_or_hold_the_parameter() -> None:
    layer, place = nn.Linear(2, 2), Place("")
    assert (place.module, place.parameter, place.weight, place.inside("bias")) == ("", "weight", "weight", "bias")
    assert torch.equal(layer.state_dict()[place.weight], layer.weight)
    stack = Place("down_proj", is_parameter=True)
    assert (stack.module, stack.parameter, stack.weight) == ("", "down_proj", "down_proj")
