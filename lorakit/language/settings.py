"""Settings: values that the command line or a caller gives in the place of a `let`'s own."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from typing import Any, NamedTuple

from lorakit.diagnostics import Code, Diagnostic
from lorakit.errors import SpecError
from lorakit.language.names import DEFINE, LetValue, Scope
from lorakit.language.parser import parse_syntax
from lorakit.language.place import Extent, Place
from lorakit.language.render import render_text
from lorakit.language.source import OPTION, SourceText
from lorakit.language.suggestions import listed, nearest

_VALUE_FORMS = "a value is a number, a string in double quotes, or a list of targets in brackets"


class Settings(NamedTuple):
    """The values set from outside, by name, each in the syntax of the language or as a Python number or list."""

    values: Mapping[str, object]
    problems: list[Diagnostic]

    @property
    def sources(self) -> dict[str, str]:
        """The options as they are typed, by the names that diagnostics about variables have for files."""
        return {OPTION + name: f"{OPTION}{name}={_written(value)}" for name, value in self.values.items()}

    def read(self, name: str, evaluate: Callable[[Any, Place], LetValue]) -> LetValue:
        """Return what a variable is worth, or None where its fault has been reported."""
        written = _written(self.values[name])
        # blanks where the option has its name, so that a place in the value is one in the option
        tree = parse_syntax(SourceText(OPTION + name, " " * len(f"{OPTION}{name}=") + written), "value")
        place = Place(tree.source, [*tree.diagnostics])
        value = evaluate(tree.statements[0], place) if tree.statements else None
        for found in place.problems[:1]:
            message = f"`{OPTION}{name}={written}` gives `{name}` no value: {found.message}"
            notes = found.notes if tree.statements else (*found.notes, _VALUE_FORMS)
            suggestion = found.suggestion
            if suggestion is not None and suggestion.startswith(DEFINE):
                # that helps in a file, and not on the command line
                suggestion, notes = None, (_VALUE_FORMS,)
            self.problems.append(
                replace(found, code=str(Code.BAD_VARIABLE), message=message, suggestion=suggestion, notes=notes)
            )
        return value

    def report_unknown(self, scope: Scope) -> None:
        """Report the variables that no `let` defines."""
        for name in self.values if scope.complete else ():
            if name not in scope.later:
                near = nearest(name, scope.later)
                names = (
                    f"the names are {listed(scope.later, 'and')}"
                    if scope.later
                    else f"it has no `let`; `let {name} = …` gives a value the name that `--set` takes"
                )
                option = OPTION + name
                place = Place(SourceText(option, self.sources[option]), self.problems)
                message = f"`{option}`: the spec has no `let {name}`"
                words = Extent(len(OPTION), len(option))
                place.report(Code.UNKNOWN_VARIABLE, message, words, near, *(() if near else (names,)))


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
            option = OPTION + setting
            place, words = Place(SourceText(option, option)), Extent(len(OPTION), len(option))
            known = name.strip() if name.strip().isidentifier() else "r"
            advice = f"help: write the name of a `let` and its value, as in `{OPTION}{known}=8`"
            place.report(Code.BAD_VARIABLE, f"`{option}`: expected NAME=VALUE", words, None, advice)
            raise SpecError(tuple(place.problems), render_text(place.problems, {option: option}))
        variables[name.strip()] = value.strip()
    return variables
