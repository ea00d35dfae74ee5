"""Clauses: how what stands behind each is read."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from fractions import Fraction
from typing import Any, NamedTuple

from lorakit.diagnostics import Code
from lorakit.language.amounts import Amount, LimitError
from lorakit.language.calls import read_call
from lorakit.language.names import Scope, evaluate
from lorakit.language.place import Place, Words
from lorakit.language.statements import Number
from lorakit.language.suggestions import listed
from lorakit.language.syntax import Clause, RuleNode
from lorakit.language.targets import read_ranges, read_targets
from lorakit.language.words import CLAUSES, NOT_YET, PLUGINS, SETTINGS, Keyword, clauses_of


def read_clauses(node: RuleNode, scope: Scope, place: Place, method: Any = None) -> dict[str, Any]:
    """Return the fields that the clauses of a statement fill; those at fault are reported and left out.

    Where there is a `rank` clause, or may be one among those that could not be read, the others know what `rank` is.
    `method` is that of a rule that has one.
    """
    clauses = _checked(node, place, method)
    fields: dict[str, Any] = {}
    if node.unread or any(clause.keyword == "rank" for clause in node.clauses):
        rank = None
        if (clause := clauses.pop("rank", None)) is not None:
            rank = fields["rank"] = _value(clause, scope, place)
            fields["rank_span"] = place.span(clause.argument)
        scope = scope.within({"rank": Amount(Fraction(rank)) if rank is not None else None})
    for word, clause in clauses.items():
        fields[CLAUSES[word].fills] = _value(clause, scope, place)
    return {name: value for name, value in fields.items() if value is not None}


def _checked(node: RuleNode, place: Place, method: Any) -> dict[str, Clause]:
    """Return the clauses by keyword, without those that are given twice or do not belong here."""
    clauses: dict[str, Clause] = {}
    foreign = SETTINGS.difference(method.clauses) if method is not None else frozenset()
    for clause in node.clauses:
        keyword = str(clause.keyword)
        if node.keyword not in CLAUSES[keyword].statements:
            note = f"it takes {listed(clauses_of(node.keyword), 'and')}"
            place.report(Code.FOREIGN_CLAUSE, f"`{node.keyword}` takes no `{keyword}`", clause.keyword, None, note)
        elif keyword in foreign:
            takes = listed((name for name in CLAUSES if name in SETTINGS - foreign), "and")
            notes = [f"it takes {takes}"] if takes else []
            place.report(Code.NOT_TAKEN, f"`{method.name}` takes no `{keyword}`", clause.keyword, None, *notes)
        elif keyword in clauses:
            note = f"it is first given at {place.span(clauses[keyword].keyword)}"
            place.report(Code.CLAUSE_TWICE, f"`{keyword}` is given twice", clause.keyword, None, note)
        else:
            clauses[keyword] = clause
    return clauses


def _value(clause: Clause, scope: Scope, place: Place) -> Any:
    keyword = CLAUSES[clause.keyword]
    return _READERS[keyword.takes](clause, keyword, scope, place)


class _Bounds(NamedTuple):
    """What a number must be, what is said of one that is not, and the unit that it may have."""

    hold: Callable[[Fraction], bool]
    message: str
    code: Code = Code.OUT_OF_BOUNDS
    unit: str = ""


def _is_count(value: Fraction) -> bool:
    return value.denominator == 1 and value >= 1


_BOUNDS = {
    "rank": _Bounds(_is_count, "a rank is a whole number and at least 1, not {1}", Code.BAD_RANK),
    "count": _Bounds(_is_count, "`{0}` takes a whole number and at least 1, not {1}"),
    "positive": _Bounds(lambda value: value > 0, "`{0}` takes a number above 0, not {1}"),
    "probability": _Bounds(
        lambda value: 0 <= value < 1, "`{0}` takes a number from 0 up to, but not including, 1; not {1}", unit="%"
    ),
}


def _number(clause: Clause, keyword: Keyword, scope: Scope, place: Place) -> float | None:
    amount, bounds = evaluate(clause.argument, scope, place), _BOUNDS[keyword.takes]
    if amount is None:
        return None
    try:
        number = int(amount.value) if bounds.hold is _is_count else float(amount.number)
    except (LimitError, OverflowError) as error:
        place.report(Code.LIMIT, str(error), clause.argument)
        return None
    if amount.kind not in ("", bounds.unit):
        what = "bytes" if amount.kind == "B" else "a share (%)"
        place.report(Code.BAD_UNIT, f"`{keyword.word}` takes a plain number, not {what}", clause.argument)
    elif not bounds.hold(amount.value):
        place.report(bounds.code, bounds.message.format(keyword.word, _short(amount)), clause.argument)
    else:
        return number
    return None


def _short(amount: Amount) -> str:
    try:
        number = amount.number
    except LimitError:
        return "this"
    return f"{number:g}" if isinstance(number, float) else str(number) if abs(number) < 10**20 else "this"


def _bytes(clause: Clause, keyword: Keyword, scope: Scope, place: Place) -> Number | None:
    amount = evaluate(clause.argument, scope, place)
    if amount is None:
        return None
    if amount.kind != "B":
        note = "help: bytes are written with a unit, as in `24GiB`"
        place.report(Code.BAD_UNIT, f"`{keyword.word}` takes bytes", clause.argument, None, note)
    elif amount.value <= 0:
        place.report(Code.OUT_OF_BOUNDS, f"`{keyword.word}` takes more than 0 bytes", clause.argument)
    else:
        try:
            return Number(amount.written, amount.unit)
        except LimitError as error:
            place.report(Code.LIMIT, str(error), clause.argument)
    return None


def _choice(clause: Clause, keyword: Keyword, scope: Scope, place: Place) -> str | None:
    word = clause.argument
    if word in keyword.choices:
        return str(word)
    if f"{keyword.word} {word}" in NOT_YET:
        _refuse(f"{keyword.word} {word}", word, place)
    else:
        from lorakit.language.foreign_words import advice_on

        message = f"`{keyword.word}` is {listed(keyword.choices)}, not `{word}`"
        if advice := advice_on(word):
            place.report(Code.UNKNOWN_CHOICE, message, word, None, advice)
        else:
            place.report(Code.UNKNOWN_CHOICE, message, word, place.nearest(word, keyword.choices))
    return None


def _refuse(words: str, where: Words, place: Place) -> None:
    message = f"`{words}` is a word of the language, but this lorakit does not do it yet"
    place.report(Code.NOT_YET, message, where, None, f"help: {NOT_YET[words]}")


# By what a clause takes; a reader returns None where it has reported a fault
_READERS: Mapping[str, Callable[[Clause, Keyword, Scope, Place], Any]] = {
    **dict.fromkeys(_BOUNDS, _number),
    "bytes": _bytes,
    "choice": _choice,
    **dict.fromkeys(PLUGINS, lambda clause, keyword, *at: read_call(clause.argument, keyword.plugin, *at)),
    "flag": lambda *_: True,
    "ranges": lambda clause, keyword, scope, place: read_ranges(clause.argument, place),
    "targets": lambda clause, keyword, scope, place: read_targets(clause.argument, scope, place),
}
