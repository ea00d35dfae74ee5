"""`require`: promises as expressions that the plan evaluates."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

from lorakit.diagnostics import Code
from lorakit.language.amounts import Amount, LimitError, combine
from lorakit.language.names import Scope, evaluate, report_arithmetic
from lorakit.language.problems import Place
from lorakit.language.statements import (
    Expression,
    Number,
    Operation,
    Quantity,
    Require,
)
from lorakit.language.syntax import Binary, ValueNode, Group, Negative, RequireNode, Word

_MEASURES = {"": "a plain number", "%": "a share", "B": "bytes"}


@dataclass(frozen=True, slots=True)
class _Side:
    """An expression with its worth; where quantities are in it, the worth is a stand-in with the right unit."""

    expression: Expression
    amount: Amount
    constant: bool


@dataclass(frozen=True)
class Requires:
    """Reads `require` statements against the names in scope and the known quantities."""

    scope: Scope
    quantities: Mapping[str, str]

    def read(self, node: RequireNode, place: Place) -> Require | None:
        """Return the promise, or None where its fault has been reported."""
        left, right = self._side(node.left, place), self._side(node.right, place)
        if left is None or right is None:
            return None
        if "B" in (left.amount.kind, right.amount.kind) and left.amount.kind != right.amount.kind:
            message = f"cannot compare {_MEASURES[left.amount.kind]} with {_MEASURES[right.amount.kind]}"
            place.report(
                Code.INCOMPARABLE, message, node.left.start, node.right.end, None,
                "help: bytes are written with a unit, as in `24GiB`",
            )  # fmt: skip
            return None
        span = place.span(node.start, node.end)
        return Require(left.expression, str(node.comparison), right.expression, span)

    def _side(self, node: ValueNode, place: Place) -> _Side | None:
        if isinstance(node, Group):
            return self._side(node.items[0], place)
        name = node if isinstance(node, Word) and node.type == "NAME" else None
        if name is not None and name in self.quantities:
            return self._quantity(name, place)
        if isinstance(node, Negative):
            return self._negative(node, place)
        if isinstance(node, Binary):
            return self._binary(node, place)
        if name is not None and name not in self.scope.definitions and self.scope.complete:
            if self.scope.lacks_plugins:
                return None
            near = place.nearest(name, (*self.quantities, *self.scope.definitions))
            if near in self.quantities or (near is None and name not in self.scope.later):
                note = () if near else (f"the quantities are {', '.join(self.quantities)}",)
                message = f"there is no quantity and no name `{name}`"
                place.report_word(Code.UNKNOWN_QUANTITY, message, name, near, *note)
                return None
        amount = evaluate(node, self.scope, place)
        return None if amount is None else self._constant(node, amount, place)

    def _quantity(self, name: Word, place: Place) -> _Side | None:
        definition = self.scope.definitions.get(name)
        if definition is not None:
            message = f"`{name}` is a quantity, and also a `let` name"
            place.report_word(Code.RESERVED_NAME, message, name, None, f"it is defined at {definition.span}")
            return None
        quantity = Quantity(str(name), place.word_span(name))
        return _Side(quantity, Amount.one(self.quantities[quantity.name]), False)

    def _constant(self, node: ValueNode, amount: Amount, place: Place) -> _Side | None:
        try:
            return _Side(Number(amount.written, amount.unit), amount, True)
        except LimitError as error:
            place.report(Code.LIMIT, str(error), node.start, node.end)
            return None

    def _negative(self, node: Negative, place: Place) -> _Side | None:
        operand = self._side(node.operand, place)
        if operand is None:
            return None
        amount = replace(operand.amount, value=-operand.amount.value)
        if isinstance(operand.expression, Number):
            number = operand.expression
            return _Side(Number(-number.value, number.unit), amount, True)
        return _Side(Operation("-", Number(0), operand.expression), operand.amount, operand.constant)

    def _binary(self, node: Binary, place: Place) -> _Side | None:
        left, right = self._side(node.left, place), self._side(node.right, place)
        if left is None or right is None:
            return None
        constant = left.constant and right.constant
        try:
            divisor = right.amount if right.constant else Amount.one(right.amount.unit)
            amount = combine(left.amount, str(node.operator), divisor)
        except (ArithmeticError, ValueError) as error:
            report_arithmetic(error, node, place)
            return None
        operation = Operation(str(node.operator), left.expression, right.expression)
        return _Side(operation, amount if constant else Amount.one(amount.unit), constant)
