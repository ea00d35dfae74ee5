"""What PEFT says of the layers of a model and of the model, said of one that lorakit adapted."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, Literal

from peft.peft_model import TunerLayerStatus, TunerModelStatus
from torch import nn

from lorakit.application.places import base_of, full_parameters, own_parameters
from lorakit.application.state import NamedAdapter, state_of
from lorakit.hooks.options import call_of
from lorakit.language.printer import call_text
from lorakit.layers.quantized_linear import QuantizedLinear
from lorakit.planning.plan import PlanEntry
from lorakit.trainers.peft_tuner import SpecTuner

# where values differ that ought to be the same
IRREGULAR: Literal["irregular"] = "irregular"


def layer_status(tuner: SpecTuner, *, enabled: bool) -> list[TunerLayerStatus]:
    """Return the status of each place that has an adapter or trains in full, in the order of the plans."""
    state, active = state_of(tuner.model), tuner.active_adapters
    found: dict[str, dict[str, tuple[NamedAdapter, PlanEntry]]] = {}
    for adapter in state.named.values():
        for entry in adapter.plan.entries:
            if entry.adapter is not None or entry.train:
                found.setdefault(entry.path, {})[adapter.name] = (adapter, entry)
    for name, one in tuner.earlier.items():
        for held in found.values():
            if one.of in held:
                held[name] = held[one.of]
    merged = [one.name for one in state.used] if state.merged else []
    return [
        _status(tuner, path, held, enabled, active, [name for name in merged if name in held])
        for path, held in found.items()
    ]


def _status(
    tuner: SpecTuner,
    path: str,
    held: Mapping[str, tuple[NamedAdapter, PlanEntry]],
    enabled: bool,
    active: list[str],
    merged: list[str],
) -> TunerLayerStatus:
    parameters = {name: list(_parameters(tuner.model, *one)) for name, one in held.items()}
    adapter, entry = list(held.values())[-1]
    base = base_of(tuner.model, entry)
    return TunerLayerStatus(
        name=f"model.{path}",
        module_type=type(adapter.modules.get(path, base)).__name__,
        enabled=enabled,
        active_adapters=active,
        merged_adapters=merged,
        requires_grad={
            name: False if name in tuner.earlier else _alike([one.requires_grad for one in found])
            for name, found in parameters.items()
        },
        available_adapters=sorted(held),
        devices={name: sorted({one.device.type for one in found}) for name, found in parameters.items()},
        quantization_backend=call_text(call_of(base.quantizer)) if isinstance(base, QuantizedLinear) else None,
    )


def _parameters(model: nn.Module, adapter: NamedAdapter, entry: PlanEntry) -> Iterator[nn.Parameter]:
    """Yield what an adapter trains at one place."""
    if entry.adapter is not None:
        own = own_parameters(adapter.modules[entry.path], entry)
        yield from (own[one.name] for one in entry.adapter.parameters if one.trains)
    yield from full_parameters(model, entry).values()


def model_status(tuner: SpecTuner, layers: Sequence[TunerLayerStatus], counts: tuple[int, int]) -> TunerModelStatus:
    """Return what the status of all layers comes to; `counts` are the parameters that train, and all."""
    names = sorted({name for layer in layers for name in layer.available_adapters})
    merged = {name for layer in layers for name in layer.merged_adapters}
    apart = any(merged & {*layer.available_adapters} - {*layer.merged_adapters} for layer in layers)
    return TunerModelStatus(
        base_model_type=type(tuner.model).__name__,
        adapter_model_type=type(tuner).__name__,
        peft_types={name: str(config.peft_type) for name, config in tuner.peft_config.items()},
        trainable_params=counts[0],
        total_params=counts[1],
        num_adapter_layers=len(layers),
        enabled=_alike([layer.enabled for layer in layers]),
        active_adapters=tuner.active_adapters,
        merged_adapters=IRREGULAR if apart else sorted(merged),
        requires_grad={
            name: _alike([layer.requires_grad[name] for layer in layers if name in layer.requires_grad])
            for name in names
        },
        available_adapters=names,
        devices={name: sorted({kind for layer in layers for kind in layer.devices.get(name, ())}) for name in names},
        quantization_backend=_alike([layer.quantization_backend for layer in layers]),
    )


def _alike(values: Iterable[Any]) -> Any:
    """Return the one value that there is; `irregular` where there are several."""
    found = set(values)
    return found.pop() if len(found) == 1 else IRREGULAR
