"""Names: what `let` defines, and what expressions are worth."""

from __future__ import annotations

from collections import ChainMap
from collections.abc import Collection, Mapping, MutableMapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, NamedTuple, TypeAlias

from lorakit.diagnostics import HELP, Code, Span
from lorakit.language.amounts import Amount, LimitError, UnitError, combine, literal
from lorakit.language.place import Place
from lorakit.language.statements import Target
from lorakit.language.syntax import Binary, Group, Negative, ValueNode, Word

if TYPE_CHECKING:
    from lorakit.hooks import Plugins

# what helps where a name is missing
DEFINE = "define it above"

# None stands for a value whose fault was reported where it is defined
LetValue: TypeAlias = "Amount | str | tuple[Target, ...] | None"


class Definition(NamedTuple):
    """A name: what it is worth and, if a `let` defines it, where that stands."""

    value: LetValue
    span: Span | None = None


@dataclass
class Scope:
    """The names that are defined so far; `later` are the spans of all names that the program defines anywhere.

    `later_lists` are those of them that are lists; `quantities` are the figures of the plan that have a name here.
    `used` are the names that were asked for.

    Where something could not be read that may define more names, `complete` is false and unknown names go unreported;
    so do unknown plugins, roles and quantities where a distribution is missing (`lacks_plugins`).
    """

    plugins: Plugins
    definitions: MutableMapping[str, Definition] = field(default_factory=dict)
    later: dict[str, Span] = field(default_factory=dict)
    later_lists: set[str] = field(default_factory=set)
    quantities: Collection[str] = ()
    complete: bool = True
    lacks_plugins: bool = False
    used: set[str] = field(default_factory=set)

    def within(self, names: Mapping[str, Amount | None], quantities: Collection[str] = ()) -> Scope:
        """Return the scope of a statement that gives names of its own a value."""
        own = {name: Definition(value) for name, value in names.items()}
        return replace(self, definitions=ChainMap(own, self.definitions), quantities=quantities)

    def report_unknown(self, word: Word, place: Place) -> None:
        """Report that there is no definition of a name, or none yet."""
        if word in self.later:
            note = f"it is defined at {self.later[word]}"
            place.report(Code.UNKNOWN_NAME, f"`{word}` is used above its definition", word, None, note)
            return
        near = place.nearest(word, self.definitions)
        if self.quantities and self.lacks_plugins:
            return
        if self.quantities and (near is None or near in self.quantities):
            notes = () if near else (f"the quantities are {', '.join(self.quantities)}",)
            place.report(Code.UNKNOWN_QUANTITY, f"there is no quantity and no name `{word}`", word, near, *notes)
            return
        notes = () if near else (f"{HELP}{DEFINE}: `let {word} = …`",)
        if word == "rank":
            notes = ("`rank` has a value inside a rule that gives one, in clauses other than `rank` itself",)
        place.report(Code.UNKNOWN_NAME, f"there is no name `{word}` here", word, near, *notes)


def evaluate(node: ValueNode, scope: Scope, place: Place) -> Amount | None:
    """Return what an expression is worth, or None where its fault has been reported."""
    if isinstance(node, Group):
        return evaluate(node.items[0], scope, place)
    if isinstance(node, Negative):
        operand = evaluate(node.operand, scope, place)
        return operand and replace(operand, value=-operand.value)
    if isinstance(node, Word) and node.type == "NAME":
        return _named(node, scope, place)
    try:
        if isinstance(node, Word):
            return literal(node)
        left, right = evaluate(node.left, scope, place), evaluate(node.right, scope, place)
        return left and right and combine(left, node.operator, right)
    except LimitError as error:
        place.report(Code.LIMIT, str(error), node)
    except UnitError as error:
        place.report(Code.BAD_UNIT, str(error), node)
    except ZeroDivisionError:
        assert isinstance(node, Binary)
        place.report(Code.DIVISION_BY_ZERO, "division by zero", node.right)
    return None


def _named(word: Word, scope: Scope, place: Place) -> Amount | None:
    definition = scope.definitions.get(word)
    scope.used.add(str(word))
    if definition is None and scope.complete:
        scope.report_unknown(word, place)
    if definition is None or definition.value is None:
        return None
    if isinstance(definition.value, Amount):
        return definition.value
    kind = "a string" if isinstance(definition.value, str) else "a list of targets"
    note = f"it is defined at {definition.span}"
    place.report(Code.WRONG_KIND, f"expected a number, and `{word}` is {kind}", word, None, note)
    return None
