"""The printer: a Spec as text that parses to an equal Spec, in canonical form."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import zip_longest
from typing import TYPE_CHECKING, Any

from lorakit.diagnostics import Code, diagnostic_at
from lorakit.errors import SpecError
from lorakit.language.layout import flat, lay_out, pieces
from lorakit.language.render import render_text
from lorakit.language.statements import Expression, IndexRange, Number, PluginCall, Quantity, Require, Target, Value
from lorakit.language.syntax import MAX_DEPTH, Word
from lorakit.language.words import KEYWORDS, PLUGINS, STATEMENTS, Keyword, clauses_of

if TYPE_CHECKING:
    from lorakit.language.spec import Spec

_OPERATORS = {"+": ("PLUS", 1), "-": ("MINUS", 1), "*": ("TIMES", 2), "/": ("OVER", 2)}


def to_text(spec: Spec) -> str:
    """Return a Spec as text. Raises: SpecError for what cannot be written, as a string that holds a newline."""
    statements = [*spec.rules, spec.optimizer, spec.step]
    units = [_use(*use) for use in spec.uses]
    units += [_statement(statement) for statement in statements if statement is not None]
    units += map(_require, spec.requires)
    return "".join(f"{line}\n" for words in units for line in lay_out(pieces(_checked(words)), 0))


def call_text(call: PluginCall) -> str:
    """Return a plugin with its options as a spec names it."""
    return flat(pieces(_call(call)))


def _checked(words: Sequence[Word]) -> Sequence[Word]:
    """Return words that can be read again as they are meant. Raises: SpecError."""
    from lorakit.language.machine import terminal

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
    return Word(word, word.upper())


def _listed(items: Iterable[Sequence[Word]]) -> list[Word]:
    """Return the words of several items with commas between them."""
    return [word for item in items for word in (Word(",", "_COMMA"), *item)][1:]


def _targets(targets: Iterable[Target]) -> list[Word]:
    return _listed([Word(str(target), "TARGET" if target.regex is None else "REGEX")] for target in targets)


def _range(indices: IndexRange) -> list[Word]:
    first, last = Word(str(indices.first), "INTEGER"), Word(str(indices.last), "INTEGER")
    return [first] if first == last else [first, Word("..", "_DOTS"), last]


def _number(value: float, unit: str = "", most: float = math.inf) -> list[Word]:
    """Return a number, digit by digit where it is whole and no larger: beyond 2⁵³ the shortest form is another one."""
    whole = isinstance(value, int) or (value.is_integer() and abs(value) < most)
    digits = str(int(value)) if whole else repr(value)
    minus = [Word("-", "MINUS")] if digits.startswith("-") else []
    return [*minus, Word(digits.removeprefix("-") + unit, "NUMBER")]


def _call(call: PluginCall) -> list[Word]:
    options = _listed([Word(name, "NAME"), Word("=", "_EQUAL"), *_value(value)] for name, value in call.options)
    bracketed = [Word("(", "_LPAR"), *options, Word(")", "_RPAR")] if options else []
    return [Word(call.name, "NAME"), *bracketed, *([_keyword("double")] if call.double else [])]


def _stored(call: PluginCall | None, keyword: Keyword) -> list[Word]:
    return [Word(keyword.without, "NAME")] if call is None else _call(call)


def _value(value: Value) -> list[Word]:
    if isinstance(value, bool):
        return [_keyword("true" if value else "false")]
    if isinstance(value, str):
        escaped = value.replace("\\", "\\\\").replace('"', '\\"')
        return [Word(f'"{escaped}"', "STRING")]
    return _group(_listed(map(_value, value))) if isinstance(value, tuple) else _number(value)


def _group(words: Iterable[Word]) -> list[Word]:
    return [Word("(", "_GROUP"), *words, Word(")", "_RPAR")]


def _expression(node: Expression, around: int = 0, depth: int = 1) -> list[Word]:
    """Return an expression, in parentheses where it binds less tightly than the place needs."""
    if isinstance(node, Number):
        return _number(node.value, node.unit)
    if isinstance(node, Quantity):
        return [Word(node.name, "NAME")]
    if depth >= MAX_DEPTH:
        raise _unwritable(f"this expression nests deeper than {MAX_DEPTH} levels")
    kind, binding = _OPERATORS[node.operator]
    loose = binding < around
    left, right = (_expression(side, binding + n, depth + 1 + loose) for n, side in enumerate((node.left, node.right)))
    words = [*left, Word(node.operator, kind), *right]
    return _group(words) if loose else words


# By what a clause takes
_VALUES: Mapping[str, Callable[[Any], list[Word]]] = {
    **dict.fromkeys(("rank", "count", "positive", "probability"), lambda value: _number(value, most=1e15)),
    "bytes": lambda value: _number(value.value, value.unit),
    "choice": lambda value: [Word(value, "NAME")],
    **dict.fromkeys(PLUGINS, _call),
    "flag": lambda value: [],
    "ranges": lambda ranges: _listed(map(_range, ranges)),
    "targets": _targets,
}


def _clauses(statement: Any) -> Iterator[Word]:
    """Yield the clauses of the fields that are not as they are by default."""
    defaults = type(statement).__dataclass_fields__
    for word, clause in clauses_of(type(statement).__name__.lower()).items():
        value = getattr(statement, clause.fills)
        if value != defaults[clause.fills].default:
            yield from (_keyword(word), *_VALUES[clause.takes](value))


def _statement(statement: Any) -> list[Word]:
    keyword = STATEMENTS[type(statement).__name__.lower()]
    targets = _targets(getattr(statement, "targets", ()))
    call = _stored(getattr(statement, keyword.fills), keyword) if keyword.plugin else []
    return [_keyword(keyword.word), *targets, *call, *_clauses(statement)]


def _use(name: str, version: str | None) -> list[Word]:
    wanted = [Word(">=", "_AT_LEAST"), Word(version, "VERSION")] if version is not None else []
    return [_keyword("use"), Word(name, "DISTRIBUTION"), *wanted]


def _require(require: Require) -> list[Word]:
    comparison = Word(require.comparison, "COMPARISON")
    return [_keyword("require"), *_expression(require.left), comparison, *_expression(require.right)]
