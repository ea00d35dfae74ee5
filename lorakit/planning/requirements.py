"""`require`: promises checked against the plan."""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterable, Mapping

from lorakit.diagnostics import Code, Diagnostic, diagnostic_at
from lorakit.language.amounts import UNITS
from lorakit.language.spec import Spec
from lorakit.language.statements import Expression, Number, Operation, Quantity
from lorakit.language.words import QUANTITIES
from lorakit.planning.plan import Plan

# what the language lets a promise speak of, by the same names
FIGURES: Mapping[str, Callable[[Plan], float]] = {
    "trainable": lambda plan: plan.trainable_share,
    "peak_memory": lambda plan: float(plan.memory.peak),
}
ARITHMETIC: Mapping[str, Callable[[float, float], float]] = {
    "+": operator.add, "-": operator.sub, "*": operator.mul, "/": operator.truediv,
}  # fmt: skip
COMPARISONS: Mapping[str, Callable[[float, float], bool]] = {
    "<": operator.lt, "<=": operator.le, ">": operator.gt, ">=": operator.ge, "==": operator.eq, "!=": operator.ne,
}  # fmt: skip


def broken(spec: Spec, plan: Plan) -> Iterable[Diagnostic]:
    """Return a diagnostic for every promise that this plan does not keep, with the figures that break it."""
    yield from _beyond(spec, plan)
    for require in spec.requires:
        try:
            left, right = _value(require.left, plan), _value(require.right, plan)
        except ZeroDivisionError:
            yield diagnostic_at(Code.PROMISE_BROKEN, "this promise divides by zero", require.span)
            continue
        if not COMPARISONS[require.comparison](left, right):
            names = sorted({*_names(require.left), *_names(require.right)})
            figures = ", ".join(f"`{name}` is {_show(name, FIGURES[name](plan))}" for name in names)
            yield diagnostic_at(
                Code.PROMISE_BROKEN,
                f"the plan breaks this promise: {figures}",
                require.span,
                notes=tuple(_costliest(names, plan)),
            )


def _beyond(spec: Spec, plan: Plan) -> Iterable[Diagnostic]:
    """Yield what a spec's `memory` cannot be kept to, with all that can be computed again."""
    memory = plan.memory
    if spec.step is None or spec.step.limit != memory.limit or not memory.limit or memory.peak <= memory.limit:
        return
    from lorakit.planning.report import show_bytes

    again = f"with {len(memory.recomputed)} of {memory.blocks} blocks computed again " if memory.recomputed else ""
    yield diagnostic_at(
        Code.DOES_NOT_FIT,
        f"a step of {memory.batch} × {memory.tokens} holds {show_bytes(memory.peak)} {again}and no less: "
        f"`memory` is {show_bytes(memory.limit)}",
        spec.step.span,
        notes=(
            f"weights are {show_bytes(memory.weights)} of it, activations and logits "
            f"{show_bytes(memory.activations + memory.workspace)}",
            "help: fewer rows or shorter ones (`batch`, `tokens`), weights in four bits (`quant nf4 double`), `paged`",
        ),
    )


def _value(expression: Expression, plan: Plan) -> float:
    if isinstance(expression, Number):
        return expression.value * float(UNITS[expression.unit]) if expression.unit else expression.value
    if isinstance(expression, Quantity):
        return FIGURES[expression.name](plan)
    return ARITHMETIC[expression.operator](_value(expression.left, plan), _value(expression.right, plan))


def _names(expression: Expression) -> Iterable[str]:
    if isinstance(expression, Quantity):
        yield expression.name
    elif isinstance(expression, Operation):
        yield from _names(expression.left)
        yield from _names(expression.right)


def _show(name: str, value: float) -> str:
    return f"{value:.3%}" if QUANTITIES[name] == "%" else f"{value / 2**30:.2f}GiB"


def _costliest(names: Iterable[str], plan: Plan) -> Iterable[str]:
    """Name the rules that cost most of what the promise is about."""
    costs: dict[str, dict[str, float]] = {name: {} for name in names}
    for entry in plan.entries:
        where = entry.decided_by[0]
        for name, by_rule in costs.items():
            cost: float = entry.trainable if name == "trainable" else entry.bytes.during_training
            by_rule[where] = by_rule.get(where, 0) + cost
    for name, by_rule in costs.items():
        unit = "trainable parameters" if name == "trainable" else "bytes of weights and training state"
        for where, cost in sorted(by_rule.items(), key=lambda item: -item[1])[:3]:
            yield f"{where} costs {cost:,.0f} {unit}"
