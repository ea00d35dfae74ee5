"""One module's entry of a plan: what was decided, with the parameters that its method adds and what they weigh."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import fields, replace

from lorakit.hooks.manager import Plugins
from lorakit.hooks.protocols import OptimizerFactory
from lorakit.language.spec import Adapt, Quantize, Train
from lorakit.planning.cascade import place
from lorakit.planning.inventory import ModuleInfo
from lorakit.planning.plan import DTYPES, AdapterPlan, Bytes, ParameterPlan, Plan, PlanEntry, Settings
from lorakit.values import LayerShape

ITEMSIZE = {"bfloat16": 2, "float16": 2, "float32": 4, "float64": 8}


class UnfitError(ValueError):
    """A method has no adapter for a layer, or not with these settings."""


def make_entry(
    module: ModuleInfo,
    adapt: Adapt | None,
    quantize: Quantize | None,
    train: Train | None,
    plugins: Plugins,
    factory: OptimizerFactory,
) -> PlanEntry:
    """Return the entry of a module. Raises: UnfitError with the reason if its method does not take it."""
    quant = adapt.quant if adapt else quantize.quant if quantize else None
    weight, shape = module.weight, module.shape
    before = sum(parameter.bytes for parameter in module.parameters)
    after = before
    if quant and weight and shape:
        bits = plugins.quantizer(quant).bits_per_weight((shape.out_features, shape.in_features))
        after = before - weight.bytes + round(bits * weight.numel / 8)
    adapter = _adapter(module, adapt, plugins) if adapt else None
    full = _trained_in_full(module, adapt, train)
    own = adapter.own if adapter else ()
    own_bytes, own_trained = _bytes(own, adapter), _bytes([one for one in own if one.trains], adapter)
    trained_bytes = sum(numel * itemsize for numel, itemsize in full)
    return PlanEntry(
        path=module.path,
        class_name=module.class_name,
        shape=shape,
        dtype=weight.dtype if weight else module.parameters[0].dtype,
        parameters=sum(parameter.numel for parameter in module.parameters),
        quant=quant,
        adapter=adapter,
        train=train is not None,
        train_lr=train.lr if train else None,
        decided_by=tuple(place(rule) for rule in (adapt, quantize, train) if rule is not None),
        bytes=Bytes(
            weight_before=before,
            weight_after=after,
            adapter=own_bytes,
            gradient=own_trained + trained_bytes,
            optimizer=_optimizer_bytes(own, adapter, factory)
            + sum(factory.state_bytes(numel, itemsize) for numel, itemsize in full),
        ),
    )


def settings_of(adapt: Adapt, plugins: Plugins) -> Settings:
    """Return the clauses of a rule that its method takes; where alpha is not given it is the rank."""
    taken = plugins.method(adapt.method).clauses
    given = {field.name: getattr(adapt, field.name) for field in fields(Settings) if field.name in taken}
    if "alpha" in taken and given["alpha"] is None:
        given["alpha"] = float(adapt.rank or 1)
    return Settings(**given)


def table_of(layer: LayerShape, adapter: AdapterPlan, plugins: Plugins, what: str) -> tuple[ParameterPlan, ...]:
    """Return the parameters that an adapter's method adds to a layer. Raises: UnfitError naming the layer as `what`."""
    name = adapter.method.name
    try:
        table = tuple(plugins.method(adapter.method).parameters(layer, adapter.settings))
    except ValueError as error:
        raise UnfitError(f"`{name}` does not fit {what}: {error}") from error
    if not table:
        raise UnfitError(f"`{name}` has no adapter for {what}")
    return table


def with_shared(entries: Sequence[PlanEntry], factory: OptimizerFactory) -> tuple[PlanEntry, ...]:
    """Return entries whose shared parameters have one shape each, the largest in every dimension.

    The first entry that has one answers for its bytes.
    """
    shapes: dict[str, tuple[int, ...]] = {}
    for parameter in _shared(entries):
        known = shapes.get(parameter.shared, parameter.shape)
        shapes[parameter.shared] = tuple(map(max, known, parameter.shape))
    if not shapes:
        return tuple(entries)
    counted: set[str] = set()
    result = []
    for entry in entries:
        if entry.adapter is not None:
            table = tuple(
                replace(one, shape=shapes[one.shared]) if one.shared else one for one in entry.adapter.parameters
            )
            first = [one for one in table if one.shared and one.shared not in counted]
            counted |= {one.shared for one in first}
            adapter = replace(entry.adapter, parameters=table)
            held = replace(
                entry.bytes,
                adapter=entry.bytes.adapter + _bytes(first, adapter),
                gradient=entry.bytes.gradient + _bytes([one for one in first if one.trains], adapter),
                optimizer=entry.bytes.optimizer + _optimizer_bytes(first, adapter, factory),
            )
            entry = replace(entry, adapter=adapter, bytes=held)
        result.append(entry)
    return tuple(result)


def with_settings(entry: PlanEntry, settings: Settings, plugins: Plugins, factory: OptimizerFactory) -> PlanEntry:
    """Return an entry whose adapter has other settings: its table and its bytes are those that they give."""
    assert entry.adapter is not None and entry.shape is not None
    before = entry.adapter
    after = replace(before, settings=settings, parameters=())
    after = replace(after, parameters=table_of(entry.shape, after, plugins, f"`{entry.path}`"))
    was, will = (_own_bytes(adapter, factory) for adapter in (before, after))
    held = replace(
        entry.bytes,
        adapter=entry.bytes.adapter - was[0] + will[0],
        gradient=entry.bytes.gradient - was[1] + will[1],
        optimizer=entry.bytes.optimizer - was[2] + will[2],
    )
    return replace(entry, adapter=after, bytes=held)


def _own_bytes(adapter: AdapterPlan, factory: OptimizerFactory) -> tuple[int, int, int]:
    """Return the bytes of an adapter's own parameters, of their gradients, and of their optimizer state."""
    trained = [one for one in adapter.own if one.trains]
    return _bytes(adapter.own, adapter), _bytes(trained, adapter), _optimizer_bytes(trained, adapter, factory)


def completed(plan: Plan, plugins: Plugins) -> Plan:
    """Return a plan whose every adapter has its table of parameters; plans of version 1 come without.

    Raises: UnfitError, PluginError if a method is not installed.
    """
    if all(entry.adapter is None or entry.adapter.parameters for entry in plan.entries):
        return plan
    entries = [
        replace(
            entry,
            adapter=replace(entry.adapter, parameters=table_of(entry.shape, entry.adapter, plugins, f"`{entry.path}`")),
        )
        if entry.adapter is not None and entry.shape is not None
        else entry
        for entry in plan.entries
    ]
    return replace(plan, entries=with_shared(entries, plugins.optimizer(plan.optimizer.call)))


def _shared(entries: Iterable[PlanEntry]) -> Iterable[ParameterPlan]:
    return (one for entry in entries if entry.adapter for one in entry.adapter.parameters if one.shared)


def _adapter(module: ModuleInfo, adapt: Adapt, plugins: Plugins) -> AdapterPlan:
    assert module.shape is not None
    weight = module.weight
    base = weight.dtype if weight and weight.dtype in ITEMSIZE else "bfloat16"
    biases = _biases(module, adapt)
    plan = AdapterPlan(
        method=adapt.method,
        settings=settings_of(adapt, plugins),
        parameters=(),
        dtype=DTYPES[adapt.dtype] if adapt.dtype else "bfloat16" if adapt.quant else base,
        bias=adapt.bias,
        lr=adapt.lr,
        paged=adapt.paged,
        bias_parameters=sum(numel for numel, _ in biases),
    )
    return replace(plan, parameters=table_of(module.shape, plan, plugins, f"`{module.path}`, a {module.class_name}"))


def _biases(module: ModuleInfo, adapt: Adapt) -> list[tuple[int, int]]:
    """Return (numel, itemsize) of the base layer's biases that train with the adapter."""
    wanted = adapt.bias == "adapter"
    return [(one.numel, one.itemsize) for one in module.parameters if one.name == "bias" and wanted]


def _trained_in_full(module: ModuleInfo, adapt: Adapt | None, train: Train | None) -> list[tuple[int, int]]:
    """Return (numel, itemsize) of everything of the module itself that trains."""
    if adapt:
        return _biases(module, adapt)
    return [(one.numel, one.itemsize) for one in module.parameters] if train else []


def _bytes(parameters: Iterable[ParameterPlan], adapter: AdapterPlan | None) -> int:
    return sum(one.numel * ITEMSIZE[one.dtype or adapter.dtype] for one in parameters) if adapter else 0


def _optimizer_bytes(
    parameters: Iterable[ParameterPlan], adapter: AdapterPlan | None, factory: OptimizerFactory
) -> int:
    if adapter is None:
        return 0
    return sum(
        factory.state_bytes(math.prod(one.shape), ITEMSIZE[one.dtype or adapter.dtype])
        for one in parameters
        if one.trains
    )
