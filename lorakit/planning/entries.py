"""One module's entry of a plan: what was decided for it, with the parameters that its method adds."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import fields, replace
from weakref import WeakKeyDictionary

from lorakit.errors import LorakitError, PlanError
from lorakit.hooks.manager import Plugins
from lorakit.language.statements import Adapt, Quantize, Train
from lorakit.planning.cascade import place
from lorakit.planning.computing import adapter_dtype
from lorakit.planning.hardware import Compute
from lorakit.planning.inventory import ModuleInfo
from lorakit.planning.plan import AdapterPlan, Bytes, ParameterPlan, Plan, PlanEntry, Settings
from lorakit.values import LayerShape

# layers that are alike have one table, which takes less memory and is told by being the same
_TABLES: WeakKeyDictionary[Plugins, dict[object, tuple[ParameterPlan, ...]]] = WeakKeyDictionary()


class UnfitError(PlanError):
    """A method has no adapter for a layer, or not with these settings."""


def make_entry(
    module: ModuleInfo,
    adapt: Adapt | None,
    quantize: Quantize | None,
    train: Train | None,
    plugins: Plugins,
    compute: Compute | None = None,
    made: dict[object, AdapterPlan] | None = None,
) -> PlanEntry:
    """Return the entry of a module, its bytes not yet counted; layers that are alike share an adapter out of `made`.

    Raises: UnfitError if its method does not take it.
    """
    weight = module.weight
    return PlanEntry(
        path=module.path,
        class_name=module.class_name,
        shape=module.shape,
        dtype=weight.dtype if weight else module.parameters[0].dtype,
        parameters=sum(parameter.numel for parameter in module.parameters),
        quant=adapt.quant if adapt else quantize.quant if quantize else None,
        adapter=_adapter(module, adapt, plugins, compute, {} if made is None else made) if adapt else None,
        train=train is not None,
        train_lr=train.lr if train else None,
        decided_by=tuple(place(rule) for rule in (adapt, quantize, train) if rule is not None),
        bytes=Bytes(0, 0),
    )


def settings_of(adapt: Adapt, plugins: Plugins) -> Settings:
    """Return the clauses of a rule that its method takes; where alpha is not given it is the rank.

    Raises: UnfitError.
    """
    taken = plugins.method(adapt.method).clauses
    given = {field.name: getattr(adapt, field.name) for field in fields(Settings) if field.name in taken}
    if "alpha" in taken and given["alpha"] is None:
        given["alpha"] = float(adapt.rank or 1)
    try:
        return Settings(**given)
    except ValueError as error:
        raise UnfitError(f"`{adapt.method.name}` does not take these settings: {error}") from error


def table_of(layer: LayerShape, adapter: AdapterPlan, plugins: Plugins, what: str) -> tuple[ParameterPlan, ...]:
    """Return the parameters that an adapter's method adds to a layer. Raises: UnfitError naming the layer as `what`."""
    if layer.quantizer is not None:
        # shapes that differ in it alone compare equal, and a method may look at it
        return _table(layer, adapter, plugins, what)
    known, key = _TABLES.setdefault(plugins, {}), (layer, adapter.method, adapter.settings)
    if key not in known:
        known[key] = _table(layer, adapter, plugins, what)
    return known[key]


def _table(layer: LayerShape, adapter: AdapterPlan, plugins: Plugins, what: str) -> tuple[ParameterPlan, ...]:
    name = adapter.method.name
    try:
        table = tuple(plugins.method(adapter.method).parameters(layer, adapter.settings))
    except LorakitError:
        raise
    # settings of a plan that anyone wrote may be such as no spec gives
    except Exception as error:
        reason = str(error) if isinstance(error, ValueError) else f"{type(error).__name__}: {error}"
        raise UnfitError(f"`{name}` does not fit {what}: {reason}") from error
    if not table:
        raise UnfitError(f"`{name}` has no adapter for {what}")
    return table


def with_shared(entries: Sequence[PlanEntry]) -> tuple[PlanEntry, ...]:
    """Return entries whose shared parameters have one shape each, the largest in every dimension."""
    shapes: dict[str, tuple[int, ...]] = {}
    for one in _shared(entries):
        shapes[one.shared] = tuple(map(max, shapes.get(one.shared, one.shape), one.shape))
    if not shapes:
        return tuple(entries)
    return tuple(_sharing(entry, shapes) for entry in entries)


def _sharing(entry: PlanEntry, shapes: Mapping[str, tuple[int, ...]]) -> PlanEntry:
    if entry.adapter is None:
        return entry
    table = tuple(replace(one, shape=shapes[one.shared]) if one.shared else one for one in entry.adapter.parameters)
    return replace(entry, adapter=replace(entry.adapter, parameters=table))


def with_settings(entry: PlanEntry, settings: Settings, plugins: Plugins) -> PlanEntry:
    """Return an entry whose adapter has other settings, with the table that they give. Raises: UnfitError."""
    assert entry.adapter is not None
    if entry.shape is None:
        raise UnfitError(f"the plan adapts `{entry.path}`, and has no shape for it")
    adapter = replace(entry.adapter, settings=settings)
    table = table_of(entry.shape, adapter, plugins, f"`{entry.path}`")
    return replace(entry, adapter=replace(adapter, parameters=table))


def unlike(entry: PlanEntry, module: ModuleInfo) -> str:
    """Return how a module differs from the one that an entry was planned for, in words; nothing if it does not."""
    if module.shape == entry.shape:
        return ""
    if str(module.shape) != str(entry.shape):
        return f"`{entry.path}` is {entry.shape} there and {module.shape} here"
    # where the weight is quantized already, the layer is that of who quantized it
    if entry.shape and module.shape and entry.shape.kind != module.shape.kind and not module.shape.quantizer:
        kinds = (entry.class_name, module.class_name)
        there, here = kinds if kinds[0] != kinds[1] else (entry.shape.kind, module.shape.kind)
        return f"`{entry.path}` is a {there} there and a {here} here"
    return ""


def completed(plan: Plan, plugins: Plugins) -> Plan:
    """Return a plan whose every adapter has its table of parameters; plans of version 1 come without.

    Raises: UnfitError, also for a table with other shapes than the method gives; PluginError if a method is missing.
    """
    if all(_is_as_made(entry, plugins) for entry in plan.entries):
        return plan
    made = with_shared(
        [
            with_settings(entry, entry.adapter.settings, plugins) if entry.adapter is not None else entry
            for entry in plan.entries
        ]
    )
    if all(entry.adapter is None or entry.adapter.parameters for entry in plan.entries):
        for entry, again in zip(plan.entries, made, strict=True):
            if (found := _shapes(entry)) != (given := _shapes(again)):
                raise UnfitError(
                    f"the plan gives `{entry.path}` the parameters {_listed(found)}, and its method {_listed(given)}: "
                    "the plan was changed by hand, or the method since; plan again"
                )
        return plan
    return replace(plan, entries=made)


def _is_as_made(entry: PlanEntry, plugins: Plugins) -> bool:
    """Whether an entry has the very table that its method gives, as in plans that were made here; else look closer."""
    if entry.adapter is None:
        return True
    return entry.shape is not None and entry.adapter.parameters is table_of(
        entry.shape, entry.adapter, plugins, f"`{entry.path}`"
    )


def _shapes(entry: PlanEntry) -> dict[str, tuple[int, ...]]:
    return {one.name: one.shape for one in entry.adapter.parameters} if entry.adapter else {}


def _listed(shapes: Mapping[str, tuple[int, ...]]) -> str:
    return ", ".join(f"{name} {shape}" for name, shape in shapes.items()) or "none"


def _shared(entries: Iterable[PlanEntry]) -> Iterable[ParameterPlan]:
    return (one for entry in entries if entry.adapter for one in entry.adapter.parameters if one.shared)


def _adapter(
    module: ModuleInfo, adapt: Adapt, plugins: Plugins, compute: Compute | None, made: dict[object, AdapterPlan]
) -> AdapterPlan:
    assert module.shape is not None
    biases = [one.numel for one in module.parameters if one.name == "bias" and adapt.bias == "adapter"]
    weight = module.weight.dtype if module.weight else None
    key = (id(adapt), module.shape, id(module.shape.quantizer), weight, *biases)
    if key in made:
        return made[key]
    plan = AdapterPlan(
        method=adapt.method,
        settings=settings_of(adapt, plugins),
        parameters=(),
        dtype=adapter_dtype(adapt, weight, compute),
        bias=adapt.bias,
        lr=adapt.lr,
        paged=adapt.paged,
        bias_parameters=sum(biases),
    )
    made[key] = replace(
        plan, parameters=table_of(module.shape, plan, plugins, f"`{module.path}`, a {module.class_name}")
    )
    return made[key]
