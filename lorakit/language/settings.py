"""Settings: values that the command line or a caller gives in the place of a `let`'s own."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from lorakit.diagnostics import Code, Diagnostic
from lorakit.errors import SpecError
from lorakit.language.names import LetValue, Scope
from lorakit.language.parser import parse_syntax
from lorakit.language.place import Extent, Place
from lorakit.language.render import render_text
from lorakit.language.source import SourceText
from lorakit.language.suggestions import listed, nearest

_VALUE_FORMS = "a value is a number, a string in double quotes, or a list of targets in brackets"


@dataclass(frozen=True)
class Settings:
    """The values set from outside, by name, each in the syntax of the language or as a Python number or list."""

    values: Mapping[str, object]
    problems: list[Diagnostic]

    @property
    def sources(self) -> dict[str, str]:
        """The texts that diagnostics about variables point into."""
        return {source.name: source.text for source in map(self._source, self.values)}

    def _source(self, name: str) -> SourceText:
        return SourceText(f"--set {name}", _written(self.values[name]))

    def read(self, name: str, evaluate: Callable[[Any, Place], LetValue]) -> LetValue:
        """Return what a variable is worth, or None where its fault has been reported."""
        source = self._source(name)
        tree = parse_syntax(source, "value")
        place = Place(source, [*tree.diagnostics])
        value = evaluate(tree.statements[0], place) if tree.statements else None
        for found in place.problems[:1]:
            message = f"`--set {name}={source.text}` gives `{name}` no value: {found.message}"
            notes = found.notes if tree.statements else (*found.notes, _VALUE_FORMS)
            self.problems.append(replace(found, code=str(Code.BAD_VARIABLE), message=message, notes=notes))
        return value

    def report_unknown(self, scope: Scope) -> None:
        """Report the variables that no `let` defines."""
        for name in self.values if scope.complete else ():
            if name not in scope.later:
                near = nearest(name, scope.later)
                names = f"the names are {listed(scope.later, 'and')}" if scope.later else "it has no `let`"
                place, notes = Place(self._source(name), self.problems), () if near else (names,)
                message = f"`--set {name}`: the spec has no `let {name}`"
                place.report(Code.UNKNOWN_VARIABLE, message, Extent(0, len(place.source.text)), near, *notes)


def _written(value: object) -> str:
    """Return a value in the syntax of the language."""
    if isinstance(value, list | tuple):
        return f"[{', '.join(map(str, value))}]"
    return value if isinstance(value, str) else repr(value)


def variables_of(settings: Iterable[str]) -> dict[str, str]:
    """Return the variables of `NAME=VALUE` words, as `--set` takes them. Raises: SpecError."""
    variables: dict[str, str] = {}
    for setting in settings:
        name, equal, value = setting.partition("=")
        if not equal or not name.strip().isidentifier():
            place = Place(SourceText(f"--set {setting}", setting))
            message = f"`--set {setting}`: expected NAME=VALUE"
            place.report(Code.BAD_VARIABLE, message, Extent(0, len(setting)))
            raise SpecError(tuple(place.problems), render_text(place.problems, {place.source.name: setting}))
        variables[name.strip()] = value.strip()
    return variables
