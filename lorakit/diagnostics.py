"""Diagnostics: the record of one finding, the place in a source text that it points to, and its code."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import NamedTuple

from lorakit.quoting import cut

HELP = "help: "


class Code(StrEnum):
    """What can be wrong with a spec. A code keeps its meaning for good; `lorakit explain CODE` prints its page."""

    # how it is written
    UNEXPECTED = "L001"
    UNKNOWN_STATEMENT = "L002"
    UNKNOWN_CLAUSE = "L003"
    VALUE_EXPECTED = "L004"
    NEVER_CLOSED = "L005"
    BAD_STRING = "L006"
    BAD_TARGET = "L007"
    BAD_NUMBER = "L008"
    BAD_RANGE = "L009"
    BAD_CHARACTER = "L010"
    NOT_UTF8 = "L011"
    LIMIT = "L012"
    MISPLACED_DOUBLE = "L013"
    BAD_OPTION_FORM = "L014"
    BAD_COMPARISON = "L015"
    TOO_LARGE = "L016"
    OTHER_FORMAT = "L017"

    # names
    UNKNOWN_NAME = "L020"
    DEFINED_TWICE = "L021"
    RESERVED_NAME = "L022"
    UNKNOWN_VARIABLE = "L023"
    BAD_VARIABLE = "L024"
    WRONG_KIND = "L025"
    UNUSED_NAME = "L026"

    # plugins
    UNKNOWN_PLUGIN = "L030"
    UNKNOWN_OPTION = "L031"
    BAD_OPTION = "L032"
    OPTION_TWICE = "L033"
    NO_DOUBLE = "L034"
    INIT_ZEROS = "L035"
    UNKNOWN_ROLE = "L036"
    BAD_REGEX = "L037"
    UNKNOWN_CHOICE = "L038"

    # clauses and their values
    CLAUSE_TWICE = "L040"
    FOREIGN_CLAUSE = "L041"
    RANK_MISSING = "L042"
    BAD_RANK = "L043"
    OUT_OF_BOUNDS = "L044"
    BAD_UNIT = "L045"
    DIVISION_BY_ZERO = "L046"
    REVERSED_RANGE = "L047"
    NOT_TAKEN = "L048"
    NOT_YET = "L049"

    # whole programs
    TWO_OPTIMIZERS = "L050"
    UNKNOWN_QUANTITY = "L051"
    INCOMPARABLE = "L052"
    TWO_STEPS = "L053"

    # files and installed packages
    UNREADABLE = "L060"
    INCLUDE_CYCLE = "L061"
    INCLUDE_DEPTH = "L062"
    NOT_INSTALLED = "L070"
    TOO_OLD = "L071"
    BAD_VERSION = "L072"

    # found when a spec meets a model
    MATCHES_NOTHING = "L101"
    NOT_ADAPTABLE = "L102"
    RANK_TOO_LARGE = "L103"
    SHADOWED = "L104"
    PROMISE_BROKEN = "L105"
    NOT_QUANTIZABLE = "L106"
    NOT_POSSIBLE_HERE = "L107"
    INDEX_BEYOND = "L108"
    DOES_NOT_FIT = "L109"

    @property
    def severity(self) -> str:
        """`warning` for what works all the same, else `error`."""
        return "warning" if self in _WARNINGS else "error"


_WARNINGS = frozenset({Code.UNUSED_NAME})


class Span(NamedTuple):
    """A piece of source text: 1-based lines and columns in code points, the end exclusive."""

    file: str
    line: int
    column: int
    end_line: int
    end_column: int

    def __str__(self) -> str:
        return f"{self.file}:{self.line}:{self.column}"


@dataclass(frozen=True, slots=True)
class Diagnostic:
    """One finding in a spec; lines and columns are 1-based and in code points, the end is exclusive.

    `suggestion` says what to do about it; `notes` are sentences, and those that help begin with `help: `.
    """

    code: str
    severity: str
    message: str
    file: str
    line: int
    column: int
    end_line: int
    end_column: int
    suggestion: str | None = None
    notes: tuple[str, ...] = ()


def diagnostic_at(
    code: Code,
    message: str,
    span: Span | None,
    *,
    suggestion: str | None = None,
    notes: Sequence[str] = (),
) -> Diagnostic:
    """Return a diagnostic at a span; without one, as in a Spec that no text was read for, at no place in particular."""
    span = span or Span("<spec>", 1, 1, 1, 1)
    return Diagnostic(
        str(code),
        code.severity,
        cut(message),
        span.file,
        span.line,
        span.column,
        span.end_line,
        span.end_column,
        suggestion and cut(suggestion),
        tuple(map(cut, notes)),
    )


def errors_among(found: Iterable[Diagnostic]) -> tuple[Diagnostic, ...]:
    """Return the diagnostics that are no warnings."""
    return tuple(one for one in found if one.severity == "error")


def advised(near: str | None, notes: Sequence[str]) -> tuple[str | None, tuple[str, ...]]:
    """Return the suggestion and the notes of a diagnostic, given the word that was probably meant.

    Where there is no such word, the first note of help is the suggestion.
    """
    if near is not None:
        return f"did you mean `{near}`?", tuple(notes)
    help_ = next((note for note in notes if note.startswith(HELP)), None)
    return (help_.removeprefix(HELP) if help_ else None), tuple(note for note in notes if note is not help_)
