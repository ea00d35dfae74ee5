"""Weights that bitsandbytes stored quantized in a checkpoint, and the layers that hold them."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping

import torch
from torch import nn

from lorakit.artifacts.checkpoint import StoredTensor
from lorakit.dtypes import dtype_of
from lorakit.errors import ModelError
from lorakit.hooks.manager import Plugins
from lorakit.layers.quantized_linear import QuantizedLinear

FOUR_BIT = ".quant_state.bitsandbytes__"
EIGHT_BIT_SCALES, EIGHT_BIT_LAYOUT = "SCB", "weight_format"


def packed_weights(names: Iterable[str]) -> dict[str, tuple[str, ...]]:
    """Return the weights that bitsandbytes packed, each with the names of the tensors that go with it."""
    every = set(names)
    packed: dict[str, tuple[str, ...]] = {}
    for name in every:
        if FOUR_BIT in name:
            weight = name.partition(FOUR_BIT)[0]
            packed[weight] = tuple(sorted(other for other in every if other.startswith(f"{weight}.")))
        elif name.endswith(f".{EIGHT_BIT_SCALES}"):
            layer = name.removesuffix(EIGHT_BIT_SCALES)
            beside = (name, f"{layer}{EIGHT_BIT_LAYOUT}")
            packed[f"{layer}weight"] = tuple(other for other in beside if other in every)
    return packed


def packed_dtype(parts: Iterable[str], stored: Mapping[str, StoredTensor], otherwise: torch.dtype) -> torch.dtype:
    """Return the dtype that a weight had before it was packed, which only four-bit weights remember.

    Raises: ModelError.
    """
    state = next((name for name in parts if FOUR_BIT in name), None)
    if state is None:
        return otherwise
    try:
        return dtype_of(json.loads(stored[state][...].numpy().tobytes())["dtype"])
    except (ValueError, KeyError, TypeError) as error:
        raise ModelError(f"the packed weight's `{state}` cannot be read: {error}") from error


def packed_layer(
    name: str,
    parts: Iterable[str],
    shape: tuple[int, int],
    dtype: torch.dtype,
    stored: Mapping[str, StoredTensor],
    plugins: Plugins,
) -> QuantizedLinear:
    """Return lorakit's layer of a packed weight (out_features, in_features), which dequantizes to `dtype`.

    Raises: ModelError if the tensors do not go together.
    """
    import bitsandbytes as bnb

    out_features, in_features = shape
    weight, beside = stored[name][...], {part: stored[part][...] for part in parts}
    layer: nn.Module
    try:
        if any(FOUR_BIT in part for part in beside):
            stats = {part.removeprefix(f"{name}."): tensor for part, tensor in beside.items()}
            layer = bnb.nn.Linear4bit(in_features, out_features, bias=False, device="meta")
            layer.weight = bnb.nn.Params4bit.from_prequantized(weight, stats, device="cpu")
        else:
            layer = bnb.nn.Linear8bitLt(in_features, out_features, bias=False, has_fp16_weights=False, device="meta")
            scales = next(tensor for part, tensor in beside.items() if part.endswith(EIGHT_BIT_SCALES))
            layer.weight = bnb.nn.Int8Params(weight, requires_grad=False, CB=weight, SCB=scales)
    except (ValueError, KeyError, AssertionError) as error:
        raise ModelError(f"the packed weight `{name}` cannot be read: {error}") from error
    own = plugins.convert_module(layer, dtype)
    assert isinstance(own, QuantizedLinear)
    own.dequantized_dtype = dtype
    return own
