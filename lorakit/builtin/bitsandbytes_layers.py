"""bitsandbytes' own layers, as transformers loads a quantized checkpoint: their packed weights move over as is."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

from lorakit.hooks.protocols import LayerShape, QuantizedWeight
from lorakit.hooks.specs import hookimpl

if TYPE_CHECKING:
    from torch import nn


@hookimpl
def lorakit_describe_module(module: nn.Module) -> LayerShape | None:
    if (layers := _layers()) is None or not isinstance(module, (layers.Linear4bit, layers.Linear8bitLt)):
        return None
    return LayerShape("linear", module.in_features, module.out_features)


@hookimpl
def lorakit_convert_module(module: nn.Module) -> nn.Module | None:
    if (layers := _layers()) is None:
        return None
    if isinstance(module, layers.Linear4bit):
        return _four_bit(module)
    return _eight_bit(module) if isinstance(module, layers.Linear8bitLt) else None


def _layers() -> Any:
    # a model can hold one only if bitsandbytes was imported before
    return sys.modules.get("bitsandbytes.nn")


def _four_bit(layer: Any) -> nn.Module | None:
    from lorakit.adapters.quantized_linear import QuantizedLinear
    from lorakit.builtin.fourbit import FP4, NF4

    state = layer.weight.quant_state
    if state is None:
        # not quantized yet: bitsandbytes does that when the layer first moves to its device
        return None
    quantizer = {"nf4": NF4, "fp4": FP4}[state.quant_type](blocksize=state.blocksize, double=state.nested)
    tensors = {"packed": layer.weight.data, "absmax": state.absmax}
    if state.nested:
        tensors |= {"nested_absmax": state.state2.absmax, "nested_offset": state.offset}
    quantized = QuantizedWeight(tensors, (layer.out_features, layer.in_features), state.dtype)
    return QuantizedLinear(quantized, quantizer, layer.bias)


def _eight_bit(layer: Any) -> nn.Module | None:
    from lorakit.adapters.quantized_linear import QuantizedLinear
    from lorakit.builtin.int8 import Int8

    codes = layer.weight.CB if layer.weight.CB is not None else layer.state.CB
    scales = layer.weight.SCB if layer.weight.SCB is not None else layer.state.SCB
    if codes is None or scales is None:
        return None
    import torch

    dtype = layer.bias.dtype if layer.bias is not None else torch.float16
    quantized = QuantizedWeight({"CB": codes, "SCB": scales}, (layer.out_features, layer.in_features), dtype)
    return QuantizedLinear(quantized, Int8(threshold=layer.state.threshold), layer.bias)
