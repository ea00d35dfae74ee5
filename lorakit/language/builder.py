"""Builds the syntax nodes, one method a rule of the grammar."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from lorakit.language.syntax import (
    Binary,
    BrokenNode,
    Call,
    Clause,
    Group,
    IncludeNode,
    LetNode,
    Negative,
    OptionNode,
    RangeNode,
    RequireNode,
    RuleNode,
    StatementNode,
    TargetList,
    TupleNode,
    UseNode,
    Word,
)


def _end(item: Any) -> int:
    end: int = _end(item[-1]) if isinstance(item, list) or not hasattr(item, "end") else item.end
    return end


def _span(items: Sequence[Any]) -> tuple[int, int]:
    return items[0].start, _end(items[-1])


class Builder:
    """The parser calls each method with the children of its rule; tokens whose names begin with `_` are left out."""

    def start(self, items: list[StatementNode]) -> tuple[StatementNode, ...]:
        return tuple(items)

    def adapt(self, items: list[Any]) -> RuleNode:
        return _rule(items, items[1], None, items[2:])

    train = adapt

    def quantize(self, items: list[Any]) -> RuleNode:
        return _rule(items, items[1], items[2], items[3:])

    def optimizer(self, items: list[Any]) -> RuleNode:
        return _rule(items, (), items[1], items[2:])

    def step(self, items: list[Any]) -> RuleNode:
        return _rule(items, (), None, items[1:])

    def let(self, items: list[Any]) -> LetNode:
        return LetNode(items[1], items[2], *_span(items))

    def include(self, items: list[Word]) -> IncludeNode:
        return IncludeNode(items[1], *_span(items))

    def require(self, items: list[Any]) -> RequireNode:
        _, left, comparison, right = items
        return RequireNode(left, comparison, right, *_span(items))

    def use(self, items: list[Word]) -> UseNode:
        return UseNode(items[1], items[2] if len(items) > 2 else None, *_span(items))

    def broken(self, items: list[Any]) -> BrokenNode:
        return BrokenNode((items[0], *_unread(items[1:])), *_span(items))

    def block(self, items: list[Any]) -> list[Any]:
        return items

    def clause(self, items: list[Any]) -> Clause:
        return Clause(items[0], items[1] if len(items) > 1 else None, _end(items[-1]))

    def targets(self, items: list[Word]) -> tuple[Word, ...]:
        return tuple(items)

    def target_list(self, items: list[Word]) -> TargetList:
        return TargetList(tuple(items[1:-1]), *_span(items))

    def ranges(self, items: list[RangeNode]) -> tuple[RangeNode, ...]:
        return tuple(items)

    def range(self, items: list[Word]) -> RangeNode:
        return RangeNode(items[0], items[-1], *_span(items))

    def quantizer(self, items: list[Any]) -> Call:
        call: Call = items[0]
        return call if len(items) == 1 else call._replace(double=items[1], end=items[1].end)

    def call(self, items: list[Any]) -> Call:
        return Call(items[0], tuple(items[1:-1]), None, *_span(items))

    def option(self, items: list[Any]) -> OptionNode:
        return OptionNode(items[0], items[1])

    def tuple_(self, items: list[Any]) -> TupleNode:
        return TupleNode(tuple(items[1:-1]), *_span(items))

    def binary(self, items: list[Any]) -> Binary:
        left, operator, right = items
        return Binary(left, operator, right, *_span(items))

    def negative(self, items: list[Any]) -> Negative:
        return Negative(items[1], *_span(items))

    def group(self, items: list[Any]) -> Group:
        return Group(items[1], *_span(items))


def _rule(items: list[Any], targets: tuple[Word, ...], call: Call | None, rest: list[Any]) -> RuleNode:
    """Return a rule with the clauses of its line and of its block, which may hold places that could not be read."""
    block: list[Any] = rest.pop() if rest and isinstance(rest[-1], list) else []
    inside = [item for item in block if isinstance(item, Clause)]
    return RuleNode(items[0], targets, call, (*rest, *inside), _unread([block]), *_span(items))


def _unread(blocks: list[list[Any]]) -> tuple[Word, ...]:
    return tuple(item for block in blocks for item in block if isinstance(item, Word) and item.type == "ERROR")
