"""Apply a Plan to a model: observe, start, store and build with the model as it is, then commit all or nothing."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from lorakit.application.building import build_adapter
from lorakit.application.compute import cast, check_compute, uncast
from lorakit.application.observing import observe, watched
from lorakit.application.places import (
    adapt_parameter,
    base_layer_of,
    full_tensors,
    holder_of,
    replace_modules,
)
from lorakit.application.resting import original_weight
from lorakit.application.snapshot import unchanged_on_failure
from lorakit.application.starting import Pair, Started, Starter
from lorakit.application.state import DEFAULT, Adapted, NamedAdapter, adapted_state, attach
from lorakit.application.statistics import small_buffers
from lorakit.application.storing import check_stored, layer_weight, quantized_layer, with_weight
from lorakit.application.switching import disabled, remember_base, use
from lorakit.application.waiting import begin_waiting, check_can_wait, waits
from lorakit.errors import ModelError, PlanError
from lorakit.hooks.manager import Plugins
from lorakit.layers.quantized_linear import QuantizedLinear
from lorakit.planning.entries import completed
from lorakit.planning.figures import finished
from lorakit.planning.inventory import Inventory
from lorakit.planning.moving import moved
from lorakit.planning.place import Place
from lorakit.planning.plan import Plan, PlanEntry, check_once
from lorakit.planning.reading import read_inventory, with_quantizers
from lorakit.planning.wrappers import plain_modules

Progress = Callable[[Sequence[PlanEntry]], Iterable[PlanEntry]]


def apply_plan(
    plan: Plan,
    model: nn.Module,
    plugins: Plugins,
    *,
    seed: int = 0,
    name: str = DEFAULT,
    inventory: Inventory | None = None,
    initialize: bool = True,
    progress: Progress = iter,
    calibration: Iterable[Any] | None = None,
    taken: Mapping[str, Pair] | None = None,
    started: Mapping[str, Started] | None = None,
) -> nn.Module:
    """Return the model, adapted in place under a name; if anything fails, hooks included, it is as it was before.

    The same plan, weights and seed give the same bits on every device: each adapter draws from a generator of its own.
    In a process that waits for the values of the first, all is made without any. On a model that has adapters already,
    the new ones stand around those, and alone are in use. `calibration` holds batches for plugins that see inputs
    first; an initializer that has seen them may move ranks, and the model then remembers the plan with these. `taken`
    and `started` are what an earlier start of the same adapter took from the base, and what was started while the model
    was read.
    Raises: ModelError if the name is taken or the first process's model holds meta tensors, PlanError if it is not the
    planned one or a plugin lacks calibration data.
    """
    state = adapted_state(model)
    _check_name(state, name)
    with unchanged_on_failure(model, _values_at_risk(model, state)):
        earlier = None if state is None else state.copied()
        try:
            plan = completed(plan, plugins)
            plugins.before_apply(model, plan)
            modules = plain_modules(model.named_modules())
            is_waiting = waits(model)
            _check(plan, model, modules, is_waiting=is_waiting)
            if is_waiting:
                check_can_wait(plan, plugins, taken or {}, _observers(plan, model, plugins))
                # what adapters begin with comes from the first process as all else
                initialize = False
            check_compute(model, state, plan)
            # taken over before the model runs, since bitsandbytes' own layers may repack their weights when they do
            converted = _converted(modules.values(), plugins)
            # a new adapter is alone in use, and so sees what the base alone computes
            with disabled(model, state) if state is not None else nullcontext():
                observed = observe(plan, model, plugins, calibration, initialize=initialize)
            inventory = state.inventory if state else inventory or read_inventory(model, plugins)
            if initialize and (after := moved(plan, observed, plugins)) is not plan:
                plan = finished(after, inventory, plugins)
            starter = Starter(plan, plugins, seed, initialize, observed, taken or {}, dict(started or {}))
            # with what the adapters before it give back while they are out of use
            modules = modules if state is None else plain_modules(model.named_modules())
            built = _build(plan, model, modules, converted, state, starter, progress)
            if state is None:
                state = Adapted(inventory, plugins, buffers=small_buffers(model))
            if is_waiting:
                begin_waiting(model, plan, state)
            _commit(model, state, NamedAdapter(name, plan, seed, built.adapters, taken=built.taken), built)
            plugins.model_ready(model, plan)
        except BaseException:
            if state is not None and (earlier is None or earlier["cast"] is None):
                uncast(state)
            if state is not None and earlier is not None:
                state.restore(earlier)
            raise
    return model


@dataclass
class _Built:
    """What takes the place of what, and the adapters by the path of their entry; nothing of it is in the model yet."""

    layers: dict[nn.Module, nn.Module]
    adapters: dict[str, nn.Module] = field(default_factory=dict)
    taken: dict[str, Pair] = field(default_factory=dict)


def _build(
    plan: Plan,
    model: nn.Module,
    modules: Mapping[str, nn.Module],
    converted: dict[nn.Module, nn.Module],
    state: Adapted | None,
    starter: Starter,
    progress: Progress,
) -> _Built:
    built = _Built(converted)
    shared: dict[str, nn.Parameter] = {}
    for entry in progress(plan.entries):
        if entry.is_parameter:
            holder, _ = holder_of(model, entry)
            if entry.adapter is not None:
                values = starter.start(entry, None).values
                built.adapters[entry.path] = build_adapter(holder, entry, values, shared, starter.plugins)
                starter.forget(entry)
            continue
        original = modules[entry.path]
        layer: nn.Module = converted.get(original) or original
        if entry.quant is not None or entry.adapter is not None:
            begun, layer = _stored(layer, entry, state, starter)
            if begun.taken is not None:
                built.taken[entry.path] = begun.taken
            if entry.adapter is not None:
                layer = build_adapter(layer, entry, begun.values, shared, starter.plugins)
                built.adapters[entry.path] = layer
        built.layers[original] = layer
        starter.forget(entry)
    return built


def _stored(layer: nn.Module, entry: PlanEntry, state: Adapted | None, starter: Starter) -> tuple[Started, nn.Module]:
    """Return what an entry begins with, and its layer with the weight as it will be stored.

    Under other adapters, and in a base that came quantized, the weight stays as it is.
    """
    base, shape = base_layer_of(layer), entry.shape
    assert shape is not None
    is_stored = isinstance(base, QuantizedLinear)
    if entry.quant is not None:
        if isinstance(base, QuantizedLinear):
            check_stored(base, entry, starter.plugins)
        elif state is not None:
            raise ModelError(
                f"the plan quantizes `{entry.path}`, which would change what {', '.join(state.named)} on it compute: "
                "leave `quant` out, or load with quantize=False"
            )
    others = state.named.values() if state is not None else ()
    begun = starter.start(
        entry,
        lambda: original_weight(others, entry, layer_weight(base, shape)),
        stores=state is None and not is_stored,
    )
    if begun.quantized is not None and not is_stored:
        layer = quantized_layer(layer, entry, begun.quantized, starter.plugins)
    elif begun.weight is not None and not is_stored:
        layer = with_weight(layer, begun.weight, shape)
    return begun, layer


def _commit(model: nn.Module, state: Adapted, adapter: NamedAdapter, built: _Built) -> None:
    """Put everything that was built into the model, and freeze the rest."""
    for parameter in model.parameters():
        parameter.requires_grad_(False)
    replace_modules(model, built.layers)
    for entry in adapter.plan.entries:
        if entry.is_parameter and entry.path in built.adapters:
            adapt_parameter(*holder_of(model, entry), built.adapters[entry.path])
    remember_base(model, state, adapter)
    state.inventory = with_quantizers(state.inventory, adapter.plan, state.plugins)
    state.named[adapter.name] = adapter
    cast(model, state, adapter.plan.compute)
    attach(model, state)
    use(model, state, {adapter.name: 1.0})


def _values_at_risk(model: nn.Module, state: Adapted | None) -> list[Tensor]:
    """Return what stands differently once another adapter is in use: what adapters train in full."""
    adapters = state.named.values() if state is not None else ()
    return [
        tensor
        for adapter in adapters
        for entry in adapter.plan.entries
        for tensor in full_tensors(model, entry).values()
    ]


def _check_name(state: Adapted | None, name: str) -> None:
    if state is not None and name in state.named:
        raise ModelError(
            f"this model is adapted already, under the name `{name}`: give the new adapter a `name` of its own, "
            "or merge the old one, or load the model again"
        )
    if state is not None:
        state.check_apart()
    if not name or "." in name or "/" in name:
        raise ModelError(f"an adapter's name is a word, not {name!r}")


def _observers(plan: Plan, model: nn.Module, plugins: Plugins) -> Iterable[str]:
    return (f"`{one.name}`" for one in watched(plan, model, plugins))


def _check(plan: Plan, model: nn.Module, modules: dict[str, nn.Module], *, is_waiting: bool) -> None:
    check_once(plan)
    for entry in plan.entries:
        place = Place.of(entry)
        module = modules.get(place.module)
        if module is None or (place.is_parameter and not _holds(module, place.parameter)):
            raise PlanError(
                f"the plan is for another model: it decides `{entry.path}`, which {type(model).__name__} lacks"
            )
        if entry.is_whole and (entry.quant is not None or (entry.shape is not None and entry.shape.quantizer)):
            # no spec gives this, a plan that someone wrote may
            raise PlanError(f"`{entry.path}` is stored quantized, and cannot be trained or held in full")
        has_none = any(parameter is not None and parameter.is_meta for parameter in module._parameters.values())
        if has_none and not is_waiting:
            raise ModelError(f"`{entry.path}` has no weights (a meta tensor): load the model before applying a plan")


def _holds(module: nn.Module, name: str) -> bool:
    return name in module._parameters or parametrize.is_parametrized(module, name)


def _converted(modules: Collection[nn.Module], plugins: Plugins) -> dict[nn.Module, nn.Module]:
    """Return lorakit's own layers for those that another library holds quantized; their packed weights move over."""
    converted: dict[nn.Module, nn.Module] = {}
    held = (value for module in modules for value in module._parameters.values() if value is not None)
    dtype = next((value.dtype for value in held if value.is_floating_point()), torch.get_default_dtype())
    for module in modules:
        if module._parameters and (own := plugins.convert_module(module, dtype)) is not None:
            converted[module] = own
    return converted
