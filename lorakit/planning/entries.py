"""One module's entry of a plan: what was decided for it, with the parameters that its method adds."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace

from lorakit.errors import LorakitError, PlanError
from lorakit.hooks.manager import Plugins
from lorakit.language.statements import Adapt, Quantize, Rule, Train
from lorakit.planning.cascade import place
from lorakit.planning.computing import adapter_dtype
from lorakit.planning.hardware import Compute
from lorakit.planning.inventory import ModuleInfo
from lorakit.planning.plan import AdapterPlan, Bytes, ParameterPlan, Plan, PlanEntry, Settings
from lorakit.values import LayerShape

UNCOUNTED = Bytes(0, 0)


class UnfitError(PlanError):
    """A method has no adapter for a layer, or not with these settings."""


@dataclass
class EntryMaker:
    """Makes the entries of one plan, their bytes not yet counted; layers that are alike share what they have alike."""

    plugins: Plugins
    compute: Compute | None = None
    _adapters: dict[object, AdapterPlan] = field(default_factory=dict, init=False)
    _places: dict[object, tuple[str, ...]] = field(default_factory=dict, init=False)

    def entry(
        self, module: ModuleInfo, adapt: Adapt | None, quantize: Quantize | None, train: Train | None
    ) -> PlanEntry:
        """Return the entry of a module. Raises: UnfitError if its method does not take it."""
        weight = module.weight
        return PlanEntry(
            path=module.path,
            class_name=module.class_name,
            shape=module.shape,
            dtype=weight.dtype if weight else module.parameters[0].dtype,
            parameters=sum(parameter.numel for parameter in module.parameters),
            quant=adapt.quant if adapt else quantize.quant if quantize else None,
            adapter=self._adapter(module, adapt) if adapt else None,
            train=train is not None,
            train_lr=train.lr if train else None,
            decided_by=self._decided_by(adapt, quantize, train),
            bytes=UNCOUNTED,
        )

    def _adapter(self, module: ModuleInfo, adapt: Adapt) -> AdapterPlan:
        assert module.shape is not None
        biases = [one.numel for one in module.parameters if one.name == "bias" and adapt.bias == "adapter"]
        weight = module.weight.dtype if module.weight else None
        # shapes that differ in their quantizer alone are equal, and a method may look at it
        key = (id(adapt), module.shape, id(module.shape.quantizer), weight, *biases)
        if (known := self._adapters.get(key)) is not None:
            return known
        plan = AdapterPlan(
            method=adapt.method,
            settings=settings_of(adapt, self.plugins),
            parameters=(),
            dtype=adapter_dtype(adapt, weight, self.compute),
            bias=adapt.bias,
            lr=adapt.lr,
            paged=adapt.paged,
            bias_parameters=sum(biases),
        )
        table = table_of(module.shape, plan, self.plugins, f"`{module.path}`, a {module.class_name}")
        made = self._adapters[key] = replace(plan, parameters=table)
        return made

    def _decided_by(self, *rules: Rule | None) -> tuple[str, ...]:
        key = tuple(map(id, rules))
        if key not in self._places:
            self._places[key] = tuple(place(rule) for rule in rules if rule is not None)
        return self._places[key]


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
    tables = {id(entry.adapter.parameters): entry.adapter.parameters for entry in entries if entry.adapter}
    shapes: dict[str, tuple[int, ...]] = {}
    for one in (one for table in tables.values() for one in table if one.shared):
        shapes[one.shared] = tuple(map(max, shapes.get(one.shared, one.shape), one.shape))
    if not shapes:
        return tuple(entries)
    return tuple(_readapted(entries, lambda entry, adapter: _sharing(adapter, shapes)))


def _sharing(adapter: AdapterPlan, shapes: Mapping[str, tuple[int, ...]]) -> AdapterPlan:
    table = tuple(replace(one, shape=shapes[one.shared]) if one.shared else one for one in adapter.parameters)
    return replace(adapter, parameters=table)


def _readapted(
    entries: Sequence[PlanEntry], change: Callable[[PlanEntry, AdapterPlan], AdapterPlan]
) -> Iterator[PlanEntry]:
    """Yield entries with other adapters; those that share one, for layers of one shape, share what it becomes."""
    made: dict[tuple[int, int], AdapterPlan] = {}
    for entry in entries:
        if (adapter := entry.adapter) is None:
            yield entry
            continue
        key = id(adapter), id(entry.shape)
        if (changed := made.get(key)) is None:
            changed = made[key] = change(entry, adapter)
        yield entry if changed is adapter else replace(entry, adapter=changed)


def with_settings(entry: PlanEntry, settings: Settings, plugins: Plugins) -> PlanEntry:
    """Return an entry whose adapter has other settings, with the table that they give. Raises: UnfitError."""
    assert entry.adapter is not None
    return replace(entry, adapter=_with_table(entry, replace(entry.adapter, settings=settings), plugins))


def _with_table(entry: PlanEntry, adapter: AdapterPlan, plugins: Plugins) -> AdapterPlan:
    """Return an adapter with the table that its method gives; the very same if it has that already."""
    if entry.shape is None:
        raise UnfitError(f"the plan adapts `{entry.path}`, and has no shape for it")
    table = table_of(entry.shape, adapter, plugins, f"`{entry.path}`")
    return adapter if adapter.parameters == table else replace(adapter, parameters=table)


def unlike(entry: PlanEntry, module: ModuleInfo) -> str:
    """Return how a module differs from the one that an entry was planned for, in words; nothing if it does not."""
    if module.shape is entry.shape or module.shape == entry.shape:
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
    made = with_shared(list(_readapted(plan.entries, lambda entry, adapter: _with_table(entry, adapter, plugins))))
    if not all(entry.adapter is None or entry.adapter.parameters for entry in plan.entries):
        return replace(plan, entries=made)
    for entry, again in zip(plan.entries, made, strict=True):
        if again is not entry and (found := _shapes(entry)) != (given := _shapes(again)):
            raise UnfitError(
                f"the plan gives `{entry.path}` the parameters {_listed(found)}, and its method {_listed(given)}: "
                "the plan was changed by hand, or the method since; plan again"
            )
    return plan


def _shapes(entry: PlanEntry) -> dict[str, tuple[int, ...]]:
    return {one.name: one.shape for one in entry.adapter.parameters} if entry.adapter else {}


def _listed(shapes: Mapping[str, tuple[int, ...]]) -> str:
    return ", ".join(f"{name} {shape}" for name, shape in shapes.items()) or "none"
