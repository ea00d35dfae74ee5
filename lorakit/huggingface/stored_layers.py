"""Bases in lorakit's own form: their quantized layers stand in the model before transformers loads it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from transformers import PreTrainedModel
from transformers.quantizers.auto import register_quantization_config, register_quantizer
from transformers.utils.quantization_config import QuantizationConfigMixin

from lorakit.artifacts.checkpoint import StoredTensor
from lorakit.errors import ModelError
from lorakit.hooks.installed import installed
from lorakit.hooks.manager import Plugins
from lorakit.huggingface.base_manifest import METHOD, StoredLayer, read_manifest
from lorakit.huggingface.streaming import LayersQuantizer


@register_quantization_config(METHOD)
class StoredConfig(QuantizationConfigMixin):
    """The quantized layers that a folder holds."""

    def __init__(self, layers: Any = None, version: Any = None, plugins: Plugins | None = None, **_: Any) -> None:
        self.quant_method = METHOD  # type: ignore[assignment]
        self.layers = read_manifest({"layers": layers, "version": version})
        # transformers reads such a folder by itself wherever lorakit was imported
        self.plugins = plugins or installed()

    def to_dict(self) -> dict[str, Any]:
        return {"quant_method": METHOD}

    def __deepcopy__(self, memo: dict[int, Any]) -> StoredConfig:
        return self

    def check(self, tensors: Mapping[str, StoredTensor]) -> None:
        """Compare what the files hold with what the config says. Raises: ModelError naming the first difference."""
        for path, layer in self.layers.items():
            for name, form in layer.tensors.items():
                found = tensors.get(f"{path}.weight_{name}")
                if found is None:
                    raise ModelError(f"`{path}` is stored as {layer.quant.name}, and its tensor `{name}` is missing")
                if found.shape != form.shape:
                    raise ModelError(f"`{path}` holds `{name}` as {found.shape} and not as {form.shape}")


@register_quantizer(METHOD)
class StoredQuantizer(LayersQuantizer):
    """Puts the layers in place that a folder holds, without their values."""

    quantization_config: StoredConfig

    def _process_model_before_weight_loading(self, model: PreTrainedModel, **_: Any) -> PreTrainedModel:
        modules = dict(model.named_modules())
        for path, layer in self.quantization_config.layers.items():
            if path not in modules:
                raise ModelError(f"this base is quantized at `{path}`, which {type(model).__name__} lacks")
            model.set_submodule(path, self._layer(path, layer, getattr(modules[path], "bias", None)))
        return model

    def _layer(self, path: str, layer: StoredLayer, bias: Any) -> Any:
        try:
            return layer.on_meta(self.quantization_config.plugins, bias)
        except ValueError as error:
            raise ModelError(f"config.json does not say how `{path}` is stored: {error}") from error
