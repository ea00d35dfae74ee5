"""What config.json says of a base in lorakit's own form: for each quantized layer its quantizer and its tensors."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch

from lorakit.dtypes import dtype_of, name_of
from lorakit.errors import ModelError
from lorakit.hooks.manager import Plugins
from lorakit.hooks.options import call_of
from lorakit.language.statements import PluginCall
from lorakit.layers.quantized_linear import QuantizedLinear
from lorakit.planning import codec
from lorakit.values import QuantizedWeight

METHOD, VERSION = "lorakit", 1


@dataclass(frozen=True, slots=True)
class TensorForm:
    """The shape and dtype of one tensor."""

    shape: tuple[int, ...]
    dtype: str

    def empty(self) -> torch.Tensor:
        """Return a meta tensor of this form. Raises: ValueError."""
        return torch.empty(self.shape, dtype=dtype_of(self.dtype), device="meta")


@dataclass(frozen=True, slots=True)
class StoredLayer:
    """A quantized layer (out_features, in_features) = `shape`; dequantizing `tensors` gives back `dtype`."""

    quant: PluginCall
    shape: tuple[int, int]
    dtype: str
    tensors: Mapping[str, TensorForm]

    def on_meta(self, plugins: Plugins, bias: torch.Tensor | None) -> QuantizedLinear:
        """Return the layer without its values. Raises: PluginError if its quantizer is not installed, ValueError."""
        tensors = {name: form.empty() for name, form in self.tensors.items()}
        quantized = QuantizedWeight(tensors, self.shape, dtype_of(self.dtype))
        return QuantizedLinear(quantized, plugins.quantizer(self.quant), bias, plugins.kernels)


def manifest(layers: Mapping[str, QuantizedLinear]) -> dict[str, Any]:
    """Return the `quantization_config` of a model that holds these layers by path, as plain JSON values."""
    return {"quant_method": METHOD, "version": VERSION, "layers": codec.to_plain(dict(_stored(layers.items())))}


def read_manifest(plain: Mapping[str, Any]) -> Mapping[str, StoredLayer]:
    """Return the layers of a `quantization_config` by path. Raises: ModelError."""
    if plain.get("version") != VERSION:
        raise ModelError(f"this base is of version {plain.get('version')}; this lorakit reads {VERSION}")
    try:
        layers: Mapping[str, StoredLayer] = codec.from_plain(Mapping[str, StoredLayer], plain.get("layers"))
    except (TypeError, ValueError) as error:
        raise ModelError(f"config.json does not say how the base is quantized: {error}") from error
    return layers


def _stored(layers: Iterable[tuple[str, QuantizedLinear]]) -> Iterable[tuple[str, StoredLayer]]:
    for path, layer in layers:
        quantized = layer.quantized
        forms = {
            name: TensorForm(tuple(value.shape), name_of(value.dtype)) for name, value in quantized.tensors.items()
        }
        yield path, StoredLayer(call_of(layer.quantizer), quantized.shape, name_of(quantized.dtype), forms)
