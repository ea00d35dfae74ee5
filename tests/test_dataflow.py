"""One forward on meta tensors: which layers read one tensor, and that nothing of the model changes."""

from __future__ import annotations

import copy
import json
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import lorakit
from architectures import ARCHITECTURES
from helpers import make_llama
from lorakit.planning import codec
from lorakit.planning.inventory import Inventory
from lorakit.planning.plan import Plan
from lorakit.planning.reading import read_inventory
from lorakit.plugins import default_plugins


def inventory_of(model: nn.Module, example: Any = None) -> Inventory:
    return read_inventory(model, default_plugins(), example)


def read_together(model: nn.Module, paths: list[str], inputs: dict[str, Tensor]) -> set[tuple[str, ...]]:
    """Return the layers whose inputs are the same numbers in a real run."""
    seen: dict[str, list[bytes]] = {}

    def note(path: str):  # type: ignore[no-untyped-def]
        def hook(module: nn.Module, args: tuple[Tensor, ...]) -> None:
            seen.setdefault(path, []).append(args[0].detach().numpy().tobytes())

        return hook

    handles = [model.get_submodule(path).register_forward_pre_hook(note(path)) for path in paths]
    with torch.no_grad():
        model(**inputs)
    for handle in handles:
        handle.remove()
    groups: dict[tuple[bytes, ...], list[str]] = {}
    for path in paths:
        if path in seen:
            groups.setdefault(tuple(seen[path]), []).append(path)
    return {tuple(group) for group in groups.values() if len(group) > 1}


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_groups_are_the_layers_that_get_the_same_numbers(name: str) -> None:
    model = ARCHITECTURES[name].build()
    with torch.no_grad():
        # two norms of one tensor agree only as long as they are new
        for value in model.parameters():
            value.add_(0.1 * torch.rand_like(value))
    inventory = inventory_of(model)
    linear = [path for path, module in inventory.modules.items() if module.shape and module.shape.is_linear]
    assert set(inventory.groups) == read_together(model, linear, ARCHITECTURES[name].inputs())
    assert all(module.input is not None for path in linear if (module := inventory.modules[path]).shape.called)  # type: ignore[union-attr]


def test_groups_of_a_llama_and_of_a_parallel_block() -> None:
    attention, mlp = ("q_proj", "k_proj", "v_proj"), ("gate_proj", "up_proj")
    plan = lorakit.plan("adapt q_proj rank 2", make_llama(num_hidden_layers=1))
    assert plan.groups == (
        tuple(f"model.layers.0.self_attn.{name}" for name in attention),
        tuple(f"model.layers.0.mlp.{name}" for name in mlp),
    )
    assert Plan.from_json(plan.to_json()) == plan
    plain = json.loads(plan.to_json())
    del plain["groups"]
    assert Plan.from_json(json.dumps(plain)) == replace(plan, groups=())
    gptj = lorakit.plan("adapt q_proj rank 2", ARCHITECTURES["gptj"].build())
    assert {len(group) for group in gptj.groups} == {4}


class Twice(nn.Module):
    """Reads x through dropout, and again after it was written to."""

    def __init__(self, rate: float) -> None:
        super().__init__()
        self.one, self.two, self.three, self.four = (nn.Linear(8, 8) for _ in range(4))
        self.never = nn.Linear(8, 8, bias=False)
        self.dropout = nn.Dropout(rate)
        self.calls = 0
        self.seen: list[int] = []

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        self.seen.append(1)
        x = x * 1
        y = self.one(x) + self.two(x) + self.three(self.dropout(x))
        with torch.no_grad():
            x += 1
        weight = self.never.weight
        return y + self.four(x) + nn.functional.linear(y, weight)


@pytest.mark.parametrize(("rate", "group"), [(0.0, ("one", "two", "three")), (0.5, ("one", "two"))])
def test_a_plain_model_is_run_with_an_example_alone(rate: float, group: tuple[str, ...]) -> None:
    assert inventory_of(Twice(rate)).groups == ()
    found = inventory_of(Twice(rate), [torch.zeros(2, 8)])
    assert found.groups == (group,)
    # the code of this class tells nothing of `never`, the run does
    assert [path for path, module in found.modules.items() if module.shape and not module.shape.called] == ["never"]
    assert inventory_of(Twice(rate), {"x": torch.zeros(2, 8)}).groups == found.groups
    assert lorakit.plan("adapt one rank 2", Twice(rate), example=torch.zeros(2, 8)).groups == found.groups
    assert inventory_of(Twice(rate), [torch.zeros(2, 9)]).groups == ()


def test_what_was_observed_goes_to_json_and_back() -> None:
    inventory = inventory_of(make_llama())
    assert inventory.kept is not None and inventory.kept.inputs
    plain = json.loads(json.dumps(codec.to_plain(inventory)))
    assert codec.from_plain(Inventory, plain) == inventory


def test_nothing_of_the_model_changes() -> None:
    model = Twice(0.5).train()
    model.one.register_forward_hook(lambda *_: pytest.fail("a hook of the model ran"))
    model.eval().four.train()
    before = {path: copy.copy(vars(module)) for path, module in model.named_modules()}
    state, random = copy.deepcopy(model.state_dict()), torch.get_rng_state()
    assert inventory_of(model, [torch.zeros(2, 8)]).groups
    assert {path: vars(module) for path, module in model.named_modules()} == before
    assert model.calls == 0 and model.seen == [] and model.four.training and not model.one.training
    assert all(torch.equal(state[name], value) for name, value in model.state_dict().items())
    assert torch.equal(random, torch.get_rng_state()) and all(value.grad is None for value in model.parameters())


def test_a_quantized_model_is_looked_at_too() -> None:
    wanted = inventory_of(make_llama()).groups
    model = make_llama()
    plan = lorakit.plan("quantize @linear nf4", model)
    lorakit.apply(plan, model)
    assert inventory_of(model).groups == wanted and len(wanted) == 4
