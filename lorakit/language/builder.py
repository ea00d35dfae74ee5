"""Builds the syntax nodes, one method a rule of the grammar."""

from __future__ import annotations

from typing import Any

from lorakit.language.syntax import (
    MAX_DEPTH,
    Binary,
    BrokenNode,
    Call,
    Clause,
    ExpressionNode,
    Group,
    IncludeNode,
    LetNode,
    NameUse,
    Negative,
    NumberLiteral,
    OptionNode,
    RangeNode,
    RequireNode,
    RuleNode,
    StatementNode,
    StringLiteral,
    TargetList,
    TooDeep,
    Truth,
    TupleNode,
    UseNode,
    Word,
)


def _end(item: Any) -> int:
    if isinstance(item, Word):
        return item.end_pos
    end: int = item.end if hasattr(item, "end") else _end(item[-1])
    return end


class Builder:
    """Lark calls each method with the children of its rule; tokens whose names begin with `_` are left out."""

    def start(self, items: list[StatementNode]) -> tuple[StatementNode, ...]:
        return tuple(items)

    def adapt(self, items: list[Any]) -> RuleNode:
        return _rule(items[0], items[1], None, items[2:], items)

    train = adapt

    def quantize(self, items: list[Any]) -> RuleNode:
        return _rule(items[0], items[1], items[2], items[3:], items)

    def optimizer(self, items: list[Any]) -> RuleNode:
        return _rule(items[0], (), items[1], items[2:], items)

    def step(self, items: list[Any]) -> RuleNode:
        return _rule(items[0], (), None, items[1:], items)

    def let(self, items: list[Any]) -> LetNode:
        return LetNode(items[1], items[2], items[0].start_pos, items[2].end)

    def include(self, items: list[Word]) -> IncludeNode:
        return IncludeNode(items[1], items[0].start_pos, items[1].end_pos)

    def require(self, items: list[Any]) -> RequireNode:
        keyword, left, comparison, right = items
        return RequireNode(left, comparison, right, keyword.start_pos, right.end)

    def use(self, items: list[Word]) -> UseNode:
        return UseNode(items[1], items[2] if len(items) > 2 else None, items[0].start_pos, items[-1].end_pos)

    def broken(self, items: list[Any]) -> BrokenNode:
        block = items[1] if len(items) > 1 else []
        end = block[-1].end_pos if block else items[0].end_pos
        return BrokenNode((items[0], *_unread(block)), items[0].start_pos, end)

    def block(self, items: list[Any]) -> list[Any]:
        return items

    def clause(self, items: list[Any]) -> Clause:
        return Clause(items[0], items[1] if len(items) > 1 else None, _end(items[-1]))

    def targets(self, items: list[Word]) -> tuple[Word, ...]:
        return tuple(items)

    def target_list(self, items: list[Word]) -> TargetList:
        return TargetList(tuple(items[1:-1]), items[0].start_pos, items[-1].end_pos)

    def ranges(self, items: list[RangeNode]) -> tuple[RangeNode, ...]:
        return tuple(items)

    def range(self, items: list[Word]) -> RangeNode:
        return RangeNode(items[0], items[-1], items[0].start_pos, items[-1].end_pos)

    def quantizer(self, items: list[Any]) -> Call:
        if len(items) == 1:
            call: Call = items[0]
            return call
        call, double = items
        return Call(call.name, call.options, double, call.start, double.end_pos)

    def call(self, items: list[Any]) -> Call:
        name = items[0]
        return Call(name, tuple(items[1:-1]), None, name.start_pos, items[-1].end_pos)

    def option(self, items: list[Any]) -> OptionNode:
        return OptionNode(items[0], items[1])

    def tuple_(self, items: list[Any]) -> TupleNode | TooDeep:
        start, end, depth = items[0].start_pos, items[-1].end_pos, 1 + max(item.depth for item in items[1:-1])
        return TooDeep(start, end) if depth > MAX_DEPTH else TupleNode(tuple(items[1:-1]), start, end, depth)

    def string(self, items: list[Word]) -> StringLiteral:
        return StringLiteral(items[0], items[0].start_pos, items[0].end_pos)

    def truth(self, items: list[Word]) -> Truth:
        return Truth(items[0], items[0].start_pos, items[0].end_pos)

    def binary(self, items: list[Any]) -> ExpressionNode:
        left, operator, right = items
        depth = 1 + max(left.depth, right.depth)
        if depth > MAX_DEPTH:
            return TooDeep(left.start, right.end)
        return Binary(left, operator, right, left.start, right.end, depth)

    def negative(self, items: list[Any]) -> ExpressionNode:
        minus, operand = items
        if operand.depth >= MAX_DEPTH:
            return TooDeep(minus.start_pos, operand.end)
        return Negative(operand, minus.start_pos, operand.end, operand.depth + 1)

    def number(self, items: list[Word]) -> NumberLiteral:
        return NumberLiteral(items[0], items[0].start_pos, items[0].end_pos)

    def name(self, items: list[Word]) -> NameUse:
        return NameUse(items[0], items[0].start_pos, items[0].end_pos)

    def group(self, items: list[Any]) -> ExpressionNode:
        opening, inner, closing = items
        if inner.depth >= MAX_DEPTH:
            return TooDeep(opening.start_pos, closing.end_pos)
        return Group(inner, opening.start_pos, closing.end_pos, inner.depth + 1)


def _rule(keyword: Word, targets: tuple[Word, ...], call: Call | None, rest: list[Any], items: list[Any]) -> RuleNode:
    """Return a rule with the clauses of its line and of its block, which may hold places that could not be read."""
    block: list[Any] = rest.pop() if rest and isinstance(rest[-1], list) else []
    inside = [item for item in block if isinstance(item, Clause)]
    end = block[-1].end_pos if block else _end(items[-1])
    return RuleNode(keyword, targets, call, (*rest, *inside), _unread(block), keyword.start_pos, end)


def _unread(block: list[Any]) -> tuple[Word, ...]:
    return tuple(item for item in block if isinstance(item, Word) and item.type == "ERROR")
