"""What is true of a plan and easily missed, in a sentence each."""

from __future__ import annotations

from collections.abc import Iterable

from lorakit.dtypes import BF16_STEPS
from lorakit.hooks.manager import Plugins
from lorakit.hooks.protocols import Observer
from lorakit.language.spec import Spec
from lorakit.language.statements import Adapt, Quantize
from lorakit.planning.cascade import Decisions
from lorakit.planning.figures import in_full
from lorakit.planning.inventory import Inventory
from lorakit.planning.place import Place
from lorakit.planning.plan import Plan


def notes_of(spec: Spec, inventory: Inventory, decisions: Decisions, plugins: Plugins) -> Iterable[str]:
    """Yield the notes on what a spec decides for a model."""
    yield from _rules(spec, decisions, plugins)
    yield from decisions.notes
    yield from _calibration(spec, plugins)
    yield from _experts(inventory, decisions)
    yield from _ties(inventory, decisions)
    yield from _statistics(inventory, decisions)


def rounding_notes(plan: Plan, inventory: Inventory) -> Iterable[str]:
    """Yield what is lost where a model's own parameters train in bfloat16, whose numbers lie further apart than steps.

    Steps are about as large as the learning rate.
    """
    rates = {
        entry.path: (entry.adapter.lr if entry.adapter else entry.train_lr) or plan.optimizer.lr
        for entry in plan.entries
        if any(dtype == "bfloat16" for _, dtype in in_full(entry, inventory.modules[entry.path], plan.compute))
    }
    if rates and (rate := min(rates.values())) * BF16_STEPS < 1:
        yield (
            f"{len(rates)} modules, first `{next(iter(rates))}`, train in bf16, where a step of {rate:g} is lost on "
            f"every weight above {rate * BF16_STEPS:.2g}, such as a norm's: `step compute fp32` trains them in fp32"
        )


def _rules(spec: Spec, decisions: Decisions, plugins: Plugins) -> Iterable[str]:
    # what nobody wrote stands behind
    for rule, summary in zip(spec.rules, decisions.rules, strict=False):
        where = summary.place
        towers = [container for container, _ in summary.containers if container]
        if len(towers) > 1:
            reach = ", ".join(f"{count} in {container or 'no layer'}" for container, count in summary.containers)
            yield f"{where}: the rule crosses {len(towers)} towers: {reach}"
        if passed := sum(selector.passed_over for selector in summary.selectors):
            yield f"{where}: passed over {passed} module{'s' * (passed > 1)} that no adapter fits"
        if isinstance(rule, Adapt) and rule.alpha is None and "alpha" in plugins.method(rule.method).clauses:
            assert rule.rank is not None
            scale = "1" if rule.scaling == "standard" else f"sqrt(rank) = {rule.rank**0.5:.3g}"
            yield f"{where}: alpha is not given, so alpha = rank = {rule.rank} and the update is scaled by {scale}"


def _calibration(spec: Spec, plugins: Plugins) -> Iterable[str]:
    quants = {rule.quant for rule in spec.rules if isinstance(rule, Adapt | Quantize) and rule.quant}
    starts = {
        rule.init for rule in spec.rules if isinstance(rule, Adapt) and "init" in plugins.method(rule.method).clauses
    }
    lookers = [*map(plugins.quantizer, quants), *map(plugins.initializer, starts)]
    for name in sorted({one.name for one in lookers if isinstance(one, Observer)}):
        yield f"{name}: sees what goes into its layers before anything changes, so it needs calibration data"


def _experts(inventory: Inventory, decisions: Decisions) -> Iterable[str]:
    stacks = ((path, module.shape) for path, module in inventory.modules.items())
    outside = [path for path, shape in stacks if shape and shape.stack > 1 and not shape.outright]
    if outside and not any(path in decisions.adapt or path in decisions.train for path in outside):
        count = sum(parameter.numel for path in outside for parameter in inventory.modules[path].parameters)
        share = count / inventory.total_parameters
        yield f"{count:,} parameters ({share:.0%}) lie in expert stacks that no rule adapts; `adapt @experts` would"


def _statistics(inventory: Inventory, decisions: Decisions) -> Iterable[str]:
    modules = ((path, module) for path, module in inventory.modules.items() if path not in decisions.train)
    if still := [path for path, module in modules if any(one.name == "running_mean" for one in module.buffers)]:
        yield (
            f"{len(still)} modules, first `{still[0]}`, keep running means, which no rule trains: in training too they "
            "stay as they are, and are what is computed with; `train` lets them move"
        )


def _ties(inventory: Inventory, decisions: Decisions) -> Iterable[str]:
    for path in (*decisions.adapt, *decisions.train):
        weight = inventory.modules[path].weight
        if weight and len(ends := inventory.owners[weight.weight_id]) > 1:
            verb = "trains" if path in decisions.train else "is adapted"
            others = (Place(end, is_parameter=True).module for end in ends)
            other = ", ".join(f"`{module}`" for module in others if module != path)
            consequence = "both ends train" if path in decisions.train else f"{other} keeps the shared weight as it is"
            yield f"`{path}` {verb} and shares its weight with {other}: {consequence}"
