"""The printer: a Spec as text that parses to an equal Spec, in canonical form."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import zip_longest
from typing import TYPE_CHECKING, Any

from lorakit.diagnostics import Code, diagnostic_at
from lorakit.errors import SpecError
from lorakit.language.layout import flat, lay_out, pieces
from lorakit.language.render import render_text
from lorakit.language.statements import (
    Adapt,
    Expression,
    IndexRange,
    Number,
    Optimizer,
    PluginCall,
    Quantity,
    Quantize,
    Require,
    Step,
    Target,
    Train,
    Value,
)
from lorakit.language.syntax import MAX_DEPTH, Word
from lorakit.language.words import KEYWORDS, NONE, clauses_of

if TYPE_CHECKING:
    from lorakit.language.spec import Spec

_OPERATORS = {"+": ("PLUS", 1), "-": ("MINUS", 1), "*": ("TIMES", 2), "/": ("OVER", 2)}


def to_text(spec: Spec) -> str:
    """Return a Spec as text. Raises: SpecError for what cannot be written, as a string that holds a newline."""
    statements = [*spec.rules, spec.optimizer, spec.step, *spec.requires]
    units = [_use(*use) for use in spec.uses]
    units += [_STATEMENTS[type(statement)](statement) for statement in statements if statement is not None]
    return "".join(f"{line}\n" for words in units for line in lay_out(_pieces(_checked(words)), 0))


def call_text(call: PluginCall) -> str:
    """Return a plugin with its options as a spec names it."""
    return flat(_pieces(_call(call)))


def _pieces(words: Sequence[Word]) -> Any:
    return pieces(words, [()] * len(words))


def _checked(words: Sequence[Word]) -> Sequence[Word]:
    """Return words that can be read again as they are meant. Raises: SpecError."""
    from lorakit.language.tables import terminal

    for word, behind in zip_longest(words, words[1:]):
        # options alone may be called like a word of the language
        taken = word.type == "NAME" and word in KEYWORDS and (behind is None or behind.type != "_EQUAL")
        if taken or not terminal(word.type).fullmatch(word):
            raise _unwritable(f"`{word}` cannot be written in a spec")
    return words


def _unwritable(message: str) -> SpecError:
    found = diagnostic_at(Code.UNEXPECTED, message, None)
    return SpecError((found,), render_text((found,), {}))


def _keyword(word: str) -> Word:
    return Word(word, word.upper(), 0)


def _name(name: str) -> Word:
    return Word(name, "NAME", 0)


def _parted(items: Iterable[Sequence[Word]]) -> list[Word]:
    """Return the words of several items with commas between them."""
    return [word for number, item in enumerate(items) for word in ([Word(",", "_COMMA", 0)] * bool(number) + [*item])]


def _targets(targets: Iterable[Target]) -> list[Word]:
    return _parted([Word(str(target), "TARGET" if target.regex is None else "REGEX", 0)] for target in targets)


def _ranges(ranges: Iterable[IndexRange]) -> list[Word]:
    return _parted(map(_range, ranges))


def _range(indices: IndexRange) -> list[Word]:
    first, last = Word(str(indices.first), "INTEGER", 0), Word(str(indices.last), "INTEGER", 0)
    return [first] if indices.first == indices.last else [first, Word("..", "_DOTS", 0), last]


def _signed(number: str) -> list[Word]:
    minus = [Word("-", "MINUS", 0)] if number.startswith("-") else []
    return [*minus, Word(number.removeprefix("-"), "NUMBER", 0)]


def _number(value: float) -> list[Word]:
    whole = isinstance(value, int) or value.is_integer()
    return _signed(str(int(value)) if whole and abs(value) < 1e15 else repr(value))


def _exact(value: float, unit: str = "") -> list[Word]:
    """Return a number digit by digit where it is whole: beyond 2⁵³ the shortest form of a float is another number."""
    whole = isinstance(value, int) or value.is_integer()
    return _signed((str(int(value)) if whole else repr(value)) + unit)


def _call(call: PluginCall) -> list[Word]:
    double = [_keyword("double")] if call.double else []
    if not call.options:
        return [_name(call.name), *double]
    options = ([_name(name), Word("=", "_EQUAL", 0), *_value(value)] for name, value in call.options)
    return [_name(call.name), Word("(", "_LPAR", 0), *_parted(options), Word(")", "RPAR", 0), *double]


def _stored(quant: PluginCall | None) -> list[Word]:
    return [_name(NONE)] if quant is None else _call(quant)


def _value(value: Value) -> list[Word]:
    if isinstance(value, bool):
        return [_keyword("true" if value else "false")]
    if isinstance(value, str):
        escaped = value.replace("\\", "\\\\").replace('"', '\\"')
        return [Word(f'"{escaped}"', "STRING", 0)]
    if isinstance(value, tuple):
        return [Word("(", "LPAR", 0), *_parted(map(_value, value)), Word(")", "RPAR", 0)]
    return _exact(value)


def _expression(node: Expression, around: int = 0, depth: int = 1) -> list[Word]:
    """Return an expression, in parentheses where it binds less tightly than the place needs."""
    if isinstance(node, Number):
        return _exact(node.value, node.unit)
    if isinstance(node, Quantity):
        return [_name(node.name)]
    if depth >= MAX_DEPTH:
        raise _unwritable(f"this expression nests deeper than {MAX_DEPTH} levels")
    kind, binding = _OPERATORS[node.operator]
    loose = binding < around
    left, right = (_expression(side, binding + n, depth + 1 + loose) for n, side in enumerate((node.left, node.right)))
    words = [*left, Word(node.operator, kind, 0), *right]
    return [Word("(", "LPAR", 0), *words, Word(")", "RPAR", 0)] if loose else words


# By what a clause takes
_VALUES: Mapping[str, Callable[[Any], list[Word]]] = {
    "rank": _number,
    "count": _number,
    "positive": _number,
    "probability": _number,
    "choice": lambda value: [_name(value)],
    "plugin": _call,
    "flag": lambda value: [],
    "ranges": _ranges,
    "targets": _targets,
}


def _clauses(statement: Any) -> Iterator[Word]:
    """Yield the clauses of the fields that are not as they are by default."""
    defaults = type(statement).__dataclass_fields__
    for word, clause in clauses_of(type(statement).__name__.lower()).items():
        value = getattr(statement, clause.fills)
        if value != defaults[clause.fills].default:
            yield from (_keyword(word), *_VALUES[clause.takes](value))


def _use(name: str, version: str | None) -> list[Word]:
    wanted = [Word(">=", "_AT_LEAST", 0), Word(version, "VERSION", 0)] if version is not None else []
    return [_keyword("use"), Word(name, "DISTRIBUTION", 0), *wanted]


def _require(require: Require) -> list[Word]:
    comparison = Word(require.comparison, "COMPARISON", 0)
    return [_keyword("require"), *_expression(require.left), comparison, *_expression(require.right)]


_STATEMENTS: Mapping[type, Callable[[Any], list[Word]]] = {
    Adapt: lambda rule: [_keyword("adapt"), *_targets(rule.targets), *_clauses(rule)],
    Quantize: lambda rule: [_keyword("quantize"), *_targets(rule.targets), *_stored(rule.quant), *_clauses(rule)],
    Train: lambda rule: [_keyword("train"), *_targets(rule.targets), *_clauses(rule)],
    Optimizer: lambda optimizer: [_keyword("optimizer"), *_call(optimizer.call), *_clauses(optimizer)],
    Step: lambda step: [_keyword("step"), *_clauses(step)],
    Require: _require,
}
