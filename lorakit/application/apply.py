"""Apply a Plan to a model, in two phases: build every replacement, then swap them in."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from lorakit.application.calibration import observe
from lorakit.application.compute import cast, check_compute
from lorakit.application.layers import (
    core_of,
    holder_of,
    is_parameter,
    matrix,
    own_parameters,
    put,
    put_on_parameter,
    quantized_layer,
)
from lorakit.application.state import DEFAULT, Adapted, NamedAdapter, adapted_state, attach
from lorakit.application.switching import remember_base, use
from lorakit.errors import ModelError, PlanError, PluginError
from lorakit.hooks.manager import Plugins
from lorakit.layers.lora_layer import LoRALayer
from lorakit.layers.quantized_linear import QuantizedLinear
from lorakit.planning.inventory import Inventory, read_inventory, stored
from lorakit.planning.plan import Plan, PlanEntry
from lorakit.values import InitContext

Progress = Callable[[Sequence[PlanEntry]], Iterable[PlanEntry]]


def apply_plan(
    plan: Plan,
    model: nn.Module,
    plugins: Plugins,
    *,
    seed: int = 0,
    name: str = DEFAULT,
    inventory: Inventory | None = None,
    initialize: bool = True,
    progress: Progress = iter,
    calibration: Iterable[Any] | None = None,
) -> nn.Module:
    """Return the model, adapted in place under a name; a failure while replacements are built leaves it untouched.

    The same plan, weights and seed give the same bits on every device: each adapter draws from a generator of its own.
    On a model that has adapters already, the new ones stand around those, and alone are in use. `calibration` holds
    batches for quantizers that see inputs first.
    Raises: ModelError if the name is taken or the model holds meta tensors, PlanError if it is not the planned one or
    a quantizer lacks calibration data.
    """
    state = adapted_state(model)
    _check_name(state, name)
    plugins.before_apply(model, plan)
    modules = dict(model.named_modules())
    _check(plan, model, modules)
    check_compute(model, state, plan)
    # taken over before the model runs, since bitsandbytes' own layers may repack their weights when they do
    layers = _converted(model, plugins)
    seen = observe(plan, model, plugins, calibration)
    made: dict[str, nn.Module] = {}
    for entry in progress(plan.entries):
        start = seed if initialize else None
        if is_parameter(entry):
            if entry.adapter is not None:
                made[entry.path] = _adapted(holder_of(model, entry)[0], entry, plugins, start)
            continue
        original = modules[entry.path]
        layer: nn.Module = layers.get(original) or original
        if entry.quant is not None:
            layer = _stored(layer, entry, plugins, state, seen.pop(entry.path, None))
        if entry.adapter is not None:
            made[entry.path] = layer = _adapted(layer, entry, plugins, start)
        layers[original] = layer
    if state is None:
        state = Adapted(inventory or read_inventory(model, plugins))
    for parameter in model.parameters():
        parameter.requires_grad_(False)
    put(model, layers)
    for entry in plan.entries:
        if is_parameter(entry) and entry.path in made:
            put_on_parameter(*holder_of(model, entry), made[entry.path])
    adapter = NamedAdapter(name, plan, seed, made, _fixed(made))
    remember_base(model, state, adapter)
    state.inventory = stored(state.inventory, plan, plugins)
    state.named[name] = adapter
    cast(model, state, plan.compute)
    attach(model, state)
    use(model, state, {name: 1.0})
    plugins.model_ready(model, plan)
    return model


def _fixed(made: Mapping[str, nn.Module]) -> frozenset[tuple[str, str]]:
    """Return the parameters of new adapters that are made not to train, as (path, name)."""
    return frozenset(
        (path, name)
        for path, module in made.items()
        for name, parameter in own_parameters(module).items()
        if not parameter.requires_grad
    )


def module_generator(seed: int, path: str) -> torch.Generator:
    """Return the generator of one module, seeded by the run's seed and the module's path, whatever else is adapted."""
    digest = hashlib.sha256(f"{seed}:{path}".encode()).digest()
    return torch.Generator("cpu").manual_seed(int.from_bytes(digest[:8], "big") >> 1)


def _check_name(state: Adapted | None, name: str) -> None:
    if state is not None and name in state.named:
        raise ModelError(
            f"this model is adapted already, under the name `{name}`: give the new adapter a `name` of its own, "
            "or merge the old one, or load the model again"
        )
    if state is not None:
        state.check_apart()
    if not name or "." in name or "/" in name:
        raise ModelError(f"an adapter's name is a word, not {name!r}")


def _check(plan: Plan, model: nn.Module, modules: dict[str, nn.Module]) -> None:
    for entry in plan.entries:
        module = modules.get(entry.path.rpartition(".")[0] if is_parameter(entry) else entry.path)
        if module is None or (is_parameter(entry) and not _holds(module, entry.path.rpartition(".")[2])):
            raise PlanError(
                f"the plan is for another model: it decides `{entry.path}`, which {type(model).__name__} lacks"
            )
        if any(parameter.is_meta for parameter in module.parameters(recurse=False)):
            raise ModelError(f"`{entry.path}` has no weights (a meta tensor): load the model before applying a plan")


def _holds(module: nn.Module, name: str) -> bool:
    return name in module._parameters or parametrize.is_parametrized(module, name)


def _stored(layer: nn.Module, entry: PlanEntry, plugins: Plugins, state: Adapted | None, seen: Any) -> nn.Module:
    """Return the layer with its weight quantized; under other adapters it may only be so already."""
    core = core_of(layer)
    if state is None:
        return quantized_layer(core, entry, plugins, seen)
    if not isinstance(core, QuantizedLinear):
        raise ModelError(
            f"the plan quantizes `{entry.path}`, which would change what {', '.join(state.named)} on it compute: "
            "leave `quant` out, or load with quantize=False"
        )
    quantized_layer(core, entry, plugins)
    return layer


def _converted(model: nn.Module, plugins: Plugins) -> dict[nn.Module, nn.Module]:
    """Return lorakit's own layers for those that another library holds quantized; their packed weights move over."""
    converted: dict[nn.Module, nn.Module] = {}
    dtype = next((value.dtype for value in model.parameters() if value.is_floating_point()), torch.get_default_dtype())
    for module in model.modules():
        if not module._parameters:
            continue
        if (own := plugins.convert_module(module, dtype)) is not None:
            converted[module] = own
    return converted


def _adapted(layer: nn.Module, entry: PlanEntry, plugins: Plugins, seed: int | None) -> nn.Module:
    assert entry.adapter is not None
    adapter = plugins.adapt_module(layer, entry, {})
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
        weight=lambda: _base_matrix(adapter, layer, entry),
        generator=module_generator(seed, entry.path),
        scaling=entry.adapter.factor,
        fan_in=entry.shape.fan_in,
    )
    with torch.no_grad():
        try:
            plugins.initializer(entry.adapter.init).initialize(first, second, context)
        except Exception as error:
            origin = plugins.origin(plugins.initializers[entry.adapter.init.name])
            raise PluginError(
                f"initializer `{entry.adapter.init.name}` of {origin} failed on `{entry.path}` at rank "
                f"{entry.adapter.rank}: {type(error).__name__}: {error}"
            ) from error
        lora_A.copy_(start_A.view(lora_A.shape))
        lora_B.copy_(start_B.view(lora_B.shape))


def _base_matrix(adapter: nn.Module, layer: nn.Module, entry: PlanEntry) -> Tensor:
    assert entry.adapter is not None and entry.shape is not None
    if is_parameter(entry):
        raise PlanError(
            f"`init {entry.adapter.init.name}` looks at the weight as one matrix, and `{entry.path}` is "
            f"{entry.shape}: give it another `init`"
        )
    return adapter.base_matrix() if isinstance(adapter, LoRALayer) else matrix(core_of(layer), entry)
