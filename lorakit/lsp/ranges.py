"""Formatting a part of a document: the whole statements that it touches, whatever is at fault elsewhere."""

from __future__ import annotations

from collections.abc import Iterator

from lorakit.errors import SpecError
from lorakit.language.format import format_text
from lorakit.language.syntax import BrokenNode, RuleNode
from lorakit.lsp.document import Document


def formatted(document: Document, start: int, end: int) -> Iterator[tuple[int, int, str]]:
    """Yield new text for whole lines; lines that a broken statement shares stay as they are."""
    text = document.source.text
    spans = [_lines(text, node.start, node.end) for node in document.tree.statements]
    broken = [
        span
        for span, node in zip(spans, document.tree.statements, strict=True)
        if isinstance(node, BrokenNode | RuleNode) and node.unread
    ]
    for first, last in _merged(span for span in spans if span[0] <= end and span[1] >= start):
        if any(one[0] < last and one[1] > first for one in broken):
            continue
        try:
            new = format_text(text[first:last]).removesuffix("\n")
        except SpecError:
            continue
        if new != text[first:last]:
            yield first, last, new


def _lines(text: str, start: int, end: int) -> tuple[int, int]:
    """Return the offsets of the whole lines around a piece, without the last line's end."""
    after = text.find("\n", end)
    return text.rfind("\n", 0, start) + 1, len(text) if after < 0 else after


def _merged(spans: Iterator[tuple[int, int]]) -> list[tuple[int, int]]:
    """Return spans in their order, those that share a line as one."""
    merged: list[tuple[int, int]] = []
    for first, last in spans:
        if merged and first <= merged[-1][1]:
            merged[-1] = (merged[-1][0], max(last, merged[-1][1]))
        else:
            merged.append((first, last))
    return merged
