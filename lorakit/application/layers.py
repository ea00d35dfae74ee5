"""Single layers on their way into an adapted model."""

from __future__ import annotations

from torch import Tensor, nn

from lorakit.adapters.quantized_linear import QuantizedLinear
from lorakit.errors import ModelError, PluginError
from lorakit.hooks.manager import Plugins
from lorakit.hooks.protocols import QuantizedWeight
from lorakit.planning.plan import PlanEntry


def adapter_at(model: nn.Module, entry: PlanEntry) -> nn.Module:
    """Return what the plan put at an entry's path: an adapter, a quantized layer, or the holder of what trains."""
    if entry.shape is None or not entry.shape.is_parameter:
        return model.get_submodule(entry.path)
    holder, name = holder_of(model, entry)
    if entry.adapter is None:
        return holder
    found: nn.Module = holder.get_submodule(f"parametrizations.{name}.0")
    return found


def holder_of(model: nn.Module, entry: PlanEntry) -> tuple[nn.Module, str]:
    """Return the module that holds the parameter which an entry names, and the parameter's name in it."""
    path, _, name = entry.path.rpartition(".")
    return model.get_submodule(path), name


def trained_parameters(model: nn.Module, entry: PlanEntry) -> dict[str, nn.Parameter]:
    """Return the parameters that `train` keeps trainable in full, by their names behind the entry's path."""
    if entry.shape is not None and entry.shape.is_parameter:
        holder, name = holder_of(model, entry)
        return {"": holder.get_parameter(name)}
    return dict(model.get_submodule(entry.path).named_parameters(recurse=False))


def matrix(layer: nn.Module, entry: PlanEntry) -> Tensor:
    """Return the weight of a Linear-like layer as (out_features, in_features), dequantized if it is quantized."""
    weight: Tensor = layer.weight.detach()  # type: ignore[operator]
    transposed = entry.shape is not None and entry.shape.kind == "linear_transposed"
    return weight.T if transposed and not isinstance(layer, QuantizedLinear) else weight


def quantized_layer(layer: nn.Module, entry: PlanEntry, plugins: Plugins) -> QuantizedLinear:
    """Return a layer of the same function with its weight quantized as the entry says; the layer if it is already.

    Raises: PluginError naming the quantizer and the module if the quantizer fails, ModelError if the weight is
    quantized otherwise.
    """
    assert entry.quant is not None
    quantizer = plugins.quantizer(entry.quant)
    if isinstance(layer, QuantizedLinear):
        if layer.quantizer == quantizer:
            return layer
        raise ModelError(
            f"`{entry.path}` is stored as {layer.quantizer} already, and the plan wants {quantizer}; "
            "quantize an unquantized base, or leave `quant` out for it"
        )
    quantized = quantized_weight(layer.weight.detach(), entry, plugins)  # type: ignore[operator]
    result = QuantizedLinear(quantized, quantizer, getattr(layer, "bias", None))
    result.train(layer.training)
    return result


def quantized_weight(weight: Tensor, entry: PlanEntry, plugins: Plugins) -> QuantizedWeight:
    """Return a layer's own weight, as the layer holds it, quantized as the entry says.

    Raises: PluginError naming the quantizer and the module if the quantizer fails.
    """
    assert entry.quant is not None and entry.shape is not None
    quantizer = plugins.quantizer(entry.quant)
    if entry.shape.kind == "linear_transposed":
        weight = weight.T
    try:
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
