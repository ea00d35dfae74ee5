"""`require`: promises as expressions that the plan evaluates."""

from __future__ import annotations

from collections.abc import Mapping
from fractions import Fraction

from lorakit.diagnostics import Code
from lorakit.language.amounts import Amount, LimitError
from lorakit.language.names import Scope, evaluate
from lorakit.language.place import Extent, Place
from lorakit.language.statements import Expression, Number, Operation, Quantity, Require
from lorakit.language.syntax import Binary, Group, Negative, RequireNode, ValueNode

_MEASURES = {"": "a plain number", "%": "a share", "B": "bytes"}


def read_require(node: RequireNode, scope: Scope, quantities: Mapping[str, str], place: Place) -> Require | None:
    """Return the promise, or None where its fault has been reported; quantities are names with a unit."""
    figures = {name: Amount(Fraction(1), unit, known=False) for name, unit in quantities.items()}
    inside = scope.within(figures, quantities)
    amounts = [evaluate(side, inside, place) for side in (node.left, node.right)]
    kinds = [amount.kind for amount in amounts if amount is not None]
    if len(kinds) < 2:
        return None
    if "B" in kinds and kinds[0] != kinds[1]:
        message = f"cannot compare {_MEASURES[kinds[0]]} with {_MEASURES[kinds[1]]}"
        both = Extent(node.left.start, node.right.end)
        place.report(Code.INCOMPARABLE, message, both, None, "help: bytes are written with a unit, as in `24GiB`")
        return None
    left, right = (_expression(side, scope, quantities, place) for side in (node.left, node.right))
    return Require(left, str(node.comparison), right, span=place.span(node))


def _expression(node: ValueNode, scope: Scope, quantities: Mapping[str, str], place: Place) -> Expression:
    """Return an expression whose names all have a value; what no Spec can hold is reported."""
    match node:
        case Group():
            return _expression(node.items[0], scope, quantities, place)
        case Binary():
            left, right = (_expression(side, scope, quantities, place) for side in (node.left, node.right))
            return Operation(str(node.operator), left, right)
        case Negative():
            operand = _expression(node.operand, scope, quantities, place)
            negative = Operation("-", Number(0), operand)
            return Number(-operand.value, operand.unit) if isinstance(operand, Number) else negative
    if node.type == "NAME" and node in quantities:
        if (definition := scope.definitions.get(node)) is not None:
            note = f"it is defined at {definition.span}"
            place.report(Code.RESERVED_NAME, f"`{node}` is a quantity, and also a `let` name", node, None, note)
        return Quantity(str(node), span=place.span(node))
    amount = evaluate(node, scope, place) or Amount(Fraction())
    try:
        return Number(amount.written, amount.unit)
    except LimitError as error:
        place.report(Code.LIMIT, str(error), node)
        return Number(0)
