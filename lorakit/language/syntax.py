"""Syntax nodes: what was written, word by word, with offsets into the source; they mean nothing yet.

A `Word` is a token of the grammar: a string that knows its terminal (`type`) and its offsets (`start_pos`, `end_pos`).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeAlias

from lark import Token

from lorakit.language.diagnostics import Diagnostic
from lorakit.language.source import SourceText

if TYPE_CHECKING:

    class Word(Token):
        """A token that came from a text, so that its offsets are known."""

        start_pos: int
        end_pos: int
        value: str
else:
    Word = Token

# Deeper expressions are refused where they are read, so that every later walk may recurse
MAX_DEPTH = 100


@dataclass(frozen=True, slots=True)
class NumberLiteral:
    """`16`, `2e-4`, `1%` or `24GiB`."""

    word: Word
    start: int
    end: int
    depth: int = 1


@dataclass(frozen=True, slots=True)
class NameUse:
    """A name in an expression: of a `let`, `rank`, or a quantity."""

    word: Word
    start: int
    end: int
    depth: int = 1


@dataclass(frozen=True, slots=True)
class Binary:
    """`left operator right`."""

    left: ExpressionNode
    operator: Word
    right: ExpressionNode
    start: int
    end: int
    depth: int


@dataclass(frozen=True, slots=True)
class Negative:
    """`-operand`."""

    operand: ExpressionNode
    start: int
    end: int
    depth: int


@dataclass(frozen=True, slots=True)
class Group:
    """`(inner)`."""

    inner: ExpressionNode
    start: int
    end: int
    depth: int


@dataclass(frozen=True, slots=True)
class TooDeep:
    """Stands for a value that nests deeper than the language allows."""

    start: int
    end: int
    depth: int = MAX_DEPTH


@dataclass(frozen=True, slots=True)
class StringLiteral:
    """`"text"`, quotes and escapes as written."""

    word: Word
    start: int
    end: int
    depth: int = 1


@dataclass(frozen=True, slots=True)
class Truth:
    """`true` or `false`."""

    word: Word
    start: int
    end: int
    depth: int = 1


@dataclass(frozen=True, slots=True)
class TupleNode:
    """`(a, b)`."""

    items: tuple[ValueNode, ...]
    start: int
    end: int
    depth: int


@dataclass(frozen=True, slots=True)
class TargetList:
    """`[q_proj, @mlp]`, the value of a `let`."""

    targets: tuple[Word, ...]
    start: int
    end: int


ExpressionNode: TypeAlias = "NumberLiteral | NameUse | Binary | Negative | Group | TooDeep"
ValueNode: TypeAlias = "ExpressionNode | StringLiteral | Truth | TupleNode"


@dataclass(frozen=True, slots=True)
class OptionNode:
    """`name=value` between the parentheses of a call."""

    name: Word
    value: ValueNode


@dataclass(frozen=True, slots=True)
class Call:
    """A plugin's name with its options, and the `double` behind it."""

    name: Word
    options: tuple[OptionNode, ...]
    double: Word | None
    start: int
    end: int


@dataclass(frozen=True, slots=True)
class RangeNode:
    """`0..15` or `7`."""

    first: Word
    last: Word
    start: int
    end: int


Argument: TypeAlias = "ExpressionNode | Call | Word | tuple[Word, ...] | tuple[RangeNode, ...] | None"


@dataclass(frozen=True, slots=True)
class Clause:
    """A keyword and what stands behind it."""

    keyword: Word
    argument: Argument
    end: int


@dataclass(frozen=True, slots=True)
class RuleNode:
    """`adapt`, `quantize`, `train` or `optimizer`; `broken` where a clause of its block could not be read."""

    keyword: Word
    targets: tuple[Word, ...]
    call: Call | None
    clauses: tuple[Clause, ...]
    broken: bool
    start: int
    end: int


@dataclass(frozen=True, slots=True)
class LetNode:
    """`let name = value`."""

    name: Word
    value: ExpressionNode | StringLiteral | TargetList
    start: int
    end: int


@dataclass(frozen=True, slots=True)
class IncludeNode:
    """`include "file"`."""

    path: Word
    start: int
    end: int


@dataclass(frozen=True, slots=True)
class RequireNode:
    """`require left comparison right`."""

    left: ExpressionNode
    comparison: Word
    right: ExpressionNode
    start: int
    end: int


@dataclass(frozen=True, slots=True)
class UseNode:
    """`use distribution >= version`."""

    distribution: Word
    version: Word | None
    start: int
    end: int


@dataclass(frozen=True, slots=True)
class BrokenNode:
    """A statement that could not be read."""

    text: str
    start: int
    end: int


StatementNode: TypeAlias = "RuleNode | LetNode | IncludeNode | RequireNode | UseNode | BrokenNode"


@dataclass(frozen=True, slots=True)
class SyntaxTree:
    """A file as it was read: its statements, all of its tokens, and what could not be read."""

    source: SourceText
    statements: tuple[StatementNode, ...]
    tokens: tuple[Word, ...]
    diagnostics: tuple[Diagnostic, ...]
