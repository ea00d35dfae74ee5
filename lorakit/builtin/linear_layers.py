"""Layers that compute y = xWᵀ + b: torch's Linear, transformers' Conv1D, and lorakit's own quantized Linear."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

from lorakit.hooks.specs import hookimpl
from lorakit.values import LayerShape

if TYPE_CHECKING:
    from torch import nn


@hookimpl
def lorakit_describe_module(module: nn.Module) -> LayerShape | None:
    from torch import nn

    from lorakit.layers.quantized_linear import QuantizedLinear

    plain = (nn.Linear.forward, QuantizedLinear.forward)
    # some routers are Linears that return more than one vector; a class with a forward of its own is asked
    if isinstance(module, nn.Linear | QuantizedLinear) and (type(module).forward in plain or _one_vector(module)):
        # nn.MultiheadAttention marks its output projection by this class, and multiplies with its weight by itself
        called = not isinstance(module, nn.modules.linear.NonDynamicallyQuantizableLinear)
        quantizer = module.quantizer if isinstance(module, QuantizedLinear) else None
        return LayerShape("linear", module.in_features, module.out_features, called=called, quantizer=quantizer)
    if is_conv1d(module):
        in_features, out_features = module.weight.shape  # type: ignore[misc]
        return LayerShape("linear_transposed", int(in_features), int(out_features))
    return None


def _one_vector(module: Any) -> bool:
    """Whether one vector in gives one vector out, tried on meta tensors."""
    import torch

    meta = {name: torch.empty_like(value, device="meta") for name, value in module.named_parameters()}
    x = torch.empty(1, module.in_features, device="meta", dtype=module.weight.dtype)
    try:
        answer = torch.func.functional_call(module, meta, (x,))
    except Exception:
        # it takes more than one vector: nothing that an adapter around it could do
        return False
    return isinstance(answer, torch.Tensor) and answer.shape == (1, module.out_features)


def is_conv1d(module: nn.Module) -> bool:
    """Return whether this is transformers' Conv1D: a Linear whose weight lies as (in_features, out_features)."""
    # a model can hold one only if transformers was imported before
    pytorch_utils = sys.modules.get("transformers.pytorch_utils")
    return pytorch_utils is not None and isinstance(module, pytorch_utils.Conv1D)
