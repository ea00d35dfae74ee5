"""An adapted Linear in few ops, for whoever watches its base layer, swaps its parameters or maps over them too."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call, grad, stack_module_state, vmap
from torch.nn.modules.module import register_module_forward_hook
from torch.nn.utils import parametrize
from torch.utils._python_dispatch import TorchDispatchMode

import lorakit
from helpers import randomize

SHAPES = ((8,), (3, 8), (2, 3, 8), (2, 3, 4, 8), (0, 8), (2, 0, 8))
VIEWS = {"t", "view", "_unsafe_view", "detach"}


def adapted(bias: bool = True, seed: int = 0) -> Any:
    torch.manual_seed(seed)
    model = lorakit.apply("adapt 0 rank 2 alpha 8", nn.Sequential(nn.Linear(8, 6, bias=bias)))
    randomize(model, seed)
    return model


def expected(model: nn.Sequential, x: Tensor) -> Tensor:
    layer: Any = model[0]
    changed = layer.base_layer.weight + 4.0 * layer.lora_B @ layer.lora_A
    return nn.functional.linear(x, changed, layer.base_layer.bias)


class Ops(TorchDispatchMode):
    """Names what reaches the kernels, beside views."""

    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func.overloadpacket.__name__
        if name not in VIEWS:
            self.names.append(name)
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("shape", SHAPES)
def test_inputs_of_any_shape_give_what_the_changed_weight_gives(shape: tuple[int, ...], bias: bool) -> None:
    model = adapted(bias)
    x = torch.randn(shape)
    torch.testing.assert_close(model(x), expected(model, x))


@pytest.mark.parametrize("bias", [True, False])
def test_a_forward_is_three_products(bias: bool) -> None:
    model, x = adapted(bias), torch.randn(2, 3, 8)
    with Ops() as ops:
        model(x)
    assert ops.names == ["addmm" if bias else "mm", "mm", "addmm_"]


def by_hook(layer: nn.Module, look: Callable[[Tensor], None]) -> Any:
    return layer.register_forward_hook(lambda module, inputs, output: look(output))


def by_hook_on_every_module(layer: nn.Module, look: Callable[[Tensor], None]) -> Any:
    return register_module_forward_hook(lambda module, inputs, output: look(output) if module is layer else None)


def by_forward(layer: nn.Module, look: Callable[[Tensor], None]) -> None:
    before = layer.forward

    def forward(x: Tensor) -> Tensor:
        result: Tensor = before(x)
        look(result)
        return result

    layer.forward = forward


@pytest.mark.parametrize("watch", [by_hook, by_hook_on_every_module, by_forward])
def test_whoever_watches_the_base_layer_keeps_what_it_computes(watch: Callable[..., Any]) -> None:
    model = adapted()
    base: Any = model[0].base_layer
    x = torch.randn(2, 3, 8)
    seen: list[Tensor] = []
    handle = watch(base, seen.append)
    try:
        torch.testing.assert_close(model(x), expected(model, x))
    finally:
        if handle is not None:
            handle.remove()
    (output,) = seen
    torch.testing.assert_close(output, nn.functional.linear(x, base.weight, base.bias))


@pytest.mark.parametrize(
    "register", ["register_forward_pre_hook", "register_full_backward_pre_hook", "register_full_backward_hook"]
)
def test_hooks_of_every_kind_reach_the_base_layer(register: str) -> None:
    model = adapted()
    calls: list[str] = []
    getattr(model[0].base_layer, register)(lambda *_: calls.append(register))
    model(torch.randn(3, 8, requires_grad=True)).sum().backward()
    assert calls == [register]


class Doubled(nn.Module):
    def forward(self, tensor: Tensor) -> Tensor:
        return 2.0 * tensor


def test_parameters_that_are_swapped_or_parametrized_are_multiplied() -> None:
    model, x = adapted(), torch.randn(2, 3, 8)
    doubled = {name: 2.0 * parameter.detach() for name, parameter in model.named_parameters()}
    twice = copy.deepcopy(model)
    twice.load_state_dict(doubled)
    want = expected(twice, x)
    torch.testing.assert_close(functional_call(model, doubled, (x,)), want)
    for module, name in ((model[0].base_layer, "weight"), (model[0].base_layer, "bias"), (model[0], "lora_A")):
        parametrize.register_parametrization(module, name, Doubled())
    parametrize.register_parametrization(model[0], "lora_B", Doubled())
    torch.testing.assert_close(model(x), want)


def test_adapters_are_mapped_over_at_once() -> None:
    models, x = [adapted(seed=seed) for seed in range(3)], torch.randn(2, 3, 8)
    for model in models:
        model[0].base_layer.load_state_dict(models[0][0].base_layer.state_dict())
    stacked, _ = stack_module_state(models)
    matrices = {name: tensor for name, tensor in stacked.items() if "lora_" in name}
    mapped = vmap(lambda chosen: functional_call(models[0], chosen, (x,)))(matrices)
    torch.testing.assert_close(mapped, torch.stack([model(x) for model in models]))


def test_gradients_of_each_sample_are_those_of_one() -> None:
    model, x = adapted(), torch.randn(4, 3, 8)
    matrices = {name: tensor.detach() for name, tensor in model.named_parameters() if "lora_" in name}

    def loss(chosen: dict[str, Tensor], one: Tensor) -> Tensor:
        return functional_call(model, chosen, (one,)).square().sum()

    gradients = vmap(grad(loss), in_dims=(None, 0))(matrices, x)
    for index, one in enumerate(x):
        model.zero_grad()
        model(one).square().sum().backward()
        for name in matrices:
            torch.testing.assert_close(gradients[name][index], model.get_parameter(name).grad)


def test_the_ops_compile_into_one_graph_whatever_the_shape() -> None:
    model = adapted()
    compiled = torch.compile(model, backend="aot_eager", fullgraph=True, dynamic=True)
    for shape in ((2, 3, 8), (4, 5, 8)):
        x = torch.randn(shape, requires_grad=True)
        trained = [x, model[0].lora_A, model[0].lora_B]
        given = torch.autograd.grad(compiled(x).square().sum(), trained)
        torch.testing.assert_close(given, torch.autograd.grad(expected(model, x).square().sum(), trained))
