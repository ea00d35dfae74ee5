"""The printer: a Spec as text that parses to an equal Spec, in canonical form."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

from lorakit.language.format import format_text
from lorakit.language.spec import (
    Adapt,
    Expression,
    Number,
    Optimizer,
    PluginCall,
    Quantity,
    Quantize,
    Require,
    Spec,
    Step,
    Train,
    Value,
)

_PRECEDENCE = {"+": 1, "-": 1, "*": 2, "/": 2}


def to_text(spec: Spec) -> str:
    """Return a Spec as text. Raises: SpecError for what cannot be written, as a string that holds a newline."""
    lines = [f"use {name}" + (f" >= {version}" if version is not None else "") for name, version in spec.uses]
    lines += [_STATEMENTS[type(rule)](rule) for rule in spec.rules]
    lines += [_optimizer(spec.optimizer)] if spec.optimizer is not None else []
    lines += [_step(spec.step)] if spec.step is not None else []
    lines += [_require(require) for require in spec.requires]
    return format_text("\n".join(lines))


def _adapt(rule: Adapt) -> str:
    return _joined("adapt", _listed(rule.targets), *_clauses(rule, _ADAPT_CLAUSES))


def _quantize(rule: Quantize) -> str:
    return _joined("quantize", _listed(rule.targets), call_text(rule.quant), *_clauses(rule, _RULE_CLAUSES))


def _train(rule: Train) -> str:
    return _joined("train", _listed(rule.targets), *_clauses(rule, _TRAIN_CLAUSES))


def _optimizer(optimizer: Optimizer) -> str:
    return _joined("optimizer", call_text(optimizer.call), *_clauses(optimizer, _OPTIMIZER_CLAUSES))


def _step(step: Step) -> str:
    return _joined("step", *_clauses(step, _STEP_CLAUSES))


def _require(require: Require) -> str:
    return f"require {_expression(require.left)} {require.comparison} {_expression(require.right)}"


def _clauses(statement: Any, printers: Mapping[str, Callable[[Any], str]]) -> Iterable[str]:
    """Yield the clauses of the fields that are not as they are by default."""
    defaults = type(statement).__dataclass_fields__
    for field, printer in printers.items():
        value = getattr(statement, field)
        if value != defaults[field].default:
            yield printer(value)


def _joined(*words: str) -> str:
    return " ".join(word for word in words if word)


def _listed(items: Iterable[object]) -> str:
    return ",".join(map(str, items))


def _keyword(word: str, printer: Callable[[Any], str] = str) -> Callable[[Any], str]:
    return lambda value: f"{word} {printer(value)}"


def _flag(word: str) -> Callable[[Any], str]:
    return lambda value: word


def _number(value: float) -> str:
    whole = isinstance(value, int) or value.is_integer()
    return str(int(value)) if whole and abs(value) < 1e15 else repr(value)


def _exact(value: float) -> str:
    """Return a number digit by digit where it is whole: beyond 2⁵³ the shortest form of a float is another number."""
    return str(int(value)) if isinstance(value, int) or value.is_integer() else repr(value)


def call_text(call: PluginCall) -> str:
    options = ", ".join(f"{name}={_value(value)}" for name, value in call.options)
    return call.name + (f"({options})" if options else "") + (" double" if call.double else "")


def _value(value: Value) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, str):
        escaped = value.replace("\\", "\\\\").replace('"', '\\"')
        return f'"{escaped}"'
    if isinstance(value, tuple):
        return f"({', '.join(map(_value, value))})"
    return _exact(value)


def _expression(node: Expression, around: int = 0) -> str:
    """Return an expression, in parentheses where it binds less tightly than the place needs."""
    if isinstance(node, Number):
        return f"{_exact(node.value)}{node.unit}"
    if isinstance(node, Quantity):
        return node.name
    binding = _PRECEDENCE[node.operator]
    text = f"{_expression(node.left, binding)}{node.operator}{_expression(node.right, binding + 1)}"
    return f"({text})" if binding < around else text


_RULE_CLAUSES: Mapping[str, Callable[[Any], str]] = {
    "layers": _keyword("layers", _listed),
    "excepts": _keyword("except", _listed),
    "optional": _flag("optional"),
}
_TRAIN_CLAUSES = {"lr": _keyword("lr", _number), **_RULE_CLAUSES}
_OPTIMIZER_CLAUSES = {"lr": _keyword("lr", _number), "paged": _flag("paged")}
_STEP_CLAUSES = {
    "batch": _keyword("batch", _number),
    "tokens": _keyword("tokens", _number),
    "compute": _keyword("compute"),
}
_ADAPT_CLAUSES: Mapping[str, Callable[[Any], str]] = {
    "method": _keyword("method", call_text),
    "rank": _keyword("rank", _number),
    "alpha": _keyword("alpha", _number),
    "scaling": _keyword("scaling"),
    "dropout": _keyword("dropout", _number),
    "init": _keyword("init", call_text),
    "quant": _keyword("quant", call_text),
    "dtype": _keyword("dtype"),
    "bias": _keyword("bias"),
    "lr": _keyword("lr", _number),
    "lr_ratio": _keyword("lr_ratio", _number),
    "paged": _flag("paged"),
    **_RULE_CLAUSES,
}
_STATEMENTS: Mapping[type, Callable[[Any], str]] = {Adapt: _adapt, Quantize: _quantize, Train: _train}
