"""Symbols: the outline of a document, one entry a statement."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from lsprotocol import types

from lorakit.language.syntax import BrokenNode
from lorakit.lsp.document import Document

# By the keyword of a statement
_KINDS: Mapping[str, types.SymbolKind] = {
    "adapt": types.SymbolKind.Class,
    "quantize": types.SymbolKind.Struct,
    "train": types.SymbolKind.Property,
    "optimizer": types.SymbolKind.Object,
    "step": types.SymbolKind.Event,
    "let": types.SymbolKind.Constant,
    "include": types.SymbolKind.File,
    "require": types.SymbolKind.Boolean,
    "use": types.SymbolKind.Package,
}


def symbols(document: Document) -> Iterator[types.DocumentSymbol]:
    """Yield the statements of a document that could be read."""
    for statement in document.tree.statements:
        if isinstance(statement, BrokenNode):
            continue
        words = document.source.text[statement.start : statement.end]
        name = " ".join(words.partition("{")[0].split())
        whole = document.positions.range(statement.start, statement.end)
        first = document.positions.range(statement.start, statement.start + len(words.partition("\n")[0].rstrip()))
        yield types.DocumentSymbol(name, _KINDS[statement.keyword], whole, first)
