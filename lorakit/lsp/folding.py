"""Folding: what an editor can close up: statements over several lines, and runs of comments and includes."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import groupby

from lsprotocol import types

from lorakit.language.syntax import BrokenNode, IncludeNode
from lorakit.lsp.document import Document


def folds(document: Document) -> Iterator[types.FoldingRange]:
    """Yield the ranges of whole lines that can be folded."""
    line = document.source.position
    for statement in document.tree.statements:
        first, last = line(statement.start)[0] - 1, line(statement.end)[0] - 1
        if last > first and not isinstance(statement, BrokenNode):
            # the brace that closes a block stays in sight
            closed = last - 1 if document.source.text[statement.end - 1] == "}" else last
            if closed > first:
                yield types.FoldingRange(first, closed, kind=types.FoldingRangeKind.Region)
    lines = document.source.text.split("\n")
    comments = [number for number, text in enumerate(lines) if text.lstrip().startswith("#")]
    includes = [line(node.start)[0] - 1 for node in document.tree.statements if isinstance(node, IncludeNode)]
    yield from _runs(comments, types.FoldingRangeKind.Comment)
    yield from _runs(includes, types.FoldingRangeKind.Imports)


def _runs(numbers: list[int], kind: types.FoldingRangeKind) -> Iterator[types.FoldingRange]:
    """Yield a fold for each run of consecutive lines."""
    for _, run in groupby(enumerate(numbers), lambda pair: pair[1] - pair[0]):
        first, *rest = (number for _, number in run)
        if rest:
            yield types.FoldingRange(first, rest[-1], kind=kind)
