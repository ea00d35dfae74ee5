"""How far `quant` goes: where `adapt` rules alone name a quantizer, it stores the linear layers that no rule decides.

QLoRA stores the pre-trained model in four bits, and not its adapted projections alone (Dettmers et al. 2023,
arXiv:2305.14314, section 3; transformers' `load_in_4bit` means the same).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace

from lorakit.hooks.manager import Plugins
from lorakit.hooks.protocols import Quantizer
from lorakit.language.spec import Spec
from lorakit.language.statements import Adapt, Quantize, Target
from lorakit.planning.cascade import Decisions, place, stored_as
from lorakit.planning.checks import Decided, problems_of
from lorakit.planning.inventory import Inventory
from lorakit.planning.plan import RuleSummary, SelectorCount
from lorakit.planning.targets import Selection, container_counts

LINEAR = Target(role="linear")


def with_reach(decisions: Decisions, spec: Spec, inventory: Inventory, plugins: Plugins) -> Decisions:
    """Return decisions that go as far as the spec's `quant` does, with what is to be said of that as notes.

    Layers that the quantizer cannot store are passed over: nobody named them.
    """
    named = _first_of_each(spec, plugins)
    if not named:
        return decisions
    matched = Selection(inventory, plugins.roles).matches(LINEAR)
    left = [path for path in matched if path not in decisions.adapt and path not in decisions.train]
    if not left:
        return decisions
    if len(named) > 1:
        return replace(decisions, notes=(*decisions.notes, _apart(named)))
    rule = Quantize((LINEAR,), named[0].quant, span=named[0].span)
    passed = {path: why for path in left if (why := _hindrance(path, rule, inventory, plugins))}
    stored = [path for path in left if path not in passed]
    summary = RuleSummary(
        place=place(rule),
        keyword="quantize",
        targets=str(LINEAR),
        modules=len(stored),
        selectors=(SelectorCount(str(LINEAR), len(matched), len(passed)),),
        containers=container_counts(stored),
        quant=stored_as(rule.quant),
        reached=True,
    )
    return replace(
        decisions,
        quantize=dict.fromkeys(stored, rule),
        rules=(*decisions.rules, summary) if stored else decisions.rules,
        notes=(*decisions.notes, *_notes(place(rule), stored, passed)),
    )


def _first_of_each(spec: Spec, plugins: Plugins) -> list[Adapt]:
    """Return the first rule with each quantizer, options included; none if the spec has a `quantize` statement."""
    if any(isinstance(rule, Quantize) for rule in spec.rules):
        return []
    first: dict[Quantizer, Adapt] = {}
    for rule in spec.rules:
        if isinstance(rule, Adapt) and rule.quant is not None:
            first.setdefault(plugins.quantizer(rule.quant), rule)
    return list(first.values())


def _hindrance(path: str, rule: Quantize, inventory: Inventory, plugins: Plugins) -> str:
    """Return why a layer cannot be stored as a rule says, in words; nothing if it can."""
    module = inventory.modules[path]
    if module.weight is None:
        return f"`{path}` has no parameter `weight` of its own"
    if problem := next(iter(problems_of(Decided(module, None, rule, None), inventory, plugins)), None):
        return problem.message
    if inventory.adapted and module.shape and module.shape.quantizer is None:
        return f"the adapters that are there already compute with `{path}` as it is"
    return ""


def _notes(where: str, stored: Sequence[str], passed: Mapping[str, str]) -> Iterable[str]:
    if stored:
        yield (
            f"{where}: `quant` stores the linear layers that no rule decides as well; `quantize @linear none` leaves "
            "them as they are"
        )
    if passed:
        layers = f"{len(passed)} linear layers, such as this" if len(passed) > 1 else "a linear layer"
        yield f"{where}: `quant` passes over {layers}: {next(iter(passed.values()))}"


def _apart(rules: Sequence[Adapt]) -> str:
    *others, last = [f"{stored_as(rule.quant)} ({place(rule)})" for rule in rules]
    return (
        f"`adapt` rules name {', '.join(others)} and {last}: so the linear layers that no rule decides stay as they "
        "are, and `quantize @linear NAME` would store them"
    )
