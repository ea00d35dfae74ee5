"""Plugin calls: names that the plugins know, with options of the types that they declare."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any, cast

from lorakit.diagnostics import Code
from lorakit.hooks.options import OptionError, configure, options_of, supports_double
from lorakit.language.amounts import LimitError
from lorakit.language.names import Scope, evaluate
from lorakit.language.place import Place
from lorakit.language.statements import PluginCall, Value
from lorakit.language.suggestions import listed
from lorakit.language.syntax import Call, Group, ValueNode, Word
from lorakit.language.words import CLAUSES, NONE

if TYPE_CHECKING:
    from lorakit.hooks import Plugins


def read_call(node: Call, kind: str, scope: Scope, place: Place) -> PluginCall | None:
    """Return the call that was written, or None where there is no such plugin; faults are reported.

    Raises: PluginError.
    """
    registry = plugins_of(kind, scope.plugins)
    plugin = registry.get(node.name)
    if plugin is None:
        _report_unknown(node.name, kind, registry, scope, place)
        return None
    has_double = node.double is not None and supports_double(plugin)
    if node.double is not None and not has_double:
        able = [name for name, quantizer in registry.items() if supports_double(quantizer)]
        note = f"{listed(able, 'and')} {'has' if len(able) == 1 else 'have'} it" if able else "no quantizer here has it"
        place.report(Code.NO_DOUBLE, f"`{node.name}` has no double quantization", node.double, None, note)
    options = _options(node, plugin, scope, place)
    call = PluginCall(str(node.name), tuple(options.items()), has_double, span=place.span(node.name))
    _configure(plugin, call, node, place)
    return call


def check_bare(node: Call, place: Place) -> None:
    """Report what stands behind a word that says that there is no plugin."""
    for option in node.options:
        message = f"`{node.name}` has no option `{option.name}`"
        place.report(Code.UNKNOWN_OPTION, message, option.name, None, "it takes no options")
    if node.double is not None:
        message = f"`{node.name}` has no double quantization"
        place.report(Code.NO_DOUBLE, message, node.double, None, "it leaves modules as they are")


def plugins_of(kind: str, plugins: Plugins) -> Mapping[str, Any]:
    """Return the plugins of one kind by name."""
    found: Mapping[str, Any] = getattr(plugins, f"{kind}s")
    return found


def _report_unknown(name: Word, kind: str, registry: Mapping[str, type], scope: Scope, place: Place) -> None:
    if kind == "initializer" and name == "zeros":
        message = "`init zeros` does not exist: with A and B both zero nothing ever learns"
        note = "the gradient of A is a product with B, and that of B one with A; one of the two must not be zero"
        place.report(Code.INIT_ZEROS, message, name, "gaussian", note)
    elif kind == "quantizer" and name == NONE:
        message = f"no clause says `{name}`: an `adapt` rule without `quant` leaves its modules as they are"
        place.report(Code.UNKNOWN_PLUGIN, message, name, None, f"help: leave out `quant {name}`")
    elif not scope.lacks_plugins:
        from lorakit.language.foreign_words import ELSEWHERE, advice_on

        distribution = ELSEWHERE.get((kind, name), "")
        is_missing = distribution and not (
            scope.plugins.is_switched_off(distribution) or scope.plugins.failure_of(distribution)
        )
        advice = f"help: pip install {distribution}, which has it" if is_missing else advice_on(name)
        if advice and (is_missing or not distribution):
            place.report(Code.UNKNOWN_PLUGIN, f"there is no {kind} `{name}`", name, None, advice)
            return
        near = place.nearest(name, registry) if not distribution else None
        notes = ["help: `double` stands behind a quantizer: `nf4 double`"] if name == "double" else []
        notes += [] if near else [f"there are {listed(registry, 'and')}"]
        notes += scope.plugins.absence(kind, name)
        place.report(Code.UNKNOWN_PLUGIN, f"there is no {kind} `{name}`", name, near, *notes)


def _options(node: Call, plugin: type, scope: Scope, place: Place) -> dict[str, Value]:
    """Return the options that could be read."""
    units = {field.name: str(field.metadata.get("unit", "")) for field in dataclasses.fields(plugin)}
    known = [option.name for option in options_of(plugin)]
    options: dict[str, Value] = {}
    for option in node.options:
        name = str(option.name)
        if name not in known:
            from lorakit.language.foreign_words import advice_on

            note = f"it takes {listed(known, 'and')}" if known else "it takes no options"
            if name == "double" or name in CLAUSES:
                note = f"help: `{name}` stands behind the parentheses, as in `{node.name} {name}`"
            advice = advice_on(name)
            near = place.nearest(name, known) if advice is None else None
            message = f"`{node.name}` has no option `{name}`"
            place.report(Code.UNKNOWN_OPTION, message, option.name, near, *filter(None, (advice, note)))
        elif name in options:
            place.report(Code.OPTION_TWICE, f"the option `{name}` is given twice", option.name)
        elif (value := _value(option.value, units[name], scope, place)) is not None:
            options[name] = value
    return options


def _value(node: ValueNode, unit: str, scope: Scope, place: Place) -> Value | None:
    """Return the value of an option with this unit (`%`, `B` or none), or None where its fault has been reported."""
    if isinstance(node, Group) and len(node.items) > 1:
        items = tuple(_value(item, unit, scope, place) for item in node.items)
        return None if None in items else cast("Value", items)
    if isinstance(node, Word) and node.type in _LITERALS:
        return _LITERALS[node.type](node)
    if isinstance(node, Word) and node in scope.definitions and isinstance(scope.definitions[node].value, str):
        scope.used.add(str(node))
        return cast("str", scope.definitions[node].value)
    amount = evaluate(node, scope, place)
    try:
        if amount is None or amount.kind in ("", unit):
            return amount.number if amount is not None else None
        what = "bytes" if amount.kind == "B" else "a share (%)"
        place.report(Code.BAD_UNIT, f"expected a plain number, found {what}", node)
    except LimitError as error:
        place.report(Code.LIMIT, str(error), node)
    return None


def _configure(plugin: type, call: PluginCall, node: Call, place: Place) -> None:
    """Report each option that a plugin refuses.

    What it misses is not reported where an option was at fault already.
    """
    written = {str(option.name): option for option in reversed(node.options)}
    sound = len(call.options) == len(node.options)
    while True:
        try:
            configure(plugin, call)
            return
        except OptionError as error:
            refused = written.pop(error.option, None) if error.option else None
            if refused is not None or sound:
                place.report(Code.BAD_OPTION, str(error), refused.value if refused is not None else node)
            if refused is None:
                return
            sound = False
            call = replace(call, options=tuple(pair for pair in call.options if pair[0] != error.option))


def unquoted(word: Word) -> str:
    """Return what a string in the source says."""
    return re.sub(r"\\(.)", r"\1", word[1:-1])


_LITERALS: Mapping[str, Callable[[Word], Value]] = {
    "STRING": unquoted,
    "TRUE": lambda word: True,
    "FALSE": lambda word: False,
}
