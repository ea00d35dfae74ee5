"""Clauses: how what stands behind each is read."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from lorakit.diagnostics import Code, Span
from lorakit.language.amounts import Amount, LimitError
from lorakit.language.calls import Calls
from lorakit.language.names import Rank, evaluate
from lorakit.language.problems import Place
from lorakit.language.statements import PluginCall
from lorakit.language.suggestions import listed
from lorakit.language.syntax import Call, Clause, RuleNode
from lorakit.language.targets import read_ranges, read_targets
from lorakit.language.words import CLAUSES, NOT_YET, SETTINGS, Keyword, clauses_of


@dataclass(frozen=True)
class Context:
    """The statement whose clauses are being read, what `rank` is worth in it, and the method of a rule that has one."""

    calls: Calls
    place: Place
    rank: Rank = None
    method: Any = None


def read_clauses(node: RuleNode, context: Context) -> dict[str, Any]:
    """Return the fields that the clauses of a statement fill; those at fault are reported and left out."""
    fields: dict[str, Any] = {}
    for clause in _checked(node, context).values():
        keyword = CLAUSES[clause.keyword]
        value = _READERS[keyword.takes](clause, keyword, context)
        if value is not None:
            fields[keyword.fills] = value
    return fields


def rank_clause(node: RuleNode) -> Clause | None:
    """Return the first `rank` clause of a statement."""
    return next((clause for clause in node.clauses if clause.keyword.type == "RANK"), None)


def read_rank(clause: Clause, context: Context) -> Amount | None:
    """Return the rank: a whole number, at least 1."""
    return _whole(clause, context, Code.BAD_RANK, "a rank is")


def _whole(clause: Clause, context: Context, code: Code, what: str) -> Amount | None:
    amount = evaluate(clause.argument, context.calls.scope, context.place)  # type: ignore[arg-type]
    if amount is None or not _plain(amount, clause, context):
        return None
    if amount.value.denominator != 1 or amount.value < 1:
        message = f"{what} a whole number and at least 1, not {_short(amount)}"
        context.place.report(code, message, *_argument(clause))
        return None
    return amount


def _checked(node: RuleNode, context: Context) -> Mapping[str, Clause]:
    """Return the clauses by keyword, without those that are given twice or do not belong here."""
    clauses: dict[str, Clause] = {}
    place, method = context.place, context.method
    foreign = SETTINGS.difference(method.clauses) if method is not None else frozenset()
    for clause in node.clauses:
        keyword, statement = str(clause.keyword), str(node.keyword)
        if statement not in CLAUSES[keyword].statements:
            message, note = f"`{statement}` takes no `{keyword}`", f"it takes {listed(clauses_of(statement), 'and')}"
            place.report_word(Code.FOREIGN_CLAUSE, message, clause.keyword, None, note)
        elif keyword in foreign:
            takes = [name for name in CLAUSES if name in SETTINGS - foreign]
            notes = [f"it takes {listed(takes, 'and')}"] if takes else []
            message = f"`{method.name}` takes no `{keyword}`"
            place.report_word(Code.NOT_TAKEN, message, clause.keyword, None, *notes)
        elif keyword in clauses:
            first: Span = place.word_span(clauses[keyword].keyword)
            message = f"`{keyword}` is given twice"
            place.report_word(Code.CLAUSE_TWICE, message, clause.keyword, None, f"it is first given at {first}")
        else:
            clauses[keyword] = clause
    return clauses


def _argument(clause: Clause) -> tuple[int, int]:
    argument: Any = clause.argument
    return argument.start, argument.end


def _plain(amount: Amount, clause: Clause, context: Context, *allowed: str) -> bool:
    if amount.kind in ("", *allowed):
        return True
    what = "bytes" if amount.kind == "B" else "a share (%)"
    message = f"`{clause.keyword}` takes a plain number, not {what}"
    context.place.report(Code.BAD_UNIT, message, *_argument(clause))
    return False


def _short(amount: Amount) -> str:
    try:
        number = amount.number
    except LimitError:
        return "this"
    return f"{number:g}" if isinstance(number, float) else str(number) if abs(number) < 10**20 else "this"


def _number(clause: Clause, context: Context, *allowed: str) -> float | None:
    amount = evaluate(clause.argument, context.calls.scope, context.place, context.rank)  # type: ignore[arg-type]
    if amount is None or not _plain(amount, clause, context, *allowed):
        return None
    try:
        return float(amount.number)
    except (LimitError, OverflowError) as error:
        context.place.report(Code.LIMIT, str(error), *_argument(clause))
        return None


def _rank(clause: Clause, keyword: Keyword, context: Context) -> int | None:
    return int(context.rank.value) if isinstance(context.rank, Amount) else None


def _count(clause: Clause, keyword: Keyword, context: Context) -> int | None:
    amount = _whole(clause, context, Code.OUT_OF_BOUNDS, f"`{clause.keyword}` takes")
    return int(amount.value) if amount is not None else None


def _positive(clause: Clause, keyword: Keyword, context: Context) -> float | None:
    number = _number(clause, context)
    if number is not None and number <= 0:
        message = f"`{clause.keyword}` takes a number above 0, not {number:g}"
        context.place.report(Code.OUT_OF_BOUNDS, message, *_argument(clause))
        return None
    return number


def _probability(clause: Clause, keyword: Keyword, context: Context) -> float | None:
    number = _number(clause, context, "%")
    if number is not None and not 0 <= number < 1:
        message = f"`{clause.keyword}` takes a number from 0 up to, but not including, 1; not {number:g}"
        context.place.report(Code.OUT_OF_BOUNDS, message, *_argument(clause))
        return None
    return number


def _choice(clause: Clause, keyword: Keyword, context: Context) -> str | None:
    word: Any = clause.argument
    if word in keyword.choices:
        return str(word)
    if f"{keyword.word} {word}" in NOT_YET:
        _refuse(f"{keyword.word} {word}", word.start, word.end, context.place)
    else:
        message = f"`{clause.keyword}` is {listed(keyword.choices)}, not `{word}`"
        near = context.place.nearest(word, keyword.choices)
        context.place.report_word(Code.UNKNOWN_CHOICE, message, word, near)
    return None


def _not_yet(clause: Clause, keyword: Keyword, context: Context) -> None:
    _refuse(keyword.word, clause.keyword.start, clause.end, context.place)


def _refuse(words: str, start: int, end: int, place: Place) -> None:
    message = f"`{words}` is a word of the language, but this lorakit does not do it yet"
    place.report(Code.NOT_YET, message, start, end, None, f"help: {NOT_YET[words]}")


def _plugin(clause: Clause, keyword: Keyword, context: Context) -> PluginCall | None:
    assert isinstance(clause.argument, Call) and keyword.plugin is not None
    return context.calls.read(clause.argument, keyword.plugin, context.place, context.rank)


def _flag(clause: Clause, keyword: Keyword, context: Context) -> bool:
    return True


def _ranges(clause: Clause, keyword: Keyword, context: Context) -> Any:
    return read_ranges(clause.argument, context.place)  # type: ignore[arg-type]


def _targets(clause: Clause, keyword: Keyword, context: Context) -> Any:
    calls = context.calls
    return read_targets(clause.argument, calls.scope, calls.plugins.roles, context.place)  # type: ignore[arg-type]


# By what a clause takes; a reader returns None where it has reported a fault
_READERS: Mapping[str, Callable[[Clause, Keyword, Context], Any]] = {
    "rank": _rank,
    "count": _count,
    "positive": _positive,
    "probability": _probability,
    "choice": _choice,
    "plugin": _plugin,
    "flag": _flag,
    "ranges": _ranges,
    "targets": _targets,
    "not yet": _not_yet,
}
