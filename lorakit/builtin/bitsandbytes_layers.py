"""bitsandbytes' own layers, as transformers loads a quantized checkpoint: their packed weights move over as is."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

from lorakit.hooks.specs import hookimpl
from lorakit.values import LayerShape, QuantizedWeight

if TYPE_CHECKING:
    import torch
    from torch import nn

    from lorakit.hooks.manager import Plugins
    from lorakit.hooks.protocols import Quantizer


@hookimpl
def lorakit_describe_module(module: nn.Module) -> LayerShape | None:
    if (layers := _layers()) is None or not isinstance(module, (layers.Linear4bit, layers.Linear8bitLt)):
        return None
    quantizer = _four_bits(module) if isinstance(module, layers.Linear4bit) else _eight_bits(module)
    return LayerShape("linear", module.in_features, module.out_features, quantizer=quantizer)


@hookimpl
def lorakit_convert_module(module: nn.Module, dtype: torch.dtype, plugins: Plugins) -> nn.Module | None:
    if (layers := _layers()) is None:
        return None
    if isinstance(module, layers.Linear4bit):
        return _own_four_bits(module, plugins)
    return _own_eight_bits(module, dtype, plugins) if isinstance(module, layers.Linear8bitLt) else None


def _layers() -> Any:
    # a model can hold one only if bitsandbytes was imported before
    return sys.modules.get("bitsandbytes.nn")


def _four_bits(layer: Any) -> Quantizer | None:
    """Return the quantizer of a layer whose weight is packed, or will be once it is read."""
    from lorakit.builtin.fourbit import FP4, NF4

    weight = layer.weight
    if weight.dtype != weight.quant_storage:
        return None
    return {"nf4": NF4, "fp4": FP4}[weight.quant_type](blocksize=weight.blocksize, double=weight.compress_statistics)


def _eight_bits(layer: Any) -> Quantizer | None:
    from lorakit.builtin.int8 import Int8

    return None if layer.weight.is_floating_point() else Int8(threshold=layer.state.threshold)


def _own_four_bits(layer: Any, plugins: Plugins) -> nn.Module | None:
    from lorakit.builtin.fourbit import FP4, NF4
    from lorakit.layers.quantized_linear import QuantizedLinear

    state = layer.weight.quant_state
    if state is None:
        # not quantized yet: bitsandbytes does that when the layer first moves to its device
        return None
    quantizer = {"nf4": NF4, "fp4": FP4}[state.quant_type](blocksize=state.blocksize, double=state.nested)
    tensors = {"packed": layer.weight.data, "absmax": state.absmax}
    if state.nested:
        tensors |= {"nested_absmax": state.state2.absmax, "nested_offset": state.offset.view(1)}
    quantized = QuantizedWeight(tensors, (layer.out_features, layer.in_features), state.dtype)
    return QuantizedLinear(quantized, quantizer, layer.bias, plugins.kernels)


def _own_eight_bits(layer: Any, dtype: torch.dtype, plugins: Plugins) -> nn.Module | None:
    from lorakit.builtin.int8 import Int8
    from lorakit.layers.quantized_linear import QuantizedLinear

    codes = layer.weight.CB if layer.weight.CB is not None else layer.state.CB
    scales = layer.weight.SCB if layer.weight.SCB is not None else layer.state.SCB
    if codes is None or scales is None:
        return None
    quantized = QuantizedWeight({"CB": codes, "SCB": scales}, (layer.out_features, layer.in_features), dtype)
    return QuantizedLinear(quantized, Int8(threshold=layer.state.threshold), layer.bias, plugins.kernels)
