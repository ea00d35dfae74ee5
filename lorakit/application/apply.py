"""Apply a Plan to a model, in two phases: build every replacement, then swap them in."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Sequence

import torch
from torch import nn
from torch.nn.utils import parametrize

from lorakit.adapters.lora_layer import LoRALayer
from lorakit.application.dispatch import move_hook
from lorakit.application.layers import (
    adapter_at,
    holder_of,
    matrix,
    places,
    quantized_layer,
    trained_parameters,
)
from lorakit.application.state import adapted_state, attach
from lorakit.errors import ModelError, PlanError, PluginError
from lorakit.hooks.manager import Plugins
from lorakit.hooks.protocols import InitContext
from lorakit.planning.plan import Plan, PlanEntry

Progress = Callable[[Sequence[PlanEntry]], Iterable[PlanEntry]]


def apply_plan(
    plan: Plan,
    model: nn.Module,
    plugins: Plugins,
    *,
    seed: int = 0,
    initialize: bool = True,
    progress: Progress = iter,
) -> nn.Module:
    """Return the model, adapted in place; a failure while replacements are built leaves it untouched.

    The same plan, weights and seed give the same bits on every device: each adapter draws from a generator of its own.
    Raises: ModelError if the model is adapted already or holds meta tensors, PlanError if it is not the planned one.
    """
    if adapted_state(model) is not None:
        raise ModelError("this model is adapted already; merge it, or load it again, before another plan")
    plugins.call("lorakit_before_apply", model=model, plan=plan)
    modules = dict(model.named_modules())
    _check(plan, model, modules)
    layers = _converted(modules, plugins)
    parameters: list[tuple[PlanEntry, nn.Module]] = []
    for entry in progress(plan.entries):
        if entry.shape is not None and entry.shape.is_parameter:
            if entry.adapter is not None:
                holder, _ = holder_of(model, entry)
                parameters.append((entry, _adapted(holder, entry, plugins, seed if initialize else None)))
            continue
        original = modules[entry.path]
        layer: nn.Module = layers.get(original) or original
        if entry.quant is not None:
            layer = quantized_layer(layer, entry, plugins)
        if entry.adapter is not None:
            layer = _adapted(layer, entry, plugins, seed if initialize else None)
        layers[original] = layer
    for parameter in model.parameters():
        parameter.requires_grad_(False)
    _swap_in(model, layers)
    for entry, adapter in parameters:
        holder, name = holder_of(model, entry)
        parametrize.register_parametrization(holder, name, adapter, unsafe=True)
    for entry in plan.entries:
        _set_training(model, entry)
    attach(model, plan, seed)
    plugins.call("lorakit_model_ready", model=model, plan=plan)
    return model


def module_generator(seed: int, path: str) -> torch.Generator:
    """Return the generator of one module, seeded by the run's seed and the module's path, whatever else is adapted."""
    digest = hashlib.sha256(f"{seed}:{path}".encode()).digest()
    return torch.Generator("cpu").manual_seed(int.from_bytes(digest[:8], "big") >> 1)


def _check(plan: Plan, model: nn.Module, modules: dict[str, nn.Module]) -> None:
    for entry in plan.entries:
        is_parameter = entry.shape is not None and entry.shape.is_parameter
        module = modules.get(entry.path.rpartition(".")[0] if is_parameter else entry.path)
        if module is None or (is_parameter and entry.path.rpartition(".")[2] not in module._parameters):
            raise PlanError(
                f"the plan is for another model: it decides `{entry.path}`, which {type(model).__name__} lacks"
            )
        if any(parameter.is_meta for parameter in module.parameters(recurse=False)):
            raise ModelError(f"`{entry.path}` has no weights (a meta tensor): load the model before applying a plan")


def _converted(modules: dict[str, nn.Module], plugins: Plugins) -> dict[nn.Module, nn.Module]:
    """Return lorakit's own layers for those that another library holds quantized; their packed weights move over."""
    converted: dict[nn.Module, nn.Module] = {}
    for module in modules.values():
        if module._parameters and (own := plugins.call("lorakit_convert_module", module=module)) is not None:
            converted[module] = own
    return converted


def _adapted(layer: nn.Module, entry: PlanEntry, plugins: Plugins, seed: int | None) -> nn.Module:
    assert entry.adapter is not None
    adapter = plugins.call("lorakit_adapt_module", module=layer, entry=entry)
    if adapter is None:
        adapter = plugins.method(entry.adapter.method).adapt(layer, entry)
    if not isinstance(adapter, nn.Module):
        raise PluginError(
            f"method `{entry.adapter.method.name}` has no adapter for `{entry.path}`, a {entry.class_name}"
        )
    adapter.train(layer.training)
    if seed is not None:
        _initialize(adapter, layer, entry, plugins, seed)
    return adapter


def _initialize(adapter: nn.Module, layer: nn.Module, entry: PlanEntry, plugins: Plugins, seed: int) -> None:
    assert entry.adapter is not None and entry.shape is not None
    lora_A, lora_B = adapter.get_parameter("lora_A"), adapter.get_parameter("lora_B")
    # float32 on the CPU first, so that every device and dtype rounds the same numbers
    start_A, start_B = torch.empty(lora_A.flatten(1).shape), torch.empty(lora_B.flatten(1).shape)
    first, second = (start_B.T, start_A.T) if entry.shape.is_flipped else (start_A, start_B)
    context = InitContext(
        weight=lambda: adapter.base_matrix() if isinstance(adapter, LoRALayer) else matrix(layer, entry),
        generator=module_generator(seed, entry.path),
        scaling=entry.adapter.factor,
        fan_in=entry.shape.fan_in,
    )
    with torch.no_grad():
        plugins.initializer(entry.adapter.init).initialize(first, second, context)
        lora_A.copy_(start_A.view(lora_A.shape))
        lora_B.copy_(start_B.view(lora_B.shape))


def _swap_in(model: nn.Module, replacements: dict[nn.Module, nn.Module]) -> None:
    held = places(model)
    for original, replacement in replacements.items():
        if replacement is not original:
            move_hook(original, replacement)
            for parent, name in held[original]:
                setattr(parent, name, replacement)


def _set_training(model: nn.Module, entry: PlanEntry) -> None:
    if entry.train:
        for parameter in trained_parameters(model, entry).values():
            parameter.requires_grad_(True)
    if entry.adapter is not None and entry.adapter.bias_parameters:
        adapter_at(model, entry).get_parameter("base_layer.bias").requires_grad_(True)
