"""Clauses: which statement takes which, and what may stand behind each."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from lorakit.language.amounts import Amount, LimitError
from lorakit.language.calls import INITIALIZER, METHOD, QUANTIZER, Calls, PluginKind
from lorakit.language.codes import Code
from lorakit.language.names import Rank, evaluate
from lorakit.language.problems import Place
from lorakit.language.spec import PluginCall, Span
from lorakit.language.suggestions import listed
from lorakit.language.syntax import Clause, RuleNode
from lorakit.language.targets import read_ranges, read_targets
from lorakit.language.words import NOT_YET


@dataclass(frozen=True)
class Context:
    """The statement whose clauses are being read, and what `rank` is worth in it."""

    calls: Calls
    place: Place
    rank: Rank = None


@dataclass(frozen=True)
class ClauseKind:
    """One kind of clause: the field it fills, the statements that take it, and how it is read.

    `read` returns None where it has reported a fault.
    """

    field: str
    statements: tuple[str, ...]
    read: Callable[[Clause, Context], Any]


def read_clauses(node: RuleNode, context: Context) -> dict[str, Any]:
    """Return the fields that the clauses of a statement fill; those at fault are reported and left out."""
    fields: dict[str, Any] = {}
    for clause in _checked(node, context.place).values():
        kind = CLAUSE_KINDS[clause.keyword.value]
        value = kind.read(clause, context)
        if value is not None:
            fields[kind.field] = value
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


def _checked(node: RuleNode, place: Place) -> Mapping[str, Clause]:
    """Return the clauses by keyword, without those that are given twice or do not belong here."""
    clauses: dict[str, Clause] = {}
    for clause in node.clauses:
        keyword, statement = clause.keyword.value, node.keyword.value
        if statement not in CLAUSE_KINDS[keyword].statements:
            takes = [
                name for name, kind in CLAUSE_KINDS.items() if statement in kind.statements and name not in NOT_YET
            ]
            message = f"`{statement}` takes no `{keyword}`"
            place.report_word(Code.FOREIGN_CLAUSE, message, clause.keyword, None, f"it takes {listed(takes, 'and')}")
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


def _rank(clause: Clause, context: Context) -> int | None:
    return int(context.rank.value) if isinstance(context.rank, Amount) else None


def _count(clause: Clause, context: Context) -> int | None:
    amount = _whole(clause, context, Code.OUT_OF_BOUNDS, f"`{clause.keyword}` takes")
    return int(amount.value) if amount is not None else None


def _positive(clause: Clause, context: Context) -> float | None:
    number = _number(clause, context)
    if number is not None and number <= 0:
        message = f"`{clause.keyword}` takes a number above 0, not {number:g}"
        context.place.report(Code.OUT_OF_BOUNDS, message, *_argument(clause))
        return None
    return number


def _probability(clause: Clause, context: Context) -> float | None:
    number = _number(clause, context, "%")
    if number is not None and not 0 <= number < 1:
        message = f"`{clause.keyword}` takes a number from 0 up to, but not including, 1; not {number:g}"
        context.place.report(Code.OUT_OF_BOUNDS, message, *_argument(clause))
        return None
    return number


def _choice(*choices: str) -> Callable[[Clause, Context], str | None]:
    def read(clause: Clause, context: Context) -> str | None:
        word: Any = clause.argument
        if word in choices:
            return str(word)
        message = f"`{clause.keyword}` is {listed(choices)}, not `{word}`"
        context.place.report_word(Code.UNKNOWN_CHOICE, message, word, context.place.nearest(word, choices))
        return None

    return read


def _compute(clause: Clause, context: Context) -> str | None:
    word: Any = clause.argument
    if word == "fp8":
        _refuse("`compute fp8`", word.start_pos, word.end_pos, context, "write `compute bf16`")
        return None
    return _choice("bf16", "fp16", "fp32")(clause, context)


def _not_yet(clause: Clause, context: Context) -> None:
    word = clause.keyword
    _refuse(f"`{word}`", word.start_pos, clause.end, context, NOT_YET[str(word)])


def _refuse(what: str, start: int, end: int, context: Context, instead: str) -> None:
    message = f"{what} is a word of the language, but this lorakit does not do it yet"
    context.place.report(Code.NOT_YET, message, start, end, None, f"help: {instead}")


def _plugin(kind: PluginKind) -> Callable[[Clause, Context], PluginCall | None]:
    def read(clause: Clause, context: Context) -> PluginCall | None:
        return context.calls.read(clause.argument, kind, context.place, context.rank)  # type: ignore[arg-type]

    return read


def _flag(clause: Clause, context: Context) -> bool:
    return True


def _layers(clause: Clause, context: Context) -> Any:
    return read_ranges(clause.argument, context.place)  # type: ignore[arg-type]


def _excepts(clause: Clause, context: Context) -> Any:
    calls = context.calls
    return read_targets(clause.argument, calls.scope, calls.plugins.roles, context.place)  # type: ignore[arg-type]


_ADAPT, _RULES, _STEP = ("adapt",), ("adapt", "quantize", "train"), ("step",)

CLAUSE_KINDS: Mapping[str, ClauseKind] = {
    "rank": ClauseKind("rank", _ADAPT, _rank),
    "alpha": ClauseKind("alpha", _ADAPT, _positive),
    "scaling": ClauseKind("scaling", _ADAPT, _choice("standard", "rslora")),
    "dropout": ClauseKind("dropout", _ADAPT, _probability),
    "method": ClauseKind("method", _ADAPT, _plugin(METHOD)),
    "init": ClauseKind("init", _ADAPT, _plugin(INITIALIZER)),
    "quant": ClauseKind("quant", _ADAPT, _plugin(QUANTIZER)),
    "dtype": ClauseKind("dtype", _ADAPT, _choice("bf16", "fp16", "fp32")),
    "bias": ClauseKind("bias", _ADAPT, _choice("none", "adapter")),
    "lr": ClauseKind("lr", ("adapt", "train", "optimizer"), _positive),
    "lr_ratio": ClauseKind("lr_ratio", _ADAPT, _positive),
    "paged": ClauseKind("paged", ("adapt", "optimizer"), _flag),
    "layers": ClauseKind("layers", _RULES, _layers),
    "except": ClauseKind("excepts", _RULES, _excepts),
    "optional": ClauseKind("optional", _RULES, _flag),
    "batch": ClauseKind("batch", _STEP, _count),
    "tokens": ClauseKind("tokens", _STEP, _count),
    "memory": ClauseKind("memory", _STEP, _not_yet),
    "compute": ClauseKind("compute", _STEP, _compute),
    "capture": ClauseKind("capture", _STEP, _not_yet),
}
