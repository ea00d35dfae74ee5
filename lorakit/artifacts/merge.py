"""Merge: fold adapters into the base weights, for good or until they are unmerged."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from lorakit.application.compute import cast, cast_more, own_dtypes, uncast
from lorakit.application.effective import effective, merged_layer
from lorakit.application.places import (
    adapters_of_parameter,
    bare_parameter,
    base_layer_of,
    free_parameter,
    holder_of,
    module_at,
    replace_modules,
)
from lorakit.application.sharding import gathered
from lorakit.application.snapshot import unchanged_on_failure
from lorakit.application.state import Adapted, detach, state_of, unwrapped
from lorakit.application.statistics import let_go
from lorakit.artifacts.rounding import Rounding
from lorakit.errors import AdapterError, ModelError
from lorakit.layers.quantized_linear import QuantizedLinear
from lorakit.planning.plan import PlanEntry


@dataclass(frozen=True, slots=True)
class MergeReport:
    """What rounding to the merged dtype cost: the largest error against W₀ + ΔW in float32, and the relative one.

    `untied` names the modules whose weight was shared with another and now is their own.
    """

    modules: int
    max_error: float
    relative_error: float
    untied: tuple[str, ...]


@dataclass(slots=True)
class _Folded:
    """What merging makes, with nothing of it in the model yet: plain layers by path, and parameters by path."""

    layers: dict[str, nn.Module] = field(default_factory=dict)
    parameters: dict[str, tuple[PlanEntry, nn.Parameter]] = field(default_factory=dict)
    untied: list[str] = field(default_factory=list)
    rounding: Rounding = field(default_factory=Rounding)

    @property
    def report(self) -> MergeReport:
        rounding = self.rounding
        return MergeReport(rounding.modules, rounding.largest, rounding.relative, tuple(self.untied))


def merge_model(model: nn.Module, *, requantize: bool = False) -> tuple[nn.Module, MergeReport]:
    """Return the model, in evaluation mode, with the adapters in use folded into its weights and no adapter left.

    A quantized weight comes back dequantized, in the dtype that it had before, and no class of lorakit is left; with
    `requantize` it is quantized again as it was, and the report's errors are those of quantizing.
    Raises: ModelError if the model is not adapted, AdapterError if a merged weight is not finite or a method cannot be
    merged; the model is untouched then.
    """
    state = state_of(model)
    model = unwrapped(model)
    state.check_apart()
    with own_dtypes(model, state):
        folded = _fold(model, state, requantize)
    plain = {module_at(model, path): layer for path, layer in folded.layers.items()}
    if not requantize:
        adapted = {base_layer_of(module) for module in plain}
        with own_dtypes(model, state):
            for module in model.modules():
                if isinstance(module, QuantizedLinear) and module not in adapted:
                    with gathered(module):
                        plain[module] = module.plain(module.weight)
    computes = state.cast.compute if state.cast else None
    try:
        uncast(state)
        _put(model, state, folded, plain)
    except BaseException:
        cast(model, state, computes)
        raise
    return model, folded.report


def _put(model: nn.Module, state: Adapted, folded: _Folded, plain: dict[nn.Module, nn.Module]) -> None:
    """Put what was folded into the model, all of it or nothing."""
    with unchanged_on_failure(model):
        replace_modules(model, plain)
        for entry, weight in folded.parameters.values():
            holder, name = holder_of(model, entry)
            free_parameter(holder, name)
            holder._parameters[name] = weight
        if folded.untied and hasattr(model, "config"):
            model.config.tie_word_embeddings = False  # type: ignore[union-attr]
        let_go(model)
        detach(model)
        state.plugins.model_merged(model)
        model.eval()


def merge_for_now(model: nn.Module, state: Adapted) -> MergeReport:
    """Fold the adapters in use into weights beside the base's own, which `unmerge` brings back bit for bit.

    Raises: ModelError if they are merged already or one cannot be put out of use, AdapterError as `merge_model`.
    """
    state.check_apart()
    with own_dtypes(model, state):
        folded = _fold(model, state, requantize=False)
    # as merging for good rounds them, and then in what the model computes in
    cast_more(state, [parameter for layer in folded.layers.values() for parameter in layer.parameters()])
    cast_more(state, [weight for _, weight in folded.parameters.values()])
    for path, layer in folded.layers.items():
        state.merged[path] = _exchange_layer(module_at(model, path), layer)
    for path, (entry, weight) in folded.parameters.items():
        state.merged[path] = _exchange_parameter(model, entry, weight)
    for adapter in state.named.values():
        adapter.fall_silent()
    return folded.report


def unmerge(model: nn.Module, state: Adapted) -> None:
    """Bring back the base's own weights and the adapters beside them. Raises: ModelError if nothing is merged."""
    if not state.merged:
        raise ModelError("the adapters are not merged")
    for adapter in state.named.values():
        for entry in adapter.plan.entries:
            if (original := state.merged.pop(entry.path, None)) is None:
                continue
            if isinstance(original, nn.Parameter):
                _exchange_parameter(model, entry, original)
            else:
                _exchange_layer(module_at(model, entry.path), original)
        adapter.answer(adapter.strength)


def _exchange_layer(adapter: nn.Module, layer: nn.Module) -> nn.Module:
    """Put another layer under the adapters of one, and return that which was there."""
    old = base_layer_of(adapter)
    while (below := adapter.get_submodule("base_layer")) is not old:
        adapter = below
    adapter.base_layer = layer
    return old


def _exchange_parameter(model: nn.Module, entry: PlanEntry, parameter: nn.Parameter) -> nn.Parameter:
    holder, name = holder_of(model, entry)
    slot = holder.get_submodule(f"parametrizations.{name}")
    old = slot.get_parameter("original")
    slot.original = parameter
    return old


def _fold(model: nn.Module, state: Adapted, requantize: bool) -> _Folded:
    folded = _Folded()
    shared = _shared_weights(model)
    entries = {entry.path: entry for adapter in state.named.values() for entry in adapter.plan.entries if entry.adapter}
    for path, entry in entries.items():
        if entry.is_parameter:
            folded.parameters[path] = (entry, _merged_parameter(model, entry, folded.rounding))
            continue
        module = module_at(model, path)
        with gathered(module):
            folded.layers[path] = _merged(module, entry, folded.rounding, requantize)
        if id(base_layer_of(module)._parameters.get("weight")) in shared:
            folded.untied.append(path)
    return folded


def _merged(module: nn.Module, entry: PlanEntry, rounding: Rounding, requantize: bool) -> nn.Module:
    base = base_layer_of(module)
    with torch.no_grad():
        layer, exact = merged_layer(module, entry)
        # as adapters see it, however the layer holds its own
        rounded = exact.to(layer.weight.dtype)  # type: ignore[arg-type]
        _check_finite(rounded, entry)
        if requantize and isinstance(base, QuantizedLinear):
            stored, bias = base.quantizer.quantize(rounded), layer.bias
            layer = QuantizedLinear(stored, base.quantizer, bias, base.kernels, base.form)  # type: ignore[arg-type]
            rounded = layer.weight
        rounding.add(exact, rounded)
    layer.train(module.training)
    return layer


def _merged_parameter(model: nn.Module, entry: PlanEntry, rounding: Rounding) -> nn.Parameter:
    holder, name = holder_of(model, entry)
    original = bare_parameter(holder, name)
    with torch.no_grad():
        exact, _ = effective(adapters_of_parameter(holder, name), original, entry)
        rounded = exact.to(original.dtype)
    _check_finite(rounded, entry)
    rounding.add(exact, rounded)
    return nn.Parameter(rounded, requires_grad=False)


def _check_finite(weight: Tensor, entry: PlanEntry) -> None:
    if not bool(torch.isfinite(weight).all()):
        raise AdapterError(
            f"merging `{entry.path}` gives values that are not finite in {weight.dtype}; nothing was merged"
        )


def _shared_weights(model: nn.Module) -> set[int]:
    seen: set[int] = set()
    shared: set[int] = set()
    for module in model.modules():
        for parameter in module._parameters.values():
            if parameter is not None:
                (shared if id(parameter) in seen else seen).add(id(parameter))
    return shared
