"""One adapter for one layer: its parameters made, its module built around the layer, and both checked."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from itertools import chain

import torch
from torch import Tensor, nn

from lorakit.application.places import bare_parameter
from lorakit.dtypes import dtype_of
from lorakit.errors import LorakitError, PlanError, PluginError
from lorakit.hooks.manager import Plugins
from lorakit.planning.place import Place
from lorakit.planning.plan import ParameterPlan, PlanEntry

Shared = dict[str, nn.Parameter]


def build_adapter(
    layer: nn.Module, entry: PlanEntry, values: Mapping[str, Tensor], shared: Shared, plugins: Plugins
) -> nn.Module:
    """Return the adapter of an entry, in place of its layer or, for a parameter, to be put on it.

    `values` are what its parameters begin with; what is not among them is zero. `shared` holds what layers share, by
    name, and takes in what this one is the first to have.
    Raises: PluginError if the method has no adapter for the layer, or what it built does not keep its table.
    """
    assert entry.adapter is not None
    device = _device(layer, entry)
    parameters = {}
    for one in entry.adapter.parameters:
        held = shared.get(one.shared) if one.shared else None
        if held is None:
            dtype = dtype_of(one.dtype or entry.adapter.dtype)
            held = _parameter(one, values.get(one.name), dtype, device)
            if one.shared:
                shared[one.shared] = held
        elif held.device != device:
            held = _copied(one, held, device, entry)
        parameters[one.name] = held
    adapter = plugins.adapt_module(layer, entry, parameters)
    if adapter is None:
        adapter = _adapted(layer, entry, parameters, plugins)
    _check(adapter, layer, entry, parameters, plugins)
    assert adapter is not None
    if adapter.training is not layer.training:
        adapter.train(layer.training)
    return adapter


def _device(layer: nn.Module, entry: PlanEntry) -> torch.device:
    if entry.is_parameter:
        first: Tensor | None = bare_parameter(layer, Place.of(entry).parameter)
    else:
        # nearly every layer has one of its own, and all others are far to seek
        own = filter(lambda tensor: tensor is not None, layer._parameters.values())
        first = next(chain(own, layer.parameters(), layer.buffers()), None)
    # of what waits for its values adapters are there already: optimizers tell parameters apart by where they lie
    return torch.device("cpu") if first is None or first.is_meta else first.device


def _parameter(plan: ParameterPlan, value: Tensor | None, dtype: torch.dtype, device: torch.device) -> nn.Parameter:
    if value is None:
        made = torch.zeros(plan.shape, dtype=dtype, device=device)
    elif value.dtype == dtype and value.device == device:
        made = value.clone()
    else:
        # float32 on the CPU first, so that every device and dtype rounds the same numbers
        made = value.to(device=device, dtype=dtype)
    return nn.Parameter(made, requires_grad=plan.trains)


def _copied(plan: ParameterPlan, held: nn.Parameter, device: torch.device, entry: PlanEntry) -> nn.Parameter:
    if plan.trains:
        raise PlanError(
            f"`{plan.shared}` is one tensor for all layers and trains, and `{entry.path}` lies on {device}, not on "
            f"{held.device}: load the model on one device"
        )
    return nn.Parameter(held.detach().to(device), requires_grad=False)


def _adapted(
    layer: nn.Module, entry: PlanEntry, parameters: Mapping[str, nn.Parameter], plugins: Plugins
) -> nn.Module | None:
    assert entry.adapter is not None
    try:
        return plugins.method(entry.adapter.method).adapt(layer, entry, parameters)
    except LorakitError:
        raise
    except Exception as error:
        raise PluginError(
            f"{_who(entry, plugins)} failed to adapt `{entry.path}`: {type(error).__name__}: {error}"
        ) from error


def _who(entry: PlanEntry, plugins: Plugins) -> str:
    assert entry.adapter is not None
    name = entry.adapter.method.name
    return f"method `{name}` of {plugins.origin(plugins.methods[name])}"


def _check(
    adapter: nn.Module | None,
    layer: nn.Module,
    entry: PlanEntry,
    parameters: Mapping[str, nn.Parameter],
    plugins: Plugins,
) -> None:
    if not isinstance(adapter, nn.Module):
        who = _who(entry, plugins)
        raise PluginError(f"{who} has no adapter for `{entry.path}`, a {entry.class_name}")
    fault = _fault(adapter, layer, entry, parameters)
    if fault:
        who = _who(entry, plugins)
        raise PluginError(f"{who} built an adapter for `{entry.path}` that {fault}")


def _fault(adapter: nn.Module, layer: nn.Module, entry: PlanEntry, parameters: Mapping[str, nn.Parameter]) -> str:
    """Return what an adapter does not keep of its protocol, in words; nothing if it keeps all."""
    for name, parameter in parameters.items():
        if adapter._parameters.get(name) is not parameter:
            return f"does not hold the parameter `{name}` that it was given"
    base = adapter._modules.get("base_layer")
    if not entry.is_parameter and base is not layer:
        return "does not hold the very layer that it was given as `base_layer`"
    if entry.shape and not (entry.is_parameter or entry.shape.called) and not hasattr(type(adapter), "weight"):
        return "shows no `weight` to its parent, which computes with that instead of calling it"
    if beside := list(_beside(adapter, parameters)):
        known = {*parameters.values(), *(base.parameters() if base is not None else ())}
        for name, parameter in beside:
            if parameter not in known:
                return f"holds a parameter `{name}` which its method does not declare"
    strength = getattr(adapter, "strength", None)
    if not isinstance(strength, float) or strength != 1.0:
        return f"has the attribute `strength` {strength!r}, not 1.0"
    return ""


def _beside(adapter: nn.Module, parameters: Mapping[str, nn.Parameter]) -> Iterator[tuple[str, nn.Parameter]]:
    """Yield what an adapter holds by other names than those of its table, its base layer left out."""
    for name, parameter in adapter._parameters.items():
        if parameter is not None and name not in parameters:
            yield name, parameter
    for name, module in adapter._modules.items():
        if module is not None and name != "base_layer":
            yield from module.named_parameters(name)
