"""What is derived from a plan's entries: bytes, counts and the forecast, computed last and by one function."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import replace

from lorakit.dtypes import itemsize
from lorakit.errors import PlanError
from lorakit.hooks.manager import Plugins
from lorakit.hooks.protocols import OptimizerFactory
from lorakit.language.words import NONE
from lorakit.planning import memory
from lorakit.planning.computing import held_dtype
from lorakit.planning.entries import completed, unlike
from lorakit.planning.hardware import Compute
from lorakit.planning.inventory import Inventory, ModuleInfo
from lorakit.planning.plan import Bytes, Plan, PlanEntry, RuleSummary
from lorakit.planning.targets import container_counts

# the shape and the dtype of a tensor
Tensor = tuple[tuple[int, ...], str]


def finished(plan: Plan, inventory: Inventory, plugins: Plugins) -> Plan:
    """Return a plan with every figure that follows from its entries, for the step that `plan.memory` names.

    An adapter without a table of parameters gets the one that its method gives for its settings.
    Raises: PlanError if an entry decides a module that the model lacks or has in another shape, or a method does not
    fit its layer.
    """
    plan = completed(plan, plugins)
    factory = plugins.optimizer(plan.optimizer.call)
    shared: set[str] = set()
    entries = tuple(_measured(entry, inventory, plan.compute, plugins, factory, shared) for entry in plan.entries)
    return replace(
        plan,
        entries=entries,
        rules=tuple(_recounted(plan.rules, entries)),
        memory=memory.forecast(inventory, entries, plan.memory, plan.compute),
        groups=inventory.groups,
    )


def trained(entry: PlanEntry, module: ModuleInfo, compute: Compute | None, counted: set[str]) -> list[Tensor]:
    """Return what trains of an entry; what layers share is `counted` where it comes first."""
    adapter = entry.adapter
    table = [one for one in adapter.parameters if one.trains and one.shared not in counted] if adapter else []
    counted |= {one.shared for one in table if one.shared}
    dtype = adapter.dtype if adapter else ""
    return [*((one.shape, one.dtype or dtype) for one in table), *_in_full(entry, module, compute)]


def numel(shape: Iterable[int]) -> int:
    """Return the elements of a tensor of this shape."""
    count = 1
    for size in shape:
        count *= size
    return count


def size(tensors: Iterable[Tensor]) -> int:
    """Return the bytes of tensors."""
    return sum(numel(shape) * itemsize(dtype) for shape, dtype in tensors)


def _measured(
    entry: PlanEntry,
    inventory: Inventory,
    compute: Compute | None,
    plugins: Plugins,
    factory: OptimizerFactory,
    counted: set[str],
) -> PlanEntry:
    """Return an entry with its figures; what layers share is `counted` where it comes first."""
    module = inventory.modules.get(entry.path)
    if module is None:
        raise PlanError(
            f"the plan is for another model: it decides `{entry.path}`, which {inventory.model_class} lacks"
        )
    if difference := unlike(entry, module):
        raise PlanError(f"the plan is for another model: {difference}")
    full = _in_full(entry, module, compute)
    adapter, biases = entry.adapter, sum(numel(shape) for shape, _ in full)
    if adapter is not None and adapter.bias_parameters != biases:
        adapter = replace(adapter, bias_parameters=biases)
    table = [one for one in adapter.parameters if one.shared not in counted] if adapter else []
    counted |= {one.shared for one in table if one.shared}
    dtype = adapter.dtype if adapter else ""
    trained = [*((one.shape, one.dtype or dtype) for one in table if one.trains), *full]
    before = sum(parameter.bytes for parameter in module.parameters)
    after = before
    if entry.quant and module.weight and module.shape:
        bits = plugins.quantizer(entry.quant).bits_per_weight((module.shape.out_features, module.shape.in_features))
        after = before - module.weight.bytes + round(bits * module.weight.numel / 8)
    held = Bytes(
        weight_before=before,
        weight_after=after,
        adapter=size((one.shape, one.dtype or dtype) for one in table),
        gradient=size(trained),
        optimizer=sum(size(factory.state(*tensor).values()) for tensor in trained),
    )
    fresh = replace(entry, adapter=adapter, bytes=held)
    extra = plugins.estimate_memory(fresh)
    return replace(fresh, bytes=replace(held, extra=extra)) if extra else fresh


def _in_full(entry: PlanEntry, module: ModuleInfo, compute: Compute | None) -> list[Tensor]:
    """Return what trains of the module's own: all of it by `train`, its biases by `bias adapter`."""
    if entry.adapter is not None:
        own = [one for one in module.parameters if one.name == "bias" and entry.adapter.bias == "adapter"]
    else:
        own = list(module.parameters) if entry.train else []
    return [(one.shape, held_dtype(one, compute)) for one in own]


def _recounted(rules: Sequence[RuleSummary], entries: Sequence[PlanEntry]) -> Iterable[RuleSummary]:
    """Yield the rules with the modules that they decide now.

    Those that share a line cannot be told apart, and of what stays as it is there are no entries.
    """
    sharing = Counter((rule.place, rule.keyword) for rule in rules)
    decided: dict[tuple[str, str], list[str]] = {}
    for entry in entries:
        for place in entry.decided_by:
            for keyword in entry.keywords:
                decided.setdefault((place, keyword), []).append(entry.path)
    for rule in rules:
        key = (rule.place, rule.keyword)
        if sharing[key] > 1 or rule.quant == NONE:
            yield rule
        else:
            paths = decided.get(key, [])
            yield replace(rule, modules=len(paths), containers=container_counts(paths))
