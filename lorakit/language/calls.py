"""Plugin calls: names that the plugins know, with options of the types that they declare."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, cast

from lorakit.diagnostics import Code
from lorakit.hooks.options import OptionError, configure, options_of, supports_double
from lorakit.language.amounts import LimitError
from lorakit.language.names import Rank, Scope, evaluate
from lorakit.language.problems import Place
from lorakit.language.statements import PluginCall, Value
from lorakit.language.suggestions import listed
from lorakit.language.syntax import Call, TupleNode, ValueNode, Word
from lorakit.language.words import CLAUSES, INITIALIZER, NONE, QUANTIZER, PluginKind

if TYPE_CHECKING:
    from lorakit.hooks import Plugins


class _Faulty:
    """Stands for a value whose fault was reported."""


_FAULTY = _Faulty()


@dataclass
class Calls:
    """Reads calls against the installed plugins."""

    plugins: Plugins
    scope: Scope

    def read(self, node: Call, kind: PluginKind, place: Place, rank: Rank = None) -> PluginCall | None:
        """Return the call that was written, or None where its fault has been reported. Raises: PluginError."""
        registry: Mapping[str, type] = getattr(self.plugins, kind.registry)
        plugin = registry.get(node.name.value)
        if plugin is None:
            self._report_unknown(node.name, kind, registry, place)
            return None
        double = self._double(node, plugin, registry, place)
        options, sound = self._options(node, plugin, place, rank)
        call = PluginCall(node.name.value, tuple(options.items()), double or False, place.word_span(node.name))
        sound = self._configured(plugin, call, node, place, sound)
        return call if sound and double is not None else None

    def is_none(self, node: Call, place: Place) -> bool:
        """Return whether a call is `none`; what stands behind that is reported."""
        if node.name != NONE:
            return False
        for option in node.options:
            message = f"`{NONE}` has no option `{option.name}`"
            place.report_word(Code.UNKNOWN_OPTION, message, option.name, None, "it takes no options")
        if node.double is not None:
            message = f"`{NONE}` has no double quantization"
            place.report_word(Code.NO_DOUBLE, message, node.double, None, "it leaves modules as they are")
        return True

    def _report_unknown(self, name: Word, kind: PluginKind, registry: Mapping[str, type], place: Place) -> None:
        if kind is INITIALIZER and name == "zeros":
            place.report_word(
                Code.INIT_ZEROS,
                "`init zeros` does not exist: with A and B both zero nothing ever learns",
                name,
                "gaussian",
                "the gradient of A is a product with B, and that of B one with A; one of the two must not be zero",
            )
            return
        if kind is QUANTIZER and name == NONE:
            message = "no clause says `none`: an `adapt` rule without `quant` leaves its modules as they are"
            place.report_word(Code.UNKNOWN_PLUGIN, message, name, None, f"help: leave out `quant {NONE}`")
            return
        if self.scope.lacks_plugins:
            return
        near = place.nearest(name, registry)
        notes = ["help: `double` stands behind a quantizer: `nf4 double`"] if name == "double" else []
        notes += [] if near else [f"there are {listed(registry, 'and')}"]
        notes += self.scope.absence(kind.noun, name.value)
        place.report_word(Code.UNKNOWN_PLUGIN, f"there is no {kind.noun} `{name}`", name, near, *notes)

    def _double(self, node: Call, plugin: type, registry: Mapping[str, type], place: Place) -> bool | None:
        if node.double is None:
            return False
        if supports_double(plugin):
            return True
        able = [name for name, quantizer in registry.items() if supports_double(quantizer)]
        note = f"{listed(able, 'and')} {'has' if len(able) == 1 else 'have'} it" if able else "no quantizer here has it"
        place.report_word(Code.NO_DOUBLE, f"`{node.name}` has no double quantization", node.double, None, note)
        return None

    def _options(self, node: Call, plugin: type, place: Place, rank: Rank) -> tuple[dict[str, Value], bool]:
        """Return the options that could be read, and whether those are all."""
        known, sound = _meant_units(plugin), True
        options: dict[str, Value] = {}
        for option in node.options:
            name = option.name.value
            if name not in known:
                near = place.nearest(name, known)
                note = f"it takes {listed(known, 'and')}" if known else "it takes no options"
                if name == "double" or name in CLAUSES:
                    note = f"help: `{name}` stands behind the parentheses, as in `{node.name} {name}`"
                message = f"`{node.name}` has no option `{name}`"
                place.report_word(Code.UNKNOWN_OPTION, message, option.name, near, note)
                sound = False
            elif name in options:
                place.report_word(Code.OPTION_TWICE, f"the option `{name}` is given twice", option.name)
                sound = False
            else:
                value = self._value(option.value, known[name], place, rank)
                if isinstance(value, _Faulty):
                    sound = False
                else:
                    options[name] = value
        return options, sound

    def _value(self, node: ValueNode, unit: str, place: Place, rank: Rank) -> Value | _Faulty:
        if isinstance(node, Word) and node.type in _LITERALS:
            return _LITERALS[node.type](node)
        if isinstance(node, TupleNode):
            items = tuple(self._value(item, unit, place, rank) for item in node.items)
            return _FAULTY if _FAULTY in items else cast("Value", items)
        if isinstance(node, Word):
            definition = self.scope.definitions.get(node)
            if definition is not None and isinstance(definition.value, str):
                return definition.value
        amount = evaluate(node, self.scope, place, rank)
        if amount is None:
            return _FAULTY
        if amount.kind not in ("", unit):
            what = "bytes" if amount.kind == "B" else "a share (%)"
            place.report(Code.BAD_UNIT, f"expected a plain number, found {what}", node.start, node.end)
            return _FAULTY
        try:
            return amount.number
        except LimitError as error:
            place.report(Code.LIMIT, str(error), node.start, node.end)
            return _FAULTY

    def _configured(self, plugin: type, call: PluginCall, node: Call, place: Place, sound: bool) -> bool:
        """Return whether a plugin takes these options; each that it refuses is reported.

        What it misses is not reported where an option was at fault already.
        """
        written = {option.name.value: option for option in reversed(node.options)}
        while True:
            try:
                configure(plugin, call)
                return sound
            except OptionError as error:
                refused = written.pop(error.option, None) if error.option else None
                if refused is not None:
                    place.report(Code.BAD_OPTION, str(error), refused.value.start, refused.value.end)
                elif sound:
                    place.report(Code.BAD_OPTION, str(error), node.start, node.end)
                if refused is None:
                    return False
                sound = False
                call = replace(call, options=tuple(pair for pair in call.options if pair[0] != error.option))


def unquoted(word: Word) -> str:
    """Return what a string in the source says."""
    return re.sub(r"\\(.)", r"\1", word.value[1:-1])


_LITERALS: Mapping[str, Callable[[Word], Value]] = {
    "STRING": unquoted,
    "TRUE": lambda word: True,
    "FALSE": lambda word: False,
}


def _meant_units(plugin: type) -> dict[str, str]:
    """Return the options of a plugin, each with the unit that its field's metadata declares: `%`, `B` or none."""
    units = {field.name: str(field.metadata.get("unit", "")) for field in dataclasses.fields(plugin)}
    return {option.name: units[option.name] for option in options_of(plugin)}
