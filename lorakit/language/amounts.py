"""Amounts: exact numbers with a unit, and the arithmetic on them."""

from __future__ import annotations

import operator as operators
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from fractions import Fraction

UNITS: dict[str, Fraction] = {
    "%": Fraction(1, 100),
    "B": Fraction(1),
    **{f"{prefix}B": Fraction(1000**power) for power, prefix in enumerate("KMGT", 1)},
    **{f"{prefix}iB": Fraction(1024**power) for power, prefix in enumerate("KMGT", 1)},
}

MAX_DIGITS = 700
MAX_EXPONENT = 400
MAX_BITS = 16384

_LITERAL = re.compile(r"([0-9.]+)(?:[eE]([+-]?[0-9]+))?(.*)")


@dataclass(frozen=True, slots=True)
class Amount:
    """An exact number in plain terms (1% is 1/100, 1KiB is 1024) with the unit that it was written in.

    Where it is not `known` before there is a plan, the value says nothing.
    """

    value: Fraction
    unit: str = ""
    known: bool = True

    @property
    def kind(self) -> str:
        """What it measures: nothing (``""``), a share (``"%"``) or bytes (``"B"``)."""
        return self.unit if self.unit in ("", "%") else "B"

    @property
    def number(self) -> int | float:
        """The value as Python holds it: whole numbers are int. Raises: LimitError where no float is near it."""
        return to_number(self.value)

    @property
    def written(self) -> int | float:
        """The number that stands before the unit. Raises: LimitError where no float is near it."""
        return to_number(self.value / UNITS[self.unit]) if self.unit else self.number


class LimitError(ValueError):
    """A number is longer, larger or smaller than the language allows."""


class UnitError(ValueError):
    """An operator does not fit what its two sides measure."""


def literal(words: str) -> Amount:
    """Return the amount that a number literal stands for. Raises: LimitError."""
    match = _LITERAL.fullmatch(words)
    assert match is not None, words
    digits, exponent, unit = match[1], match[2], match[3]
    if len(digits) > MAX_DIGITS:
        raise LimitError(f"this number has {len(digits)} digits; at most {MAX_DIGITS} are read")
    if exponent and (len(exponent) > 6 or abs(int(exponent)) > MAX_EXPONENT):
        raise LimitError(f"the exponent of this number is beyond ±{MAX_EXPONENT}")
    value = Fraction(digits) * Fraction(10) ** int(exponent or 0)
    return Amount(value * UNITS[unit] if unit else value, unit)


def amount_of(text: str) -> Amount | None:
    """Return the amount that a text is, such as `24GiB`; None where it is none."""
    match = _LITERAL.fullmatch(text.strip())
    if match is None or match[3] not in ("", *UNITS):
        return None
    try:
        return literal(text.strip())
    except ValueError:
        return None


def to_number(value: Fraction) -> int | float:
    """Return a fraction as int where it is whole, else as float. Raises: LimitError where no float is near it."""
    try:
        nearest = float(value)
    except OverflowError:
        raise LimitError("this value is too large") from None
    if value.denominator == 1:
        return value.numerator
    if nearest == 0:
        raise LimitError("this value is too near to zero")
    return nearest


def combine(left: Amount, operator: str, right: Amount) -> Amount:
    """Return `left operator right`. Raises: LimitError, UnitError, ZeroDivisionError."""
    kinds = {left.kind, right.kind}
    wider = next((amount.unit for kind in ("B", "%") for amount in (left, right) if amount.kind == kind), "")
    if operator in "+-" and "B" in kinds and len(kinds) > 1:
        raise UnitError(f"`{operator}` needs bytes on both sides or on none")
    if operator == "*" and kinds == {"B"}:
        raise UnitError("bytes times bytes measures nothing")
    if operator == "/" and right.kind == "B" != left.kind:
        raise UnitError("only bytes can be divided by bytes")
    unit = {"*": wider, "/": "" if len(kinds) == 1 else wider}.get(operator, left.unit or right.unit)
    if operator == "/" and right.known and not right.value:
        raise ZeroDivisionError
    if not (left.known and right.known):
        return Amount(Fraction(1), unit, known=False)
    value = _OPERATORS[operator](left.value, right.value)
    if max(value.numerator.bit_length(), value.denominator.bit_length()) > MAX_BITS:
        raise LimitError("this value is too large, too small or too finely divided")
    return Amount(value, unit)


_OPERATORS: Mapping[str, Callable[[Fraction, Fraction], Fraction]] = {
    "+": operators.add, "-": operators.sub, "*": operators.mul, "/": operators.truediv,
}  # fmt: skip
