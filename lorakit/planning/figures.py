"""What is derived from a plan's entries: bytes, counts and the forecast, computed last and by one function."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace

from lorakit.dtypes import itemsize
from lorakit.errors import PlanError
from lorakit.hooks.manager import Plugins
from lorakit.hooks.protocols import OptimizerFactory
from lorakit.language.words import NONE
from lorakit.planning import memory
from lorakit.planning.computing import held_dtype
from lorakit.planning.entries import completed, unlike
from lorakit.planning.hardware import Compute
from lorakit.planning.inventory import Inventory, ModuleInfo, ParameterInfo
from lorakit.planning.paging import pages
from lorakit.planning.plan import AdapterPlan, Bytes, Plan, PlanEntry, RuleSummary
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
    counter = _Counter(inventory, plan.compute, plugins, plugins.optimizer(plan.optimizer.call))
    entries = tuple(map(counter.counted, plan.entries))
    step = replace(plan.memory, paged=_paged(plan, entries))
    return replace(
        plan,
        entries=entries,
        rules=tuple(_recounted(plan.rules, entries)),
        memory=memory.forecast(
            inventory, entries, step, plan.compute, shared_state=size(counter.shared_state.values())
        ),
        groups=inventory.groups,
    )


def numel(shape: Iterable[int]) -> int:
    """Return the elements of a tensor of this shape."""
    count = 1
    for size in shape:
        count *= size
    return count


def size(tensors: Iterable[Tensor]) -> int:
    """Return the bytes of tensors."""
    return sum(map(_bytes, tensors))


def _bytes(tensor: Tensor) -> int:
    shape, dtype = tensor
    return numel(shape) * itemsize(dtype)


def _paged(plan: Plan, entries: Iterable[PlanEntry]) -> int:
    return sum(entry.bytes.optimizer for entry in entries if pages(entry, plan.optimizer))


@dataclass
class _Counter:
    """Counts the entries of one plan, in their order: what layers share is counted where it comes first.

    Entries that are alike share one `Bytes`, and an entry whose figures stand stays the very one.
    """

    inventory: Inventory
    compute: Compute | None
    plugins: Plugins
    factory: OptimizerFactory
    shared_state: dict[str, Tensor] = field(default_factory=dict, init=False)
    _shared: set[str] = field(default_factory=set, init=False)
    _states: dict[Tensor, int] = field(default_factory=dict, init=False)
    _known: dict[Bytes, Bytes] = field(default_factory=dict, init=False)

    def counted(self, entry: PlanEntry) -> PlanEntry:
        """Return an entry with its figures. Raises: PlanError if the model has no such module."""
        module = self._module(entry)
        adapter, full = entry.adapter, in_full(entry, module, self.compute)
        biases = sum(numel(shape) for shape, _ in full)
        if adapter is not None and adapter.bias_parameters != biases:
            adapter = replace(adapter, bias_parameters=biases)
        held = self._bytes(entry, module, adapter, full)
        if adapter is not entry.adapter or held != entry.bytes:
            entry = replace(entry, adapter=adapter, bytes=self._known.setdefault(held, held))
        extra = self.plugins.estimate_memory(entry)
        return replace(entry, bytes=replace(held, extra=extra)) if extra else entry

    def _module(self, entry: PlanEntry) -> ModuleInfo:
        module = self.inventory.modules.get(entry.path)
        if module is None:
            raise PlanError(
                f"the plan is for another model: it decides `{entry.path}`, which {self.inventory.model_class} lacks"
            )
        if difference := unlike(entry, module):
            raise PlanError(f"the plan is for another model: {difference}")
        return module

    def _bytes(self, entry: PlanEntry, module: ModuleInfo, adapter: AdapterPlan | None, full: list[Tensor]) -> Bytes:
        table = [one for one in adapter.parameters if one.shared not in self._shared] if adapter else []
        self._shared.update(one.shared for one in table if one.shared)
        dtype = adapter.dtype if adapter else ""
        trained = [*((one.shape, one.dtype or dtype) for one in table if one.trains), *full]
        before = sum(parameter.bytes for parameter in module.parameters)
        after = before
        if entry.quant and module.weight and module.shape:
            shape = (module.shape.out_features, module.shape.in_features)
            bits = self.plugins.quantizer(entry.quant).bits_per_weight(shape)
            after = before - module.weight.bytes + round(bits * module.weight.numel / 8)
        return Bytes(
            weight_before=before,
            weight_after=after,
            adapter=size((one.shape, one.dtype or dtype) for one in table),
            gradient=size(trained),
            optimizer=sum(map(self._state, trained)),
        )

    def _state(self, tensor: Tensor) -> int:
        """Return the bytes that the optimizer keeps for a tensor alone; what it keeps for all is noted."""
        if tensor not in self._states:
            shared = getattr(self.factory, "shared_state", ())
            held = self.factory.state(*tensor)
            self.shared_state |= {name: held[name] for name in shared if name in held}
            self._states[tensor] = size(one for name, one in held.items() if name not in shared)
        return self._states[tensor]


def in_full(entry: PlanEntry, module: ModuleInfo, compute: Compute | None) -> list[Tensor]:
    """Return what trains of the module's own: all of it by `train`, its biases by `bias adapter`."""
    own: Iterable[ParameterInfo] = ()
    if entry.adapter is not None and entry.adapter.bias == "adapter":
        own = (one for one in module.parameters if one.name == "bias")
    elif entry.adapter is None and entry.train:
        own = module.parameters
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
