"""Syntax nodes: what was written, word by word, with offsets into the source; they mean nothing yet."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, TypeAlias

from lorakit.diagnostics import Diagnostic
from lorakit.language.source import SourceText


class Word(str):
    """A word of the source: which terminal of the grammar it is, and the offsets at which it begins and ends."""

    __slots__ = ("end", "start", "type")

    type: str
    start: int
    end: int

    def __new__(cls, text: str, kind: str, start: int = 0) -> Word:
        word = str.__new__(cls, text)
        word.type, word.start, word.end = kind, start, start + len(text)
        return word


# The terminals of brackets, within which the end of a line says nothing
OPENING, CLOSING = ("_GROUP", "_LPAR", "_LSQB"), ("_RPAR", "_RSQB")

# Deeper values are refused where they are read, so that every later walk may recurse
MAX_DEPTH = 100


class Binary(NamedTuple):
    """`left operator right`."""

    start: int
    end: int
    left: ValueNode
    operator: Word
    right: ValueNode


class Negative(NamedTuple):
    """`-operand`."""

    start: int
    end: int
    sign: Word
    operand: ValueNode


class Group(NamedTuple):
    """`(inner)`, or a tuple: `(a, b)`."""

    start: int
    end: int
    items: tuple[ValueNode, ...]


NESTING = (Binary, Negative, Group)

# A word stands for itself: a number, a string, `true` or `false`, or a name
ValueNode: TypeAlias = "Word | Binary | Negative | Group"


class TargetList(NamedTuple):
    """`[q_proj, @mlp]`, the value of a `let`."""

    start: int
    end: int
    targets: tuple[Word, ...]


class OptionNode(NamedTuple):
    """`name=value` between the parentheses of a call."""

    start: int
    end: int
    name: Word
    value: ValueNode


class Call(NamedTuple):
    """A plugin's name with its options, and the `double` behind it."""

    start: int
    end: int
    name: Word
    options: tuple[OptionNode, ...]
    double: Word | None = None


class RangeNode(NamedTuple):
    """`0..15` or `7`."""

    start: int
    end: int
    first: Word
    last: Word


class Clause(NamedTuple):
    """A keyword and what stands behind it, if anything: an expression, a call, or words or ranges."""

    start: int
    end: int
    keyword: Word
    argument: Any = None


class RuleNode(NamedTuple):
    """`adapt`, `quantize`, `train`, `optimizer` or `step`.

    `unread` are the clauses of its block that could not be read.
    """

    start: int
    end: int
    keyword: Word
    targets: tuple[Word, ...]
    call: Call | None
    clauses: tuple[Clause, ...]
    unread: tuple[Word, ...]


class LetNode(NamedTuple):
    """`let name = value`."""

    start: int
    end: int
    keyword: Word
    name: Word
    value: ValueNode | TargetList


class IncludeNode(NamedTuple):
    """`include "file"`."""

    start: int
    end: int
    keyword: Word
    path: Word


class RequireNode(NamedTuple):
    """`require left comparison right`."""

    start: int
    end: int
    keyword: Word
    left: ValueNode
    comparison: Word
    right: ValueNode


class UseNode(NamedTuple):
    """`use distribution >= version`."""

    start: int
    end: int
    keyword: Word
    distribution: Word
    version: Word | None = None


class BrokenNode(NamedTuple):
    """A statement that could not be read; `unread` are its words up to a block, and the unread clauses in that."""

    start: int
    end: int
    keyword: Word
    unread: tuple[Word, ...]


StatementNode: TypeAlias = "RuleNode | LetNode | IncludeNode | RequireNode | UseNode | BrokenNode"


class SyntaxTree(NamedTuple):
    """A file as it was read: its statements, all of its tokens, and what could not be read."""

    source: SourceText
    statements: tuple[StatementNode, ...]
    tokens: tuple[Word, ...]
    diagnostics: tuple[Diagnostic, ...]


def _rule(start: int, end: int, keyword: Word, *parts: Any) -> RuleNode | BrokenNode:
    """Return a statement; its block may hold clauses that could not be read."""
    unread = tuple(part for part in (keyword, *parts) if isinstance(part, Word) and part.type == "ERROR")
    if keyword.type == "ERROR":
        return BrokenNode(start, end, keyword, unread)
    targets = next((part for part in parts if type(part) is tuple), ())
    call = next((part for part in parts if isinstance(part, Call)), None)
    return RuleNode(start, end, keyword, targets, call, tuple(p for p in parts if isinstance(p, Clause)), unread)


# What the rules of the grammar make: sequences, or nodes whose fields are the children that the rule keeps
SEQUENCES = frozenset({"start", "targets", "ranges"})
NODES: Mapping[str, Callable[..., Any]] = {
    **dict.fromkeys(("adapt", "quantize", "train", "optimizer", "step", "broken"), _rule),
    "let": LetNode,
    "include": IncludeNode,
    "require": RequireNode,
    "use": UseNode,
    "clause": Clause,
    "target_list": lambda start, end, *targets: TargetList(start, end, targets),
    "range": lambda start, end, first, last=None: RangeNode(start, end, first, last or first),
    "quantizer": lambda start, end, call, double=None: call._replace(end=end, double=double),
    "call": lambda start, end, name, *options: Call(start, end, name, options),
    "option": OptionNode,
    "binary": Binary,
    "negative": Negative,
    **dict.fromkeys(("group", "tuple"), lambda start, end, *items: Group(start, end, items)),
}
