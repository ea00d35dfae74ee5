"""Weights quantized one by one while transformers loads a model, through the quantizers that it lets others add."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import chain
from typing import Any

from torch import Size, Tensor
from transformers import PreTrainedModel
from transformers.core_model_loading import ConversionOps
from transformers.quantizers.auto import register_quantization_config, register_quantizer
from transformers.quantizers.base import HfQuantizer
from transformers.utils.quantization_config import QuantizationConfigMixin

from lorakit.application.places import parents_of
from lorakit.application.starting import Starter
from lorakit.application.storing import canonical, quantized_layer
from lorakit.errors import LorakitError, ModelError
from lorakit.hooks.protocols import Observer
from lorakit.huggingface import marks
from lorakit.planning.place import Place
from lorakit.planning.plan import PlanEntry
from lorakit.values import ModelReference, QuantizedWeight

METHOD = "lorakit_plan"


class Halt(BaseException):
    """Carries an error out of transformers, which collects every Exception and reads on to the end of the model."""

    def __init__(self, error: LorakitError) -> None:
        super().__init__(str(error))
        self.error = error


class LayersQuantizer(HfQuantizer):
    """Loads a model with lorakit's own layers in it, which leave no mark on the model or its config."""

    def is_serializable(self) -> bool:
        return False

    @property
    def is_trainable(self) -> bool:
        return True

    def preprocess_model(self, model: PreTrainedModel, *args: Any, **kwargs: Any) -> None:
        super().preprocess_model(model, *args, **kwargs)
        self.shapes = _shapes(model)

    def _process_model_after_weight_loading(self, model: PreTrainedModel, **_: Any) -> PreTrainedModel:
        # where there is a quantizer, transformers before 5.23 lets a tensor of any shape in
        for name, found in _shapes(model).items():
            if found != (needed := self.shapes.get(name, found)):
                raise ModelError(f"`{name}` is {tuple(found)} in the files and {tuple(needed)} in the model")
        marks.clear(model)
        return model


def _shapes(model: PreTrainedModel) -> dict[str, Size]:
    return {name: value.shape for name, value in chain(model.named_parameters(), model.named_buffers())}


@register_quantization_config(METHOD)
class PlanConfig(QuantizationConfigMixin):
    """The entries of a plan whose adapters start, and whose weights are quantized, while they are read, by path."""

    def __init__(self, entries: Mapping[str, PlanEntry], starter: Starter, device: str | None) -> None:
        self.quant_method = METHOD  # type: ignore[assignment]
        self.entries, self.starter, self.device = entries, starter, device

    def to_dict(self) -> dict[str, Any]:
        return {"quant_method": METHOD}

    def __deepcopy__(self, memo: dict[int, Any]) -> PlanConfig:
        # transformers copies a config several times; nothing of this one ever changes
        return self


@register_quantizer(METHOD)
class PlanQuantizer(LayersQuantizer):
    """Quantizes what a plan says, tensor by tensor, and puts the layers in place once all is read."""

    quantization_config: PlanConfig

    def __init__(self, quantization_config: Any, **kwargs: Any) -> None:
        super().__init__(quantization_config, **kwargs)
        self.quantized: dict[str, QuantizedWeight] = {}

    def param_needs_quantization(self, model: PreTrainedModel, param_name: str, **kwargs: Any) -> bool:
        place = Place(param_name, is_parameter=True)
        # transformers casts to the model's dtype first: a layer with another one is left to `apply_plan`
        return (
            place.leaf == "weight"
            and place.holder in self.quantization_config.entries
            and model.get_parameter(param_name).dtype == model.config.dtype
        )

    def get_quantize_ops(self) -> ConversionOps:
        return _Quantize(self)

    def quantize(self, model: PreTrainedModel, name: str, weight: Tensor) -> Tensor:
        """Keep a weight quantized, and return what stands for it until all is read: one element, under its shape."""
        path = Place(name, is_parameter=True).holder
        expected = model.get_parameter(name)
        if weight.shape != expected.shape:
            raise ModelError(f"`{name}` is {tuple(weight.shape)} in the files and {tuple(expected.shape)} in the model")
        config = self.quantization_config
        entry = config.entries[path]
        assert entry.shape is not None
        seen = canonical(weight.to(config.device), entry.shape)
        quantized = config.starter.start(entry, lambda: seen).quantized
        assert quantized is not None
        self.quantized[path] = quantized
        return weight.new_empty(1).expand(weight.shape)

    def _process_model_after_weight_loading(self, model: PreTrainedModel, **kwargs: Any) -> PreTrainedModel:
        held, config = parents_of(model), self.quantization_config
        for path, quantized in self.quantized.items():
            original = model.get_submodule(path)
            layer = quantized_layer(original, config.entries[path], quantized, config.starter.plugins)
            for parent, name in held[original]:
                setattr(parent, name, layer)
        return super()._process_model_after_weight_loading(model, **kwargs)


class _Quantize(ConversionOps):
    def __init__(self, quantizer: PlanQuantizer) -> None:
        self.quantizer = quantizer

    def convert(  # type: ignore[override]
        self, input_dict: dict[str, Any], *, model: PreTrainedModel, **_: Any
    ) -> dict[str, Tensor]:
        result: dict[str, Tensor] = {}
        for name, found in input_dict.items():
            value = found[0] if isinstance(found, list) else found
            # what was one tensor in the files may be several layers here, and not all of them planned
            if self.quantizer.param_needs_quantization(model, name):
                try:
                    value = self.quantizer.quantize(model, name, value)
                except LorakitError as error:
                    raise Halt(error) from error
            result[name] = value
        return result


def plan_config(reference: ModelReference) -> PlanConfig | None:
    """Return what transformers has to know of a reference's plan; None if there is nothing to quantize on the way."""
    plugins = reference.plugins
    if reference.plan is None or plugins is None:
        return None
    starter = reference.starter or Starter(reference.plan, plugins, initialize=False)
    # what looks at inputs first needs the whole model
    entries = {entry.path: entry for entry in reference.plan.entries if entry.quant and not _observes(entry, starter)}
    return PlanConfig(entries, starter, reference.device) if entries else None


def _observes(entry: PlanEntry, starter: Starter) -> bool:
    assert entry.quant is not None
    init = entry.adapter.settings.init if entry.adapter and starter.initialize else None
    plugins = starter.plugins
    lookers = [plugins.quantizer(entry.quant), *([plugins.initializer(init)] if init else [])]
    return any(isinstance(one, Observer) for one in lookers)
