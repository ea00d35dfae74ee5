"""Single layers on their way into an adapted model, and where they stand in it."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn
from torch.nn.utils import parametrize

from lorakit.application.dispatch import move_hook
from lorakit.errors import ModelError, PluginError
from lorakit.hooks.manager import Plugins
from lorakit.hooks.options import call_of
from lorakit.hooks.protocols import CalibratedQuantizer
from lorakit.language.printer import call_text
from lorakit.layers.quantized_linear import QuantizedLinear
from lorakit.planning.plan import PlanEntry
from lorakit.values import QuantizedWeight


def is_parameter(entry: PlanEntry) -> bool:
    """Return whether an entry decides a parameter and not a module."""
    return entry.shape is not None and entry.shape.is_parameter


def holder_of(model: nn.Module, entry: PlanEntry) -> tuple[nn.Module, str]:
    """Return the module that holds the parameter which an entry names, and the parameter's name in it."""
    path, _, name = entry.path.rpartition(".")
    return model.get_submodule(path), name


def core_of(module: nn.Module) -> nn.Module:
    """Return the layer under all of its adapters; the module itself if it has none."""
    while isinstance(inner := module._modules.get("base_layer"), nn.Module):
        module = inner
    return module


def base_at(model: nn.Module, entry: PlanEntry) -> nn.Module | Tensor:
    """Return what lies under the adapters at an entry's path: a layer, or a parameter."""
    if not is_parameter(entry):
        return core_of(model.get_submodule(entry.path))
    holder, name = holder_of(model, entry)
    if parametrize.is_parametrized(holder, name):
        return holder.get_parameter(f"parametrizations.{name}.original")
    return holder.get_parameter(name)


def adapter_path(model: nn.Module, entry: PlanEntry, adapter: nn.Module) -> str:
    """Return the path of an adapter in a model: a later adapter of the same layer stands around it."""
    if is_parameter(entry):
        holder, name = holder_of(model, entry)
        index = list(holder.get_submodule(f"parametrizations.{name}").children()).index(adapter)
        return f"{entry.path.rpartition('.')[0]}.parametrizations.{name}.{index}"
    path, module = entry.path, model.get_submodule(entry.path)
    while module is not adapter:
        path, module = f"{path}.base_layer", module.get_submodule("base_layer")
    return path


def own_parameters(adapter: nn.Module) -> dict[str, nn.Parameter]:
    """Return what an adapter adds to its base layer, by name."""
    return {name: value for name, value in adapter.named_parameters() if not name.startswith("base_layer.")}


def full_parameters(model: nn.Module, entry: PlanEntry) -> dict[str, nn.Parameter]:
    """Return what an entry trains in full, by name behind the entry's path: by `train`, or biases by `bias adapter`."""
    if entry.train:
        base = base_at(model, entry)
        return {"": base} if isinstance(base, nn.Parameter) else dict(base.named_parameters(recurse=False))  # type: ignore[union-attr]
    if entry.adapter is not None and entry.adapter.bias_parameters:
        return {"bias": core_of(model.get_submodule(entry.path)).get_parameter("bias")}
    return {}


def matrix(layer: nn.Module, entry: PlanEntry) -> Tensor:
    """Return the weight of a Linear-like layer as (out_features, in_features), dequantized if it is quantized."""
    weight: Tensor = layer.weight.detach()  # type: ignore[operator]
    transposed = entry.shape is not None and entry.shape.kind == "linear_transposed"
    return weight.T if transposed and not isinstance(layer, QuantizedLinear) else weight


def quantized_layer(layer: nn.Module, entry: PlanEntry, plugins: Plugins, seen: Any = None) -> QuantizedLinear:
    """Return a layer of the same function with its weight quantized as the entry says; the layer if it is already.

    `seen` is what a calibrated quantizer observed of the layer's inputs.
    Raises: PluginError naming the quantizer and the module if the quantizer fails, ModelError if the weight is
    quantized otherwise.
    """
    assert entry.quant is not None
    quantizer = plugins.quantizer(entry.quant)
    if isinstance(layer, QuantizedLinear):
        if layer.quantizer == quantizer:
            return layer
        raise ModelError(
            f"`{entry.path}` is stored as {call_text(call_of(layer.quantizer))} already, and the plan wants "
            f"{call_text(entry.quant)}; "
            "quantize an unquantized base, or leave `quant` out for it"
        )
    quantized = quantized_weight(layer.weight.detach(), entry, plugins, seen)  # type: ignore[operator]
    result = QuantizedLinear(quantized, quantizer, getattr(layer, "bias", None), plugins.kernels)
    result.train(layer.training)
    return result


def quantized_weight(weight: Tensor, entry: PlanEntry, plugins: Plugins, seen: Any = None) -> QuantizedWeight:
    """Return a layer's own weight, as the layer holds it, quantized as the entry says.

    `seen` is what a calibrated quantizer observed of the layer's inputs.
    Raises: PluginError naming the quantizer and the module if the quantizer fails.
    """
    assert entry.quant is not None and entry.shape is not None
    quantizer = plugins.quantizer(entry.quant)
    if entry.shape.kind == "linear_transposed":
        weight = weight.T
    try:
        if isinstance(quantizer, CalibratedQuantizer) and seen is not None:
            quantized = quantizer.quantize_observed(weight, seen)
        else:
            quantized = quantizer.quantize(weight)
    except Exception as error:
        origin = plugins.origin(plugins.quantizers[entry.quant.name])
        raise PluginError(
            f"quantizer `{entry.quant.name}` of {origin} failed on `{entry.path}` "
            f"{tuple(weight.shape)}: {type(error).__name__}: {error}"
        ) from error
    if not isinstance(quantized, QuantizedWeight):
        raise PluginError(
            f"quantizer `{entry.quant.name}` returned a {type(quantized).__name__}, not a QuantizedWeight"
        )
    return quantized


def places(model: nn.Module) -> dict[nn.Module, list[tuple[nn.Module, str]]]:
    """Return, for every module, each parent that holds it and the name it has there."""
    found: dict[nn.Module, list[tuple[nn.Module, str]]] = {}
    for parent in model.modules():
        for name, child in parent._modules.items():
            if child is not None:
                found.setdefault(child, []).append((parent, name))
    return found


def put(model: nn.Module, replacements: dict[nn.Module, nn.Module]) -> None:
    """Put modules into the places of others, wherever the model holds those."""
    held = places(model)
    for original, replacement in replacements.items():
        if replacement is not original:
            move_hook(original, replacement)
            for parent, name in held[original]:
                setattr(parent, name, replacement)


def put_on_parameter(holder: nn.Module, name: str, adapter: nn.Module) -> None:
    """Put an adapter on a parameter, over those that are there already."""
    # the order of a module's parameters tells how its stacks follow each other, and torch forgets it
    adapter.beside = tuple(holder._parameters)  # type: ignore[assignment]
    parametrize.register_parametrization(holder, name, adapter, unsafe=True)


def bare_parameter(holder: nn.Module, name: str) -> None:
    """Take every adapter off a parameter, which gets its old place among the others."""
    first = holder.get_submodule(f"parametrizations.{name}.0")
    order = {beside: index for index, beside in enumerate(first.beside)}  # type: ignore[arg-type]
    parametrize.remove_parametrizations(holder, name, leave_parametrized=False)
    ordered = sorted(holder._parameters.items(), key=lambda item: order.get(item[0], -1))
    holder._parameters.clear()
    holder._parameters.update(ordered)
