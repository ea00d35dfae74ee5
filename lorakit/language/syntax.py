"""Syntax nodes: what was written, word by word, with offsets into the source; they mean nothing yet.

Nodes are named tuples: a large spec has a hundred thousand of them.
"""

from __future__ import annotations

from typing import NamedTuple, TypeAlias

from lorakit.language.diagnostics import Diagnostic
from lorakit.language.source import SourceText


class Word(str):
    """A word of the source: which terminal of the grammar it is, and the offsets at which it begins and ends."""

    __slots__ = ("end_pos", "start_pos", "type")

    type: str
    start_pos: int
    end_pos: int

    def __new__(cls, text: str, kind: str, start: int) -> Word:
        word = str.__new__(cls, text)
        word.type, word.start_pos, word.end_pos = kind, start, start + len(text)
        return word

    @property
    def value(self) -> str:
        """The word as a plain string."""
        return str(self)


# Deeper expressions are refused where they are read, so that every later walk may recurse
MAX_DEPTH = 100


class NumberLiteral(NamedTuple):
    """`16`, `2e-4`, `1%` or `24GiB`."""

    word: Word
    start: int
    end: int
    depth: int = 1


class NameUse(NamedTuple):
    """A name in an expression: of a `let`, `rank`, or a quantity."""

    word: Word
    start: int
    end: int
    depth: int = 1


class Binary(NamedTuple):
    """`left operator right`."""

    left: ExpressionNode
    operator: Word
    right: ExpressionNode
    start: int
    end: int
    depth: int


class Negative(NamedTuple):
    """`-operand`."""

    operand: ExpressionNode
    start: int
    end: int
    depth: int


class Group(NamedTuple):
    """`(inner)`."""

    inner: ExpressionNode
    start: int
    end: int
    depth: int


class TooDeep(NamedTuple):
    """Stands for a value that nests deeper than the language allows."""

    start: int
    end: int
    depth: int = MAX_DEPTH


class StringLiteral(NamedTuple):
    """`"text"`, quotes and escapes as written."""

    word: Word
    start: int
    end: int
    depth: int = 1


class Truth(NamedTuple):
    """`true` or `false`."""

    word: Word
    start: int
    end: int
    depth: int = 1


class TupleNode(NamedTuple):
    """`(a, b)`."""

    items: tuple[ValueNode, ...]
    start: int
    end: int
    depth: int


class TargetList(NamedTuple):
    """`[q_proj, @mlp]`, the value of a `let`."""

    targets: tuple[Word, ...]
    start: int
    end: int


ExpressionNode: TypeAlias = "NumberLiteral | NameUse | Binary | Negative | Group | TooDeep"
ValueNode: TypeAlias = "ExpressionNode | StringLiteral | Truth | TupleNode"


class OptionNode(NamedTuple):
    """`name=value` between the parentheses of a call."""

    name: Word
    value: ValueNode


class Call(NamedTuple):
    """A plugin's name with its options, and the `double` behind it."""

    name: Word
    options: tuple[OptionNode, ...]
    double: Word | None
    start: int
    end: int


class RangeNode(NamedTuple):
    """`0..15` or `7`."""

    first: Word
    last: Word
    start: int
    end: int


Argument: TypeAlias = "ExpressionNode | Call | Word | tuple[Word, ...] | tuple[RangeNode, ...] | None"


class Clause(NamedTuple):
    """A keyword and what stands behind it."""

    keyword: Word
    argument: Argument
    end: int


class RuleNode(NamedTuple):
    """`adapt`, `quantize`, `train`, `optimizer` or `step`.

    `unread` are the clauses of its block that could not be read.
    """

    keyword: Word
    targets: tuple[Word, ...]
    call: Call | None
    clauses: tuple[Clause, ...]
    unread: tuple[Word, ...]
    start: int
    end: int


class LetNode(NamedTuple):
    """`let name = value`."""

    name: Word
    value: ExpressionNode | StringLiteral | TargetList
    start: int
    end: int


class IncludeNode(NamedTuple):
    """`include "file"`."""

    path: Word
    start: int
    end: int


class RequireNode(NamedTuple):
    """`require left comparison right`."""

    left: ExpressionNode
    comparison: Word
    right: ExpressionNode
    start: int
    end: int


class UseNode(NamedTuple):
    """`use distribution >= version`."""

    distribution: Word
    version: Word | None
    start: int
    end: int


class BrokenNode(NamedTuple):
    """A statement that could not be read; `unread` are its words up to a block, and the unread clauses in that."""

    unread: tuple[Word, ...]
    start: int
    end: int


StatementNode: TypeAlias = "RuleNode | LetNode | IncludeNode | RequireNode | UseNode | BrokenNode"


class SyntaxTree(NamedTuple):
    """A file as it was read: its statements, all of its tokens, and what could not be read."""

    source: SourceText
    statements: tuple[StatementNode, ...]
    tokens: tuple[Word, ...]
    diagnostics: tuple[Diagnostic, ...]
