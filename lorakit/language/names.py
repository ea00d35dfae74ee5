"""Names: what `let` defines, and what expressions are worth."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Set
from dataclasses import dataclass, field
from typing import Literal, TypeAlias

from lorakit.diagnostics import Code, Span
from lorakit.language.amounts import Amount, LimitError, UnitError, combine, literal
from lorakit.language.problems import Place
from lorakit.language.statements import Target
from lorakit.language.syntax import (
    Binary,
    ValueNode,
    Group,
    Negative,
    Word,
)

# None stands for a value whose fault was reported where it is defined
LetValue: TypeAlias = "Amount | str | tuple[Target, ...] | None"
# What `rank` is worth in a place: unknown where it is at fault itself, None outside of rules that have one
Rank: TypeAlias = Amount | Literal["unknown"] | None


@dataclass(frozen=True, slots=True)
class Definition:
    """A `let` name: what it is worth and where it stands."""

    value: LetValue
    span: Span


@dataclass
class Scope:
    """The names that are defined so far; `later` are the spans of all names that the program defines anywhere.

    `later_lists` are those of them that are lists.

    Where something could not be read that may define more names, `complete` is false and unknown names go unreported;
    so do unknown plugins, roles and quantities where a distribution is missing (`lacks_plugins`). `absence` tells of a
    kind and a name why there may be no such plugin.
    """

    definitions: dict[str, Definition] = field(default_factory=dict)
    later: Mapping[str, Span] = field(default_factory=dict)
    later_lists: Set[str] = frozenset()
    complete: bool = True
    lacks_plugins: bool = False
    absence: Callable[[str, str], tuple[str, ...]] = lambda kind, name: ()

    def find(self, word: Word, place: Place, known: tuple[str, ...] = ()) -> Definition | None:
        """Return a definition, or report that there is none; `known` are other names that could stand there."""
        name = str(word)
        definition = self.definitions.get(name)
        if definition is None and self.complete:
            self._report_unknown(name, word, place, known)
        return definition

    def _report_unknown(self, name: str, word: Word, place: Place, known: tuple[str, ...]) -> None:
        if name in self.later:
            span = self.later[name]
            message = f"`{name}` is used above its definition"
            place.report_word(Code.UNKNOWN_NAME, message, word, None, f"it is defined at {span}")
            return
        names = (*self.definitions, *known)
        near = place.nearest(name, names)
        notes = []
        if name == "rank":
            notes.append("`rank` has a value inside a rule that gives one, in clauses other than `rank` itself")
        elif near is None:
            notes.append(f"help: define it above: `let {name} = …`")
        place.report_word(Code.UNKNOWN_NAME, f"there is no name `{name}` here", word, near, *notes)


def evaluate(node: ValueNode, scope: Scope, place: Place, rank: Rank = None) -> Amount | None:
    """Return what an expression is worth, or None where its fault has been reported."""
    if isinstance(node, Word):
        return _number(node, place) if node.type == "NUMBER" else _named(node, scope, place, rank)
    if isinstance(node, Group):
        return evaluate(node.items[0], scope, place, rank)
    if isinstance(node, Negative):
        operand = evaluate(node.operand, scope, place, rank)
        return None if operand is None else Amount(-operand.value, operand.unit)
    left, right = evaluate(node.left, scope, place, rank), evaluate(node.right, scope, place, rank)
    return None if left is None or right is None else _combined(node, left, right, place)


def _number(word: Word, place: Place) -> Amount | None:
    try:
        return literal(word)
    except LimitError as error:
        place.report_word(Code.LIMIT, str(error), word)
        return None


def _named(word: Word, scope: Scope, place: Place, rank: Rank) -> Amount | None:
    if word == "rank" and rank is not None:
        return rank if isinstance(rank, Amount) else None
    definition = scope.find(word, place, () if rank is None else ("rank",))
    if definition is None or definition.value is None:
        return None
    if isinstance(definition.value, Amount):
        return definition.value
    kind = "a string" if isinstance(definition.value, str) else "a list of targets"
    place.report_word(
        Code.WRONG_KIND, f"expected a number, and `{word}` is {kind}", word, None, f"it is defined at {definition.span}"
    )
    return None


def _combined(node: Binary, left: Amount, right: Amount, place: Place) -> Amount | None:
    try:
        return combine(left, node.operator, right)
    except (ArithmeticError, ValueError) as error:
        report_arithmetic(error, node, place)
        return None


def report_arithmetic(error: Exception, node: Binary, place: Place) -> None:
    """Report what `combine` raised."""
    if isinstance(error, ZeroDivisionError):
        place.report(Code.DIVISION_BY_ZERO, "division by zero", node.right.start, node.right.end)
    elif isinstance(error, UnitError):
        place.report(Code.BAD_UNIT, str(error), node.start, node.end)
    elif isinstance(error, LimitError):
        place.report(Code.LIMIT, str(error), node.start, node.end)
    else:
        raise error
