"""The weight that a layer with adapters computes with, exactly: what a merge rounds."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from torch import Tensor, nn

from lorakit.application.places import adapters_on, base_layer_of
from lorakit.application.storing import layer_weight, with_weight
from lorakit.errors import AdapterError
from lorakit.layers.quantized_linear import QuantizedLinear
from lorakit.planning.plan import PlanEntry

Weights = tuple[Tensor, Tensor | None]


def effective(adapters: Iterable[nn.Module], weight: Tensor, entry: PlanEntry, bias: Tensor | None = None) -> Weights:
    """Return the weight and the bias that these adapters make of a base layer's, in float32, the innermost first.

    Raises: AdapterError if one changes something else than a weight.
    """
    assert entry.adapter is not None
    weight, bias = weight.float(), None if bias is None else bias.float()
    for adapter in adapters:
        found: Any = adapter
        if not hasattr(found, "exact_weight"):
            raise AdapterError(
                f"method `{entry.adapter.method.name}` on `{entry.path}` cannot be merged: it has no `exact_weight`"
            )
        weight = found.exact_weight(weight)
        if bias is not None and hasattr(found, "exact_bias"):
            bias = found.exact_bias(bias)
    return weight, bias


def merged_layer(module: nn.Module, entry: PlanEntry) -> tuple[nn.Module, Tensor]:
    """Return a plain layer of the same function without dropout, and its weight before rounding, in float32.

    What lies under the adapters stays as it is. A quantized weight comes back in the dtype that it computes in, so that
    the model around it still runs. Shapes: the weight as adapters see it.
    """
    base, shape = base_layer_of(module), entry.shape
    assert shape is not None
    held: Tensor | None = base._parameters.get("bias")
    exact, bias = effective(adapters_on(module), layer_weight(base, shape), entry, held)
    if isinstance(base, QuantizedLinear):
        layer: nn.Module = base.plain(exact.to(base.dequantized_dtype))
    else:
        layer = with_weight(base, exact.to(base.weight.dtype), shape)  # type: ignore[arg-type]
    if held is not None and bias is not None and not bias.equal(held.float()):
        layer.bias = nn.Parameter(bias.to(layer.bias.dtype), requires_grad=False)  # type: ignore[arg-type]
    return layer, exact
