"""What is derived from a plan's entries: bytes, counts and the forecast, computed last and by one function."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import replace

from lorakit.errors import PlanError
from lorakit.hooks.manager import Plugins
from lorakit.hooks.protocols import OptimizerFactory
from lorakit.planning import memory
from lorakit.planning.inventory import Inventory, ModuleInfo
from lorakit.planning.plan import Bytes, Plan, PlanEntry, RuleSummary
from lorakit.planning.targets import container_counts

# the shape and the dtype of a tensor
Tensor = tuple[tuple[int, ...], str]


def finished(plan: Plan, inventory: Inventory, plugins: Plugins) -> Plan:
    """Return a plan with every figure that follows from its entries, for the step that `plan.memory` names.

    Raises: PlanError if an entry decides a module that the model lacks.
    """
    factory = plugins.optimizer(plan.optimizer.call)
    entries = tuple(_measured(entry, inventory, plugins, factory) for entry in plan.entries)
    return replace(
        plan,
        entries=entries,
        rules=tuple(_recounted(plan.rules, entries)),
        memory=memory.forecast(inventory, entries, plan.memory),
        groups=inventory.groups,
    )


def trained(entry: PlanEntry, module: ModuleInfo, plugins: Plugins) -> tuple[Sequence[Tensor], Sequence[Tensor]]:
    """Return what trains of an entry: the tensors that it adds, and those that the module has already."""
    if entry.adapter is None or entry.shape is None:
        own = module.parameters if entry.train else ()
        return (), [(parameter.shape, parameter.dtype) for parameter in own]
    shapes = plugins.method(entry.adapter.method).parameter_shapes(entry.shape, entry.adapter.rank).values()
    biases = [parameter for parameter in module.parameters if parameter.name == "bias"]
    return (
        [(shape, entry.adapter.dtype) for shape in shapes],
        [(bias.shape, bias.dtype) for bias in biases if entry.adapter.bias == "adapter"],
    )


def numel(shape: Iterable[int]) -> int:
    """Return the elements of a tensor of this shape."""
    count = 1
    for size in shape:
        count *= size
    return count


def size(tensors: Iterable[Tensor]) -> int:
    """Return the bytes of tensors."""
    return sum(numel(shape) * itemsize(dtype) for shape, dtype in tensors)


def itemsize(dtype: str) -> int:
    """Return the bytes of one element: torch names a dtype by its bits, as in `bfloat16` and `float8_e4m3fn`."""
    bits = re.search(r"\d+", dtype)
    return max(int(bits.group()) // 8, 1) if bits else 1


def _measured(entry: PlanEntry, inventory: Inventory, plugins: Plugins, factory: OptimizerFactory) -> PlanEntry:
    module = inventory.modules.get(entry.path)
    if module is None:
        raise PlanError(
            f"the plan is for another model: it decides `{entry.path}`, which {inventory.model_class} lacks"
        )
    added, kept = trained(entry, module, plugins)
    adapter = entry.adapter and replace(
        entry.adapter,
        parameters=sum(numel(shape) for shape, _ in added),
        bias_parameters=sum(numel(shape) for shape, _ in kept),
    )
    before = sum(parameter.bytes for parameter in module.parameters)
    after = before
    if entry.quant and module.weight and module.shape:
        bits = plugins.quantizer(entry.quant).bits_per_weight((module.shape.out_features, module.shape.in_features))
        after = before - module.weight.bytes + round(bits * module.weight.numel / 8)
    gradient = size([*added, *kept])
    optimizer = sum(size(factory.state(shape, dtype).values()) for shape, dtype in (*added, *kept))
    fresh = replace(
        entry,
        adapter=adapter,
        bytes=Bytes(before, after, adapter=gradient if adapter else 0, gradient=gradient, optimizer=optimizer),
    )
    extra = plugins.estimate_memory(fresh)
    return replace(fresh, bytes=replace(fresh.bytes, extra=extra)) if extra else fresh


def _recounted(rules: Sequence[RuleSummary], entries: Sequence[PlanEntry]) -> Iterable[RuleSummary]:
    """Yield the rules with the modules that they decide now; those that share a line cannot be told apart."""
    sharing = Counter((rule.place, rule.keyword) for rule in rules)
    decided: dict[tuple[str, str], list[str]] = {}
    for entry in entries:
        keywords = [("adapt", entry.adapter), ("train", entry.train), ("quantize", entry.quant and not entry.adapter)]
        for place in entry.decided_by:
            for keyword, holds in keywords:
                if holds:
                    decided.setdefault((place, keyword), []).append(entry.path)
    for rule in rules:
        key = (rule.place, rule.keyword)
        if sharing[key] > 1:
            yield rule
        else:
            paths = decided.get(key, [])
            yield replace(rule, modules=len(paths), containers=container_counts(paths))
