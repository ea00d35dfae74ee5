"""A layer's weight as a matrix, and what a quantizer makes of it."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from lorakit.errors import ModelError, PluginError
from lorakit.hooks.manager import Plugins
from lorakit.hooks.options import call_of
from lorakit.hooks.protocols import CalibratedQuantizer
from lorakit.language.printer import call_text
from lorakit.layers.plain_form import PlainForm
from lorakit.layers.quantized_linear import QuantizedLinear
from lorakit.planning.plan import PlanEntry
from lorakit.values import LayerShape, QuantizedWeight


def layer_weight(layer: nn.Module, shape: LayerShape) -> Tensor:
    """Return a layer's weight as adapters see it, dequantized if it is quantized.

    Shapes: (out_features, in_features) for a linear layer, as the layer holds it for any other.
    """
    weight: Tensor = layer.weight.detach()  # type: ignore[operator]
    return weight if isinstance(layer, QuantizedLinear) else canonical(weight, shape)


def canonical(weight: Tensor, shape: LayerShape) -> Tensor:
    """Return a weight that a layer holds as adapters see it; the same again turns it back."""
    return weight.T if shape.kind == "linear_transposed" else weight


def as_matrix(weight: Tensor, shape: LayerShape) -> Tensor:
    """Return a weight as adapters see it as (outputs, inputs): a kernel flattened, a lookup transposed."""
    return weight.T if shape.kind == "embedding" else weight.flatten(1)


def as_weight(matrix: Tensor, shape: LayerShape) -> Tensor:
    """Return a matrix (outputs, inputs) as the weight that adapters see."""
    if shape.kind == "embedding":
        return matrix.T
    return matrix.unflatten(1, (shape.in_features, *shape.kernel)) if shape.kernel else matrix


def with_weight(layer: nn.Module, weight: Tensor, shape: LayerShape) -> nn.Module:
    """Return a shallow copy of a layer that holds another weight, given as adapters see it."""
    import copy

    twin = copy.copy(layer)
    twin._parameters = dict(layer._parameters)
    # a new parameter: where the weight is tied, the other end keeps its own
    twin.weight = nn.Parameter(canonical(weight, shape).contiguous(), requires_grad=False)
    return twin


def quantized_layer(layer: nn.Module, entry: PlanEntry, quantized: QuantizedWeight, plugins: Plugins) -> nn.Module:
    """Return the layer of the same function that holds a quantized weight in place of its own."""
    assert entry.quant is not None and entry.shape is not None
    form = PlainForm.of(layer, transposed=entry.shape.kind == "linear_transposed")
    quantizer, bias = plugins.quantizer(entry.quant), getattr(layer, "bias", None)
    result = QuantizedLinear(quantized, quantizer, bias, plugins.kernels, form)
    result.train(layer.training)
    return result


def check_stored(layer: QuantizedLinear, entry: PlanEntry, plugins: Plugins) -> None:
    """Raise ModelError if a quantized layer is not quantized as its entry says."""
    assert entry.quant is not None
    if layer.quantizer != plugins.quantizer(entry.quant):
        raise ModelError(
            f"`{entry.path}` is stored as {call_text(call_of(layer.quantizer))} already, and the plan wants "
            f"{call_text(entry.quant)}; "
            "quantize an unquantized base, or leave `quant` out for it"
        )


def quantized_weight(weight: Tensor, entry: PlanEntry, plugins: Plugins, observed: Any = None) -> QuantizedWeight:
    """Return a weight (out_features, in_features) quantized as its entry says.

    `observed` is what a calibrated quantizer observed of the layer's inputs.
    Raises: PluginError naming the quantizer and the module if the quantizer fails.
    """
    assert entry.quant is not None
    quantizer = plugins.quantizer(entry.quant)
    if weight.is_meta:
        # quantizers look at values
        made = quantized_weight(torch.zeros(weight.shape, dtype=weight.dtype), entry, plugins, observed)
        return replace(made, tensors={name: tensor.to("meta") for name, tensor in made.tensors.items()})
    try:
        with torch.no_grad():
            if isinstance(quantizer, CalibratedQuantizer) and observed is not None:
                quantized = quantizer.quantize_observed(weight, observed)
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
    if scalars := [name for name, tensor in quantized.tensors.items() if not tensor.ndim]:
        raise PluginError(
            f"quantizer `{entry.quant.name}` stores `{scalars[0]}` as a tensor without dimensions, which cannot be "
            "sharded: store it as (1,)"
        )
    return quantized
