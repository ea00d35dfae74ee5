"""What is built of a plan: shared where layers are alike, held to its protocol, and undone whole if anything fails."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import pytest
import torch
from plugged import plugins_of
from torch import nn

import lorakit
from lorakit.application.snapshot import unchanged_on_failure
from lorakit.hooks import StartContext
from lorakit.layers.lora_linear import LoRALinear


def test_layers_that_are_alike_share_what_is_planned_of_them() -> None:
    model = nn.Sequential(*(nn.Linear(8, 8, bias=False) for _ in range(3)), nn.Linear(8, 4))
    plan = lorakit.plan("adapt 0,1,2,3 rank 2", model)
    first, second, _, other = plan.entries
    for name in ("shape", "adapter", "bytes", "decided_by"):
        assert getattr(first, name) is getattr(second, name), name
    assert first.adapter is not other.adapter and first.shape != other.shape
    # and entries whose figures stand are the very ones
    again = lorakit.plan(plan, model)
    assert all(one is two for one, two in zip(plan.entries, again.entries, strict=True))


def test_a_default_device_of_torch_is_not_where_adapters_start() -> None:
    model, twin = nn.Sequential(nn.Linear(8, 8)), nn.Sequential(nn.Linear(8, 8))
    lorakit.apply("adapt 0 rank 2", twin)
    with torch.device("meta"):
        lorakit.apply("adapt 0 rank 2", model)
    assert torch.equal(model.get_parameter("0.lora_A"), twin.get_parameter("0.lora_A"))


class _Tied(LoRALinear):
    """A LoRALinear with a module of its own beside the base layer."""

    def __init__(self, *args: Any, inner: nn.Parameter, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.inner = nn.Module()
        self.inner.held = inner


@pytest.mark.parametrize("held", ["table", "base", "own"])
def test_what_an_adapter_holds_is_declared_or_the_layers(held: str) -> None:
    def lorakit_adapt_module(module: Any, parameters: Mapping[str, nn.Parameter]) -> nn.Module:
        own = {"table": parameters["lora_A"], "base": module.weight, "own": nn.Parameter(torch.zeros(1))}[held]
        return _Tied(module, **parameters, scaling=1.0, inner=own)

    plugins = plugins_of(lorakit_adapt_module=lorakit_adapt_module)
    model = nn.Sequential(nn.Linear(8, 8))
    spec = lorakit.parse("adapt 0 rank 2", plugins=plugins)
    if held == "own":
        with pytest.raises(lorakit.PluginError, match=r"holds a parameter `inner\.held` which its method does not"):
            lorakit.apply(spec, model, plugins=plugins)
        assert type(model[0]) is nn.Linear
    else:
        assert type(lorakit.apply(spec, model, plugins=plugins).get_submodule("0")) is _Tied


def test_an_initializer_does_not_ask_for_another() -> None:
    @dataclass(frozen=True)
    class Asking:
        """Hands its work on."""

        name: ClassVar[str] = "asking"

        def initialize(self, lora_A: torch.Tensor, lora_B: torch.Tensor, context: StartContext) -> None:
            context.initialize(lora_A, lora_B)

    plugins = plugins_of(lorakit_initializers=lambda: [Asking])
    with pytest.raises(lorakit.PluginError, match=r"`asking` of .* failed on `0` .*fills the matrices itself"):
        lorakit.apply(
            lorakit.parse("adapt 0 rank 2 init asking", plugins=plugins),
            nn.Sequential(nn.Linear(8, 8)),
            plugins=plugins,
        )


def test_what_a_block_did_to_modules_is_undone() -> None:
    class Odd(nn.ReLU):
        pass

    model: Any = nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4), nn.ReLU())
    shared = {"one": 1}
    model[0].notes, model[2].notes, model[2].words = shared, shared, {"a", "b"}
    model[0].weight.requires_grad_(False)
    model[1].register_buffer("scratch", torch.ones(1), persistent=False)
    handle = model[2].register_forward_hook(lambda *_: None)
    before = [(type(one), list(vars(one)), copy.copy(list(vars(one).values()))) for one in model.modules()]
    held = [{name: copy.copy(value) for name, value in vars(one).items()} for one in model.modules()]
    with pytest.raises(RuntimeError, match="undone"), unchanged_on_failure(model):
        handle.remove()
        model[2].__class__ = Odd
        model[2].words.discard("a")
        model[2].mark = model[0].mark = 1
        shared.clear()
        del model[2].notes
        model[1]._non_persistent_buffers_set.clear()
        model[1].running_mean = torch.ones(4)
        model[0].requires_grad_(True)
        model[1].weight.requires_grad_(False)
        model.append(nn.ReLU()).eval()
        model[0], model[2] = nn.ReLU(), model[0]
        raise RuntimeError("to be undone")
    for one, (kind, names, values), contents in zip(model.modules(), before, held, strict=True):
        assert (type(one), list(vars(one))) == (kind, names)
        assert all(now is then for now, then in zip(vars(one).values(), values, strict=True))
        assert all(
            (value == contents[name] if isinstance(value, set) else list(value) == list(contents[name]))
            for name, value in vars(one).items()
            if isinstance(value, dict | set | frozenset)
        )
    assert not model[0].weight.requires_grad and model[1].weight.requires_grad and shared == {"one": 1}
